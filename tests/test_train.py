"""train.py at the tiny size: what each stage trains, resuming, two processes, and every wrong input in one line."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import disk
import sample
import train
from checkpoint import ABLATIONS, official_name
from data import Writer
from face_decoder import FaceDecoder
from model import ExOmni
from tiny_training import (LOSSES, SPEECH, base, change, command, data, optimizer_of, refuse, rows, same_training,
                           step_in, write_data)

ROOT = Path(__file__).parent.parent
TRAINED = {1: {"projector"}, 2: {"generator"}, 3: {"face"}, 4: {"projector", "llm", "generator", "face"}}


@pytest.fixture(scope="session")
def stages(base, data, tmp_path_factory):
    """The four stages one after the other, 0 the start."""
    outs = {0: base}
    for stage in LOSSES:
        outs[stage] = tmp_path_factory.mktemp("stages") / f"stage{stage}"
        train.main(command(data, outs[stage - 1], outs[stage], stage, "--steps", 12, "--val-every", 6,
                           "--lr", 1e-2 if stage == 1 else 5e-3))
    return outs


@pytest.mark.parametrize("stage", LOSSES)
def test_each_stages_loss_falls(stages, stage):
    log = rows(stages[stage], "norm")
    share = 0.97 if stage == 1 else 0.95    # before a random language model a projector can but make all words alike:
    for name in LOSSES[stage]:              # from 5.7 to the 5.5 of about 250 equally likely ones
        first, last = (np.mean([row[name] for row in part]) for part in (log[:3], log[-3:]))
        assert last < share * first, f"{name}: {first} -> {last}"


@pytest.mark.parametrize("stage", LOSSES)
def test_exactly_the_trained_parts_change(stages, stage):
    before, after = (load_file(stages[n] / "model.safetensors") for n in (stage - 1, stage))
    model = ExOmni.from_pretrained(stages[stage])
    for part in train.PARTS:
        changed = [name for name in map(official_name, train.parameters(model, part))
                   if name in before and not torch.equal(before[name], after[name])]
        assert bool(changed) == (part in TRAINED[stage]), part
    assert before.keys() == after.keys()


@pytest.mark.parametrize("stage", LOSSES)
def test_sample_opens_what_a_stage_wrote(stages, stage, tmp_path, capsys):
    sample.main(["--checkpoint", str(stages[stage]), "--out", str(tmp_path), "--text", "Hi", "--max-new-tokens", "2"])
    assert "s of speech in" in capsys.readouterr().out and (tmp_path / "answer.wav").is_file()


def test_a_checkpoint_knows_its_stages(stages):
    record = disk.read_json(stages[4] / "stages.json")
    assert list(record) == ["1", "2", "3", "4"] and all(r["step"] == r["steps"] == 12 for r in record.values())
    assert record["2"]["rates"] == {"generator": 5e-3} and record["3"]["best"]["loss"] > 0


def test_the_log_has_every_figure(stages):
    start, = rows(stages[4], "start")
    assert start["start"]["batch"] == 4 and start["start"]["steps"] == 12
    for row in rows(stages[4], "norm"):
        assert row.keys() == {"step", *LOSSES[4], "norm", "rates", "ms", "tokens_per_s", "waiting", "memory_gib"}
        assert row["rates"].keys() == TRAINED[4] and row["ms"] > 0 and row["tokens_per_s"] > 0 and row["memory_gib"] > 0
        assert 0 < row["waiting"] < 1, "of the time"
    assert [row["step"] for row in rows(stages[4], "norm")] == list(range(1, 13))
    assert [row["step"] for row in rows(stages[4], "val")] == [6, 12]
    for row in rows(stages[4], "val"):
        assert row["val"].keys() == {*LOSSES[4], "text_accuracy", "units_accuracy"}
        assert 0 <= row["val"]["units_accuracy"] <= 1


def test_the_start_says_what_is_trained_at_which_rate(data, stages, tmp_path, capsys):
    train.main(command(data, stages[1], tmp_path / "out", 2, "--steps", 1))
    printed = capsys.readouterr().out
    for line in (r"encoder .* frozen", r"generator .* rate 0.002", r"face .* frozen"):
        assert any(re.search(line, text) for text in printed.splitlines()), line
    for text in ("stage 2 of mini (the language model is 64 wide)", "cpu (no GPU found), float32",
                 "Muon for matrices, else AdamW", "warm-up over 10% of the steps", "next: python train.py --stage 3",
                 "4 samples a step = 1 process x micro-batch 1 x accumulation 4; 1 steps, 0.8 epochs"):
        assert text in printed
    train.main(command(data, stages[3], tmp_path / "paper", 4, "--steps", 1, "--recipe", "v1", "--accumulate", 2))
    printed = capsys.readouterr().out
    for text in ("stage 4 of v1 (asked for)", "micro-batch 2 x accumulation 2", "gradients clipped at norm 1\n"):
        assert text in printed
    assert re.search("projector .* frozen", printed) and "Muon" not in printed


def test_v1_is_table_7():
    stages = train.STAGES["v1"]
    assert [(s.epochs, s.batch, s.warmup, s.accumulate) for s in stages.values()] == [
        (1, 128, 0.3, 1), (3, 128, 0.1, 1), (10, 128, 0.1, 1), (3, 32, 0.1, 4)]
    assert [s.rates for s in stages.values()] == [{"projector": 1e-3}, {"generator": 1e-4}, {"face": 1e-3},
                                                  {"llm": 2e-6, "generator": 5e-5, "face": 5e-5}]
    assert not any(s.plain_mse or s.replay or s.toy for s in stages.values())


def test_v2_is_table_2():
    stages = train.STAGES["v2"]
    assert [(s.epochs, s.batch, s.warmup, s.accumulate) for s in stages.values()] == [
        (1, 128, 0.3, 1), (2, 128, 0.1, 2), (2, 32, 0.1, 4)]
    assert [s.rates for s in stages.values()] == [
        {"projector": 1e-3}, {"generator": 1e-4, "face": 1e-4},
        {"projector": 2e-5, "llm": 2e-6, "generator": 2e-5, "face": 2e-5}]
    assert stages[3].replay == {"asr": 10_000, "face": 10_000} and stages[2].plain_mse and stages[3].plain_mse


@pytest.fixture(scope="session")
def v2(base, data, tmp_path_factory):
    """The three stages of v2 one after the other, without dropout, 0 the start."""
    outs = {0: change(base, tmp_path_factory.mktemp("v2") / "base", dropout_rate=0.0)}
    for stage in (1, 2, 3):
        outs[stage] = tmp_path_factory.mktemp("v2") / f"stage{stage}"
        train.main(command(data, outs[stage - 1], outs[stage], stage, "--recipe", "v2", "--steps", 3))
    return outs


def test_v2_trains_generator_and_face_together_without_velocity(v2, capsys):
    values = [disk.read_json(v2[stage] / "config.json")["velocity_weight"] for stage in (0, 1, 2, 3)]
    assert values == [0.5, 0.5, 0.0, 0.0]
    before, after = (load_file(v2[stage] / "model.safetensors") for stage in (1, 2))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"speech_generator", "blendshape_generator"}
    assert rows(v2[2], "norm")[0].keys() >= {"units", "face"} and "text" not in rows(v2[2], "norm")[0]


def test_v2_dialogue_is_mixed_with_earlier_samples(v2, data, tmp_path, capsys):
    train.main(command(data, v2[2], tmp_path / "out", 3, "--recipe", "v2", "--steps", 1))
    assert "15 samples in" in capsys.readouterr().out, "5 dialogues, 5 transcriptions, 5 texts to speech and face"


def test_the_log_has_means_over_the_steps_since_its_last_row(stages, data, tmp_path):
    for every in (1, 3):
        train.main(command(data, stages[1], tmp_path / str(every), 2, "--steps", 5, "--log-every", every))
    each, means = rows(tmp_path / "1", "norm"), rows(tmp_path / "3", "norm")
    assert [row["step"] for row in means] == [3, 5]
    for name in ("units", "norm"):
        for row, steps in zip(means, (each[:3], each[3:])):
            assert row[name] == pytest.approx(np.mean([step[name] for step in steps]), rel=1e-6)


def test_the_rate_rises_and_falls():
    factors = [train.schedule(step, 100, 0.3) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 30) and factors[29] == factors[30] == 1
    assert factors[65] == pytest.approx(0.5) and 0 < factors[99] < 0.001
    assert train.schedule(0, 1, 0.1) == 1


# ---------------------------------------------------------------- the same run, cut otherwise

@pytest.mark.parametrize("stage, dtype", [(4, "float32"), (2, "bfloat16")])
def test_four_steps_are_two_and_two_more_bit_for_bit(stages, data, tmp_path, stage, dtype):
    """With dropout: the tiny preset has it in the face decoder."""
    at_once, twice = tmp_path / "once", tmp_path / "twice"
    options = ("--steps", 4, "--dtype", dtype, "--val-every", 2)
    train.main(command(data, stages[stage - 1], at_once, stage, *options))
    train.main(command(data, stages[stage - 1], twice, stage, *options, "--stop-at", 2))
    assert disk.read_json(twice / "trainer" / "state.json")["step"] == 2
    (twice / "notes.txt").write_text("mine")
    train.main(["--resume", "--out", str(twice), "--log-every", "1", "--val-every", "2"])
    assert not list(tmp_path.glob(".*")), "nothing is left over"
    same_training(at_once, twice)
    assert (twice / "notes.txt").read_text() == "mine", "what a reader put there stays"


def test_a_log_row_that_was_stopped_in_the_middle_is_the_same_mean(stages, data, tmp_path):
    options = ("--steps", 4, "--log-every", 3)
    train.main(command(data, stages[1], tmp_path / "once", 2, *options))
    train.main(command(data, stages[1], tmp_path / "twice", 2, *options, "--stop-at", 2))
    train.main(["--resume", "--out", str(tmp_path / "twice"), "--log-every", "3", "--val-every", "100"])
    same_training(tmp_path / "once", tmp_path / "twice")


def close_training(one, other):
    """Losses, norms and validation equal to 1e-5, at the same steps. Other sums of float32 are 1e-7 apart; Muon makes that
    more where singular values are small (test_muon.py)."""
    a, b = rows(one, "step"), rows(other, "step")
    kept = lambda log: [row for row in log if "start" not in row]
    assert [row["step"] for row in kept(a)] == [row["step"] for row in kept(b)]
    for x, y in zip(kept(a), kept(b)):
        figures = [{name: row[name] for name in (*LOSSES[4], "norm") if name in row} for row in (x, y)]
        assert figures[1] == pytest.approx(figures[0], abs=1e-5, rel=1e-6)
        assert y.get("val") == pytest.approx(x.get("val"), abs=1e-5)


@pytest.fixture(scope="session")
def still(stages, tmp_path_factory):
    """Before stage 4, without dropout: its draws depend on how a batch is cut."""
    return change(stages[3], tmp_path_factory.mktemp("still") / "base", dropout_rate=0.0)


def test_a_batch_in_pieces_is_the_batch(still, data, tmp_path):
    for pieces in (1, 4):
        train.main(command(data, still, tmp_path / str(pieces), 4, "--steps", 3, "--accumulate", pieces))
    close_training(tmp_path / "1", tmp_path / "4")


def test_recomputing_activations_changes_nothing(still, data, tmp_path):
    for name in ("recompute", "no-recompute"):
        train.main(command(data, still, tmp_path / name, 4, "--steps", 2, f"--{name}"))
    same_training(tmp_path / "recompute", tmp_path / "no-recompute")


DRIVER = """
import json, os, ranks, signal, sys, torch, train
torch.set_num_threads(1)
killed_at, full, commands = json.loads(sys.argv[1])
schedule = train.schedule
def dying(step, *rest):
    if step == killed_at and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return schedule(step, *rest)
