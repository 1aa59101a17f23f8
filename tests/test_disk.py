"""disk.py: values of json files are checked by a dataclass; what is written is valid and whole."""
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

import disk
from disk import Layers, Share, Size, Sizes


@dataclass
class Inner:
    size: Size
    rates: Sizes = field(default_factory=lambda: [1])


@dataclass
class Outer:
    inner: Inner
    count: int = 0
    share: Share = 0.5
    any_number: float = 0.0
    kind: Literal["a", "b"] = "a"
    name: str = ""
    flag: bool = False
    maybe: Size | None = 3
    grid: list[list[Layers]] = field(default_factory=list)
    ids: tuple[int, ...] = ()
    rest: dict = field(default_factory=dict)
    few: Annotated[list, 0, 2] = field(default_factory=list)

    def __post_init__(self):
        if self.count == 13:
            raise ValueError("count is 13, expected another")


def test_a_dataclass_comes_from_a_json_object():
    values = {"inner": {"size": 4, "rates": [2, 3], "unknown": None}, "count": -1, "share": 1, "maybe": None,
              "ids": [1, 2], "grid": [[1], []], "rest": {"x": 1}, "few": [1, "x"], "more": "ignored"}
    seen = disk.checked(Outer, values, "a.json")
    assert seen == Outer(Inner(4, [2, 3]), -1, 1.0, maybe=None, ids=(1, 2), grid=[[1], []], rest={"x": 1}, few=[1, "x"])
    assert type(seen.share) is float


@pytest.mark.parametrize("values, words", [
    ({}, "field inner is missing, expected an object"),
    ({"inner": {}}, "field inner.size is missing, expected a whole number from 1 to 1048576"),
    ({"inner": 5}, "field inner is 5, expected an object"),
    ({"inner": {"size": 0}}, "field inner.size is 0, expected a whole number from 1 to 1048576"),
    ({"inner": {"size": 1, "rates": []}}, "field inner.rates is a list of 0, expected a list of 1 to 64"),
    ({"inner": {"size": 1, "rates": [1, "2"]}}, "field inner.rates[1] is '2', expected a whole number"),
    ({"count": True}, "field count is True, expected a whole number"),
    ({"count": 1.0}, "field count is 1.0, expected a whole number"),
    ({"count": 1 << 63}, "field count is 9223372036854775808, expected a whole number"),
    ({"count": 13}, "a.json: count is 13, expected another"),
    ({"share": 1.01}, "field share is 1.01, expected a finite number from 0 to 1"),
    ({"any_number": float("nan")}, "field any_number is nan, expected a finite number"),
    ({"any_number": 10 ** 400}, "field any_number is 1000000000"),
    ({"any_number": False}, "field any_number is False, expected a finite number"),
    ({"kind": "c"}, "field kind is 'c', expected one of 'a', 'b'"),
    ({"kind": ["a"]}, "field kind is a list of 1, expected one of 'a', 'b'"),
    ({"name": None}, "field name is None, expected a text"),
    ({"flag": 0}, "field flag is 0, expected true or false"),
    ({"maybe": "x"}, "field maybe is 'x', expected a whole number from 1 to 1048576 or null"),
    ({"grid": [[1], [0]]}, "field grid[1][0] is 0, expected a whole number from 1 to 256"),
    ({"ids": {"a": 1}}, "field ids is an object of 1, expected a list"),
    ({"rest": []}, "field rest is a list of 0, expected an object"),
    ({"few": [1, 2, 3]}, "field few is a list of 3, expected a list of 0 to 2"),
])
def test_a_wrong_value_is_named(values, words):
    with pytest.raises(ValueError) as caught:
        disk.checked(Outer, ({"inner": {"size": 1}} if "inner" not in values and values else {}) | values, "a.json")
    assert words in str(caught.value) and str(caught.value).startswith("a.json: ") and "\n" not in str(caught.value)


def test_one_value_has_the_same_messages():
    assert disk.typed({"step": 3}, "step", int, "state.json") == 3
    assert disk.typed({}, "step", int, "state.json", 7) == 7
    with pytest.raises(ValueError, match="state.json: field step is missing, expected a whole number"):
        disk.typed({}, "step", int, "state.json")
    with pytest.raises(ValueError, match="state.json: field step is 'x', expected a whole number"):
        disk.typed({"step": "x"}, "step", int, "state.json", 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"loss": [-float("inf")]}])
