"""Checkpoints: the configuration with its presets, the names of the tensors, and the files.

A checkpoint is one directory in the layout of the official release (docs/spec/ex_omni.md 7): config.json,
generation_config.json, model*.safetensors, tokenizer files, speech_tokenizer/ and speech_decoder/.
`ExOmni.from_pretrained` opens ours, the mini model and the release alike. Loading is strict: every tensor must match
(weights.py), and the parts must fit each other.
"""
import os
import shutil
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import disk
import weights
from disk import Layers, Positive, Scale, Share, Size
from face_decoder import FaceConfig
from qwen3 import SIZES, Qwen3Config
from speech_decoder import SpeechDecoderConfig
from speech_generator import GeneratorConfig
from speech_tokenizer import SpeechTokenizerConfig
from tokenizer import Tokenizer
from whisper import WhisperConfig

SHARD_BYTES = 4 << 30          # largest size of a model-*.safetensors file
PAST_TURNS = 20                # turns of a conversation kept in the prompt, unless generation_config.json says fewer
MODEL_TYPE = "llava_her_qwen3" # model_type in config.json, the release's
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json")

# Ablation -> the part that it changes (docs/spec/paper.md, "The ablations, exactly"). v1 Table 6 removes from the face
# decoder the velocity loss; the generator's states as context (uses the LLM's); any context; TQGF (concatenates). v2
# Table 6 removes its units as queries. v1 Table 8 removes TQGF from the speech generator, in the same way.
ABLATIONS = {"velocity": "face", "speech-context": "face", "context": "face", "tqgf": "face", "units": "face",
             "generator-tqgf": "generator"}

DTYPES = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16", "half": "float16",
          "float32": "float32", "fp32": "float32", "float": "float32"}      # in a config.json -> torch's name


# Sampling options of generation_config.json that this code does not have -> the values with which they do nothing.
SAMPLING = {"top_k": (0,), "min_p": (0,), "typical_p": (1,), "repetition_penalty": (1,), "no_repeat_ngram_size": (0,),
            "num_beams": (1,)}


@dataclass
class ReleaseConfig:
    """Fields of the release's config.json other than the LLM's and the nested configs."""
    # The release builds the same module for "ar" and "ctc".
    FIXED = {"speech_encoder_type": ("whisper",), "speech_projector_type": ("linear",),
             "speech_generator_type": ("ar", "ctc")}
    unit_vocab_size: Size
    speech_vocab_size: Size
    speech_embed_dim: Size
    bs_decoder_dimension: Size
    nhead: Size
    num_bs_decoder_layers: Layers
    dropout_rate: Annotated[float, 0, 0.9]
    out_dim: Size
    speech_encoder_ds_rate: Size
    speech_projector_hidden_size: Size = 2048
    sg_tqgf_depth: Layers = 2
    sg_tqgf_heads: Size = 16
    sg_tqgf_dim_head: Size = 256
    sg_ablate: Literal["", "tqgf"] = ""
    bs_tqgf_depth: Layers | None = None
    bs_tqgf_heads: Size | None = None
    bs_tqgf_dim_head: Size | None = None
    bs_ablate: Literal[("", *(name for name, part in ABLATIONS.items() if part == "face"))] = ""
    period: Size = 30
    rope_scale: Positive = 1.0
    velocity_weight: Scale = 0.5

    def __post_init__(self):
        if self.bs_decoder_dimension % self.nhead or self.bs_decoder_dimension % 2:
            raise ValueError(f"bs_decoder_dimension is {self.bs_decoder_dimension}, expected an even number that "
                             f"nhead ({self.nhead}) divides")


