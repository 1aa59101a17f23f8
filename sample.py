"""Ask a checkpoint: speech or text in; text, speech and a face out.

    python sample.py --audio q.wav --out answer/            # mini/, the small model that comes with the code
    python sample.py --text "What is the capital of Peru?"
    python sample.py --checkpoint checkpoints/qwen3-8b --interactive

Writes answer.html, the face that says it, to watch in any browser; answer.txt, answer.wav (22.05 kHz) and answer.json
(52 ARKit weights, 30 frames per second); with --export glb,csv,mp4,npy the same for other tools. Several questions are
answered as a batch, each in a folder of its own, with one gallery.html for all.
"""
import argparse
import sys
import time
from pathlib import Path

import torch

from cli import one_line_errors
from face import EXPORTS, formats, gallery, load_template, make_head, write_answer
from face_decoder import UNIT_RATE
from flow import OUTPUT_RATE
from model import ExOmni
from tokenizer import past_turn, trim_history, with_system
from whisper import load_audio

MINI = Path(__file__).parent / "mini"              # the trained toy model that comes with the code


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--checkpoint", default=MINI, help="directory, ours or the official release's")
    p.add_argument("--audio", nargs="+", action="extend", default=[], help="questions; several make a batch")
    p.add_argument("--text", help="a question, or what is said to go with each --audio")
    p.add_argument("--out", default="answer", help="directory to write to")
    p.add_argument("--export", default="", metavar="glb,csv,...", help=f"also write some of {', '.join(EXPORTS)}")
    p.add_argument("--template", help="another head: .glb with ARKit morph targets, .npz in the EmoTalk layout")
    p.add_argument("--interactive", action="store_true", help="keep asking: type text, or the path of a recording")
    p.add_argument("--max-new-tokens", type=int, default=128, help="text tokens at most")
    p.add_argument("--temperature", type=float, default=0.2, help="of the text; 0 takes the likeliest")
    p.add_argument("--top-p", type=float, help="of the text (default: the checkpoint's generation_config.json)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    p.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    p.add_argument("--release-quirks", action="store_true", help="the official release's numbers, bugs included")
    return p.parse_args(argv)


def user_message(text: str | None, spoken: bool) -> dict:
    """One user turn; the text is data, whatever it contains."""
    parts = [{"type": "speech"}] * spoken + ([{"type": "text", "text": text}] if text else [])
    return {"role": "user", "content": parts}


def report(answers: list, elapsed: float, page: Path | None) -> str:
    """The last line, in the paper's terms (v1 Table 10): length of the speech, real-time factor (below 1 is faster than
    speech), time from the question to the first speech unit (TTFT), extra time for the face once the units are there; and
    the page to watch."""
    duration = sum(len(answer.units) for answer in answers) / UNIT_RATE
    seconds = answers[0].seconds
    rtf = f"{elapsed / duration:.2f}" if duration else "n/a"
    return (f"{duration:.2f} s of speech in {elapsed:.2f} s (RTF {rtf}), text {seconds['text']:.2f} s, "
            f"speech TTFT {seconds['first_unit']:.2f} s, face latency {seconds['face'] - seconds['units']:.3f} s"
            + (f"; watch {page}" if page else ""))


def load(args) -> tuple:
    """The model and the sampling arguments for `generate`."""
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
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
    """Answer a batch, print the texts (a single one as it comes), write the files, print the last line.

    writing: the head and the formats for `write_answer`."""
    begun = time.perf_counter()
    single = len(chats) == 1
    answers = model.generate(chats, clips, **sampling,
                             on_text=lambda _, piece: print(piece, end="", flush=True) if single else None)
    elapsed = time.perf_counter() - begun
    print() if single else [print(f"{folder}: {answer.text}") for folder, answer in zip(folders, answers)]
    for folder, answer in zip(folders, answers):
        print("wrote " + " ".join(map(str, write_answer(folder, answer, OUTPUT_RATE, **writing))))
    page = None
    if any(len(answer.face) for answer in answers):
        page = folders[0] / "answer.html" if single else gallery(folders[0].parent, writing["head"])
    print(report(answers, elapsed, page))
    return answers


def run(args) -> None:
    if not (args.audio or args.text or args.interactive):
        raise ValueError("nothing to answer: give --audio FILE, --text TEXT or --interactive")
    more = formats(args.export)                                     # what is wrong is said now, not after the answer
    clips, out = [load_audio(path) for path in args.audio], Path(args.out)
    head = load_template(args.template) if args.template else make_head()
    writing = {"head": head, "more": more}
    model, sampling = load(args)
    if args.interactive:
        return converse(model, sampling, with_system([]), out, writing)
    chats = [with_system([user_message(args.text, bool(args.audio))]) for _ in range(max(1, len(clips)))]
    folders = [out] if len(chats) == 1 else [out / f"{i + 1}-{Path(path).stem}" for i, path in enumerate(args.audio)]
    ask(model, sampling, chats, clips or None, folders, writing)


def converse(model, sampling, history: list, out: Path, writing) -> None:
    """Ask again and again; what was said stays in the prompt as text. An empty line or the end of input ends it."""
    for turn in range(1, sys.maxsize):
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        try:
            clip = load_audio(line) if Path(line).is_file() else None
            message = user_message(None if clip is not None else line, clip is not None)
            answer, = ask(model, sampling, [history + [message]], None if clip is None else [clip], [out / str(turn)],
                          writing)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        history = trim_history(history + [past_turn(message), {"role": "assistant", "content": answer.text}])


def main(argv=None) -> None:
    args = parse(argv)
    with one_line_errors():
        run(args)


if __name__ == "__main__":
    main()
