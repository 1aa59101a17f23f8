"""Measures a checkpoint on what it never trained on: its answers, its voice, its face, its speed.

    python evaluate.py --checkpoint mini --data data/demo                    # all four parts
    python evaluate.py answers --checkpoint mini --data data/demo            # or some: answers speech face latency
    python evaluate.py speech --asr base --checkpoint mini --data data/demo  # with word error rates
    python evaluate.py --ablations --init-from out/stage2 --data data/demo   # Table 6: trains stage 3 three times

Prints tables; everything, with each wrong answer, goes into evaluation.json in --out (parts measured earlier stay).

answers     Greedy text, right if every letter is: on val and each test split, by family of voices and kind of phrasing.
            "typed": the same questions as text; what is right there only was misheard. Then one split again at half
            and double gain (cut off at full scale) and with white noise 30 dB below each clip. --transcripts: asr rows.
speech      Questions are answered aloud; those with the right text are compared with the answer voice's own recording
            of the same words (split `voice`): length (below 0.9 of the voice's: truncated), units, and with --asr
            NAME (a model or directory faster-whisper opens) the word error rate of both, heard with the same settings.
face        Teacher-forced on the face rows of val, strings and sentences training never saw: reference units and the
            generator's states -> face, against the teacher's. "teacher": its own figures. "mean": the mean of all its
            frames held still, a floor. LVE in % of the interocular distance, over all frames (spec face 1). jawOpen's
            correlation and lag (later is positive, at most 5 frames): mean over clips. Closed in silence: share of
            frames in pauses, 0.1 s away from sounds, with the lips as near as closure asks. Jitter: mean |second
            difference| of jaw and mouth over the teacher's. Read closures beside the opening: lips that hardly part
            are closed too. Then the generated answers: lips against their own sound.
latency     One question. Cold start: `python sample.py` as a process, until answer.html is there. Then warm, in this
            process: `generate` finishes everything before anything is played; RTF is its time over the speech's
            length. First sound: when streaming could begin, which is the end of the text, then as many units as
            `SpeechDecoder.stream` wants for its first block, then that block; each measured, nothing overlaps.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

import sample
import weights
from batches import rows_of
from cli import one_line_errors
from data import Split
from decode import GREEDY, RepetitionAware, TextSampler
from toy.domain import spoken
from face.measure import average, held_out_faces, own_voice, sound_lag
from face_decoder import FPS, UNIT_RATE
from flow import SAMPLE_RATE
from face.head import make_head
from speech_generator import IGNORE
from tokenizer import with_system
from train import positive
from whisper import SAMPLE_RATE as HEARING_RATE, load_audio

PARTS = ("answers", "speech", "face", "latency")
BATCH, SPEAKING_BATCH = 32, 8                                   # questions at once: text only, with speech
# (a clip, random numbers) -> what it becomes
CHANGES = {"half gain": lambda clip, _: clip / 2, "double gain": lambda clip, _: (2 * clip).clip(-1, 1),
           "white noise at -30 dB": lambda clip, random: clip + 10 ** (-30 / 20) * np.sqrt(np.mean(clip ** 2))
           * random.standard_normal(len(clip), np.float32)}
# Ablation -> the paper's LVE on A2F-Bench (spec ex_omni 8.1): another mesh and unit, so only the order compares. What
# Table 6 has for the other one is not in our specification.
TABLE_6 = {"": 3.667, "velocity": 3.751, "speech-context": None}


# --- figures ----------------------------------------------------------------------------------------------------------

def share(flags) -> dict:
    """Right answers among those asked."""
    flags = list(flags)
    return {"right": sum(flags), "asked": len(flags), "share": sum(flags) / len(flags) if flags else None}


def by(rows: list, key: str) -> dict:
    """share of the rows with each value of `key`."""
    return {value: share(row["right"] for row in rows if row[key] == value)
            for value in sorted({row[key] for row in rows if row.get(key) is not None})}


def edits(a, b) -> int:
    """Insertions, deletions and replacements that make b of a."""
    costs = list(range(len(b) + 1))
    for i, x in enumerate(a):
        before, costs[0] = costs[0], i + 1
        for j, y in enumerate(b):
            before, costs[j + 1] = costs[j + 1], min(before + (x != y), costs[j] + 1, costs[j + 1] + 1)
    return costs[-1]


ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell(n: int) -> str:
    """A number below 1000 in words, digit by digit from there on."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{ONES[n // 100]} hundred" + (f" and {spell(n % 100)}" if n % 100 else "")
    return " ".join(ONES[int(digit)] for digit in str(n))