def generation_fields(directory, values: dict, vocab_size: int) -> dict:
    """Read generation_config.json, ours or Hugging Face's -> fields of ExOmniConfig. values: config.json, which may
    have eos_token_id instead. Raises ValueError."""
    path = Path(directory) / "generation_config.json"
    given, found = disk.read_json(path) if os.path.lexists(path) else {}, {}
    source, where = (given, path) if "eos_token_id" in given else (values, path.with_name("config.json"))
    stop = source.get("eos_token_id")
    if stop is not None:
        kind = Annotated[list[Annotated[int, 0, vocab_size - 1]], 1, 64]
        stop = stop if isinstance(stop, list) else [stop]
        found["stop_ids"] = tuple(disk.typed({"eos_token_id": stop}, "eos_token_id", kind, where))
    if "unit_do_sample" in given:
        found["greedy_units"] = not disk.typed(given, "unit_do_sample", bool, path)
    ignored = [name for name, neutral in SAMPLING.items() if given.get(name) not in (None, *neutral)]
    if ignored:
        warnings.warn(f"{path}: {', '.join(ignored)} not used here: text is sampled by temperature and top_p alone")
    if "past_turns" in given:
        found["past_turns"] = disk.typed(given, "past_turns", Annotated[int, 0, PAST_TURNS], path)
    top_p = disk.typed(given, "top_p", Share | None, path, None)
    return found | {"top_p": 1.0 if top_p is None else max(top_p, 1e-6)}        # 0 means greedy


def read_config(directory: Path) -> dict:
    """Read the config.json of a model. Raises OSError or ValueError, the latter also for a LoRA adapter."""
    found = [name for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
             if os.path.lexists(directory / name)]
    if found:
        raise ValueError(f"{directory} is {weights.FOREIGN['lora_A']}: it has {found[0]}, which can go when that is "
                         "done")
    return disk.read_json(directory / "config.json")


def dtype_of(values: dict, path) -> str:
    """The dtype in `values`, the config.json at `path`: "bfloat16", "float16" or "float32". "auto" means that of the
    first tensor on disk. Raises ValueError."""
    name = "dtype" if values.get("torch_dtype") is None else "torch_dtype"
    asked = (disk.typed(values, name, str | None, path, None) or "float32").removeprefix("torch.")
    if asked == "auto":
        first = next(iter(weights.shapes(weights.files(Path(path).parent)[0]).values()), ((), "F32"))
        return {"BF16": "bfloat16", "F16": "float16"}.get(first[1], "float32")
    return DTYPES[disk.typed({name: asked}, name, Literal[(*DTYPES, "auto")], path)]


