"""Trains from scratch the parts for which the paper downloads weights: the same classes, at the mini preset's size.

    python prepare.py demo --out data/demo
    python -m toy pretrain                                # all missing parts in order, then runs/base and the units
    python -m toy pretrain vocabulary llm encoder         # some parts; run two such commands to use two cores
    python -m toy pretrain --from mini                    # no training: the parts of mini/, then runs/base
    python -m toy pretrain encoder --from mini            # the encoder, trained further from that of mini/

| part | what | where |
|---|---|---|
| vocabulary | byte-level BPE | pretrain_listen.py |
| llm | Qwen3 on the domain's text | pretrain_listen.py |
| encoder | Whisper's encoder | pretrain_listen.py |
| tokenizer | GLM-4-Voice's speech tokenizer, with the unit encoder of its decoder | pretrain_speak.py |
| flow, hift | GLM-4-Voice's speech decoder | pretrain_speak.py |
| base | the checkpoint that stage 1 starts from: these parts, random projector, generator and face decoder | |
| units | the units of all answers by its speech tokenizer, written into the prepared data | answers.py |

Parts are written to --work, with a log.jsonl. Finished parts are skipped, interrupted ones are resumed.
"""
import argparse
import shutil
from dataclasses import asdict
from pathlib import Path

import cli                                                      # before torch: see __main__.py

import torch

import disk
import weights
from checkpoint import PREFIXES, ExOmniConfig, preset
from data import Split, fingerprint
from tokenizer import folded
from toy import answers, demo, domain
from toy import pretrain_listen as listen
from toy import pretrain_speak as speak


def vocabulary(data: Path, parts: Path, more: dict) -> None:
    """The byte-level BPE of all training questions and answers, spoken or typed."""
    rows = Split(data / "train").rows
    turns = [message for row in rows for message in row["messages"] if isinstance(message["content"], str)]
    texts = [folded(turn["content"]) if turn["role"] == "user" else turn["content"] for turn in turns]
    listen.make_vocabulary([*texts, folded(domain.TRANSCRIBE), *(row["answer"] for row in rows)], parts / "llm")


def units(data: Path, base: Path) -> None:
    """Write each answer's units into every split, with the fingerprint of the tokenizer that made them."""
    count, name = speak.TOKENIZER.quantize_vocab_size, fingerprint(base)
    if all(Split(data / split).manifest.get("speech_tokenizer") == name for split in demo.SPLITS):
        return print(f"units: {data} has those of {base} already")
    of_answers = answers.units_of(data / "voice", speak.unit_encoder(base))
    for split in demo.SPLITS:
        print(f"{data / split}: {answers.add_units(data / split, of_answers, count, name)} samples with units")


# Rounds of training the encoder: (directory below --work, steps, peak learning rate). All but the first begin with the
# strongest augmentation.
ROUNDS = (("first", 5500, 2e-3), ("second", 10500, 2e-3), ("third", 5500, 1e-3), ("", 6500, 1.5e-3))


def encoder(data: Path, parts: Path, more: dict) -> None:
    """Each round starts from the encoder of the previous one. With a given start only the last round runs."""
    split, config, more = Split(data / "train"), preset("mini"), dict(more)
    start = more.pop("start", None)
    for seed, (folder, steps, rate) in [*enumerate(ROUNDS)][-1 if start else 0:]:
        listen.train_encoder(split, config, parts / folder, **{"steps": steps} | more, rate=rate, seed=seed,
                             start=start)
        start = parts / folder / "encoder"


# Part -> (the file that exists when it is done, function that makes it of data, parts and {"steps": N} or {}).
PARTS = {
    "vocabulary": ("llm/mini.tiktoken", vocabulary),
    "llm": ("llm/model.safetensors",
            lambda data, parts, more: listen.train_llm(Split(data / "train"), preset("mini"), parts, **more)),
    "encoder": ("encoder/model.safetensors", encoder),
    "tokenizer": ("speech_tokenizer/model.safetensors",
                  lambda data, parts, more: speak.train_tokenizer(Split(data / "voice"), parts, **more)),
    "flow": ("speech_decoder/flow.done",
             lambda data, parts, more: speak.train_flow(Split(data / "voice"), parts, **more)),
    "hift": ("speech_decoder/hift.safetensors",
             lambda data, parts, more: speak.train_hift(Split(data / "voice"), parts, **more)),
}
LAST = ("base", "units")


