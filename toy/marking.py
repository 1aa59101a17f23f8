"""Asks a model the questions of the mini model's world and marks its answers: right means an exact match.

Used by evaluate.py. A sample is what data.Split returns: a dict with "messages", "answer", "audio" (samples,) float32
at 16 kHz or None, and fields of toy/demo.py: family of voices, phrasing, kind.
"""
import json
import re
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import Split
from decode import TextSampler
from tokenizer import with_system
from toy import rooms
from toy.domain import SILENCE, UNKNOWN, spoken
from toy.facts import NUMBERS

BATCH, SPEAKING_BATCH = 32, 8                                   # samples at once: text only, with speech and face

# Typed questions by somebody who had not seen the phrasings: {"text", "answer", "kind": wording, far or near} each.
STRANGERS = Path(__file__).with_name("strangers.jsonl")
CONFIDENT = 0.8                                                 # answers above this Answer.confidence are confident
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


# ---------------------------------------------------------------- asking

def chats(samples: list) -> tuple:
    """(conversations, clips) for `ExOmni.generate`, with the system prompt of training and sample.py."""
    return ([with_system(sample["messages"]) for sample in samples],
            [None if sample["audio"] is None else torch.from_numpy(sample["audio"]) for sample in samples])


@torch.no_grad()
def write_texts(model, samples: list, max_new_tokens: int) -> list:
    """The model's replies as text, decoded greedily, without speech: [(text, its confidence), ...]."""
    texts = []
    for n in range(0, len(samples), BATCH):
        ids, mask, clips = model.prompts(*chats(samples[n:n + BATCH]))
        embeds, _, lengths = model.splice(ids, mask, None, model.encode_clips(clips))
        reply = model.write_text(embeds, lengths, max_new_tokens, TextSampler())
        texts += zip([model.read(row.tolist()) for row in reply.emitted()[0]], reply.log_probability.exp().tolist())
    return texts


def speak(model, samples: list, max_new_tokens: int, seed: int) -> list:
    """The model's replies with speech and face, `model.Answer`s; text is greedy, units are sampled with the seed."""
    answers, short = [], len(samples) <= SPEAKING_BATCH
    for n in tqdm(range(0, len(samples), SPEAKING_BATCH), desc="speaking", unit="batch", disable=short or None):
        answers += model.generate(*chats(samples[n:n + SPEAKING_BATCH]), max_new_tokens=max_new_tokens,
                                  generator=torch.Generator().manual_seed(seed))
    return answers


# ---------------------------------------------------------------- error rates

