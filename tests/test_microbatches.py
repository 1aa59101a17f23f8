"""toy/microbatches.py: a batch is cut where the padding is least."""
from itertools import combinations

import numpy as np
import pytest

from data import Split, Writer
from toy.microbatches import PROMPT_UNITS, like_length


def split_of(tmp_path, lengths):
    """tts samples of so many units."""
    with Writer(tmp_path) as out:
        for i, n in enumerate(lengths):
            out.add({"id": str(i), "task": "tts", "messages": [], "answer": "a"}, units=np.zeros(n, int))
        out.finish()
    return Split(tmp_path)


def test_a_batch_is_cut_by_length(tmp_path):
    split = split_of(tmp_path, (9, 1, 8, 2, 7))
    assert like_length(split, [0, 1, 2, 3, 4], 2) == [[1, 3], [4, 2, 0]]
    assert [len(rows) for rows in like_length(split, [0, 1, 2, 3, 4], 5)] == [1] * 5


@pytest.mark.parametrize("lengths, count", [((3, 90, 4, 200, 5, 8, 60, 7), 3), ((150, 1, 1, 1, 1, 1, 1), 2),
                                            ((20,) * 8, 4), ((300, 1, 290, 2, 280), 4)])
def test_the_cut_costs_the_least(tmp_path, lengths, count):
    """Against all ways to cut the sorted batch."""
    split = split_of(tmp_path, lengths)

    def cost(cut):
        return sum((len(rows) * (PROMPT_UNITS + max(lengths[i] for i in rows))) ** 2 for rows in cut)
    rows = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ways = [[rows[i:j] for i, j in zip((0, *cut), (*cut, len(rows)))]
            for cut in combinations(range(1, len(rows)), count - 1)]
    found = like_length(split, list(range(len(lengths))), count)
    assert sum(found, []) == rows and len(found) == count
    assert cost(found) == min(map(cost, ways))
