"""Ask a checkpoint: speech or text in; text, speech and a face out.

    python sample.py --audio q.wav --out answer/            # with mini/, the small model that comes with the code
    python sample.py --text "What is the capital of Peru?"
    python sample.py --checkpoint checkpoints/qwen3-8b --interactive

Writes answer.html (a page with the talking head), answer.txt, answer.wav (22.05 kHz) and answer.json (52 ARKit weights,
30 frames per second); --export glb,csv,mp4,npy adds formats of other tools. Several questions are answered as a batch,
each in a folder of its own, with one gallery.html for all.
"""
import argparse
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import cli                                                      # before torch, which takes seconds

import torch

import disk
from audio import load_audio
from decode import TextSampler
from face import EXPORTS, formats, load_template, make_head
from face.export import check_folder, unfit, write_answers
from face_decoder import UNIT_RATE
from flow import OUTPUT_RATE
from model import ExOmni
from speech_generator import LONGEST, MIN_UNITS
from tokenizer import past_turn, trim_history, with_system

LINE = 200_000                                     # most characters of a typed question; no context holds more
MINI = Path(__file__).parent / "mini"              # the trained toy model that comes with the code


def parse(argv=None) -> argparse.Namespace:
    p = cli.Parser(description=__doc__)
    p.add_argument("--checkpoint", default=MINI, help="directory, ours or the official release's")
    p.add_argument("--audio", nargs="+", action="extend", default=[], help="questions; several make a batch")
    p.add_argument("--text", help="a question, or what is said to go with each --audio")
    p.add_argument("--out", default="answer", help="directory to write to")
    p.add_argument("--export", default="", metavar="glb,csv,...", help=f"also write some of {', '.join(EXPORTS)}")
    p.add_argument("--template", help="another head: .glb with ARKit morph targets, .npz in the EmoTalk layout")
    p.add_argument("--interactive", action="store_true", help="keep asking: type text, or the path of a recording; "
                   "--text or --audio is the first turn")
    p.add_argument("--max-new-tokens", type=cli.whole(1, LONGEST // MIN_UNITS), default=128,
                   help="text tokens at most")
    p.add_argument("--temperature", type=cli.number(0, 100), default=0.2, help="of the text; 0 takes the likeliest")
    p.add_argument("--top-p", type=cli.number(1e-6, 1), help="of the text (default: the checkpoint's "
                   "generation_config.json)")
    p.add_argument("--seed", type=cli.seed, default=0, help="of the text and the speech units")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:NUMBER, mps")
    p.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
                   help="of the weights; auto: as saved")
    p.add_argument("--release-quirks", action="store_true", help="the official release's numbers, bugs included")
    return p.parse_args(argv)


def user_message(text: str | None, spoken: bool) -> dict:
    """One user turn."""
    parts = [{"type": "speech"}] * spoken + ([{"type": "text", "text": text}] if text else [])
    return {"role": "user", "content": parts}


def report(answers: list, elapsed: float, page: Path | None) -> str:
    """The last line, with the figures of the paper's v1 Table 10: confidence (probability of the text), length of the
    speech, real-time factor (RTF, below 1 is faster than real time), time to the first speech unit (TTFT), time of the
    face decoder; and the page to open."""
    duration = sum(len(answer.units) for answer in answers) / UNIT_RATE
    seconds = answers[0].seconds
    rtf = f"{elapsed / duration:.2f}" if duration else "n/a"
    confidence = f"confidence {answers[0].confidence:.2f}; " if len(answers) == 1 else ""
    return (f"{confidence}{duration:.2f} s of speech in {elapsed:.2f} s (RTF {rtf}), text {seconds['text']:.2f} s, "
            f"speech TTFT {seconds['first_unit']:.2f} s, face latency {seconds['face'] - seconds['units']:.3f} s"
            + (f"; watch {page}" if page else ""))


def load(args) -> tuple:
    """The model and the sampling arguments for `generate`."""
    device = cli.pick_device(args.device)
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    model = ExOmni.from_pretrained(args.checkpoint, device=device, dtype=dtype)
    print(f"{args.checkpoint}: {model.summary}; {device} ({'asked for' if args.device != 'auto' else 'found'}), "
          f"{str(model.llm.norm.weight.dtype)[6:]} ({'asked for' if dtype else 'as saved'})")
    if model.speech_decoder is None:
        print(f"{args.checkpoint} has no speech_decoder/: text, units and face, but no sound")
    sampling = dict(max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                    top_p=model.config.top_p if args.top_p is None else args.top_p,
                    generator=torch.Generator().manual_seed(args.seed), release_quirks=args.release_quirks)
    return model, sampling


