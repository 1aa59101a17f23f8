"""pretrain_listen.py: the mini preset's vocabulary, language model and encoder learn, and make a checkpoint.

The clips are tones instead of voices: a word is a tone of its own."""
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sample
import weights
from checkpoint import preset
from data import Split, Writer
from model import ExOmni
from qwen3 import Qwen3Config
from tokenizer import SPEECH_ID, SYSTEM_PROMPT, Tokenizer
from toy import fit
from toy import pretrain_listen as listen
from whisper import WhisperConfig, WhisperEncoder

TONES = {"one": 400, "two": 900, "three": 1800, "four": 3600}      # Hz
TINY = replace(preset("tiny"), speech_encoder=WhisperConfig(80, 48, 1, 2, 96, 100),
               llm=Qwen3Config(320, 64, 128, 2, 2, 1, 32, max_position_embeddings=4096, tie_word_embeddings=True))
SYSTEM = {"role": "system", "content": SYSTEM_PROMPT}


def question(*parts):
    return [{"role": "user", "content": list(parts)}]


def tone_clip(random):
    """Three words of 0.3 s after up to 0.2 s, and their spans."""
    said, start = random.choice(list(TONES), 3), random.uniform(0, 0.2)
    spans = [[str(word), start + 0.3 * n, start + 0.3 * (n + 1)] for n, word in enumerate(said)]
    t = np.arange(round((start + 1) * 16_000)) / 16_000
    sound = sum(0.3 * np.sin(2 * np.pi * TONES[word] * t) * ((t >= a) & (t < b)) for word, a, b in spans)
    return sound + 0.001 * random.standard_normal(len(t)), spans


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """40 clips, each with an asr row that says when what sounds, a qa row of the same sound, and a typed question."""
    random, directory = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    with Writer(directory) as out:
        for n in range(40):
            sound, spans = tone_clip(random)
            family, last = ("espeak", "flite")[n % 2], spans[-1][0]
            row = out.add({"id": f"q{n}", "task": "qa", "messages": question({"type": "speech"}),
                           "answer": f"It was {last}."}, audio=sound)
            out.add({"id": f"a{n}", "task": "asr", "answer": " ".join(word for word, _, _ in spans), "words": spans,
                     "phones": [[name[0], start, end] for name, start, end in spans] + [["pau", spans[-1][2], 2.0]],
                     "messages": question({"type": "speech"}, {"type": "text", "text": "Write it."}), "family": family},
                    audio=row["audio"])
            out.add({"id": f"c{n}", "task": "chat", "messages": question({"type": "text", "text": f"say {last}"}),
                     "answer": f"It was {last}."})
        out.finish()
    return Split(directory)


TEXTS = ["It was one.", "It was two.", "It was three.", "It was four.", " one two three four", "say one", "Write it."]


@pytest.fixture(scope="module")
def parts(split, tmp_path_factory):
    """All parts, trained for seconds."""
    folder = tmp_path_factory.mktemp("parts")
    listen.make_vocabulary(TEXTS, folder / "llm", merges=60)
    listen.train_llm(split, TINY, folder, steps=80, batch=12, rate=4e-3)
    listen.train_encoder(split, TINY, folder, steps=100, batch=8)
    return folder


def curve(folder, part, name="loss"):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if row["part"] == part]


# ---------------------------------------------------------------- the vocabulary


