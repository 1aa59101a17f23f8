"""toy/marking.py and toy/speaking.py: marks and figures whose truth is known."""
import sys

import numpy as np
import pytest
import torch

from model import Answer
from toy import marking, speaking
from toy.domain import SILENCE, UNKNOWN, items


def test_an_answer_is_right_letter_for_letter():
    samples = [{"id": str(n), "answer": "Two.", "family": "espeak" if n < 2 else "flite"} for n in range(3)]
    rows = marking.marked(lambda asked: [("Two.", 0.9), ("two.", 0.5), ("Two.", 0.7)], samples)
    assert [row["right"] for row in rows] == [True, False, True]
    assert rows[1]["expected"] == "Two." and rows[1]["got"] == "two."
    assert marking.by(rows, "family") == {"espeak": {"right": 1, "asked": 2, "share": 0.5},
                                           "flite": {"right": 1, "asked": 1, "share": 1.0}}
    assert marking.by(rows, "phrasing") == {} and marking.share([])["share"] is None


def test_words_are_as_they_sound():
    assert marking.words("It's 24 o'clock, twenty-one!") == "it's twenty four o'clock twenty one".split()
    assert marking.words("305 and 2024") == "three hundred and five and two zero two four".split()


def test_the_word_error_rate_counts_edits_over_all_words():
    pairs = [("Two and two is four.", "2 and 2 is 4"), ("A cat.", "the cat sat"), ("Yes, it is so.", "")]
    pairs = [tuple(map(marking.words, pair)) for pair in pairs]
    assert marking.error_rate(pairs) == pytest.approx((0 + 2 + 4) / 11)
    assert marking.error_rate([("kitten", "sitting")]) == pytest.approx(3 / 6)


def spoken(text, seconds, voice_seconds, units=None, ended=True):
    own = np.arange(round(voice_seconds * 12.5)) % 7
    units = torch.arange(round(seconds * 12.5)) % 7 if units is None else units
    waveform, audio = (np.random.default_rng(0).normal(size=round(length)) for length in (seconds * 22_050,
                                                                                         voice_seconds * 16_000))
    answer = Answer(text, [], None, units, torch.zeros(len(units) + ended, 4), None,
                    torch.from_numpy(waveform), 1.0, {})
    return {"answer": text}, answer, {"audio": audio, "units": own}


def test_an_answer_shorter_than_the_voice_is_truncated():
    cut = spoken("Cut", 8, 12, ended=False)
    found = speaking.compare_speech([spoken("Whole.", 2, 2), spoken("Long.", 2.4, 2), cut])
    assert [row["text"] for row in found["truncated"]] == ["Cut"] == [found["longest"]["text"]]
    assert found["length over the voice's, median"] == 1 and found["length within 10 %"] == pytest.approx(1 / 3)
    assert found["units equal to the voice's"] == pytest.approx(1 / 3) and found["stopped by the limit of units"] == 1
    assert found["unit error rate"] == pytest.approx((0 + 5 + 50) / (25 + 25 + 150))    # inserted, and left out


def test_questions_are_spread_evenly_and_long_answers_are_all_there():
    samples = [{"answer": f"Answer {n}." + " And more." * (n % 10 == 3)} for n in range(40) for _ in range(2)]
    chosen = [sample["answer"] for sample in speaking.choose(samples, 16)]
    assert len(chosen) == len(set(chosen)) == 16 and sum("And more." in text for text in chosen) == 4
    numbers = [int(text.split()[1].rstrip(".")) for text in chosen]
    assert numbers == sorted(numbers) and max(np.diff(numbers)) <= 4 and max(numbers) >= 36
    assert len(speaking.choose(samples, 100)) == 40


def test_refusals_are_counted_apart_from_answers_and_confident_ones_among_the_wrong():
    def mark(kind, expected, got, confidence):
        return {"kind": kind, "expected": expected, "got": got, "confidence": confidence, "right": got == expected}
    found = marking.refusals([
        mark("far", UNKNOWN, UNKNOWN, 0.9), mark("far", UNKNOWN, SILENCE, 0.9), mark("near", UNKNOWN, "Four.", 0.95),
        mark("near", UNKNOWN, "Five.", 0.4), mark("noise", SILENCE, SILENCE, 1), mark("plus", "Two.", "Two.", 0.9),
        mark("plus", "Two.", UNKNOWN, 0.99), mark("plus", "Two.", "Six.", 0.9)])
    shares = {kind: [one["right"] for one in row.values()] for kind, row in found.items()}
    assert shares == {"far": [1, 2, 0], "near": [0, 0, 1], "noise": [1, 1, 0], "with an answer": [1, 1, 1]}


def test_strangers_questions_are_typed_and_have_answers_of_the_world():
    samples, answers = marking.strangers(), {answer for _, answer, _, _ in items()}
    for sample in samples:
        turns = [*sample.get("before", []), sample["text"]]
        assert [message["content"] for message in sample["messages"]] == turns and len(turns) % 2
        assert sample["messages"][-1]["role"] == "user" and ("before" in sample) == sample["kind"].startswith("talk")
        assert {*turns[1::2], sample["answer"]} <= answers | {UNKNOWN}
        assert sample["kind"].startswith("talk") or (sample["answer"] == UNKNOWN) == (sample["kind"] != "wording")
    found = marking.by(marking.marked(lambda asked: [(UNKNOWN, 1.0)] * len(asked), samples), "kind")
    assert {kind: (one["right"], one["asked"]) for kind, one in found.items()} == {
        "far": (60, 60), "near": (60, 60), "talk": (3, 25), "talk with a follow-up": (2, 25), "wording": (0, 80)}


def test_error_rates_are_grouped_by_the_duration_of_the_speech():
    pairs = {"generated": [("a b".split(), "a b".split()), ("c d".split(), "c".split()), ("e f".split(), [])],
             "voice": [("a b".split(), "a".split()), ("c d".split(), "c d".split()), ("e f".split(), "e f".split())]}
    assert speaking.by_duration([2.0, 5.0, 17.5], pairs) == {
        "0-5 s": {"answers": 2, "generated": 0.25, "voice": 0.25},
        "15-20 s": {"answers": 1, "generated": 1, "voice": 0}}
    assert speaking.by_duration([2.0, 61.0], {}) == {"0-5 s": {"answers": 1}}      # the paper leaves out what is longer


def test_without_jiwer_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(OSError, match="pip install jiwer"):
        marking.error_rate([("a", "b")])
