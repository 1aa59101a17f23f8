"""A checkpoint: the configuration that fixes all shapes, its presets, the names of its tensors, and the files.

One directory holds it, in the layout of the official release (docs/spec/ex_omni.md 7): config.json,
generation_config.json, model*.safetensors, tokenizer files, and beside them speech_tokenizer/ and speech_decoder/. Ours, the mini model and the
release are the same thing to `ExOmni.from_pretrained`; every tensor is accounted for (weights.py).
"""
import shutil
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import disk
import weights
from face_decoder import FaceConfig
from qwen3 import SIZES, Qwen3Config
from speech_generator import GeneratorConfig
from whisper import WhisperConfig

SHARD_BYTES = 4 << 30          # of model-*.safetensors
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json")

# What can be left out (docs/spec/paper.md, "The ablations, exactly"), and the part that it changes. Of the face decoder,
# v1 Table 6: the velocity term; the generator's states as context (the LLM's instead); any context; TQGF (a
# concatenation instead); v2 Table 6: the units as queries. Of the speech generator, v1 Table 8: TQGF, likewise.
ABLATIONS = {"velocity": "face", "speech-context": "face", "context": "face", "tqgf": "face", "units": "face",
             "generator-tqgf": "generator"}


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
        values = disk.read_json(path) | given
        try:
            config = cls.from_fields(values, path)
        except KeyError as error:
            raise ValueError(f"{path} lacks the field {error}: is it an Ex-Omni checkpoint?") from None
        path = directory / "generation_config.json"
        generation = disk.read_json(path) if path.is_file() else {}
        stop = generation.get("eos_token_id", values.get("eos_token_id"))
        if stop is not None:
            config.stop_ids = tuple(stop) if isinstance(stop, list) else (stop,)
        config.top_p = generation.get("top_p") or 1.0
        config.greedy_units = not generation.get("unit_do_sample", True)
        return config

    @classmethod
    def from_fields(cls, values: dict, path: Path) -> "ExOmniConfig":
        """The fields of config.json -> the configuration. Raises KeyError for a field that is missing."""
        def nested(ours, release):
            if ours in values:
                return values[ours]
            if release in values:
                return disk.read_json(path.parent / values[release] / "config.json")
            raise ValueError(f"{path} has neither {ours} nor {release}: is it an Ex-Omni checkpoint?")

        encoder = nested("speech_encoder_config", "pretrain_speech_encoder_weights")
        backbone = nested("speech_generator_config", "pretrain_speech_generator_weights")
        llm = Qwen3Config.from_dict(values, path)
        generator = GeneratorConfig(
            Qwen3Config.from_dict(backbone, f"{path}: the speech generator"), values["unit_vocab_size"],
            values.get("sg_tqgf_depth", 2), values.get("sg_tqgf_heads", 16), values.get("sg_tqgf_dim_head", 256),
            values.get("sg_ablate", ""))
        ablate = values.get("bs_ablate", "")
        context = llm if ablate == "speech-context" else generator.llm
        face = FaceConfig(
            state_dim=context.hidden_size, unit_vocab=values["speech_vocab_size"],
            unit_dim=values["speech_embed_dim"], dim=values["bs_decoder_dimension"], heads=values["nhead"],
            layers=values["num_bs_decoder_layers"], dropout=values["dropout_rate"], channels=values["out_dim"],
            tqgf_depth=values.get("bs_tqgf_depth") or 2, tqgf_heads=values.get("bs_tqgf_heads") or 8,
            tqgf_dim_head=values.get("bs_tqgf_dim_head") or 64, period=values.get("period", 30),
            rope_scale=values.get("rope_scale", 1.0), velocity_weight=values.get("velocity_weight", 0.5), ablate=ablate)
        return cls(llm, WhisperConfig(**{f.name: encoder[f.name] for f in fields(WhisperConfig)}), generator, face,
                   values["speech_encoder_ds_rate"], values.get("speech_projector_hidden_size", 2048),
                   dtype=values.get("torch_dtype") or values.get("dtype") or "float32")

    def ablated(self, name: str) -> "ExOmniConfig":
        """This configuration without what ABLATIONS[name] says. Raises ValueError where another thing is left out of the
        same part already."""
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
            "rope_scale": f.rope_scale, "velocity_weight": f.velocity_weight,
            "ctc_decoder_config": "(2,4096,32,11008)", "ctc_upsample_factor": 1}


# The paper uses Qwen3-8B; the published sizes of the face decoder are unknown, FaceConfig's are ours.
PRESETS = {name: ExOmniConfig(llm=size) for name, size in SIZES.items()} | {
    "tiny": ExOmniConfig(          # random weights, for the tests: seconds on a CPU
        llm=Qwen3Config(320, 64, 128, 2, 4, 2, 16, max_position_embeddings=4096),
        speech_encoder=WhisperConfig(80, 32, 2, 2, 64),
        generator=GeneratorConfig(Qwen3Config(320, 48, 96, 2, 4, 2, 16, max_position_embeddings=4096,
                                              tie_word_embeddings=True), 96, 2, 2, 16),
        face=FaceConfig(48, 96, 24, 48, 4, 2, tqgf_heads=2, tqgf_dim_head=16),
        projector_hidden=96, stop_ids=(258, 256), dtype="float32"),
    "mini": ExOmniConfig(          # trained from scratch on a CPU (`python -m toy`): hears 5.12 s at once
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


# Our parts -> prefixes of the official checkpoint, longest first (docs/spec/ex_omni.md 7).
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
# What a checkpoint may hold that this system has no use for (docs/spec/ex_omni.md 7 and 8.2, item 16).
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
    disk.write_json(directory / "config.json", config.to_dict())
    units = {"unit_do_sample": False} if config.greedy_units else {}
    disk.write_json(directory / "generation_config.json",
                       {"eos_token_id": list(config.stop_ids), "top_p": config.top_p} | units)
    for path in set(directory.glob("model*.safetensors")) - {directory / name for name in names}:
        path.unlink()


def has_tokenizer(directory: Path) -> bool:
    """Whether a checkpoint directory holds files that `Tokenizer.from_pretrained` reads."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES) or any(directory.glob("*.tiktoken"))


def copy_companions(source, directory) -> None:
    """Copy what a checkpoint holds beside the model's weights: tokenizer files, speech_tokenizer/, speech_decoder/."""
    source, directory = Path(source), Path(directory)
    if source.resolve() == directory.resolve():
        return
    for path in [source / name for name in TOKENIZER_FILES] + list(source.glob("*.tiktoken")):
        if path.is_file():
            shutil.copy(path, directory)
    for name in ("speech_tokenizer", "speech_decoder"):
        if (source / name).is_dir():
            shutil.copytree(source / name, directory / name, dirs_exist_ok=True)
