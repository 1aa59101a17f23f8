"""`prepare.py weights`: its command line and the tiny preset. What is converted: test_published.py."""
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import prepare
from model import ExOmni
from published_models import files, refused
from speech_tokenizer import SpeechTokenizer

ROOT = Path(__file__).parent.parent


def test_the_tiny_preset_answers_without_any_source(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("nothing is to be fetched"))
    prepare.main(["weights", "--preset", "tiny", "--out", str(tmp_path / "a")])
    prepare.main(["weights", "--preset", "tiny", "--out", str(tmp_path / "b"), "--seed", "0"])
    prepare.main(["weights", "--preset", "tiny", "--out", str(tmp_path / "c"), "--seed", "1"])
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    model = ExOmni.from_pretrained(tmp_path / "a")
    answer = model.generate([{"role": "user", "content": [{"type": "speech"}]}], torch.randn(8000), max_new_tokens=3)
    assert len(answer.units) and answer.face.isfinite().all() and answer.waveform.isfinite().all()
    units = SpeechTokenizer.from_pretrained(tmp_path / "a" / "speech_tokenizer").encode(torch.randn(16_000))
    assert int(units.max()) < model.config.generator.unit_vocab == model.speech_decoder.config.flow.vocab_size


@pytest.mark.parametrize("words, expected", [
    (["--preset", "qwen3-9b"], "preset 'qwen3-9b' is unknown, expected one of"),
    ([], "--preset"),
    (["--preset", "tiny", "--llm", "x"], "takes no llm"),
    (["--release", "x", "--llm", "y"], "not both")])
def test_arguments_that_cannot_be(tmp_path, capsys, words, expected):
    assert expected in refused(capsys, "weights", "--out", tmp_path / "out", *words)
    assert not list(tmp_path.iterdir())


def test_overwrite_replaces_checkpoints_only(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")
    (tmp_path / "file").write_text("2")
    for name in ("thesis", "file"):
        refused(capsys, "weights", "--preset", "tiny", "--out", tmp_path / name, "--overwrite")
    assert len(files(tmp_path)) == 2


def test_a_failed_swap_puts_the_old_checkpoint_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare.main(["weights", "--preset", "tiny", "--out", str(out)])
    before, rename = files(out), Path.rename

    def fail_once(path, target):
        if path.name == "new":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(SystemExit):
        prepare.main(["weights", "--preset", "tiny", "--out", str(out), "--overwrite"])
    assert files(out) == before and list(tmp_path.iterdir()) == [out]


def test_the_command_line(tmp_path):
    command = [sys.executable, ROOT / "prepare.py", "weights", "--preset", "tiny", "--out", tmp_path / "out"]
    done, again = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("wrote ") and not done.stderr
    assert again.returncode == 2 and again.stderr.startswith("error: ") and again.stderr.count("\n") == 1
