"""Ex-Omni (arXiv 2602.07106): hears speech or reads text, answers with text, speech and a 3D face.

    model = ExOmni.from_pretrained("checkpoints/qwen3-8b")
    answer = model.generate([{"role": "user", "content": [{"type": "speech"}]}], waveform)
    answer.text, answer.waveform (22.05 kHz), answer.face (F, 52)

`ExOmni.forward` (losses) and `ExOmni.generate` (answers) read like the paper's architecture figure. Specification:
spec ex_omni; names of tensors and config fields are those of the official release.

The alphabet of shapes: B batch, W windows of sound, S speech frames after the projector (10 per second), N text tokens,
U speech units (12.5 per second), F face frames (30 per second), H width of the language model, D width of the speech
generator, K = 52 blendshape weights.
"""
import shutil
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import weights
from decode import GREEDY, Decoder, RepetitionAware, TextSampler, decoder_for, draw_seed
from face_decoder import CHANNELS, VELOCITY_WEIGHT, FaceConfig, FaceDecoder, face_loss, frames_for_units
from qwen3 import SIZES, Qwen3, Qwen3Config, fast_matvec_layout, project
from speech_decoder import SpeechDecoder
from speech_generator import IGNORE, GeneratorConfig, SpeechGenerator
from tokenizer import SPEECH_ID, Tokenizer
from whisper import WhisperConfig, WhisperEncoder, check_waveform, windows

SHARD_BYTES = 4 << 30
LOSSES = ("text", "units", "face")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json")


