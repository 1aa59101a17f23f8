"""demo.write_split: versions of clips, noise, what uses another clip's sound; an interrupted one ends the same."""
import numpy as np
import pytest

from data import Split, Writer
from test_voices import needs
from toy import demo, voices

YES, NOTHING = "Yes.", "I did not hear a question."


def clip(name, family, text="What is a cow?", **more):
    return {"id": name, "text": text, "answer": YES, "kind": "fact", "phrasing": "train",
            "how": {"family": family, "voice": "heart" if family == "hibari" else "en-us"}} | more


BEFORE = [demo.user("Hi."), {"role": "assistant", "content": "Hello."}]
CLIPS = [clip("train-0-espeak-0", "espeak"), clip("train-0-hibari-0", "hibari"),
         clip("train-turn-espeak-1", "espeak", before=BEFORE),
         clip("train-1-espeak-0", "espeak", answer="Not shipped."),
         clip("train-noise-0", "noise", "", answer=NOTHING, kind="noise",
              how={"family": "noise", "voice": "babble", "seconds": 1.0})]
WORDS = {"id": "hear-espeak-0", "text": "cow seven red", "kind": "random",
         "how": {"family": "espeak", "voice": "en-us"}}
TALK = {"task": "chat", "answer": YES, "messages": [demo.user(None), BEFORE[1], demo.user("And?")]}
MORE = [(TALK | {"id": f"talk-{n}"}, False, heard) for n, heard in enumerate(["train-0-espeak-0", "not-there"])]


@pytest.fixture
def voice(tmp_path):
    with Writer(tmp_path / "voice") as out:
        for n, answer in enumerate((YES, NOTHING)):
            out.add({"id": f"a{n}", "task": "tts", "messages": [], "answer": answer, "kind": "answer", "held": False},
                    units=np.arange(5), face=np.zeros((12, 52)))
        out.finish()
    return Split(tmp_path / "voice")


def write(folder, voice, say=demo.say):
    known = {row["answer"] for row in voice.rows}
    jobs = [(c, "train", 0) for c in [*CLIPS, WORDS] if c.get("answer", YES) in known]
    with Writer(folder) as out:
        demo.write_split(out, "train", jobs, voice, MORE, lambda _, jobs: map(say, jobs), 0)
        out.finish()
    return Split(folder, verify=True)


@needs("espeak", "hibari")
def test_slow_families_are_stored_in_versions_and_noise_is_not_transcribed(voice, tmp_path):
    split = write(tmp_path / "train", voice)
    rows = {row["id"]: split[n] for n, row in enumerate(split.rows)}
    names = ["train-0-hibari-0", "train-0-hibari-0-v1", "train-0-hibari-0-v2"]
    sounds = [rows[name]["audio"] for name in names]
    assert len({len(sound) for sound in sounds}) == 3                           # each resampled otherwise
    for name in names:
        heard = rows[f"{name}-asr"]
        assert heard["answer"] == "what is a cow" and [word for word, _, _ in heard["words"]] == "what is a cow".split()
        assert 0 <= heard["words"][0][1] and heard["words"][-1][2] <= len(heard["audio"]) / voices.RATE + 0.001
        np.testing.assert_array_equal(heard["audio"], rows[name]["audio"])
        assert (rows[name]["face"] is not None) == (name == names[0])
    assert "train-0-espeak-0-v1" not in rows and "train-noise-0-asr" not in rows
    noise = rows["train-noise-0"]
    assert noise["answer"] == NOTHING and noise["words"] == [] and len(noise["audio"]) == 16_000
    assert [m["role"] for m in rows["train-turn-espeak-1"]["messages"]] == ["user", "assistant", "user"]
    np.testing.assert_array_equal(rows["talk-0"]["audio"], rows["train-0-espeak-0"]["audio"])
    assert "talk-1" not in rows and "hear-espeak-0-asr" in rows and "hear-espeak-0" not in rows


@needs("espeak", "hibari")
def test_interrupted_anywhere_it_ends_with_the_same_bytes(voice, tmp_path):
    write(tmp_path / "whole", voice)

    def interrupted_at(count):
        def say(job):
            nonlocal count
            count -= 1
            if count < 0:
                raise KeyboardInterrupt
            return demo.say(job)
        return say

    for count in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "broken", voice, interrupted_at(count))
    write(tmp_path / "broken", voice)
    for path in (tmp_path / "whole").iterdir():
        if path.name != "verified.json":                                        # when the files were last read
            assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes(), path.name


def test_what_is_not_installed_or_not_shipped_is_left_out_and_said():
    said = [{"id": f"a{n}", "text": text, "kind": "answer"} for n, text in enumerate((YES, NOTHING, "Not shipped."))]
    clips = {"voice": said, "train": [*CLIPS, WORDS]}
    kept, lines = demo.possible(clips, ["espeak"], {YES: {}, NOTHING: {}})
    assert [c["id"] for c in kept["train"]] == ["train-0-espeak-0", "train-turn-espeak-1", "train-noise-0",
                                                "hear-espeak-0"]
    assert len(kept["voice"]) == 2 and "1 of 3 texts" in lines[0] and "1 clips by hibari" in lines[1]
    assert demo.possible(clips, ["espeak", "hibari"], None) == (clips, [])
    with pytest.raises(ValueError, match="none of this world's"):
        demo.possible(clips, ["espeak"], {"else": {}})
