"""casual.py: what is asked decides the answer, never how."""
from collections import defaultdict

import numpy as np
import pytest

from toy import casual, domain, keyboard

COUNT = 6000


@pytest.fixture(scope="module")
def rows():
    return list(casual.questions(COUNT, np.random.default_rng(5)))


def test_each_answer_is_one_of_the_world_and_none_contradicts_another_phrasing(rows):
    answers = {answer for _, answer, _, _ in domain.items()}
    assert len(rows) == COUNT and {answer for _, answer, _ in rows} - answers == {domain.UNKNOWN}
    wanted = {casual.bare(row["text"]): row["answer"] for row in domain.phrasings()}
    both = [(text, answer) for text, answer, _ in rows if casual.bare(text) in wanted]
    assert both and all(wanted[casual.bare(text)] == answer for text, answer in both)


def test_the_same_forms_are_asked_with_and_without_an_answer(rows):
    asked = defaultdict(set)
    for text, answer, _ in rows:
        for word in ("capital", "opposite", "plus", "legs", "color", "after"):
            if word in text.split():
                asked[word].add(answer == domain.UNKNOWN)
    assert all(both == {True, False} for both in asked.values()) and len(asked) == 6


def test_many_texts_and_all_kinds(rows):
    assert len({text for text, _, _ in rows}) > 0.95 * COUNT
    assert {kind for _, _, kind in rows} == {"near", "talk", "fact", "topic", *casual.LEFT, *casual.FORMS} - {"order"}
    again = list(casual.questions(50, np.random.default_rng(5)))
    assert again == list(casual.questions(50, np.random.default_rng(5))) != rows[50:100]


@pytest.mark.parametrize("words, number", [("zero", 0), ("thirty seven", 37), ("two hundred", 200), ("fifteen", 15),
                                           ("twenty", 20), ("one million", 1_000_000), ("ninety nine", 99)])
def test_large_numbers_in_digits(words, number):
    assert keyboard.value(words) == number
    assert keyboard.digits(f"I have {words}.", np.random.default_rng(0)) == f"I have {number}."
