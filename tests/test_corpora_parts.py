"""What the readers of corpora share: spans of sound files, json of any size, choices by hash, the end of a worker."""
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import made_corpora
import prepare
from corpora import corpus, files
from corpora.sound import Skip, Sound, read_sound
from data import Split

ROOT = Path(__file__).parent.parent


def sound_file(samples, rate, **form) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **form)
    return file.getvalue()


def test_sound_is_16_khz_mono_whatever_it_was(tmp_path):
    tone = np.sin(np.arange(48_000) / 20).astype(np.float32) / 2
    data = sound_file(np.stack([tone, tone / 2], 1), 48_000, format="WAV", subtype="FLOAT")
    (tmp_path / "tar").write_bytes(b"before" + data + b"after")
    for sound in (Sound("x.wav", data=data), Sound(tmp_path / "tar", member=(6, len(data)))):
        heard = read_sound(sound, 30)
        assert len(heard) == 16_000 and np.allclose(heard[100:-100], tone[::3][100:-100] * 0.75, atol=1e-3)
    assert len(read_sound(Sound("x.wav", 0.25, 0.5, data=data), 30)) == 4_000


@pytest.mark.parametrize("sound, reason", [
    ({}, None), ({"begin": 0.5}, None), ({"begin": 0.5, "end": 1.02}, None), ({"begin": 0.99}, "too short"),
    ({"begin": 1.5}, "unreadable sound"), ({"begin": 0.5, "end": 2}, "unreadable sound"), ({"end": 40}, "too long")])
def test_spans(sound, reason):
    data = sound_file(made_corpora.tone(1, 1), 16_000, format="FLAC")
    if reason is None:
        whole = read_sound(Sound("x", data=data), 30)
        cut = read_sound(Sound("x", data=data, **sound), 30)
        assert np.array_equal(cut, whole[round(16_000 * sound.get("begin", 0)):])
        return
    with pytest.raises(Skip) as skip:
        read_sound(Sound("x", data=data, **sound), 30)
    assert skip.value.reason == reason


@pytest.mark.parametrize("values, reason", [([np.nan] * 800, "unreadable sound"), ([1e12, -1e12] * 400, "unreadable sound"),
                                            ([0.1] * 16_001, "too long"), ([0.1] * 300, "too short")])
def test_samples_that_cannot_be_sound(values, reason):
    data = sound_file(np.array(values, np.float32), 16_000, format="WAV", subtype="FLOAT")
    with pytest.raises(Skip) as skip:
        read_sound(Sound("x", data=data), 1)
    assert skip.value.reason == reason


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_json_of_any_size_is_read_row_by_row(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "BLOCK", block)
    rows = [{"id": n, "text": 'a "]" [{,} ü \u2028'} for n in range(5)]
    text = json.dumps({"about": {"names": ["x"]}, "rows": rows, "more": [1]}, ensure_ascii=False, indent=1)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    for name, key in (("a.json", "rows"), ("b.json", None), ("c.jsonl", None)):
        assert [load() for _, load in files.json_rows(tmp_path / name, key)] == rows
    (tmp_path / "cut.json").write_text(text[:text.index('"id": 3')], encoding="utf-8")
    *whole, (where, load) = files.json_rows(tmp_path / "cut.json", "rows")
    assert [load() for _, load in whole] == rows[:3] and where == "cut.json after row 3"
    with pytest.raises(Skip, match="cut off"):
        load()
    assert len(list(files.json_rows(tmp_path / "b.json", "rows"))) == 1, "a row that fails"


def test_a_broken_row_is_not_read_to_the_end_of_the_world(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 100)
    monkeypatch.setattr(files, "LONGEST", 1000)
    (tmp_path / "a.json").write_text('[{"a": 1}, {"b": "' + "1" * 9000 + '"}]')
    assert [where for where, _ in files.json_rows(tmp_path / "a.json")] == ["a.json row 1", "a.json after row 1"]


def test_prompts_differ_and_stay_what_they_are():
    prompts = {corpus.asr(str(n), "x")["messages"][0]["content"][1]["text"] for n in range(100)}
    assert prompts == set(corpus.TRANSCRIBE) and corpus.asr("a", "x") == corpus.asr("a", "y") | {"answer": "x"}


def test_a_skip_survives_the_way_from_a_worker():
    skip = pickle.loads(pickle.dumps(Skip("too long", "a\nb")))
    assert (skip.reason, skip.detail) == ("too long", "a b")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux lists the processes of a process")
def test_workers_end_with_a_command_that_was_killed(tmp_path):
    """And the next one comes to the end, with another number of them."""
    for n in range(300):
        made_corpora.write(tmp_path / "in" / f"{n}.wav", made_corpora.tone(2, 1))
    (tmp_path / "in" / "t.csv").write_text("audio,text\n" + "".join(f"{n}.wav,x\n" for n in range(300)))
    words = ["corpus", "table", str(tmp_path / "in" / "t.csv"), "--out", str(tmp_path / "out"), "--workers"]
    program = f"import prepare; prepare.main({[*words, '2']})"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    samples = tmp_path / "out" / "train" / "samples.jsonl"
    while process.poll() is None and not (samples.exists() and samples.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for _ in range(200):
        if not any(group(pid) == process.pid for pid in filter(str.isdigit, os.listdir("/proc"))):
            break
        time.sleep(0.05)
    else:
        pytest.fail("a worker outlived its command")
    prepare.main([*words, "1"])
    assert sum(len(Split(tmp_path / "out" / split)) for split in ("train", "val")) == 300


def group(pid: str) -> int | None:
    try:
        return os.getpgid(int(pid))
    except OSError:
        return None


def test_endings_of_files_may_be_in_large_letters(tmp_path):
    for name in ("ZOOM0001.WAV", "b.wav", "c.wav.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in files.find(tmp_path, ".wav")] == ["ZOOM0001.WAV", "b.wav"]
    assert [path.name for path in files.find(tmp_path / "ZOOM0001.WAV", ".wav")] == ["ZOOM0001.WAV"]