def test_nan_and_infinity_are_never_written(tmp_path, value):
    disk.write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="a.json cannot be written as json"):
        disk.write_json(tmp_path / "a.json", {"x": value})
    assert disk.read_json(tmp_path / "a.json") == {"old": 1} and os.listdir(tmp_path) == ["a.json"]


def test_file_names_that_are_no_utf_8_can_be_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    disk.write_json(tmp_path / "a.json", {"name": name, "ü": "é"})
    assert disk.read_json(tmp_path / "a.json") == {"name": name, "ü": "é"}
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["ü"] == "é"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none")
def test_what_may_never_end_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="is a pipe or a device: expected a json file"):
        disk.read_json(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="is a directory: expected a json file"):
        disk.read_json(tmp_path)
    (tmp_path / "large.json").write_text("{}   ")
    monkeypatch.setattr(disk, "TEXT_BYTES", 4)
    with pytest.raises(ValueError, match="expected a json file large.json of at most"):
        disk.read_json(tmp_path / "large.json")


def test_a_failed_replacement_leaves_nothing_behind(tmp_path):
    name = tmp_path / ("n" * 250 + ".json")                             # as long as file systems take
    with pytest.raises(OSError), disk.replacing(name) as temporary:
        temporary.write_text("half of")
        raise OSError("the disk is full")
    assert not list(tmp_path.iterdir())
    disk.write_json(name, {})
    assert list(tmp_path.iterdir()) == [name]


def test_what_is_read_is_not_replaced(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    disk.refuse_to_replace([None, tmp_path / "a", tmp_path / "none"], tmp_path / "b")
    for out in ("a", "link"):
        with pytest.raises(ValueError, match=f"{out} is read here and would be replaced"):
            disk.refuse_to_replace([tmp_path / "a"], tmp_path / out)


def test_a_key_that_is_twice_in_an_object_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text('{"rope": 1, "deep": {"theta": 10.0, "other": 2, "theta": 1e6}}')
    with pytest.raises(ValueError, match="a.json is not valid json .*'theta' twice"):
        disk.read_json(tmp_path / "a.json")


def test_a_key_that_is_twice_among_many_is_found_at_once(tmp_path):
    pairs = [f'"k{i}": {i}' for i in range(200_000)]
    (tmp_path / "vocab.json").write_text("{" + ", ".join([*pairs, pairs[-1]]) + "}")
    begun = time.process_time()
    with pytest.raises(ValueError, match="'k199999' twice"):
        disk.read_json(tmp_path / "vocab.json")
    assert time.process_time() - begun < 10, "counting each name takes minutes"


def test_a_lock_leaves_no_directory_that_it_made(tmp_path):
    (tmp_path / "there").mkdir()
    with disk.locked(tmp_path / "there" / "a" / "b"):
        assert (tmp_path / "there" / "a" / "b" / ".lock").exists()
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]


@pytest.mark.parametrize("make, says", [(os.mkfifo, "is a pipe"), (os.mkdir, "is a directory"),
                                        (lambda path: os.symlink("nowhere", path), "not found .it is a link")])
def test_a_lock_that_is_none_is_named(tmp_path, make, says):
    make(tmp_path / ".lock")
    with pytest.raises((ValueError, OSError), match=f".lock {says}"), disk.locked(tmp_path):
        pass


def test_a_lock_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    host = socket.gethostname()[:40]
    for name in (f".new.{killed.pid}@{host}.12", f".new.{os.getppid()}@{host}.12", ".new.1@another.12", ".new.mine"):
        (tmp_path / name).touch()
    with disk.locked(tmp_path):
        left = sorted(path.name for path in tmp_path.glob(".new.*"))
    assert left == sorted([f".new.{os.getppid()}@{host}.12", ".new.1@another.12", ".new.mine"])


def test_a_torn_lock_is_nobodys(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\0" * 9)
    with disk.locked(tmp_path):
        pass


def test_a_lock_on_a_full_disk_is_named(tmp_path):
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with pytest.raises(OSError) as error, disk.locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.filename == str(tmp_path / ".lock")
