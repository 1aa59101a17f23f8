"""Makes mini/, the trained model that comes with the code: from scratch, or its four stages alone.

    python -m toy                             # everything, five to six hours on two cores; the data need flite
    python -m toy --from mini                 # the four stages, with the pretrained parts of mini/: pip packages only

Each step is a command of this project, printed before it starts. Finished steps are skipped, so that the same command
resumes after an interruption. --work gets data, parts, base, stage1 to stage4, and steps.jsonl with the seconds of each
step. At the end --out is written, by default --work/mini; `--out mini` replaces the mini model of the repository:

    config.json, model.safetensors, ...    the checkpoint of stage 4, weights in float16
    speech_tokenizer/, speech_decoder/     as in every checkpoint
    base/                                  the language model before the stages; the other parts are in the checkpoint
    data/                                  units and faces of all spoken answers (answers.py)
    questions/                             clips of voices that are not in the training data, with their texts
    log.jsonl                              the logs of all steps, each line with its part or stage
"""
import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cli                                                      # before torch: see __main__.py

import soundfile
import torch

import disk
import weights
from data import Split
from toy import answers, pretrain
from whisper import SAMPLE_RATE

ROOT = Path(__file__).parent.parent
QUESTIONS = ("test-natural", "test-voices", "test-both")       # splits whose voices are not in the training data
UNTIL_ALONE = "listening, one core"     # interrupted after the other step of its dict; the next step resumes it


def plan(work: Path, shipped: str | None) -> list:
    """[{step: arguments of python}, ...]; the steps of one dict run at the same time."""
    pretrain = ["-m", "toy", "pretrain", "--data", work / "data", "--work", work / "parts", "--out", work / "base"]
    data = [ROOT / "prepare.py", "demo", "--out", work / "data"]
    if shipped:
        steps = [{"data": [*data, "--answers", Path(shipped) / "data"]}, {"base": [*pretrain, "--from", shipped]}]
    else:
        steps = [{"data": data},
                 {"speaking": [*pretrain, "vocabulary", "llm", "tokenizer", "flow", "hift"],
                  UNTIL_ALONE: [*pretrain, "encoder"]},
                 {"listening, two cores": [*pretrain, "encoder", "--threads", 2]},
                 {"base": [*pretrain, "base", "units"]}]
    for stage, before in enumerate(("base", "stage1", "stage2", "stage3"), 1):
        steps.append({f"stage{stage}": [ROOT / "train.py", "--stage", stage, "--data", work / "data", "--init-from",
                                        work / before, "--out", work / f"stage{stage}", "--resume", "auto"]})
    return steps


def rows_of(log: Path) -> list:
    """The rows of a log, none if there is no file. Raises ValueError with the number of a damaged line."""
    rows = []
    for number, line in enumerate(log.read_bytes().splitlines() if log.exists() else (), 1):
        try:
            rows.append({**json.loads(line)})
        except (ValueError, TypeError):
            raise ValueError(f"{log}, line {number} is not json of an object: remove that line, then the same command "
                             "goes on") from None
    return rows


def make(work: Path, shipped: str | None) -> None:
    """Run the steps that are not done, in order. Calls `cli.failed` if one fails."""
    log = work / "steps.jsonl"

    def finished(name):
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": name, "seconds": round(time.monotonic() - begun, 1)}) + "\n")

    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = {row.get("step") for row in rows_of(log)}
    work.mkdir(parents=True, exist_ok=True)
    for steps in plan(work, shipped):
        begun, running = time.monotonic(), {}
        try:
            for name, arguments in steps.items():
                if name not in done:
                    command = [sys.executable, *map(str, arguments)]      # -m toy, or a script at the top level
                    print(f"--- {name}: {shlex.join(['python', *command[1:]])}", flush=True)
                    running[name] = subprocess.Popen(command, env=environment)
            while running:
                time.sleep(0.1)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    code = running.pop(name).returncode
                    if code:
                        cli.stop(running.values(), signal.SIGTERM)
                        cli.failed(name, code, "mend what it says, then the same command goes on")
                    finished(name)
                if len(steps) > 1 and [*running] == [UNTIL_ALONE]:
                    cli.stop([running.pop(UNTIL_ALONE)])                   # it saves its state
                    finished(UNTIL_ALONE)
        finally:
            cli.stop(running.values())                          # interrupted: they save


