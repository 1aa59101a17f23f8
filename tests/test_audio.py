"""audio.py: which part of a recording is heard (files: test_whisper.py)."""
from dataclasses import replace

import pytest
import torch

from audio import spoken_parts
from whisper import WhisperConfig, windows


def burst(seconds, seed=0):
    """Sound as loud as speech, in syllables of a fifth of a second."""
    t = torch.arange(round(seconds * 16_000)) / 16_000
    return 0.2 * torch.randn(len(t), generator=torch.Generator().manual_seed(seed)) * (0.1 + (10 * torch.pi * t).sin().abs())


@pytest.mark.parametrize("hiss", [0, 0.002, 0.01])
@pytest.mark.parametrize("before, after", [(0, 0), (4, 0), (1, 1), (0, 3), (20, 20)])
def test_silence_at_both_ends_is_left_out(before, after, hiss):
    speech, silence = burst(1.5), [torch.zeros(round(s * 16_000)) for s in (before, after)]
    sound = torch.cat([silence[0], speech, silence[1]])
    sound = sound + hiss * torch.randn(len(sound), generator=torch.Generator().manual_seed(1))
    part, = spoken_parts(sound, 5 * 16_000)
    start = part.storage_offset() / 16_000 - before
    assert -0.2 <= start <= 0.05 and 1.45 <= start + len(part) / 16_000 <= 1.7


def test_long_sound_is_cut_where_it_is_quiet():
    sound = torch.cat([torch.zeros(8_000), burst(3), torch.zeros(6_400), burst(4, 1), torch.zeros(6_400), burst(2, 2)])
    parts = spoken_parts(sound, 5 * 16_000)
    edges = [part.storage_offset() / 16_000 for part in parts[1:]]
    assert len(parts) == 3 and 3.5 <= edges[0] <= 3.9 and 7.9 <= edges[1] <= 8.3, edges
    assert all(len(part) <= 5 * 16_000 for part in parts)
    joined = torch.cat(parts)
    assert torch.equal(joined, sound[parts[0].storage_offset():][:len(joined)]), "nothing is lost at a cut"


def test_only_a_checkpoint_that_says_so_leaves_silence_out():
    config = WhisperConfig(80, 32, 2, 2, 64, 250)
    sound = torch.cat([torch.zeros(4 * 16_000), burst(1.5)])
    assert len(windows(sound, config)) == 2
    assert len(windows(sound, replace(config, quiet_cuts=True))) == 1
