"""augment.py: what it changes, and what it must not."""
import pytest
import torch

from toy.augment import augment, other_voice


@pytest.mark.parametrize("width", [0, 1])
def test_augmentation_moves_the_labels_with_the_sound(width):
    B, L = 16, 200
    mel, labels = torch.full((B, 80, L), -1.0), torch.zeros(2, B, L, dtype=torch.long)
    mel[:, 30:50, 60:120], labels[:, :, 60:120] = 1, 5
    out, moved = augment(mel, labels, width, torch.Generator().manual_seed(0))
    assert out.shape == mel.shape and moved.shape == (2, B, L // 2) and out.isfinite().all()
    loud = (out[:, :, ::2] > out.amax((1, 2), keepdim=True) - 0.3).any(1)                       # (B, L / 2)
    named = moved[0] == 5
    assert torch.equal(moved[0], moved[1])
    assert (loud & ~named).sum() <= B, "at most one state next to the span, where frames are mixed"
    assert (loud & named).sum() > 0.75 * named.sum(), "a moment may be masked, the rest sounds"
    lengths = named.sum(1)
    assert lengths.min() >= 27 and lengths.max() <= 34 and lengths.min() < lengths.max(), "60 frames, stretched by 10 %"


def test_frequencies_move_further_when_the_augmentation_is_wider():
    mel, labels = torch.full((64, 80, 40), -1.0), torch.zeros(1, 64, 40, dtype=torch.long)
    mel[:, 40] = 1

    def spread(width):
        out, _ = augment(mel, labels, width, torch.Generator().manual_seed(0))
        low, high = out.mean(2).argmax(1).float().quantile(torch.tensor([0.1, 0.9]))
        return high - low
    assert 1 <= spread(0) <= 3 and 5 <= spread(1) <= 9, "a band is 4 % wide here: -4 ... 5 % and -16 ... 20 %"


def test_one_clip_is_as_its_seed_says_and_keeps_its_shape_and_its_generator_to_itself():
    torch.manual_seed(0)
    mel, state = torch.randn(80, 300), torch.get_rng_state()
    one, again, other = other_voice(mel, -5), other_voice(mel, -5), other_voice(mel, 6)
    assert one.shape == mel.shape and torch.equal(one, again) and not torch.allclose(one, other)
    assert torch.equal(torch.get_rng_state(), state)
