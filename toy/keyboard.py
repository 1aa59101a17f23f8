"""How people type: capitals, digits, spaces, punctuation, short forms and typos. Text to text.

Changes keep the meaning. `CHANGES` has them by name, `typed` applies some of them at random. A typo never makes another
word of the world ("east" does not become "easy").
"""
import re

import numpy as np

from toy import facts

ROWS = "qwertyuiop", "asdfghjkl", "zxcvbnm"
NEIGHBORS = {key: row[max(n - 1, 0):n] + row[n + 1:n + 2] for row in ROWS for n, key in enumerate(row)}
WORDS = set(re.findall("[a-z]+", " ".join((
    *facts.CAPITALS, *facts.CAPITALS.values(), *facts.OPPOSITES, *facts.OPPOSITES.values(), *facts.LEGS, *facts.SOUNDS,
    *facts.COLORS, *facts.NUMBERS, *facts.DAYS, *facts.MONTHS, *facts.COMMON)).lower()))
SIGNS = (("plus", "+"), ("minus", "-"), ("times", "*"), ("divided by", "/"))
SHORT = (("what is", "whats"), ("what's", "whats"), ("please", "pls"), ("please", "plz"), ("you", "u"), ("are", "r"),
         ("color", "colour"), ("i would", "i'd"), ("i want to", "i wanna"), ("tell me", "tell me pls"), ("and", "&"),
         ("thanks", "thx"), ("do not", "don't"), ("i'd", "id"), ("hello", "helo"), ("okay", "ok"))


def pick(several, random: np.random.Generator):
    return several[int(random.integers(len(several)))]


LARGE = {**{name: n for n, name in enumerate(facts.NUMBERS)},
         **{name: 10 * n for n, name in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)},
         "hundred": 100, "thousand": 1000, "million": 1_000_000}
ONE_TO_NINETEEN, TENS = (rf"(?:{'|'.join(sorted(names, key=len, reverse=True))})" for names in (
    facts.NUMBERS[1:20], [name for name, n in LARGE.items() if 20 <= n < 100]))
NUMBER = (rf"\b(?:zero|{TENS} (?:{'|'.join(facts.NUMBERS[1:10])})\b|{TENS}|"
          rf"{ONE_TO_NINETEEN}(?: hundred| thousand| million)?)\b")


def value(words: str) -> int:
    """ "two hundred" -> 200, "thirty seven" -> 37. """
    total = 0
    for word in words.lower().split():
        total = total * LARGE[word] if LARGE[word] >= 100 else total + LARGE[word]
    return total


def digits(text: str, random: np.random.Generator) -> str:
    """Numbers in digits, mostly with signs for the operations: "What is 2 + 2?", "2+2=", "2 plus 2"."""
    text = re.sub(NUMBER, lambda words: str(value(words[0])), text, flags=re.I)
    if random.random() < 0.65:
        for word, sign in SIGNS:
            text = re.sub(rf"(?<=\d) {word} (?=\d)", f" {sign} ", text)
        if random.random() < 0.4:
            text = re.sub(r"(?<=\d) ([-+*/]) (?=\d)", r"\1", text)
        sum_ = re.search(r"\d+( ?[-+*/] ?\d+)+", text)
        if sum_ and random.random() < 0.3:
            text = sum_[0] + pick(["", "=", " =", "?", " = ?"], random)
    return text


def spaces(text: str, random: np.random.Generator) -> str:
    """Extra spaces, or one missing."""
    gaps = [match.start() for match in re.finditer(" ", text)]
    kind = int(random.integers(5))
    if kind == 0 or not gaps:
        return pick([" ", "  "], random) + text + pick(["", " ", "  "], random)
    if kind == 1:
        return re.sub(r"(?=[?.!]$)", " ", text)
    at = pick(gaps, random)
    return text[:at] + ("" if kind == 2 else pick(["  ", "   "], random)) + text[at + 1:]


def punctuation(text: str, random: np.random.Generator) -> str:
    """Without punctuation, or with other marks at the end."""
    bare = re.sub("[,.?!]", "", text)
    return pick([bare, bare, text.rstrip("?.!"), bare.replace("'", ""),
                 text.rstrip("?.!") + pick(["??", "!", "???", "...", ".", "?", "?!", ","], random)], random)


def slip(text: str, random: np.random.Generator) -> str:
    """A typo in a word of four or more letters: one letter swapped with the next, left out, doubled, or replaced by its
    neighbor on the keyboard."""
    words = [match for match in re.finditer(r"[A-Za-z]{4,}", text)]
    for _ in range(9):
        if not words:
            break
        word = pick(words, random)
        n = int(random.integers(len(word[0]) - 1))
        a, b, rest = word[0][n], word[0][n + 1], word[0][n + 2:]
        new = word[0][:n] + pick([b + a, b, a + a + b, pick(NEIGHBORS[a.lower()], random) + b], random) + rest
        if new.lower() not in WORDS | {word[0].lower()}:
            return text[:word.start()] + new + text[word.end():]
    return text


def short(text: str, random: np.random.Generator) -> str:
    """One word or phrase in its short form."""
    fitting = [(word, form) for word, form in SHORT if re.search(rf"\b{word}\b", text, re.I)]
    if not fitting:
        return text
    word, form = pick(fitting, random)
    return re.sub(rf"\b{word}\b", form, text, count=1, flags=re.I)


CHANGES = {"lower": lambda text, _: text.lower(), "upper": lambda text, _: text.upper(),
           "title": lambda text, _: re.sub(r"\b[a-z]", lambda c: c[0].upper(), text).replace("'S", "'s"),
           "digits": digits, "spaces": spaces, "punctuation": punctuation, "typo": slip, "short": short}
CASES = (("lower", 0.45), ("upper", 0.14), ("title", 0.06))                 # else unchanged
SHARES = (("digits", 0.5), ("short", 0.08), ("punctuation", 0.45), ("typo", 0.5), ("spaces", 0.2))


def typed(text: str, random: np.random.Generator) -> str:
    """A text as people type it: some changes of SHARES, in this order, then one of CASES."""
    for name, share in SHARES:
        if random.random() < share:
            text = CHANGES[name](text, random) or text
    case = random.random()
    for name, share in CASES:
        if 0 <= case < share:
            return CHANGES[name](text, random)
        case -= share
    return text
