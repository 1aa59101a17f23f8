"""Ask a checkpoint: speech or text in; text, speech and a face out.

    python sample.py --checkpoint checkpoints/qwen3-8b --audio q.wav --out answer/
    python sample.py --checkpoint checkpoints/qwen3-8b --text "Why is the sky blue?"
    python sample.py --checkpoint checkpoints/qwen3-8b --interactive

Writes answer.txt, answer.wav (22.05 kHz) and answer.json (52 ARKit weights, 30 frames per second); several questions
are answered as a batch, each in a folder of its own.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import soundfile
import torch

import weights
from decode import RepetitionAware
from arkit import audio2face
from face_decoder import FPS, UNIT_RATE
from flow import SAMPLE_RATE
from model import Answer, ExOmni
from tokenizer import SYSTEM_PROMPT, past_turn, trim_history
from whisper import load_audio


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="directory, ours or the official release's")
    p.add_argument("--audio", nargs="+", action="extend", default=[], help="questions; several make a batch")
    p.add_argument("--text", help="a question, or what is said to go with each --audio")
    p.add_argument("--out", default="answer", help="directory to write to")
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


def write_answer(directory: Path, answer: Answer) -> list:
    """answer.txt, answer.wav and answer.json in `directory`, each under a temporary name first; their paths."""
    paths = [directory / f"answer.{ending}" for ending in ("txt", "wav", "json")]
    with weights.replacing(paths[0]) as temporary:
        temporary.write_text(answer.text + "\n", encoding="utf-8")
    if answer.waveform is None:
        paths[1].unlink(missing_ok=True)        # an earlier answer's sound would not belong to this face
    else:
        with weights.replacing(paths[1]) as temporary:
            soundfile.write(temporary, answer.waveform.float().numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    with weights.replacing(paths[2]) as temporary:
        temporary.write_text(json.dumps(audio2face(answer.face.float().numpy(), FPS, "answer.wav")), encoding="utf-8")
    return [path for path in paths if path.exists()]


def report(answers: list, elapsed: float) -> str:
    """The last line: length of the speech, real-time factor (below 1 is faster than speech), time to the first speech
    unit (TTFT) and to the finished face, all from the moment the question was read."""
    duration = sum(len(answer.units) for answer in answers) / UNIT_RATE
    seconds = answers[0].seconds
    rtf = f"{elapsed / duration:.2f}" if duration else "n/a"
    return (f"{duration:.2f} s of speech in {elapsed:.2f} s (RTF {rtf}), text {seconds['text']:.2f} s, "
            f"speech TTFT {seconds['first_unit']:.2f} s, face latency {seconds['face']:.2f} s")


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
                    top_p=model.config.top_p if args.top_p is None else args.top_p, unit_sampler=RepetitionAware(),
                    generator=torch.Generator().manual_seed(args.seed), release_quirks=args.release_quirks)
    return model, sampling


def ask(model, sampling, chats, clips, folders) -> list:
    """Answer a batch, print the texts (a single one as it comes), write the files, print the last line."""
    begun = time.perf_counter()
    single = len(chats) == 1
    answers = model.generate(chats, clips, **sampling,
                             on_text=lambda _, piece: print(piece, end="", flush=True) if single else None)
    elapsed = time.perf_counter() - begun
    print() if single else [print(f"{folder}: {answer.text}") for folder, answer in zip(folders, answers)]
    for folder, answer in zip(folders, answers):
        print("wrote " + " ".join(map(str, write_answer(folder, answer))))
    print(report(answers, elapsed))
    return answers


def run(args) -> None:
    if not (args.audio or args.text or args.interactive):
        raise ValueError("nothing to answer: give --audio FILE, --text TEXT or --interactive")
    clips, out = [load_audio(path) for path in args.audio], Path(args.out)
    model, sampling = load(args)
    system = {"role": "system", "content": SYSTEM_PROMPT}
    if args.interactive:
        return converse(model, sampling, [system], out)
    chats = [[system, user_message(args.text, bool(args.audio))] for _ in range(max(1, len(clips)))]
    folders = [out] if len(chats) == 1 else [out / f"{i + 1}-{Path(path).stem}" for i, path in enumerate(args.audio)]
    ask(model, sampling, chats, clips or None, folders)


def converse(model, sampling, history: list, out: Path) -> None:
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
            answer, = ask(model, sampling, [history + [message]], None if clip is None else [clip], [out / str(turn)])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        history = trim_history(history + [past_turn(message), {"role": "assistant", "content": answer.text}])


def main(argv=None) -> None:
    args = parse(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
