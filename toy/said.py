"""The result of a synthesizer (voices.py, neural.py, held_voices.py): a clip with the times of its words and phones."""
from typing import NamedTuple

import numpy as np
import soxr

RATE = 16_000


class Clip(NamedTuple):
    audio: np.ndarray       # (samples,) float32 at 16 kHz
    words: list             # [(word, start, end), ...] seconds, in order
    phones: list            # [(name, start, end), ...] seconds, without gaps

    def later(self, seconds: float):
        """The clip with this much silence in front."""
        first = round(seconds * RATE)
        moved = ([(name, start + seconds, end + seconds) for name, start, end in spans] for spans in self[1:])
        return Clip(np.concatenate([np.zeros(first, np.float32), self.audio]), *moved)

    def faster(self, factor: float):
        """The clip played `factor` times faster, with its pitch raised as much."""
        moved = ([(name, start / factor, end / factor) for name, start, end in spans] for spans in self[1:])
        return Clip(soxr.resample(self.audio, RATE * factor, RATE), *moved)


def spans(names, starts, seconds: float) -> list:
    """Names and their starts -> [(name, start, end)], each until the next; empty spans are left out."""
    ends = [*starts[1:], seconds]
    return [(name, start, end) for name, start, end in zip(names, starts, ends) if end > start]


VOWELS = "aeiou"


def word_spans(words: list, expected: list, phones: list) -> list:
    """[(word, start, end)] for a synthesizer that only reports phones. Aligns the phones of each word spoken alone,
    `expected`, with those of the sentence by minimum edit distance: in a sentence some differ ("the", "a", liaison)."""
    said = [phone for phone in phones if phone[0] != "pau"]
    owner = [n for n, names in enumerate(expected) for _ in names]
    alone = [name for names in expected for name in names]
    cost = np.zeros((len(alone) + 1, len(said) + 1))
    cost[:, 0], cost[0] = np.arange(len(alone) + 1), np.arange(len(said) + 1)

    def change(i, j):
        a, b = alone[i - 1], said[j - 1][0]
        return 0 if a == b else 0.6 if (a[0] in VOWELS) == (b[0] in VOWELS) else 1.6

    for i in range(1, len(alone) + 1):
        for j in range(1, len(said) + 1):
            cost[i, j] = min(cost[i - 1, j - 1] + change(i, j), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    i, j, found = len(alone), len(said), {}
    while j:
        if i and cost[i, j] == cost[i - 1, j - 1] + change(i, j):
            i, j = i - 1, j - 1
            of = owner[i]
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            continue
        else:
            j -= 1
            of = owner[max(i - 1, 0)]
        found[of] = (said[j][1], found.get(of, (0, said[j][2]))[1])
    return [(word, *found[n]) for n, word in enumerate(words) if n in found]