# ---- the finished mini model ---------------------------------------------------------------------------------------

def ship(work: Path, out: Path) -> None:
    """Write `out` from a finished `work`; files of an earlier mini model are replaced one by one."""
    final = work / "stage4"
    halve(final / "model.safetensors", out / "model.safetensors")
    for name in ("config.json", "generation_config.json", "stages.json"):
        copy(final / name, out / name)
    copy_tokenizer(final, out)
    for path in [*final.glob("speech_tokenizer/*"), *final.glob("speech_decoder/*")]:
        copy(path, out / path.relative_to(final))
    halve(work / "parts" / "llm" / "model.safetensors", out / "base" / "model.safetensors")
    copy(work / "parts" / "llm" / "config.json", out / "base" / "config.json")
    copy_tokenizer(work / "parts" / "llm", out / "base")
    answers.ship_answers(work / "data", out / "data")
    questions(work / "data", out / "questions")
    logs = [("", work / "steps.jsonl")]
    logs += [("", work / "parts" / name / "log.jsonl") for name, *_ in pretrain.ROUNDS]
    logs += [(f"stage{n}", work / f"stage{n}" / "log.jsonl") for n in range(1, 5)]
    rows = [({"stage": stage} if stage else {}) | row for stage, path in logs for row in rows_of(path)]
    with disk.replacing(out / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote {out} ({size / 1e6:.1f} MB); try it: python sample.py --checkpoint {out} --audio "
          f"{next(iter(sorted((out / 'questions').glob('*.wav'))), 'q.wav')}")


def copy(source: Path, target: Path) -> None:
    """Copy a file; at any time `target` is the old file or the complete new one."""
    with disk.replacing(target) as temporary:
        temporary.write_bytes(source.read_bytes())


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy mini.tiktoken, and tokenizer_config.json if there is one: the first mini model, a possible start (--from),
    has none, and does not fold what users write."""
    copy(source / "mini.tiktoken", target / "mini.tiktoken")
    if (source / "tokenizer_config.json").exists():
        copy(source / "tokenizer_config.json", target / "tokenizer_config.json")
    else:
        (target / "tokenizer_config.json").unlink(missing_ok=True)


def halve(source: Path, target: Path) -> None:
    """Write a checkpoint's weights in float16. Loading converts them to the dtype in config.json."""
    weights.write_tensors(target, {name: tensor.to(torch.float16, copy=True)        # from a mapped file
                                   for name, tensor in weights.stream(source, weights.shapes(source))})


def questions(data: Path, out: Path, each: int = 2) -> None:
    """Write clips of `each` questions per split of QUESTIONS, no kind twice, and their texts in questions.jsonl."""
    rows = []
    for name in QUESTIONS:
        split, kinds = Split(data / name) if (data / name).exists() else None, set()
        for i, row in enumerate(split.rows if split else ()):
            if row["task"] == "qa" and row["kind"] not in kinds | {r["kind"] for r in rows} and len(kinds) < each:
                kinds.add(row["kind"])
                rows.append({key: row[key] for key in ("id", "kind", "text", "answer", "voice", "phrasing")})
                with disk.replacing(out / f"{row['kind']}.wav") as temporary:
                    soundfile.write(os.fsencode(temporary), split[i]["audio"], SAMPLE_RATE, format="WAV",
                                    subtype="PCM_16")
    with disk.replacing(out / "questions.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parse(argv=None) -> argparse.Namespace:
    """The command line of `python -m toy`."""
    p = cli.Parser(prog="python -m toy", description=__doc__.splitlines()[0],
                   epilog="python -m toy pretrain --help: single parts, from scratch or from mini/")
    p.add_argument("--work", default="runs/mini", help="directory for all that is made on the way")
    p.add_argument("--out", help="directory to write (default: mini in --work)")
    p.add_argument("--from", dest="shipped", metavar="MINI", help="a directory like mini/: train the stages only")
    return p.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    with cli.one_line_errors("interrupted: the same command goes on", args.debug):
        if args.shipped and not (Path(args.shipped) / "config.json").is_file():
            raise ValueError(f"--from {args.shipped} has no config.json: expected a directory like mini/")
        work = cli.writable(args.work, "--work")
        out = cli.writable(args.out or work / "mini")
        make(work, args.shipped)
        ship(work, out)