train.schedule = dying
ranks.join(torch.device("cpu"), os.getppid())
def no_room(*_):
    raise OSError(28, "No space left on device")
for argv in commands:
    train.main(argv)
for argv in full:
    if os.environ["RANK"] == "1":
        torch.distributed.checkpoint.filesystem._write_item = no_room
    try:
        train.main(argv)
    except SystemExit as stop:
        print("ended with", stop.code)
torch.distributed.destroy_process_group()
"""


def torchrun(tmp_path, commands, *options, killed_at=-1, full=()):
    """train.py on two processes, with these arguments one after the other, at last those for which the second's disk is
    full; what it printed."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options,
                           str(driver), json.dumps([killed_at, full, commands])], capture_output=True, text=True,
                          timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout + done.stderr


def test_two_processes_are_one(stages, still, v2, data, tmp_path):
    """FSDP2 on two gloo processes: losses, norms and validation of every stage of every recipe equal one process's; the
    number of processes may change between stop and resume; bfloat16 learns, and goes on exactly where it stopped."""
    cases = {"mini 1": (stages[0], 1), "mini 2": (stages[1], 2), "mini 3": (stages[2], 3), "mini 4": (still, 4),
             "v1 1": (stages[0], 1), "v1 2": (stages[1], 2), "v1 3": (still, 3), "v1 4": (still, 4),
             "v2 2": (v2[1], 2), "v2 3": (v2[2], 3)}
    commands = {name: command(data, start, "OUT", stage, "--recipe", name.split()[0], "--steps", 4)
                for name, (start, stage) in cases.items()}
    to = lambda name, out: [str(tmp_path / out) if text == "OUT" else text for text in commands[name]]
    for name in commands:
        train.main(to(name, f"one {name}"))
    train.main([*to("mini 4", "shrunk"), "--stop-at", "2"])
    resume = lambda out: ["--resume", "--out", str(tmp_path / out), "--log-every", "1", "--val-every", "100"]
    learns = [command(data, stages[1], tmp_path / name, 2, "--steps", 12, "--lr", 5e-3, "--dtype", "bfloat16")
              for name in ("bfloat16", "bfloat16 twice")]
    both = [[*to(name, f"two {name}"), *["--recompute"] * (name == "v1 4")] for name in commands]
    kept = [*to("v1 3", "kept"), "--cache", str(tmp_path / "cache"), "--workers", "1"]
    printed = torchrun(tmp_path, [*both, kept, *learns[:1], [*learns[1], "--stop-at", "7"],
                                  resume("bfloat16 twice"), resume("shrunk"), [*to("v1 4", "grown"), "--stop-at", "2"],
                                  [*to("mini 4", "twice"), "--stop-at", "3"], resume("twice")])
    assert "2 processes x micro-batch 1 x accumulation 2" in printed
    for name in commands:
        close_training(tmp_path / f"one {name}", tmp_path / f"two {name}")
    close_training(tmp_path / "one v1 3", tmp_path / "kept")
    assert {path.stem[-2:] for path in (tmp_path / "cache").glob("*.states")} == {"-0", "-1"}
    train.main(resume("grown"))
    close_training(tmp_path / "one v1 4", tmp_path / "grown")
    close_training(tmp_path / "one mini 4", tmp_path / "shrunk")
    same_training(tmp_path / "two mini 4", tmp_path / "twice")
    one, two = (optimizer_of(tmp_path / f"{count} mini 4") for count in ("one", "two"))
    assert {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in two.items()}
    losses = [row["units"] for row in rows(tmp_path / "bfloat16", "norm")]
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    same_training(tmp_path / "bfloat16", tmp_path / "bfloat16 twice")
    before, after = (load_file(out / "model.safetensors") for out in (stages[1], tmp_path / "bfloat16"))
    frozen = [name for name in before if not name.startswith("model.speech_generator.")]
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values()) and "lm_head.weight" in frozen
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in frozen)


