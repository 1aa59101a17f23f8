"""augment.py: what it changes, and what it must not."""
import numpy as np
import pytest
import torch

from toy import rooms
from toy.augment import augment, other_voice, room
from whisper import log_mel


@pytest.mark.parametrize("width", [0, 1])
def test_augmentation_moves_the_labels_with_the_sound(width, monkeypatch):
    monkeypatch.setattr("toy.augment.room", lambda power, generator: power)         # its tail is longer than the sound
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


def test_a_room_adds_a_falling_tail_after_a_sound_and_nothing_before_it():
    power = torch.zeros(8, 80, 200)
    power[:, :, 50] = 1
    wet = room(power, torch.Generator().manual_seed(0))
    assert torch.equal(wet[:, :, :51], power[:, :, :51]) and not wet[:, :, 121:].any()
    tail = wet[:, :, 51:121]
    assert (tail.diff(dim=2) < 0).all() and len(tail.sum(2)[:, 0].unique()) == 8
    assert tail.sum(2).min() > 0.05 and tail.sum(2).max() < 0.8


def test_a_room_in_bands_is_like_a_room_of_the_waveform(monkeypatch):
    t = np.arange(32000) / 16000                               # four tones that come and go
    sound = sum(np.sin(2 * np.pi * f * t) * (np.sin(2 * np.pi * (n + 2) * t) > 0.6)
                for n, f in enumerate((300, 700, 1500, 3000))).astype(np.float32) / 8
    sound += 1e-3 * np.random.default_rng(0).standard_normal(32000, np.float32)
    mels = lambda audio: log_mel(torch.from_numpy(audio), 80, 200)
    dry, wet = mels(sound), mels(rooms.reverb(sound, 0.5, 0.7, np.random.default_rng(1)))
    drawn = iter((0.5, 0.7 ** 2))                              # seconds, energy
    monkeypatch.setattr("toy.augment.uniform", lambda generator, batch, *_: torch.full((batch, 1, 1), next(drawn)))
    modelled = (room(10 ** (4 * dry - 4)[None], None)[0].log10() + 4) / 4
    apart = lambda a, b: float((a - b).abs().mean()) * 40      # dB
    assert apart(wet, modelled) < 0.4 * apart(wet, dry)


def test_one_clip_is_as_its_seed_says_and_keeps_its_shape_and_its_generator_to_itself():
    torch.manual_seed(0)
    mel, state = torch.randn(80, 300), torch.get_rng_state()
    one, again, other = other_voice(mel, -5), other_voice(mel, -5), other_voice(mel, 6)
    assert one.shape == mel.shape and torch.equal(one, again) and not torch.allclose(one, other)
    assert torch.equal(torch.get_rng_state(), state)
