"""A public corpus -> prepared data (data.py): what all readers share. `python prepare.py corpus NAME SOURCE`.

A reader (asr.py, dialogues.py, faces.py, table.py; readers.py lists them) is a generator function for one layout. It
yields rows (where, make): where the row is, for messages, and a function that returns its Clip (sound.py) or a list of
rows, such as the segments of a recording. It loads no sound. Here worker processes decode the clips; they are written
in the reader's order, and those left out are counted.

    OUT/train, OUT/val    prepared data
    OUT/corpus.json       the command that made it; any other one is refused
    OUT/skipped.jsonl     clips whose sound or face was unusable. Remove the file to try them again

It may be killed at any time: the same command resumes after the last complete sample and ends with the same files.
"""
import json
import os
import shutil
import signal
import threading
import zlib
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain
from multiprocessing import get_all_start_methods, get_context, parent_process
from pathlib import Path

from tqdm import tqdm

import disk
from audio import SAMPLE_RATE
from corpora.sound import Clip, Skip, Sound, decode
from data import Writer
from prepared import ENTRIES, ROW

# What the user says beside the sound or before the text; `chosen` by the id of the sample.
TRANSCRIBE = ("Write down what you hear.", "Transcribe the speech.", "What is being said?",
              "Convert the audio to text.", "Please turn this speech into text.",
              "Repeat in writing what the speaker says.")
READ_ALOUD = ("Read aloud: ", "Read this text aloud: ", "Say the following: ", "Speak this sentence: ",
              "Please read out: ", "Turn this text into speech: ")
# Task -> arrays of the clip that its sample has.
PARTS = {"asr": ("audio",), "tts": ("answer_audio", "units"), "face": ("answer_audio", "units", "face"),
         "qa": ("audio", "answer_audio", "units", "face"), "chat": ()}
VAL = 0.01                  # share of val if the corpus has none of its own
AHEAD = 4                   # clips in memory per worker
SPLITS = ("train", "val")


# ---- samples ------------------------------------------------------------------------------------------------------

def chosen(texts: tuple, name: str) -> str:
    """One of the texts, always the same one for a name."""
    return texts[zlib.crc32(name.encode(errors="replace")) % len(texts)]