def test_a_killed_process_is_restarted_and_the_end_is_the_same(stages, data, tmp_path):
    """torchrun --max-restarts with --resume auto. More than one, as gloo itself aborts a new process now and then ("terminate
    called without an active exception"). Then one process cannot write: both end, with the checkpoint before."""
    killed, whole, full = [command(data, stages[1], tmp_path / name, 2, "--steps", 5, "--save-every", 1, "--resume",
                                   "auto") for name in ("killed", "whole", "full")]
    printed = torchrun(tmp_path, [killed, whole, [*full, "--stop-at", "2"]], "--max-restarts=3", killed_at=3,
                       full=[full])
    assert re.search("goes on after step [23]", printed), "the save of step 3 may have been under way"
    same_training(tmp_path / "killed", tmp_path / "whole")
    assert printed.count("ended with 2") == 2
    assert printed.count("rank 1: step 3 could not be saved in") == printed.count("could not be saved") == 1
    out = tmp_path / "full"
    assert (step_in(out), step_in(out / "previous")) == (2, 1) and not (out / ".saving").exists()


def test_a_trained_part_that_no_gradient_reaches_is_noticed(stages, data, tmp_path, monkeypatch, capsys):
    forward = FaceDecoder.forward
    monkeypatch.setattr(FaceDecoder, "forward", lambda *args, **options: forward(*args, **options).detach())
    with pytest.raises(SystemExit):
        train.main(command(data, stages[3], tmp_path / "out", 4, "--steps", 4))
    assert re.search("gradients reached .*'generator', 'llm', 'projector'.*expected .*'face'", capsys.readouterr().err)


