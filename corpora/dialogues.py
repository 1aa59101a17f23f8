"""Reader of spoken dialogues in json: InstructS2S-200K and its kin. Those in parquet: table.py. See corpus.py.

Every answered turn becomes a sample; the turns before it are kept as text, before its question.
"""
from functools import partial
from pathlib import Path

import disk
from corpora.corpus import user
from corpora.files import find, json_rows
from corpora.sound import Clip, Skip, Sound

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SPEECH = "<speech>"         # marks the sound in the text of a turn


def instructs2s(source: Path, args):
    """InstructS2S-200K (huggingface.co/datasets/ICTNLP/InstructS2S-200K), VoiceAssistant-430K and UltraChat of VocalNet
    (huggingface.co/VocalNet), and others that spell turns in one of these ways.

        SOURCE, or SOURCE/**/*.json, *.jsonl: a list, or lines, of
          {"id", "speech": PATH, "conversations": [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value"}]}
          {"id", "conversation": [{"from": "human", "text", "speech": PATH}, {"from": "gpt", "text", "speech": PATH}]}
          {"id", "speech": PATH, "conversations": [...], "units": PATH of an .npy}

    Paths start from the directory of the json, or from --root. A value without <speech> is what the sound of its turn
    says. Units are taken where --units-of names the checkpoint whose speech tokenizer made them: VocalNet's own are of
    CosyVoice 2, which is another one.
    """
    for path in find(source, ".json", ".jsonl"):
        for where, load in json_rows(path):
            yield where, partial(dialogue, load, args.root or path.parent, args.units_of is not None)


def dialogue(load, root: Path, with_units: bool) -> list:
    """The rows of a dialogue, one per answered turn."""
    row = load()
    name, turns = str(row["id"]), row["conversations"] if "conversations" in row else row["conversation"]
    turns = [dict(turn) | {"role": ROLES[turn["from"]], "said": (turn["value"] if "value" in turn else turn["text"])}
             for turn in turns]
    asked = [turn for turn in turns if turn["role"] == "user"]
    if row.get("speech"):                                       # the sound of the turn with <speech>, else of the last
        next((turn for turn in asked if SPEECH in turn["said"]), asked[-1])["speech"] = row["speech"]
    if row.get("units") and with_units:
        turns[-1]["units"] = row["units"]
    answers = [n for n, turn in enumerate(turns)
               if n and (turns[n - 1]["role"], turn["role"]) == ("user", "assistant")]
    if not answers:
        raise Skip("bad row", f"{name} has no answered turn")
    return [(f"{name}, turn {n + 1}", partial(answered, name if len(answers) == 1 else f"{name}-{n + 1}", name,
                                              turns[:n + 1], root)) for n in answers]


def answered(name: str, group: str, turns: list, root: Path) -> Clip:
    """The clip of the last turn, which is an answer; its question is speech if it has a sound, else text."""
    *history, question, answer = turns
    messages = [{"role": turn["role"], "content": plain(turn)} for turn in history]
    if question.get("speech"):
        instruction = question["said"].replace(SPEECH, "").strip() if SPEECH in question["said"] else ""
        messages.append(user(None, instruction) if instruction else user(None))
    else:
        messages.append(user(plain(question)))
    sound = lambda turn: Sound(root / disk.typed(turn, "speech", str, name)) if turn.get("speech") else None
    units = root / disk.typed(answer, "units", str, name) if "units" in answer else None
    task = "qa" if question.get("speech") or answer.get("speech") or units else "chat"
    said = {} if SPEECH in question["said"] else {"text": question["said"].strip()}
    return Clip(name, [{"task": task, "messages": messages, "answer": answer["said"].strip()}], audio=sound(question),
                answer_audio=sound(answer), units=units, group=group, about=said)


def plain(turn: dict) -> str:
    """The text of a turn. Raises Skip if only its sound is known."""
    if SPEECH in turn["said"]:
        raise Skip("earlier turn without text", "only one turn of a sample has sound, the others need their words")
    return turn["said"].strip()
