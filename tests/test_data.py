"""data.py: what is written is what is read, an interrupted writer goes on, and damage is noticed."""
import json

import numpy as np
import pytest

from data import Split, Writer


def sample(n, seed=0):
    random = np.random.default_rng((seed, n))
    return ({"id": f"s{n}", "task": "qa", "messages": [{"role": "user", "content": f"say {n}"}], "answer": f"{n} é"},
            {"audio": random.uniform(-1, 1, 100 + n).astype(np.float32), "units": random.integers(0, 16384, 5 + n),
             "face": random.random((12 + n, 52)).astype(np.float32)})


def write(directory, numbers=range(4), finish=True):
    with Writer(directory) as out:
        for n in numbers:
            row, arrays = sample(n)
            if row["id"] not in out:
                out.add(row, **arrays)
        if finish:
            out.finish(tokenizer="abc")


def test_what_is_written_is_what_is_read(tmp_path):
    write(tmp_path)
    split = Split(tmp_path, verify=True)
    assert len(split) == 4 and split.manifest["tokenizer"] == "abc"
    for n in (2, 0, 3):
        row, arrays = sample(n)
        got = split[n]
        assert {key: got[key] for key in row} == row
        np.testing.assert_array_equal(got["units"], arrays["units"])
        assert np.abs(got["audio"] - arrays["audio"]).max() <= 0.5 / 32767 * 1.001             # half a step of 16 bits
        assert np.abs(got["face"] - arrays["face"]).max() <= 2 ** -12                          # half a step below 1
        assert got["audio"].dtype == got["face"].dtype == np.float32 and got["units"].dtype == np.int64


def test_samples_share_an_answer_and_may_lack_arrays(tmp_path):
    with Writer(tmp_path) as out:
        row, arrays = sample(0)
        first = out.add(row, **arrays)
        out.add(row | {"id": "again"}, units=first["units"], face=first["face"])
        out.add({"id": "words", "task": "chat", "messages": [], "answer": "Hi."})
        out.finish()
    split = Split(tmp_path)
    np.testing.assert_array_equal(split[1]["units"], split[0]["units"])
    assert split[1]["audio"] is None and split[2]["units"] is None and split[2]["face"] is None
    assert (tmp_path / "units.u16").stat().st_size == 2 * len(arrays["units"])


@pytest.mark.parametrize("spoil", ["whole", "half a row", "half an array", "array without a row"])
def test_an_interrupted_writer_goes_on_and_ends_with_the_same_bytes(tmp_path, spoil):
    write(tmp_path / "at once")
    write(tmp_path / "broken", range(2), finish=False)
    rows = tmp_path / "broken" / "samples.jsonl"
    if spoil == "half a row":
        rows.write_bytes(rows.read_bytes()[:-9])
    elif spoil == "half an array":
        path = tmp_path / "broken" / "face.f16"
        path.write_bytes(path.read_bytes()[:-7])
    elif spoil == "array without a row":
        with open(tmp_path / "broken" / "audio.i16", "ab") as file:
            file.write(b"123")
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        Split(tmp_path / "broken")
    write(tmp_path / "broken")
    for file in (tmp_path / "at once").iterdir():
        assert (tmp_path / "broken" / file.name).read_bytes() == file.read_bytes(), file.name


def test_damage_is_noticed(tmp_path):
    write(tmp_path)
    path = tmp_path / "units.u16"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=f"has {len(whole) - 2} bytes, expected {len(whole)}"):
        Split(tmp_path)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match="checksum differs"):
        Split(tmp_path, verify=True)
    path.unlink()
    with pytest.raises(ValueError, match="has no bytes"):
        Split(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(ValueError, match="format 2, expected 1"):
        Split(tmp_path)


@pytest.mark.parametrize("row, arrays, says", [
    ({"task": "sing"}, {}, "expected a new id"), ({}, {"units": np.array([70000])}, "16-bit ids"), ({}, {"units": np.array([-1])}, "16-bit ids"),
    ({}, {"face": np.zeros((3, 51))}, r"face of shape \(3, 51\)"), ({}, {"audio": np.array([np.nan])}, "finite")])
def test_what_the_format_cannot_hold_is_refused(tmp_path, row, arrays, says):
    with Writer(tmp_path) as out, pytest.raises(ValueError, match=says):
        out.add({"id": "a", "task": "qa", "messages": [], "answer": ""} | row, **arrays)