@dataclass
class ExOmniConfig:
    """The whole model's configuration. `from_dir` reads it from a checkpoint, `to_dict` makes its config.json."""
    llm: Qwen3Config = field(default_factory=Qwen3Config)
    speech_encoder: WhisperConfig = field(default_factory=WhisperConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    face: FaceConfig = field(default_factory=FaceConfig)
    projector_stride: int = 5      # speech_encoder_ds_rate: encoder frames concatenated into one speech row
    projector_hidden: int = 2048   # speech_projector_hidden_size; fixed in the release
    stop_ids: tuple = (151645, 151643)     # generation_config.json: eos_token_id: <|im_end|>, <|endoftext|>
    top_p: float = 1.0             # generation_config.json: default top_p for text
    greedy_units: bool = False     # generation_config.json: unit_do_sample false; else repetition-aware sampling
    past_turns: int = PAST_TURNS   # generation_config.json, our own field: turns of a conversation kept in the prompt
    dtype: str = "bfloat16"        # of the weights on disk

    @classmethod
    def from_dir(cls, directory, given: dict = {}) -> "ExOmniConfig":
        """Read config.json and generation_config.json. The configs of Whisper and of the generator's backbone are part
        of our config.json; in the release they are in directories that it names. given: fields that override those of
        config.json. Raises FileNotFoundError or ValueError."""
        directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is not a directory: expected a checkpoint, "
                                    "make one with `python prepare.py weights`")
        if (directory / ".saved").is_dir():
            raise ValueError(f"{directory} is being saved, or a save was killed: try again, or run the command "
                             "that wrote it again: it completes the save")
        path, values = directory / "config.json", read_config(directory) | given
        config = cls.from_fields(values, path)
        return replace(config, **generation_fields(directory, values, config.llm.vocab_size))

    @classmethod
    def from_fields(cls, values: dict, path: Path) -> "ExOmniConfig":
        """Fields of the config.json at `path` -> configuration. Raises ValueError for a missing or wrong field."""
        def nested(config, ours, release):
            if ours in values:
                return config.from_dict(disk.typed(values, ours, dict, path), f"{path}: {ours}")
            if release in values:
                file = path.parent / disk.typed(values, release, str, path) / "config.json"
                return config.from_dict(disk.read_json(file), file)
            raise ValueError(f"{path} has neither {ours} nor {release}: is it an Ex-Omni checkpoint?")

        encoder = nested(WhisperConfig, "speech_encoder_config", "pretrain_speech_encoder_weights")
        backbone = nested(Qwen3Config, "speech_generator_config", "pretrain_speech_generator_weights")
        llm, r = Qwen3Config.from_dict(values, path), disk.checked(ReleaseConfig, values, path)
        generator = GeneratorConfig(backbone, r.unit_vocab_size, r.sg_tqgf_depth, r.sg_tqgf_heads, r.sg_tqgf_dim_head,
                                    r.sg_ablate)
        if backbone.vocab_size != llm.vocab_size:
            raise ValueError(f"{path}: the speech generator has {backbone.vocab_size} token ids, the language model "
                             f"{llm.vocab_size}: expected the same, it reads the language model's ids")
        if r.speech_vocab_size < r.unit_vocab_size:
            raise ValueError(f"{path}: speech_vocab_size, the face decoder's units, is {r.speech_vocab_size}, expected "
                             f"at least unit_vocab_size, the speech generator's ({r.unit_vocab_size})")
        context = llm if r.bs_ablate == "speech-context" else backbone
        face = FaceConfig(
            state_dim=context.hidden_size, unit_vocab=r.speech_vocab_size, unit_dim=r.speech_embed_dim,
            dim=r.bs_decoder_dimension, heads=r.nhead, layers=r.num_bs_decoder_layers, dropout=r.dropout_rate,
            channels=r.out_dim, tqgf_depth=r.bs_tqgf_depth or 2, tqgf_heads=r.bs_tqgf_heads or 8,
            tqgf_dim_head=r.bs_tqgf_dim_head or 64, period=r.period, rope_scale=r.rope_scale,
            velocity_weight=r.velocity_weight, ablate=r.bs_ablate)
        return cls(llm, encoder, generator, face, r.speech_encoder_ds_rate, r.speech_projector_hidden_size,
                   dtype=dtype_of(values, path))

    def ablated(self, name: str) -> "ExOmniConfig":
        """This configuration with an ablation of ABLATIONS. Raises ValueError where the same part has another one."""
        before = self.generator.ablate if ABLATIONS[name] == "generator" else self.face.ablate
        if before not in ("", name.removeprefix("generator-")):
            raise ValueError(f"this checkpoint was trained without {before}: leave out {name} from one that was not")
        if ABLATIONS[name] == "generator":
            return replace(self, generator=replace(self.generator, ablate="tqgf"))
        context = self.llm if name == "speech-context" else self.generator.llm
        velocity = 0.0 if name == "velocity" else self.face.velocity_weight
        return replace(self, face=replace(self.face, ablate=name, state_dim=context.hidden_size,
                                          velocity_weight=velocity))

    def to_dict(self) -> dict:
        """The content of config.json, with the release's field names."""
        g, f = self.generator, self.face
        ablated = {name: part for name, part in (("sg_ablate", g.ablate), ("bs_ablate", f.ablate)) if part}
        return asdict(self.llm) | ablated | {
            "model_type": MODEL_TYPE, "architectures": ["LlavaHerQwen3ForCausalLM"], "torch_dtype": self.dtype,
            "eos_token_id": list(self.stop_ids), "speech_encoder_type": "whisper", "speech_projector_type": "linear",
            "speech_generator_type": "ar", "speech_encoder_config": asdict(self.speech_encoder),
            "speech_encoder_ds_rate": self.projector_stride, "speech_projector_hidden_size": self.projector_hidden,
            "speech_generator_config": asdict(g.llm), "speech_gen_hidden_size": g.llm.hidden_size,
            "sg_tqgf_depth": g.tqgf_depth, "sg_tqgf_heads": g.tqgf_heads, "sg_tqgf_dim_head": g.tqgf_dim_head,
            "unit_vocab_size": g.unit_vocab, "speech_vocab_size": f.unit_vocab, "speech_embed_dim": f.unit_dim,
            "bs_decoder_dimension": f.dim, "nhead": f.heads, "num_bs_decoder_layers": f.layers,
            "dropout_rate": f.dropout, "out_dim": f.channels, "bs_tqgf_depth": f.tqgf_depth,
            "bs_tqgf_heads": f.tqgf_heads, "bs_tqgf_dim_head": f.tqgf_dim_head, "period": f.period,
            "rope_scale": f.rope_scale, "velocity_weight": f.velocity_weight,
            "ctc_decoder_config": "(2,4096,32,11008)", "ctc_upsample_factor": 1}