# ---------------------------------------------------------------- ablations

@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_trained_saved_and_sampled(stages, data, tmp_path, name, capsys):
    """What each leaves out: test_model.py."""
    out, stage, field = tmp_path / "out", *((2, "sg_ablate") if ABLATIONS[name] == "generator" else (3, "bs_ablate"))
    train.main(command(data, stages[stage - 1], out, stage, "--steps", 2, "--ablate", name))
    assert disk.read_json(out / "config.json")[field] == name.removeprefix("generator-")
    assert f"without {name.removeprefix('generator-')}" in capsys.readouterr().out
    assert field not in disk.read_json(stages[stage] / "config.json"), "said only where it is so"
    sample.main(["--checkpoint", str(out), "--out", str(tmp_path), "--text", "Hi", "--max-new-tokens", "2"])


def test_without_velocity_the_face_loss_is_the_first_term_alone(stages, data, tmp_path):
    losses = []
    for options in ((), ("--ablate", "velocity")):
        out = tmp_path / str(len(options))
        train.main(command(data, stages[2], out, 3, "--steps", 1, *options))
        losses.append(rows(out, "norm")[0]["face"])
    assert losses[1] < losses[0]


# ---------------------------------------------------------------- wrong input

@pytest.mark.parametrize("options, expected", [
    (["--stage", "5"], "stage 5 is unknown, mini has 1, 2, 3, 4"),
    (["--recipe", "v2", "--stage", "4"], "stage 4 is unknown, v2 has 1, 2, 3"),
    (["--recipe", "v2"], "has been through stage 1 of another recipe: stage 2 of v2 builds on it"),
    (["--stage", "5", "--data", "nowhere"], "stage 5 is unknown"),
    (["--lr", "fast"], "--lr fast: expected a number, or PART=RATE"),
    (["--lr", "nan"], "--lr nan: expected rates above 0"), (["--lr", "generator=-1"], "expected rates above 0"),
    (["--epochs", "inf"], "'inf': expected a number from 1e-06"), (["--batch", "0"], "'0': expected a whole number"),
    (["--device", "foo"], "--device foo: expected auto, cpu"), (["--seed", "-1"], "'-1': expected a whole number"),
    (["--lr", "generator=1e-4", "--lr", "generator=1e-3"], "a part has two rates"),
    (["--epochs", "1", "--steps", "2"], "argument --steps: not allowed with argument --epochs"),
    (["--stop-at", "99"], "--stop-at 99: this training is at step 0 of"),
    (["--lr", "llm=1e-4"], "--lr for llm: this stage trains generator"),
    (["--ablate", "velocity"], "--ablate velocity changes the face, stage 2 trains generator"),
    (["--init-from", "nowhere"], "nowhere"), (["--data", "nowhere"], "nowhere/train is not finished prepared data")])
