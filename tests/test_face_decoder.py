"""face_decoder.py: frames, rotation, causality, batches, the loss."""
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import face_decoder
from face_decoder import (FPS, UNIT_RATE, FaceConfig, FaceDecoder, PeriodicRoPE, face_loss, frames_for_units, release_frames,
                          stretch)


CONFIG = FaceConfig(state_dim=20, unit_vocab=50, unit_dim=12, dim=32, heads=4, layers=2, channels=52, tqgf_heads=2,
                    tqgf_dim_head=8, period=6)
SUMS = {"atol": 1e-5, "rtol": 1e-5}        # float32 sums in another order (other shapes, other kernels)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    module = FaceDecoder(CONFIG).eval()
    for p in module.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=1.5 * p.shape[1] ** -0.5)
    return module


def sample(units):
    """(1, U) units, (1, U + 1, D) states."""
    return torch.randint(1, 50, (1, units)), torch.randn(1, units + 1, 20)


@torch.no_grad()
def test_a_long_track_is_the_same_without_the_matrix_of_its_attention(decoder, monkeypatch):
    units, states = torch.cat([sample(31)[0] for _ in range(2)]), torch.randn(2, 32, 20)
    units[1, 20:] = -100
    plain = decoder(units, states)
    monkeypatch.setattr(face_decoder, "LONG", 10)
    seen = decoder(units, states)
    assert seen.shape == plain.shape == (2, 74, 52) and not torch.equal(seen, plain), "another path, other roundings"
    torch.testing.assert_close(seen, plain, **SUMS)


# ---------------------------------------------------------------- the clocks

def test_frames_for_units():
    assert [frames_for_units(n) for n in (0, 1, 4, 5, 12, 13, 205)] == [0, 2, 9, 12, 28, 31, 492]
    n = torch.arange(1000)
    assert frames_for_units(n).tolist() == [frames_for_units(int(i)) for i in n]
    assert frames_for_units(n).dtype == torch.long
    assert (n * FPS / UNIT_RATE - frames_for_units(n) < 1).all() and frames_for_units(5) * UNIT_RATE == 5 * FPS


def test_release_frames_skips_id_0_and_loses_a_frame_at_205():
    assert release_frames(torch.ones(205)) == 491
    assert release_frames(torch.tensor([0, 0, 7, 0, 7, -100])) == frames_for_units(2)


@torch.no_grad()
def test_unit_0_has_frames_but_not_with_release_quirks(decoder):
    units, states = torch.tensor([[3, 0, 0, 4, 0]]), torch.randn(1, 6, 20)
    assert decoder(units, states).shape == (1, 12, 52)
    assert decoder(units, states, release_quirks=True).shape == (1, 4, 52)
    zeros = torch.zeros_like(units)
    assert decoder(zeros, states).shape == (1, 12, 52)
    assert decoder(zeros, states, release_quirks=True).shape == (1, 0, 52)


@torch.no_grad()
def test_without_units_there_are_no_frames(decoder):
    assert decoder(torch.zeros(1, 0, dtype=torch.long), torch.randn(1, 1, 20)).shape == (1, 0, 52)
    assert decoder(torch.full((2, 3), -100), torch.randn(2, 4, 20)).shape == (2, 0, 52)


# ---------------------------------------------------------------- stretch

@pytest.mark.parametrize("units", (1, 2, 5, 13))
@pytest.mark.parametrize("frames", (1, 2, 3, 12, 31))
def test_stretch_is_linear_interpolation(units, frames):
    x = torch.randn(2, units, 3)
    expected = F.interpolate(x.transpose(1, 2), frames, mode="linear").transpose(1, 2)
    seen = stretch(x, torch.tensor([units] * 2), torch.tensor([frames] * 2))
    torch.testing.assert_close(seen, expected, **SUMS)


def test_stretch_of_a_padded_row_is_that_of_the_row_alone():
    x, lengths = torch.randn(4, 13, 3), torch.tensor([13, 5, 1, 0])
    frames = frames_for_units(lengths)
    seen = stretch(x, lengths, frames)
    for row, n, f, source in zip(seen, lengths.tolist(), frames.tolist(), x):
        if n:
            expected = F.interpolate(source[None, :n].transpose(1, 2), f, mode="linear")[0].T
            torch.testing.assert_close(row[:f], expected, **SUMS)
            torch.testing.assert_close(row[f:], source[n - 1].expand(31 - f, 3), **SUMS)
    assert seen.isfinite().all()


