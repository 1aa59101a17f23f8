"""`python prepare.py demo`: writes the mini model's world as prepared data (data.py), offline, from a seed.

    data/demo/train             qa (spoken and typed), asr, chat, tts and face: the training voices and phrasings
    data/demo/val               the same voices and phrasings, other clips; tts and face of held-out sentences
    data/demo/test-voices       espeak-ng variants and accents not in training, phrasings of training
    data/demo/test-recombined   training voices, carrier-core pairs held out
    data/demo/test-wording      training voices, wordings held out
    data/demo/test-both         voices of test-voices, phrasings held out
    data/demo/test-natural      four natural voices not in training (voices.HELD_FAMILIES); all phrasings
    data/demo/test-turns        second and third turns, spoken and typed; their forms are held out
    data/demo/test-outside      questions without an answer and noise without a question
    data/demo/test-typed        questions as people type them: case, digits, spaces, one typo
    data/demo/voice             the answer voice's own clips: to train the speech tokenizer and decoder with

    python prepare.py demo --answers mini/data        # without flite, pip packages only: enough for the four stages

plan.py decides who says what. A row has text (the question), kind, phrasing (`domain.phrasings`), voice and family.
A clip of a user lasts at most WINDOW seconds. A question has two rows, `qa` and `asr`, that share its audio; noise has
only `qa`, random words only `asr`. Rows of `asr` and `voice` have words and phones, [name, start, end] in
seconds; held families have none. Training clips go through rooms.degraded, those of slow families in several versions;
all others are clean. Audio of the answers is padded to whole units, their faces have frames_for_units(units) frames.
Units are added later, by the speech tokenizer that `python -m toy pretrain` makes (answers.py).

Clips of voice families that are not installed are left out. --answers reads the answers from a file (answers.py): then
all splits have units at once, and rows of `voice` have neither audio nor words.
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
from toy import domain, facts, rooms, voices
from toy.answers import ANSWERS, UNITS_OF, read_answers
from toy.plan import SIZES, SPLITS, plan, rng, user, written
from toy.teacher import face_track

WINDOW = 5.12                                       # seconds: 512 frames of the mini encoder's log-mel
UNIT_SAMPLES = round(voices.RATE / UNIT_RATE)       # 1280
SHIPPED = Path(__file__).parent.parent / "mini" / "data"   # the default of --answers when flite is not installed
REPLY = ("units", "face")                           # arrays that all samples of an answer share
SPEAKING = 4        # in training every fourth clip of a question has a REPLY: it costs most, and is always the same
# Versions of each training clip of the slow families, of which there are few, each changed differently.
VERSIONS = {"kokoro": 3, "hibari": 3}
CROWD = 16          # clips for babble in the background, per process


# ---- sound --------------------------------------------------------------------------------------------------------

def say(job: tuple) -> list:
    """(clip of the plan, split, seed) -> its voices.Clip in all `versions_of` it, spoken faster until it fits into
    WINDOW. Runs in worker processes."""
    clip, split, seed = job
    how, random = dict(clip["how"]), rng(seed, clip["id"] + " sound")
    if how["family"] == "noise":
        audio = rooms.noise(how["voice"], how["seconds"], random, crowd(seed) if how["voice"] == "babble" else ())
        return [voices.Clip(audio, [], [])]
    said = voices.speak(clip["text"], **how)
    if split == "voice":
        return [said._replace(audio=np.pad(said.audio, (0, -len(said.audio) % UNIT_SAMPLES)))]
    while len(said.audio) > WINDOW * voices.RATE:
        for pace, factor in (("wpm", 1.15), ("speed", 1.15), ("stretch", 0.85)):
            how |= {pace: round(how[pace] * factor, 3 if pace != "wpm" else None)} if pace in how else {}
        said = voices.speak(clip["text"], **how)
    versions = versions_of(clip, split)
    return [recorded(said if len(versions) == 1 else resampled(said, random), split, seed, random) for _ in versions]


def versions_of(clip: dict, split: str) -> list:
    """The ids of a clip's versions."""
    count = VERSIONS.get(clip["how"]["family"], 1) if split == "train" else 1
    return [clip["id"], *(f"{clip['id']}-v{n}" for n in range(1, count))]


def resampled(said: voices.Clip, random) -> voices.Clip:
    """The clip up to 12 % slower and lower, or faster and higher; at most WINDOW seconds."""
    return said.faster(max(random.uniform(0.88, 1.12), len(said.audio) / (WINDOW * voices.RATE - 1)))


def recorded(said: voices.Clip, split: str, seed: int, random) -> voices.Clip:
    """The clip with up to 0.25 s of silence in front; in training also degraded by rooms.py."""
    said = said.later(min(random.uniform(0, 0.25), WINDOW - len(said.audio) / voices.RATE))
    if split != "train":
        return said
    return said._replace(audio=rooms.degraded(said.audio, random, crowd(seed)))


