"""Measures how a model speaks the answers of the mini model's world, against the answer voice's clips (split `voice`).

Used by evaluate.py. said: [(sample, model.Answer, sample of split `voice` with the same text), ...]; kept: those whose
text is right.
"""
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from tqdm import tqdm

import disk
from data import Split, chunks, collate, rows_of
from face.measure import average, own_voice, sound_lag
from face_decoder import FPS, UNIT_RATE
from flow import OUTPUT_HOP, OUTPUT_RATE
from toy.clips import at_output_rate
from toy.marking import BATCH, error_rate, questions, share, speak, words
from whisper import SAMPLE_RATE

DURATIONS = (0, 5, 10, 15, 20, 40, 60)                          # seconds: the ranges of Table 9 and Figures 5, 6


# ---------------------------------------------------------------- asking

def choose(samples: list, count: int) -> list:
    """`count` samples with different answers, evenly over the list, including all of several sentences."""
    distinct = list({sample["answer"]: sample for sample in samples}.values())
    long = [n for n, sample in enumerate(distinct) if re.search(r"[.!?]\s", sample["answer"])]
    rest = [n for n in range(len(distinct)) if n not in long]
    rest = [rest[n * len(rest) // room] for n in range(room)] if (room := min(count - len(long), len(rest))) > 0 else []
    return [distinct[n] for n in sorted([*long, *rest])]


def converse(model, data, count: int, max_new_tokens: int, seed: int) -> list:
    """Ask `count` questions -> said, shortest answers first. Raises ValueError if `data` lacks spoken questions or
    units of the voice."""
    data = Path(data)
    split = Split(data / ("test-recombined" if (data / "test-recombined").exists() else "val"))
    asked = choose(questions(split, "qa"), count)
    asked.sort(key=lambda s: len(s["answer"]))                  # a batch lasts as long as its longest answer
    voices = own_voice(data, [s["answer"] for s in asked])
    if not asked or any(voice is None or voice["units"] is None for voice in voices):
        raise ValueError(f"{data} has no {'units of each answer in split voice' if asked else 'spoken questions'}: "
                         "speech is compared with the answer voice's own")
    return list(zip(asked, speak(model, asked, max_new_tokens, seed), voices))


def right_ones(said: list) -> list:
    """said -> kept: those with the right text, and with speech."""
    return [(s, answer, voice) for s, answer, voice in said if answer.text == s["answer"] and len(answer.units)]


def write_question(split: Split, path: Path, seconds: float = 3.0) -> Path:
    """Write the question whose answer is closest to `seconds` as a wav. Raises ValueError if none is spoken."""
    rows = [i for i, row in enumerate(split.rows) if row["task"] == "qa" and {"audio", "face"} <= row.keys()]
    if not rows:
        raise ValueError(f"{split.directory} has no question asked aloud: give --audio FILE")
    write_wav(path, split[min(rows, key=lambda i: abs(split.rows[i]["face"][1] / FPS - seconds))]["audio"], SAMPLE_RATE)
    return path


# ---------------------------------------------------------------- speech

def lines(sounds: list, hertz: float = OUTPUT_RATE / OUTPUT_HOP, between=(300, 7500), size: int = 4096) -> dict:
    """Spectral lines in sounds (samples,) at 22,050 Hz: levels at multiples of `hertz` above their surroundings, in dB:
    mean, p90, max. White noise has about 0. A vocoder can leave lines at its frame rate, and at 64 times this, the hop
    of its output. between: range in Hz, above the pitch, which is a line itself, and where speech has energy.

    Levels are averaged over frames within 20 dB of the loudest of their sound. The surroundings are the median of the
    bins (5.4 Hz each) nearer than half of `hertz`, without the two on each side.
    """
    levels = []
    for sound in sounds:
        sound = torch.as_tensor(sound).float()
        frames = F.pad(sound, (0, max(size - len(sound), 0))).unfold(0, size, size // 4)
        power = frames.square().mean(1)
        spectra = torch.fft.rfft(frames[power >= 0.01 * power.max()] * torch.hann_window(size)).abs()
        levels.append(20 * spectra.clamp(min=1e-7).log10())
    level, bins = torch.cat(levels).mean(0), OUTPUT_RATE / size
    around = torch.tensor([d for d in range(-int(hertz / bins / 2), int(hertz / bins / 2) + 1) if abs(d) > 2])
    first, last = (limit / hertz for limit in between)
    at = (torch.arange(math.ceil(first), int(last) + 1) * hertz / bins).round().long()
    over = level[at] - level[at[:, None] + around].median(1).values
    return {"mean": over.mean().item(), "p90": over.quantile(0.9).item(), "max": over.max().item()}


def compare_speech(kept: list) -> dict:
    """Lengths, units and spectral lines, compared with the voice."""
    lengths = [{"text": s["answer"], "seconds": len(answer.units) / UNIT_RATE,
                "voice_seconds": len(voice["units"]) / UNIT_RATE, "ended": len(answer.unit_states) > len(answer.units)}
               for s, answer, voice in kept]
    ratios = np.array([one["seconds"] / one["voice_seconds"] for one in lengths])
    units = [(voice["units"].tolist(), answer.units.tolist()) for _, answer, voice in kept]
    sounds = {"generated": [answer.waveform for _, answer, _ in kept],
              "voice": [at_output_rate(torch.as_tensor(voice["audio"])) for _, _, voice in kept
                        if voice["audio"] is not None]}
    return {"answers": len(lengths), "length over the voice's, median": float(np.median(ratios)),
            "length within 10 %": float(np.mean(abs(ratios - 1) <= 0.1)),
            "truncated": [one for one, ratio in zip(lengths, ratios) if ratio < 0.9],
            "stopped by the limit of units": sum(not one["ended"] for one in lengths),
            "longest": max(lengths, key=lambda one: one["voice_seconds"]),
            "units equal to the voice's": average(a == b for a, b in units), "unit error rate": error_rate(units)} | {
                f"lines in the sound, {side}, {name}, dB": value
                for side, several in sounds.items() if several for name, value in lines(several).items()}


def by_duration(seconds: list, pairs: dict) -> dict:
    """v1 Table 9, Figures 5 and 6: range of durations -> number of answers, and word error rate of each side.
    seconds: of each answer; pairs: side -> [(words of the text, words transcribed), ...], empty without an ASR."""
    found = {}
    for low, high in zip(DURATIONS, DURATIONS[1:]):
        inside = [n for n, duration in enumerate(seconds) if low < duration <= high]
        if inside:
            found[f"{low}-{high} s"] = {"answers": len(inside)} | {
                side: error_rate([several[n] for n in inside]) for side, several in pairs.items()}
    return found


def write_wav(path: Path, sound, rate: int) -> None:
    with disk.replacing(path) as temporary:
        soundfile.write(os.fsencode(temporary), sound, rate, format="WAV", subtype="PCM_16")


def write_sounds(kept: list, out: Path) -> dict:
    """Write NNN.wav to out/generated and, if the voice has audio, out/voice, with a list of each for any ASR ({"audio",
    "text"} in every line of SIDE.jsonl). Returns side -> [(path, text), ...]."""
    files, sides = {}, {"generated": OUTPUT_RATE}
    if all(voice["audio"] is not None for _, _, voice in kept):
        sides["voice"] = SAMPLE_RATE
    for side, rate in sides.items():
        (out / side).mkdir(parents=True, exist_ok=True)
        for old in (out / side).glob("*.wav"):
            old.unlink()
        files[side] = [(out / side / f"{n:03}.wav", s["answer"]) for n, (s, _, _) in enumerate(kept)]
        for (path, _), (_, answer, voice) in zip(files[side], kept):
            write_wav(path, answer.waveform.float().numpy() if side == "generated" else voice["audio"], rate)
        with disk.replacing(out / f"{side}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps({"audio": str(path), "text": text}) + "\n"
                                         for path, text in files[side]), encoding="utf-8")
    return files


def transcriber(name: str):
    """A function path -> text by faster-whisper. Raises OSError without the package or the model."""
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise OSError("--asr needs faster-whisper: `pip install faster-whisper`") from None
    try:
        asr = WhisperModel(name, device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads())
    except Exception as error:                                  # of the package, the download, the model file
        raise OSError(f"--asr {name} cannot be loaded: {error}") from None

    def transcribe(path) -> str:
        parts, _ = asr.transcribe(str(path), language="en", beam_size=5, condition_on_previous_text=False)
        return " ".join(part.text.strip() for part in parts)
    return transcribe


def word_errors(kept: list, files: dict, transcribe) -> dict:
    """Word error rate of each side's files, the texts with errors and their transcripts, and the rates by duration.
    transcribe: path -> text; None: nothing is transcribed."""
    texts = {side: [(text, transcribe(path)) for path, text in tqdm(several, desc=side, unit="clip", disable=None)]
             for side, several in files.items() if transcribe}
    pairs = {side: [(words(text), words(got)) for text, got in several] for side, several in texts.items()}
    return {f"word error rate, {side}": error_rate(several) for side, several in pairs.items()} | {
        "heard": {side: [both for both, (said, got) in zip(texts[side], pairs[side]) if said != got] for side in texts},
        "by duration": by_duration([len(answer.units) / UNIT_RATE for _, answer, _ in kept], pairs)}


# ---------------------------------------------------------------- speech generator and face

@torch.no_grad()
def generator_figures(model, data, count: int, max_new_tokens: int, seed: int) -> dict:
    """For the sentences of val: loss and accuracy of the units with teacher forcing; for `count` of them that the model
    reads aloud, the error rate of its units where the text is right."""
    split = Split(Path(data) / "val")
    rows, sums = rows_of(split, ("tts",)), dict.fromkeys(("units", "units_accuracy"), 0.0)
    if not len(rows):
        raise ValueError(f"{split.directory} has no samples of task tts: the speech generator is measured on them")
    for chunk in chunks(split, rows, BATCH):
        batch = collate([split[i] for i in chunk], model, ("units",), model.llm.norm.weight.device)
        for name, value in model(batch, dict.fromkeys(sums, 1)).items():
            sums[name] += value.item()
    targets = sum(split.rows[i]["units"][1] + 1 for i in rows)      # with the end unit
    model.speech_decoder = None                                     # no sound is needed
    asked = sorted(choose(questions(split, "tts"), count), key=lambda s: len(s["answer"]))
    said = list(zip(asked, speak(model, asked, max_new_tokens, seed), asked))
    units = [(s["units"].tolist(), answer.units.tolist()) for s, answer, _ in right_ones(said)]
    return {"unit loss": sums["units"] / len(rows), "unit accuracy": sums["units_accuracy"] / targets,
            "text right": share(s["answer"] == answer.text for s, answer, _ in said),
            "unit error rate": error_rate(units) if units else None}


def lip_lags(kept: list, head) -> dict:
    """Lag of the generated lips behind the generated sound, and of the teacher's behind the voice."""
    lags = [(sound_lag(answer.face.float().clamp(0, 1).numpy(), answer.waveform.float().numpy(), OUTPUT_RATE, head),
             sound_lag(voice["face"], voice["audio"], SAMPLE_RATE, head)) for _, answer, voice in kept]
    longer = [len(answer.face) / FPS - len(answer.waveform) / OUTPUT_RATE for _, answer, _ in kept]
    return {"answers": len(kept),
            "lips' lag to the sound, ms (median)": average((ours for ours, _ in lags if ours is not None), np.median),
            "the teacher's lag to the voice, ms (median)": average(
                (teachers for _, teachers in lags if teachers is not None), np.median),
            "lags within one frame of each other": average(
                None not in both and abs(both[0] - both[1]) < 1500 / FPS for both in lags),
            "face longer than speech by at most, s": float(max(longer, key=abs))}
