"""The contents of each split of the demo set as text: who says what, and what is typed (demo.py makes the sound).

`plan`: the clips. In training: questions for each answer by each family of voices, questions without an answer,
follow-ups, noise without a question, and random words to transcribe.
`written`: the samples without a clip of their own: typed questions and conversations; some use the sound of a clip.

A clip is {"id", "text", "answer", "kind", "phrasing", "how"[, "before"]}: `how` has the arguments of voices.speak,
`before` the previous turns. Noise has the text "" and how = {"family": "noise", "voice": one of rooms.NOISES,
"seconds"}, for rooms.noise. Random words have no answer. Everything follows from the seed.
"""
import zlib
from collections import Counter, defaultdict

import numpy as np

from toy import casual, domain, facts, keyboard, outside, talks, voices
from toy.keyboard import pick
from toy.rooms import NOISES

# Numbers of training clips by family of voices ("once more": factors of MISHEARD); of random strings and plain
# sentences to read aloud, and how many of each are held out; of casual questions, of typed conversations, and of
# conversations with a clip's sound. The tests ask for "every" n-th answer; test-turns and test-outside have "tests"
# spoken samples.
SIZES = {
    "full": {"asked": {"espeak": 2900, "flite": 2900, "kokoro": 570, "hibari": 720},
             "once more": {"espeak": 3, "flite": 3, "kokoro": 1, "hibari": 1},
             "unknown": {"espeak": 350, "flite": 300, "kokoro": 80, "hibari": 110},
             "follow-up": {"espeak": 1500, "flite": 1500, "kokoro": 200, "hibari": 260}, "noise": 300,
             "random": {"espeak": 2200, "flite": 1800}, "strings": 1500, "sentences": 300, "held": 40,
             "casual": 24000, "typed talks": 14000, "spoken talks": 5000, "every": 2, "tests": 240},
    "small": {"asked": {"espeak": 700, "flite": 700, "kokoro": 10, "hibari": 10}, "once more": {},
              "unknown": {"espeak": 60, "flite": 60}, "follow-up": {"espeak": 30, "flite": 30}, "noise": 20,
              "random": {"espeak": 100, "flite": 60}, "strings": 60, "sentences": 40, "held": 10,
              "casual": 2500, "typed talks": 1500, "spoken talks": 200, "every": 12, "tests": 24},
}
TESTS = ("test-voices", "test-recombined", "test-wording", "test-both", "test-natural")
MORE_TESTS = ("test-turns", "test-outside", "test-typed")
SPLITS = ("voice", "train", "val", *TESTS, *MORE_TESTS)
# Kinds that are misheard more often than sums, most of all those whose questions differ in one short word only. Each
# family asks such a question this number times SIZES' "once more" additional times.
MISHEARD = {"day": 4, "month": 4, "season": 4, "talk": 3, "opposite": 2, "sound": 2, "color": 1, "capital": 1,
            "fact": 1, "topic": 1, "legs": 1}
ASK_AGAIN = 7               # every 7th typed conversation of training ends with a request to repeat (talks.AGAIN)
READ_AS_QUESTION = 14       # every 14th typed question of training also has a spoken answer, which costs most