@functools.cache
def crowd(seed: int) -> list:
    """Background speech: waveforms of plain sentences by the fast families. Made once per process."""
    families = [family for family in voices.FAMILIES if family != "kokoro" and voices.available(family)]
    random = rng(seed, "crowd")
    return [voices.speak(text, **voices.sample_voice(families[n % len(families)], random)).audio
            for n, text in enumerate(facts.plain_sentences(CROWD, random))]


@contextmanager
def parallel_map(workers: int):
    """Yield a `map` over worker processes that keeps the order. The processes end with the block in any case. Raises
    OSError if one of them was killed."""
    if workers == 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)       # inherited: only this process handles Ctrl-C
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
    """Yield (clip of the plan, result of `say`) in order. spread: a `map`."""
    with tqdm(total=len(jobs), desc=description, unit="clip", disable=None) as bar:     # none in a log file
        for job, said in zip(jobs, spread(say, jobs)):
            yield job[0], said
            bar.update()


def spans_of(said: voices.Clip) -> dict:
    """The words and phones of a clip for its row, seconds rounded to milliseconds."""
    return {key: [[name, round(start, 3), round(end, 3)] for name, start, end in spans]
            for key, spans in (("words", said.words), ("phones", said.phones))}


# ---- directories --------------------------------------------------------------------------------------------------