def test_a_wrong_argument_is_one_line(stages, data, tmp_path, capsys, options, expected):
    refuse(capsys, command(data, stages[1], tmp_path / "out", 2, *options), expected)
    assert not list(tmp_path.iterdir())


def test_needed_arguments_are_named(tmp_path, capsys):
    refuse(capsys, ["--out", str(tmp_path / "out"), "--stage", "2"], "--data and --init-from needed, or --resume")
    refuse(capsys, ["--out", str(tmp_path / "out"), "--resume"], "no trainer/ to resume from")


def test_a_stage_without_its_predecessor_is_refused(base, stages, data, tmp_path, capsys):
    out = tmp_path / "out"
    refuse(capsys, command(data, base, out, 4), "has not been through stage 1, 2, 3", "--anyway")
    refuse(capsys, command(data, stages[2], out, 4), "has not been through stage 3")
    train.main(command(data, stages[2], out, 3, "--steps", 2, "--stop-at", 1))
    refuse(capsys, command(data, out, tmp_path / "next", 4), "stage 3 stopped at step 1 of 2")
    train.main(command(data, out, tmp_path / "next", 4, "--steps", 1, "--anyway"))
    assert (tmp_path / "next" / "config.json").is_file()


def emptied(directory):
    shutil.rmtree(directory)
    return directory


