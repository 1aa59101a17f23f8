"""Evaluates a checkpoint on held-out data: the paper's tables, as far as they can be measured here.

    python evaluate.py --checkpoint mini --data data/demo                    # all four parts
    python evaluate.py answers --checkpoint mini --data data/demo            # or some: answers speech face latency
    python evaluate.py speech --asr base --checkpoint mini --data data/demo  # with word error rates
    python evaluate.py --ablations --init-from out/stage2 --init-generator-from out/stage1 --data data/demo

Prints tables; evaluation.json in --out has all figures and each wrong answer, also of parts measured earlier.

answers     (Table 4) Greedy text; only an exact match is right. Val and each test split, by family of voices and kind
            of phrasing; "typed": the same questions as text. Also conversations, ways to type, strangers' questions,
            and questions without an answer: refused, or answered with confidence. Then one split with changed clips
            (toy/marking.py, toy/rooms.py).
speech      (v1 Tables 5 and 9) Spoken answers whose text is right are compared with the answer voice's recording of it
            (split `voice`): length (below 0.9 of the recording's: truncated), units, tones at multiples of the
            vocoder's frame rate (about 0 dB: none), and with --asr NAME (a faster-whisper model or directory) the word
            error rate of both, also by duration.
face        (v1 main table) Teacher-forced on the face samples of val: LVE against the teacher and the other metrics of
            face/measure.py. "teacher": its own figures. "mean": a still face, the mean of all frames, as a baseline.
            Then the generated answers: lips against their own sound.
latency     (v1 Table 10) One question. Cold start: `python sample.py` as a process, until answer.html is written. Then
            warm, in this process. Overall RTF: end-to-end time over the speech's length. Speech TTFT: from the question
            to the first unit, the text included. Face latency: time of the face decoder, after the units. First sound:
            the earliest start of streaming, the sum of the times of the text, of the units that
            `SpeechDecoder.stream` needs for its first block, and of that block.
--ablations (Tables 6 of v1 and v2, v1 Table 8) Trains stage III in full and without parts of the face decoder, and with
            --init-generator-from stage II in full and without TQGF. Trainings found in --out are used again.
"""
import argparse
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import cli                                                      # before torch, which takes seconds

import numpy as np
import torch

import disk
import sample
from data import Split
from decode import GREEDY, RepetitionAware
from face.head import make_head
from face.measure import average, endings, held_out_faces
from face_decoder import UNIT_RATE
from speech_generator import LONGEST, MIN_UNITS
from toy.marking import answer_tables, load_jiwer, mark_answers, share, speak, write_texts
from toy.speaking import (compare_speech, converse, generator_figures, lip_lags, right_ones, transcriber, word_errors,
                          write_question, write_sounds)
from whisper import load_audio

PARTS = ("answers", "speech", "face", "latency")
USED_BY = {"init_from": "ablations", "init_generator_from": "ablations", "epochs": "ablations", "steps": "ablations",
           "transcripts": "answers", "asr": "speech", "audio": "latency"}       # options of a single part
# The paper's figures (docs/spec/paper.md), None = unknown. --ablate NAME ("": full model) -> its name in the paper; v1
# Table 6: LVE on A2F-Bench; v2 Table 6: Sync-D, Sync-C.
TABLE_6 = {"": ("full", 3.667, 9.233, 5.385), "velocity": ("w/o velocity", 3.751, None, None),
           "speech-context": ("w/o speech context", 5.079, None, None),
           "context": ("w/o context; v2: units only", None, 9.591, 4.826),
           "tqgf": ("w/o TQGF; v2: concatenation", None, 10.209, 4.043),
           "units": ("v2: generator states only", None, 9.475, 4.768)}
# The same for v1 Table 8: CER on test-hard, WER on test-en, CER on test-zh of Seed-TTS-Eval, in %.
TABLE_8 = {"": ("full", 13.67, None, None), "generator-tqgf": ("w/o TQGF", 14.68, "about equal", "better")}
ABOUT_TABLE_6 = """Table 6: the face decoder trained without parts of it (stage III), teacher-forced on held-out answers
The paper's LVE is of another model, head, unit and test set, its Sync-D (less is better) and Sync-C (more is better)
of rendered video: only the order compares. Its text says: w/o context is worse than full and better than w/o speech
context; w/o TQGF is slightly better in English, worse in Chinese. v2 trained generator and face decoder together,
without the velocity term; here only the face decoder is trained, with it."""
ABOUT_TABLE_8 = """v1 Table 8: the speech generator trained without TQGF (stage II), on the sentences of val
Loss and accuracy are teacher-forced. The paper's figures are error rates (%) of an ASR: only the order compares."""
TABLE_10 = {"overall RTF": 2.158, "speech TTFT": 0.029, "face latency": 0.012}      # v1; TTFT and latency in s