@dataclass
class ExOmniConfig:
    """Everything that fixes the shapes. `from_dir` reads it from a checkpoint, `to_dict` writes config.json."""
    llm: Qwen3Config = field(default_factory=Qwen3Config)
    speech_encoder: WhisperConfig = field(default_factory=WhisperConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    face: FaceConfig = field(default_factory=FaceConfig)
    projector_stride: int = 5      # speech_encoder_ds_rate: encoder frames laid end to end per speech frame
    projector_hidden: int = 2048   # speech_projector_hidden_size; fixed in the release
    stop_ids: tuple = (151645, 151643)     # generation_config.json: eos_token_id: <|im_end|>, <|endoftext|>
    top_p: float = 1.0             # generation_config.json: what sampling the text starts from
    greedy_units: bool = False     # generation_config.json: unit_do_sample false; else repetition-aware sampling
    dtype: str = "bfloat16"        # of the weights on disk

    @classmethod
    def from_dir(cls, directory, given: dict = {}) -> "ExOmniConfig":
        """Read config.json and generation_config.json. The release leaves the geometry of Whisper and of the
        generator's backbone to the directories named in it; ours stand in config.json; `given` are fields to take
        instead. Raises FileNotFoundError or ValueError."""
        directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is not a directory: expected a checkpoint, "
                                    "make one with `python prepare.py weights`")
        path = directory / "config.json"
        values = weights.read_json(path) | given

        def nested(ours, release):
            if ours in values:
                return values[ours]
            if release in values:
                return weights.read_json(directory / values[release] / "config.json")
            raise ValueError(f"{path} has neither {ours} nor {release}: is it an Ex-Omni checkpoint?")

        try:
            encoder = nested("speech_encoder_config", "pretrain_speech_encoder_weights")
            backbone = nested("speech_generator_config", "pretrain_speech_generator_weights")
            llm = Qwen3Config.from_dict(values, path)
            generator = GeneratorConfig(
                Qwen3Config.from_dict(backbone, f"{path}: the speech generator"), values["unit_vocab_size"],
                values.get("sg_tqgf_depth", 2), values.get("sg_tqgf_heads", 16), values.get("sg_tqgf_dim_head", 256),
                values.get("sg_ablate", ""))
            face = FaceConfig(
                state_dim=generator.llm.hidden_size, unit_vocab=values["speech_vocab_size"],
                unit_dim=values["speech_embed_dim"], dim=values["bs_decoder_dimension"], heads=values["nhead"],
                layers=values["num_bs_decoder_layers"], dropout=values["dropout_rate"], channels=values["out_dim"],
                tqgf_depth=values.get("bs_tqgf_depth") or 2, tqgf_heads=values.get("bs_tqgf_heads") or 8,
                tqgf_dim_head=values.get("bs_tqgf_dim_head") or 64, period=values.get("period", 30),
                rope_scale=values.get("rope_scale", 1.0), ablate=values.get("bs_ablate", ""))
            config = cls(
                llm, WhisperConfig(**{f.name: encoder[f.name] for f in fields(WhisperConfig)}), generator, face,
                values["speech_encoder_ds_rate"], values.get("speech_projector_hidden_size", 2048),
                dtype=values.get("torch_dtype") or values.get("dtype") or "float32")
        except KeyError as error:
            raise ValueError(f"{path} lacks the field {error}: is it an Ex-Omni checkpoint?") from None
        path = directory / "generation_config.json"
        generation = weights.read_json(path) if path.is_file() else {}
        stop = generation.get("eos_token_id", values.get("eos_token_id"))
        if stop is not None:
            config.stop_ids = tuple(stop) if isinstance(stop, list) else (stop,)
        config.top_p = generation.get("top_p") or 1.0
        config.greedy_units = not generation.get("unit_do_sample", True)
        return config

    def to_dict(self) -> dict:
        """config.json in the release's fields."""
        g, f = self.generator, self.face
        ablated = {name: part for name, part in (("sg_ablate", g.ablate), ("bs_ablate", f.ablate)) if part}
        return asdict(self.llm) | ablated | {
            "model_type": "llava_her_qwen3", "architectures": ["LlavaHerQwen3ForCausalLM"], "torch_dtype": self.dtype,
            "eos_token_id": list(self.stop_ids), "speech_encoder_type": "whisper", "speech_projector_type": "linear",
            "speech_generator_type": "ar", "speech_encoder_config": asdict(self.speech_encoder),
            "speech_encoder_ds_rate": self.projector_stride, "speech_projector_hidden_size": self.projector_hidden,
            "speech_generator_config": asdict(g.llm), "speech_gen_hidden_size": g.llm.hidden_size,
            "sg_tqgf_depth": g.tqgf_depth, "sg_tqgf_heads": g.tqgf_heads, "sg_tqgf_dim_head": g.tqgf_dim_head,
            "unit_vocab_size": g.unit_vocab, "speech_vocab_size": f.unit_vocab, "speech_embed_dim": f.unit_dim,
            "bs_decoder_dimension": f.dim, "nhead": f.heads, "num_bs_decoder_layers": f.layers,
            "dropout_rate": f.dropout, "out_dim": f.channels, "bs_tqgf_depth": f.tqgf_depth,
            "bs_tqgf_heads": f.tqgf_heads, "bs_tqgf_dim_head": f.tqgf_dim_head, "period": f.period,
            "rope_scale": f.rope_scale, "ctc_decoder_config": "(2,4096,32,11008)", "ctc_upsample_factor": 1}


