"""`python prepare.py demo`: the closed spoken domain as prepared data (`data.py`), made offline from a seed.

    data/demo/train             qa (spoken and typed), asr, chat, tts and face: the training voices and phrasings
    data/demo/val               the same voices and phrasings, other clips; tts and face of sentences that train lacks
    data/demo/test-voices       espeak-ng variants and accents that training never hears, phrasings of training
    data/demo/test-recombined   training voices, carrier-core pairs held out
    data/demo/test-wording      training voices, wordings held out
    data/demo/test-both         voices of test-voices, phrasings held out
    data/demo/test-natural      flite slt: a natural voice, and a woman's, that training never hears; all phrasings
    data/demo/voice             what the answer voice says, its audio: to train the speech tokenizer and decoder with

    python prepare.py demo --answers mini/data        # without flite: the four stages need no more than pip packages

Rows carry text (what is asked), kind, phrasing (`domain.phrasings`), voice, family. Every clip of a user has an `asr`
row with words and phones ([name, start, end] in seconds; its audio is shared with the `qa` row); `voice` too. A clip of
a user lasts at most WINDOW seconds. Training clips are augmented, all others clean. Answers' audio is padded to whole
units, their faces have frames_for_units(units) frames. Units come later, with the speech tokenizer that pretrain.py
makes: `add_units`.

--answers takes what the answer voice says from a file (`ship_answers`): then all splits have units at once, espeak-ng
alone asks, with the same clips as otherwise, test-natural is empty, and rows of `voice` have no audio and no words.
"""
import functools
import json
import lzma
import os
import signal
import sys
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toy import domain
from toy import voices
import weights
from data import Split, Writer, checksum
from face_decoder import UNIT_RATE, frames_for_units
from toy.teacher import face_track

WINDOW = 5.12                                       # seconds: 512 frames of the mini encoder's log-mel
UNIT_SAMPLES = round(voices.RATE / UNIT_RATE)       # 1280
SHIPPED = Path(__file__).parent.parent / "mini" / "data"   # where `--answers` are when flite is not installed
REPLY = ("units", "face")                           # arrays that all samples of an answer share
SPEAKING = 3        # every third clip of a question has them in training: they cost most, and are always the same
# Clips of each answer's questions by family; random word strings to hear; random strings and plain sentences to read
# aloud, of which `held` each are kept from training; tests ask every n-th answer.
SIZES = {
    "full": {"espeak": 17, "flite": 14, "hear_espeak": 2800, "hear_flite": 2400, "strings": 1500, "sentences": 300,
             "held": 40, "every": 1},
    "small": {"espeak": 1, "flite": 1, "hear_espeak": 100, "hear_flite": 60, "strings": 60, "sentences": 40, "held": 10,
              "every": 6},
}
TESTS = ("test-voices", "test-recombined", "test-wording", "test-both", "test-natural")
SPLITS = ("voice", "train", "val", *TESTS)


