"""Follows one question through the whole model, file by file, and prints the shapes and some numbers at every step.

    python docs/walkthrough.py                     # docs/walkthrough.md explains each line; seconds on a CPU
    python docs/walkthrough.py --checkpoint DIR    # another checkpoint of the mini model's size
    python docs/walkthrough.py exercises OUT       # data and a checkpoint for the exercises of docs/walkthrough.md
    python docs/walkthrough.py measure OUT DIR ... # face metrics of checkpoints that were trained on that data

Numbers are rounded so that all CPUs print the same. `understand` and `speak` are the steps of `ExOmni.generate`, one by
one; `losses` is `ExOmni.forward`.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                                   # run as a script: the modules are one directory up

from cli import Parser, one_line_errors, writable               # before torch, which takes seconds

import torch

import disk
from checkpoint import ExOmniConfig
from data import Writer, collate
from decode import GREEDY, TextSampler
from face.arkit import ARKIT_NAMES
from face.head import make_head
from face.measure import held_out_faces
from face_decoder import FaceDecoder, face_loss, frames_for_units, stretch
from model import ExOmni
from tokenizer import with_system
from toy.answers import UNITS_OF, read_answers
from toy.plan import SIZES, plan
from whisper import load_audio, windows

QUESTION = ROOT / "mini" / "questions" / "capital.wav"
FRANCE, PARIS = 44, 57                                          # face frames of an open vowel and of closed lips


def say(file: str, text: str) -> None:
    """Print a line: the file that does this step ("" for the same as before), and its result."""
    print(f"{file:<20} {text}")


def shape(tensor) -> str:
    return str(tuple(tensor.shape))


def record_outputs(module) -> list:
    """A list to which each output of `module` is appended."""
    outputs = []
    module.register_forward_hook(lambda _, __, output: outputs.append(output))
    return outputs


@torch.no_grad()
def understand(model) -> tuple:
    """Sound in, text out: whisper.py to decode.py. Returns the reply's states (B, N, D), their mask, and the ids to be
    spoken (B, N)."""
    # ---- sound in
    sound = load_audio(QUESTION)
    mel = windows(sound, model.config.speech_encoder)
    states = model.speech_encoder(mel)
    rows = model.speech_projector(states)
    say("whisper.py", f"sound {shape(sound)}, {len(sound) / 16_000:.2f} s at 16 kHz")
    say("", f"log-mel (W, M, L) {shape(mel)}: {len(mel)} window of {mel.shape[2] / 100:.2f} s, values {mel.min():.1f} "
            f"to {mel.max():.1f}")
    say("", f"encoder states (W, L / 2, D) {shape(states)}")
    say("model.py", f"projector: speech rows (W, S, D) {shape(rows)}, one every 100 ms")

    # ---- the prompt
    chat = with_system([{"role": "user", "content": [{"type": "speech"}]}])
    ids, mask, clips = model.prompts([chat], [sound])
    embeds, _, lengths = model.splice(ids, mask, None, model.encode_clips(clips))
    say("tokenizer.py", f"prompt ids (B, N) {shape(ids)}; number {ids[0].tolist().index(-300)} is -300, the clip")
    say("model.py", f"spliced embeddings (B, N - 1 + S, D) {shape(embeds)}")

    # ---- the reply
    logits = model.logits(model.llm(embeds=embeds)[0, -1])
    likeliest = int(logits.argmax())
    say("qwen3.py", f"logits of the last position (V,) {shape(logits)}: {model.tokenizer.decode([likeliest])!r} has "
                    f"probability {logits.softmax(-1)[likeliest]:.2f}")
    text = model.write_text(embeds, lengths, 64, TextSampler())
    context, context_mask, spoken = model.reply_of(text)
    reply = text.emitted()[0][0].tolist()
    say("decode.py", f"reply, {len(reply)} ids: {' '.join(repr(model.tokenizer.decode([i], False)) for i in reply)}")
    say("model.py", f"states that predicted them (B, N, D) {shape(context)}; to be spoken (B, N) {shape(spoken)}")
    return context, context_mask, spoken


@torch.no_grad()
def speak(model, context, context_mask, spoken) -> tuple:
    """The reply's states in; units, face and sound out. Returns units (U,) and face (T, K)."""
    # ---- speech units
    generator = model.speech_generator
    gates = record_outputs(generator.tqgf.layers[0][0].gate_proj)
    out = generator.generate(context, context_mask, spoken, GREEDY)
    units, states = out.emitted()[0][0], out.emitted()[1][0]
    gate = gates[0].sigmoid()
    if frames_for_units(len(units)) <= PARIS:
        raise ValueError(f"the answer lasts {frames_for_units(len(units))} frames, not above {PARIS}: expected a "
                         "checkpoint after stage IV")
    say("speech_generator.py", f"TQGF: {spoken.shape[1]} tokens ask {4 * context.shape[1]} context vectors, 4 of each "
                               "state")
    say("", f"its gates (B, N, H d) {shape(gate)}: mean {gate.mean():.2f}, from {gate.min():.1f} to {gate.max():.1f}")
    say("", f"units (U,) {shape(units)}, {len(units) / 12.5:.2f} s: {' '.join(map(str, units[:8].tolist()))} ...")
    say("", f"states that predicted them and the end (U + 1, D) {shape(states)}")

    # ---- the face
    decoder, frames = model.face_decoder, frames_for_units(len(units))
    gates = record_outputs(decoder.tqgf.layers[0][0].gate_proj)
    embedded = record_outputs(decoder.speech_token_projection)
    face, = model.animate([units], [states])
    query = stretch(embedded[0], torch.tensor([len(units)]), torch.tensor([frames]))
    gate = gates[0].sigmoid()
    rotated = decoder.rope(torch.ones(1, 26, decoder.config.dim))[0]
    say("face_decoder.py", f"{len(units)} units last {frames} frames, {frames / 30:.2f} s")
    say("", f"queries (B, T, D) {shape(query)} ask {len(states)} states")
    say("", f"its gates (B, T, H d) {shape(gate)}: mean {gate.mean():.2f}, from {gate.min():.1f} to {gate.max():.1f}")
    say("", f"RoPE turns frame 25 like frame 0: {torch.equal(rotated[25], rotated[0])}; like frame 24: "
            f"{torch.equal(rotated[25], rotated[24])}")
    gap = face[:, ARKIT_NAMES.index("jawOpen")] - face[:, ARKIT_NAMES.index("mouthClose")]
    say("", f"face (T, K) {shape(face)}; lip gap, jawOpen - mouthClose: {abs(gap[FRANCE]):.1f} at the a of France "
            f"(frame {FRANCE}), {abs(gap[PARIS]):.1f} at the P of Paris (frame {PARIS})")

    # ---- sound out
    mel = model.speech_decoder.mel(units)
    waveform = model.speech_decoder.waveform(mel)
    say("flow.py", f"log-mel (M, L) {shape(mel)}, {mel.shape[1] / len(units):.2f} frames a unit, steps from noise: "
                   f"{model.speech_decoder.config.sampling.steps}")
    say("hift.py", f"sound {shape(waveform)}, {len(waveform) / 22_050:.2f} s at 22.05 kHz, RMS "
                   f"{waveform.square().mean().sqrt():.2f}")
    return units, face