# ---------------------------------------------------------------- periodic rotation

def test_rotation_repeats_with_its_period_and_keeps_norms():
    torch.manual_seed(0)
    x, rope = torch.randn(1, 1, 8).expand(2, 40, 8), PeriodicRoPE(8, period=7)
    y = rope(x)
    torch.testing.assert_close(y[:, 7:], y[:, :-7], atol=0, rtol=0)
    torch.testing.assert_close(y[:, 0], x[:, 0], atol=0, rtol=0)
    assert ((y[:, 1:7] - y[:, :1]).abs().amax(-1) > 0.1).all()
    pairs = lambda z: z.unflatten(-1, (4, 2)).norm(dim=-1)
    torch.testing.assert_close(pairs(y), pairs(x), **SUMS)


def test_rotation_turns_pairs_by_position_over_scale():
    for scale in (1.0, 0.5, 4.0):
        x = torch.tensor([1.0, 0.0] * 3).expand(1, 9, 6)
        y = PeriodicRoPE(6, period=5, scale=scale)(x)[0]
        for t in range(9):
            for j in range(3):
                angle = torch.tensor((t % 5) / scale * 10_000 ** (-2 * j / 6))
                torch.testing.assert_close(y[t, 2 * j:2 * j + 2], torch.stack([angle.cos(), angle.sin()]), **SUMS)


# ---------------------------------------------------------------- the decoder

@torch.no_grad()
@pytest.mark.parametrize("inference", (False, True))
def test_causal_mask_hides_later_frames(decoder, inference):
    """TQGF shows every frame all states; what follows it sees only the past."""
    units, states = sample(10)
    for t in (0, 1, 13, 23):
        decoder.rope.register_forward_hook(lambda _, args, out: out.index_fill(1, torch.tensor(t), 3.0))
        with torch.inference_mode(inference):           # with it PyTorch's fused encoder layer runs
            changed = decoder(units, states)
        decoder.rope._forward_hooks.clear()
        with torch.inference_mode(inference):
            plain = decoder(units, states)
        torch.testing.assert_close(changed[:, :t], plain[:, :t], **SUMS)
        assert ((changed - plain)[:, t:].abs().amax(-1) > 1e-3).all(), "every later frame sees frame t"


@torch.no_grad()
def test_padding_never_changes_a_row(decoder):
    samples = [sample(n) for n in (13, 5, 1)]
    units = torch.nn.utils.rnn.pad_sequence([u[0] for u, _ in samples], batch_first=True, padding_value=-100)
    states = torch.nn.utils.rnn.pad_sequence([s[0] for _, s in samples], batch_first=True, padding_value=9.0)
    mask = torch.arange(14) < torch.tensor([14, 6, 2])[:, None]
    face = decoder(units, states, mask)
    assert face.shape == (3, 31, 52) and face.isfinite().all()
    for row, (u, s) in zip(face, samples):
        alone = decoder(u, s)[0]
        assert len(alone) == frames_for_units(u.shape[1])
        torch.testing.assert_close(row[:len(alone)], alone, **SUMS)


@torch.no_grad()
def test_a_row_without_units_leaves_the_others_alone(decoder):
    units, states = sample(5)
    both = torch.cat([units, torch.full_like(units, -100)])
    mask = torch.tensor([[True] * 6, [True] + [False] * 5])
    face = decoder(both, states.expand(2, -1, -1), mask)
    assert face.isfinite().all()
    torch.testing.assert_close(face[:1], decoder(units, states), **SUMS)


@torch.no_grad()
def test_units_and_states_both_matter(decoder):
    units, states = sample(5)
    plain = decoder(units, states)
    assert (decoder(units % 49 + 1, states) - plain).abs().max() > 1e-2
    assert (decoder(units, states + 0.5 * torch.randn_like(states)) - plain).abs().max() > 1e-2


