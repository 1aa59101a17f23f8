"""talks.py: what follows an answer is answered from it, and nothing without it."""
import numpy as np
import pytest

from toy import domain, talks

KNOWN = domain.known()
WHERE = talks.index(KNOWN)
ANSWERS = {answer for several in KNOWN.values() for _, answer in several}


def follow_ups(answer, held=False, count=200):
    random = np.random.default_rng(0)
    return [talks.follow_up(answer, KNOWN, WHERE, random, held) for _ in range(count)]


@pytest.mark.parametrize("answer, start", [("The capital of France is Paris.", "The capital of "),
                                           ("The opposite of hot is cold.", "The opposite of "),
                                           ("A dog has four legs.", "A"), ("Two plus two is four.", "")])
def test_a_follow_up_asks_the_same_of_something_else(answer, start):
    kind = WHERE[answer][0]
    for text, wanted, what in follow_ups(answer):
        assert what in ("follow-up", "near") and (what == "near") == (wanted == domain.UNKNOWN)
        if what == "follow-up":
            assert WHERE[wanted][0] == kind and wanted.startswith(start)
            asked = [value for name, value in WHERE[wanted][1].items() if name in ("x", "xs", "a") and value]
            assert any(value in text for value in asked), (text, wanted)


def test_days_go_on():
    found = {text: wanted for text, wanted, _ in follow_ups("Tuesday comes after Monday.")}
    assert found["and after that?"] == "Wednesday comes after Tuesday."
    assert "and then?" in found and "spring" not in "".join(found)
    found = {text: wanted for text, wanted, _ in follow_ups("Winter comes before spring.")}
    assert found["and before that?"] == "Autumn comes before winter."


def test_nothing_follows_what_has_no_table():
    assert set(follow_ups("My name is Mini.")) == set(follow_ups(domain.UNKNOWN)) == {None}


def test_turns_are_questions_follow_ups_and_repetitions_and_the_tests_forms_are_held_out():
    random = np.random.default_rng(0)
    rows = [row for row in domain.phrasings() if row["split"] == "train"]
    ask = lambda: (lambda row: (row["text"], row["answer"]))(rows[int(random.integers(len(rows)))])
    trained, kinds = set(), set()
    for held in (False, True):
        for _ in range(600):
            turns = talks.turns(ask, KNOWN, WHERE, 3, random, held)
            assert len(turns) == 3 and turns[0][2] == "question"
            for (_, before, _), (text, answer, kind) in zip(turns, turns[1:]):
                kinds.add(kind)
                assert text[0] == text[0].upper() and (answer == before if kind == "again" else True)
                if kind in ("again", "follow-up") and not held:
                    trained.add(text.lower())
                elif kind == "again":
                    assert text.lower() not in trained
    assert kinds == {"question", "follow-up", "again", "near"}
    forms = {kind: set(several) for kind, several in talks.FOLLOW_UPS.items()}
    assert all(not forms[kind] & set(several) for kind, several in talks.HELD_FOLLOW_UPS.items())
    assert forms.keys() == talks.HELD_FOLLOW_UPS.keys() == KNOWN.keys()


def test_alone_is_what_could_follow_but_is_no_question_of_its_own():
    texts = talks.alone(300, KNOWN, np.random.default_rng(0))
    spoken = {domain.spoken(row["text"]) for row in domain.phrasings() if row["answer"] != domain.UNKNOWN}
    assert len(texts) == 300 and not any(domain.spoken(text) in spoken for text in texts)