def ask(model, sampling, chats, clips, out, names, writing) -> list:
    """Answer a batch of chats, write the files, and print the texts (a single one as it is generated), the files' names
    and the `report`. names: folders in `out`; writing: the head and the endings for `write_answers`."""
    start, single = time.perf_counter(), len(chats) == 1

    def show(_, piece):
        with suppress(OSError):                                     # a closed console must not cost the answer
            print(piece, end="", flush=True)

    answers = model.generate(chats, clips, **sampling, on_text=show if single else None)
    elapsed = time.perf_counter() - start
    written, page = write_answers(out, dict(zip(names, answers)), OUTPUT_RATE, **writing)
    if single:
        page = next((path for path in written[0] if path.suffix == ".html"), None)
        print()
    for name, answer in zip(names, answers) if not single else ():
        print(f"{out / name}: {answer.text}")
    for name, answer in zip(names, answers):
        if answer.text_ids[-1] not in model.config.stop_ids:
            print(f"{out / name}: the answer was cut after {len(answer.text_ids)} tokens: --max-new-tokens takes more")
        if len(answer.unit_states) == len(answer.units) > 0:
            print(f"{out / name}: the speech was cut after {len(answer.units) / UNIT_RATE:.1f} s: the speech generator "
                  "did not end it by itself")
    for paths in written:
        print("wrote " + " ".join(map(str, paths)))
    print(report(answers, elapsed, page))
    return answers


def run(args) -> None:
    """Check all arguments and inputs before the model is loaded, then answer."""
    args.text = args.text and args.text.strip() and legible(args.text, "--text")        # only spaces: no question
    if not (args.audio or args.text or args.interactive):
        raise ValueError("nothing to answer: give --audio FILE, --text TEXT or --interactive")
    if args.interactive and len(args.audio) > 1:
        raise ValueError("--interactive answers one question after the other: give one --audio, or none")
    cli.pick_device(args.device)
    TextSampler(args.temperature, args.top_p or 1.0)
    endings, out = dict.fromkeys(["html", *formats(args.export)]), Path(args.out)
    clips, given = [load_audio(path) for path in args.audio], [*args.audio, *[args.template] * bool(args.template)]
    head = load_template(args.template) if args.template else make_head()
    left_out = unfit(head, endings)
    several = [f"{i + 1}-{Path(path).stem[:60]}" for i, path in enumerate(args.audio)] if len(args.audio) > 1 else []
    names = ["1"] if args.interactive else several or ["."]
    for name in names:
        check_folder(out / name, given)
    for ending, why in left_out.items():
        print(f"no .{ending}: {why}", file=sys.stderr)
    writing = {"head": head, "endings": [ending for ending in endings if ending not in left_out]}
    with disk.locked(out):
        model, sampling = load(args)
        if args.interactive:
            first = (args.text, clips[0] if clips else None) if args.text or clips else None
            return converse(model, sampling, with_system([]), out, writing, first)
        chats = [with_system([user_message(args.text, bool(args.audio))]) for _ in names]
        ask(model, sampling, chats, clips or None, out, names, writing)


def typed(line: str, folder: Path) -> tuple:
    """A typed line -> (text, waveform) of the question, one of them None. Raises ValueError or OSError for an empty
    line, for the path of a file that cannot be read, or of one that the answer would overwrite."""
    line = re.sub(r"[\0-\x1f\x7f-\x9f]+", " ", line).strip()       # control characters, as of arrow keys
    if not line:
        raise ValueError("nothing was asked: type a question or the path of a recording; an empty line ends it")
    path = cli.typed_path(line)
    if path is not None:
        check_folder(folder, [path] if os.path.exists(path) else [])
        return None, load_audio(path)
    if len(line) > LINE:
        raise ValueError(f"that line has {len(line)} letters, expected a question of at most {LINE}")
    return legible(line, "that line"), None


def legible(text: str, what: str) -> str:
    """Returns the text. Raises ValueError if it had bytes that are not UTF-8."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{what} is not UTF-8: set the terminal to it, or ask in plain letters")
    return text


def converse(model, sampling, history: list, out: Path, writing, first=None) -> None:
    """A conversation, until an empty line or the end of input. Past turns stay in the prompt as text, as many as the
    model was trained with. first: (text, waveform) of the first turn, if given on the command line."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    for turn in range(1, sys.maxsize):
        try:
            line = "" if first else input("> ")
        except (EOFError, RuntimeError):                            # RuntimeError: stdin was closed
            return
        if not (line or first):
            return
        try:
            text, clip = first or typed(line, out / str(turn))
            first, message = None, user_message(text, clip is not None)
            answer, = ask(model, sampling, [history + [message]], None if clip is None else [clip], out, [str(turn)],
                          writing)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            first = None
            print(cli.line_of(error), file=sys.stderr)
            continue
        history = trim_history(history + [past_turn(message), {"role": "assistant", "content": answer.text}],
                               2 * model.config.past_turns)


def main(argv=None) -> None:
    args = parse(argv)
    with cli.one_line_errors(debug=args.debug):
        run(args)


if __name__ == "__main__":
    main()
