"""`python prepare.py corpus NAME SOURCE --out DIR`: the readers by name, their options, and the command."""
import argparse
import inspect
import os
from itertools import chain
from pathlib import Path

import cli
import disk
from corpora import asr, corpus, dialogues, faces, table
from data import fingerprint
from face.arkit import ORDERS

share = cli.number(0, 1)


def some_of(*kinds):
    """An argparse type: asr,tts -> a list of some of `kinds`."""
    def read(text: str) -> list:
        found = text.split(",")
        if set(found) - set(kinds) or len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: expected some of {','.join(kinds)}")
        return found
    return read


# Option -> its arguments for argparse.
OPTIONS = {
    "--tasks": {"type": some_of("asr", "tts"), "default": ["asr"], "metavar": "asr,tts",
                "help": "samples of each clip; tts: its text alone, to be spoken by another voice (default: asr)"},
    "--min-confidence": {"type": share, "default": 0.95, "help": "of a transcript that is taken"},
    "--min-dnsmos": {"type": cli.number(0, 5), "default": 0, "help": "of a clip that is taken, 3.2 say"},
    "--language": {"nargs": "+", "default": [], "help": "of clips that are taken: en zh ... (default: all)"},
    "--root": {"type": Path, "help": "directory that paths inside start from (default: that of the file)"},
    "--units-of": {"metavar": "CHECKPOINT", "help": "take units, which this checkpoint's speech tokenizer has made"},
    "--question-audio": {"metavar": "COLUMN", "help": "column of what the user says, as sound"},
    "--question": {"metavar": "COLUMN", "help": "column of the same as text"},
    "--answer": {"metavar": "COLUMN", "help": "column of the answer's text"},
    "--answer-audio": {"metavar": "COLUMN", "help": "column of the answer's sound"},
    "--id": {"metavar": "COLUMN", "help": "column of a name for each row"},
    "--fps": {"type": cli.number(1, 1000), "help": "of face tracks that do not say it"},
    "--order": {"choices": sorted(ORDERS), "help": "of the columns of face tracks without names"},
}
PATHS, COLUMNS = ("--root",), ("--question-audio", "--question", "--answer", "--answer-audio", "--id")
# Name -> its reader, its options, the layout of its source.
READERS = {
    "librispeech": (asr.librispeech, ("--tasks",), "SPEAKER/CHAPTER/*.trans.txt in it"),
    "aishell": (asr.aishell, ("--tasks",), "transcript/*.txt and wav/ in it"),
    "wenetspeech": (asr.wenetspeech, ("--tasks", "--min-confidence"), "WenetSpeech.json in it, with audios"),
    "gigaspeech": (asr.gigaspeech, ("--tasks",), "GigaSpeech.json in it, with audios"),
    "emilia": (asr.emilia, ("--tasks", "--min-dnsmos", "--language"), "*.tar or *.jsonl in it"),
    "instructs2s": (dialogues.instructs2s, (*PATHS, "--units-of"), "a list of dialogues in .json or .jsonl"),
    "parquet": (table.parquet, (*PATHS, *COLUMNS), "*.parquet, or a directory of them"),
    "beat": (faces.beat, (), "SPEAKER/*.wav in it, each with a .json"),
    "unitalker": (faces.unitalker, (), "train.json with data in it, or directories of such"),
    "faces": (faces.faces, ("--fps", "--order"), "sounds in it, each with a face track of the same name"),
    "table": (table.table, (*PATHS, "--fps", "--order"), "a .csv, .tsv, .jsonl or .json file with rows"),
}
ALIASES = {"unitalker": ["a2f-bench"]}


def add_arguments(command) -> None:
    """Add the corpora as subcommands, each with its own options."""
    corpora = command.add_subparsers(required=True, metavar="NAME", dest="corpus")
    for name, (reader, options, _) in READERS.items():
        about = inspect.getdoc(reader)
        one = corpora.add_parser(name, help=about.split("\n")[0], description=about, aliases=ALIASES.get(name, []))
        one.set_defaults(corpus=name)
        add = one.add_argument
        add("source", metavar="SOURCE", type=Path, help="the corpus, as published")
        add("--out", required=True, type=Path, help="directory to write: prepared data in DIR/train and DIR/val")
        add("--val", type=share, metavar="SHARE", help="of speakers or samples for val, chosen by a hash (default: the "
            f"corpus's own val, else {corpus.VAL})")
        add("--workers", type=cli.threads, default=os.cpu_count() or 1, help="processes that decode")
        add("--longest-question", type=cli.number(0.1, 4096), default=30.0, metavar="SECONDS",
            help="of what the user says: the window of the speech encoder; 5.12 for mini")
        add("--longest-answer", type=cli.number(0.1, 4096), default=300.0, metavar="SECONDS", help="of a spoken answer")
        for option in options:
            add(option, **OPTIONS[option])


def command(args) -> None:
    """`prepare.py corpus`. Raises ValueError or OSError; what was written until then is kept."""
    reader, options, layout = READERS[args.corpus]
    if not args.source.exists():
        raise FileNotFoundError(f"{args.source} not found: expected {layout}")
    cli.check_directory(args.out)
    rows = iter(reader(args.source, args))
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{args.source} is no {args.corpus} corpus: expected {layout}; `prepare.py corpus "
                         f"{args.corpus} --help` shows it")
    given = {option: getattr(args, option[2:].replace("-", "_"))
             for option in ("--val", "--longest-question", "--longest-answer", *options)}
    about = {"corpus": args.corpus, "source": str(args.source)} | {
        option: str(value) if isinstance(value, Path) else value for option, value in given.items()}
    longest = {"audio": args.longest_question, "answer_audio": args.longest_answer}
    print(corpus.import_corpus(chain([first], rows), args.out, about, longest, args.val, args.workers,
                               units_made_by(given.get("--units-of"))))
    print(f"wrote {args.out / 'train'} and {args.out / 'val'}")


def units_made_by(checkpoint) -> dict:
    """The manifest's entries for units made by this checkpoint's speech tokenizer; {} without a checkpoint. Raises
    FileNotFoundError or ValueError if it has no speech tokenizer."""
    if checkpoint is None:
        return {}
    path = Path(checkpoint) / "speech_tokenizer" / "config.json"
    vocab = disk.typed(disk.read_json(path), "quantize_vocab_size", disk.Size, path)
    return {"unit_vocab": vocab, "speech_tokenizer": fingerprint(checkpoint)}