def test_any_text_survives_the_vocabulary_and_frequent_words_are_one_token(tmp_path):
    texts = ["What is the capital of France?", "The capital of France is Paris."] * 3
    tokenizer = listen.make_vocabulary(texts, tmp_path, merges=300)
    for text in (*texts, "unseen Wörter 123 \n\t 漢字"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    typed, plain = (tokenizer.encode_chat(question({"type": "text", "text": text}))
                    for text in ("WHAT is\n the capital  of FRANCE? ", "what is the capital of france?"))
    assert typed == plain, "what users write is folded"
    assert len(tokenizer.encode(texts[1])) == 7
    prompt = tokenizer.encode_chat([SYSTEM], add_generation_prompt=False)
    assert len(prompt) <= 3 + len(SYSTEM_PROMPT.split()) + SYSTEM_PROMPT.count(",") + SYSTEM_PROMPT.count(".") + 2


def test_the_same_texts_give_the_same_vocabulary_with_the_control_tokens_last(tmp_path):
    a, b = (listen.make_vocabulary(TEXTS, tmp_path / name, merges=20) for name in "ab")
    assert (tmp_path / "a/mini.tiktoken").read_bytes() == (tmp_path / "b/mini.tiktoken").read_bytes()
    assert a.n_vocab == 256 + 20 + 3 and a.stop_ids == b.stop_ids == (278, 276)


def test_the_presets_stop_ids_are_those_of_a_full_vocabulary(tmp_path):
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefghij"), 8)) for _ in range(500)]
    tokenizer, config = listen.make_vocabulary(texts, tmp_path), preset("mini")
    assert tokenizer.stop_ids == config.stop_ids
    assert tokenizer.n_vocab <= config.llm.vocab_size == config.generator.llm.vocab_size


def test_a_pair_is_merged_from_the_left_without_overlap():
    assert listen.merged((b"a", b"a", b"a", b"b"), (b"a", b"a")) == (b"aa", b"a", b"b")


def test_the_whole_mini_model_leaves_room_for_its_voice_in_30_megabytes():
    with weights.shapes_only():
        parameters = sum(p.numel() for p in ExOmni(preset("mini")).parameters())
    assert 2 * (parameters + 3.5e6) < 29e6


# ---------------------------------------------------------------- the language model


def test_spoken_tokens_have_every_word_in_order_while_it_lasts(tmp_path):
    tokenizer = listen.make_vocabulary(TEXTS, tmp_path, merges=60)
    words = [["one", 0.5, 0.9], ["two", 0.9, 1.3], ["unheard", 1.3, 1.35], ["four", 2.0, 2.4]]
    wanted = [i for word, _, _ in words for i in tokenizer.encode(f" {word}")]
    complete = 0
    for seed in range(50):
        ids = listen.spoken_tokens(words, tokenizer, 51, 0, 10, torch.Generator().manual_seed(seed))
        assert len(ids) <= 51 and ids[:4] == [0] * 4, "nothing is heard before it is said"
        in_order = iter(wanted)
        assert all(i in in_order for i in dict.fromkeys(i for i in ids if i)), "in order"
        complete += set(wanted) <= set(ids)
    assert complete >= 5, "a frame in ten is lost, and the short word has one frame for each of its many tokens"


def test_only_the_reply_is_supervised_and_only_the_sound_is_noisy(split, parts):
    tokenizer = Tokenizer.from_pretrained(parts / "llm")
    row, spans = split.rows[0], split.rows[1]["words"]
    for seed in range(12):
        ids, labels, noisy = listen.conversation(row, spans, tokenizer, 20, 10, torch.Generator().manual_seed(seed))
        reply = tokenizer.encode(row["answer"]) + [tokenizer.im_end_id]
        assert labels[-len(reply):].tolist() == ids[-len(reply):].tolist() == reply
        assert (labels[:-len(reply)] == -100).all()
        prompted = (ids == tokenizer.im_start_id).sum() == 3
        before = tokenizer.encode_chat([SYSTEM] * int(prompted) + row["messages"]).index(SPEECH_ID)
        assert not noisy[:before].any() and noisy[before] and not noisy[-len(reply):].any()


def test_the_language_model_learns_to_answer(split, parts):
    losses, accuracy = curve(parts, "llm"), curve(parts, "llm", "accuracy")
    assert losses[-1] < 0.25 * losses[0] and accuracy[-1] > 0.8 > accuracy[0]


# ---------------------------------------------------------------- the encoder


def test_spans_become_frames():
    labels = listen.frame_labels([(3, 0.0, 0.02), (7, 0.05, 0.5)], 8)
    assert labels.tolist() == [3, 3, 0, 0, 0, 7, 7, 7]


def test_a_spliced_clip_has_the_labels_of_what_it_is_made_of():
    def clip(first, frames):
        labels = torch.arange(first, first + frames)
        return labels.float().expand(80, frames), labels, labels
    mel, phones, words = listen.spliced(clip(0, 10), clip(100, 12), (4, 5))
    assert words.tolist() == [0, 1, 2, 3, *range(105, 112)]
    assert torch.equal(mel[0].long(), words) and torch.equal(phones, words)
    assert listen.spliced(clip(0, 10), clip(100, 12), (8, 2))[2].shape == (12,), "as long as the longer one at most"


def test_the_encoder_learns_phones_and_words(parts):
    words, phones = (curve(parts, "encoder", name) for name in ("words_right", "phones_right"))
    assert words[-1] > 0.6 > 0.4 > words[0]
    assert phones[-1] > 0.3 > phones[0], "half at most: both families sound the same here"


def test_untrained_heads_look_a_fixed_distance_away_some_of_them_back():
    encoder = listen.EncoderWithHeads(preset("mini").speech_encoder, 2, 2).encoder
    positions, heads = encoder.embed_positions.weight, encoder.config.encoder_attention_heads
    distances = set()
    for layer in encoder.layers:
        q, k = ((positions @ p.weight.T).unflatten(1, (heads, -1)).transpose(0, 1)
                for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        looked_at = (q @ k.mT)[:, 20:-20].argmax(-1) - torch.arange(20, len(positions) - 20)        # (heads, states)
        assert (looked_at == looked_at[:, :1]).all()
        distances |= set(looked_at[:, 0].tolist())
    assert distances == {-9, -6, -3, -2, -1, 1, 2, 3, 6, 9}


def test_the_families_phones_are_classes_of_their_own_and_silence_is_none(split):
    phones, words = listen.classes(split, [i for i, row in enumerate(split.rows) if "words" in row])
    assert set(words) == set(TONES) and min(words.values()) == 1
    assert set(phones) == {(family, name[0]) for family in ("espeak", "flite") for name in TONES}


def test_interrupted_encoder_training_goes_on_as_if_it_had_not_been(split, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0)
    listen.train_encoder(split, TINY, tmp_path / "whole", steps=4, batch=4)
    augment, calls = listen.augment, []

    def broken(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return augment(*arguments)
    monkeypatch.setattr(listen, "augment", broken)
    with pytest.raises(KeyboardInterrupt):
        listen.train_encoder(split, TINY, tmp_path / "broken", steps=4, batch=4)
    listen.train_encoder(split, TINY, tmp_path / "broken", steps=4, batch=4)
    a, b = (load_file(tmp_path / name / "encoder/model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a) and len(calls) == 5


# ---------------------------------------------------------------- together


def test_the_parts_make_a_checkpoint_that_sample_answers_from(parts, checkpoint, tmp_path, capsys):
    for name in ("speech_tokenizer", "speech_decoder"):
        shutil.copytree(checkpoint / name, parts / name, dirs_exist_ok=True)
    listen.compose(parts, tmp_path / "base")
    model = ExOmni.from_pretrained(tmp_path / "base")
    assert (model.config.past_turns, model.config.greedy_units) == (preset("mini").past_turns, True), "as the preset says"
    encoder = WhisperEncoder(TINY.speech_encoder)
    encoder.load_state_dict({name.removeprefix("model.encoder."): tensor
                             for name, tensor in load_file(parts / "encoder/model.safetensors").items()})
    mel = torch.randn(1, 80, 200)
    assert torch.equal(model.speech_encoder(mel), encoder(mel))
    sample.main(["--checkpoint", str(tmp_path / "base"), "--text", "say two", "--out", str(tmp_path / "out"),
                 "--temperature", "0", "--max-new-tokens", "12"])
    assert re.fullmatch(r"It was (one|two|three|four)\.\n", (tmp_path / "out/answer.txt").read_text())


def test_an_encoder_goes_on_from_another_one(split, parts, tmp_path):
    names = ["model.encoder.conv1.weight", "model.encoder.layers.0.fc1.weight"]
    before = load_file(parts / "encoder/model.safetensors")
    listen.train_encoder(split, TINY, tmp_path / "on", steps=1, batch=8, rate=0, start=parts / "encoder")
    listen.train_encoder(split, TINY, tmp_path / "new", steps=1, batch=8, rate=0)
    same, new = (load_file(tmp_path / folder / "encoder/model.safetensors") for folder in ("on", "new"))
    for name in names:
        torch.testing.assert_close(same[name], before[name])
        assert not torch.allclose(new[name], before[name])


def test_families_that_name_phones_alike_share_their_classes_and_noise_has_none(tmp_path):
    sound, span = np.zeros(16_000), [["word", 0.1, 0.5]]
    with Writer(tmp_path) as out:
        for family in ("espeak", "flite", "kokoro", "hibari", "noise"):
            spans = {"words": [], "phones": []} if family == "noise" else {
                "words": span, "phones": [["aa", 0.1, 0.5], ["pau", 0.5, 1.0]]}
            out.add({"id": family, "task": "qa", "messages": question({"type": "speech"}), "answer": "x",
                     "family": family} | spans, audio=sound)
        out.finish()
    phones, words = listen.classes(Split(tmp_path), range(5))
    assert phones == {("espeak", "aa"): 1, ("flite", "aa"): 2} and words == {"word": 1}
    listen.train_encoder(Split(tmp_path), TINY, tmp_path, steps=2, batch=4)             # noise has no labels


def test_a_part_that_is_there_is_left_alone(split, parts):
    files = {path: path.stat().st_mtime_ns for path in parts.glob("*/model.safetensors")}
    listen.train_llm(split, TINY, parts)
    listen.train_encoder(split, TINY, parts, steps=1)
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_data_without_a_known_voice_is_refused(tmp_path):
    with Writer(tmp_path) as out:
        out.add({"id": "c", "task": "face", "messages": [], "answer": ""})
        out.finish()
    listen.make_vocabulary(TEXTS, tmp_path / "llm", merges=10)
    with pytest.raises(ValueError, match="expected samples of espeak, flite, kokoro, hibari, noise, found {}"):
        listen.train_encoder(Split(tmp_path), TINY, tmp_path, steps=1)
    with pytest.raises(ValueError, match="expected samples of chat, qa, asr, tts, found {'face': 1}"):
        listen.train_llm(Split(tmp_path), TINY, tmp_path)