def write_voice(out: Writer, jobs: list, spread, seed: int, answers: dict | None) -> None:
    """Write the split `voice`: audio, words, phones and face of all answers; with shipped `answers` their units, phones
    and face."""
    def add(clip, spans, **arrays):
        """Write one sample; spans: its words and phones, if known."""
        out.add({"id": clip["id"], "task": "tts", "messages": [user(domain.READ_ALOUD, clip["text"])],
                 "answer": clip["text"], "kind": clip["kind"], "held": clip["held"], "voice": clip["how"]["voice"],
                 "family": clip["how"]["family"]} | spans, **arrays)

    missing = [job for job in jobs if job[0]["id"] not in out]
    if answers is not None:
        for clip, _, _ in missing:
            reply = answers[clip["text"]]
            add(clip, {"phones": reply["phones"]}, units=reply["units"], face=reply["face"])
        return
    for clip, (said,) in sounds(spread, missing, "voice"):
        face = face_track(said.phones, frames_for_units(len(said.audio) // UNIT_SAMPLES), said.audio, voices.RATE,
                          seed=zlib.crc32(f"{seed} {clip['text']}".encode()))
        add(clip, spans_of(said), audio=said.audio, face=face)


def write_split(out: Writer, split: str, jobs: list, voice: Split, more, spread, seed: int) -> None:
    """Write another split: sentences to read aloud, spoken questions, and `more`, the samples of `plan.written`. All
    samples of an answer share one face, and units if `voice` has them; most training clips have none. Samples whose
    answer is not in `voice` are left out."""
    def where(row) -> dict:
        """The positions of a sample's units and face in the split's files."""
        return {name: row[name] for name in REPLY if name in row}

    index = {row["answer"]: n for n, row in enumerate(voice.rows)}
    replies = {row["answer"]: where(row) for row in out.rows.values() if "face" in row}

    def add(row, speaking=False, **arrays):
        """Write one sample, unless an interrupted `make` did already. speaking: with its answer's units and face, which
        are stored with the first sample of an answer; later ones point to them. Returns the row as written."""
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

    def last(clip) -> str:
        """The id of the last sample of a clip."""
        return versions_of(clip, split)[-1] + "-asr" * bool(clip["text"])

    for clip, versions in sounds(spread, [job for job in jobs if last(job[0]) not in out], split):
        same = {key: clip[key] for key in ("text", "kind", "phrasing") if key in clip}
        same |= {"voice": clip["how"]["voice"], "family": clip["how"]["family"]}
        for name, said in zip(versions_of(clip, split), versions):
            audio = np.round(said.audio.clip(-1, 1) * 32767).astype(np.int16)
            if "answer" in clip:
                row = {"id": name, "task": "qa", "messages": [*clip.get("before", ()), user(None)],
                       "answer": clip["answer"]}
                speaking = split != "train" or name == clip["id"] and int(name.rsplit("-", 1)[1]) % SPEAKING == 0
                heard = {} if clip["text"] else spans_of(said)              # noise is not transcribed
                audio = add(row | same | heard, speaking, audio=audio)["audio"]
            if clip["text"]:
                add({"id": f"{name}-asr", "task": "asr", "messages": [user(None, domain.TRANSCRIBE)],
                     "answer": domain.spoken(clip["text"])} | same | spans_of(said), audio=audio)
    for row, speaking, heard in more:
        if row["answer"] in index and (heard is None or heard in out):
            add(row, speaking, **({} if heard is None else {"audio": out.rows[heard]["audio"]}))


def make(out, seed: int = 0, size="full", workers: int | None = None, answers=None) -> bool:
    """Write the demo set to `out`, or complete an interrupted one. Returns False if it was complete. Prints what is
    left out: clips of families that are not installed, and texts that shipped answers lack.

    size: a name in SIZES, or a dict like theirs. answers: a directory with shipped answers, used instead of flite.
    Raises ValueError if `out` holds another demo set or no answer is shipped, OSError without the synthesizers."""
    out, workers, name = Path(out), workers or os.cpu_count() or 1, size
    size, shipped, units = SIZES[size] if isinstance(size, str) else size, None, {}
    clips, families = plan(seed, size), [*filter(voices.available, (*voices.FAMILIES, *voices.HELD_FAMILIES))]
    about = {"seed": seed, "size": name, "plan": zlib.crc32(json.dumps(clips).encode()), "families": families}
    if answers is not None:
        units, shipped = read_answers(answers)
        about["answers"] = f"{checksum(Path(answers) / ANSWERS):08x}"
        units = {name: units[name] for name in UNITS_OF}
    clips, left_out = possible(clips, families, shipped)
    begin(out, about)
    todo = [split for split in SPLITS if not (out / split / "manifest.json").exists()]
    for line in left_out if todo else ():
        print(f"left out: {line}")
    with parallel_map(workers if todo else 1) as spread:
        for split in todo:
            jobs = [(clip, split, seed) for clip in clips[split]]
            with Writer(out / split) as writer:
                if split == "voice":
                    write_voice(writer, jobs, spread, seed, shipped)
                else:
                    more = written(split, clips[split], seed, size)
                    write_split(writer, split, jobs, Split(out / "voice"), more, spread, seed)
                writer.finish(made_by="prepare.py demo", split=split, **about, **units)
    return bool(todo)


def possible(clips: dict, families: list, shipped: dict | None) -> tuple:
    """(the clips whose family is installed and, with `shipped`, whose answer is shipped; a line for each reason why
    clips are left out). Raises ValueError if no answer is shipped."""
    voice, left_out = clips["voice"], []
    if shipped is not None:
        voice = [clip for clip in voice if clip["text"] in shipped]
        if len(voice) < len(clips["voice"]):
            left_out = [f"{len(clips['voice']) - len(voice)} of {len(clips['voice'])} texts of the answer voice that "
                        "the shipped answers lack, and questions for them"]
    known = {None, *(clip["text"] for clip in voice if clip["kind"] == "answer")}
    if known == {None}:
        raise ValueError("the shipped answers have none of this world's: they were made by another version, or with "
                         "another --seed or --size")
    kept, missing, families = {"voice": voice}, Counter(), {*families, "noise"}
    for split in clips.keys() - {"voice"}:
        missing.update(clip["how"]["family"] for clip in clips[split] if clip["how"]["family"] not in families)
        kept[split] = [clip for clip in clips[split] if clip["how"]["family"] in families
                       and clip.get("answer") in known]
    return kept, left_out + [f"{missing[family]} clips by {family}, which is not installed: see toy/voices.py"
                             for family in sorted(missing)]


def begin(out: Path, about: dict) -> None:
    """Write out/demo.json, which identifies the demo set, or compare it with the existing one. Raises ValueError if
    they differ, OSError if a synthesizer is missing; then nothing is written."""
    if (out / "demo.json").exists():
        before = disk.read_json(out / "demo.json")
        if before == about:
            return
        ways = ["from --answers" if "answers" in record else "with flite" for record in (before, about)]
        how = f"{ways[0]}, not {ways[1]}" if ways[0] != ways[1] else \
            "with another seed, size, choice of installed voices or version of the domain or the answers"
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
    """`prepare.py demo`. Raises ValueError or OSError; the next call continues from what was made until then."""
    if args.list:
        for row in domain.phrasings(args.seed):
            print(json.dumps({key: row[key] for key in ("text", "answer", "kind", "split")}))
        return
    cli.check_directory(args.out)
    answers, record = args.answers, Path(args.out) / "demo.json"
    if answers is None and not voices.available("flite") and SHIPPED.exists():
        if not record.exists() or "answers" in disk.read_json(record):       # a set made with flite stays as it is
            print("flite is not installed")
            answers = SHIPPED
    if answers is not None:
        print(f"answers from {answers}: `voice` has no sound")
    made = make(args.out, args.seed, args.size, answers=answers)
    print(summary(args.out))
    print(f"wrote {args.out}" if made else f"{args.out} is complete already, nothing was done")
