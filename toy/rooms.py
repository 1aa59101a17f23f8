"""Degrades clips as on the way to a listener: rooms, other people, noise, microphones, telephones, codecs.

    audio = degraded(audio, random, others)           # a training clip; others: clips for babble
    audio = noise("hum", 2.5, random)                   # a clip without a question
    audio = CONDITIONS["telephone"](audio, random)      # a test clip with one known change

A waveform has shape (samples,) and is float32 at 16 kHz; random is a numpy Generator, others a list of waveforms.
Training changes do not shift the voice in time, so that the spans of its words stay valid.
"""
import io

import numpy as np
import soundfile
import soxr

from toy.said import RATE

# Format, subtype, options of soundfile: MP3 at 33, 24 and 16 kbit/s, Vorbis at 37, Opus at 21.
CODECS = [("MP3", "MPEG_LAYER_III", {"bitrate_mode": "CONSTANT", "compression_level": level})
          for level in (0.85, 0.9, 0.95)]
CODECS += [("OGG", "VORBIS", {"compression_level": 1.0}), ("OGG", "OPUS", {"compression_level": 0.95})]
MP3_DELAY = 1105                                        # samples of delay at low bit rates, where MP3 adds padding
COLOURS = {"white": 0.0, "pink": -0.5, "brown": -1.0}   # amplitude ~ frequency ** exponent
NOISES = ("silence", *COLOURS, "hum", "clicks", "babble", "music")


def decibels(level: float) -> float:
    return 10 ** (level / 20)


def loudness(audio) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(audio)) + 1e-12))


def limited(audio) -> np.ndarray:
    return np.clip(audio, -1, 1).astype(np.float32)


def added(audio, sound, below: float) -> np.ndarray:
    """audio plus a sound of the same length, scaled to be `below` decibels quieter."""
    return audio + sound * (loudness(audio) * decibels(-below) / loudness(sound))


# ---- rooms and microphones ----------------------------------------------------------------------------------------

def reverb(audio, seconds: float, amount: float, random) -> np.ndarray:
    """A room: after the direct sound early reflections, and noise that decays by 60 dB in `seconds`, with its high
    frequencies damped. amount: amplitude of the reverberation relative to the direct sound."""
    t = np.arange(round(seconds * RATE)) / RATE
    response = random.standard_normal(len(t)) * 10 ** (-3 * t / seconds) * (t > random.uniform(0.005, 0.02))
    response = filtered(response, lambda f: 1 / np.sqrt(1 + (f / random.uniform(1500, 6000)) ** 2))
    early = random.integers(round(0.001 * RATE), round(0.03 * RATE), 6)
    response[early] += random.choice((-1, 1), 6) * random.uniform(0.3, 1, 6) * np.abs(response).max()
    response *= amount / np.sqrt(np.sum(response ** 2))
    response[0] = 1
    size = 1 << (len(audio) + len(t) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[:len(audio)]
    return wet.astype(np.float32)


def filtered(audio, gain) -> np.ndarray:
    """audio with each frequency f in Hz scaled by gain(f), zero-phase."""
    spectrum = np.fft.rfft(audio)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(len(audio), 1 / RATE)), len(audio)).astype(np.float32)


def band_gain(f, low: float, high: float) -> np.ndarray:
    """Gain of a band-pass from low to high Hz at frequencies f: falls by 24 dB per octave outside."""
    return 1 / np.sqrt((1 + (low / np.maximum(f, 1)) ** 8) * (1 + (f / high) ** 8))


def microphone(audio, random) -> np.ndarray:
    """A random frequency response: a band-pass, a shelf of up to 9 dB, three peaks or dips."""
    low, high = random.uniform(20, 300), random.uniform(3400, 8000)
    edge, shelf = random.uniform(300, 3000), random.uniform(-9, 9)
    peaks = [(np.exp(random.uniform(np.log(100), np.log(7000))), random.uniform(-9, 9), random.uniform(0.2, 0.7))
             for _ in range(3)]

    def gain(f):
        octaves = np.log2(np.maximum(f, 20))
        level = shelf / (1 + np.exp(-2 * (octaves - np.log2(edge))))
        for centre, height, width in peaks:
            level = level + height * np.exp(-((octaves - np.log2(centre)) / width) ** 2)
        return band_gain(f, low, high) * 10 ** (level / 20)
    return filtered(audio, gain)


