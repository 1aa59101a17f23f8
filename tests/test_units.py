"""`prepare.py units`: which answers get them, that they are the tokenizer's own, that no kill loses or changes any."""
import argparse
import os
import shutil
import signal
import socket
import traceback
from pathlib import Path

import numpy as np
import pytest

import prepared
from corpora import adding, units
from data import Split, Writer, check, fingerprint, rows_of
from model import ExOmni
from speech_tokenizer import SpeechTokenizer

LISTEN, SAY = ([{"role": "user", "content": c}] for c in ([{"type": "speech"}], "Read aloud: so"))
LENGTHS = [5000, 6400, 16_000, 5100, 20_001]        # samples; two of them have as many units


def sounds(seed=0):
    random = np.random.default_rng(seed)
    return [0.3 * random.standard_normal(n).clip(-3, 3) for n in LENGTHS]


def write(directory, **about):
    with Writer(directory) as out:
        for n, sound in enumerate(sounds()):
            row = {"task": "tts", "messages": SAY, "answer": f"Answer {n}."}
            shared = out.add(row | {"id": f"t{n}"}, answer_audio=sound)["answer_audio"]
            out.add(row | {"id": f"q{n}", "task": "qa", "messages": LISTEN}, audio=sound[::2], answer_audio=shared)
            out.add(row | {"id": f"a{n}", "task": "asr", "messages": LISTEN}, audio=sound)
        out.add({"id": "mute", "task": "qa", "messages": SAY, "answer": "No sound."})
        out.finish(**about)
    return directory


