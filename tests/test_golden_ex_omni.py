"""The golden numbers of the official release, module by module and end to end, at the tolerances written beside them.

GOLDEN_DIR names the root of another set of the same layout (default tests/fixtures); every size comes from its json.
GOLDEN_DEVICE: where the modules and the numbers are (default: cpu).
"""
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weights
from decode import GREEDY, RepetitionAware
from face import ARKIT_NAMES
from face_decoder import FaceConfig, FaceDecoder, face_loss, frames_for_units, release_frames
from checkpoint import our_name
from model import ExOmni, SpeechProjector, gather_rows
from qwen3 import KVCache, Qwen3, Qwen3Config
from speech_generator import IGNORE, GeneratorConfig, SpeechGenerator
from tqgf import TQGF
from whisper import WhisperConfig, WhisperEncoder, log_mel

ROOT = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "fixtures")) / "ex_omni"
DEVICE = os.environ.get("GOLDEN_DEVICE", "cpu")
RELEASE = {"release_quirks": True}


class Golden:
    """One X.json + X.safetensors: configuration, inputs, and a check that every output was compared."""

    def __init__(self, name):
        self.path, self.spec = ROOT / f"{name}.safetensors", json.loads((ROOT / f"{name}.json").read_text())
        self.tensors = load_file(self.path, DEVICE)
        self.config, self.compared = self.spec["config"], set()

    def __getitem__(self, name):
        self.compared.add(name)
        return self.tensors[name]

    def load(self, module, prefix):
        """Fill the module from the file's weights. prefix: ours for what the file calls by official names."""
        weights.load(module, [self.path], lambda name: None if name.startswith(("in.", "out.")) else
                     (lambda ours: ours and ours.removeprefix(prefix))(our_name(name, tied=True)))
        return module.to(DEVICE).eval()

    def same(self, seen, name, where=None):
        seen, expected = seen.to(DEVICE), self[name]
        assert seen.shape == expected.shape, name
        if where is not None:
            seen, expected = seen[where], expected[where]
        torch.testing.assert_close(seen, expected, **self.spec["tolerance"], msg=lambda text: f"{name}: {text}")

    def finish(self):
        left = {name for name in self.tensors if name.startswith("out.")} - self.compared
        assert not left, f"outputs that no line compared: {sorted(left)}"


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def recorded(module, into: dict, name: str):
    """Keep what the module puts out under into[name]."""
    module.register_forward_hook(lambda _, args, out: into.__setitem__(name, out))


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("whisper*.safetensors")))
def test_whisper_mel_and_encoder(name):
    g = Golden(name)
    config = WhisperConfig(**{k: v for k, v in g.config.items() if k in WhisperConfig.__dataclass_fields__})
    encoder = g.load(WhisperEncoder(config), "speech_encoder.")
    sounds = load_file(ROOT / "audio.safetensors", DEVICE)
    for case in ("short", "long"):
        mel = log_mel(sounds[f"wav_{case}_int16"] / 32768, config.num_mel_bins, config.n_frames)[None]
        g.same(mel.mean(2), f"out.mel_{case}_mean_per_bin")
        g.same(mel.mean(1), f"out.mel_{case}_mean_per_frame")
        for part in (n for n in g.tensors if n.startswith(f"out.mel_{case}_") and n.split("_")[-1].isdigit()):
            start, end = map(int, part.split("_")[-2:])
            g.same(mel[..., start:end], part)
        g.same(encoder(mel), f"out.enc_{case}")
    zeros = torch.zeros(1, config.d_model, 3000, device=DEVICE)
    states = [encoder.conv2(zeros[:, :, :n]).shape[2] for n in g["out.len_in"].tolist()]
    assert states == g["out.len_out"].tolist()
    g.finish()


def test_projector():
    g = Golden("projector")
    hidden = g.tensors["model.speech_projector.linear1.weight"].shape[0]
    projector = g.load(SpeechProjector(g.config["enc"], hidden, g.config["llm"], g.config["k"]), "speech_projector.")
    for case in ("x_remainder", "x_full"):
        g.same(projector(g["in." + case]), "out." + case)
    g.finish()