def rng(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for everything that has a name: results do not depend on the order of the work."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def asked(phrasings: list) -> dict:
    """domain.phrasings -> {answer: {split: rows}}."""
    found = {}
    for row in phrasings:
        found.setdefault(row["answer"], {}).setdefault(row["split"], []).append(row)
    return found


# ---- spoken clips ---------------------------------------------------------------------------------------------------

def plan(seed: int, size: dict) -> dict:
    """{split: its clips}."""
    phrasings = domain.phrasings(seed)
    rows = asked(phrasings)
    answers, answered = [*rows, domain.SILENCE], [answer for answer in rows if answer != domain.UNKNOWN]
    words = domain.vocabulary(row["text"] for row in phrasings if row["kind"] not in ("far", "near"))
    clips = {"voice": to_read_aloud(seed, size, answers)}
    clips["train"] = [*questions(seed, size["asked"], size["once more"], answered, rows),
                      *refused(seed, size["unknown"], rows),
                      *follow_ups(seed, phrasings, "train", size["follow-up"]), *noise(seed, "train", size["noise"]),
                      *(random_words(seed, family, n, words) for family, count in size["random"].items()
                        for n in range(count))]
    chosen = list(enumerate(answered))[::size["every"]]
    for split in ("val", *TESTS):
        clips[split] = []
        for n, (number, answer) in enumerate(chosen):
            kind = {"val": "train", "test-voices": "train", "test-recombined": "recombined", "test-wording": "wording",
                    "test-both": ("recombined", "wording")[n % 2],
                    "test-natural": ("train", "recombined", "wording")[n // 4 % 3]}[split]
            family = {"test-voices": "espeak", "test-both": "espeak",
                      "test-natural": voices.HELD_FAMILIES[n % 4]}.get(split, ("espeak", "flite")[
                          int(rng(seed, f"{split} {number}").random() < 0.5)])
            row = pick(rows[answer][kind], rng(seed, f"{split} {family} {number}"))
            clips[split].append(clip(seed, f"{split}-{number:03d}-{family}-0", row, family, held(split)))
    clips |= {split: [] for split in MORE_TESTS}
    share = size["tests"] // 2
    counts = {"espeak": share // 2, "flite": share - share // 2}
    clips["test-turns"] = follow_ups(seed, phrasings, "test-turns", counts)
    strange = [row for split in ("recombined", "wording") for row in rows[domain.UNKNOWN][split]]
    clips["test-outside"] = [
        clip(seed, f"test-outside-{n:03d}-{family}-0", pick(strange, rng(seed, f"strange {n}")), family)
        for n in range(share) for family in [("espeak", "flite")[n % 2]]] + noise(seed, "test-outside", share)
    return clips


def held(split: str) -> bool:
    """Whether the voices of a split are held out from training."""
    return split in ("test-voices", "test-both", "test-natural")


def to_read_aloud(seed: int, size: dict, answers: list) -> list:
    """The clips of the answer voice: all answers, random strings of their words, plain sentences."""
    texts = domain.random_strings(size["strings"], domain.vocabulary(answers), rng(seed, "strings"))
    plain = facts.plain_sentences(size["sentences"], rng(seed, "sentences"))
    said = [(text, "answer", False) for text in answers]
    said += [(text, kind, n < size["held"]) for kind, several in (("string", dict.fromkeys(texts)), ("sentence", plain))
             for n, text in enumerate(several)]
    how = {"family": "flite", "voice": voices.ANSWER_VOICE}
    return [{"id": f"a{n:04d}", "text": text, "kind": kind, "held": kept, "how": how}
            for n, (text, kind, kept) in enumerate(said)]


def clip(seed: int, name: str, row: dict, family: str, held: bool = False) -> dict:
    """The clip of a phrasing (domain.phrasings), spoken by a random voice of the family."""
    return {"id": name, "text": row["text"], "answer": row["answer"], "kind": row["kind"], "phrasing": row["split"],
            "how": voices.sample_voice(family, rng(seed, name), held)}


def questions(seed: int, counts: dict, more: dict, answers: list, rows: dict) -> list:
    """Training questions with an answer. Each family asks for the answers in turn, and more often for those of
    MISHEARD. The phrasings of an answer are used in turn, ordered such that the cores alternate: every form is
    spoken."""
    order, taken, asked_by, found = {}, Counter(), Counter(), []
    for n, answer in enumerate(answers):
        trained, seen, ranked = rows[answer]["train"], Counter(), []
        for i in rng(seed, f"order {n}").permutation(len(trained)):
            ranked.append((seen[trained[i]["core"]], len(ranked), trained[i]))
            seen[trained[i]["core"]] += 1
        order[answer] = [row for *_, row in sorted(ranked, key=lambda one: one[:2])]
    turns = []
    for family, count in counts.items():
        who = rng(seed, f"who {family}").permutation(len(answers))
        turns += [(family, int(who[number % len(who)])) for number in range(count)]
    turns += [(family, n) for family, count in more.items() for n, answer in enumerate(answers)
              for _ in range(count * MISHEARD.get(rows[answer]["train"][0]["kind"], 0))]
    for family, n in turns:
        answer = answers[n]
        row = order[answer][taken[answer] % len(order[answer])]
        found.append(clip(seed, f"train-{n:03d}-{family}-{asked_by[family, n]}", row, family))
        taken[answer] += 1
        asked_by[family, n] += 1
    return found


def refused(seed: int, counts: dict, rows: dict) -> list:
    """Training questions without an answer."""
    trained = rows[domain.UNKNOWN]["train"]
    order = rng(seed, "refused").permutation(len(trained))
    found = [(family, number) for family, count in counts.items() for number in range(count)]
    return [clip(seed, f"unknown-{family}-{number}", trained[order[n % len(order)]], family)
            for n, (family, number) in enumerate(found)]


def follow_ups(seed: int, phrasings: list, split: str, counts: dict) -> list:
    """Spoken turns after typed ones, of the kinds of talks.turns. In the tests their forms are held out, the voices are
    those of training."""
    test, found = split != "train", []
    talk = Talks(phrasings, test)
    for family, count in counts.items():
        for number in range(count):
            name = f"{split}-turn-{family}-{number}"
            random = rng(seed, name)
            before, (text, answer, kind) = talk.conversation(random, 2 + int(random.random() < 0.3))
            found.append({"id": name, "text": text, "answer": answer, "kind": kind,
                          "phrasing": turn_of(before, kind),
                          "before": typed_turns(before, rng(seed, f"{name} typed")),
                          "how": voices.sample_voice(family, random)})
    return found


def noise(seed: int, split: str, count: int) -> list:
    """Clips without a question."""
    found = []
    for n in range(count):
        random = rng(seed, f"{split} noise {n}")
        found.append({"id": f"{split}-noise-{n}", "text": "", "answer": domain.SILENCE, "kind": "noise",
                      "phrasing": "noise", "how": {"family": "noise", "voice": NOISES[n % len(NOISES)],
                                                   "seconds": round(random.uniform(0.4, 5), 2)}})
    return found


def random_words(seed: int, family: str, n: int, words: list) -> dict:
    """A clip of three to eight random words, which an encoder cannot guess from sentence patterns."""
    name = f"hear-{family}-{n:04d}"
    random = rng(seed, name)
    return {"id": name, "text": domain.random_strings(1, words, random, 3, 8)[0], "kind": "random",
            "how": voices.sample_voice(family, random)}


# ---- conversations --------------------------------------------------------------------------------------------------

class Talks:
    """Makes conversations from the world's questions: trained phrasings, or the held-out ones for a test."""

    def __init__(self, phrasings: list, test: bool):
        self.test, self.known = test, domain.known()
        self.by_answer, self.rows = talks.index(self.known), defaultdict(list)
        for row in phrasings:
            if (row["split"] == "train") != test:
                kind = "unknown" if row["answer"] == domain.UNKNOWN else row["kind"]
                self.rows[kind].append(row)

    def ask(self, random) -> tuple:
        """(question, answer). Kinds with large tables, and questions without an answer, are more frequent."""
        kinds = list(self.rows)
        likely = np.array([{"unknown": 3.0, "capital": 3.0, "plus": 2.0, "opposite": 2.0}.get(kind, 1.0)
                           for kind in kinds])
        row = pick(self.rows[kinds[int(random.choice(len(kinds), p=likely / likely.sum()))]], random)
        return row["text"], row["answer"]

    def conversation(self, random, count: int) -> tuple:
        """(previous turns, last turn) of a conversation of `count` turns."""
        *before, last = talks.turns(lambda: self.ask(random), self.known, self.by_answer, count, random, self.test)
        return before, last


def turn_of(before: list, kind: str) -> str:
    """The name of a turn in the tables of evaluate.py."""
    if kind in ("follow-up", "near"):
        return "follow-up"
    return kind if kind == "again" else {1: "second turn", 2: "third turn"}[len(before)]


def user(*parts) -> dict:
    """A user's message; a part is text or, for None, speech."""
    return {"role": "user", "content": [{"type": "speech"} if part is None else {"type": "text", "text": part}
                                        for part in parts] if None in parts else "".join(parts)}


def typed_turns(turns: list, random, typed=keyboard.typed) -> list:
    """The messages of some turns: typed, but one in five is past speech."""
    return [message for text, answer, _ in turns for message in (
        user("[Speech input]" if random.random() < 0.2 else typed(text, random)),
        {"role": "assistant", "content": answer})]


# ---- samples without their own clip ------------------------------------------------------------------------------

def written(split: str, clips: list, seed: int, size: dict):
    """Yield (row, speaking, id of the clip whose sound it uses or None) of the samples without their own clip.
    speaking: whether it has units and a face. clips: the split's."""
    random = rng(seed, f"{split} written")
    for clip in clips if split != "train" else ():                  # the spoken questions as text, to compare
        if clip["text"]:
            yield chat(f"{clip['id']}-text", [*clip.get("before", ()), user(clip["text"])], clip, clip["phrasing"])
    phrasings = domain.phrasings(seed) if split in ("train", *MORE_TESTS) else []
    if split == "train":
        asked_aloud = [clip for clip in clips if clip["kind"] != "random" and "before" not in clip and clip["text"]]
        yield from typed_questions(phrasings, random)
        yield from casual_questions(phrasings, size["casual"], random)
        yield from typed_talks(phrasings, split, size["typed talks"], random)
        yield from spoken_talks(phrasings, asked_aloud, size["spoken talks"] if asked_aloud else 0, random)
    elif split == "test-turns":
        yield from typed_talks(phrasings, split, 2 * size["tests"], random)
    elif split == "test-outside":
        strange = [row for part in ("recombined", "wording") for row in asked(phrasings)[domain.UNKNOWN][part]]
        for n, i in enumerate(random.permutation(len(strange))[:2 * size["tests"]]):
            row = strange[i]
            yield chat(f"strange-{n:03d}", [user(row["text"])], row, row["split"])
    elif split == "test-typed":
        yield from typed_variants(phrasings, size["tests"] // 4, random)


def chat(name: str, messages: list, row: dict, phrasing: str, speaking=False, clip: str | None = None) -> tuple:
    """A sample as `written` yields it."""
    return {"id": name, "task": "qa" if speaking else "chat", "messages": messages, "answer": row["answer"],
            "text": row["text"], "kind": row["kind"], "phrasing": phrasing}, speaking, clip


def typed_questions(phrasings: list, random):
    """Training phrasings as people type them, and some unchanged."""
    rows = [row for row in phrasings if row["split"] == "train"]
    for n, row in enumerate(rows):
        if n % READ_AS_QUESTION == 0:
            yield chat(f"w{n:05d}", [user(row["text"])], row, "train", speaking=True)
        yield chat(f"c{n:05d}", [user(keyboard.typed(row["text"], random))], row, "train")
    unknown = {"answer": domain.UNKNOWN, "kind": "far"}
    for n, text in enumerate([*talks.alone(len(rows) // 40, domain.known(), random),
                              *outside.symbols(len(rows) // 50, random)]):
        yield chat(f"u{n:05d}", [user(keyboard.typed(text, random))], unknown | {"text": text}, "train")


def casual_questions(phrasings: list, count: int, random):
    """casual.questions as people type them, without those that the tests hold out."""
    held = {domain.spoken(row["text"]) for row in phrasings if row["split"] != "train"}
    for n, (text, answer, kind) in enumerate(casual.questions(count, random)):
        if domain.spoken(text) not in held:
            yield chat(f"k{n:05d}", [user(keyboard.typed(text, random))],
                       {"answer": answer, "kind": kind, "text": text}, "train")


def typed_talks(phrasings: list, split: str, count: int, random):
    """Typed conversations of two and three turns, whose last one is to be answered; in the tests without typos."""
    train = split == "train"
    talk, typed = Talks(phrasings, not train), turn_as_typed if train else lambda text, _: text
    for n in range(count):
        before, (text, answer, kind) = talk.conversation(random, 2 + int(random.random() < 0.4))
        if train and n % ASK_AGAIN == 0:
            before[-1] = (text, answer, kind)
            text, kind = facts.sentence(pick(talks.AGAIN, random)), "again"
        messages = [*typed_turns(before, random, typed), user(typed(text, random))]
        yield chat(f"{split}-talk-{n:05d}", messages, {"answer": answer, "text": text, "kind": kind},
                   turn_of(before, kind))


def turn_as_typed(text: str, random) -> str:
    """A turn as people type it, sometimes with casual.AROUND_TURN."""
    if random.random() < 0.25:
        text = facts.sentence(pick(casual.AROUND_TURN, random).format(text.rstrip(".?!")))
    return keyboard.typed(text, random)


def spoken_talks(phrasings: list, clips: list, count: int, random):
    """Conversations with the sound of a clip: as the last turn, or as the first turn of two."""
    talk = Talks(phrasings, False)
    for n in range(count):
        said = pick(clips, random)
        if n % 2:
            before, last = talk.conversation(random, 2)
            messages = [*typed_turns([*before, last][:1 + n // 2 % 2], random), user(None)]
            row = {"answer": said["answer"], "text": said["text"], "kind": said["kind"]}
            yield chat(f"train-heard-{n:05d}", messages, row, "second turn", clip=said["id"])
            continue
        question, (text, answer, kind) = talks.turns(iter([(said["text"], said["answer"]), talk.ask(random)]).__next__,
                                                     talk.known, talk.by_answer, 2, random)
        messages = [user(None), {"role": "assistant", "content": said["answer"]}, user(keyboard.typed(text, random))]
        yield chat(f"train-heard-{n:05d}", messages, {"answer": answer, "text": text, "kind": kind},
                   turn_of([question], kind), clip=said["id"])


def typed_variants(phrasings: list, each: int, random):
    """For each of keyboard.CHANGES, `each` trained or recombined phrasings with this change alone; fewer if it rarely
    applies ("digits" needs numbers)."""
    rows = [row for row in phrasings if row["split"] != "wording" and row["answer"] != domain.UNKNOWN]
    for name, change in keyboard.CHANGES.items():
        found = 0
        for _ in range(40 * each):
            row = pick(rows, random)
            text = change(row["text"], random)
            if text != row["text"]:
                yield chat(f"{name}-{found:03d}", [user(text)], row, name)
                found += 1
            if found == each:
                break
