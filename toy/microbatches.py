"""Micro-batches for a world of short samples, where most of the work is padding (train.py, mini recipe)."""
import numpy as np

from data import Split, by_length

PROMPT_UNITS = 50      # a sample's prompt and question take about as long as that many units


def like_length(split: Split, rows, count: int) -> list:
    """rows cut into `count` lists by length, such that the squares of what they cost (samples times the longest one's
    length) add up to the least: little padding, and no micro-batch much larger than the others.

    By dynamic programming: best[j] is the least for the first j rows in as many lists as were cut so far."""
    rows = by_length(split, rows)
    lengths = np.array([PROMPT_UNITS + split.rows[i].get("units", (0, 0))[1] for i in rows])
    best, begins = np.append(0.0, np.full(len(rows), np.inf)), []
    for _ in range(count):
        costs = [best[:j] + ((j - np.arange(j)) * lengths[j - 1]) ** 2.0 for j in range(1, len(rows) + 1)]
        begins.append([0, *(int(cost.argmin()) for cost in costs)])     # of the last list of the first j rows
        best = np.append(np.inf, [cost.min() for cost in costs])
    ends = [len(rows)]
    for begin in reversed(begins):
        ends.append(begin[ends[-1]])
    ends.reverse()
    return [rows[i:j] for i, j in zip(ends, ends[1:])]