# The paper uses Qwen3-8B; the published sizes of the face decoder are unknown, FaceConfig's are ours.
PRESETS = {name: ExOmniConfig(llm=size) for name, size in SIZES.items()} | {
    "tiny": ExOmniConfig(          # random weights, for the tests: seconds on a CPU
        llm=Qwen3Config(320, 64, 128, 2, 4, 2, 16, max_position_embeddings=4096),
        speech_encoder=WhisperConfig(80, 32, 2, 2, 64),
        generator=GeneratorConfig(Qwen3Config(320, 48, 96, 2, 4, 2, 16, max_position_embeddings=4096,
                                              tie_word_embeddings=True), 96, 2, 2, 16),
        face=FaceConfig(48, 96, 24, 48, 4, 2, tqgf_heads=2, tqgf_dim_head=16),
        projector_hidden=96, stop_ids=(258, 256), dtype="float32"),
    "mini": ExOmniConfig(          # trained from nothing on a CPU (pretrain.py, train.py): hears 5.12 s at once
        llm=Qwen3Config(960, 128, 384, 4, 2, 1, 64, max_position_embeddings=4096, tie_word_embeddings=True),
        speech_encoder=WhisperConfig(80, 192, 4, 4, 768, 256),
        generator=GeneratorConfig(Qwen3Config(960, 192, 576, 4, 4, 2, 48, max_position_embeddings=4096,
                                              tie_word_embeddings=True), 1024, 1, 4, 48),
        face=FaceConfig(192, 1024, 64, 128, 4, 4, dropout=0.0, tqgf_heads=4, tqgf_dim_head=32),
        projector_hidden=512, stop_ids=(958, 956), greedy_units=True, dtype="float32")}