@pytest.mark.parametrize("spoil, expected", [
    (lambda d: (d / "train" / "units.u16").write_bytes(b"12"), "units.u16 has 2 bytes, expected"),
    (lambda d: (d / "train" / "face.f16").unlink(), "face.f16 has no bytes, expected"),
    (lambda d: (d / "train" / "manifest.json").unlink(), "is not finished prepared data"),
    (lambda d: shutil.rmtree(d / "val"), "is not finished prepared data"),
    (lambda d: write_data(emptied(d / "train"), 2, 0, unit_vocab=16384), "made for another preset"),
    (lambda d: Writer(emptied(d / "train")).finish(), "has no samples of task tts, which stage 2 learns")],
    ids=("truncated", "missing", "unfinished", "no val", "another preset", "empty"))
def test_broken_data_is_one_line(stages, data, tmp_path, capsys, spoil, expected):
    broken = shutil.copytree(data, tmp_path / "data")
    spoil(broken)
    refuse(capsys, command(broken, stages[1], tmp_path / "out", 2), expected)


def test_a_clip_longer_than_the_context_is_one_line(base, tmp_path, capsys):
    for name in ("train", "val"):
        with Writer(tmp_path / name) as out:
            out.add({"id": "long", "task": "asr", "messages": SPEECH, "answer": "x"}, audio=np.zeros(16_000 * 410))
            out.finish()
    refuse(capsys, command(tmp_path, base, tmp_path / "out", 1), "sample long has 410.0 s of speech", "context holds 409.0 s")
