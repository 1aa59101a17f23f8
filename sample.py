"""Ask a checkpoint: speech or text in; text, speech and a face out.

    python sample.py --audio q.wav --out answer/            # mini/, the small model that comes with the code
    python sample.py --text "What is the capital of Peru?"
    python sample.py --checkpoint checkpoints/qwen3-8b --interactive

Writes answer.html, the face that says it, to watch in any browser; answer.txt, answer.wav (22.05 kHz) and answer.json
(52 ARKit weights, 30 frames per second); with --export glb,csv,mp4,npy the same for other tools. Several questions are
answered as a batch, each in a folder of its own, with one gallery.html for all.
"""
import argparse
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import cli                                                      # before torch, which takes seconds

import torch

from audio import load_audio
from decode import TextSampler
from face import EXPORTS, formats, gallery, load_template, make_head
from face.export import check_folder, unfit, write_answer
from face_decoder import UNIT_RATE
from flow import OUTPUT_RATE
from model import ExOmni
from speech_generator import LONGEST, MIN_UNITS
from tokenizer import past_turn, trim_history, with_system

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
    """One user turn; the text is data, whatever it contains."""
    parts = [{"type": "speech"}] * spoken + ([{"type": "text", "text": text}] if text else [])
    return {"role": "user", "content": parts}


def report(answers: list, elapsed: float, page: Path | None) -> str:
    """The last line, in the paper's terms (v1 Table 10): length of the speech, real-time factor (below 1 is faster than
    speech), time from the question to the first speech unit (TTFT), extra time for the face once the units are there;
    before it how likely the text was to the model, after it the page to watch."""
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


def ask(model, sampling, chats, clips, folders, writing) -> list:
    """Answer a batch, write the files, print what was said (a single text as it comes) and written, and the last line.

    writing: the head and the endings for `write_answer`."""
    begun = time.perf_counter()
    single = len(chats) == 1

    def show(_, piece):
        with suppress(OSError):                                     # a console that is gone must not cost the answer
            print(piece, end="", flush=True)
    answers = model.generate(chats, clips, **sampling, on_text=show if single else None)
    elapsed = time.perf_counter() - begun
    written = [write_answer(folder, answer, OUTPUT_RATE, **writing) for folder, answer in zip(folders, answers)]
    page, shown = None, "html" in writing["endings"] and any(len(answer.face) for answer in answers)
    if shown and single:
        page = folders[0] / "answer.html"
    elif shown:
        try:
            page = gallery(folders[0].parent, writing["head"], folders)
        except ValueError as error:                                 # such as more than a page can hold
            print(f"no gallery.html: {error}", file=sys.stderr)
    print() if single else [print(f"{folder}: {answer.text}") for folder, answer in zip(folders, answers)]
    for paths in written:
        print("wrote " + " ".join(map(str, paths)))
    print(report(answers, elapsed, page))
    return answers


def run(args) -> None:
    """What is wrong is said before the model is opened, not after the answer."""
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
    names = [f"{i + 1}-{Path(path).stem[:60]}" for i, path in enumerate(args.audio)]
    folders = [out / "1"] if args.interactive else [out / name for name in names] if len(names) > 1 else [out]
    for folder in folders:
        check_folder(folder, given)
    for ending, why in left_out.items():
        print(f"no .{ending}: {why}", file=sys.stderr)
    writing = {"head": head, "endings": [ending for ending in endings if ending not in left_out]}
    model, sampling = load(args)
    if args.interactive:
        first = (args.text, clips[0] if clips else None) if args.text or clips else None
        return converse(model, sampling, with_system([]), out, writing, first)
    chats = [with_system([user_message(args.text, bool(args.audio))]) for _ in folders]
    ask(model, sampling, chats, clips or None, folders, writing)


def typed(line: str, folder: Path) -> tuple:
    """A line that was typed -> text and sound of the question, one of them None. Raises ValueError or OSError for what
    looks like the path of a recording and is none, or one that the answer would replace."""
    path = cli.typed_path(line)
    if path is None:
        return line, None
    check_folder(folder, [path] if os.path.exists(path) else [])
    return None, load_audio(path)


def converse(model, sampling, history: list, out: Path, writing, first=None) -> None:
    """Ask again and again; what was said stays in the prompt as text. An empty line or the end of input ends it. first:
    text and sound of the first turn, where they are known."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    for turn in range(1, sys.maxsize):
        folder = out / str(turn)
        try:
            line = "" if first else input("> ").strip()
        except (EOFError, RuntimeError):                            # the latter where stdin was closed
            return
        if not (line or first):
            return
        try:
            text, clip = first or typed(line, folder)
            first, message = None, user_message(text, clip is not None)
            answer, = ask(model, sampling, [history + [message]], None if clip is None else [clip], [folder], writing)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            first = None
            print(cli.line_of(error), file=sys.stderr)
            continue
        history = trim_history(history + [past_turn(message), {"role": "assistant", "content": answer.text}])


def main(argv=None) -> None:
    args = parse(argv)
    with cli.one_line_errors(debug=args.debug):
        run(args)


if __name__ == "__main__":
    main()