def telephone(audio) -> np.ndarray:
    """300 to 3400 Hz, 8000 samples per second, 8-bit mu-law (G.711)."""
    peak = max(np.abs(audio).max(), 1e-6)
    narrow = soxr.resample(filtered(audio, lambda f: band_gain(f, 300, 3400)), RATE, RATE // 2, quality="LQ")
    code = np.sign(narrow) * np.log1p(255 * np.minimum(np.abs(narrow) / peak, 1)) / np.log(256)
    code = np.round(code * 127) / 127
    narrow = np.sign(code) * np.expm1(np.abs(code) * np.log(256)) / 255 * peak
    return fitted(soxr.resample(narrow, RATE // 2, RATE, quality="LQ"), len(audio))


def coded(audio, number: int) -> np.ndarray:
    """audio encoded and decoded with CODECS[number]."""
    format, subtype, options = CODECS[number]
    file = io.BytesIO()
    soundfile.write(file, limited(audio), RATE, format=format, subtype=subtype, **options)
    file.seek(0)
    read = soundfile.read(file, dtype="float32")[0]
    return fitted(read[MP3_DELAY:] if format == "MP3" and len(read) > len(audio) else read, len(audio))


def fitted(audio, samples: int) -> np.ndarray:
    """audio cut or padded with silence to this number of samples."""
    return np.pad(audio[:samples], (0, max(0, samples - len(audio)))).astype(np.float32)


def overdriven(audio, level: float) -> np.ndarray:
    """Amplified until the peak is `level` decibels above full scale, and clipped."""
    return limited(audio * (decibels(level) / max(np.abs(audio).max(), 1e-6)))


# ---- noise --------------------------------------------------------------------------------------------------------

def coloured(colour: str, samples: int, random) -> np.ndarray:
    """White, pink or brown noise above 20 Hz; lower frequencies are inaudible and left out."""
    return filtered(random.standard_normal(samples, np.float32),
                  lambda f: (f >= 20) * (np.maximum(f, 20) / 20) ** COLOURS[colour])


def hum(samples: int, random) -> np.ndarray:
    """Mains hum: 50 or 60 Hz with harmonics, and a little hiss."""
    t, base = np.arange(samples) / RATE, random.choice((50, 60))
    tones = sum(random.uniform(0.1, 1) / n * np.sin(2 * np.pi * (base * n * t + random.random())) for n in range(1, 7))
    return (tones + 0.1 * random.uniform(0, 1) * coloured("white", samples, random)).astype(np.float32)


def babble(samples: int, random, others) -> np.ndarray:
    """One to four other people talking, each clip from a random position."""
    sound = np.zeros(samples, np.float32)
    for _ in range(random.integers(1, 5)):
        other = others[random.integers(len(others))]
        sound += np.resize(np.roll(other, random.integers(len(other))), samples) / loudness(other)
    return sound


def clicks(samples: int, random) -> np.ndarray:
    """One to six knocks and clicks per second: noise that decays with a time constant of 1 to 20 ms."""
    sound = np.zeros(samples, np.float32)
    for start in random.integers(0, max(samples - 800, 1), max(1, round(samples / RATE * random.uniform(1, 6)))):
        length = min(800, samples - start)
        fall = np.exp(-np.arange(length) / (RATE * random.uniform(0.001, 0.02)))
        sound[start:start + length] += random.uniform(0.2, 1) * fall * random.standard_normal(length)
    return sound


def music(samples: int, random) -> np.ndarray:
    """Chords of two to four tones with overtones, a new one every 0.2 to 0.8 s."""
    sound, start = np.zeros(samples, np.float32), 0
    while start < samples:
        length = min(round(random.uniform(0.2, 0.8) * RATE), samples - start)
        t = np.arange(length) / RATE
        for note in random.integers(36, 84, random.integers(2, 5)):
            hertz, fall = 440 * 2 ** ((note - 69) / 12), random.uniform(1, 6)
            tone = sum(np.sin(2 * np.pi * hertz * n * t) / n for n in range(1, 6) if hertz * n < RATE / 2)
            sound[start:start + length] += tone * np.exp(-fall * t) * np.minimum(1, t / 0.01)
        start += length
    return sound


def noise(kind: str, seconds: float, random, others=()) -> np.ndarray:
    """A clip without a question, 60 to 15 dB below full scale; "babble", which needs others, 55 to 35. kind: in NOISES;
    "silence" has only the faint hiss of a microphone."""
    samples = round(seconds * RATE)
    if kind == "silence":
        return (coloured("white", samples, random) * decibels(random.uniform(-100, -70))).astype(np.float32)
    if kind == "babble":
        sound, level = babble(samples, random, others), random.uniform(-55, -35)
        sound = reverb(sound, random.uniform(0.3, 0.7), 2, random)
    elif kind in COLOURS:
        sound, level = coloured(kind, samples, random), random.uniform(-60, -15)
    else:
        sound, level = {"hum": hum, "clicks": clicks, "music": music}[kind](samples, random), random.uniform(-60, -15)
    return limited(sound * (decibels(level) / loudness(sound)))


# ---- training and test --------------------------------------------------------------------------------------------

def degraded(audio, random, others=()) -> np.ndarray:
    """A training clip, degraded at random, at the same length. One in three only changes its level (-12 to 6 dB). Each
    of the others may get reverberation, babble (if there are others), noise, clipping, a microphone, a telephone, a
    codec."""
    audio = np.asarray(audio, np.float32)
    samples = len(audio)
    if random.random() < 2 / 3:
        if random.random() < 0.45:
            audio = reverb(audio, random.uniform(0.1, 0.7), random.uniform(0.15, 0.9), random)
        if len(others) and random.random() < 0.25:
            audio = added(audio, babble(samples, random, others), random.uniform(10, 30))
        if random.random() < 0.5:
            kind = random.choice((*COLOURS, "hum"))
            sound = hum(samples, random) if kind == "hum" else coloured(kind, samples, random)
            audio = added(audio, sound, random.uniform(10, 35))
        if random.random() < 0.12:
            audio = overdriven(audio, random.uniform(2, 14)) / 2
        if random.random() < 0.45:
            audio = microphone(audio, random)
        if random.random() < 0.12:
            audio = telephone(audio)
        if random.random() < 0.2:
            audio = coded(audio, random.integers(len(CODECS)))
    return limited(audio * decibels(random.uniform(-12, 6)))


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


# Changes of test clips, measured one by one: name -> (audio, random, others) -> audio. Only babble needs others.
CONDITIONS = {
    "half gain": lambda audio, random, others=(): limited(audio / 2),
    "double gain": lambda audio, random, others=(): limited(audio * 2),
    "white noise at 20 dB": lambda audio, random, others=(): limited(
        added(audio, coloured("white", len(audio), random), 20)),
    "babble at 20 dB": lambda audio, random, others=(): limited(added(audio, babble(len(audio), random, others), 20)),
    "telephone": lambda audio, random, others=(): limited(telephone(audio)),
    "reverb .5 s": lambda audio, random, others=(): limited(reverb(audio, 0.5, 0.7, random)),
    "clipping +12 dB": lambda audio, random, others=(): overdriven(audio, 12),
    "mp3 24 kbit/s": lambda audio, random, others=(): limited(coded(audio, 1)),
    "4 s of silence before": lambda audio, random, others=(): np.concatenate([silence(4), limited(audio)]),
    "1 s of silence on both sides": lambda audio, random, others=(): np.concatenate(
        [silence(1), limited(audio), silence(1)]),
}
