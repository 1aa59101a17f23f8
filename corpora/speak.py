"""`prepare.py speak`: any text-to-speech program with a command line speaks the answers, as in v2 with one voice.

    python prepare.py speak data/mine --tts "espeak-ng -v en-us -w {out} {text}"
    python prepare.py speak data/mine --tts "piper --model en_US-lessac-medium.onnx --output_file {out}"

{out} is the sound file to write, {text} the answer; without {text} the program gets it on standard input. No shell is
involved. A text is spoken once, however many rows have it as their answer.
"""
import re
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cli

import numpy as np
from tqdm import tqdm

from audio import SAMPLE_RATE, load_audio
from corpora import adding
from corpora.corpus import in_order
from corpora.sound import Skip
from data import Split

QUIET = 10 ** (-50 / 20)        # a peak below -50 dB is silence
TRIED = 8                       # if the first 8 texts all fail, the command is wrong
AHEAD = 2                       # answers in memory per worker


def add_speak(commands) -> None:
    """The arguments of `prepare.py speak`."""
    about = ("Adds the sound of answers to prepared data: of all tts, face and qa rows that have neither sound nor "
             "units; `prepare.py units` comes next. An interrupted one goes on, texts that failed are tried again.")
    command = commands.add_parser("speak", help="answers of prepared data spoken by a program", description=about)
    command.set_defaults(command=make_speech, interrupted=adding.KEPT)
    add = command.add_argument
    add("data", metavar="DATA", help="prepared data: a split, or a directory with train/ and val/")
    add("--tts", required=True, metavar="COMMAND", help="what speaks, in quotes, with {out} and {text}; without {text} "
        "it reads its standard input")
    add("--workers", type=cli.whole(1, 256), default=4, help="programs at a time")
    add("--timeout", type=cli.number(0.1, 3600), default=120.0, metavar="SECONDS", help="for one answer")
    add("--longest", type=cli.number(0.1, 4096), default=300.0, metavar="SECONDS", help="sound of an answer at most")


def make_speech(args) -> None:
    """`prepare.py speak`. Raises ValueError or OSError; what was made until then is kept."""
    try:
        command = shlex.split(args.tts)
    except ValueError as error:
        raise ValueError(f"--tts {args.tts}: {error}") from None
    if not any("{out}" in word for word in command[1:]):
        raise ValueError(f"--tts {args.tts}: expected a program and {{out}}, the file that it writes")
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"--tts: there is no program {command[0]}: install it, or give its path")
    for directory in adding.splits(args.data):
        with adding.claimed(directory, "audio") as split:
            speak(split, command, args.workers, args.timeout, args.longest)


def speak(split: Split, command: list, workers: int, timeout: float, longest: float) -> None:
    """Add the sounds to a split and print a summary. Raises ValueError if the command speaks nothing."""
    texts = {n: text for n, row in enumerate(split.rows) if row["task"] in ("tts", "face", "qa")
             and (text := row.get("answer", "").strip()) and "units" not in row and adding.sound_of(row) is None}
    if not texts:
        print(f"{split.directory}: no answer is without sound")
        return
    failures, first, made, samples = Counter(), {}, 0, 0            # first: reason -> the first that failed for it
    with adding.Adding(split, "audio", texts, command, adding.one_by_one(lambda number: len(texts[number]))) as work:
        bar = tqdm(total=work.left, desc=f"speech of {split.directory}", unit="answer", disable=None)
        say = lambda number: spoken(texts[number], command, timeout, longest)
        with bar, ThreadPoolExecutor(workers) as pool:
            for number, sound in in_order((number for number, in work.jobs), say, pool, workers * AHEAD):
                bar.update()
                if isinstance(sound, Skip):
                    failures[sound.reason] += 1
                    first.setdefault(sound.reason, f"{split.rows[number]['id']} {sound.detail}".strip())
                else:
                    work.add(number, sound)
                    made, samples = made + 1, samples + len(sound)
                tried = not work.before and not made and failures.total() == min(TRIED, work.left)
                if tried and split.manifest.get("tts") != command:
                    raise ValueError(f"{' '.join(command)[:200]} spoke none of {failures.total()} answers: "
                                     + "; ".join(f"{reason}, {what}" for reason, what in first.items()))
        work.finish(lambda row, where: [row | {"answer_audio": where}], tts=command)
    print(f"{split.directory}: spoke {made} answers, {samples / SAMPLE_RATE / 3600:.2f} h"
          + f" ({len(work.before)} were spoken before)" * bool(work.before)
          + "".join(f"; failed {count}: {reason}, first {first[reason]}" for reason, count in failures.most_common()))


def spoken(text: str, command: list, timeout: float, longest: float):
    """A text -> its sound (samples,) float32 at 16 kHz, or a Skip, which says why it has none."""
    try:
        with tempfile.TemporaryDirectory(prefix="speak.") as folder:
            out = Path(folder) / "answer.wav"
            run(text, command, out, timeout)
            return checked(out, longest)
    except Skip as failure:
        return failure


def run(text: str, command: list, out: Path, timeout: float) -> None:
    """Run the program: it speaks the text into the file `out`. Raises Skip."""
    argument = f" {text}" if text.startswith("-") else text             # it must not be taken for an option
    fill = {"{text}": argument, "{out}": str(out)}
    words = [re.sub(r"\{text\}|\{out\}", lambda found: fill[found[0]], word) for word in command]
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(words, input=b"" if any("{text}" in word for word in command) else text.encode(),
                                  stdout=subprocess.DEVNULL, stderr=errors, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Skip(f"not done in {timeout:g} s") from None
        except (OSError, ValueError) as error:                          # the argument is too long, or has a zero byte
            raise Skip("not a text for a command line", error) from None
        if done.returncode:
            errors.seek(max(0, errors.seek(0, 2) - 300))
            raise Skip(f"ended with code {done.returncode}", errors.read().decode(errors="replace"))


def checked(out: Path, longest: float) -> np.ndarray:
    """The sound that the program wrote. Raises Skip."""
    if not out.exists() or not out.stat().st_size:
        raise Skip("wrote no sound")
    try:
        sound = load_audio(out).numpy()
    except (ValueError, OSError) as error:
        raise Skip("no sound that can be read", str(error).replace(str(out), "its file")) from None
    if len(sound) > longest * SAMPLE_RATE:
        raise Skip(f"longer than {longest:g} s", f"{len(sound) / SAMPLE_RATE:.1f} s")
    if np.abs(sound).max() < QUIET:
        raise Skip("silence")
    return sound