def test_qwen3_batch_cache_embeddings_and_loss():
    g = Golden("qwen3")
    config = Qwen3Config.from_dict(g.config)
    model = g.load(Qwen3(config), "llm.") if config.tie_word_embeddings else None
    if model is None:                                    # an untied set also stores the output matrix
        model = Qwen3(config).eval()
        weights.load(model, [g.path], lambda n: None if n.startswith(("in.", "out.", "lm_head.")) else n[len("model."):])
    head = g.tensors.get("lm_head.weight", model.embed_tokens.weight)
    trace = {}
    recorded(model.embed_tokens, trace, "embed")
    recorded(model.layers[0], trace, "layer0")
    ids, mask, labels = g["in.input_ids"], g["in.attention_mask"].bool(), g["in.labels"]
    assert torch.equal(g["in.position_ids"][mask], (mask.cumsum(1) - 1)[mask])
    assert (mask[:, 1:] <= mask[:, :-1]).all(), "padded on the right"
    states = model(ids)
    g.same(trace["embed"], "out.embed", mask)
    g.same(trace["layer0"], "out.after_layer0", mask)
    g.same(states, "out.last_hidden", mask)
    g.same(states @ head.T, "out.logits", mask)
    loss = torch.nn.functional.cross_entropy((states @ head.T)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    g.same(loss[None], "out.loss")
    row = model(ids[:1])
    g.same(row, "out.row0_last_hidden")
    g.same(row @ head.T, "out.row0_logits")
    cache = KVCache(config, 1, ids.shape[1], model.norm.weight)
    pieces = [ids[:1, :5], *ids[:1, 5:].split(1, dim=1)]
    row = torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)
    g.same(row, "out.row0_last_hidden_incremental")
    g.same(row @ head.T, "out.row0_logits_incremental")
    g.same(model(embeds=g["in.inputs_embeds"]), "out.embeds_last_hidden")
    g.finish()


def test_tqgf():
    g = Golden("tqgf")
    c = g.config
    tqgf = g.load(TQGF(c["dim"], c["depth"], c["heads"], c["dim_head"]), "speech_generator.tqgf.")
    trace = {}
    recorded(tqgf.layers[0][0], trace, "attention")
    g.same(tqgf(g["in.query"], g["in.context"]), "out.unmasked")
    g.same(trace["attention"], "out.layer0_attn_unmasked")
    g.same(tqgf(g["in.query"], g["in.context"], g["in.mask"]), "out.masked")
    g.finish()


def generator_of(g):
    c = g.config
    backbone = Qwen3Config.from_dict({"rope_theta": 1e6, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096} | c["gen"])
    config = GeneratorConfig(backbone, c["unit_vocab_size"], c["depth"], c["heads"], c["dim_head"])
    return g.load(SpeechGenerator(config, c["llm_hidden"]), "speech_generator.")


def test_speech_generator_training_pass():
    g = Golden("speech_generator")
    generator, trace = generator_of(g), {}
    recorded(generator.input_proj, trace, "input_proj")
    recorded(generator.llm, trace, "hidden")
    generator.tqgf.register_forward_hook(lambda _, args, out: trace.update(query=args[0], context=args[1], tqgf=out))
    generator.llm.register_forward_hook(lambda _, args, kw, out: trace.update(inputs=kw["embeds"]), with_kwargs=True)
    states, mask = gather_rows(g["in.text_reps"], g["in.text_labels"] != IGNORE)
    text, units = g["in.text_tokens"], g["in.speech_tokens"]
    out = generator(states, mask, text, units)
    g.same(trace["input_proj"], "out.input_proj")
    g.same(trace["context"], "out.tqgf_context")
    real = text != IGNORE
    g.same(trace["query"], "out.tqgf_query", real)
    g.same(trace["tqgf"], "out.tqgf", real)
    g.same(trace["inputs"], "out.lm_inputs")
    lengths = real.sum(1) + (units != IGNORE).sum(1) + 3
    valid = torch.arange(trace["hidden"].shape[1], device=DEVICE) < lengths[:, None]
    g.same(trace["hidden"], "out.last_hidden", valid)
    g.same(generator.llm_decoder(trace["hidden"]), "out.logits", valid)
    g.same(out.losses, "out.loss_per_sample")
    g.compared |= {n for n in g.tensors if n.startswith("out.predict_")}                    # the next test's
    g.finish()


