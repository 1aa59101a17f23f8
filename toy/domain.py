"""The mini model's world: some 700 answers, many questions for each, and questions without an answer. Text only.

    python prepare.py demo --list        # every phrasing, its answer, its kind and its split, as jsonl

A phrasing is carrier x core: "could you tell me {}, please?" x "the capital of France" (forms.py, facts.py). Every
phrasing has one split:

    train        in the training data, spoken and typed
    recombined   held out; its carrier is trained with other cores, its core with other carriers
    wording      held out; its carrier, or the form of its core, is never trained, but each of its words is

Questions without an answer (outside.py), of the kinds "far" and "near", are answered with UNKNOWN; in `recombined` one
of their words, in `wording` their template is never trained. Clips without a question are answered with SILENCE.

Texts are ASCII: questions and answers with capitals and punctuation, numbers in words, so that text and speech agree. A
transcript has lower-case words and apostrophes only (`spoken`). How people type: keyboard.py. The user's turn of the
other tasks: for transcription the speech and TRANSCRIBE, for reading aloud READ_ALOUD and the text. Everything follows
from the seed.
"""
import re
from collections import Counter

import numpy as np

from toy import outside
from toy.facts import (CAPITALS, COLORS, COMMON, COUNTS, DAYS, FACTS, LEGS, MONTHS, NUMBERS, ONE_WAY, OPPOSITES,
                       SEASONS, SOUNDS, TALK, TOPICS, plural, sentence)
from toy.forms import CARRIERS, FORMS, HELD_CARRIERS, HELD_FORMS

TRANSCRIBE, READ_ALOUD = "Write down what you hear.", "Read aloud: "
UNKNOWN = "I do not know that. Ask me for a capital, a sum or an opposite."
SILENCE = "I did not hear a question."
TRAINED, RECOMBINED = 48, 3                     # most phrasings of an answer in `train` and in `recombined`
REFUSED = {"train": (9000, ""), "recombined": (600, "words"), "wording": (600, "forms")}   # count, `held`