def unpack(mini, parts) -> None:
    """Write to `parts` the pretrained parts of a shipped mini model, in 16 bit: its language model before the stages,
    and the parts that no stage trains. Raises ValueError or OSError."""
    mini, parts, config = Path(mini), Path(parts), ExOmniConfig.from_dir(mini)
    prefix = PREFIXES["speech_encoder."]
    names = [name for name in weights.shapes(mini / "model.safetensors") if name.startswith(prefix)]
    encoder = {f"model.encoder.{name[len(prefix):]}": tensor.clone()
               for name, tensor in weights.stream(mini / "model.safetensors", names)}
    shutil.copytree(mini / "base", parts / "llm", dirs_exist_ok=True)
    for part in ("speech_tokenizer", "speech_decoder"):
        shutil.copytree(mini / part, parts / part, dirs_exist_ok=True)
    listen.write_generator(config, parts)
    disk.write_json(parts / "encoder" / "config.json", asdict(config.speech_encoder))
    weights.write_tensors(parts / "encoder" / "model.safetensors", encoder)


def parse(argv=None) -> argparse.Namespace:
    """The command line of `python -m toy pretrain`."""
    p = cli.Parser(prog="python -m toy pretrain", description=__doc__.splitlines()[0])
    p.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join([*PARTS, *LAST])} (default: all)")
    p.add_argument("--data", default="data/demo", help="what `prepare.py demo` wrote")
    p.add_argument("--work", default="runs/parts", help="directory for the parts and their log")
    p.add_argument("--out", default="runs/base", help="the checkpoint")
    p.add_argument("--from", dest="shipped", metavar="MINI",
                   help="a directory like mini/: take its parts, or go on from its encoder")
    p.add_argument("--steps", type=cli.positive, help="of each part, in place of its own number: to try it out")
    p.add_argument("--threads", type=cli.threads, default=1,
                   help="of one part; two commands side by side use two cores best")
    return p.parse_intermixed_args(argv)                        # parts may come between options


def pretrain(args) -> None:
    """Make the parts of the command line, in order, the checkpoint and the units. Raises ValueError or OSError."""
    unknown = [part for part in args.parts if part not in (*PARTS, *LAST)]
    if unknown:
        raise ValueError(f"part {', '.join(unknown)}: expected some of {', '.join([*PARTS, *LAST])}")
    torch.set_num_threads(args.threads)
    work, more = cli.writable(args.work, "--work"), {} if args.steps is None else {"steps": args.steps}
    if args.shipped and args.parts:
        if args.parts != ["encoder"]:
            raise ValueError(f"--from with {', '.join(args.parts)}: expected encoder alone, or no part")
        if ExOmniConfig.from_dir(Path(args.shipped)).speech_encoder != preset("mini").speech_encoder:
            raise ValueError(f"{args.shipped}: its encoder is not of the preset mini's size: train it without --from")
        unpack(args.shipped, work / "shipped")
        more["start"] = work / "shipped" / "encoder"
    elif args.shipped:
        unpack(args.shipped, work)
        return listen.compose(work, args.out)
    for part, (file, make) in PARTS.items():
        if args.parts and part not in args.parts:
            continue
        if (work / file).exists():
            print(f"{part}: {work / file} is there already")
            continue
        make(Path(args.data), work, more)
        (work / file).touch()
        print(f"{part}: wrote {work / file}")
    if not args.parts or "base" in args.parts:
        listen.compose(work, args.out)
    if not args.parts or "units" in args.parts:
        units(Path(args.data), Path(args.out))


def main(argv=None) -> None:
    args = parse(argv)
    with cli.one_line_errors(debug=args.debug):
        pretrain(args)
