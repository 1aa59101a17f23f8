"""README.md and docs/walkthrough.md say what is so: files, names, figures, commands, and the code that they show."""
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from checkpoint import ABLATIONS, PRESETS
from data import Split
from model import ExOmni
from weights import shapes_only

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WALKTHROUGH = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "docs/walkthrough.md": WALKTHROUGH,
         "mini/README.md": (ROOT / "mini" / "README.md").read_text(encoding="utf-8")}
ROOMS = ("face", "corpora", "toy", "mini", "docs", "tests")


def section(text: str, title: str) -> str:
    """The text below a heading, up to the next of the same level or a higher one."""
    level = re.search(rf"^(#+) {re.escape(title)}$", text, re.M)[1]
    return re.split(rf"^#{{1,{len(level)}}} ", text.split(f"{level} {title}\n", 1)[1], flags=re.M)[0]


def output_of(*arguments, cwd=None) -> str:
    """What a Python command prints; it must succeed."""
    ran = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def fenced(text: str, language: str) -> list:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_code_files_that_are_named_exist(page):
    for name in set(re.findall(r"[\w/]+\.py\b", PAGES[page])):
        assert (ROOT / name).exists(), f"{page} names {name}"
    for name in set(re.findall(r"(?:docs|mini|tests|toy|face|corpora)/[\w/]+\.\w+", PAGES[page])):
        assert (ROOT / name).exists() or "runs/" + name in PAGES[page], f"{page} names {name}"


def test_every_file_of_the_street_and_every_room_is_on_the_map():
    rows = section(README, "Read these six files, in this order") + section(README, "The rest of the map")
    assert {path.name for path in ROOT.glob("*.py")} == set(re.findall(r"`(\w+\.py)`", rows))
    assert {f"{room}/" for room in ROOMS} <= set(re.findall(r"`(\w+/)`", rows))


def test_line_counts_of_the_six_files_are_within_a_tenth():
    rows = re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", section(README, "Read these six files, in this order"), re.M)
    assert len(rows) == 6
    for name, stated in rows:
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert abs(int(stated) - lines) <= lines / 10, f"{name} has {lines} lines, README.md says {stated}"


def test_the_first_two_bash_blocks_are_all_there_are():
    """.ci/run runs them."""
    assert len(fenced(README, "bash")) == 2
    assert "sample.py" in fenced(README, "bash")[0] and "pytest" in fenced(README, "bash")[1]


def test_names_of_code_in_the_tables_can_be_imported():
    names = re.findall(r"`((?:[a-z_0-9]+\.)+[A-Za-z_]+)(?:\(\))?`", section(README, "Paper -> code"))
    names = [name for name in names if not name.endswith((".py", ".html", ".mp4", ".json", ".png"))]
    assert len(names) > 10
    for name in names:
        parts = name.split(".")
        files = next(n for n in range(len(parts) - 1, 0, -1)
                     if (ROOT / "/".join(parts[:n])).with_suffix(".py").exists())
        found = importlib.import_module(".".join(parts[:files]))
        for part in parts[files:]:
            found = getattr(found, part)


def test_every_table_and_figure_of_the_paper_has_a_row():
    paper, rows = (ROOT / "docs/spec/paper.md").read_text("utf-8"), section(README, "Paper -> code")
    tables = {*re.findall(r"\bv[12] Table \d+", paper)}
    assert len(tables) > 10
    assert not [table for table in tables if table not in rows]
    assert not [figure for figure in re.findall(r"\bFig\. \d+", paper) if figure not in rows]


def test_ablations_table_has_the_ablations():
    assert re.findall(r"^\| `([\w-]+)` \| v", section(README, "Ablations"), re.M) == list(ABLATIONS)


def test_stage_tables_are_those_of_train():
    for recipe in ("v1", "v2"):
        columns = [f"{stage.epochs}, {stage.batch}, {stage.warmup:.1f}, {stage.accumulate}".replace(" 0.", " .")
                   for stage in train.STAGES[recipe].values()]
        assert "| " + " | ".join(columns) + " |" in README, recipe


def test_presets_table_has_their_sizes():
    for name, config in PRESETS.items():
        with shapes_only():
            model = ExOmni(config)
        head = 0 if model.lm_head is None else model.lm_head.weight.numel()
        count = lambda part: sum(p.numel() for p in part.parameters()) / 1e6
        sizes = [count(model.llm) + head / 1e6, count(model.speech_generator), count(model.face_decoder)]
        sizes = ", ".join(f"{size:,.1f}" for size in sizes)
        row = f"| `{name}` | {config.llm.hidden_size}, {config.llm.num_hidden_layers} | {sizes} M |"
        assert row in README, row


# Command -> where its options are written.
OPTIONS = {"-m face": ["face/__main__.py"], "-m toy": ["toy/make.py", "toy/pretrain.py"], "bench.py": ["bench.py"],
           "prepare.py": ["prepare.py",
             *(f"corpora/{path.name}" for path in (ROOT / "corpora").glob("*.py"))], "evaluate.py": ["evaluate.py"], "sample.py": ["sample.py"],
           "train.py": ["train.py", "runs.py"], "docs/walkthrough.py": ["docs/walkthrough.py"]}


@pytest.mark.parametrize("page", PAGES)
def test_options_that_are_named_exist(page):
    """In every command of ours that stands on the page, on one line or continued after a backslash."""
    lines = re.sub(r"\\\n\s*", "", PAGES[page]).splitlines()
    for line in lines:
        for name, files in OPTIONS.items():
            for command in re.findall(rf"(?<=[ /]){re.escape(name)}([^`#|]*)", line):
                code = "".join((ROOT / file).read_text("utf-8") for file in files)
                for option in re.findall(r"(?<= )--[a-z][a-z-]*", command):
                    assert f'"{option}"' in code, f"{page}: {name} has no {option}: {line}"


def test_walkthrough_stands_in_its_page():
    """Every line it prints, in order, and no other: the page shows it in blocks of ```text."""
    assert "".join(fenced(WALKTHROUGH, "text")).splitlines() == output_of(ROOT / "docs/walkthrough.py").splitlines()


def test_code_of_the_exercises_prints_what_their_text_expects():
    for code in fenced(WALKTHROUGH, "python"):
        printed = output_of("-c", code, cwd=ROOT)
        assert "".join(f"    {line}\n" for line in printed.splitlines()) in WALKTHROUGH, printed


def test_exercises_have_data_and_a_start(tmp_path):
    output_of(ROOT / "docs/walkthrough.py", "exercises", tmp_path / "x")
    split = Split(tmp_path / "x/data/train")
    assert len(split) > 1000 and {row["task"] for row in split.rows} == {"face"}
    fresh, trained = ExOmni.from_pretrained(tmp_path / "x/start"), ExOmni.from_pretrained(ROOT / "mini")
    assert torch.equal(fresh.llm.norm.weight, trained.llm.norm.weight)
    assert not torch.equal(fresh.face_decoder.out_head[1].weight, trained.face_decoder.out_head[1].weight)