def spoken(text: str) -> str:
    """A text as a transcript: lower-case words with apostrophes, separated by single spaces."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())


def known() -> dict:
    """Kind of FORMS -> [(values for the slots of its forms, answer), ...]. Forms with a slot whose value is None are
    not used."""
    found = {kind: [] for kind in FORMS}

    def add(kind, answer, **values):
        found[kind].append((values, sentence(answer)))

    for country, city in CAPITALS.items():
        add("capital", f"the capital of {country} is {city}.", x=country)
    for a, first in enumerate(NUMBERS[:11]):
        for b, second in enumerate(NUMBERS[:11]):
            add("plus", f"{first} plus {second} is {NUMBERS[a + b]}.", a=first, b=second)
            if b <= a:
                add("minus", f"{first} minus {second} is {NUMBERS[a - b]}.", a=first, b=second)
    for word, other in opposites().items():
        add("opposite", f"the opposite of {word} is {other}.", x=word)
    for kind, names in (("day", DAYS), ("month", MONTHS), ("season", SEASONS)):
        for n, name in enumerate(names):
            for side, follows, step in (("after", "follows", 1), ("before", "precedes", -1)):
                add(kind, f"{names[(n + step) % len(names)]} comes {side} {name}.", x=name, side=side, unit=kind,
                    follows=follows)
    for animal, number in LEGS.items():
        add("legs", f"{animal} has {number} legs.", x=animal, xs=plural(animal))
    for animal, sound in SOUNDS.items():
        add("sound", f"{animal} says {sound}.", x=animal, xs=plural(animal))
    for thing, color in COLORS.items():
        add("color", f"{thing} is {color}.", x=thing, xs=plural(thing))
    return found


def fill(forms: list, values: dict) -> list:
    """The forms, filled with the values; without those that need a value that is None."""
    return [form.format(**values) for form in forms
            if all(value is not None or f"{{{name}}}" not in form for name, value in values.items())]


def items() -> list:
    """(kind, answer, {type of carrier: [cores]}, held-out core as (type of carrier, core) or None) of every known
    answer. Types of carriers: the keys of CARRIERS."""
    found = []
    for kind, several in known().items():
        carried, form = HELD_FORMS[kind]
        found += [(kind, answer, {key: fill(forms, values) for key, forms in FORMS[kind].items()},
                   (carried, form.format(**values))) for values, answer in several]
    for thing, number, parts in COUNTS:
        cores = {"thing": [f"the number of {parts} of {thing}"], "clause": [f"how many {parts} {thing} has"],
                 "question": [f"how many {parts} does {thing} have", f"how many {parts} has {thing}"]}
        found.append(("fact", sentence(f"{thing} has {number} {parts}."), cores, None))
    found += [("fact", answer, {"thing": [thing], "question": [question], "clause": [clause]}, None)
              for answer, (thing, question, clause) in FACTS.items()]
    found += [("talk", answer, {"talk": forms}, None) for answer, forms in TALK.items()]
    found += [("topic", answer, {"topic": [topic]}, None) for topic, answer in TOPICS.items()]
    return found


def opposites() -> dict:
    """Word -> its opposite, in both directions except for the words in ONE_WAY."""
    return OPPOSITES | {other: word for word, other in OPPOSITES.items() if word not in ONE_WAY}


def phrasings(seed: int = 0) -> list:
    """Every phrasing as {"text", "answer", "kind", "split", "carrier", "core"}. Of each answer's carrier-core pairs
    RECOMBINED are held out and at most TRAINED trained, chosen at random, evenly over the cores. Each core keeps at
    least two carriers for training."""
    random, known_items = np.random.default_rng(seed), items()
    rows = {}                                               # `spoken` text -> its row; equal texts count once

    def add(kind, answer, carrier, core, split):
        text = sentence(carrier.format(core))
        row = {"text": text, "answer": answer, "kind": kind, "split": split, "carrier": carrier, "core": core}
        if rows.setdefault(spoken(text), row)["answer"] != answer:
            other = rows[spoken(text)]["answer"]
            raise ValueError(f"{text!r} asks for {other!r} and for {answer!r}: expected one answer")

    for kind, answer, forms, held in known_items:
        pairs = [(carrier, core) for carried, cores in forms.items() for core in cores for carrier in CARRIERS[carried]]
        pairs = list({spoken(carrier.format(core)): (carrier, core) for carrier, core in pairs}.values())
        left, before, out, order = Counter(core for _, core in pairs), Counter(), [], []
        for carrier, core in (pairs[n] for n in random.permutation(len(pairs))):
            if len(out) < RECOMBINED and left[core] > 3:
                out.append((carrier, core))
                left[core] -= 1
            else:
                order.append((before[core], len(order), carrier, core))
                before[core] += 1
        for *_, carrier, core in sorted(order)[:TRAINED]:
            add(kind, answer, carrier, core, "train")
        for carrier, core in out:
            add(kind, answer, carrier, core, "recombined")
        for carried, cores in forms.items():
            for carrier in HELD_CARRIERS[carried]:
                add(kind, answer, carrier, cores[int(random.integers(len(cores)))], "wording")
        if held is not None:
            carried, core = held
            add(kind, answer, CARRIERS[carried][0], core, "wording")
    cores = {spoken(core) for _, _, forms, _ in known_items for several in forms.values() for core in several}
    for split, (count, held) in REFUSED.items():
        for kind, carrier, core in outside.questions(count, random, held):
            text = spoken(carrier.format(core))
            if spoken(core) not in cores and text not in cores and text not in rows:
                add(kind, UNKNOWN, carrier, core, split)
    return list(rows.values())


def vocabulary(texts) -> list:
    """The words of some texts, lower-case, sorted."""
    return sorted({word for text in texts for word in spoken(text).split()})


def random_strings(count: int, words: list, random: np.random.Generator, least: int = 3, most: int = 10) -> list:
    """`count` strings of `least` to `most` random words, 60 % of them out of `words`, the rest common ones: no sentence
    pattern predicts them."""
    def word():
        source = words if random.random() < 0.6 else COMMON
        return source[int(random.integers(len(source)))]

    return [" ".join(word() for _ in range(random.integers(least, most + 1))) for _ in range(count)]
