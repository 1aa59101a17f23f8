"""The chat prompt against chat.json, the rendering of the official demo. GOLDEN_DIR names another fixture root."""

import json
import os
from pathlib import Path

import pytest
import tokenizers

from tokenizer import SPEECH_ID, SYSTEM_PROMPT, Tokenizer, past_turn
from tokenizer_files import write_tiny

ROOT = Path(__file__).parent.parent
GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "fixtures"))


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "ex_omni" / "chat.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture
def directory(tmp_path):
    write_tiny(tmp_path)
    return tmp_path


def with_parts(message):
    """The demo marks speech by `<speech>` in the text; here it is a part of its own."""
    before, speech, text = message["content"].partition("<speech>")
    if not speech:
        return message
    assert before == "" and text[:1] in ("", "\n")
    parts = [{"type": "speech"}] + ([{"type": "text", "text": text[1:]}] if text else [])
    return {**message, "content": parts}


def test_chat_prompts_equal_the_demo_as_text_and_as_ids(golden, directory):
    ours = Tokenizer.from_pretrained(directory)
    theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    theirs.add_special_tokens(["<speech>"])             # as the demo does, which then replaces the id by -300
    speech = theirs.token_to_id("<speech>")
    assert golden
    for case in golden:
        ids = ours.encode_chat([with_parts(m) for m in case["messages"]], case["add_generation_prompt"])
        assert ours.decode(ids, skip_special_tokens=False) == case["rendered"]
        assert ids == [SPEECH_ID if i == speech else i for i in theirs.encode(case["rendered"]).ids]
        assert ids.count(SPEECH_ID) == case["rendered"].count("<speech>")


def test_the_system_prompt_is_the_specification_s(golden):
    """Verbatim, and as any demo conversation that begins with it is rendered."""
    assert f"`{SYSTEM_PROMPT}`" in (ROOT / "docs" / "spec" / "ex_omni.md").read_text(encoding="utf-8")
    for case in golden:
        first = case["messages"][0]
        if first == {"role": "system", "content": SYSTEM_PROMPT}:
            assert case["rendered"].startswith(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n")


def test_a_past_speech_turn_reads_as_in_the_demo(golden):
    """`[Speech input]` alone, `[Speech] ` and the text otherwise: so is every past turn that a demo conversation holds."""
    def past(text):
        parts = [{"type": "speech"}] + ([{"type": "text", "text": text}] if text else [])
        return past_turn({"role": "user", "content": parts})["content"]
    assert past("") == "[Speech input]" and past("Louder, please.") == "[Speech] Louder, please."
    for message in (m for case in golden for m in case["messages"] if m["content"].startswith("[Speech")):
        assert message["content"] in ("[Speech input]", past(message["content"].removeprefix("[Speech] ")))