def words(text: str) -> list:
    """What can be heard of a text: lower-case words, numbers spelled, no punctuation."""
    return spoken(re.sub(r"\d+", lambda number: f" {spell(int(number[0]))} ", text)).split()


def word_error_rate(pairs: list) -> float:
    """[(said, heard), ...] -> edits of all over words of all."""
    pairs = [(words(said), words(heard)) for said, heard in pairs]
    return sum(edits(*pair) for pair in pairs) / sum(len(said) for said, _ in pairs)


# --- tables -----------------------------------------------------------------------------------------------------------

def cell(value) -> str:
    if isinstance(value, dict):
        return f"{value['right']}/{value['asked']} {cell(value['share'])}"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def show(title: str, header: list, rows) -> None:
    table = [[cell(value) for value in row] for row in (["", *header], *rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    print(f"\n{title}")
    for row in table:
        print("  " + "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:]))]))


# --- answers ----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def write_texts(model, samples: list, most: int) -> list:
    """Samples of a Split -> the model's replies, the likeliest text, without speech."""
    texts = []
    for n in range(0, len(samples), BATCH):
        ids, clips = model.prompts(*chats(samples[n:n + BATCH]))
        embeds, mask, _ = model.splice(*ids, None, model.hear_clips(clips))
        text = model.write_text(embeds, mask, most, TextSampler(), None, None)
        texts += [model.read(row) for row in model.rows(text.ids, text.count)]
    return texts


def chats(samples: list) -> tuple:
    """(conversations, clips) as `ExOmni.generate` takes them, with the prompt of training and sample.py."""
    return ([with_system(sample["messages"]) for sample in samples],
            [None if sample["audio"] is None else torch.from_numpy(sample["audio"]) for sample in samples])


def marked(write, samples: list) -> list:
    """Each sample's question, what was expected, what came, and whether it is right. write(samples) -> texts."""
    return [{"id": s["id"], "kind": s.get("kind"), "family": s.get("family"), "phrasing": s.get("phrasing"),
             "question": s.get("text"), "expected": s["answer"], "got": text, "right": text == s["answer"]}
            for s, text in zip(samples, write(samples))]


def questions(split: Split, task: str) -> list:
    """Its samples of a task; of `qa` those asked aloud."""
    return [split[i] for i in rows_of(split, (task,)) if task != "qa" or "audio" in split.rows[i]]


def answers(model, args) -> dict:
    """Exact answers on val and the test splits, heard and typed, and of changed clips."""
    write = lambda samples: write_texts(model, samples, args.max_new_tokens)
    names = ["val", *sorted(path.name for path in Path(args.data).glob("test-*"))]
    splits, heard = {name: Split(Path(args.data) / name) for name in names}, {}
    found = {"splits": {}, "wrong": {}}
    for name in tqdm(names, desc="answers", unit="split", disable=None):
        heard[name], typed = (marked(write, questions(splits[name], task)) for task in ("qa", "chat"))
        found["splits"][name] = {"spoken": share(row["right"] for row in heard[name])} | {
            key: by(heard[name], key) for key in ("family", "phrasing", "kind")} | {
            "typed": share(row["right"] for row in typed)}
        for where, rows in ((name, heard[name]), (f"{name}, typed", typed)):
            found["wrong"][where] = [row for row in rows if not row["right"]]
        if args.transcripts:
            rows = marked(write, questions(splits[name], "asr"))
            pairs = [(row["expected"], row["got"]) for row in rows]
            found["splits"][name] |= {"transcribed": share(row["right"] for row in rows),
                                      "transcribed_wer": word_error_rate(pairs) if pairs else None}
    name = "test-voices" if "test-voices" in names else "val"
    found["changed"] = {"split": name, "clean": found["splits"][name]["spoken"]}
    for change, make in CHANGES.items():
        clips = [s | {"audio": make(s["audio"], np.random.default_rng([args.seed, n])).astype(np.float32)}
                 for n, s in enumerate(questions(splits[name], "qa"))]
        found["changed"][change] = share(row["right"] for row in marked(write, clips))
    columns = [(key, value) for key in ("family", "phrasing")
               for value in sorted({v for split in found["splits"].values() for v in split[key]})]
    show("answers right, asked aloud: all, by family of voices, by phrasing; and typed",
         ["all", *(value for _, value in columns), "typed", *["transcribed", "its WER"] * args.transcripts],
         [[name, split["spoken"], *(split[key].get(value) for key, value in columns), split["typed"],
           *[split.get("transcribed"), split.get("transcribed_wer")] * args.transcripts]
          for name, split in found["splits"].items()])
    show(f"the same clips of {name}, changed", ["right"],
         [[key, value] for key, value in found["changed"].items() if key != "split"])
    found["kinds"] = by([row for name in names[1:] or names for row in heard[name]], "kind")
    show("by kind, test splits together", ["right"], found["kinds"].items())
    return found


# --- speech -----------------------------------------------------------------------------------------------------------

def choose(samples: list, count: int) -> list:
    """`count` samples of different answers, evenly over the list, among them all answers of several sentences."""
    distinct = list({sample["answer"]: sample for sample in samples}.values())
    long = [n for n, sample in enumerate(distinct) if re.search(r"[.!?]\s", sample["answer"])]
    rest = [n for n in range(len(distinct)) if n not in long]
    rest = [rest[n * len(rest) // room] for n in range(room)] if (room := min(count - len(long), len(rest))) > 0 else []
    return [distinct[n] for n in sorted([*long, *rest])]


def speak(model, samples: list, args) -> list:
    """Their answers with speech and face, the text greedy; the same for the same --seed."""
    return model.generate(*chats(samples), max_new_tokens=args.max_new_tokens,
                          generator=torch.Generator().manual_seed(args.seed))


def converse(model, args) -> list:
    """The chosen questions, asked: [(sample, Answer, sample of split `voice` with the same words), ...]."""
    data = Path(args.data)
    split = Split(data / ("test-recombined" if (data / "test-recombined").exists() else "val"))
    asked = choose(questions(split, "qa"), args.answers)
    asked.sort(key=lambda s: len(s["answer"]))                  # a batch lasts as long as its longest answer
    voices = own_voice(data, [s["answer"] for s in asked])
    if not asked or any(voice is None or voice["units"] is None for voice in voices):
        raise ValueError(f"{data} has no {'units of each answer in split voice' if asked else 'spoken questions'}: "
                         "speech is compared with the answer voice's own")
    said = []
    for n in tqdm(range(0, len(asked), SPEAKING_BATCH), desc="speaking", unit="batch", disable=None):
        said += zip(asked[n:n + SPEAKING_BATCH], speak(model, asked[n:n + SPEAKING_BATCH], args))
    return [(s, answer, voice) for (s, answer), voice in zip(said, voices)]


def right_ones(said: list) -> list:
    return [(s, answer, voice) for s, answer, voice in said if answer.text == s["answer"] and len(answer.units)]


def compare_speech(kept: list) -> dict:
    """Lengths and units of (sample, Answer, voice) against the voice's own."""
    rows = [{"text": s["answer"], "seconds": len(answer.units) / UNIT_RATE,
             "voice_seconds": len(voice["units"]) / UNIT_RATE, "ended": len(answer.unit_states) > len(answer.units)}
            for s, answer, voice in kept]
    ratios = np.array([row["seconds"] / row["voice_seconds"] for row in rows])
    units = [(voice["units"].tolist(), answer.units.tolist()) for _, answer, voice in kept]
    return {"answers": len(rows), "length over the voice's, median": float(np.median(ratios)),
            "length within 10 %": float(np.mean(abs(ratios - 1) <= 0.1)),
            "truncated": [row for row, ratio in zip(rows, ratios) if ratio < 0.9],
            "stopped by the limit of units": sum(not row["ended"] for row in rows),
            "longest": max(rows, key=lambda row: row["voice_seconds"]),
            "units equal to the voice's": average(a == b for a, b in units),
            "unit error rate": sum(edits(*pair) for pair in units) / sum(len(a) for a, _ in units)}


def listener(name: str):
    """A function path -> what faster-whisper hears. Raises OSError without the package or the model."""
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise OSError("--asr needs faster-whisper: `pip install faster-whisper`") from None
    try:
        ears = WhisperModel(name, device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads())
    except RuntimeError as error:
        raise OSError(f"--asr {name}: {error}") from None

    def hear(path) -> str:
        parts, _ = ears.transcribe(str(path), language="en", beam_size=5, condition_on_previous_text=False)
        return " ".join(part.text.strip() for part in parts)
    return hear


def write_sounds(kept: list, out: Path) -> dict:
    """NNN.wav in generated/ and, where there are recordings, voice/ below `out`, and beside them the refs of each
    ({"audio", "text"} rows) for any ASR. Returns side -> [(path, text), ...]."""
    files, sides = {}, {"generated": SAMPLE_RATE}
    if all(voice["audio"] is not None for _, _, voice in kept):
        sides["voice"] = HEARING_RATE
    for side, rate in sides.items():
        (out / side).mkdir(parents=True, exist_ok=True)
        for old in (out / side).glob("*.wav"):
            old.unlink()
        sounds = [answer.waveform.float().numpy() if side == "generated" else voice["audio"]
                  for _, answer, voice in kept]
        files[side] = [(out / side / f"{n:03}.wav", s["answer"]) for n, (s, _, _) in enumerate(kept)]
        for (path, _), sound in zip(files[side], sounds):
            with weights.replacing(path) as temporary:
                soundfile.write(temporary, sound, rate, format="WAV", subtype="PCM_16")
        with weights.replacing(out / f"{side}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps({"audio": str(path), "text": text}) + "\n"
                                         for path, text in files[side]), encoding="utf-8")
    return files


def speech(model, args, said: list, hear) -> dict:
    """Lengths, units and word errors of what was said; the sounds go into --out. hear: path -> text, or None."""
    out, kept = Path(args.out) / "speech", right_ones(said)
    found = {"text right": share(s["answer"] == answer.text for s, answer, _ in said)}
    if kept:
        found |= compare_speech(kept)
        files = write_sounds(kept, out)
        heard = {side: [(text, hear(path)) for path, text in tqdm(files[side], desc=side, unit="clip", disable=None)]
                 for side in files if hear}
        for side, pairs in heard.items():
            found[f"word error rate, {side}"] = word_error_rate(pairs)
        found["heard"] = {side: [(said, got) for said, got in pairs if words(said) != words(got)]
                          for side, pairs in heard.items()}
    few = [s for s, *_ in [said[0], said[-1]]]                  # the shortest and the longest
    found["twice the same seed, equal"] = all(
        a.text == b.text and torch.equal(a.units, b.units) and torch.equal(a.waveform, b.waveform)
        for a, b in zip(speak(model, few, args), speak(model, few, args)))
    lists = {"truncated": len, "longest": lambda row: f"{row['seconds']:.1f} s of {row['voice_seconds']:.1f} s"}
    show("speech", ["figure"], [[key, lists.get(key, lambda value: value)(value)]
                                for key, value in found.items() if key != "heard"])
    for row in found.get("truncated", []):
        print(f"  truncated: {row['seconds']:.1f} s of {row['voice_seconds']:.1f} s: {row['text']}")
    if kept:
        print(f"wrote {len(kept)} answers to {out}, " + ("and the voice's own" if "voice" in files else
              "not the voice's own: data made from shipped answers has no recordings"))
        if hear is None:
            print(f"word error rates left out: --asr NAME, or give {out}/*.jsonl to any ASR")
    return found


# --- face -------------------------------------------------------------------------------------------------------------

def show_faces(title: str, columns: dict) -> None:
    show(title, list(columns), [[figure, *(column[figure] for column in columns.values())]
                                for figure in next(iter(columns.values()))])


def face(model, args, said: list, head) -> dict:
    """Teacher-forced on held-out answers, then the lips of what was said against its sound."""
    found, kept = {"held_out": held_out_faces(model, args.data, head)}, right_ones(said)
    show_faces("face, teacher-forced on held-out answers", found["held_out"])
    lags = [(sound_lag(answer.face.float().clamp(0, 1).numpy(), answer.waveform.float().numpy(), SAMPLE_RATE, head),
             sound_lag(voice["face"], voice["audio"], HEARING_RATE, head)) for _, answer, voice in kept]
    if kept:
        longer = [len(answer.face) / FPS - len(answer.waveform) / SAMPLE_RATE for _, answer, _ in kept]
        found["generated"] = {
            "answers": len(kept), "lips' lag to the sound, ms (median)": average(
                (ours for ours, _ in lags if ours is not None), np.median),
            "the teacher's lag to the voice, ms (median)": average(
                (teachers for _, teachers in lags if teachers is not None), np.median),
            "lags within one frame of each other": average(
                None not in both and abs(both[0] - both[1]) < 1500 / FPS for both in lags),
            "face longer than speech by at most, s": float(max(longer, key=abs))}
        show("face, generated answers", ["figure"], found["generated"].items())
    return found


# --- latency ----------------------------------------------------------------------------------------------------------

def a_question(args) -> Path:
    """--audio, or the question of val whose answer lasts about three seconds, written as a wav."""
    if args.audio:
        return Path(args.audio)
    split, path = Split(Path(args.data) / "val"), Path(args.out) / "latency" / "question.wav"
    rows = [i for i in rows_of(split, ("qa",)) if {"audio", "face"} <= split.rows[i].keys()]
    if not rows:
        raise ValueError(f"{split.directory} has no question asked aloud: give --audio FILE")
    chosen = min(rows, key=lambda i: abs(split.rows[i]["face"][1] / FPS - 3))
    with weights.replacing(path) as temporary:
        soundfile.write(temporary, split[chosen]["audio"], HEARING_RATE, format="WAV", subtype="PCM_16")
    return path


def script(name: str, args, *options, quiet=False) -> float:
    """Runs a script of this directory; the seconds that took. Raises ValueError where it fails."""
    command, begun = [sys.executable, Path(__file__).with_name(name), *options], time.perf_counter()
    done = subprocess.run([str(part) for part in command], env=os.environ | {"OMP_NUM_THREADS": str(args.threads)},
                          stdout=subprocess.DEVNULL if quiet else None)
    if done.returncode:
        raise ValueError(f"{name} ended with code {done.returncode}; its last line says why")
    return time.perf_counter() - begun


@torch.no_grad()
def first_sound(model, answer, seed: int) -> dict:
    """Seconds from an answer's text to its first block of sound: units made one by one, then the block."""
    ids, clock, taken = torch.tensor([answer.text_ids], device=model.llm.norm.weight.device), [], []
    begun = time.perf_counter()
    voice = model.speech_generator.generate(
        answer.text_states[None].to(ids.device), torch.ones_like(ids, dtype=torch.bool),
        ids.masked_fill(model.stops(ids.device)[ids], IGNORE), GREEDY if model.config.greedy_units else RepetitionAware(),
        torch.Generator().manual_seed(seed),
        each=lambda decoder: clock.append((int(decoder.count[0]), time.perf_counter() - begun)))
    units = voice.ids[0, :int(voice.count[0])].tolist()
    begun = time.perf_counter()
    next(model.speech_decoder.stream(unit for unit in units if taken.append(unit) is None))
    block = time.perf_counter() - begun
    needed = next((seconds for count, seconds in clock if count >= len(taken)), clock[-1][1])
    return {"its units": needed, "its block of sound": block}


def latency(model, args) -> dict:
    """Seconds from one question to each part of its answer, cold and warm."""
    question = a_question(args)
    asked = {"messages": [sample.user_message(None, True)], "audio": load_audio(question).numpy()}
    options = ("--checkpoint", args.checkpoint, "--audio", question, "--out", Path(args.out) / "latency" / "answer",
               "--device", args.device, "--dtype", args.dtype, "--max-new-tokens", args.max_new_tokens)
    clock = {"cold start to answer.html": [script("sample.py", args, *options, quiet=True) for _ in range(3)]}
    for n in range(6):
        answer = speak(model, [asked], args)[0]
        if not len(answer.units):
            raise ValueError(f"{question} is answered without speech: there is nothing to time")
        seconds, length = answer.seconds, len(answer.units) / UNIT_RATE
        sound = first_sound(model, answer, args.seed)
        now = {"first text": seconds["first_text"], "text": seconds["text"], "speech TTFT": seconds["first_unit"],
               "units": seconds["units"], "face latency": seconds["face"], "waveform": seconds["waveform"],
               "RTF": seconds["waveform"] / length, "first sound, after the text": sum(sound.values()),
               **sound,
               "first sound, after the question": seconds["text"] + sum(sound.values())}
        for key, value in now.items() if n else ():             # the first one warms up
            clock.setdefault(key, []).append(value)
    found = {"question": str(question), "text": answer.text, "speech_seconds": length, "threads": args.threads,
             "seconds": {key: {"median": average(values, np.median), "least": min(values), "most": max(values)}
                         for key, values in clock.items()}}
    show(f"latency in s, {length:.1f} s of speech, {args.threads} threads: {answer.text}", ["median", "least", "most"],
         [[key, *row.values()] for key, row in found["seconds"].items()])
    return found


# --- ablations --------------------------------------------------------------------------------------------------------

def train_face(out: Path, ablation: str, args) -> None:
    """Stage 3 into `out`, unless it is there; one that was interrupted goes on. Raises ValueError where `out` holds
    another one or the training fails."""
    state, given = out / "trainer" / "state.json", {name: getattr(args, name) for name in ("epochs", "steps")}
    asked = {"init_from": args.init_from, "data": args.data, "seed": args.seed, "ablate": ablation or None}
    asked |= {name: value for name, value in given.items() if value is not None}
    if not state.exists():
        options = [(f"--{name.replace('_', '-')}", value) for name, value in asked.items() if value is not None]
        script("train.py", args, "--stage", 3, "--out", out, "--device", args.device, *sum(options, ()))
        return
    run = weights.read_json(state)
    other = [name for name, value in asked.items() if run[name] != value]
    if other:
        raise ValueError(f"{out} was trained with another {', '.join(other)}: choose another --out, or remove it")
    if run["step"] < run["steps"]:
        script("train.py", args, "--resume", "--out", out, "--device", args.device)


def ablations(args, head) -> dict:
    """Table 6: stage 3 trained whole and with parts left out, each measured on held-out answers."""
    found = {}
    for ablation in TABLE_6:
        out = Path(args.out) / "ablations" / (ablation or "none")
        train_face(out, ablation, args)
        model, _ = load(str(out), args)
        found[f"without {ablation}" if ablation else "whole"] = held_out_faces(model, args.data, head)["ours"] | {
            "the paper's LVE (another head: only the order compares)": TABLE_6[ablation]}
    show_faces("Table 6: stage 3 with parts left out, teacher-forced on held-out answers", found)
    return found


# --- command ----------------------------------------------------------------------------------------------------------

def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = p.add_argument
    add("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    add("--checkpoint", default=str(sample.MINI))
    add("--data", default="data/demo", help="prepared data: a directory with val/, test-*/ and voice/")
    add("--out", default="runs/eval", help="directory for evaluation.json, sounds and trained ablations")
    add("--transcripts", action="store_true", help="answers: also mark transcriptions")
    add("--answers", type=positive, default=100, help="speech and face: how many to generate")
    add("--asr", metavar="NAME", help="speech: word error rates by this faster-whisper model, a name or a directory")
    add("--audio", metavar="FILE", help="latency: the question (default: one of val)")
    add("--ablations", action="store_true", help="train the face stage without parts of it and compare")
    add("--init-from", metavar="CHECKPOINT", help="ablations: what stage 2 made")
    add("--epochs", type=float, help="ablations: as train.py")
    add("--steps", type=positive, help="ablations: as train.py")
    add("--max-new-tokens", type=positive, default=128, help="text tokens at most")
    add("--seed", type=int, default=0)
    add("--threads", type=positive, default=2)
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    return p.parse_intermixed_args(argv)                        # parts may stand anywhere


def load(checkpoint: str, args) -> tuple:
    """(the model as sample.py opens it, its sampling arguments)."""
    return sample.load(argparse.Namespace(**vars(args) | {"checkpoint": checkpoint}, temperature=0, top_p=1,
                                          release_quirks=False))


def run(args) -> None:
    """Measure the parts asked for; each one's figures are kept in evaluation.json as soon as they are there."""
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        raise ValueError(f"part {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    if args.ablations and (args.parts or not args.init_from):
        raise ValueError("--ablations needs --init-from CHECKPOINT (after stage 2), and no other part")
    torch.set_num_threads(args.threads)
    head, parts, path = make_head(), set(args.parts or PARTS), Path(args.out) / "evaluation.json"
    found = weights.read_json(path) if path.exists() else {}

    def keep(part, figures, checkpoint):
        found[part] = {"checkpoint": checkpoint, "data": args.data, "seed": args.seed, **figures}
        weights.write_json(path, found)

    if args.ablations:
        keep("ablations", ablations(args, head), args.init_from)
    else:
        hear = listener(args.asr) if args.asr and "speech" in parts else None
        model, _ = load(args.checkpoint, args)
        if parts - {"answers"} and model.speech_decoder is None:
            raise ValueError(f"{args.checkpoint} has no speech_decoder/: without sound only answers can be measured")
        said = converse(model, args) if parts & {"speech", "face"} else []
        measure = {"answers": lambda: answers(model, args), "speech": lambda: speech(model, args, said, hear),
                   "face": lambda: face(model, args, said, head), "latency": lambda: latency(model, args)}
        for part in PARTS:
            if part in parts:
                keep(part, measure[part](), args.checkpoint)
    print(f"\nwrote {path}")


def main(argv=None) -> None:
    args = parse(argv)
    with one_line_errors("interrupted: what was measured is kept"):
        run(args)


if __name__ == "__main__":
    main()
