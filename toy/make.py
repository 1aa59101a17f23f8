"""Makes mini/, the trained model that comes with the code: from nothing, or its four stages alone.

    python -m toy                             # everything, within three hours on two cores; the voice needs flite
    python -m toy --from mini                 # the four stages, from what mini/ has: pip packages only

Each step is a command of this project, printed before it runs. A step that is done is not done again, an interrupted one
goes on: the same command goes on. Everything lies in --work: data, parts, base, stage1 to stage4, and steps.jsonl with
the seconds of each step. At the end --out is written, by default --work/mini; `--out mini` replaces the shipped one:

    config.json, model.safetensors, ...    the checkpoint of stage 4, weights in float16
    speech_tokenizer/, speech_decoder/     as in every checkpoint
    base/                                  the language model before the stages; their other parts are in the checkpoint
    data/                                  units and faces of all that the answer voice says (demo.py)
    questions/                             recordings of voices that training never heard, and what they say
    log.jsonl                              the logs of the run, each row with its part or stage
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import soundfile
import torch

from toy import demo
import weights
from cli import one_line_errors
from data import Split
from whisper import SAMPLE_RATE

ROOT = Path(__file__).parent.parent
QUESTIONS = ("test-voices", "test-both", "test-natural")       # splits of voices that training never heard


def plan(work: Path, shipped: str | None) -> list:
    """[{step: arguments}, ...]: steps of one dict run side by side."""
    pretrain = ["-m", "toy", "pretrain", "--data", work / "data", "--work", work / "parts", "--out", work / "base"]
    data = [ROOT / "prepare.py", "demo", "--out", work / "data"]
    if shipped:
        steps = [{"data": [*data, "--answers", Path(shipped) / "data"]}, {"base": [*pretrain, "--from", shipped]}]
    else:
        steps = [{"data": data},
                 {"voice": [*pretrain, "tokenizer", "flow", "hift"], "ears": [*pretrain, "vocabulary", "llm", "encoder"]},
                 {"base": [*pretrain, "base", "units"]}]
    for stage, before in enumerate(("base", "stage1", "stage2", "stage3"), 1):
        out = work / f"stage{stage}"
        begin = ["--stage", stage, "--data", work / "data", "--init-from", work / before]
        again = (out / "trainer" / "state.json").exists()
        steps.append({f"stage{stage}": [ROOT / "train.py", "--out", out, *(["--resume"] if again else begin)]})
    return steps


def make(work: Path, shipped: str | None) -> None:
    """Run what is not done. Raises ValueError where a step fails; it has said why."""
    log = work / "steps.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = {json.loads(row)["step"] for row in log.read_text().splitlines()} if log.exists() else set()
    work.mkdir(parents=True, exist_ok=True)
    for steps in plan(work, shipped):
        begun, running = time.monotonic(), {}
        for name, arguments in steps.items():
            if name not in done:
                command = [sys.executable, *map(str, arguments)]      # -m toy, or a script at the top level
                print(f"--- {name}: {shlex.join(['python', *command[1:]])}", flush=True)
                running[name] = subprocess.Popen(command, env=environment)
        failed = None
        while running and failed is None:
            time.sleep(0.1)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                process = running.pop(name)
                if process.returncode:
                    failed = f"{name} ended with code {process.returncode}"
                    continue
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": name, "seconds": round(time.monotonic() - begun, 1)}) + "\n")
        if failed:
            for other in running.values():
                other.terminate()
                other.wait()
            raise ValueError(f"{failed}: mend what it says, then the same command goes on")


# ---------------------------------------------------------------- what is shipped

def ship(work: Path, out: Path) -> None:
    """Write `out` from a finished --work; files of an earlier mini model are replaced one by one."""
    final = work / "stage4"
    halve(final / "model.safetensors", out / "model.safetensors")
    for name in ("config.json", "generation_config.json", "stages.json", "mini.tiktoken"):
        copy(final / name, out / name)
    for path in [*final.glob("speech_tokenizer/*"), *final.glob("speech_decoder/*")]:
        copy(path, out / path.relative_to(final))
    halve(work / "parts" / "llm" / "model.safetensors", out / "base" / "model.safetensors")
    for name in ("config.json", "mini.tiktoken"):
        copy(work / "parts" / "llm" / name, out / "base" / name)
    demo.ship_answers(work / "data", out / "data")
    questions(work / "data", out / "questions")
    logs = [("", work / "steps.jsonl"), ("", work / "parts" / "log.jsonl")]
    logs += [(f"stage{n}", work / f"stage{n}" / "log.jsonl") for n in range(1, 5)]
    rows = [({"stage": stage} if stage else {}) | json.loads(row)
            for stage, path in logs if path.exists() for row in path.read_text().splitlines()]
    with weights.replacing(out / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote {out} ({size / 1e6:.1f} MB); try it: python sample.py --checkpoint {out} --audio "
          f"{next(iter(sorted((out / 'questions').glob('*.wav'))), 'q.wav')}")


def copy(source: Path, target: Path) -> None:
    with weights.replacing(target) as temporary:
        temporary.write_bytes(source.read_bytes())


def halve(source: Path, target: Path) -> None:
    """A checkpoint's weights in float16, which are read as what config.json says: nothing else of it changes."""
    weights.write_tensors(target, {name: tensor.to(torch.float16, copy=True)        # of a mapped file: not to be kept
                                   for name, tensor in weights.stream(source, weights.shapes(source))})


def questions(data: Path, out: Path, each: int = 2) -> None:
    """The first questions of each split of unknown voices, one of a kind, with what is said in `questions.jsonl`."""
    rows = []
    for name in QUESTIONS:
        split, kinds = Split(data / name) if (data / name).exists() else None, set()
        for i, row in enumerate(split.rows if split else ()):
            if row["task"] == "qa" and row["kind"] not in kinds | {r["kind"] for r in rows} and len(kinds) < each:
                kinds.add(row["kind"])
                rows.append({key: row[key] for key in ("id", "kind", "text", "answer", "voice", "phrasing")})
                with weights.replacing(out / f"{row['kind']}.wav") as temporary:
                    soundfile.write(temporary, split[i]["audio"], SAMPLE_RATE, format="WAV", subtype="PCM_16")
    with weights.replacing(out / "questions.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--work", default="runs/mini", help="directory of the run")
    p.add_argument("--out", help="directory to write (default: mini in --work)")
    p.add_argument("--from", dest="shipped", metavar="MINI", help="train the stages only, from a mini model that is there")
    return p.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    with one_line_errors("interrupted: the same command goes on"):
        work = Path(args.work)
        make(work, args.shipped)
        ship(work, Path(args.out or work / "mini"))


if __name__ == "__main__":
    main()
