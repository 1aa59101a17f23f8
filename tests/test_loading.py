"""loading.py: which samples a step has, cut how, read by whom; and data that is opened without reading its rows."""
import multiprocessing
import os
import pickle
import shutil
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import dataloader

import cli
import loading
import prepared
import train
from data import Split, Writer, fitting, rows_of
from loading import (Mixture, Steps, Stream, cost, fitting_numbers, lengths_of, micro_batches, open_mixture, packed,
                     parse_data, read_ahead, sample_order, shares, token_rates)
from model import ExOmni
from tiny_training import SPEECH, TEXT, base, command, data, go, refuse, rows, same_training, step_in, write_data
from tokenizer import with_system

STATE = {"step": 0, "seen": 0, "batch": 6, "losses": ["units"], "seed": 3}


@pytest.fixture(scope="module")
def model(base):
    return ExOmni.from_pretrained(base)


def aged(directory):
    """Its files were written long ago: what was read through is remembered."""
    long_ago = time.time_ns() - 10 ** 10
    for path in directory.iterdir():
        os.utime(path, ns=(long_ago, long_ago))
    time.sleep(0.01)
    Split(directory)
    return directory


# ---------------------------------------------------------------- the index

def test_data_is_opened_without_parsing_its_rows(tmp_path, monkeypatch):
    write_data(tmp_path, 4, 0)
    expected = list(Split(tmp_path).rows)
    parsed, parse = [], prepared.parse_row
    monkeypatch.setattr(prepared, "parse_row", lambda *args: parsed.append(1) or parse(*args))
    split = Split(tmp_path)
    assert len(split) == 20 and not parsed
    assert [split.rows[i] for i in range(-20, 20)] == 2 * expected and len(parsed) == 40
    for i, row in enumerate(expected):
        for name in prepared.ENTRIES:
            known = tuple(split.column(f"{name} {what}", [i])[0] for what in ("start", "length"))
            assert known == tuple(row.get(name, (0, -1)))
    assert [prepared.TASKS[n] for n in split.column("task")] == [row["task"] for row in expected]


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b""),
                                   lambda path: path.write_bytes(bytes(8) + path.read_bytes()[8:])],
                         ids=("missing", "of nothing", "of another format"))
def test_a_missing_index_is_made_again_the_same(tmp_path, spoil):
    write_data(tmp_path, 2, 0)
    path = tmp_path / prepared.INDEX
    whole = path.read_bytes()
    spoil(path)
    assert len(Split(tmp_path)) == 10 and path.read_bytes() == whole