# ---------------------------------------------------------------- tables

def cell(value) -> str:
    if isinstance(value, dict):
        return f"{value['right']}/{value['asked']} {cell(value['share'])}"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def show(title: str, header: list, rows) -> None:
    """Print a table; rows: [[name, value, ...], ...]."""
    table = [[cell(value) for value in row] for row in (["", *header], *rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    print(f"\n{title}")
    for row in table:
        print("  " + "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:]))]))


# ---------------------------------------------------------------- answers

def answers(model, args) -> dict:
    """Exact answers on val and the test splits, spoken and typed, refusals, and answers to changed clips."""
    found = mark_answers(lambda samples: write_texts(model, samples, args.max_new_tokens), args.data, args.seed,
                         args.transcripts)
    for table in answer_tables(found):
        show(*table)
    return found


# ---------------------------------------------------------------- speech

def speech(model, args, said: list, transcribe) -> dict:
    """Lengths, units and word errors of the spoken answers, whose sounds are written to --out. said: of
    `toy.speaking.converse`. transcribe: path -> text, or None."""
    out, right, files = Path(args.out) / "speech", right_ones(said), {}
    found = {"text right": share(s["answer"] == answer.text for s, answer, _ in said)}
    if right:
        found |= compare_speech(right)
        files = write_sounds(right, out)
        found |= word_errors(right, files, transcribe)
    two = [s for s, *_ in [said[0], said[-1]]]                  # the shortest and the longest
    found["twice the same seed, equal"] = all(
        a.text == b.text and torch.equal(a.units, b.units) and torch.equal(a.waveform, b.waveform)
        for a, b in zip(*(speak(model, two, args.max_new_tokens, args.seed) for _ in range(2))))
    lists = {"truncated": len, "longest": lambda one: f"{one['seconds']:.1f} s of {one['voice_seconds']:.1f} s"}
    show("speech", ["figure"], [[key, lists.get(key, lambda value: value)(value)]
                                for key, value in found.items() if key not in ("heard", "by duration")])
    for one in found.get("truncated", []):
        print(f"  truncated: {one['seconds']:.1f} s of {one['voice_seconds']:.1f} s: {one['text']}")
    if ranges := found.get("by duration"):
        show("speech-text consistency by duration (v1 Table 9)", list(next(iter(ranges.values()))),
             [[key, *row.values()] for key, row in ranges.items()])
    if right:
        print(f"wrote {len(right)} answers to {out}, " + ("and the voice's own" if "voice" in files else
              "not the voice's own: data made from shipped answers has no recordings"))
        if transcribe is None:
            print(f"word error rates left out: --asr NAME, or give {out}/*.jsonl to any ASR")
    return found


# ---------------------------------------------------------------- face

def face(model, args, said: list, head) -> dict:
    """Teacher-forced metrics on held-out answers; then lip sync and endings of the generated answers."""
    found, right = {"held_out": held_out_faces(model, args.data, head)}, right_ones(said)
    columns = found["held_out"]
    show("face, teacher-forced on held-out answers", list(columns),
         [[figure, *(column[figure] for column in columns.values())] for figure in columns["ours"]])
    tracks = [answer.face.float().clamp(0, 1).numpy() for _, answer, _ in said if len(answer.face)]
    found["generated"] = (lip_lags(right, head) if right else {}) | endings(tracks, head)
    show("face, generated answers", ["figure"], found["generated"].items())
    return found


# ---------------------------------------------------------------- latency

def script(name: str, args, *options, quiet=False, advice="its last line says why") -> float:
    """Run a script of this directory as a process; returns its seconds. If it fails: `cli.failed`."""
    command, start = [sys.executable, Path(__file__).with_name(name), *options], time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], env=os.environ | {"OMP_NUM_THREADS": str(args.threads)},
                               stdout=subprocess.DEVNULL if quiet else None)
    try:
        code = process.wait()
    finally:
        cli.stop([process])
    if code:
        cli.failed(name, code, advice)
    return time.perf_counter() - start


def hardware(device) -> str:
    """The name of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else None
    return name[1] if name else platform.processor() or platform.machine()


@torch.no_grad()
def first_sound(model, answer, seed: int) -> dict:
    """Seconds from an answer's text to its first block of sound: generating its units, then decoding the block."""
    ids, clock, taken = torch.tensor(answer.text_ids, device=model.llm.norm.weight.device), [], []
    start = time.perf_counter()
    decoder = model.speech_generator.generate(
        answer.text_states[None].to(ids.device), torch.ones_like(ids, dtype=torch.bool)[None],
        ids[~model.is_stop(ids)][None], GREEDY if model.config.greedy_units else RepetitionAware(),
        torch.Generator().manual_seed(seed),
        each=lambda decoder: clock.append((int(decoder.count[0]), time.perf_counter() - start)))
    units, start_of_block = decoder.emitted()[0][0].tolist(), time.perf_counter()
    next(model.speech_decoder.stream(unit for unit in units if taken.append(unit) is None))
    return {"its units": next((seconds for count, seconds in clock if count >= len(taken)), clock[-1][1]),
            "its block of sound": time.perf_counter() - start_of_block}


def latency(model, args) -> dict:
    """Seconds from one question to each part of its answer, cold and warm (Table 10)."""
    question = Path(args.audio) if args.audio else write_question(
        Split(Path(args.data) / "val"), Path(args.out) / "latency" / "question.wav")
    asked = {"messages": [sample.user_message(None, True)], "audio": load_audio(question).numpy()}
    options = ("--checkpoint", args.checkpoint, "--audio", question, "--out", Path(args.out) / "latency" / "answer",
               "--device", args.device, "--dtype", args.dtype, "--max-new-tokens", args.max_new_tokens)
    clock = {"cold start to answer.html": [script("sample.py", args, *options, quiet=True) for _ in range(3)]}
    for n in range(6):
        answer, = speak(model, [asked], args.max_new_tokens, args.seed)
        if not len(answer.units):
            raise ValueError(f"{question} is answered without speech: there is nothing to time")
        seconds, length = answer.seconds, len(answer.units) / UNIT_RATE
        sound = first_sound(model, answer, args.seed)
        now = {"first text": seconds["first_text"], "text": seconds["text"], "speech TTFT": seconds["first_unit"],
               "first unit, after the text": seconds["first_unit"] - seconds["text"], "units": seconds["units"],
               "face latency": seconds["face"] - seconds["units"], "face": seconds["face"],
               "waveform": seconds["waveform"], "overall RTF": seconds["waveform"] / length,
               "first sound, after the text": sum(sound.values()), **sound,
               "first sound, after the question": seconds["text"] + sum(sound.values())}
        for key, value in now.items() if n else ():             # the first run is a warm-up
            clock.setdefault(key, []).append(value)
    found = {"question": str(question), "text": answer.text, "speech_seconds": length, "threads": args.threads,
             "hardware": hardware(model.llm.norm.weight.device), "paper": TABLE_10,
             "seconds": {key: {"median": average(values, np.median), "least": min(values), "most": max(values)}
                         for key, values in clock.items()}}
    show(f"latency in s, {found['hardware']}, {args.threads} threads, {length:.1f} s of speech: {answer.text}\n"
         "The paper (Table 10): 8B, NVIDIA H20, mean of 100 questions. It does not say from when TTFT counts; the\n"
         "face of a cascade takes .105 to .117 s", ["median", "least", "most", "the paper's"],
         [[key, *row.values(), TABLE_10.get(key)] for key, row in found["seconds"].items()])
    return found


# ---------------------------------------------------------------- ablations

def train_without(ablation: str, stage: int, source: str, args):
    """The model after training a stage with an ablation ("": in full). A training in --out is continued, or used if it
    is complete."""
    out = Path(args.out) / "ablations" / (ablation or {2: "generator-none", 3: "none"}[stage])
    asked = {"stage": stage, "init-from": source, "data": args.data, "seed": args.seed, "epochs": args.epochs,
             "steps": args.steps, "ablate": ablation or None, "out": out, "device": args.device, "resume": "auto"}
    given = {f"--{name}": value for name, value in asked.items() if value is not None}
    script("train.py", args, *sum(given.items(), ()),
           advice=f"its last line says why; where {out} holds another training, remove it or choose another --out")
    return load(str(out), args)


def compare(about: str, table: dict, columns: tuple, figures: tuple, measured) -> dict:
    """One of the paper's tables, with our figures next to its own. measured: an ablation's name -> figures."""
    found = {f"without {name}" if name else "whole": measured(name) | {"paper": dict(zip(columns, paper))}
             for name, (_, *paper) in table.items()}
    show(about, [*figures, *columns], [
        [label, *(row[figure] for figure in figures), *(value if value is None else str(value) for value in paper)]
        for row, (label, *paper) in zip(found.values(), table.values())])
    return found


def ablations(args, head) -> dict:
    """Table 6 of v1 and v2: stage III without parts of the face; v1 Table 8: stage II without the generator's TQGF."""
    found = compare(ABOUT_TABLE_6, TABLE_6, ("v1 LVE", "v2 Sync-D", "v2 Sync-C"),
                    ("LVE, % (lve_l2)", "velocity error, lips", "jitter", "lips close in /p b m/", "jaw correlation"),
                    lambda name: held_out_faces(train_without(name, 3, args.init_from, args), args.data, head)["ours"])
    if args.init_generator_from:
        found["generator"] = compare(
            ABOUT_TABLE_8, TABLE_8, ("v1 test-hard", "test-en", "test-zh"),
            ("unit loss", "unit accuracy", "text right", "unit error rate"),
            lambda name: generator_figures(train_without(name, 2, args.init_generator_from, args),
                                           args.data, args.answers, args.max_new_tokens, args.seed))
    else:
        print("Table 8, the generator's ablation, is left out: --init-generator-from CHECKPOINT, what stage I made")
    return found


# ---------------------------------------------------------------- command

def parse(argv=None) -> argparse.Namespace:
    p = cli.Parser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    add("--checkpoint", default=str(sample.MINI), help="directory, ours or the official release's")
    add("--data", default="data/demo", help="prepared data: a directory with val/, test-*/ and voice/")
    add("--out", default="runs/eval", help="directory for evaluation.json, sounds and trained ablations")
    add("--transcripts", action="store_true", help="answers: also mark transcriptions")
    add("--answers", type=cli.positive, default=100, help="speech and face: how many to generate")
    add("--asr", metavar="NAME", help="speech: word error rates by this faster-whisper model, a name or a directory")
    add("--audio", metavar="FILE", help="latency: the question (default: one of val)")
    add("--ablations", action="store_true", help="train stages III and II without parts: Tables 6 and 8")
    add("--init-from", metavar="CHECKPOINT", help="ablations of the face: what stage II made")
    add("--init-generator-from", metavar="CHECKPOINT", help="ablation of the speech generator: what stage I made")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=cli.number(1e-6, 1e6), help="ablations: as train.py")
    length.add_argument("--steps", type=cli.positive, help="ablations: as train.py")
    add("--max-new-tokens", type=cli.whole(1, LONGEST // MIN_UNITS), default=128, help="text tokens at most")
    add("--seed", type=cli.seed, default=0, help="of sampled speech, changed clips and trained ablations")
    add("--threads", type=cli.threads, default=2, help="of the processor")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:NUMBER, mps")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
        help="of the weights; auto: as saved")
    return p.parse_intermixed_args(argv)                        # parts may stand anywhere


def load(checkpoint: str, args):
    """The model as sample.py opens it."""
    return sample.load(argparse.Namespace(**vars(args) | {"checkpoint": checkpoint}, temperature=0, top_p=1,
                                          release_quirks=False))[0]


def check(args, parts: set) -> None:
    """Check the arguments before anything is measured. Raises ValueError or OSError."""
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        raise ValueError(f"part {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    if args.ablations and (args.parts or not args.init_from):
        raise ValueError("--ablations needs --init-from CHECKPOINT (after stage 2), and no other part")
    for option, part in USED_BY.items():
        if getattr(args, option) and part not in ({"ablations"} if args.ablations else parts):
            raise ValueError(f"--{option.replace('_', '-')} is for {part}, which is not asked for: leave it out")
    cli.pick_device(args.device)
    if args.ablations or args.transcripts or "speech" in parts:
        load_jiwer()
    if args.audio:
        load_audio(args.audio)
    if args.ablations or not args.audio or parts - {"latency"}:
        Split(Path(args.data) / "val")
    cli.check_directory(args.out)


def measure(args) -> None:
    """Measure the requested parts; evaluation.json is updated after each."""
    head, parts, path = make_head(), set(args.parts or PARTS), Path(args.out) / "evaluation.json"
    check(args, parts)
    torch.set_num_threads(args.threads)
    found = disk.read_json(path) if path.exists() else {}

    def keep(part, figures, checkpoint):
        found[part] = {"checkpoint": checkpoint, "data": args.data, "seed": args.seed, **figures}
        disk.write_json(path, found)

    if args.ablations:
        keep("ablations", ablations(args, head), args.init_from)
    else:
        transcribe = transcriber(args.asr) if args.asr and "speech" in parts else None
        model = load(args.checkpoint, args)
        if parts - {"answers"} and model.speech_decoder is None:
            raise ValueError(f"{args.checkpoint} has no speech_decoder/: without sound only answers can be measured")
        said = parts & {"speech", "face"} and converse(model, args.data, args.answers, args.max_new_tokens, args.seed)
        figures = {"answers": lambda: answers(model, args), "speech": lambda: speech(model, args, said, transcribe),
                   "face": lambda: face(model, args, said, head), "latency": lambda: latency(model, args)}
        for part in PARTS:
            if part in parts:
                keep(part, figures[part](), args.checkpoint)
    print(f"\nwrote {path}")


def main(argv=None) -> None:
    args = parse(argv)
    with cli.one_line_errors("interrupted: what was measured is kept", args.debug):
        measure(args)


if __name__ == "__main__":
    main()