# The paper uses Qwen3-8B. The sizes of its face decoder are not published, those of FaceConfig are ours.
PRESETS = {name: ExOmniConfig(llm=size) for name, size in SIZES.items()} | {
    "tiny": ExOmniConfig(          # random weights, for tests
        llm=Qwen3Config(320, 64, 128, 2, 4, 2, 16, max_position_embeddings=4096),
        speech_encoder=WhisperConfig(80, 32, 2, 2, 64),
        generator=GeneratorConfig(Qwen3Config(320, 48, 96, 2, 4, 2, 16, max_position_embeddings=4096,
                                              tie_word_embeddings=True), 96, 2, 2, 16),
        face=FaceConfig(48, 96, 24, 48, 4, 2, tqgf_heads=2, tqgf_dim_head=16),
        projector_hidden=96, stop_ids=(258, 256), dtype="float32"),
    "mini": ExOmniConfig(          # trained from scratch on a CPU (`python -m toy`); windows of 5.12 s of speech
        llm=Qwen3Config(1536, 192, 576, 6, 3, 1, 64, max_position_embeddings=4096, tie_word_embeddings=True),
        speech_encoder=WhisperConfig(80, 192, 4, 4, 768, 256, quiet_cuts=True),
        generator=GeneratorConfig(Qwen3Config(1536, 192, 576, 4, 4, 2, 48, max_position_embeddings=4096,
                                              tie_word_embeddings=True), 1024, 1, 4, 48),
        face=FaceConfig(192, 1024, 64, 128, 4, 4, dropout=0.0, tqgf_heads=4, tqgf_dim_head=32),
        projector_hidden=512, stop_ids=(1535, 1533), greedy_units=True, past_turns=2,
        dtype="float32")}