@pytest.mark.parametrize("case", sorted({name.split(".")[1].removeprefix("predict_")
                                         for name in load_file(ROOT / "speech_generator.safetensors")
                                         if name.startswith("in.predict_")}))
def test_speech_generator_decodes(case):
    g = Golden("speech_generator")
    generator = generator_of(g)
    generator.llm_decoder.bias.data = g[f"in.predict_{case}.llm_decoder_bias"]
    states, ids = g[f"in.predict_{case}.text_reps"], g[f"in.predict_{case}.text_tokens"]
    out = generator.generate(states, torch.ones_like(ids, dtype=torch.bool), ids[:, :-1], GREEDY, release_quirks=True)
    (units,), (hidden,) = out.emitted()
    assert units.tolist() == g[f"out.predict_{case}.units"].tolist()
    g.same(hidden[None], f"out.predict_{case}.hidden")
    best = generator.llm_decoder(hidden)
    early = torch.arange(len(best)) < 2 * (ids.shape[1] - 1)
    best[early, g.config["unit_vocab_size"]] = -torch.inf
    first, second = best.topk(2).values.T
    g.same((first - second).min()[None], f"out.predict_{case}.min_margin")
    g.compared |= {n for n in g.tensors if not n.startswith(f"out.predict_{case}.")}        # other tests'
    g.finish()


def test_repetition_aware_sampling(monkeypatch):
    spec = json.loads((ROOT / "sampling.json").read_text())
    for case in spec["cases"]:
        logits = torch.tensor([case["logits"]])
        recent = torch.tensor([([-1] * 10 + case["decoded"])[-10:]])
        draws = []
        monkeypatch.setattr("decode.sample_from", lambda weights, generator: draws.append(weights) or torch.zeros(1).long())
        returned = RepetitionAware()(logits, recent).item()
        assert returned == case["returned_id_when_every_draw_takes_index_0"]
        assert (returned != logits.argmax().item()) == case["fell_back_to_full_distribution"]
        handed = draws[0][draws[0] > 0]
        torch.testing.assert_close(handed, torch.tensor(case["nucleus_probs"]), atol=1e-6, rtol=1e-5)


def face_decoder_of(g):
    c = g.config
    config = FaceConfig(c["gen_hidden"], c["vocab"], c["embed"], c["dim"], c["nhead"], c["layers"], 0.1, c["out"],
                        c["tq"]["depth"], c["tq"]["heads"], c["tq"]["dim_head"], c["period"])
    return g.load(FaceDecoder(config), "face_decoder.")


def test_face_decoder():
    g = Golden("blendshape_generator")
    face, trace = face_decoder_of(g), {}
    recorded(face.tqgf, trace, "tqgf")
    recorded(face.rope, trace, "rope")
    for case in ("plain", "zeros"):
        g.same(face(g[f"in.{case}.units"], g[f"in.{case}.hidden"], **RELEASE), f"out.{case}.blendshapes")
        g.same(trace["tqgf"], f"out.{case}.tqgf")
        g.same(trace["rope"], f"out.{case}.rope")
    g.same(face(g["in.plain.units"], g["in.plain.hidden"], g["in.masked_context.mask"], **RELEASE),
           "out.masked_context.blendshapes")
    units, states, mask = g["in.train.units"], g["in.train.hidden"], g["in.train.hidden_mask"]
    labels, lengths = g["in.train.labels"], g["in.train.lengths"]
    pred = face(units, states, mask, lengths, **RELEASE)
    valid = torch.arange(labels.shape[1], device=DEVICE) < lengths[:, None]
    g.same(pred, "out.train.pred", valid)
    g.same(face_loss(pred, labels, lengths, velocity_weight=0)[None], "out.train.loss")
    g.same(face(units, states, mask, **RELEASE), "out.batch_infer.blendshapes")
    for case in ("same", "short", "long"):
        loss = face_loss(g[f"in.loss_{case}.pred"], g["in.loss.target"], g["in.loss.lengths"], velocity_weight=0)
        g.same(loss[None], f"out.loss_{case}")
    g.finish()


