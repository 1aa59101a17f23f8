"""plan.py: who says and types what; nothing held out is trained."""
from collections import Counter, defaultdict

import pytest

from toy import domain, keyboard, plan, voices
from toy.domain import spoken

SIZE = plan.SIZES["full"]


@pytest.fixture(scope="module")
def full():
    return plan.plan(0, SIZE)


@pytest.fixture(scope="module")
def written(full):
    size = SIZE | {"typed talks": 800, "spoken talks": 400}
    return {split: list(plan.written(split, full[split], 0, size)) for split in ("train", "val", *plan.MORE_TESTS)}


def test_the_full_plan_has_the_recipes_numbers(full):
    questions = [clip for clip in full["train"] if "answer" in clip]
    families = Counter(clip["how"]["family"] for clip in full["train"])
    assert 17500 <= len(questions) <= 19000 and families["kokoro"] == 1681 and families["hibari"] == 1921
    asked = Counter(clip["answer"] for clip in questions if "before" not in clip)
    assert min(asked["Monday comes after Sunday."], asked["May comes before June."]) >= 40
    assert 40 > asked["The capital of Chile is Santiago."] >= 16 > asked["Five plus two is seven."] >= 9
    assert set(families) == {*voices.FAMILIES, "noise"}
    assert all(3 <= len(clip["text"].split()) <= 8 for clip in full["train"] if clip["kind"] == "random")
    assert len({clip["id"] for several in full.values() for clip in several}) == sum(map(len, full.values()))
    assert all((clip["text"] == "") == (clip["kind"] == "noise") == (clip.get("answer") == domain.SILENCE)
               for split in full if split != "voice" for clip in full[split])


def test_each_answer_is_asked_by_several_families_and_in_most_of_its_forms(full):
    heard, families, forms = defaultdict(set), defaultdict(set), defaultdict(set)
    core = {spoken(row["text"]): row["core"] for row in domain.phrasings()}
    for row in domain.phrasings():
        if row["split"] == "train" and row["answer"] != domain.UNKNOWN:
            forms[row["answer"]].add(row["core"])
    for clip in full["train"]:
        if clip.get("phrasing") == "train":
            heard[clip["answer"]].add(core[spoken(clip["text"])])
            families[clip["answer"]].add(clip["how"]["family"])
    for answer, several in forms.items():
        assert len(families[answer]) >= 3 and len(heard[answer]) >= min(len(several), 8), answer


def test_held_out_phrasings_and_voices_are_not_in_training(full):
    trained = {spoken(clip["text"]) for clip in full["train"] if "answer" in clip}
    train_voices = {clip["how"]["voice"] for clip in full["train"]}
    kinds = {"val": {"train"}, "test-voices": {"train"}, "test-recombined": {"recombined"}, "test-wording": {"wording"},
             "test-both": {"recombined", "wording"}, "test-natural": {"train", "recombined", "wording"},
             "test-outside": {"recombined", "wording", "noise"}}
    for split, expected in kinds.items():
        assert {clip["phrasing"] for clip in full[split]} == expected
        for clip in full[split]:
            assert (clip["how"]["voice"] not in train_voices) if plan.held(split) else True
            assert clip["phrasing"] in ("train", "noise") or spoken(clip["text"]) not in trained
    assert {clip["how"]["family"] for clip in full["test-natural"]} == set(voices.HELD_FAMILIES)


def test_typed_tests_are_not_typed_in_training(written):
    texts = {split: {row["messages"][-1]["content"] for row, _, _ in rows if isinstance(
        row["messages"][-1]["content"], str) and len(row["messages"]) == 1} for split, rows in written.items()}
    assert {text.lower() for text in texts["test-outside"]} & {text.lower() for text in texts["train"]} <= {"really?"}
    kinds = Counter(row["phrasing"] for row, _, _ in written["test-typed"])
    assert set(kinds) == set(keyboard.CHANGES) and len(set(kinds.values())) == 1
    turns = Counter(row["phrasing"] for row, _, _ in written["test-turns"])
    assert set(turns) == {"second turn", "third turn", "follow-up", "again"} and min(turns.values()) > 30


def test_conversations_end_with_the_user_and_have_one_speech_at_most(full, written):
    sounds = {clip["id"] for clip in full["train"]}
    count = Counter()
    for row, speaking, clip in written["train"]:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        speech = [n for n, message in enumerate(row["messages"]) if not isinstance(message["content"], str)]
        assert len(speech) == (clip is not None) and (clip is None or clip in sounds)
        assert speaking == (row["task"] == "qa") and row["answer"] != domain.SILENCE
        count[len(roles), tuple(speech)] += 1
    assert {(1, ()), (3, ()), (5, ()), (3, (0,)), (3, (2,)), (5, (4,))} == set(count), "typed, spoken, and mixed"
    assert all("before" in clip and clip["before"][-1]["role"] == "assistant" for clip in full["test-turns"])


def test_one_seed_makes_one_plan(full, written):
    assert plan.plan(0, SIZE) == full != plan.plan(1, SIZE)
    assert list(plan.written("test-turns", full["test-turns"], 0, SIZE)) == written["test-turns"]


def test_what_a_small_world_lacks_ends_no_loop_late(monkeypatch):
    """Without sums nothing has digits; without clips of questions no conversation has sound."""
    row = {"text": "What is the capital of France?", "answer": "The capital of France is Paris.", "kind": "capital",
           "carrier": "what is {}?", "core": "the capital of France"}
    rows = [row | {"split": split} for split in ("train", "wording")]
    monkeypatch.setattr(plan.domain, "phrasings", lambda seed: rows)
    typed = Counter(row["phrasing"] for row, _, _ in plan.written("test-typed", [], 0, SIZE | {"tests": 12}))
    assert typed == {name: 3 for name in keyboard.CHANGES if name != "digits"}
    size = SIZE | {"typed talks": 2, "spoken talks": 2}
    assert all(clip is None for _, _, clip in plan.written("train", [], 0, size))