def preset(name: str) -> ExOmniConfig:
    """A preset by name. Raises ValueError listing the names."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


# Prefix of our parameter names -> of the official tensor names, longest first (docs/spec/ex_omni.md 7).
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
# Tensors of a checkpoint that the model does not use (docs/spec/ex_omni.md 7 and 8.2, item 16).
UNUSED = ("model.speech_encoder.model.decoder.", "model.speech_encoder.proj_out.",
          "model.speech_generator.llm.model.lm_head.", "model.blendshape_generator.rope.inv_freq",
          "model.blendshape_generator.transformer_encoder.rope.inv_freq")


def official_name(name: str) -> str:
    """Our parameter name -> the official tensor name."""
    ours = next(p for p in PREFIXES if name.startswith(p))
    return PREFIXES[ours] + name[len(ours):]


def our_name(name: str, tied: bool) -> str | None:
    """A checkpoint's tensor name -> our parameter name, or None for a tensor that is not used. tied: the output matrix
    is the embedding, so that a stored copy of it is not used."""
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


def write_checkpoint(directory, config: ExOmniConfig, tensors: dict, read=lambda shard: shard) -> None:
    """Write config.json, generation_config.json and the tensors, by official name, in shards of at most SHARD_BYTES.
    Each file is written atomically; old shards are removed last. tensors may be on the meta device: read(dict of one
    shard) then returns the real ones, shard by shard."""
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
    disk.write_json(directory / "config.json", config.to_dict())
    ours = {"unit_do_sample": False} if config.greedy_units else {}
    ours |= {"past_turns": config.past_turns} if config.past_turns != PAST_TURNS else {}
    disk.write_json(directory / "generation_config.json",
                    {"eos_token_id": list(config.stop_ids), "top_p": config.top_p} | ours)
    for path in set(directory.glob("model*.safetensors")) - {directory / name for name in names}:
        path.unlink()


def open_tokenizer(directory: Path, config: ExOmniConfig) -> Tokenizer | None:
    """The tokenizer in the directory of a model, or None where it has none. Raises OSError, and ValueError where it
    does not fit the model: ids beyond the model's vocabulary, <|im_end|> missing among the model's stop ids, or
    ordinary text for a stop id."""
    if not any(os.path.lexists(directory / name) for name in TOKENIZER_FILES) and not any(directory.glob("*.tiktoken")):
        return None
    tokenizer, size, stop = Tokenizer.from_pretrained(directory), config.llm.vocab_size, list(config.stop_ids)
    if tokenizer.n_vocab > size:
        raise ValueError(f"the tokenizer in {directory} has ids up to {tokenizer.n_vocab - 1}, its model {size} of "
                         "them: these do not belong together")
    if tokenizer.im_end_id not in stop:
        raise ValueError(f"the tokenizer in {directory} has <|im_end|> as {tokenizer.im_end_id}, which is none of the "
                         f"stop ids {stop} (eos_token_id in generation_config.json or config.json): a reply would "
                         "never end; take the tokenizer that came with the weights, or add the id")
    text = [i for i in stop if i not in tokenizer.added]
    if text:
        raise ValueError(f"the tokenizer in {directory} has {tokenizer.decode(text[:1])!r} as {text[0]}, which is one "
                         f"of the stop ids {stop} (eos_token_id in generation_config.json or config.json): expected a "
                         "control token; take the tokenizer that came with the weights, or correct the id")
    return tokenizer


def check_units(directory: Path, config: ExOmniConfig) -> None:
    """Raises ValueError where speech_tokenizer/ or speech_decoder/ has another number of units than the model."""
    for part, kind, units in (("speech_tokenizer", SpeechTokenizerConfig, lambda c: c.quantize_vocab_size),
                              ("speech_decoder", SpeechDecoderConfig, lambda c: c.flow.vocab_size)):
        path = directory / part / "config.json"
        if os.path.lexists(directory / part) and not (directory / part).is_dir():
            raise ValueError(f"{directory / part} is no directory: expected the {part.replace('_', ' ')}, or nothing")
        count = units(disk.checked(kind, disk.read_json(path), path)) if os.path.lexists(path) else None
        if count not in (None, config.generator.unit_vocab):
            raise ValueError(f"{directory / part} has {count} units, the model {config.generator.unit_vocab} "
                             "(unit_vocab_size in config.json): these do not belong together")


def copy_companions(source, directory) -> None:
    """Copy a checkpoint's other files: those of the tokenizer, speech_tokenizer/ and speech_decoder/."""
    source, directory = Path(source), Path(directory)
    if source.resolve() == directory.resolve():
        return
    for path in [source / name for name in TOKENIZER_FILES] + list(source.glob("*.tiktoken")):
        if path.is_file():
            shutil.copy(path, directory)
    for name in ("speech_tokenizer", "speech_decoder"):
        if (source / name).is_dir():
            try:
                shutil.copytree(source / name, directory / name, dirs_exist_ok=True)
            except shutil.Error as error:                           # its argument is a list of all failures
                raise OSError(error.args[0][0][2]) from None