def user(*parts) -> dict:
    """A user's turn. parts: a str is text, None is the speech."""
    content = [{"type": "speech"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content if None in parts else "".join(parts)}


def asr(name: str, text: str) -> dict:
    """A sample that asks to transcribe the speech."""
    return {"task": "asr", "messages": [user(None, chosen(TRANSCRIBE, name))], "answer": text}


def spoken(name: str, text: str, task="tts") -> dict:
    """A sample that asks to read a text aloud. task: tts, or face if it has a face track."""
    return {"task": task, "messages": [user(chosen(READ_ALOUD, name) + text)], "answer": text}


def utterance(name: str, text: str, sound: Sound, tasks=("asr",), **options) -> Clip:
    """The clip of an utterance of some speaker. Its asr sample has sound and text; its tts sample only the text, which
    the model's own voice will speak."""
    make = {"asr": asr, "tts": spoken}
    return Clip(name, [make[task](name, text.strip()) for task in tasks], audio=sound if "asr" in tasks else None,
                **options)


# ---- what is left out ---------------------------------------------------------------------------------------------

class Skipped:
    """Counts rows that are left out by reason, with the first of each. A file lists clips that were left out after
    decoding, so that a resumed command does not decode them again."""

    def __init__(self, path: Path):
        self.path, self.counts, self.first, self.known = path, Counter(), {}, {}
        with open(path, "a+b") as file:                     # drops a last line that an interrupt left incomplete
            file.seek(0)
            end = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    self.known[row["id"]] = Skip(row["reason"], row["detail"])
                except (ValueError, LookupError, TypeError) as error:
                    raise ValueError(f"{path} is damaged ({error}): remove it, and its clips are tried again") from None
                end += len(line)
            file.truncate(end)
        self.file = open(path, "ab")

    def count(self, where: str, skip: Skip) -> None:
        self.counts[skip.reason] += 1
        self.first.setdefault(skip.reason, f"{where}: {skip.detail}".removesuffix(": "))

    def keep(self, name: str, skip: Skip) -> None:
        """Count a clip that was left out after decoding, and write it to the file."""
        self.count(name, skip)
        row = {"id": name, "reason": skip.reason, "detail": skip.detail}
        self.file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


# ---- import -------------------------------------------------------------------------------------------------------

def import_corpus(rows, out: Path, about: dict, longest: dict, share=None, workers=1, manifest=None) -> str:
    """Write the rows of a reader to out/train and out/val. Returns a summary to print.

    about: the command, for corpus.json. longest: most seconds of audio and of answer_audio. share: of val, chosen by a
    hash of the group; None: the corpus's own split, else VAL. manifest: more entries for the manifests. Raises
    ValueError if `out` is of another command, or if no row is usable, which leaves no files; OSError if it cannot
    write."""
    made = not out.exists()
    begin(out, about)
    with ExitStack() as stack:
        outs = {split: stack.enter_context(Writer(out / split)) for split in SPLITS}
        stack.enter_context(nothing_left(out, outs, made))
        skipped = stack.enter_context(closing(Skipped(out / "skipped.jsonl")))
        bar = stack.enter_context(tqdm(desc=about["corpus"], unit="clip", disable=None))
        clips, odd = new_clips(rows, outs, skipped, share, bar), {}         # odd: kind -> [how many, the first of them]
        for clip, arrays in stack.enter_context(closing(decoded(clips, longest, workers))):
            if isinstance(arrays, Skip):
                skipped.keep(clip.id, arrays)
            else:
                write(outs[clip.split], clip, arrays)
                for kind, note in arrays["notes"].items():
                    odd.setdefault(kind, [0, f"{clip.id}: {note}"])[0] += 1
            bar.update()
        lines = [summary(split, outs[split].rows.values()) for split in SPLITS]
        lines += [f"skipped {count:,}: {reason}, first {skipped.first[reason]}"
                  for reason, count in skipped.counts.most_common()]
        lines += [f"odd {count:,}: {kind}, first {first}" for kind, (count, first) in odd.items()]
        if not any(outs[split].rows for split in SPLITS):
            raise ValueError(f"{about['source']} has no sample of use: {'; '.join(lines[len(SPLITS):])}")
        for split in SPLITS:
            if not outs[split].finished:
                outs[split].finish(made_by="prepare.py corpus", split=split, **about, **(manifest or {}))
    return "\n".join(lines)


@contextmanager
def nothing_left(out: Path, outs: dict, made: bool):
    """If a ValueError ends the command before it wrote a sample, removes its files from `out`, or `out` itself if the
    command made it, so that another command can use the directory."""
    try:
        yield
    except ValueError:
        if not any(one.rows for one in outs.values()):
            for path in [out] if made else [out / name for name in (*SPLITS, "corpus.json", "skipped.jsonl")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def begin(out: Path, about: dict) -> None:
    """Write out/corpus.json, or check the existing one. Raises ValueError if `out` is of another command, or holds
    other data."""
    path = out / "corpus.json"
    if path.exists():
        before = disk.read_json(path)
        changed = [f"{key} {before.get(key)!r}, not {about.get(key)!r}" for key in about | before
                   if before.get(key) != about.get(key)]
        if changed:
            raise ValueError(f"{out} was made with {'; '.join(changed)}: give the same command, or another --out")
        return
    if any((out / split).exists() for split in SPLITS):
        raise ValueError(f"{out} holds other prepared data: choose another --out")
    disk.write_json(path, about)


def new_clips(rows, outs: dict, skipped: Skipped, share, bar):
    """Yield the clips that are neither written nor known to be unusable, with their split; count all others."""
    seen = set()
    for where, made in flattened(rows):
        try:
            if isinstance(made, Skip):
                raise made
            clip = checked(made, share)
            names = {row["id"] for row in clip.rows}
            if names & seen:
                raise Skip("duplicate id", clip.id)
            seen |= names
        except Skip as skip:
            skipped.count(where, skip)
            continue
        known = skipped.known.get(clip.id)
        if known is not None:
            skipped.count(clip.id, known)
        if known is not None or names <= outs[clip.split].rows.keys():
            bar.update()
        else:
            yield clip


def flattened(rows):
    """Yield (where, Clip or Skip) for rows and the rows inside them."""
    for where, make in rows:
        try:
            made = make()
        except Skip as skip:
            made = skip
        except MemoryError:
            raise
        except Exception as error:          # one bad row must not end the import
            made = Skip("bad row", f"{type(error).__name__}: {error}")
        if isinstance(made, list):
            yield from flattened(made)
        else:
            yield where, made


def checked(clip: Clip, share) -> Clip:
    """The clip with its split and complete rows. Raises Skip for a clip that cannot become a sample."""
    if clip.split == "test":
        raise Skip("test split", clip.id)
    if share is not None or clip.split is None:
        part = zlib.crc32((clip.group or clip.id).encode(errors="replace")) / 2 ** 32
        clip.split = "val" if part < (VAL if share is None else share) else "train"
    about = {key: value for key, value in clip.about.items() if key not in ROW}         # ROW: names of the format
    clip.rows = [{"id": f"{clip.id}-{row['task']}" if number else clip.id} | row | about
                 for number, row in enumerate(clip.rows)]
    for row in clip.rows:
        if not row["answer"].strip() and row["task"] != "face":
            raise Skip("empty text", clip.id)
        try:
            json.dumps(row, allow_nan=False, ensure_ascii=False).encode()       # refuses NaN and lone surrogates
        except (ValueError, TypeError) as error:
            raise Skip("bad row", f"{clip.id}: {error}") from None
    return clip


def write(out: Writer, clip: Clip, arrays: dict) -> None:
    """Write the missing samples of a clip. They share its arrays."""
    stored = {}                             # array -> [start, length], once it is written
    for row in clip.rows:
        parts = {name: stored.get(name, arrays[name]) for name in PARTS[row["task"]] if name in arrays}
        written = out.rows[row["id"]] if row["id"] in out else out.add(row, **parts)
        stored |= {name: written[name] for name in parts}


def summary(split: str, rows) -> str:
    """A split in one line: samples by task, hours of sound."""
    tasks, end = Counter(), 0               # end: of the last sound in audio.i16
    for row in rows:
        tasks[row["task"]] += 1
        end = max([end, *(sum(row[name]) for name, array in ENTRIES.items() if array == "audio" and name in row)])
    counts = ", ".join(f"{task} {count:,}" for task, count in sorted(tasks.items()))
    return f"{split:<6}{sum(tasks.values()):>10,} samples {end / SAMPLE_RATE / 3600:>10,.3f} h   {counts}".rstrip()


# ---- workers ------------------------------------------------------------------------------------------------------

def decoded(clips, longest: dict, workers: int):
    """Yield (clip, its arrays or a Skip), in order, from worker processes. Raises OSError if one was killed."""
    if workers == 1:
        yield from ((clip, decode(clip, longest)) for clip in clips)
        return
    kind = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(["__main__", "corpora.sound"])               # imported once, not per worker
    pool = ProcessPoolExecutor(workers, context, follow_parent)
    try:
        yield from in_order(clips, partial(decode, longest=longest), pool, workers * AHEAD)
    except BrokenProcessPool:
        raise OSError("a worker process was ended (for want of memory?): the same command goes on, --workers takes "
                      "fewer") from None
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(items, function, pool, ahead: int):
    """Yield (item, function(item)) in order, computed by a pool with at most `ahead` items in work. No item is None."""
    waiting = deque()
    try:
        for item in chain(items, [None] * ahead):                                   # None: empty the queue
            if item is not None:
                waiting.append((item, pool.submit(function, item)))
            if waiting and (item is None or len(waiting) == ahead):
                first, future = waiting.popleft()
                yield first, future.result()
    finally:
        for _, future in waiting:                           # after an interrupt or an error: start nothing new
            future.cancel()


def follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