@torch.no_grad()
def losses(model, units, face) -> None:
    """The same question as a training sample: its losses, and the generated answer compared with the reference."""
    _, answers = read_answers(ROOT / "mini" / "data")
    text = "The capital of France is Paris."
    reference = answers[text]
    sample = {"id": "q", "messages": [{"role": "user", "content": [{"type": "speech"}]}], "answer": text,
              "audio": load_audio(QUESTION).numpy(), "units": reference["units"].astype("int64"),
              "face": reference["face"]}
    batch = collate([sample], model, ("text", "units", "face"))
    for n, (name, tensor) in enumerate(batch.items()):
        say("" if n else "data.py", f"batch: {name} {shape(tensor)}")
    found = {name: float(value) for name, value in model(batch).items()}
    say("model.py", f"text loss {found['text']:.2f}, units loss {found['units']:.2f}, face loss {found['face']:.4f}")
    same = len(units) == len(reference["units"]) and int((units == torch.from_numpy(sample["units"])).sum())
    say("", f"generated units equal to the reference's: {same} of {len(units)}")
    still = torch.from_numpy(sample["face"])
    still = face_loss(still.mean(0, keepdim=True).expand(1, *still.shape), still[None], torch.tensor([len(still)]))
    say("", f"face loss of a face held still at its mean: {float(still):.4f}")


