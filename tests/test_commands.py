"""Every command and every kind of wrong argument: one line, exit code 2, no traceback; help texts without gaps."""
import argparse
import ast
import sys
from pathlib import Path

import pytest

import bench
import cli
import evaluate
import prepare
import sample
import train
from docs import curves, walkthrough
from face import __main__ as face_command
from toy import make, pretrain

ROOT = Path(__file__).parent.parent
MAINS = {"sample.py": sample.main, "train.py": train.main, "prepare.py": prepare.main, "evaluate.py": evaluate.main,
         "bench.py": bench.main, "docs/curves.py": curves.main, "docs/walkthrough.py": walkthrough.main,
         "-m face": face_command.main, "-m toy": make.main, "-m toy pretrain": pretrain.main}
TRAIN = "train.py --stage 1 --data nosuch --init-from nosuch --out out"
DEVICES = [f"{command} --device {device}" for device in ("foo", "meta", "xla", "cuda:99", "cpu:1")
           for command in ("sample.py --text hello", TRAIN, "evaluate.py answers")]
# Where nothing is said after the arrow, the line names the option that is wrong.
WRONG = [*DEVICES, *(line for line in """
sample.py --text hello --temperature nan
sample.py --text hello --temperature 1e-320 -> temperature is 1e-320
sample.py --text hello --temperature inf
sample.py --text hello --top-p 1.5
sample.py --text hello --max-new-tokens 0
sample.py --text hello --seed x
sample.py --text hello --out file/below
sample.py --audio nosuch.wav -> nosuch.wav
sample.py --text hello --checkpoint nosuch -> nosuch
sample.py --text hello --out= -> argument --out is empty
sample.py --text hello --out file -> file is a file
sample.py --audio= -> argument --audio is empty
prepare.py demo --out file -> file is a file
prepare.py demo --out= -> argument --out is empty
prepare.py corpus table file --out= -> argument --out is empty
prepare.py corpus table file --out file/below -> is a file
prepare.py weights --preset tiny --out= -> argument --out is empty
prepare.py weights --preset tiny --out file -> file is a file
evaluate.py answers --out= -> argument --out is empty
bench.py train --stage 1 9 -> stage 9 is unknown, v1 has 1, 2, 3, 4
docs/curves.py --debug= file out.png -> --debug
-m face head --out= -> argument --out is empty
-m face head --out file/x.glb -> a directory is needed there
-m face convert nosuch.csv out.html --audio= -> argument --audio is empty
-m toy --out= -> argument --out is empty
train.py -> --out
TRAIN --epochs inf
TRAIN --epochs -1
TRAIN --epochs 0
TRAIN --epochs nan
TRAIN --steps 0
TRAIN --batch 0
TRAIN --seed -1
TRAIN -> nosuch
prepare.py -> command
prepare.py corpus -> corpus
prepare.py weights --preset huge --out out -> huge
prepare.py demo --size huge
prepare.py demo --seed -1
evaluate.py voices -> part voices: expected some of answers, speech, face, latency
evaluate.py --data nosuch -> nosuch/val
evaluate.py --ablations -> --ablations needs --init-from
evaluate.py --threads 0
evaluate.py --max-new-tokens 1000000
evaluate.py --steps 0
evaluate.py latency --audio nosuch.wav -> nosuch.wav
bench.py -> what
bench.py encode -> encode
bench.py decode --threads 0
bench.py decode --rounds 0
bench.py decode --rounds nan
bench.py decode --size qwen3-8b
bench.py decode --dtype int8
bench.py decode --against nosuch
bench.py decode --against transformers -> pip install transformers
bench.py flow --units 0
bench.py flow --units 1000000
bench.py flow --against transformers
docs/curves.py nosuch.jsonl out.png -> nosuch.jsonl not found: expected the log.jsonl of train.py
docs/curves.py file out.png -> holds no logged step
docs/curves.py file out.gif -> .png or .svg
docs/curves.py . out.png -> is a directory
docs/walkthrough.py practise -> exercises OUT
docs/walkthrough.py exercises -> exercises OUT
docs/walkthrough.py measure out nosuch -> nosuch
docs/walkthrough.py exercises file -> file
docs/walkthrough.py --checkpoint nosuch -> nosuch
-m face -> command
-m face paint -> paint
-m face convert nosuch.csv out.glb -> nosuch.csv
-m face convert file out.glb --fps nan
-m face head --out head.txt -> .glb
-m toy --from nosuch -> --from nosuch has no config.json: expected a directory like mini/
-m toy --work file
-m toy --steps 1
-m toy pretrain ears -> part ears: expected some of vocabulary
-m toy pretrain llm --steps 0
-m toy pretrain llm --steps 1.5
-m toy pretrain llm --threads 0
-m toy pretrain llm --data nosuch -> nosuch/train
-m toy pretrain llm --work file
-m toy pretrain --from nosuch -> nosuch
""".replace("TRAIN", TRAIN).strip().splitlines())]