def preset(name: str) -> ExOmniConfig:
    """A preset by name. Raises ValueError listing the names."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


class SpeechProjector(nn.Module):
    """Encoder frames (W, T, d) -> speech frames (W, T // k, H): k frames end to end, Linear, ReLU, Linear (spec 2)."""

    def __init__(self, d: int, hidden: int, width: int, stride: int = 5):
        super().__init__()
        self.stride = stride
        self.linear1, self.linear2 = nn.Linear(stride * d, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        k = self.stride
        x = rearrange(x[:, :x.shape[1] // k * k], "w (t k) d -> w t (k d)", k=k)
        return self.linear2(F.relu(self.linear1(x)))


@dataclass
class Answer:
    """One reply. Tensors are on the CPU; what the checkpoint cannot make is None."""
    text: str
    text_ids: list                 # with the id that stopped it, if one did
    text_states: torch.Tensor      # (N, H) the state that predicted each text id
    units: torch.Tensor            # (U,) speech units, 12.5 per second
    unit_states: torch.Tensor      # (U + 1, D) one per decoding step; U where the limit ended it
    face: torch.Tensor             # (F, 52) blendshape weights, 30 per second, not clipped
    waveform: torch.Tensor | None  # (samples,) at 22050 Hz
    seconds: dict                  # since generate began: first_text, text, first_unit, units, face, waveform


# Our parts -> prefixes of the official checkpoint, longest first (spec 7).
PREFIXES = {
    "face_decoder.encoder.": "model.blendshape_generator.transformer_encoder.transformer_encoder.layers.",
    "face_decoder.": "model.blendshape_generator.",
    "speech_generator.llm.": "model.speech_generator.llm.model.model.",
    "speech_generator.": "model.speech_generator.",
    "speech_projector.": "model.speech_projector.",
    "speech_encoder.": "model.speech_encoder.model.encoder.",
    "lm_head.": "lm_head.",
    "llm.": "model.",
}
# What a checkpoint may hold that this system has no use for (spec 7 and 8.2 item 16).
UNUSED = ("model.speech_encoder.model.decoder.", "model.speech_encoder.proj_out.",
          "model.speech_generator.llm.model.lm_head.", "model.blendshape_generator.rope.inv_freq",
          "model.blendshape_generator.transformer_encoder.rope.inv_freq")


def official_name(name: str) -> str:
    """Our parameter name -> the checkpoint's."""
    ours = next(p for p in PREFIXES if name.startswith(p))
    return PREFIXES[ours] + name[len(ours):]


def our_name(name: str, tied: bool) -> str | None:
    """A checkpoint's tensor name -> our parameter name, or None for what is dropped on purpose. `tied`: the output
    matrix is the embedding, a stored copy of it is dropped."""
    for part in ("speech_encoder.", "speech_projector.", "speech_generator.", "blendshape_generator."):
        for prefix in (f"model.model.{part}", part):
            if name.startswith(prefix):
                name = f"model.{part}{name[len(prefix):]}"
    if name.startswith(UNUSED) or tied and name == "lm_head.weight":
        return None
    for ours, official in PREFIXES.items():
        if name.startswith(official):
            return ours + name[len(official):]
    return name


def loss_counts(batch: dict) -> dict:
    """What each term of `ExOmni.forward` is the mean over in this batch, integer tensors: "text" supervised tokens that
    a state predicts, "units" rows with units, "face" rows with frames; "text_accuracy", "units_accuracy" targets."""
    mask, predicted = batch["mask"], batch["mask"].cumsum(1) > 1
    text = ((batch["labels"] != IGNORE) & mask & predicted & (batch["input_ids"] != SPEECH_ID)).sum()
    counts = {"text": text, "text_accuracy": text}
    if batch.get("units") is not None:
        lengths = (batch["units"] >= 0).sum(1)
        counts |= {"units": (lengths > 0).sum(), "units_accuracy": (lengths + (lengths > 0)).sum()}     # with the end
        if batch.get("face") is not None:
            counts["face"] = (batch["frames"] > 0).sum()
    return counts


def gather_rows(x, mask, fill=0) -> tuple:
    """The rows of x (B, N, ...) where mask (B, N), moved to the front and padded with `fill`; and their mask."""
    rows = [row[keep] for row, keep in zip(x, mask)]
    real = [torch.ones(len(row), dtype=torch.bool, device=x.device) for row in rows]
    return pad_sequence(rows, batch_first=True, padding_value=fill), pad_sequence(real, batch_first=True)


def write_checkpoint(directory, config: ExOmniConfig, tensors: dict, read=lambda shard: shard) -> None:
    """config.json, generation_config.json and the official tensors, in shards of at most SHARD_BYTES, each written
    under a temporary name first; shards of an earlier checkpoint are removed last. `tensors` may be on the meta
    device: read(name -> tensor of one shard) then gives the real ones when their turn comes."""
    directory = Path(directory)
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards, size = shards + [{}], 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards):
        weights.write_tensors(directory / name, read(shard))
    weights.write_json(directory / "config.json", config.to_dict())
    units = {"unit_do_sample": False} if config.greedy_units else {}
    weights.write_json(directory / "generation_config.json",
                       {"eos_token_id": list(config.stop_ids), "top_p": config.top_p} | units)
    for path in set(directory.glob("model*.safetensors")) - {directory / name for name in names}:
        path.unlink()


class ExOmni(nn.Module):
    """The whole system. Frozen or not, every part is a plain module: see `forward` for how they connect."""

    def __init__(self, config: ExOmniConfig):
        super().__init__()
        self.config, H = config, config.llm.hidden_size
        self.speech_encoder = WhisperEncoder(config.speech_encoder)
        self.speech_projector = SpeechProjector(config.speech_encoder.d_model, config.projector_hidden, H,
                                                config.projector_stride)
        self.llm = Qwen3(config.llm)
        self.lm_head = None if config.llm.tie_word_embeddings else nn.Linear(H, config.llm.vocab_size, bias=False)
        self.speech_generator = SpeechGenerator(config.generator, H)
        self.face_decoder = FaceDecoder(config.face)
        self.speech_decoder: SpeechDecoder | None = None            # GLM-4-Voice's, frozen always
        self.tokenizer: Tokenizer | None = None
        self.directory: Path | None = None                          # where it was opened

    # ---------------------------------------------------------------- the figure

    def forward(self, batch: dict, counts: dict | None = None) -> dict:
        """A padded batch -> its losses, scalars: "text", and "units" and "face" where the batch has them.

        input_ids (B, N), SPEECH_ID (-300) once per clip; mask (B, N) bool; labels (B, N), -100 = no loss;
        mel (W, n_mels, T), one window per clip in reading order, may be absent;
        units (B, U) padded with -100: a row without units has no unit loss;
        face (B, F, K) with frames (B,): a row with 0 frames has no face loss.
        counts: the terms to compute and what to divide each by, by default the batch's own `loss_counts`: a piece of a
        larger batch is given those of the whole, and the losses (and gradients) of the pieces add up to the whole's.

        The generator and the face decoder see what they will see when generating: the states that predicted the
        reply's tokens (not those at them), and the generator's states from the task vector on (spec 5.4, 8.2 item 12).
        """
        if counts is None:
            counts = {name: n.clamp(min=1) for name, n in loss_counts(batch).items() if name in LOSSES}
        speech = self.hear(batch["mel"]) if batch.get("mel") is not None else []            # (W, S, H)
        embeds, mask, labels = self.splice(batch["input_ids"], batch["mask"], batch["labels"], list(speech))
        states = self.llm(embeds=embeds, mask=mask)                                         # (B, N, H)
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE)                                 # what each state predicts
        reply, losses = labels != IGNORE, {}
        if "text" in counts:
            logits, targets = self.logits(states[reply]).float(), labels[reply]
            losses["text"] = F.cross_entropy(logits, targets, reduction="sum") / counts["text"]
            if "text_accuracy" in counts:
                losses["text_accuracy"] = (logits.argmax(-1) == targets).sum() / counts["text_accuracy"]
        if batch.get("units") is None or not counts.keys() & {"units", "face"}:
            return losses
        context, context_mask = gather_rows(states, reply)                                  # (B, N', H)
        words = reply & ~self.stops(labels.device)[labels.clamp(min=0)]
        text_ids = gather_rows(labels, words, fill=IGNORE)[0]                               # (B, L)
        units = batch["units"]
        out = self.speech_generator(context, context_mask, text_ids, units)
        if "units" in counts:
            speaks = (units >= 0).any(1)
            losses["units"] = (out.losses * speaks).sum() / counts["units"]
            if "units_accuracy" in counts:
                losses["units_accuracy"] = (out.right * speaks).sum() / counts["units_accuracy"]
        if batch.get("face") is None or "face" not in counts:
            return losses
        face, frames = batch["face"], batch["frames"]
        pred = self.face_decoder(units, out.states, out.mask, frames)                       # (B, F, K)
        weight = 0 if self.config.face.ablate == "velocity" else VELOCITY_WEIGHT
        losses["face"] = face_loss(pred, face, frames, weight) * len(face) / counts["face"]
        return losses

    def hear(self, mel):
        """Log-mel (W, n_mels, T) -> speech frames (W, S, H) in the language model's space (spec 1, 2)."""
        return self.speech_projector(self.speech_encoder(mel.to(self.speech_projector.linear1.weight.dtype)))

    def logits(self, states):
        """States (..., H) -> (..., vocab)."""
        return project(states, (self.lm_head or self.llm.embed_tokens).weight)

    @torch.no_grad()
    def generate(self, messages, speech=None, max_new_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0,
                 unit_sampler=None, generator: torch.Generator | None = None, release_quirks=False, on_text=None):
        """Answer one prompt or a batch of them.

        messages: a chat, [{"role", "content"}], or its token ids (-300 for speech); a list of either is a batch and
        gives a list. speech: what each -300 stands for, a waveform (T,) at 16 kHz of any length or a log-mel
        (W, n_mels, T); one clip, or for a batch one per prompt (None where it has none), or a list of several.
        temperature 0 takes the likeliest text; unit_sampler: decode.RepetitionAware() or GREEDY, by default what the
        checkpoint says, or else repetition-aware.
        generator: where the randomness comes from. release_quirks: the official numbers instead of the right ones
        (spec 8.2: the last text id is never spoken, reserved units are skipped after being drawn, unit 0 has no
        frames). on_text(row, piece) is told the text as it comes.

        Raises ValueError for clips that do not match the prompts, broken waveforms, or prompts beyond the context.
        """
        begun, seconds = time.perf_counter(), {}
        unit_sampler = unit_sampler or (GREEDY if self.config.greedy_units else RepetitionAware())
        single = isinstance(messages, torch.Tensor) or not messages or isinstance(messages[0], (dict, int))
        prompts, clips = self.prompts([messages] if single else messages, [speech] if single else speech)

        def mark(name):
            seconds.setdefault(name, time.perf_counter() - begun)

        embeds, mask, _ = self.splice(*prompts, None, self.hear_clips(clips))
        text = self.write_text(embeds, mask, max_new_tokens, TextSampler(temperature, top_p), generator,
                               self.on_step(on_text, lambda: mark("first_text")))
        mark("text")
        replies, context, context_mask = self.replies(text, release_quirks)
        voice = self.speech_generator.generate(context, context_mask, replies, unit_sampler, generator, release_quirks,
                                               lambda _: mark("first_unit"))
        mark("units")
        units = [voice.ids[b, :n] for b, n in enumerate(voice.count.tolist())]
        unit_states = [voice.states[b, :n] for b, n in enumerate(voice.ran.tolist())]
        faces = self.animate(units, unit_states, release_quirks)
        mark("face")
        answers = []
        for b, (face, ids) in enumerate(zip(faces, self.rows(text.ids, text.count))):
            waveform = self.speech_decoder.decode(units[b]).cpu() if self.speech_decoder is not None else None
            mark("waveform")
            own = [t.clone().cpu() for t in (text.states[b, :len(ids)], units[b], unit_states[b])]      # not the loop's
            answers.append(Answer(self.read(ids), ids, *own, face.cpu(), waveform, seconds))
        return answers[0] if single else answers

    # ---------------------------------------------------------------- hearing and reading

    def prompts(self, messages: list, speech) -> tuple:
        """Chats or ids, with what they hold of speech -> ((ids (B, N), mask (B, N)), clips: a list of log-mels or
        waveforms in reading order). Raises ValueError where the two do not match."""
        rows = []
        for row in messages:
            if len(row) and isinstance(row[0], dict):
                if self.tokenizer is None:
                    raise ValueError(f"{self.directory} has no tokenizer files: give token ids, or add tokenizer.json")
                row = self.tokenizer.encode_chat(row)
            rows.append(torch.as_tensor(row, dtype=torch.long))
            ids, size = rows[-1], self.config.llm.vocab_size
            if ids.ndim != 1 or ((ids != SPEECH_ID) & ((ids < 0) | (ids >= size))).any():
                raise ValueError(f"a prompt of shape {tuple(ids.shape)} is not a row of token ids: expected (N,) with "
                                 f"ids from 0 to {size - 1}, or {SPEECH_ID} for speech; a batch is a list of rows")
        speech = [None] * len(rows) if speech is None else speech
        speech = [[] if clip is None else clip if isinstance(clip, list) else [clip] for clip in speech]
        wanted = [int((row == SPEECH_ID).sum()) for row in rows]
        if wanted != [len(clips) for clips in speech]:
            raise ValueError(f"the prompts ask for {wanted} clips of speech, given were {[len(c) for c in speech]}: "
                             "give one clip per speech part")
        if any(len(row) == 0 for row in rows):
            raise ValueError("a prompt is empty: give at least one message or token id")
        device = self.llm.norm.weight.device
        mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
        return (pad_sequence(rows, batch_first=True).to(device), mask.to(device)), sum(speech, [])

    def hear_clips(self, clips: list) -> list:
        """Waveforms (T,) at 16 kHz or log-mels (W, n_mels, T) -> speech frames (W S, H) of each: long ones are heard in
        several windows. All windows go through the encoder together."""
        if not clips:
            return []
        mels = [windows(check_waveform(clip), self.config.speech_encoder)
                if torch.as_tensor(clip).ndim == 1 else torch.as_tensor(clip) for clip in clips]
        frames = self.hear(torch.cat(mels).to(self.llm.norm.weight.device))
        return [part.flatten(0, 1) for part in frames.split([len(mel) for mel in mels])]

    def splice(self, ids, mask, labels, clips: list) -> tuple:
        """Put the clips' speech frames where ids (B, N) has SPEECH_ID, in reading order, and pad again on the right.

        clips: tensors (S_i, H), as many as placeholders. labels (B, N) or None. Returns embeds (B, N', H), mask
        (B, N'), labels (B, N') or None; speech and padding have label -100 (spec 4). Raises ValueError for a count
        that does not match or a prompt longer than the context.
        """
        if int((ids == SPEECH_ID).sum()) != len(clips):
            raise ValueError(f"the prompts have {int((ids == SPEECH_ID).sum())} speech placeholders, "
                             f"{len(clips)} clips were given: give one clip per placeholder")
        embedded, clips = self.llm.embed_tokens(ids.clamp(min=0)), iter(clips)
        embeds, targets = [], []
        for b in range(len(ids)):
            row, target = [], []
            real = mask[b].nonzero()[:, 0]
            for piece in real.tensor_split((ids[b, real] == SPEECH_ID).nonzero()[:, 0].cpu()):
                if len(piece) and ids[b, piece[0]] == SPEECH_ID:
                    row.append(next(clips).to(embedded.dtype))
                    target.append(ids.new_full((len(row[-1]),), IGNORE))
                    piece = piece[1:]
                row.append(embedded[b, piece])
                target.append(ids.new_full((len(piece),), IGNORE) if labels is None else labels[b, piece])
            embeds.append(torch.cat(row))
            targets.append(torch.cat(target))
        limit, longest = self.config.llm.max_position_embeddings, max(map(len, embeds))
        if longest > limit:
            raise ValueError(f"a prompt has {longest} tokens with its speech, the context holds {limit}: shorten it")
        mask = pad_sequence([torch.ones(len(e), dtype=torch.bool, device=ids.device) for e in embeds], batch_first=True)
        return (pad_sequence(embeds, batch_first=True), mask,
                None if labels is None else pad_sequence(targets, batch_first=True, padding_value=IGNORE))

    # ---------------------------------------------------------------- writing

    def write_text(self, embeds, mask, max_new_tokens, sampler, generator, each) -> Decoder:
        """Prompts (B, N, H), mask (B, N) -> the finished text decoder: ids, count, states."""
        B, N = mask.shape
        limit = self.config.llm.max_position_embeddings
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        if N + max_new_tokens > limit:
            raise ValueError(f"a prompt of {N} tokens and {max_new_tokens} new ones are longer than the context of "
                             f"{limit}: shorten the prompt or lower max_new_tokens")
        decoder = decoder_for(self.llm, self.llm.embed_tokens, self.logits, sampler, self.stops(embeds.device), True, B,
                              N + max_new_tokens, max_new_tokens)
        decoder.begin(embeds, mask, torch.zeros(B), torch.full((B,), max_new_tokens), draw_seed(generator))
        decoder.run(each)
        return decoder

    def stops(self, device):
        """(vocab,) bool, True at the ids that end a reply."""
        flags = torch.zeros(self.config.llm.vocab_size, dtype=torch.bool)
        flags[[i for i in self.config.stop_ids if i < len(flags)]] = True
        return flags.to(device)

    def replies(self, text: Decoder, release_quirks=False) -> tuple:
        """What the generator is given of the finished text: ids (B, L) padded with -100, states (B, N, H), mask (B, N).

        The context is the state of every id, the query all ids but the one that stopped; the release drops the last
        one whatever it is (spec 5.5, 8.2 item 3).
        """
        longest = int(text.count.max())
        n = torch.arange(longest, device=text.ids.device)
        mask = n < text.count[:, None]
        ids = text.ids[:, :longest].masked_fill(~mask, IGNORE)
        if release_quirks:
            return ids.masked_fill(n >= text.count[:, None] - 1, IGNORE), text.states[:, :longest], mask
        return ids.masked_fill(text.stop[ids.clamp(min=0)] & mask, IGNORE), text.states[:, :longest], mask

    def animate(self, units: list, states: list, release_quirks=False) -> list:
        """Units (U_b,) and states (S_b, D) of each row -> face (F_b, K) of each. The release decodes one at a time, and
        its numbers are those of one at a time."""
        if release_quirks and len(units) > 1:
            return [self.animate([u], [s], True)[0] for u, s in zip(units, states)]
        if max(map(len, units)) == 0:
            return [s.new_zeros(0, CHANNELS) for s in states]
        padded = pad_sequence(units, batch_first=True, padding_value=IGNORE)
        mask = pad_sequence([torch.ones(len(s), dtype=torch.bool, device=s.device) for s in states], batch_first=True)
        face = self.face_decoder(padded, pad_sequence(states, batch_first=True), None if len(units) == 1 else mask,
                                 release_quirks=release_quirks)
        face = F.pad(face, (0, CHANNELS - face.shape[-1]))                          # 51 lack tongueOut
        return [face[0]] if release_quirks else [f[:frames_for_units(len(u))] for f, u in zip(face, units)]

    def read(self, ids: list) -> str:
        return "" if self.tokenizer is None else self.tokenizer.decode([i for i in ids if i not in self.config.stop_ids])

    @staticmethod
    def rows(ids, count) -> list:
        return [row[:n] for row, n in zip(ids.tolist(), count.tolist())]

    def on_step(self, on_text, first):
        """A callback for Decoder.run that tells on_text(row, piece) what is new and complete: half a character waits."""
        told = {}

        def each(decoder):
            first()
            if on_text is None:
                return
            for b, ids in enumerate(self.rows(decoder.ids, decoder.count)):
                text, known = self.read(ids), told.get(b, "")
                if decoder.alive[b]:
                    text = text.rstrip("\ufffd")
                if text.startswith(known) and text != known:
                    on_text(b, text[len(known):])
                    told[b] = text
        return each

    # ---------------------------------------------------------------- checkpoints

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype: torch.dtype | None = None) -> "ExOmni":
        """Open a checkpoint directory: ours or the official release's. dtype: by default the one it was saved in.

        The speech decoder, where there is one, runs in float32. Raises FileNotFoundError or ValueError; every
        tensor is accounted for.
        """
        directory = Path(directory)
        config = ExOmniConfig.from_dir(directory)
        dtype = dtype or getattr(torch, config.dtype)
        files = sorted(directory.glob("model*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{directory} has no model*.safetensors: fetch the weights again")
        with weights.shapes_only():
            model = cls(config).to(dtype)
        if torch.device(device).type == "cpu" and dtype == torch.bfloat16:
            fast_matvec_layout(model)
        weights.allocate(model, device).eval()
        model.summary = weights.load(model, files, lambda name: our_name(name, model.lm_head is None))
        model.directory = directory
        if any((directory / name).is_file() for name in TOKENIZER_FILES) or list(directory.glob("*.tiktoken")):
            model.tokenizer = Tokenizer.from_pretrained(directory)
        if (directory / "speech_decoder").is_dir():
            model.speech_decoder = SpeechDecoder.from_pretrained(directory / "speech_decoder", device=device)
        return model

    def save_pretrained(self, directory) -> None:
        """Write a checkpoint that `from_pretrained` opens: config, weights in shards of 4 GiB, and the tokenizer, speech
        tokenizer and speech decoder of the directory this model came from."""
        directory = Path(directory)
        tensors = {official_name(name): t for name, t in self.state_dict().items() if not name.startswith("speech_decoder.")}
        write_checkpoint(directory, self.config, tensors)
        if self.directory is not None and self.directory.resolve() != directory.resolve():
            for path in [self.directory / name for name in TOKENIZER_FILES] + list(self.directory.glob("*.tiktoken")):
                if path.is_file():
                    shutil.copy(path, directory)
            for name in ("speech_tokenizer", "speech_decoder"):
                if (self.directory / name).is_dir():
                    shutil.copytree(self.directory / name, directory / name, dirs_exist_ok=True)
