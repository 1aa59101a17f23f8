"""domain.py: what one can ask has one answer, and what is held out is held out fairly."""
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from toy import domain, facts, outside

ALL = domain.phrasings()
ROWS, REFUSED = ([row for row in ALL if (row["answer"] == domain.UNKNOWN) == refused] for refused in (False, True))
BY_SPLIT = defaultdict(list)
for each in ROWS:
    BY_SPLIT[each["split"]].append(each)
TRAINED = set(domain.vocabulary(row["text"] for row in BY_SPLIT["train"]))


def test_there_are_about_700_answers_and_ten_trained_phrasings_of_each():
    trained = Counter(row["answer"] for row in BY_SPLIT["train"])
    assert 650 <= len(trained) <= 700 and set(trained) == {answer for _, answer, _, _ in domain.items()}
    assert min(trained.values()) >= 10 and max(trained.values()) <= domain.TRAINED


def test_opposites_and_sums_are_known_from_both_sides():
    answers = {row["answer"] for row in ROWS}
    assert {"The opposite of hot is cold.", "The opposite of cold is hot.", "Two plus nine is eleven.",
            "Nine plus two is eleven.", "Ten minus ten is zero.", "The capital of Brazil is Brasilia."} <= answers
    for word, other in domain.opposites().items():
        assert f"The opposite of {word} is {other}." in answers


def test_what_has_no_answer_has_none_and_its_words_or_templates_are_held_out():
    cores = {domain.spoken(core) for _, _, forms, _ in domain.items() for several in forms.values() for core in several}
    split = defaultdict(list)
    for row in REFUSED:
        assert domain.spoken(row["core"]) not in cores, row["text"]
        split[row["split"]].append(row)
    assert len(split["train"]) > 7000 and min(len(split["recombined"]), len(split["wording"])) > 300
    assert {row["kind"] for row in REFUSED} == {"far", "near"}
    trained = {domain.spoken(row["text"]) for row in split["train"]}
    assert not any(domain.spoken(row["text"]) in trained for row in split["recombined"] + split["wording"])
    held = outside.LISTS["place"][4::5]
    assert not any(re.search(rf"\b({'|'.join(held)})\b", row["text"]) for row in split["train"]
                   if row["kind"] == "far" and "it true" not in row["text"])


def test_made_up_names_are_no_known_one_mistyped():
    random, names = np.random.default_rng(0), [word.lower() for word in domain.CAPITALS]
    for name in (outside.made_up(random).lower() for _ in range(200)):
        assert not any(len(set(name) ^ set(known)) < 1 and len(name) == len(known) for known in names)
        assert all(name[:n] + name[n + 1:] not in names and name[:n] + name[n + 1:n + 2] + name[n:n + 1] + name[n + 2:]
                   not in names for n in range(len(name))), name


def test_at_least_30_answers_have_two_to_four_sentences_and_last_some_6_to_15_seconds():
    long = [answer for answer in {row["answer"] for row in ROWS} if len(domain.spoken(answer).split()) >= 16]
    assert len(long) >= 30
    for answer in long:
        assert 2 <= len(re.findall(r"[.?!]", answer)) <= 4
        assert len(domain.spoken(answer).split()) <= 45             # the answer voice says about three words a second


def test_no_two_phrasings_sound_alike_so_each_has_one_answer_and_one_split():
    assert len({domain.spoken(row["text"]) for row in ALL}) == len(ALL)


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
    for row in ALL:
        for text in (row["text"], row["answer"]):
            assert re.fullmatch(r"[A-Z][A-Za-z' ,.?!]*[.?!]", text), text
        assert len(domain.spoken(row["text"]).split()) <= 16           # fits the encoder's window: see demo.WINDOW


def test_arithmetic_is_right():
    for row in ROWS:
        if row["kind"] in ("plus", "minus"):
            a, sign, b, _, result = domain.spoken(row["answer"]).split()
            a, b, result = map(domain.NUMBERS.index, (a, b, result))
            assert result == (a + b if sign == "plus" else a - b)


def test_the_seed_decides_what_is_recombined_and_nothing_else():
    other = domain.phrasings(seed=1)
    assert domain.phrasings() == ALL
    held = [{row["text"] for row in rows if row["split"] == "recombined"} for rows in (ALL, other)]
    assert abs(len(held[0]) - len(held[1])) < 100 and held[0] != held[1]


def test_a_transcript_has_words_and_apostrophes_only():
    assert domain.spoken("Hey, what's  the capital of France?") == "hey what's the capital of france"


def test_random_strings_have_the_length_asked_for_and_use_the_given_words():
    strings = domain.random_strings(200, ["alpha"], np.random.default_rng(0), 3, 5)
    assert {len(text.split()) for text in strings} == {3, 4, 5}
    share = np.mean([word == "alpha" for text in strings for word in text.split()])
    assert abs(share - 0.6) < 0.06                                     # 800 draws: three standard deviations


def test_plain_sentences_differ_from_one_another():
    sentences = facts.plain_sentences(300, np.random.default_rng(0))
    assert len(set(sentences)) == 300 and all(re.fullmatch(r"[A-Z][a-zA-Z ]+\.", text) for text in sentences)