def run(*words):
    """The command, as prepare.py runs it."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    units.add_units(commands)
    args = parser.parse_args(["units", *map(str, words)])
    args.command(args)


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != prepared.MEMORY}


@pytest.fixture(scope="module")
def done(tmp_path_factory, checkpoint):
    """A split with units and without their progress; and the one it was."""
    folder = tmp_path_factory.mktemp("units")
    before = write(folder / "before")
    shutil.copytree(before, folder / "data" / "train")
    run(folder / "data", "--checkpoint", checkpoint, "--device", "cpu", "--from-asr")
    return folder / "data" / "train", before


def test_units_are_those_of_each_clip_alone(done, checkpoint):
    split, tokenizer = Split(done[0], verify=True), SpeechTokenizer.from_pretrained(checkpoint / "speech_tokenizer")
    samples = {row["id"]: split[n] for n, row in enumerate(split.rows)}
    expected = [tokenizer.encode(samples[f"a{n}"]["audio"]).tolist() for n in range(len(LENGTHS))]
    for n, ids in enumerate(expected):
        assert samples[f"t{n}"]["units"].tolist() == samples[f"q{n}"]["units"].tolist() == ids
        assert samples[f"a{n}-tts"]["units"].tolist() == ids and samples[f"a{n}"]["units"] is None
    assert samples["mute"]["units"] is None
    assert len(split.arrays["units"]) == 2 * sum(map(len, expected)), "an answer that is shared is stored once"
    assert split.manifest["unit_vocab"] == 96 and split.manifest["speech_tokenizer"] == fingerprint(checkpoint)


def test_rows_read_aloud_are_what_stage_two_learns_from(done, checkpoint):
    split = Split(done[0])
    check(split, rows_of(split, ("tts", "asr", "qa")), ExOmni.from_pretrained(checkpoint))
    row = next(row for row in split.rows if row["id"] == "a2-tts")
    assert row["messages"][0]["content"].endswith("Answer 2.") and row["answer"] == "Answer 2." and "audio" not in row


def test_a_second_time_nothing_is_done(done, checkpoint, capsys):
    before = content(done[0])
    (done[0] / ".adding-units-0123abcd").mkdir()            # of a command that was killed at its end
    run(done[0], "--checkpoint", checkpoint, "--device", "cpu", "--from-asr")
    assert content(done[0]) == before and "units for 0 answers" in capsys.readouterr().out
    assert not [path for path in done[0].iterdir() if path.is_dir()]


def test_units_of_another_tokenizer_are_replaced_only_when_asked(tmp_path, done, checkpoint):
    data, other = tmp_path / "data", tmp_path / "other"
    shutil.copytree(done[0], data)
    shutil.copytree(checkpoint, other)
    tokenizer = SpeechTokenizer.from_pretrained(other / "speech_tokenizer")
    tokenizer.codebook.weight.data = tokenizer.codebook.weight.data.flip(0)
    tokenizer.save_pretrained(other / "speech_tokenizer")
    with pytest.raises(ValueError, match="speech tokenizer .* --overwrite replaces them"):
        run(data, "--checkpoint", other, "--device", "cpu")
    assert content(data) == content(done[0])
    run(data, "--checkpoint", other, "--device", "cpu", "--overwrite")
    old, new = Split(done[0]), Split(data, verify=True)
    assert [95 - u for u in old[0]["units"]] == new[0]["units"].tolist()
    assert len(new.arrays["units"]) == len(old.arrays["units"]), "nothing is left of the old ones"


def test_data_that_cannot_have_units_is_refused(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match="holds no prepared data"):
        run(tmp_path, "--checkpoint", checkpoint)
    with Writer(tmp_path / "data") as out:
        out.add({"id": "f", "task": "face", "messages": SAY, "answer": ""}, answer_audio=sounds()[0],
                face=np.zeros((8, 52)))
        out.finish()
    with pytest.raises(ValueError, match="sample f has 8 face frames, its sound needs 9"):
        run(tmp_path / "data", "--checkpoint", checkpoint, "--device", "cpu")
    with pytest.raises(FileNotFoundError, match="speech_tokenizer"):
        run(tmp_path / "data", "--checkpoint", tmp_path, "--device", "cpu")


# ---- kills --------------------------------------------------------------------------------------------------------

def forked(*jobs):
    """Each job in a process of its own, at once; their exit codes."""
    children = []
    for job in jobs:
        child = os.fork()
        if not child:
            try:
                job()
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.parametrize("clips", [0, 2, 4])
def test_killed_between_clips_the_end_is_the_same_bit_for_bit(tmp_path, done, checkpoint, monkeypatch, clips):
    words = [tmp_path / "data", "--checkpoint", checkpoint, "--device", "cpu", "--from-asr"]
    shutil.copytree(done[1], tmp_path / "data")
    add, left = adding.Adding.add, list(range(clips))

    def killed_after(self, number, array):
        if not left:
            self.data.write(b"half of it")
            self.data.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        left.pop()
        add(self, number, array)

    monkeypatch.setattr(adding.Adding, "add", killed_after)
    monkeypatch.setattr(units, "BATCH", 1)
    assert forked(lambda: run(*words)) == [-signal.SIGKILL]
    assert content_of_files(tmp_path / "data") == content_of_files(done[1]), "until the end the data is the old data"
    made = []
    monkeypatch.setattr(adding.Adding, "add", lambda self, *what: made.append(what) or add(self, *what))
    run(*words)
    assert content_of_files(tmp_path / "data") == content_of_files(done[0])
    assert len(made) == 2 * len(LENGTHS) - clips, "what was made before the kill is not made again"


def content_of_files(directory):
    return {name: (directory / name).read_bytes() for name in ("manifest.json", *prepared.FILES)}


@pytest.mark.parametrize("moves", range(4))
def test_killed_while_the_files_are_replaced_a_reader_finds_old_or_new(tmp_path, done, checkpoint, monkeypatch, moves):
    """moves: how many renames are done before the kill; the first decides."""
    shutil.copytree(done[1], tmp_path / "data")
    left, replace = [moves], os.replace

    def killed(source, target):
        if prepared.READY in (Path(source).parent.name, Path(target).name):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        replace(source, target)
    monkeypatch.setattr(prepared.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "data", "--checkpoint", checkpoint, "--device", "cpu", "--from-asr")
    monkeypatch.undo()
    Split(tmp_path / "data", verify=True)
    assert content_of_files(tmp_path / "data") == content_of_files(done[bool(moves) ^ 1])


def test_two_processes_make_the_same_files(tmp_path, done, checkpoint, monkeypatch):
    shutil.copytree(done[1], tmp_path / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def process(rank):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        run(tmp_path / "data", "--checkpoint", checkpoint, "--device", "cpu", "--from-asr")
    assert forked(lambda: process(0), lambda: process(1)) == [0, 0]
    assert content_of_files(tmp_path / "data") == content_of_files(done[0])


def test_damaged_progress_is_named_in_one_line(tmp_path, done):
    shutil.copytree(done[1], tmp_path / "data")
    split = Split(tmp_path / "data")
    with adding.Adding(split, "units", {0: "a", 3: "b"}, "me", adding.one_by_one(lambda n: 1)) as work:
        work.add(0, np.arange(3))
    index = next(work.directory.glob("*.txt"))
    index.write_bytes(b"zero 3\n")
    with pytest.raises(ValueError, match="0.txt is damaged: remove .* and run the command again"):
        adding.Adding(split, "units", {0: "a", 3: "b"}, "me", adding.one_by_one(lambda n: 1))
    assert adding.Adding(split, "units", {0: "a"}, "other", adding.one_by_one(lambda n: 1)).before == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path, done):
    shutil.copytree(done[1], tmp_path / "data")
    with pytest.raises(OSError, match="cannot be written .*: make room and run the same command again"):
        with adding.Adding(Split(tmp_path / "data"), "units", {0: 0, 3: 3}, "me", adding.one_by_one(abs)) as work:
            work.add(0, np.arange(3))
            work.data = open("/dev/full", "ab")
            work.add(3, np.arange(9000))
    again = adding.Adding(Split(tmp_path / "data"), "units", {0: 0, 3: 3}, "me", adding.one_by_one(abs))
    assert again.before.keys() == {0} and again.jobs == [[3]]
