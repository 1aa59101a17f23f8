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
units, their faces have frames_for_units(units) frames. Units come later, with the speech tokenizer that
`python -m toy pretrain` makes: answers.py.

--answers takes what the answer voice says from a file (answers.py): then all splits have units at once, espeak-ng
alone asks, with the same clips as otherwise, test-natural is empty, and rows of `voice` have no audio and no words.
"""
import functools
import json
import os
import signal
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import cli
import disk
from data import Split, Writer, checksum
from face_decoder import UNIT_RATE, frames_for_units
from toy import domain, voices
from toy.answers import ANSWERS, UNITS_OF, read_answers
from toy.teacher import face_track

WINDOW = 5.12                                       # seconds: 512 frames of the mini encoder's log-mel
UNIT_SAMPLES = round(voices.RATE / UNIT_RATE)       # 1280
SHIPPED = Path(__file__).parent.parent / "mini" / "data"   # where `--answers` are when flite is not installed
REPLY = ("units", "face")                           # arrays that all samples of an answer share
SPEAKING = 3        # every third clip of a question has them in training: they cost most, and are always the same
# Clips of each answer's questions by family; clips of random words by family; random strings and plain sentences to
# read aloud, of which `held` each are kept from training; tests ask every n-th answer.
SIZES = {
    "full": {"espeak": 17, "flite": 14, "random_espeak": 2800, "random_flite": 2400, "strings": 1500,
             "sentences": 300, "held": 40, "every": 1},
    "small": {"espeak": 1, "flite": 1, "random_espeak": 100, "random_flite": 60, "strings": 60,
              "sentences": 40, "held": 10, "every": 6},
}
TESTS = ("test-voices", "test-recombined", "test-wording", "test-both", "test-natural")
SPLITS = ("voice", "train", "val", *TESTS)


def rng(seed: int, name: str) -> np.random.Generator:
    """Random numbers of their own for everything that has a name: what is made does not depend on what was made
    before."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# ---- the plan: what is said, by whom, in which split; nothing spoken yet ------------------------------------------

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
    clips["train"] += [random_words(seed, family, n, words)
                       for family in families for n in range(size["random_" + family])]
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
            "how": voices.sample_voice(family, rng(seed, name), held)}


def random_words(seed: int, family: str, n: int, words: list) -> dict:
    """A clip of three to eight random words: an encoder that knows the sentence patterns cannot guess them."""
    name = f"hear-{family}-{n:04d}"
    random = rng(seed, name)
    return {"id": name, "text": domain.random_strings(1, words, random, 3, 8)[0], "kind": "random",
            "how": voices.sample_voice(family, random)}


# ---- sound --------------------------------------------------------------------------------------------------------

def say(job: tuple) -> voices.Clip:
    """(clip of the plan, split, seed) -> its sound, spoken faster until it fits into WINDOW. Runs in worker
    processes."""
    clip, split, seed = job
    how, random = dict(clip["how"]), rng(seed, clip["id"] + " sound")
    said = voices.speak(clip["text"], **how)
    if split == "voice":
        return said._replace(audio=np.pad(said.audio, (0, -len(said.audio) % UNIT_SAMPLES)))
    while len(said.audio) > WINDOW * voices.RATE:
        how |= {"wpm": round(how["wpm"] * 1.15)} if "wpm" in how else {"stretch": how["stretch"] * 0.85}
        said = voices.speak(clip["text"], **how)
    said = said.later(min(random.uniform(0, 0.25), WINDOW - len(said.audio) / voices.RATE))
    return said._replace(audio=voices.augment(said.audio, random)) if split == "train" else said


@contextmanager
def parallel_map(workers: int):
    """Yield a `map` that keeps the order and spreads its work over processes; they end with the block, whatever
    happens. Raises OSError where one of them was ended from outside."""
    if workers == 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)       # is inherited: Ctrl-C is for this process alone
    for _ in range(workers):
        pool.submit(int)                                        # each starts a process
    signal.signal(signal.SIGINT, before)
    try:
        yield functools.partial(pool.map, chunksize=8)
    except BrokenProcessPool:
        raise OSError("a process that made sound was ended (for want of memory?): the same command goes on") from None
    except BaseException:
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def sounds(spread, jobs: list, description: str):
    """Yield (clip of the plan, its `say`) in order. spread: a `map`."""
    with tqdm(total=len(jobs), desc=description, unit="clip", disable=None) as bar:     # none in a log file
        for job, said in zip(jobs, spread(say, jobs)):
            yield job[0], said
            bar.update()


def spans_of(said: voices.Clip) -> dict:
    """The words and phones of a clip as they are written, seconds rounded to milliseconds."""
    return {key: [[name, round(start, 3), round(end, 3)] for name, start, end in spans]
            for key, spans in (("words", said.words), ("phones", said.phones))}


# ---- directories --------------------------------------------------------------------------------------------------

def user_turn(*parts) -> list:
    """A conversation of one user turn: a str is text, None is speech."""
    return [{"role": "user", "content": [{"type": "speech"} if part is None else {"type": "text", "text": part}
                                         for part in parts] if None in parts else "".join(parts)}]


