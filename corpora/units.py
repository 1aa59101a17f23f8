"""`prepare.py units`: the speech tokenizer of a checkpoint makes speech units of every answer that has sound.

    python prepare.py units data/mine --checkpoint mini
    torchrun --nproc_per_node=8 prepare.py units data/mine --checkpoint checkpoints/qwen3-8b

Only clips with the same number of units are batched, as padding would change the last unit of shorter ones (docs/spec/
glm4_voice.md 1.1). So the units are those that `SpeechTokenizer.encode` gives for each clip alone.
"""
from itertools import groupby
from pathlib import Path

import cli

import torch
from tqdm import tqdm

from corpora import adding
from data import Split, fingerprint
from face_decoder import frames_for_units
from ranks import rank_and_world
from speech_tokenizer import BATCH, SpeechTokenizer
from whisper import SAMPLE_RATE


def add_units(commands) -> None:
    """The arguments of `prepare.py units`."""
    about = ("Adds speech units to prepared data, for every answer that has sound. Runs under torchrun too; an "
             "interrupted one goes on, a second one does nothing.")
    command = commands.add_parser("units", help="speech units of the answers in prepared data", description=about)
    command.set_defaults(command=make_units, interrupted=adding.KEPT)
    add = command.add_argument
    add("data", metavar="DATA", help="prepared data: a split, or a directory with train/ and val/")
    add("--checkpoint", required=True, help="whose speech_tokenizer/: the checkpoint that training starts from")
    add("--from-asr", action="store_true", help="also make a `tts` row of every `asr` row: its sound as the speech of "
        "its text (recordings of the voice that the model is to have)")
    add("--overwrite", action="store_true", help="replace units that another speech tokenizer made")
    add("--device", default="auto", help="auto, cpu, cuda, mps")


def make_units(args) -> None:
    """`prepare.py units`. Raises ValueError or OSError; what was made until then is kept."""
    device = cli.pick_device(args.device)
    with adding.processes(device):
        with adding.together():
            tokenizer = SpeechTokenizer.from_pretrained(Path(args.checkpoint) / "speech_tokenizer", device)
        for directory in adding.splits(args.data):
            with adding.claimed(directory, "units") as split:
                unitise(split, tokenizer, fingerprint(args.checkpoint), args.from_asr, args.overwrite)


def unitise(split: Split, tokenizer, made_by: str, from_asr=False, overwrite=False) -> None:
    """Add the units to a split and print a summary. made_by: the tokenizer's fingerprint."""
    with adding.together():
        sounds, replace = clips(split, tokenizer, made_by, from_asr, overwrite)
    before = make(split, tokenizer, sounds, made_by, replace) if sounds else 0
    if rank_and_world()[0] == 0:
        hours = sum(length for _, length in set(sounds.values())) / SAMPLE_RATE / 3600
        soundless = sum(row["task"] in ("tts", "face", "qa") and "units" not in row and n not in sounds
                   for n, row in enumerate(split.rows))
        print(f"{split.directory}: units for {len(sounds)} answers, {hours:.2f} h of speech"
              + f" ({before} clips of it were made before)" * bool(before)
              + f"; {soundless} answers have no sound: `prepare.py speak` speaks them" * bool(soundless))


def make(split: Split, tokenizer, sounds: dict, made_by: str, replace: bool) -> int:
    """Make the units of the sounds with all processes and put them in. Returns how many an earlier command had made."""
    with adding.Adding(split, "units", sounds, [made_by, replace], of_one_length(sounds, tokenizer)) as work:
        with adding.together(), tqdm(total=work.left, desc=f"units of {split.directory}", unit="clip",
                                     disable=None) as bar:
            for batch in work.jobs:
                waveforms = [torch.from_numpy(adding.waveform(split, sounds[number])) for number in batch]
                for number, units in zip(batch, tokenizer.encode_batch(waveforms)):
                    work.add(number, units.cpu().numpy())
                bar.update(len(set(batch) - work.before.keys()))
        with adding.together():
            if rank_and_world()[0] == 0:
                work.finish(with_units, keep=not replace, speech_tokenizer=made_by,
                            unit_vocab=tokenizer.config.quantize_vocab_size)
        return len(work.before)


def of_one_length(sounds: dict, tokenizer):
    """A function for `Adding`'s batches: clips with the same number of units. A clip that is too long for one piece is
    alone, as its pieces fill a batch."""
    count = lambda number: -(-sounds[number][1] // tokenizer.config.samples_per_unit)

    def batches(numbers):
        found = []
        for _, group in groupby(sorted(numbers, key=count, reverse=True), count):
            group = list(group)
            size = BATCH if sounds[group[0]][1] <= tokenizer.config.max_samples else 1
            found += [group[i:i + size] for i in range(0, len(group), size)]
        return found
    return batches


def clips(split: Split, tokenizer, made_by: str, from_asr: bool, overwrite: bool) -> tuple:
    """{row number: (start, length) of its sound} of the rows that get units, and whether existing units are replaced.
    Raises ValueError if they must not be, or if a face is too short for its sound."""
    have = [n for n, row in enumerate(split.rows) if "units" in row]
    stated = split.manifest.get("speech_tokenizer")
    replace = bool(have) and stated != made_by
    if replace and not overwrite:
        raise ValueError(f"{split.directory} has units of the speech tokenizer {stated or 'unknown'}, the checkpoint's "
                         f"is {made_by}: --overwrite replaces them")
    soundless = [split.rows[n]["id"] for n in have if adding.sound_of(split.rows[n]) is None]
    if replace and soundless:
        raise ValueError(f"{split.directory}: {len(soundless)} samples, {soundless[0]} first, have units but no sound "
                         "to make others from: start from the recordings again")
    sounds = {n: tuple(sound) for n, row in enumerate(split.rows)
              if (sound := adding.sound_of(row)) and sound[1] and (replace or "units" not in row)}
    if from_asr:
        sounds |= {n: tuple(split.rows[n]["audio"]) for n in adding.to_read_aloud(split)}
    for number, (_, length) in sounds.items():
        row, needed = split.rows[number], frames_for_units(-(-length // tokenizer.config.samples_per_unit))
        if "face" in row and row["face"][1] < needed:
            raise ValueError(f"{split.directory}: sample {row['id']} has {row['face'][1]} face frames, its sound needs "
                             f"{needed}: hold the last one")
    return sounds, replace


def with_units(row: dict, where: list) -> list:
    """The rows that replace a row: the same with its units; for an `asr` row itself and the `tts` row made of it."""
    if row["task"] == "asr":
        return [row, adding.read_aloud(row, answer_audio=row["audio"], units=where)]
    row = row | {"answer_audio": adding.sound_of(row), "units": where}
    if row["task"] in ("tts", "face"):
        row.pop("audio", None)                          # this was the sound of the answer
    if "face" in row:
        row["face"] = [row["face"][0], frames_for_units(where[1])]
    return [row]
