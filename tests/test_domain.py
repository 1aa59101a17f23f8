"""domain.py: what one can ask has one answer, and what is held out is held out fairly."""
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from toy import domain

ROWS = domain.phrasings()
BY_SPLIT = defaultdict(list)
for each in ROWS:
    BY_SPLIT[each["split"]].append(each)
TRAINED = set(domain.vocabulary(row["text"] for row in BY_SPLIT["train"]))


def test_there_are_about_300_answers_and_ten_trained_phrasings_of_each():
    trained = Counter(row["answer"] for row in BY_SPLIT["train"])
    assert 280 <= len(trained) <= 320 and set(trained) == {answer for _, answer, _, _ in domain.items()}
    assert min(trained.values()) >= 10


def test_at_least_30_answers_have_two_to_four_sentences_and_last_some_6_to_15_seconds():
    long = [answer for answer in {row["answer"] for row in ROWS} if len(domain.spoken(answer).split()) >= 16]
    assert len(long) >= 30
    for answer in long:
        assert 2 <= len(re.findall(r"[.?!]", answer)) <= 4
        assert len(domain.spoken(answer).split()) <= 45             # the answer voice says about three words a second


def test_no_two_phrasings_sound_alike_so_each_has_one_answer_and_one_split():
    assert len({domain.spoken(row["text"]) for row in ROWS}) == len(ROWS)


def test_two_answers_to_one_phrasing_are_refused(monkeypatch):
    twice = [("talk", answer, {"talk": ["how are you?"] * 1}, None) for answer in ("Fine.", "Not so fine.")]
    monkeypatch.setattr(domain, "items", lambda: twice)
    with pytest.raises(ValueError, match="Fine.*Not so fine.*expected one answer"):
        domain.phrasings()


def test_recombined_pairs_are_made_of_trained_parts():
    carriers, cores = defaultdict(set), defaultdict(set)
    for row in BY_SPLIT["train"]:
        carriers[row["carrier"]].add(row["core"])
        cores[row["core"]].add(row["carrier"])
    for row in BY_SPLIT["recombined"]:
        assert len(carriers[row["carrier"]] - {row["core"]}) >= 10 and len(cores[row["core"]]) >= 2, row["text"]
    assert len({row["answer"] for row in BY_SPLIT["recombined"]}) == len({row["answer"] for row in ROWS})


def test_held_out_wordings_are_never_trained_but_their_words_are():
    carriers, cores = ({row[part] for row in BY_SPLIT["train"]} for part in ("carrier", "core"))
    for row in BY_SPLIT["wording"]:
        assert row["carrier"] not in carriers or row["core"] not in cores, row["text"]
        assert set(domain.spoken(row["text"]).split()) <= TRAINED, row["text"]
    assert len({row["answer"] for row in BY_SPLIT["wording"]}) == len({row["answer"] for row in ROWS})


def test_texts_are_speakable_ascii_with_numbers_in_words():
    for row in ROWS:
        for text in (row["text"], row["answer"]):
            assert re.fullmatch(r"[A-Z][A-Za-z' ,.?!]*[.?!]", text), text
        assert len(domain.spoken(row["text"]).split()) <= 13           # fits the encoder's window: see demo.WINDOW


def test_arithmetic_is_right():
    for row in ROWS:
        if row["kind"] in ("plus", "minus"):
            a, sign, b, _, result = domain.spoken(row["answer"]).split()
            a, b, result = map(domain.NUMBERS.index, (a, b, result))
            assert result == (a + b if sign == "plus" else a - b)


def test_the_seed_decides_what_is_recombined_and_nothing_else():
    other = domain.phrasings(seed=1)
    assert domain.phrasings() == ROWS
    held = [{row["text"] for row in rows if row["split"] == "recombined"} for rows in (ROWS, other)]
    assert len(held[0]) == len(held[1]) and held[0] != held[1]


def test_a_transcript_has_words_and_apostrophes_only():
    assert domain.spoken("Hey, what's  the capital of France?") == "hey what's the capital of france"


def test_typed_questions_say_the_same_words():
    random, text = np.random.default_rng(0), "What's the capital of France?"
    seen = {domain.typed(text, random) for _ in range(50)}
    assert {domain.spoken(variant) for variant in seen} == {domain.spoken(text)}
    assert {"what's the capital of france", "what's the capital of france?", "What's the capital of France"} <= seen


def test_random_strings_have_the_length_asked_for_and_use_the_given_words():
    strings = domain.random_strings(200, ["alpha"], np.random.default_rng(0), 3, 5)
    assert {len(text.split()) for text in strings} == {3, 4, 5}
    share = np.mean([word == "alpha" for text in strings for word in text.split()])
    assert abs(share - 0.6) < 0.06                                     # 800 draws: three standard deviations


def test_plain_sentences_differ_from_one_another():
    sentences = domain.plain_sentences(300, np.random.default_rng(0))
    assert len(set(sentences)) == 300 and all(re.fullmatch(r"[A-Z][a-zA-Z ]+\.", text) for text in sentences)