def split(line: str) -> tuple:
    """A line of the table -> the command's main, its arguments, what its error names."""
    line, _, named = line.partition(" -> ")
    name = max((name for name in MAINS if f"{line} ".startswith(f"{name} ")), key=len)
    arguments = line[len(name):].split()
    return MAINS[name], arguments, named or [word for word in arguments if word.startswith("--")][-1]


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_one_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)             # as if it were not installed
    (tmp_path / "file").touch()
    main, arguments, named = split(line)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert named in error and "a fault of this program" not in error
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "runs", "out"}
    assert (tmp_path / "file").stat().st_size == 0


def test_a_fault_of_ours_is_one_line_and_debug_shows_where(monkeypatch, tmp_path, capsys):
    def plot(*_):
        raise KeyError("oh")
    monkeypatch.setattr(curves, "read", plot)
    for more, lines in ([], 1), (["--debug"], 10):
        with pytest.raises(SystemExit) as stop:
            curves.main(["log", str(tmp_path / "out.png"), *more])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "error: KeyError: 'oh' (a fault of this program" in error
        assert ("in plot" in error) == bool(more) and (error.count("\n") == 1) == (not more)


class Found(Exception):
    """Carries the parser that a command would have read its arguments with."""


def parsers(name: str, monkeypatch) -> list:
    """The parser of a command and those of its sub-commands."""
    def found(parser, *_):
        raise Found(parser)
    for method in ("parse_known_args", "parse_known_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, found)
    with pytest.raises(Found) as caught:
        MAINS[name]([])
    parser, = caught.value.args
    inner = [one for action in parser._actions if isinstance(action, argparse._SubParsersAction)
             for one in action.choices.values()]
    return [parser, *inner]


@pytest.mark.parametrize("name", MAINS)
def test_every_option_is_explained_and_no_default_is_empty(name, monkeypatch):
    for parser in parsers(name, monkeypatch):
        text = parser.format_help()
        assert isinstance(parser, cli.Parser), parser.prog
        assert text.isascii() and not any(f"default: {odd})" in text for odd in ("", "None", "False", "[]")), text
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                assert len(action._choices_actions) == len({*action.choices.values()}), "each has a help text"
            else:
                assert action.help and action.help.count("default: ") <= 1, (parser.prog, action.dest)
        assert ") (default" not in text, text


FILES = ["sample.py", "train.py", "prepare.py", "evaluate.py", "bench.py", "docs/curves.py", "docs/walkthrough.py",
         "face/__init__.py", "toy/__main__.py", "toy/make.py", "toy/pretrain.py"]


@pytest.mark.parametrize("name", FILES)
def test_cli_is_imported_before_what_takes_seconds(name):
    body = ast.parse((ROOT / name).read_text(encoding="utf-8")).body
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
               for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [name for name in modules if name.split(".")[0] not in sys.stdlib_module_names][0] == "cli"
