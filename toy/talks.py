"""Conversations of two and three turns: independent questions, and follow-ups that depend on the previous answer.

A follow-up asks the same about something else ("And of Germany?" after a capital), continues ("And after that?" after a
day) or asks for a repetition ("Say that again."). About unknown things, or as a first turn, it is answered with
UNKNOWN. It depends on the previous answer only, because the previous question may have been spoken: past speech is in
the prompt as speech, or as `[Speech input]` (tokenizer.past_turn).
"""
import numpy as np

from toy import domain, outside
from toy.facts import sentence
from toy.keyboard import pick

OF_X = ["and {x}?", "what about {x}?", "how about {x}?", "and what about {x}?", "{x}?", "now {x}.", "and for {x}?",
        "okay, and {x}?", "what is it for {x}?", "the same for {x}, please.", "{x}, please."]
SIDES = ["and {side} {x}?", "what about {side} {x}?", "and what comes {side} {x}?", "{side} {x}?",
         "how about {side} {x}?", "and the {unit} {side} {x}?"]
# Kind of the previous answer -> follow-ups.
FOLLOW_UPS = {
    "capital": [*OF_X, "and of {x}?", "and the one of {x}?", "what about the capital of {x}?"],
    "opposite": [*OF_X, "and of {x}?", "and the opposite of {x}?", "what is that of {x}?"],
    "plus": ["and {a} plus {b}?", "what about {a} plus {b}?", "and {a} and {b}?", "how about {a} and {b}?",
             "{a} plus {b}?", "now {a} plus {b}."],
    "minus": ["and {a} minus {b}?", "what about {a} minus {b}?", "how about {a} take away {b}?", "{a} minus {b}?",
              "now {a} minus {b}."],
    "day": SIDES, "month": SIDES, "season": SIDES,
    "legs": [*OF_X, "and {xs}?", "what about {xs}?", "how many does {x} have?"],
    "sound": [*OF_X, "and {xs}?", "what about {xs}?", "and what does {x} say?"],
    "color": [*OF_X, "and {xs}?", "what about {xs}?", "and what color is {x}?"],
}
HELD_FOLLOW_UPS = {
    **dict.fromkeys(("capital", "opposite", "legs", "sound", "color"), ["so what about {x}?", "and now {x}?"]),
    "plus": ["and how about {a} plus {b}?"], "minus": ["and how about {a} minus {b}?"],
    **dict.fromkeys(("day", "month", "season"), ["so what about {side} {x}?"])}
ON = {"after": ["and after that?", "and then?", "what comes after that?", "and what is next?", "and after this?"],
      "before": ["and before that?", "what comes before that?", "and before this?"]}
AGAIN = ["say that again.", "please say that again.", "again, please.", "can you repeat that?", "repeat that, please.",
         "what did you say?", "sorry, what?", "could you say that again?", "once more, please.", "pardon?",
         "are you sure?", "really?", "is that right?", "are you sure about that?", "I did not hear you.",
         "say it again.", "one more time, please.", "tell me again."]
HELD_AGAIN = ["please repeat that.", "can you say it again?"]


def index(known: dict) -> dict:
    """Answer -> (its kind, values for the slots of its forms). known: domain.known()."""
    return {answer: (kind, values) for kind, several in known.items() for values, answer in several}


def follow_up(answer: str, known: dict, by_answer: dict, random: np.random.Generator, held: bool) -> tuple | None:
    """(text, answer, kind) of a follow-up to an answer; None if only a repetition is possible. by_answer: `index`."""
    if answer not in by_answer:
        return None
    kind, values = by_answer[answer]
    if kind in ("day", "month", "season") and random.random() < 0.25:
        side = values["side"]
        said = answer.split(" comes ")[0].lower()
        wanted = next(other for about, other in known[kind] if about["x"].lower() == said and about["side"] == side)
        return pick(ON[side], random), wanted, "follow-up"
    if random.random() < 0.12:
        return odd_follow_up(kind, random, held)
    about, wanted = pick(known[kind], random)
    forms = domain.fill((HELD_FOLLOW_UPS if held else FOLLOW_UPS)[kind], about)
    return pick(forms, random).format(**about), wanted, "follow-up"


def odd_follow_up(kind: str, random: np.random.Generator, held: bool) -> tuple:
    """(text, UNKNOWN, kind): a follow-up about something that is not in the table of the kind."""
    if kind in outside.ODD:
        x, side = outside.odd(kind, random, "words" if held else ""), pick(["after", "before"], random)
        forms = domain.fill(FOLLOW_UPS[kind], {"x": x, "xs": None, "side": side, "unit": kind})
        return pick(forms, random), domain.UNKNOWN, "near"
    sign, number = pick(["plus", "minus"], random), lambda: outside.filler("value", random, "words" if held else "")
    return f"and {number()} {sign} {number()}?", domain.UNKNOWN, "near"


def turns(ask, known: dict, by_answer: dict, count: int, random: np.random.Generator, held: bool = False) -> list:
    """[(text, answer, kind of the turn), ...]: `count` turns, the first a question; kinds are "question", "follow-up",
    "again" and "near". ask: () -> (text, answer) of an independent question."""
    found = [(*ask(), "question")]
    while len(found) < count:
        kind, before = random.random(), found[-1][1]
        following = follow_up(before, known, by_answer, random, held) if kind < 0.45 else None
        if following:
            found.append(following)
        elif kind > 0.9:
            found.append((pick(HELD_AGAIN if held else AGAIN, random), before, "again"))
        else:
            found.append((*ask(), "question"))
    return [(sentence(text), answer, kind) for text, answer, kind in found]


def alone(count: int, known: dict, random: np.random.Generator) -> list:
    """`count` follow-ups as first turns: they cannot be answered."""
    found = []
    while len(found) < count:
        kind = pick(list(FOLLOW_UPS), random)
        about, _ = pick(known[kind], random)
        forms = [form for form in FOLLOW_UPS[kind] if form.startswith(("and {x}", "and of", "what about {x}",
                 "how about {x}", "and {side}", "what about {side}"))] or None
        text = pick(domain.fill(forms, about), random) if forms and random.random() < 0.8 else pick(
            [*ON["after"], *ON["before"], *AGAIN], random)
        found.append(sentence(text))
    return found