def write_voice(out: Writer, jobs: list, spread, seed: int, answers: dict | None) -> None:
    """Everything that the answer voice says: its audio, words, phones and face; from shipped answers units, phones and
    face."""
    def add(clip, spans, **arrays):
        """Write one sample; spans: its words and phones, as far as they are known."""
        out.add({"id": clip["id"], "task": "tts", "messages": user_turn(domain.READ_ALOUD, clip["text"]),
                 "answer": clip["text"], "kind": clip["kind"], "held": clip["held"], "voice": clip["how"]["voice"],
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
        add(clip, spans_of(said), audio=said.audio, face=face)


def write_split(out: Writer, split: str, jobs: list, voice: Split, spread, seed: int) -> None:
    """Everything else: what is read aloud, what is typed, what is asked aloud. One face, and the units if `voice` has
    them, for all samples of an answer; none for most clips of training."""
    def where(row) -> dict:
        """Where the units and the face of a sample are in the split's files."""
        return {name: row[name] for name in REPLY if name in row}

    index = {row["answer"]: n for n, row in enumerate(voice.rows)}
    replies = {row["answer"]: where(row) for row in out.rows.values() if "face" in row}

    def add(row, speaking=False, **arrays):
        """Write one sample, unless an interrupted `make` did. speaking: with its answer's units and face, which the
        first sample of an answer brings along and all others point to. Returns the row as written."""
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
        add({"id": name, "task": task, "messages": user_turn(text), "answer": row["answer"], "text": text,
             "kind": row["kind"], "phrasing": row["split"] if "split" in row else row["phrasing"]}, task == "qa")
    missing = [job for job in jobs if f"{job[0]['id']}-asr" not in out]
    for clip, said in sounds(spread, missing, split):
        same = {key: clip[key] for key in ("text", "kind", "phrasing") if key in clip}
        same |= {"voice": clip["how"]["voice"], "family": clip["how"]["family"]}
        audio = np.round(said.audio.clip(-1, 1) * 32767).astype(np.int16)
        if "answer" in clip:
            row = {"id": clip["id"], "task": "qa", "messages": user_turn(None), "answer": clip["answer"]}
            speaking = split != "train" or int(clip["id"].rsplit("-", 1)[1]) % SPEAKING == 0
            audio = add(row | same, speaking, audio=audio)["audio"]
        add({"id": f"{clip['id']}-asr", "task": "asr", "messages": user_turn(None, domain.TRANSCRIBE),
             "answer": domain.spoken(clip["text"])} | same | spans_of(said), audio=audio)


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
    """Write the demo set below `out`; what an interrupted one left is used. Returns False where all was there already.

    size: a name in SIZES, or such a dict. answers: a directory with shipped answers, in place of flite. Raises
    ValueError where `out` holds another demo set or the answers are others, OSError without the synthesizers."""
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
    begin(out, about)
    todo = [split for split in SPLITS if not (out / split / "manifest.json").exists()]
    with parallel_map(workers if todo else 1) as spread:
        for split in todo:
            jobs = [(clip, split, seed) for clip in clips[split]]
            with Writer(out / split) as writer:
                if split == "voice":
                    write_voice(writer, jobs, spread, seed, shipped)
                else:
                    write_split(writer, split, jobs, Split(out / "voice"), spread, seed)
                writer.finish(made_by="prepare.py demo", split=split, **about, **units)
    return bool(todo)


def begin(out: Path, about: dict) -> None:
    """Write out/demo.json, which says what demo set this is, or check the one that is there. Raises ValueError where it
    is another set, OSError where a synthesizer that is needed is missing; then nothing is begun."""
    if (out / "demo.json").exists():
        before = disk.read_json(out / "demo.json")
        if before == about:
            return
        ways = ["from --answers" if "answers" in record else "with flite" for record in (before, about)]
        how = f"{ways[0]}, not {ways[1]}" if ways[0] != ways[1] else \
            "with another seed, size or version of the domain or the answers"
        raise ValueError(f"{out} was made {how}: choose another --out, or remove it")
    voices.espeak("hello")
    if "answers" not in about:
        try:
            voices.run_flite("-lv")
        except OSError as error:
            raise OSError(f"{error}; or, without them, --answers DIRECTORY with shipped answers (no {SHIPPED} "
                          "here)") from None
    disk.write_json(out / "demo.json", about)


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


# ---- the command --------------------------------------------------------------------------------------------------

def command(args) -> None:
    """`prepare.py demo`. Raises ValueError or OSError; what was made until then is kept, and used the next time."""
    if args.list:
        for row in domain.phrasings(args.seed):
            print(json.dumps({key: row[key] for key in ("text", "answer", "kind", "split")}))
        return
    cli.check_directory(args.out)
    answers, record = args.answers, Path(args.out) / "demo.json"
    if answers is None and voices.shutil.which("flite") is None and SHIPPED.exists():
        if not record.exists() or "answers" in disk.read_json(record):       # one made with flite stays as it is
            print("flite is not installed")
            answers = SHIPPED
    if answers is not None:
        print(f"answers from {answers}: natural voices do not ask, test-natural is empty, `voice` has no sound")
    made = make(args.out, args.seed, args.size, answers=answers)
    print(summary(args.out))
    print(f"wrote {args.out}" if made else f"{args.out} is complete already, nothing was done")