def test_channel_names():
    assert json.loads((ROOT / "blendshape_names.json").read_text())["facs_52"] == ARKIT_NAMES


def test_frame_rule():
    spec = json.loads((ROOT / "frame_rule.json").read_text())
    for n, frames in enumerate(spec["frames_for_n"]):
        assert release_frames(torch.ones(n)) == frames
        assert frames_for_units(n) - frames in (0, 1), "ours is exact, theirs loses a frame here and there"
    for case in next(v for v in spec.values() if isinstance(v, list) and isinstance(v[0], dict)):
        assert release_frames(torch.tensor(case["units"])) == case["frames"]


@pytest.fixture(scope="module")
def model():
    return ExOmni.from_pretrained(ROOT / "e2e", DEVICE)


@pytest.mark.parametrize("case", sorted(p.stem for p in (ROOT / "e2e").glob("case_*.safetensors") if "train" not in p.stem))
def test_end_to_end(model, case):
    g = Golden(f"e2e/{case}")
    M, T = model.config.speech_encoder.num_mel_bins, model.config.speech_encoder.n_frames
    mel, ids = g.tensors.get("in.mel", torch.zeros(1, M, T, device=DEVICE)), g["in.input_ids"]
    g.same(model.encode_speech(mel), "out.speech_features")
    answer = model.generate(ids[0], mel if (ids < 0).any() else None, max_new_tokens=int(g["in.max_new_tokens"]),
                            unit_sampler=GREEDY, release_quirks=True)
    assert answer.text_ids == g["out.text_ids"][0].tolist()
    assert answer.units.tolist() == g["out.units"].tolist()
    g.same(answer.text_states[None], "out.llm_hidden")
    g.same(model.logits(answer.text_states.to(DEVICE)), "out.step_logits")
    g.same(answer.unit_states[None], "out.unit_hidden")
    g.same(answer.face[None], "out.blendshapes")
    g.finish()


def test_training_batch(model):
    g = Golden("e2e/case_train_batch")
    mels = [Golden(f"e2e/case_speech_{name}")["in.mel"] for name in ("eos", "maxlen")]
    ids, mask, labels = g["in.input_ids"], g["in.attention_mask"].bool(), g["in.labels"]
    spoken = (ids < 0).sum(1)                            # the release uses up a clip for a sample without speech too
    speech = model.encode_speech(torch.cat([mel for mel, n in zip(mels, spoken) if n]))
    embeds, targets, lengths = model.splice(ids, mask, labels, list(speech))
    g.same(embeds, "out.inputs_embeds")
    real = torch.arange(embeds.shape[1], device=DEVICE) < lengths[:, None].to(DEVICE)
    assert torch.equal(real.long(), g["out.attention_mask"]) and torch.equal(targets, g["out.labels"])
    g.same(model.llm(embeds=embeds), "out.last_hidden", real)
    batch = {"input_ids": ids, "mask": mask, "labels": labels, "mel": torch.cat(mels)[spoken > 0]}
    g.same(model(batch)["text"][None], "out.loss")
    g.finish()


def test_every_golden_file_has_a_test():
    tested = {"audio", "blendshape_generator", "blendshape_names", "chat", "frame_rule", "projector", "qwen3", "sampling",
              "speech_generator", "tqgf", "MANIFEST"} | {p.stem for p in ROOT.glob("whisper*.json")}
    assert {p.stem for p in ROOT.glob("*.json")} <= tested