@torch.no_grad()
def test_given_frames_are_made(decoder):
    units, states = sample(5)
    assert decoder(units, states, frames=torch.tensor([11])).shape == (1, 11, 52)
    torch.testing.assert_close(decoder(units, states, frames=torch.tensor([12])), decoder(units, states))


def test_a_unit_outside_the_table_raises(decoder):
    with pytest.raises(ValueError, match="unit 50 is outside the face decoder's table of 50"):
        decoder(torch.tensor([[1, 50]]), torch.randn(1, 3, 20))
    decoder(torch.tensor([[1, 49]]), torch.randn(1, 3, 20))


def test_gradients_reach_every_parameter_and_stay_finite_with_an_empty_row(decoder):
    units = torch.tensor([[1, 2, 3], [-100, -100, -100]])
    mask = torch.tensor([[True] * 4, [False] * 4])
    face = decoder.train()(units, torch.randn(2, 4, 20), mask)
    face_loss(face, torch.rand_like(face), torch.tensor([7, 0])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    assert all(p.grad.abs().max() > 0 for n, p in decoder.named_parameters()), "a part that learns nothing"


@torch.no_grad()
def test_the_number_of_channels_is_the_configs():
    assert FaceDecoder(dataclasses.replace(CONFIG, channels=51)).eval()(*sample(5)).shape == (1, 12, 51)


# ---------------------------------------------------------------- the loss; 1e-5: the 1e-6 beside the frame counts

def near(value):
    return pytest.approx(value, rel=1e-5, abs=1e-7)


def test_loss_of_a_constant_error_is_its_square():
    target = torch.rand(2, 6, 4)
    assert face_loss(target + 3, target, torch.tensor([6, 2])).item() == near(9)
    assert face_loss(target, target, torch.tensor([6, 2])).item() == 0


def test_velocity_term_counts_pairs_of_valid_frames_at_half_weight():
    target = torch.zeros(1, 4, 2)
    pred = torch.tensor([0.0, 1, 3, 100])[None, :, None].expand(1, 4, 2)
    lengths = torch.tensor([3])                        # squares 0, 1, 9; differences 1, 2
    assert face_loss(pred, target, lengths, velocity_weight=0).item() == near(10 / 3)
    assert face_loss(pred, target, lengths).item() == near(10 / 3 + 0.5 * 5 / 2)
    assert face_loss(pred, target, lengths, velocity_weight=2).item() == near(10 / 3 + 2 * 5 / 2)


def test_velocity_term_compares_with_the_targets_velocity():
    target = torch.arange(5.0)[None, :, None].expand(1, 5, 3)
    assert face_loss(target + 1, target, torch.tensor([5])).item() == near(1)


def test_samples_weigh_alike_whatever_their_length():
    target = torch.zeros(2, 10, 1)
    pred = torch.cat([torch.ones(1, 10, 1), torch.full((1, 10, 1), 3.0)])
    assert face_loss(pred, target, torch.tensor([10, 1])).item() == near((1 + 9) / 2)


def test_lengths_beyond_the_target_are_clamped():
    pred, target = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    assert face_loss(pred, target, torch.tensor([99])) == face_loss(pred, target, torch.tensor([4]))


def test_a_long_prediction_is_cut_and_a_short_one_counts_as_zero():
    target = torch.full((1, 4, 1), 2.0)
    assert face_loss(torch.full((1, 9, 1), 2.0), target, torch.tensor([4])).item() == 0
    short = torch.full((1, 2, 1), 2.0)                 # errors 0, 0, 2, 2; velocity errors 0, 2, 0
    assert face_loss(short, target, torch.tensor([4])).item() == near(8 / 4 + 0.5 * 4 / 3)


def test_rows_without_frames_have_no_loss_and_no_nan():
    pred, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    alone = face_loss(pred[:1], target[:1], torch.tensor([4]))
    assert face_loss(pred, target, torch.tensor([4, 0])).item() == near(alone.item() / 2)
    assert face_loss(pred, target, torch.tensor([0, 0])).item() == 0
    assert face_loss(pred[:, :0], target[:, :0], torch.tensor([0, 0])).item() == 0
    one = face_loss(pred[:1], target[:1], torch.tensor([1]))           # one frame has no velocity
    assert one.item() == near(face_loss(pred[:1], target[:1], torch.tensor([1]), velocity_weight=0).item())
