"""keyboard.py: what people type still asks the same."""
import re

import numpy as np
import pytest

from toy import domain, keyboard

TEXT = "Hello, what is the opposite of cold?"


def several(change, text, count=200) -> set:
    random = np.random.default_rng(0)
    return {change(text, random) for _ in range(count)}


def test_case_changes_letters_alone():
    random = np.random.default_rng(0)
    for name, wanted in (("lower", TEXT.lower()), ("upper", TEXT.upper()),
                         ("title", "Hello, What Is The Opposite Of Cold?")):
        assert keyboard.CHANGES[name](TEXT, random) == wanted
    assert keyboard.CHANGES["title"]("what's up", random) == "What's Up"


def test_numbers_become_digits_and_the_sum_its_signs():
    seen = several(keyboard.digits, "What is seven minus ten?")
    assert {"What is 7 minus 10?", "What is 7 - 10?", "What is 7-10?", "7 - 10", "7-10="} <= seen
    assert all(re.findall(r"\d+", text) == ["7", "10"] for text in seen)
    assert several(keyboard.digits, TEXT) == {TEXT}


def test_a_space_too_many_or_too_few_changes_nothing_else():
    seen = several(keyboard.spaces, TEXT)
    assert len(seen) > 10 and {text.replace(" ", "") for text in seen} == {TEXT.replace(" ", "")}


def test_punctuation_keeps_words_and_signs():
    assert {domain.spoken(text) for text in several(keyboard.punctuation, TEXT)} == {domain.spoken(TEXT)}
    assert all("7 - 3" in text for text in several(keyboard.punctuation, "What is 7 - 3?"))


@pytest.mark.parametrize("word", ["east", "thick", "opposite", "Germany"])
def test_a_slip_is_one_edit_and_never_another_word_of_the_world(word):
    seen = several(keyboard.slip, word)
    assert len(seen) > 5
    for text in seen:
        assert text.lower() not in keyboard.WORDS and abs(len(text) - len(word)) <= 1
        assert sum(a != b for a, b in zip(text, word)) <= 2 or len(text) != len(word), text
    assert several(keyboard.slip, "a to be") == {"a to be"}, "short words are left alone"


def test_typed_texts_are_of_all_kinds_and_follow_from_the_seed():
    seen = several(keyboard.typed, "What is two plus two?", 400)
    assert {"what is two plus two?", "WHAT IS TWO PLUS TWO?", "What is two plus two?", "2 + 2"} <= seen
    assert len(seen) > 80 and all(several(keyboard.typed, "?"))
    again = [keyboard.typed(TEXT, np.random.default_rng(3)) for _ in "ab"]
    assert again[0] == again[1]