def spell(n: int) -> str:
    """A number in words; from 1000 on digit by digit."""
    if n < 20:
        return NUMBERS[n]
    if n < 100:
        return TENS[n // 10] + (f" {NUMBERS[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{NUMBERS[n // 100]} hundred" + (f" and {spell(n % 100)}" if n % 100 else "")
    return " ".join(NUMBERS[int(digit)] for digit in str(n))


def words(text: str) -> list:
    """The words of a text as they are spoken: lower case, numbers in words, no punctuation."""
    return spoken(re.sub(r"\d+", lambda number: f" {spell(int(number[0]))} ", text)).split()


def load_jiwer():
    """The package jiwer. Raises OSError where it is not installed."""
    try:
        import jiwer
    except ImportError:
        raise OSError("error rates need jiwer: `pip install jiwer`") from None
    return jiwer


def error_rate(pairs) -> float:
    """[(reference, hypothesis), ...], sequences of words or units -> all insertions, deletions and substitutions over
    the total length of the references (for words: the word error rate)."""
    references, hypotheses = ([" ".join(map(str, sequence)) for sequence in side] for side in zip(*pairs))
    return float(load_jiwer().wer(references, hypotheses))


# ---------------------------------------------------------------- marks

def share(flags) -> dict:
    """Booleans, True for right -> their number, the total and the share."""
    flags = list(flags)
    return {"right": sum(flags), "asked": len(flags), "share": sum(flags) / len(flags) if flags else None}


def by(marks: list, key: str) -> dict:
    """{value: `share` right of the marks with this value of `key`}."""
    return {value: share(mark["right"] for mark in marks if mark[key] == value)
            for value in sorted({mark[key] for mark in marks if mark.get(key) is not None})}


def marked(write, samples: list) -> list:
    """A mark per sample: its question, the expected answer, the answer, whether it is right. write: samples -> [(text,
    confidence), ...]."""
    return [{"id": s["id"], "kind": s.get("kind"), "family": s.get("family"), "phrasing": s.get("phrasing"),
             "question": s.get("text"), "expected": s["answer"], "got": text, "confidence": round(confidence, 3),
             "right": text == s["answer"]}
            for s, (text, confidence) in zip(samples, write(samples))]


def questions(split: Split, task: str) -> list:
    """The split's samples of a task; of `qa` only spoken questions."""
    return [split[i] for i, row in enumerate(split.rows) if row["task"] == task and (task != "qa" or "audio" in row)]


def strangers() -> list:
    """The samples of STRANGERS: questions by somebody who had read the answers of this world, but none of its wordings.
    Some are later turns of a conversation: "before" has the earlier ones."""
    rows = [json.loads(line) for line in STRANGERS.read_text().splitlines()]
    return [row | {"id": f"stranger-{n}", "audio": None, "messages": [
        {"role": ("user", "assistant")[i % 2], "content": text}
        for i, text in enumerate([*row.get("before", []), row["text"]])]} for n, row in enumerate(rows)]


def mark_split(write, split: Split, transcripts: bool) -> tuple:
    """(shares right: of spoken questions in all, by family, phrasing and kind; of typed ones), the marks of the spoken
    questions, the marks of the typed ones. transcripts: also exact transcriptions and their word error rate."""
    aloud, typed = (marked(write, questions(split, task)) for task in ("qa", "chat"))
    found = {"spoken": share(mark["right"] for mark in aloud),
             **{key: by(aloud, key) for key in ("family", "phrasing", "kind")},
             "typed": share(mark["right"] for mark in typed), "typed phrasing": by(typed, "phrasing")}
    if transcripts:
        marks = marked(write, questions(split, "asr"))
        pairs = [(words(mark["expected"]), words(mark["got"])) for mark in marks]
        found |= {"transcribed": share(mark["right"] for mark in marks),
                  "transcribed_wer": error_rate(pairs) if pairs else None}
    return found, aloud, typed


def refusals(marks: list) -> dict:
    """For questions without an answer by kind (far, near, noise), and for all others: the shares that were right,
    refused, and answered wrongly with confidence."""
    found, refused = {}, (UNKNOWN, SILENCE)
    groups = {kind: [mark for mark in marks if mark["expected"] in refused and mark["kind"] == kind]
              for kind in sorted({mark["kind"] for mark in marks if mark["expected"] in refused})}
    groups["with an answer"] = [mark for mark in marks if mark["expected"] not in refused]
    for kind, own in groups.items():
        found[kind] = {"right": share(mark["right"] for mark in own),
                       "refused": share(mark["got"] in refused for mark in own),
                       "wrong and confident": share(not mark["right"] and mark["got"] not in refused
                                                    and mark["confidence"] > CONFIDENT for mark in own)}
    return found


def mark_answers(write, data, seed: int, transcripts: bool) -> dict:
    """Exact answers on val and every test-* split of `data`, spoken and typed, and on STRANGERS; then on one split with
    its clips changed by each of rooms.CONDITIONS. write: samples -> [(text, confidence), ...]."""
    names = ["val", *sorted(path.name for path in Path(data).glob("test-*"))]
    splits, aloud, found = {name: Split(Path(data) / name) for name in names}, {}, {"splits": {}, "wrong": {}}
    if not any(row["task"] in ("qa", "chat") for split in splits.values() for row in split.rows):
        raise ValueError(f"{data} has no questions: expected samples of the tasks qa or chat in val or test-*")
    typed = {"strangers": marked(write, strangers())}
    for name in tqdm(names, desc="answers", unit="split", disable=None):
        found["splits"][name], aloud[name], typed[name] = mark_split(write, splits[name], transcripts)
    for where, marks in [*aloud.items(), *((f"{name}, typed", marks) for name, marks in typed.items())]:
        found["wrong"][where] = [mark for mark in marks if not mark["right"]]
    name = "test-voices" if "test-voices" in names else "val"
    found["changed"] = {"split": name, "clean": found["splits"][name]["spoken"]}
    asked = questions(splits[name], "qa")
    others = [sample["audio"] for sample in asked]
    for change, make in rooms.CONDITIONS.items():
        clips = [s | {"audio": np.asarray(make(s["audio"], np.random.default_rng([seed, n]), others), np.float32)}
                 for n, s in enumerate(asked)]
        found["changed"][change] = share(mark["right"] for mark in marked(write, clips))
    found["kinds"] = by([mark for name in names[1:] or names for mark in aloud[name]], "kind")
    found["strangers"] = by(typed["strangers"], "kind")
    found["refusals"] = {"aloud": refusals(sum(aloud.values(), [])), "typed": refusals(sum(typed.values(), []))}
    return found


PHRASINGS = ("train", "recombined", "wording")


def answer_tables(found: dict) -> list:
    """The result of `mark_answers` as tables: [(title, header, rows), ...]."""
    splits, changed = found["splits"], found["changed"]
    columns = [("family", value) for value in sorted({v for split in splits.values() for v in split["family"]})]
    columns += [("phrasing", value) for value in PHRASINGS if any(value in split["phrasing"]
                                                                 for split in splits.values())]
    transcripts = [key for key in ("transcribed", "transcribed_wer") if key in splits["val"]]
    more = [[f"{name}: {value}", split["phrasing"].get(value), split["typed phrasing"].get(value)]
            for name, split in splits.items()
            for value in sorted(split["phrasing"] | split["typed phrasing"]) if value not in PHRASINGS]
    more += [[f"strangers: {kind}", None, value] for kind, value in found["strangers"].items()]
    return [("answers right, asked aloud: all, by family of voices, by phrasing; and typed",
             ["all", *(value for _, value in columns), "typed", *transcripts],
             [[name, split["spoken"], *(split[key].get(value) for key, value in columns), split["typed"],
               *(split[key] for key in transcripts)] for name, split in splits.items()]),
            ("turns of a conversation, ways to type, strangers", ["aloud", "typed"], more),
            *((f"what has no answer, and what has one, {how}", ["right", "refused", "wrong and confident"],
               [[kind, *row.values()] for kind, row in found["refusals"][how].items()]) for how in ("aloud", "typed")),
            (f"the same clips of {changed['split']}, changed", ["right"],
             [[key, value] for key, value in changed.items() if key != "split"]),
            ("by kind, test splits together", ["right"], list(found["kinds"].items()))]