def exercises(out: Path) -> None:
    """Write out/data/{train,val,voice}, the answers of the mini model's voice as `face` samples, and out/start, the
    mini checkpoint with a newly initialised face decoder. Then `train.py --stage 3` takes minutes."""
    about, answers = read_answers(ROOT / "mini" / "data")
    clips = plan(about["seed"], SIZES[about["size"]])["voice"]       # mini/data may lack some of these texts
    held_out = [clip["text"] for clip in clips if clip["held"] and clip["text"] in answers]
    trained = [text for text in answers if text not in held_out]
    for split, texts in {"val": held_out, "train": trained, "voice": held_out}.items():     # voice: times of the phones
        with Writer(out / "data" / split) as writer:
            for text in texts:
                row = {"id": text, "task": "face", "answer": text, "phones": answers[text]["phones"],
                       "messages": [{"role": "user", "content": f"Read aloud: {text}"}]}
                if text not in writer:
                    writer.add(row, units=answers[text]["units"], face=answers[text]["face"])
            writer.finish(**{key: about[key] for key in UNITS_OF})
        print(f"wrote {out / 'data' / split}: {len(texts)} samples")
    model = ExOmni.from_pretrained(ROOT / "mini")
    torch.manual_seed(0)
    model.face_decoder = FaceDecoder(model.config.face)
    model.save_pretrained(out / "start")
    stages = disk.read_json(ROOT / "mini" / "stages.json")
    disk.write_json(out / "start" / "stages.json", {stage: stages[stage] for stage in ("1", "2")})
    print(f"wrote {out / 'start'}: the mini model, its face decoder as before stage III")


def measure(out: Path, checkpoints: list) -> None:
    """Print face metrics of the checkpoints on the answers of out/data/val, given their units and states."""
    figures = ("LVE, % (lve_l2)", "lips close in /p b m/", "jaw correlation", "velocity error, lips", "jitter")
    print(" | ".join(("checkpoint", *figures)))
    for directory in checkpoints:
        found = held_out_faces(ExOmni.from_pretrained(directory), out / "data", make_head())
        print(" | ".join((str(directory), *(f"{found['ours'][name]:.3f}" for name in figures))))


def main(argv=None) -> None:
    p = Parser(description=__doc__.splitlines()[0])
    p.add_argument("what", nargs="*", metavar="exercises OUT | measure OUT DIR ...", help="for the exercises")
    p.add_argument("--checkpoint", default=ROOT / "mini", help="directory of one like mini/ (default: mini)")
    args = p.parse_args(argv)
    with one_line_errors(debug=args.debug):
        if args.what[:1] == ["exercises"] and len(args.what) == 2:
            exercises(writable(args.what[1], "exercises"))
        elif args.what[:1] == ["measure"] and len(args.what) > 2:
            measure(Path(args.what[1]), args.what[2:])
        elif args.what:
            p.error("expected nothing, or: exercises OUT, or: measure OUT DIR ...")
        else:
            model = ExOmni.from_pretrained(args.checkpoint)
            mini, parts = ExOmniConfig.from_dir(ROOT / "mini"), ("llm", "speech_encoder", "generator")
            if model.speech_decoder is None or any(getattr(model.config, p) != getattr(mini, p) for p in parts):
                raise ValueError(f"{args.checkpoint} is not of the mini model's size, or without sound")
            losses(model, *speak(model, *understand(model)))


if __name__ == "__main__":
    main()