def rng(seed: int, name: str) -> np.random.Generator:
    """Random numbers of their own for everything that has a name: what is made does not depend on what was made
    before."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# --- the plan: what is said, by whom, in which split; nothing spoken yet ----------------------------------------------

def plan(seed: int, size: dict) -> dict:
    """Split -> its clips, {"id", "text", "how", ...} each; `how` is for voices.speak."""
    rows = domain.phrasings(seed)
    asked = {}                                                          # answer -> split of phrasings -> their rows
    for row in rows:
        asked.setdefault(row["answer"], {}).setdefault(row["split"], []).append(row)
    words = domain.vocabulary(row["text"] for row in rows)
    answers = list(asked)
    texts = domain.random_strings(size["strings"], domain.vocabulary(answers), rng(seed, "strings"))
    plain = domain.plain_sentences(size["sentences"], rng(seed, "sentences"))
    said = [(text, "answer", False) for text in answers]
    said += [(text, kind, n < size["held"]) for kind, several in (("string", dict.fromkeys(texts)), ("sentence", plain))
             for n, text in enumerate(several)]
    how, families = {"family": "flite", "voice": voices.ANSWER_VOICE}, ("espeak", "flite")
    clips = {"voice": [{"id": f"a{n:04d}", "text": text, "kind": kind, "held": held, "how": how}
                       for n, (text, kind, held) in enumerate(said)]}
    clips["train"] = [question(seed, "train", answer, n, asked[answer]["train"], family, number)
                      for n, answer in enumerate(answers) for family in families for number in range(size[family])]
    clips["train"] += [hear(seed, family, n, words) for family in families for n in range(size["hear_" + family])]
    chosen = list(enumerate(answers))[::size["every"]]
    for split in ("val", *TESTS):
        clips[split] = []
        for n, answer in chosen:
            kind = {"val": "train", "test-voices": "train", "test-recombined": "recombined", "test-wording": "wording",
                    "test-both": ("recombined", "wording")[n % 2],
                    "test-natural": ("train", "recombined", "wording")[n % 3]}[split]
            family = {"test-voices": "espeak", "test-both": "espeak", "test-natural": "flite"}.get(
                split, "espeak" if rng(seed, f"{split} {n}").random() < 0.5 else "flite")
            clips[split].append(question(seed, split, answer, n, asked[answer][kind], family))
    return clips


def question(seed: int, split: str, answer: str, n: int, phrasings: list, family: str, number: int = 0) -> dict:
    """The clip that asks for the n-th answer; several of one family and split take its phrasings in turn."""
    order = rng(seed, f"{split} {family} {n}").permutation(len(phrasings))
    row, name = phrasings[order[number % len(order)]], f"{split}-{n:03d}-{family}-{number}"
    held = split in ("test-voices", "test-both", "test-natural")
    return {"id": name, "text": row["text"], "answer": answer, "kind": row["kind"], "phrasing": row["split"],
            "how": voices.draw(family, rng(seed, name), held)}


def hear(seed: int, family: str, n: int, words: list) -> dict:
    """A clip of three to eight random words: an encoder that knows the sentence patterns cannot guess them."""
    name = f"hear-{family}-{n:04d}"
    random = rng(seed, name)
    return {"id": name, "text": domain.random_strings(1, words, random, 3, 8)[0], "kind": "random",
            "how": voices.draw(family, random)}


# --- sound ------------------------------------------------------------------------------------------------------------

def say(job: tuple) -> voices.Clip:
    """(clip of the plan, split, seed) -> what is heard. Said faster until it fits into WINDOW. Runs in worker
    processes."""
    clip, split, seed = job
    how, random = dict(clip["how"]), rng(seed, clip["id"] + " sound")
    if split == "voice":
        said = voices.speak(clip["text"], **how)
        return said._replace(audio=np.pad(said.audio, (0, -len(said.audio) % UNIT_SAMPLES)))
    said = voices.speak(clip["text"], **how)
    while len(said.audio) > WINDOW * voices.RATE:
        how |= {"wpm": round(how["wpm"] * 1.15)} if "wpm" in how else {"stretch": how["stretch"] * 0.85}
        said = voices.speak(clip["text"], **how)
    said = said.later(min(random.uniform(0, 0.25), WINDOW - len(said.audio) / voices.RATE))
    return said._replace(audio=voices.augment(said.audio, random)) if split == "train" else said


@contextmanager
def crew(workers: int):
    """Yield a `map` that keeps the order and spreads its work over processes; they end with the block, whatever
    happens."""
    if workers == 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield functools.partial(pool.map, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def sounds(spread, jobs: list, description: str):
    """Yield (clip of the plan, what is heard) in order. spread: a `map`."""
    with tqdm(total=len(jobs), desc=description, unit="clip", disable=None) as bar:     # none in a log file
        for job, said in zip(jobs, spread(say, jobs)):
            yield job[0], said
            bar.update()


def timed(spans) -> list:
    return [[name, round(start, 3), round(end, 3)] for name, start, end in spans]


# --- directories ------------------------------------------------------------------------------------------------------

def user(*parts) -> list:
    """A conversation of one user turn: a str is text, None is speech."""
    return [{"role": "user", "content": [{"type": "speech"} if part is None else {"type": "text", "text": part}
                                         for part in parts] if None in parts else "".join(parts)}]


def write_voice(out: Writer, jobs: list, spread, seed: int, answers: dict | None) -> None:
    """Everything that the answer voice says: its audio, words, phones and face; from shipped answers units, phones and
    face."""
    def add(clip, spans, **arrays):
        out.add({"id": clip["id"], "task": "tts", "messages": user(domain.READ, clip["text"]), "answer": clip["text"],
                 "kind": clip["kind"], "held": clip["held"], "voice": clip["how"]["voice"],
                 "family": clip["how"]["family"]} | spans, **arrays)

    missing = [job for job in jobs if job[0]["id"] not in out]
    if answers is not None:
        for clip, _, _ in missing:
            reply = answers[clip["text"]]
            add(clip, {"phones": reply["phones"]}, units=reply["units"], face=reply["face"])
        return
    for clip, said in sounds(spread, missing, "voice"):
        face = face_track(said.phones, frames_for_units(len(said.audio) // UNIT_SAMPLES), said.audio, voices.RATE,
                          seed=zlib.crc32(f"{seed} {clip['text']}".encode()))
        add(clip, {"words": timed(said.words), "phones": timed(said.phones)}, audio=said.audio, face=face)


def write_split(out: Writer, split: str, jobs: list, voice: Split, spread, seed: int) -> None:
    """Everything else: what is read aloud, what is typed, what is asked aloud. One face, and the units if `voice` has
    them, for all samples of an answer; none for most clips of training."""
    index = {row["answer"]: n for n, row in enumerate(voice.rows)}
    where = lambda row: {name: row[name] for name in REPLY if name in row}
    replies = {row["answer"]: where(row) for row in out.rows.values() if "face" in row}

    def add(row, speaking=False, **arrays):
        answer = row["answer"]
        if row["id"] in out:
            return out.rows[row["id"]]
        if speaking:
            arrays |= replies[answer] if answer in replies else {name: voice[index[answer]][name] for name in REPLY}
        row = out.add(row, **arrays)
        if "face" in row:
            replies[answer] = where(row)
        return row

    for row in voice.rows:
        if split == ("val" if row["held"] else "train"):
            same = {"answer": row["answer"], "kind": row["kind"]}
            add({"id": f"{row['id']}-tts", "task": "tts", "messages": row["messages"]} | same, True)
            add({"id": f"{row['id']}-face", "task": "face", "messages": row["messages"]} | same, True)
    for row, name, task, text in typed(split, jobs, seed):
        add({"id": name, "task": task, "messages": user(text), "answer": row["answer"], "text": text,
             "kind": row["kind"], "phrasing": row["split"] if "split" in row else row["phrasing"]}, task == "qa")
    missing = [job for job in jobs if f"{job[0]['id']}-asr" not in out]
    for clip, said in sounds(spread, missing, split):
        same = {key: clip[key] for key in ("text", "kind", "phrasing") if key in clip}
        same |= {"voice": clip["how"]["voice"], "family": clip["how"]["family"]}
        audio = np.round(said.audio.clip(-1, 1) * 32767).astype(np.int16)
        if "answer" in clip:
            row = {"id": clip["id"], "task": "qa", "messages": user(None), "answer": clip["answer"]}
            speaking = split != "train" or int(clip["id"].rsplit("-", 1)[1]) % SPEAKING == 0
            audio = add(row | same, speaking, audio=audio)["audio"]
        add({"id": f"{clip['id']}-asr", "task": "asr", "messages": user(None, domain.HEAR),
             "answer": domain.spoken(clip["text"])} | same | {"words": timed(said.words), "phones": timed(said.phones)},
            audio=audio)


def typed(split: str, jobs: list, seed: int):
    """(row, id, task, text) of every question without sound. train: each phrasing of training as it may be typed (chat)
    and every fourth as it is written (qa: the answer is spoken too, which costs most); elsewhere the questions of the
    clips, as written (chat): what text alone would score."""
    if split != "train":
        for clip, _, _ in jobs:
            yield clip, f"{clip['id']}-text", "chat", clip["text"]
        return
    random = rng(seed, "typed")
    for n, row in enumerate(row for row in domain.phrasings(seed) if row["split"] == "train"):
        if n % 4 == 0:
            yield row, f"w{n:05d}", "qa", row["text"]
        yield row, f"c{n:05d}", "chat", domain.typed(row["text"], random)


def make(out, seed: int = 0, size="full", workers: int | None = None, answers=None) -> bool:
    """Write the demo set below `out`; what an interrupted run left is used. size: a name in SIZES, or such a dict.
    answers: a directory with shipped answers, in place of flite. Returns False where everything was there already.
    Raises ValueError where `out` holds another demo set or the answers are others, OSError without the
    synthesizers."""
    out, workers = Path(out), workers or os.cpu_count() or 1
    clips, shipped, units = plan(seed, SIZES[size] if isinstance(size, str) else size), None, {}
    about = {"seed": seed, "size": size, "plan": zlib.crc32(json.dumps(clips).encode())}
    if answers is not None:
        units, shipped = read_answers(answers)
        lacking = [clip["text"] for clip in clips["voice"] if clip["text"] not in shipped]
        if lacking:
            raise ValueError(f"{answers} lacks {len(lacking)} of {len(clips['voice'])} answers, such as "
                             f"{lacking[0]!r}: it was made with --seed {units['seed']} and --size {units['size']}, "
                             "give the same, or fetch the one of this version")
        about["answers"] = f"{checksum(Path(answers) / ANSWERS):08x}"
        units = {name: units[name] for name in UNITS_OF}
        clips = {split: [clip for clip in several if split == "voice" or clip["how"]["family"] != "flite"]
                 for split, several in clips.items()}
    if (out / "demo.json").exists():
        before = weights.read_json(out / "demo.json")
        if before != about:
            ways = ["from --answers" if "answers" in record else "with flite" for record in (before, about)]
            how = f"{ways[0]}, not {ways[1]}" if ways[0] != ways[1] else \
                "with another seed, size or version of the domain or the answers"
            raise ValueError(f"{out} was made {how}: choose another --out, or remove it")
    else:
        voices.espeak("hello")                          # all that is needed is there, or nothing is begun
        if answers is None:
            try:
                voices.run_flite("-lv")
            except OSError as error:
                raise OSError(f"{error}; or, without them, --answers DIRECTORY with shipped answers (no {SHIPPED} "
                              "here)") from None
        weights.write_json(out / "demo.json", about)
    todo = [split for split in SPLITS if not (out / split / "manifest.json").exists()]
    with crew(workers if todo else 1) as spread:
        for split in todo:
            jobs = [(clip, split, seed) for clip in clips[split]]
            with Writer(out / split) as writer:
                if split == "voice":
                    write_voice(writer, jobs, spread, seed, shipped)
                else:
                    write_split(writer, split, jobs, Split(out / "voice"), spread, seed)
                writer.finish(made_by="prepare.py demo", split=split, **about, **units)
    return bool(todo)


def summary(out) -> str:
    """A line per split: rows by task, clips, hours and bytes."""
    lines, clips, hours, total = [], 0, 0.0, 0
    for name in SPLITS:
        split = Split(Path(out) / name)
        count = len({tuple(row["audio"]) for row in split.rows if "audio" in row})
        seconds = len(split.arrays["audio"]) / voices.RATE
        size = sum(file["bytes"] for file in split.manifest["files"].values())
        tasks = ", ".join(f"{task} {n}" for task, n in Counter(row["task"] for row in split.rows).items())
        lines.append(f"{name:<16}{count:>7} clips {seconds / 3600:>6.2f} h {size / 1e6:>8.1f} MB   {tasks}".rstrip())
        clips, hours, total = clips + count, hours + seconds / 3600, total + size
    return "\n".join([*lines, f"{'all':<16}{clips:>7} clips {hours:>6.2f} h {total / 1e6:>8.1f} MB"])


def units_of(voice, encode) -> dict:
    """voice: the split `voice`; encode(audio (T,) float32 16 kHz) -> units (T / 1280,). Text -> units of all that is
    said."""
    split = Split(voice)
    if not len(split.arrays["audio"]):
        raise ValueError(f"{voice} has no sound, it was made from --answers with the units of their speech tokenizer: "
                         "other units need `prepare.py demo` with flite")
    return {row["answer"]: np.asarray(encode(split[n]["audio"])) for n, row in
            enumerate(tqdm(split.rows, desc="units", unit="clip", disable=None))}


def add_units(directory, units: dict, unit_vocab: int, speech_tokenizer: str) -> int:
    """Give a finished split the units of its answers, or other ones: answer -> (U,) ids, shared by all samples of an
    answer. unit_vocab: their number; speech_tokenizer: the fingerprint of what made them; both go into the manifest.
    Returns how many samples have units. Raises ValueError where an answer has none or the face's frames do not match
    them."""
    directory, split = Path(directory), Split(directory)
    where, arrays, start, rows = {}, [], 0, []
    for row in split.rows:
        if "face" not in row:
            rows.append(row)
            continue
        answer = row["answer"]
        if answer not in where:
            if answer not in units:
                raise ValueError(f"{directory}: no units for {answer!r}: were they made from another demo set's voice?")
            ids = np.asarray(units[answer])
            frames = row["face"][1]
            if frames_for_units(len(ids)) != frames or not 0 <= ids.min() <= ids.max() < unit_vocab:
                raise ValueError(f"{directory}: {len(ids)} units from {ids.min()} to {ids.max()} for {answer!r}, "
                                 f"expected ids below {unit_vocab} that last as long as its face, {frames} frames")
            where[answer] = [start, len(ids)]
            arrays.append(ids)
            start += len(ids)
        rows.append(row | {"units": where[answer]})
    manifest = split.manifest | {"unit_vocab": unit_vocab, "speech_tokenizer": speech_tokenizer}
    (directory / "manifest.json").unlink()              # unfinished until both files are whole
    data = {"units.u16": np.concatenate([*arrays, np.zeros(0)]).astype("<u2").tobytes(),
            "samples.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()}
    for name, content in data.items():
        with weights.replacing(directory / name) as temporary:
            temporary.write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "crc32": checksum(directory / name)}
    weights.write_json(directory / "manifest.json", manifest)
    return sum("units" in row for row in rows)


# --- answers as a file ------------------------------------------------------------------------------------------------

ANSWERS = "answers.xz"
UNITS_OF = ("unit_vocab", "speech_tokenizer")       # what a manifest says of its units


def ship_answers(data, folder) -> Path:
    """Write all that the four stages need of the answer voice to folder/answers.xz: 1 MB for 1.7 h. data: a demo set
    with units. Returns the file. Raises ValueError, FileNotFoundError where `data` is not such a set.

    The file is one xz stream, which has a checksum of its own. In it are a json line {"format": 1, "answers": their
    number, seed, size, unit_vocab, speech_tokenizer}, then a json line per answer {"text", "units": how many, "phones":
    [[name, milliseconds], ...] one after the other from 0}, then numbers: the units of all answers, 16 bits, little
    endian; the weights of all frames, round(255 w) less that of the frame before, modulo 256, 8 bits, first all frames
    of the first of the 52. An answer of U units has frames_for_units(U) frames."""
    voice = Split(Path(data) / "voice", verify=True)
    if any("units" not in row for row in voice.rows) or not {*UNITS_OF} <= voice.manifest.keys():
        raise ValueError(f"{voice.directory} has no units to ship: run `python -m toy pretrain units` first")
    lines = [{"format": 1, "answers": len(voice)} | {key: voice.manifest[key] for key in ("seed", "size", *UNITS_OF)}]
    for row in voice.rows:
        phones = [[name, round(1000 * end) - round(1000 * start)] for name, start, end in row["phones"]]
        lines.append({"text": row["answer"], "units": row["units"][1], "phones": phones})
    samples = [voice[n] for n in range(len(voice))]
    units = np.concatenate([sample["units"] for sample in samples]).astype("<u2")
    faces = np.round(255 * np.concatenate([sample["face"] for sample in samples])).astype(np.uint8)
    steps = np.diff(faces.T, prepend=np.uint8(0))
    content = "".join(json.dumps(line) + "\n" for line in lines).encode() + units.tobytes() + steps.tobytes()
    path = Path(folder) / ANSWERS
    with weights.replacing(path) as temporary:
        temporary.write_bytes(lzma.compress(content))
    return path


def read_answers(folder) -> tuple:
    """What `ship_answers` wrote -> (its first line, text -> {"phones": [[name, start, end], ...] in seconds, "units":
    (U,), "face": (F, 52) float32 within 1/510 of what it was}). Raises FileNotFoundError, or ValueError where the file
    is damaged."""
    path = Path(folder) / ANSWERS
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: --answers is a directory with shipped answers, such as mini/data")
    try:
        first, *rest = lzma.decompress(path.read_bytes()).split(b"\n", 1)
        about = json.loads(first)
        if about["format"] != 1:
            raise ValueError(f"format {about['format']}, expected 1")
        *lines, numbers = rest[0].split(b"\n", about["answers"])
    except (lzma.LZMAError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is truncated, damaged or something else ({error}): fetch it again") from None
    rows = [json.loads(line) for line in lines]
    units = np.cumsum([0, *(row["units"] for row in rows)])
    frames = np.cumsum([0, *(frames_for_units(row["units"]) for row in rows)])
    ids = np.frombuffer(numbers, "<u2", units[-1])
    steps = np.frombuffer(numbers, np.uint8, offset=ids.nbytes).reshape(-1, frames[-1])
    faces = np.cumsum(steps, axis=1, dtype=np.uint8).T
    answers = {}
    for n, row in enumerate(rows):
        ends = np.cumsum([0, *(length for _, length in row["phones"])]).tolist()
        spans = [[name, start / 1000, end / 1000] for (name, _), start, end in zip(row["phones"], ends, ends[1:])]
        answers[row["text"]] = {"phones": spans, "units": ids[units[n]:units[n + 1]],
                                "face": faces[frames[n]:frames[n + 1]] / np.float32(255)}
    return about, answers


# --- the command ------------------------------------------------------------------------------------------------------

def command(args) -> None:
    """`prepare.py demo`. Raises ValueError or OSError; what was made until then is kept, and used by the next run."""
    if args.list:
        for row in domain.phrasings(args.seed):
            print(json.dumps({key: row[key] for key in ("text", "answer", "kind", "split")}))
        return
    answers, record = args.answers, Path(args.out) / "demo.json"
    if answers is None and voices.shutil.which("flite") is None and SHIPPED.exists():
        if not record.exists() or "answers" in weights.read_json(record):       # one made with flite stays as it is
            print("flite is not installed")
            answers = SHIPPED
    if answers is not None:
        print(f"answers from {answers}: natural voices do not ask, test-natural is empty, `voice` has no sound")
    try:
        made = make(args.out, args.seed, args.size, answers=answers)
    except KeyboardInterrupt:
        print(f"interrupted: {args.out} is not complete, run the same again to go on", file=sys.stderr)
        sys.exit(130)
    print(summary(args.out))
    print(f"wrote {args.out}" if made else f"{args.out} is complete already, nothing was done")