def test_a_damaged_index_is_named(tmp_path):
    write_data(tmp_path, 2, 0)
    path = tmp_path / prepared.INDEX
    whole = path.read_bytes()
    for at in (8, prepared.HEAD.itemsize - 1, prepared.HEAD.itemsize, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        with pytest.raises(ValueError, match="samples.index is damaged .*: remove it"):
            Split(tmp_path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="samples.index is damaged"):
        Split(tmp_path)


def test_an_index_that_cannot_be_written_is_kept_in_memory(tmp_path, monkeypatch):
    write_data(tmp_path, 2, 0)
    (tmp_path / prepared.INDEX).unlink()
    monkeypatch.setattr(prepared.disk, "replacing", lambda _: (_ for _ in ()).throw(PermissionError("read-only")))
    assert Split(tmp_path).rows[3]["id"] == "chat0" and not (tmp_path / prepared.INDEX).exists()


def test_data_that_changes_while_it_is_read_is_named(tmp_path):
    split = Split(write_data(tmp_path, 2, 0))
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"Yes."', b'"Yes!!"', 1))
    with pytest.raises(ValueError, match="samples.jsonl line 1, sample asr0 is not what it was"):
        split.rows[0]
    with pytest.raises(ValueError, match="samples.jsonl line 3"):
        split[2]
    os.truncate(tmp_path / "audio.i16", 20)
    with pytest.raises(ValueError, match="audio.i16 has become shorter"):
        split.read("audio", 0, 11)


def test_a_writers_rows_are_read_from_its_file(tmp_path):
    write_data(tmp_path, 2, 0)
    expected = {row["id"]: row for row in Split(tmp_path).rows}
    with Writer(tmp_path) as out:
        assert dict(out.rows) == expected and len(out.rows) == 10
        new = out.add({"id": "new", "task": "chat", "messages": TEXT, "answer": "é"})
        assert out.rows["new"] == new and list(out.rows)[-1] == "new"


# ---------------------------------------------------------------- samples that cannot be learnt from

def with_bad_rows(directory):
    write_data(directory, 2, 0)
    with Writer(directory) as out:
        for name, task, messages, answer, arrays in (
                ("long", "asr", SPEECH, "x", {"audio": np.zeros(16_000 * 410)}), ("mute", "asr", SPEECH, "x", {}),
                ("silent", "asr", SPEECH, "x", {"audio": np.zeros(0)}), ("wordless", "chat", TEXT, "", {}),
                ("no units", "tts", TEXT, "x", {}), ("wordy", "tts", TEXT, "x" * 9000, {"units": np.zeros(9, int)}),
                ("fast", "face", TEXT, "x", {"units": np.zeros(5, int), "face": np.zeros((13, 52))}),
                ("typed", "asr", TEXT, "x", {"audio": np.zeros(100)}),
                ("slow", "tts", TEXT, "x", {"units": np.zeros(4095, int)})):
            out.add({"id": name, "task": task, "messages": messages, "answer": answer}, **arrays)
        out.finish(unit_vocab=96)
    return directory


def test_broken_samples_are_skipped_and_counted(model, tmp_path):
    split = Split(with_bad_rows(tmp_path))
    kept, skipped = fitting(split, np.arange(len(split)), model)
    assert kept.tolist() == list(range(10))
    assert {reason: count for reason, (count, _) in skipped.items()} == {
        "incomplete": 2, "empty": 2, "too long": 3, "face unlike its units": 1, "speech without sound": 1}
    firsts = [first.split(": ", 1)[1] for _, first in skipped.values()]
    assert [first.split()[1].rstrip(",:") for first in firsts] == ["mute", "silent", "long", "fast", "typed"]
    assert firsts[1] == "sample silent has an empty audio"


def test_long_texts_are_told_by_their_tokens(model, tmp_path):
    """Bytes are only the first look: a text whose tokens fit is kept."""
    limit = model.config.llm.max_position_embeddings
    tokens = lambda answer: len(model.tokenizer.encode_chat(with_system(TEXT)) + model.tokenizer.encode(answer)) + 1
    fits, beyond = ("a" * (limit - tokens("") + more) for more in (0, 1))
    assert (tokens(fits), tokens(beyond)) == (limit, limit + 1)
    with Writer(tmp_path) as out:
        for name, answer in (("fits", fits), ("beyond", beyond)):
            out.add({"id": name, "task": "chat", "messages": TEXT, "answer": answer})
        out.finish()
    kept, skipped = fitting(Split(tmp_path), [0, 1], model)
    assert kept.tolist() == [0] and "beyond" in skipped["too long"][1]


def test_a_training_says_what_it_leaves_out_and_goes_on(base, tmp_path, capsys):
    for name in ("train", "val"):
        with_bad_rows(tmp_path / name)
    go(base, tmp_path, tmp_path / "out", "--steps", 2, stage=1)
    printed = capsys.readouterr().out
    assert step_in(tmp_path / "out") == 2 and f"2 samples in {tmp_path}/train, 2 in {tmp_path}/val" in printed
    assert f"left out of {tmp_path}/train: 1 too long; the first: {tmp_path}/train: sample long has 410.0 s" in printed
    refuse(capsys, [*command(damaged(tmp_path), base, tmp_path / "next", 1), "--anyway"], "audio.i16 is damaged")


def damaged(directory):
    path = directory / "train" / "audio.i16"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    return directory


# ---------------------------------------------------------------- several directories

@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Two directories of 4 and 2 tts samples."""
    work = tmp_path_factory.mktemp("mixture")
    return Mixture([Split(write_data(work / str(n), n, n)) for n in (4, 2)], [1.0, 1.0])


def test_data_is_named_with_its_weight(tmp_path):
    (tmp_path / "a=2").mkdir()
    found = parse_data([f"{tmp_path}/a", f"{tmp_path}/b=.5", f"{tmp_path}/a=2"])
    assert [(path.name, weight) for path, weight in found] == [("a", 1), ("b", 0.5), ("a=2", 1)]
    for wrong in ("a=0", "a=nan", "a=x", "a=1e9"):
        with pytest.raises(ValueError, match=f"--data {wrong}: expected DIRECTORY"):
            parse_data([wrong])


def test_a_mixture_is_its_splits_one_after_the_other(mixture, model):
    first, second = mixture.splits
    numbers = rows_of(mixture, ["tts"])
    assert numbers.tolist() == [1, 6, 11, 16, 21, 26] and len(mixture) == 30
    assert mixture[21]["id"] == second[1]["id"] and mixture[16]["id"] == first[16]["id"]
    assert mixture.column("units length", [21, 1]).tolist() == [second.rows[1]["units"][1], first.rows[1]["units"][1]]
    assert fitting_numbers(mixture, numbers, model)[0].tolist() == numbers.tolist()
    assert str(mixture) == f"{first.directory} + {second.directory}"


@pytest.mark.parametrize("weights, epoch", [((1, 1), 6), ((1, 3), 10), ((.5, 2), 6), ((2.5, .5), 11)])
def test_an_epoch_has_each_sample_as_often_as_its_weight_says(mixture, weights, epoch):
    weighted, numbers = Mixture(mixture.splits, weights), rows_of(mixture, ["tts"])
    stream = Stream(weighted, numbers, 0)
    assert len(stream) == epoch
    seen = stream.at(0, 4 * epoch)
    for start, count, weight in ((0, 4, weights[0]), (20, 2, weights[1])):
        own = [number for number in numbers.tolist() if start <= number < start + 5 * count]
        assert [seen.count(number) for number in own] == [4 * weight] * count, "over four epochs"
        for n in range(4):
            part = seen[n * epoch:(n + 1) * epoch]
            assert sum(part.count(number) for number in own) == weight * count
            assert max(map(part.count, own)) - min(map(part.count, own)) <= 1
    assert stream.at(7, 9) == seen[7:16], "any part of it can be asked for"
    with pytest.raises(ValueError, match="an epoch has no sample"):
        Stream(Mixture(mixture.splits, [0.01, 0.01]), numbers, 0)


def test_one_directory_is_the_stream_it_always_was(mixture):
    one, numbers = Mixture(mixture.splits[:1], [1.0]), rows_of(mixture.splits[0], ["tts"])
    assert Stream(one, numbers, 5).at(3, 9) == sample_order(numbers, 5, 3, 9)


def test_a_training_on_two_directories_goes_on_where_it_was(base, data, tmp_path, capsys):
    write_data(tmp_path / "more/train", 3, 4)
    write_data(tmp_path / "more/val", 2, 5)
    more = ("--data", f"{tmp_path}/more=2", "--steps", 4, "--recipe", "v1")
    go(base, data, tmp_path / "once", *more)
    go(base, data, tmp_path / "twice", *more, "--stop-at", 3)
    assert f"8 samples in {data}/train + {tmp_path}/more/train x 2, 5 in" in capsys.readouterr().out
    train.main(["--resume", "--out", str(tmp_path / "twice"), "--log-every", "1", "--val-every", "100"])
    same_training(tmp_path / "once", tmp_path / "twice")
    refuse(capsys, ["--resume", "--out", str(tmp_path / "twice"), "--data", str(data)], "is not the data that")


# ---------------------------------------------------------------- micro-batches

def log_normal(seed, sigma, count=128):
    """About (text, units) of clips of about 6 s."""
    random = np.random.default_rng(seed)
    seconds = random.lognormal(np.log(6), sigma, count).clip(.5, 60)
    text = np.round(3 * seconds * random.normal(1, .15, count).clip(.5, 1.5))
    return np.stack([40 + text, np.round(12.5 * seconds) + text], 1)


@pytest.mark.parametrize("batch, sigma, accumulate, balance", [
    (128, 0.5, 1, 0.98), (128, 0.8, 1, 0.98), (32, 0.5, 1, 0.93), (32, 0.8, 1, 0.9), (32, 0.5, 4, 0.95)])
def test_little_padding_and_even_work_on_log_normal_lengths(batch, sigma, accumulate, balance):
    """For 8 processes. Of 32 wide ones the longest is often more than a process's part: no cut would reach 0.96."""
    real, padded, even = 0, 0, []
    for seed in range(30):
        lengths = log_normal(seed, sigma, batch)
        lengths = lengths[lengths.sum(1).argsort()]
        lists = packed(lengths, 8, accumulate, 2048)
        costs = [cost(lengths[begin:end]) for begin, end in lists]
        own = shares(costs, 8)
        assert [begin for begin, _ in lists] == [0, *(end for _, end in lists[:-1])] and lists[-1][1] == batch
        assert {len(numbers) for numbers in own} == {len(lists) // 8} and len(lists) >= 8 * accumulate
        assert max(costs) <= 2048 or len(lists) == batch
        loads = [sum(costs[n] for n in numbers) for numbers in own]
        real, padded, even = real + lengths.sum(), padded + sum(costs), [*even, np.mean(loads) / max(loads)]
    assert 1 - real / padded <= 0.05 and np.mean(even) >= balance


def test_a_budget_takes_as_few_lists_as_it_needs():
    lengths = np.array([[10.0]] * 8)
    assert [len(packed(lengths, 2, 1, budget)) for budget in (100, 40, 20, 19, 1)] == [2, 2, 4, 8, 8]


def test_a_sample_that_is_more_than_a_share_leaves_its_process_the_shortest():
    lengths = np.array([[n] for n in (1, 2, 10, 10, 10, 10, 10, 100)])
    lists = packed(lengths, 2, 2)
    assert lists == [(0, 1), (1, 4), (4, 7), (7, 8)]
    assert shares([cost(lengths[begin:end]) for begin, end in lists], 2) == [[0, 3], [1, 2]]


def test_a_large_batch_is_cut_in_sections(mixture, monkeypatch):
    lengths = lambda mixture, numbers: np.stack([numbers, numbers], 1)
    numbers = np.random.default_rng(0).permutation(np.arange(1, 101)).tolist()
    whole = micro_batches(mixture, numbers, lengths, 2, 3, None)
    monkeypatch.setattr(loading, "MANY", 30)
    parts = micro_batches(mixture, numbers, lengths, 2, 3, None)
    assert sum(whole, []) == sum(parts, []) == list(range(1, 101)) and len(parts) % 2 == len(whole) % 2 == 0
    assert 6 <= len(whole) <= len(parts) < 40


def test_micro_batches_are_exchanged_until_processes_are_even():
    costs = [8, 7, 6, 5, 4, 1]                                      # the costliest first: 8 + 5 + 1, 7 + 6 + 4
    own = shares(costs, 2)
    assert sorted(own[0] + own[1]) == list(range(6))
    assert sorted(sum(costs[n] for n in some) for some in own) == [15, 16]


def test_each_micro_batch_is_one_processs():
    own = shares([5, 9, 1, 2, 8, 3], 2)
    assert sorted(own[0] + own[1]) == list(range(6)) and {len(some) for some in own} == {3}
    assert [sum([5, 9, 1, 2, 8, 3][n] for n in some) for some in own] == [14, 14]


def steps_of(mixture, model, rank=0, world=1, accumulate=3, state=STATE):
    numbers = rows_of(mixture, ["tts"])
    lengths = partial(lengths_of, config=model.config, losses=state["losses"],
                      rates=token_rates(mixture, numbers, model.tokenizer))
    group = partial(micro_batches, lengths=lengths, world=world, accumulate=accumulate, budget=None)
    return Steps(mixture, numbers, model, state, group, lengths, (), rank, world)


def test_any_number_of_processes_has_the_same_samples_a_step(mixture, model):
    one = steps_of(mixture, model)
    for step in range(4):
        both = [steps_of(mixture, model, rank, 2)[step] for rank in range(2)]
        samples = lambda reads: sorted(n for read in reads for _, some, _ in read for n in some)
        assert samples(both) == samples([one[step]]) and sorted(
            number for read in both for number, *_ in read) == list(range(6))
    later = steps_of(mixture, model, state=STATE | {"step": 2, "seen": 12})
    assert [some for _, some, _ in later[2]] == [some for _, some, _ in one[2]]


# ---------------------------------------------------------------- reading ahead

def test_workers_read_what_one_process_reads(base, data, tmp_path):
    for workers in (0, 2):
        go(base, data, tmp_path / str(workers), "--steps", 4, "--workers", workers, stage=4)
    same_training(tmp_path / "0", tmp_path / "2")


def test_a_worker_of_another_start_method_opens_the_files_itself(mixture, model):
    steps = pickle.loads(pickle.dumps(steps_of(mixture, model)))
    (_, some, batch), *_ = steps[1]
    (_, same, expected), *_ = steps_of(mixture, model)[1]
    assert some == same and all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_a_worker_meets_is_one_line(data, model, tmp_path, capsys, workers):
    shutil.copytree(data, tmp_path / "data")
    mixture = open_mixture([str(tmp_path / "data")], "train")
    path = tmp_path / "data/train/samples.jsonl"
    path.write_bytes(path.read_bytes().replace(b"tts", b"tt5"))
    with pytest.raises(SystemExit), cli.one_line_errors():
        list(read_ahead(steps_of(mixture, model), 2, workers, torch.device("cpu")))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "samples.jsonl line" in lines[0]


def test_a_worker_that_was_ended_is_one_line_and_comes_when_its_step_is_asked_for(mixture, model, monkeypatch):
    """Not in the middle of a save."""
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    reader = read_ahead(steps_of(mixture, model), 50, 1, torch.device("cpu"))
    next(reader)
    worker, = multiprocessing.active_children()
    worker.kill()
    worker.join()
    time.sleep(0.1)
    with pytest.raises(OSError, match="that reads samples was ended.*--resume goes on.*--workers takes fewer"):
        list(reader)
