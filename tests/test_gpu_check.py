"""tests/gpu_check.py goes through its sections at tiny size on a CPU. Speeds are for a GPU to show."""
import os
import re
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest
import torch

from gpu_check import SECTIONS, main
from gpu_sections import DATASHEET, FIGURES, largest_batch, table

SCRIPT = Path(__file__).with_name("gpu_check.py")


def run(*arguments, **environment):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True,
                          env=os.environ | environment)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of all sections, where soundfile and soxr cannot be imported: the script has to do without."""
    directory = tmp_path_factory.mktemp("gpu_check")
    (directory / "sitecustomize.py").write_text("import sys\nsys.modules.update(soundfile=None, soxr=None)\n")
    done = run("--device", "cpu", "--tiny", "--out", directory / "gpu.md", PYTHONPATH=str(directory))
    assert done.returncode == 0, done.stdout + done.stderr
    return (directory / "gpu.md").read_text(encoding="utf-8")


def rows_of(report: str, first: str) -> list:
    """The rows of all tables whose first column is called so, as dicts."""
    rows, head = [], None
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or set(line) <= set("|-"):
            head = head if cells else None
        elif head is None:
            head = cells
        elif head[0] == first:
            rows.append(dict(zip(head, cells)))
    return rows


def positive(row: dict, *names) -> None:
    for name in names:
        value = float(row[name].replace(",", ""))
        assert isfinite(value) and value > 0, f"{name}: {row[name]}"


def test_every_section_is_there_and_none_failed(report):
    assert re.findall("^## (.*)$", report, re.MULTILINE) == [title for _, title, _ in SECTIONS.values()]
    assert "Failed" not in report and "Not measured" not in report
    assert torch.__version__ in report and "python tests/gpu_check.py --device cpu --tiny" in report


def test_golden_tests_pass_on_the_device(report):
    rows = rows_of(report, "golden tests in float32")
    assert [row["golden tests in float32"] for row in rows] == ["test_golden_ex_omni.py", "test_golden_glm4_voice.py"]
    for row in rows:
        positive(row, "passed")
        assert row["failed"] == "0"


def test_decoding_has_speed_share_and_memory(report):
    rows = rows_of(report, "decoding, bfloat16")
    assert [row["how"] for row in rows] == ["eager"]                                    # a CPU has no graphs
    positive(rows[0], "ms per token", "tokens/s", "GB per token", "% of bandwidth", "peak GiB")


def test_the_answer_has_every_figure_beside_the_paper_s(report):
    rows = {row["figure"]: row for row in rows_of(report, "figure")}
    assert list(rows) == list(FIGURES)
    for row in rows.values():
        positive(row, "here")
    assert {name: rows[name]["paper"] for name in ("RTF", "speech TTFT", "face latency")} == {
        "RTF": "2.158", "speech TTFT": "0.029", "face latency": "0.012"}
    seconds = {name: float(row["here"].replace(",", "")) for name, row in rows.items()}
    assert seconds["first text token"] < seconds["text"] < seconds["speech TTFT"] < seconds["first sound"]
    assert seconds["face latency"] + seconds["waveform"] < seconds["all"]


def test_training_has_time_mfu_memory_and_the_attention_that_ran(report):
    rows = rows_of(report, "training, stage IV")
    assert [row["activations"] for row in rows] == ["kept", "recomputed"]
    for row in rows:
        positive(row, "ms per step", "LLM positions/s", "units/s", "TFLOP per step", "MFU %", "peak GiB")
    calls = {row["attention in one step"]: int(row["calls"]) for row in rows_of(report, "attention in one step")}
    assert calls["flash_attention_for_cpu"] >= 4 and calls["flash_attention_for_cpu_backward"] >= 4


@pytest.mark.parametrize("arguments, reason", [([], "no GPU"), (["--device", "cpu", "--tiny"], "give --out")])
def test_without_a_gpu_one_line_says_so_and_docs_gpu_md_is_left_alone(monkeypatch, capsys, arguments, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert end.value.code == 2 and reason in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_section_that_fails_says_why_and_the_others_are_measured(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.update(train=None)\n")
    out = tmp_path / "gpu.md"
    done = run("--device", "cpu", "--tiny", "--only", "training", "decoding", "--out", out, PYTHONPATH=str(tmp_path))
    text = out.read_text(encoding="utf-8")
    assert done.returncode == 1 and "1 of 2 sections failed" in done.stdout
    assert re.search(r"\*\*Failed:\*\* ModuleNotFoundError: .*train", text) and rows_of(text, "decoding, bfloat16")


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    monkeypatch.setattr("gpu_sections.forget_peak", lambda device: None)

    def step(B):
        if B > 2:
            raise torch.cuda.OutOfMemoryError(f"{B} samples")
        return f"{B} samples"
    assert largest_batch(step, "cuda", 8) == (2, "2 samples")


def test_a_table_refuses_what_is_not_finite():
    assert table(["a", "b"], [["x", 12345.678]]).splitlines()[-1] == "| x | 12,346 |"
    with pytest.raises(ValueError, match="nan"):
        table(["a", "b"], [["x", float("nan")]])


def test_the_datasheet_names_this_kind_of_gpu_once():
    assert sum(key in "NVIDIA H100 80GB HBM3" for key in DATASHEET) == 1
