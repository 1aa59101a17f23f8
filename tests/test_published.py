"""corpora/published.py and glm4_voice.py: `prepare.py weights` on tiny random models in place of the published ones."""
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import checkpoint
import disk
import prepare
import weights
from checkpoint import PRESETS
from corpora import published
from model import ExOmni
from published_models import (UNITS, change, files, golden_decoder_config, golden_decoder_weights, qwen, refused,
                              speech_decoder, speech_tokenizer, whisper)
from speech_decoder import SpeechDecoder
from speech_tokenizer import SpeechTokenizer
from tokenizer import Tokenizer
from tokenizer_files import write_tiny

RELEASE = Path(__file__).parent / "fixtures" / "ex_omni" / "e2e"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}    # the same float32 arithmetic in another order
HUB = {"llm": "Qwen/Qwen3-0.6B", "speech_encoder": "openai/whisper-large-v3", "speech_generator": "Qwen/Qwen3-0.6B",
       "speech_tokenizer": "THUDM/glm-4-voice-tokenizer", "speech_decoder": "THUDM/glm-4-voice-decoder"}


@pytest.fixture(autouse=True)
def no_gradients():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)            # such small models lose time to threads, on a busy machine a lot
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_new_modules(monkeypatch):
    """The preset with new parts of the tiny one's size: the published ones would take most of the time."""
    monkeypatch.setitem(PRESETS, "qwen3-0.6b", replace(PRESETS["tiny"], dtype="bfloat16"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A directory per source, and the models in them."""
    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("hub")
    models = {"llm": qwen(root / "llm", tied=False), "speech_encoder": whisper(root / "speech_encoder"),
              "speech_generator": qwen(root / "speech_generator", tied=True, width=40),
              "speech_tokenizer": speech_tokenizer(root / "speech_tokenizer")}
    write_tiny(root / "llm")
    disk.write_json(root / "llm" / "generation_config.json", {"eos_token_id": [258, 256], "top_p": 0.8})
    speech_decoder(root / "speech_decoder")
    return root, models


@pytest.fixture
def hub(originals, tmp_path):
    """A copy of the directories, for a test to damage."""
    return shutil.copytree(originals[0], tmp_path / "hub")


def arguments(hub, out, *more, without=(), preset="qwen3-0.6b"):
    sources = [word for part in HUB if part not in without for word in (f"--{part.replace('_', '-')}", str(hub / part))]
    return ["weights", "--preset", preset, "--out", str(out), *sources, *more]


def same_llm(ours, theirs):
    ids = torch.randint(0, theirs.config.vocab_size, (2, 9))
    torch.testing.assert_close(ours.logits(ours.llm(ids)), theirs(ids).logits, **CLOSE)


# ---- what comes out computes what went in ------------------------------------------------------------------------

def test_the_checkpoint_computes_what_its_sources_compute(originals, tmp_path, capsys):
    root, models = originals
    prepare.main(arguments(root, tmp_path / "out"))
    printed = capsys.readouterr().out
    ours = ExOmni.from_pretrained(tmp_path / "out")
    same_llm(ours, models["llm"])
    mel = torch.randn(2, 128, 100)
    expected = models["speech_encoder"].model.encoder(mel).last_hidden_state
    torch.testing.assert_close(ours.speech_encoder(mel), expected, **CLOSE)
    ids = torch.randint(0, 300, (2, 7))
    torch.testing.assert_close(ours.speech_generator.llm(ids), models["speech_generator"].model(ids)[0], **CLOSE)
    wave = torch.randn(20_000).clamp(-1, 1)
    seen = SpeechTokenizer.from_pretrained(tmp_path / "out" / "speech_tokenizer").encode(wave)
    assert torch.equal(seen, models["speech_tokenizer"].encode(wave))

    golden = tmp_path / "golden"
    disk.write_json(golden / "config.json", golden_decoder_config())
    for part, state in zip(("flow", "hift"), golden_decoder_weights()):
        save_file(state, golden / f"{part}.safetensors")
    golden, units = SpeechDecoder.from_pretrained(golden), torch.arange(0, UNITS, 12)
    assert torch.equal(ours.speech_decoder.mel(units), golden.mel(units))
    assert torch.equal(ours.speech_decoder.decode(units), golden.decode(units))
    assert ours.speech_decoder.config == golden.config

    assert ours.config.stop_ids == (258, 256) and ours.config.top_p == 0.8
    assert ours.config.generator.unit_vocab == UNITS
    assert ours.tokenizer.encode("hello") == Tokenizer.from_pretrained(root / "llm").encode("hello")
    new = [name for name in ours.state_dict() if not name.startswith("speech_generator.llm.")
           and name.startswith(("speech_projector.", "speech_generator.", "face_decoder."))]
    summary = printed.splitlines()[-1]
    assert summary.startswith(f"wrote {tmp_path / 'out'} (") and f"newly initialised {len(new)}" in summary
    assert "new  speech_projector.linear1 " in printed
    assert f" {sum(p.numel() for p in ours.speech_generator.tqgf.parameters()):,} parameters" in printed


def test_every_file_tensor_is_counted(originals, tmp_path, capsys):
    root, models = originals
    prepare.main(arguments(root, tmp_path / "out"))
    summary = capsys.readouterr().out.splitlines()[-1]
    counts = [int(summary.split(word)[1].split()[0].strip(",(")) for word in ("loaded ", "ignored ", "initialised ")]
    in_files = sum(len(weights.shapes(root / part / "model.safetensors")) for part in HUB if part != "speech_decoder")
    flow, hift = golden_decoder_weights()
    in_files += len(flow) + len(hift) - sum(name.endswith("weight_g") for name in hift) + 1     # 1: the epoch
    assert counts[0] + counts[1] == in_files
    written = ExOmni.from_pretrained(tmp_path / "out").state_dict()
    assert counts[0] + counts[2] == len(written) + len(models["speech_tokenizer"].state_dict())


@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_language_model_becomes_shards(originals, tmp_path, monkeypatch, tied):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 200_000)
    theirs = qwen(tmp_path / "llm", tied, shard="60KB")
    if tied:                                                # hub files of tied models often hold it twice
        change(tmp_path / "llm", lambda state: state.update({"lm_head.weight": theirs.lm_head.weight.detach().clone()}))
    assert len(list((tmp_path / "llm").glob("model-*.safetensors"))) > 1
    prepare.main(arguments(originals[0], tmp_path / "out", "--llm", str(tmp_path / "llm"), without=["llm"]))
    shards = sorted((tmp_path / "out").glob("model*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    sizes = [sum(t.nbytes for t in load_file(path).values()) for path in shards]
    assert all(size <= 200_000 or len(load_file(path)) == 1 for size, path in zip(sizes, shards))
    ours = ExOmni.from_pretrained(tmp_path / "out")
    assert (ours.lm_head is None) == tied
    same_llm(ours, theirs)


def test_a_bare_whisper_bare_tokenizer_and_nested_legacy_decoder_files(originals, tmp_path):
    theirs = whisper(tmp_path / "speech_encoder", transformers.WhisperModel)
    tokenizer = speech_tokenizer(tmp_path / "speech_tokenizer", prefixed=False)
    speech_decoder(tmp_path / "speech_decoder", nested="state_dict")
    for part in ("llm", "speech_generator"):
        shutil.copytree(originals[0] / part, tmp_path / part)
    prepare.main(arguments(tmp_path, tmp_path / "out"))
    ours, mel = ExOmni.from_pretrained(tmp_path / "out"), torch.randn(1, 128, 100)
    torch.testing.assert_close(ours.speech_encoder(mel), theirs.encoder(mel).last_hidden_state, **CLOSE)
    wave = torch.randn(9000).clamp(-1, 1)
    seen = SpeechTokenizer.from_pretrained(tmp_path / "out" / "speech_tokenizer").encode(wave)
    assert torch.equal(seen, tokenizer.encode(wave))


def test_converted_speech_parts_serve_the_next_checkpoint(originals, tmp_path):
    prepare.main(arguments(originals[0], tmp_path / "one"))
    prepare.main(arguments(originals[0], tmp_path / "two", "--speech-decoder", str(tmp_path / "one/speech_decoder"),
                           "--speech-tokenizer", str(tmp_path / "one/speech_tokenizer")))
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_the_seed_decides_the_new_modules_and_nothing_else(originals, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        prepare.main(arguments(originals[0], tmp_path / name, "--seed", seed))
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    differ = {name for name in a if not torch.equal(a[name], c[name])}
    assert {"model.speech_projector.linear1.weight", "model.speech_generator.speech_embedding.weight"} <= differ
    new = ("model.speech_projector.", "model.speech_generator.", "model.blendshape_generator.")
    assert all(name.startswith(new) and not name.startswith("model.speech_generator.llm.") for name in differ)


def test_dtype_is_the_language_models_unless_given(originals, tmp_path):
    directory = tmp_path / "half"
    transformers.Qwen3ForCausalLM.from_pretrained(originals[0] / "llm", dtype=torch.bfloat16).save_pretrained(directory)
    prepare.main(arguments(originals[0], tmp_path / "a", "--llm", str(directory)))
    prepare.main(arguments(originals[0], tmp_path / "b", "--llm", str(directory), "--dtype", "float32"))
    for name, dtype in (("a", torch.bfloat16), ("b", torch.float32)):
        assert {t.dtype for t in load_file(tmp_path / name / "model.safetensors").values()} == {dtype}
        assert ExOmni.from_pretrained(tmp_path / name).llm.norm.weight.dtype == dtype


@pytest.mark.parametrize("complete", [True, False])
def test_the_official_release(originals, tmp_path, capsys, complete):
    """complete: with the directories that config.json names for the geometry of Whisper and the backbone."""
    release = shutil.copytree(RELEASE, tmp_path / "release")
    command = ["weights", "--release", str(release), "--out", str(tmp_path / "out")]
    if not complete:
        for part, name in (("speech-encoder", "whisper"), ("speech-generator", "speech_generator")):
            shutil.move(release / name, tmp_path / name)
            command += [f"--{part}", str(tmp_path / name)]
    speech_tokenizer(tmp_path / "tokenizer", units=70)
    speech_decoder(tmp_path / "decoder", units=70)
    prepare.main([*command, "--speech-tokenizer", str(tmp_path / "tokenizer"),
                  "--speech-decoder", str(tmp_path / "decoder")])
    out = capsys.readouterr().out
    assert "newly initialised 0" in out and "inv_freq" in out
    ours, theirs = ExOmni.from_pretrained(tmp_path / "out"), ExOmni.from_pretrained(RELEASE)
    assert ours.config == theirs.config and ours.speech_decoder is not None
    seen = ours.state_dict()
    assert all(torch.equal(seen[name], t) for name, t in theirs.state_dict().items())


# ---- fetching ---------------------------------------------------------------------------------------------------

COMMITS = {name: format(n + 1, "x") * 40 for n, name in enumerate(dict.fromkeys(HUB.values()))}


@pytest.fixture
def downloads(hub, monkeypatch):
    """A hub with one commit of each repository; what was asked of it: (repository, revision, patterns)."""
    asked, commits = [], dict(COMMITS)
    shutil.rmtree(hub / "speech_generator")                 # the 0.6B is both

    def download(repository, *, revision=None, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        part = next(part for part, name in HUB.items() if name == repository)
        snapshot = hub / "snapshots" / part / (revision or commits[repository])
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        if not snapshot.exists():
            snapshot.symlink_to(hub / part)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked, commits


FETCH = ["weights", "--preset", "qwen3-0.6b", "--out"]


def test_defaults_are_fetched_from_the_hub_by_name(downloads, tmp_path):
    prepare.main([*FETCH, str(tmp_path / "out")])
    wanted = {}
    for repository, _, patterns in downloads[0]:
        wanted.setdefault(repository, set()).update(patterns)
    assert set(wanted) == set(HUB.values())
    for patterns in wanted.values():
        needed = ["config.json", "config.yaml", "tokenizer.json", "merges.txt", "model.safetensors", "flow.pt",
                  "model-00001-of-00005.safetensors"]
        spared = ["pytorch_model.bin", "model.fp32-00001-of-00002.safetensors", "flax_model.msgpack", "campplus.onnx"]
        filtered = huggingface_hub.utils.filter_repo_objects(needed + spared, allow_patterns=list(patterns))
        assert list(filtered) == needed


def test_what_was_fetched_is_printed_and_written_down(downloads, hub, tmp_path, capsys):
    prepare.main([*FETCH, str(tmp_path / "out"), "--speech-decoder", str(hub / "speech_decoder")])
    printed, record = capsys.readouterr().out, disk.read_json(tmp_path / "out" / "sources.json")
    assert record.keys() == HUB.keys() - {"speech_decoder"}
    for part, entry in record.items():
        assert (entry["repository"], entry["commit"]) == (HUB[part], COMMITS[HUB[part]])
        assert f"{HUB[part]} at commit {COMMITS[HUB[part]]}" in printed
    assert record["llm"]["files"]["model.safetensors"] == (hub / "llm" / "model.safetensors").stat().st_size
    asked = downloads[0]
    assert all(revision == COMMITS[name] for name, revision, patterns in asked if "*.pt" in patterns), "of one commit"


def test_a_second_fetch_does_not_take_another_commit_in_silence(downloads, tmp_path, capsys):
    out, (asked, commits) = tmp_path / "out", downloads
    prepare.main([*FETCH, str(out)])
    before, old, new = files(out), COMMITS[HUB["speech_encoder"]], "f" * 40
    commits[HUB["speech_encoder"]] = new
    asked.clear()
    error = refused(capsys, *FETCH, out, "--overwrite")
    assert f"is at commit {new} now" in error and f"--revision speech_encoder={old}" in error and files(out) == before
    assert (HUB["speech_encoder"], new, published.hub.WANTED) not in asked, "nothing large was fetched in vain"
    prepare.main([*FETCH, str(out), "--overwrite", "--revision", f"speech-encoder={old}"])
    assert files(out) == before
    recorded, record = published.hub.read_record(out), {}
    published.hub.fetch("speech_encoder", HUB["speech_encoder"], new, recorded, record)
    assert record["speech_encoder"]["commit"] == new != recorded["speech_encoder"][1], "where it is asked for"


def test_the_installed_hub_library_names_the_commit(tmp_path, monkeypatch, capsys):
    """huggingface_hub itself, without a network, on a cache as it leaves it."""
    cache, commit = tmp_path / "cache", "c" * 40
    snapshot = cache / "models--owner--name" / "snapshots" / commit
    qwen(snapshot, True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", commit):
        record = {}
        assert published.hub.fetch("llm", "owner/name", revision, {}, record) == snapshot
        assert record["llm"]["commit"] == commit and "model.safetensors" in record["llm"]["files"]
    with pytest.raises(OSError, match="owner/name is not a directory here and could not be downloaded at 1234 "):
        published.hub.fetch("llm", "owner/name", "1234", {}, {})
    with pytest.raises(ValueError, match="is a directory here, a repository has commits"):
        published.hub.fetch("llm", str(snapshot), "main", {}, {})


@pytest.mark.parametrize("size", ["0.6B", "1.7B", "4B", "8B"])
def test_each_preset_has_its_language_model(tmp_path, monkeypatch, capsys, size):
    asked = []

    def download(repository, **_):
        asked.append(repository)
        raise OSError("no network\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    error = refused(capsys, "weights", "--preset", f"qwen3-{size.lower()}", "--out", tmp_path / "out")
    assert asked == [f"Qwen/Qwen3-{size}"] and asked[0] in error and "no network" in error
    assert not list(tmp_path.iterdir())


def test_without_huggingface_hub_a_hint(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    error = refused(capsys, *arguments(hub, tmp_path / "out", without=["llm"]))
    assert "pip install huggingface_hub" in error
    prepare.main(arguments(hub, tmp_path / "out"))          # local directories do not need it


def test_a_mistyped_directory_is_not_looked_up(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("not a repository's name"))
    assert "/no/such/place" in refused(capsys, *arguments(hub, tmp_path / "out", "--llm", "/no/such/place"))


# ---- what is wrong is said in one line, and nothing is written ---------------------------------------------------

def edit(path, **values):
    disk.write_json(path, disk.read_json(path) | values)


def damage_llm(**tensors):
    return lambda hub: change(hub / "llm", lambda state: state.update(tensors))


def damage_whisper(**tensors):
    return lambda hub: change(hub / "speech_encoder", lambda state: state.update(tensors))


def without(part, name):
    """Remove a file, or a tensor of the part's safetensors file."""
    def harm(hub):
        path = hub / part / name
        path.unlink() if path.exists() else change(hub / part, lambda state: state.pop(name))
    return harm


def truncated(name):
    return lambda hub: os.truncate(hub / name, 5000)


def torch_file(name, content):
    return lambda hub: torch.save(content, hub / "speech_decoder" / name)


def config_yaml(text):
    return lambda hub: (hub / "speech_decoder" / "config.yaml").write_text(text)


def vocabularies(llm, generator):
    def harm(hub):
        for part, vocab in (("llm", llm), ("speech_generator", generator)):
            shutil.rmtree(hub / part)
            qwen(hub / part, part != "llm", vocab=vocab)
        write_tiny(hub / "llm")
        disk.write_json(hub / "llm" / "generation_config.json", {"eos_token_id": 1})
    return harm


CONV = "model.encoder.conv1.bias"
FLOW = "speech_decoder/flow.pt"


def quantised(part, name):
    return lambda hub: change(hub / part, lambda state: state.update({name: torch.zeros(3)}))


def shards(hub):
    shutil.rmtree(hub / "llm")
    qwen(hub / "llm", False, shard="60KB")
    next(hub.glob("llm/model-00002-of-*")).unlink()


def adapter(hub):
    (hub / "llm/config.json").rename(hub / "llm/adapter_config.json")


def rezipped(hub):
    """flow.pt compressed: a small file that would be a large one in memory."""
    with zipfile.ZipFile(hub / FLOW) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(hub / FLOW, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def flipped(hub):
    content = bytearray((hub / FLOW).read_bytes())
    content[len(content) // 2] ^= 1
    (hub / FLOW).write_bytes(content)


ALIASES = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
REFERENCES = "a: [x]\n" + "".join(f"{b}: [{', '.join([f'!ref <{a}>'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
DAMAGES = {
    "AWQ": (quantised("llm", "model.layers.0.mlp.up_proj.qweight"), "quantised with AWQ or GPTQ"),
    "FP8": (quantised("speech_generator", "model.layers.0.mlp.up_proj.weight_scale_inv"), "quantised to FP8"),
    "bitsandbytes": (quantised("speech_encoder", "model.encoder.layers.0.fc1.weight.absmax"), "with bitsandbytes"),
    "a quantised config": (lambda hub: edit(hub / "llm/config.json", quantization_config={"quant_method": "gptq"}),
                           "the model is quantised (gptq, by quantization_config)"),
    "a LoRA adapter": (adapter, "is a LoRA adapter"),
    "a LoRA tensor": (quantised("llm", "base_model.model.layers.0.q_proj.lora_A.weight"), "is a LoRA adapter"),
    "a missing shard": (shards, "lacks model-00002-of-0"),
    "a compressed flow.pt": (rezipped, "flow.pt is not a complete torch file"),
    "a flipped bit in flow.pt": (flipped, "flow.pt is not a complete torch file"),
    "a tensor too large": (torch_file("flow.pt", {"a": torch.zeros(1).expand(10 ** 12)}), "tensors larger than itself"),
    "names that are numbers": (torch_file("flow.pt", {1: torch.zeros(1)}), "expected a name"),
    "a sparse tensor": (torch_file("flow.pt", {"a": torch.eye(3).to_sparse()}), "expected a name and an ordinary"),
    "a yaml of aliases": (config_yaml(ALIASES + "flow: *i\nhift: 1"), "not valid yaml (alias *a in line 2"),
    "a yaml of references": (config_yaml(REFERENCES + "flow: !ref <i>\nhift: 1"), "more than 10000 values"),
    "a yaml that refers to itself": (config_yaml("flow: !ref <flow>\nhift: 1"), "refers to itself"),
    "a deep yaml": (config_yaml("flow: " + "[" * 5000), "not valid yaml"),
    "a large yaml": (config_yaml("flow: 1\n" * 30_000), "240000 bytes, expected at most 100000"),
    "a python tag": (config_yaml("flow: !!python/object/apply:os.system [exit]\nhift: 1"), "not valid yaml"),
    "an odd scalar": (config_yaml("flow: !!int x\nhift: !!timestamp y"), "not valid yaml"),
    "no file but a directory": (lambda hub: ((hub / FLOW).unlink(), (hub / FLOW).mkdir()), "flow.pt is a directory"),
    "a missing tensor": (without("llm", "model.norm.weight"), "1 missing: llm.norm.weight"),
    "a left-over tensor": (damage_llm(**{"model.visual.bias": torch.zeros(2)}), "1 left over: model.visual.bias"),
    "a wrong shape": (damage_whisper(**{CONV: torch.zeros(5)}), f"{CONV} is [5], expected [24]"),
    "a double tensor": (damage_whisper(**{"encoder.conv1.bias": torch.zeros(24)}), "stands twice"),
    "no codebook": (without("speech_tokenizer", "model.encoder.codebook.weight"), "1 missing: codebook.weight"),
    "no weights": (without("speech_generator", "model.safetensors"), "no model.safetensors"),
    "no config.json": (without("llm", "config.json"), "config.json not found"),
    "no hift.pt": (without("speech_decoder", "hift.pt"), "hift.pt not found"),
    "no config.yaml": (without("speech_decoder", "config.yaml"), "config.yaml not found"),
    "truncated safetensors": (truncated("llm/model.safetensors"), "not a complete safetensors file"),
    "truncated flow.pt": (truncated("speech_decoder/flow.pt"), "flow.pt is not a complete torch file"),
    "code in hift.pt": (torch_file("hift.pt", {"a": torch.zeros(1), "b": os.path.join}), "holds code (posixpath.join)"),
    "a list in flow.pt": (torch_file("flow.pt", [1]), "expected a dict of tensors"),
    "another flow": (torch_file("flow.pt", {"input_embedding.weight": torch.zeros(UNITS, 32)}), "missing: decoder."),
    "broken yaml": (config_yaml("flow: [1,\nhift: }"), "not valid yaml"),
    "an empty yaml": (config_yaml(""), "expected flow and hift"),
    "a yaml of something else": (config_yaml("llm: !new:x.LLM\n  size: 3"), "has llm, expected flow and hift"),
    "a dangling reference": (config_yaml("flow: !ref <a>\nhift: 1"), "refers to <a>"),
    "another vocabulary": (vocabularies(300, 310), "has 300 token ids"),
    "a tokenizer too large": (vocabularies(200, 200), "has ids up to 258, its model 200 of them"),
    "a unit too many": (lambda hub: speech_tokenizer(hub / "speech_tokenizer", UNITS + 1), f"has {UNITS + 1} units"),
    "no Whisper": (lambda hub: shutil.copy(hub / "llm/config.json", hub / "speech_encoder"), "model_type is 'qwen3', expected one of 'whisper'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_line_and_nothing_written(hub, tmp_path, capsys, damage):
    harm, expected = DAMAGES[damage]
    harm(hub)
    assert expected in refused(capsys, *arguments(hub, tmp_path / "new" / "out"))
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_existing_output_is_replaced_only_on_request_and_only_by_a_complete_one(hub, tmp_path, capsys):
    out = tmp_path / "place" / "out"
    out.mkdir(parents=True)                                 # an empty directory is no obstacle
    prepare.main(arguments(hub, out))
    before = files(out)
    assert "--overwrite" in refused(capsys, *arguments(hub, out, "--seed", "1"))
    (hub / "speech_decoder/hift.pt").rename(hub / "hift.pt")
    refused(capsys, *arguments(hub, out, "--overwrite"))
    assert files(out) == before
    (hub / "hift.pt").rename(hub / "speech_decoder/hift.pt")
    (out / "model-00009-of-00009.safetensors").write_text("of an older checkpoint")
    prepare.main(arguments(hub, out, "--seed", "1", "--overwrite"))
    after = files(out)
    assert after.keys() == before.keys() and after != before
    assert list(out.parent.iterdir()) == [out]
    ExOmni.from_pretrained(out)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_what_was_there(hub, tmp_path, capsys, monkeypatch, failure):
    out = tmp_path / "place" / "out"
    prepare.main(arguments(hub, out))
    before = files(out)

    def fail(*_):
        raise failure

    monkeypatch.setattr(published, "write_checkpoint", fail)
    with pytest.raises(SystemExit) as stopped:
        prepare.main(arguments(hub, out, "--overwrite"))
    assert stopped.value.code == (130 if isinstance(failure, KeyboardInterrupt) else 2)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert files(out) == before and list(out.parent.iterdir()) == [out]
