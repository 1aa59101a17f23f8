"""Tokenizer: which files are one, and which are damaged, foreign, or two at once."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from test_tokenizer import FORMS, assert_same_ids, directories, hf, load_edited, tiny, write_json
from tokenizer import Tokenizer
from tokenizer_files import write_tiny


def test_the_tiny_tokenizer_has_bytes_as_ids_and_no_merges(tiny, tmp_path):
    assert tiny.encode("hé") == [*"hé".encode()]
    assert (tiny.n_vocab, tiny.im_start_id, tiny.im_end_id, tiny.stop_ids) == (259, 257, 258, (258, 256))
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert_same_ids(tiny, tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


FILES = {"tokenizer.json": ["tokenizer.json"], "merges.txt": ["vocab.json", "merges.txt"],
         "qwen.tiktoken": ["qwen.tiktoken"]}


def together(directories, directory, *forms, config=True):
    """A directory with several forms of the same tokenizer, as Qwen's releases have them."""
    names = [name for form in forms for name in FILES[form]] + ["tokenizer_config.json"] * config
    for name in names:
        source = next(path / name for path in (*map(directories.get, forms), directories["merges.txt"])
                      if (path / name).exists())
        shutil.copy(source, directory)


@pytest.mark.parametrize("forms", [FORMS[:2], FORMS[1:], FORMS[::2], FORMS])
@pytest.mark.parametrize("config", [True, False])
def test_several_forms_of_one_tokenizer_are_that_one(directories, tmp_path, hf, forms, config):
    together(directories, tmp_path, *forms, config=config or forms[0] != "tokenizer.json")
    if "qwen.tiktoken" in forms:
        shutil.copy(tmp_path / "qwen.tiktoken", tmp_path / "copy.tiktoken")
    assert_same_ids(Tokenizer.from_pretrained(tmp_path), hf, count=20)


def swap_ids(path):
    """Two tokens of one file change places, and what follows from it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        vocab = json.loads(text)
        a, b = list(vocab)[-2:]
        write_json(path, vocab | {a: vocab[b], b: vocab[a]})
    else:
        lines = text.splitlines()
        (one, last), (other, before) = lines[-1].split(), lines[-2].split()
        path.write_text("\n".join([*lines[:-2], f"{one} {before}", f"{other} {last}", ""]))


def swap_merges(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:-2], lines[-1], lines[-2], ""]), encoding="utf-8")


def other_control_ids(path):
    write_json(path, {"<|im_start|>": 2258, "<|im_end|>": 2257})


@pytest.mark.parametrize("forms, name, edit, seen", [
    (FORMS[:2], "vocab.json", swap_ids, "tokenizer.json and vocab.json"),
    (FORMS[:2], "merges.txt", swap_merges, "tokenizer.json and vocab.json .their merges have another order"),
    (FORMS[1:], "qwen.tiktoken", swap_ids, "vocab.json and qwen.tiktoken"),
    (FORMS[::2], "qwen.tiktoken", swap_ids, "tokenizer.json and qwen.tiktoken"),
    (FORMS[2:], "other.tiktoken", lambda path: (shutil.copy(path.with_name("qwen.tiktoken"), path), swap_ids(path)),
     "other.tiktoken and qwen.tiktoken"),
    (FORMS[:1], "added_tokens.json", other_control_ids, "tokenizer.json and added_tokens.json or ")])
def test_two_tokenizers_in_one_directory_are_refused_by_name(directories, tmp_path, forms, name, edit, seen):
    together(directories, tmp_path, *forms, config=name != "added_tokens.json")
    edit(tmp_path / name)
    with pytest.raises(ValueError, match=f"has two tokenizers, {seen}.*: keep the weights' own"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_foreign_tokenizer_beside_ours_is_refused_by_name(directories, tmp_path):
    write_tiny(tmp_path)
    (tmp_path / "qwen.tiktoken").write_bytes((directories["qwen.tiktoken"] / "qwen.tiktoken").read_bytes())
    with pytest.raises(ValueError, match="tokenizer .*qwen.tiktoken: id 256 is both the added token"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_bare_tiktoken_file_gets_the_three_control_tokens_of_qwen(directories, tmp_path):
    (tmp_path / "qwen.tiktoken").write_bytes((directories["qwen.tiktoken"] / "qwen.tiktoken").read_bytes())
    bare = Tokenizer.from_pretrained(tmp_path)
    assert (bare.n_vocab, bare.im_start_id, bare.stop_ids) == (2259, 2257, (2258, 2256))


def test_added_tokens_json_gives_ids_without_a_tokenizer_config(directories, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((directories["merges.txt"] / name).read_bytes())
    with pytest.raises(ValueError, match="lacks <|im_start|> and <|im_end|>"):
        Tokenizer.from_pretrained(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"<|im_start|>": 2256, "<|im_end|>": 2257, "<more>": 3001})
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert (loaded.n_vocab, loaded.im_start_id, loaded.stop_ids) == (3002, 2256, (2257,))


def test_a_directory_without_a_tokenizer_is_reported_with_what_it_holds(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory.*expected tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="it is empty"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").touch()
    (tmp_path / "vocab.json").touch()
    with pytest.raises(FileNotFoundError, match="config.json, vocab.json.*expected tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content, seen", [
    ("", "is not valid json"), ('{"model": {"vocab"', "is not valid json"), ("\udcff", "is not valid json"),
    ("[]", "holds a json list"), ("{}", "field model is missing, expected an object"),
    ('{"model": {"type": "Unigram", "vocab": []}}', "field model.type is 'Unigram', expected one of 'BPE'")])
def test_a_damaged_or_foreign_tokenizer_json_is_refused_in_one_line(tmp_path, content, seen):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=seen) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keys, value, seen", [
    (["normalizer"], {"type": "Lowercase"}, "Lowercase.*expected null or NFC"),
    (["pre_tokenizer"], {"type": "Whitespace"}, "Whitespace.*expected ByteLevel"),
    (["pre_tokenizer"], None, "null, expected ByteLevel"),
    (["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], r"\p{L}+|\s*", "split pattern matches the empty text"),
    (["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], "$", "split pattern matches the empty text"),
    (["pre_tokenizer", "pretokenizers", 0, "behavior"], "Removed", "Removed.*expected ByteLevel"),
    (["model", "dropout"], 0.1, "dropout = 0.1, expected none"),
    (["model", "end_of_word_suffix"], "</w>", "end_of_word_suffix"),
    (["model", "merges"], [["a", "b", "c"]], "not of two tokens"),
    (["model", "merges"], [["a", "nonsense"]], "'nonsense', which is no token"),
    (["model", "vocab", "▁the"], 2300, "'▁', which stands for no byte"),
    (["added_tokens"], [], "lacks <|im_start|> and <|im_end|>"),
    (["added_tokens", 1, "id"], 5, "'<|im_start|>' and a token of plain text"),
])
def test_an_unsupported_tokenizer_json_is_refused_in_one_line(hf, tmp_path, keys, value, seen):
    spec = json.loads(hf.to_str())
    place = spec
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    write_json(tmp_path / "tokenizer.json", spec)
    with pytest.raises(ValueError, match=seen.replace("|", r"\|")) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_all_bytes_and_merges_is_refused(directories, tmp_path):
    spec = json.loads((directories["tokenizer.json"] / "tokenizer.json").read_text(encoding="utf-8"))
    for token in ("A", "".join(spec["model"]["merges"][-1])):
        vocab = {text: i for text, i in spec["model"]["vocab"].items() if text != token}
        write_json(tmp_path / "tokenizer.json", {**spec, "model": {**spec["model"], "vocab": vocab}})
        with pytest.raises(ValueError, match="is no (ordinary )?token of the vocabulary"):
            Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "qwen.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(ValueError, match="255 of the 256 byte tokens are missing, the first is byte 0x00"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("line", ["version https://git-lfs.github.com/spec/v1", "IQ==", "IQ== one", "I! 3"])
def test_a_damaged_tiktoken_file_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "qwen.tiktoken").write_text(f"IQ== 0\n{line}\n")
    with pytest.raises(ValueError, match='line 2 is .*expected "base64 rank"'):
        Tokenizer.from_pretrained(tmp_path)


def test_importing_the_tokenizer_does_not_import_torch():
    code = "import sys, tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def changed(*keys):
    """An edit of the json in a file: the last of `keys` goes where the others lead."""
    def edit(path):
        spec = place = json.loads(path.read_text(encoding="utf-8"))
        for key in keys[:-2]:
            place = place[key]
        place[keys[-2]] = keys[-1]
        write_json(path, spec)
    return edit


def of_bytes(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def lines_of(change):
    def edit(path):
        lines = path.read_bytes().splitlines()
        change(lines)
        path.write_bytes(b"\n".join(lines) + b"\n")
    return edit


def without_last(path):
    return dict(list(json.loads(path.read_text(encoding="utf-8")).items())[:-1])


RANKS = "qwen.tiktoken", "qwen.tiktoken"


@pytest.mark.parametrize("form, name, edit, seen", [
    (FORMS[0], "tokenizer.json", changed("model", []), "field model is a list of 0, expected an object"),
    (FORMS[0], "tokenizer.json", changed("model", "vocab", [1]), "field model.vocab is a list of 1"),
    (FORMS[0], "tokenizer.json", changed("model", "vocab", "A", "32"), "has the id '32', expected a whole"),
    (FORMS[0], "tokenizer.json", changed("model", "vocab", "A", None), "has the id None, expected a whole number"),
    (FORMS[0], "tokenizer.json", changed("model", "vocab", "A", -1), "has the id -1, expected a whole number"),
    (FORMS[0], "tokenizer.json", changed("model", "vocab", "A", True), "has the id True, expected a whole number"),
    (FORMS[0], "tokenizer.json", changed("model", "vocab", "A", 1 << 40), "has the id 1099511627776, expected"),
    (FORMS[0], "tokenizer.json", changed("model", "vocab", "A", 7), "two tokens have the same id"),
    (FORMS[0], "tokenizer.json", changed("model", "merges", 5), "field model.merges is 5, expected a list"),
    (FORMS[0], "tokenizer.json", changed("model", "merges", 0, 5), "the merge 5 is not of two tokens"),
    (FORMS[0], "tokenizer.json", changed("model", "merges", 0, [["a"], 1]), "is not of two tokens"),
    (FORMS[0], "tokenizer.json", changed("added_tokens", {}), "field added_tokens is an object of 0, expected a"),
    (FORMS[0], "tokenizer.json", changed("added_tokens", 0, "x"), r"field added_tokens\[0\] is 'x', expected an"),
    (FORMS[0], "tokenizer.json", changed("added_tokens", 0, "id", "9"), r"added_tokens\[0\].id is '9', expected"),
    (FORMS[0], "tokenizer.json", changed("added_tokens", 0, "id", -9), r"added_tokens\[0\].id is -9, expected"),
    (FORMS[0], "tokenizer.json", changed("added_tokens", 0, "content", None), r"\[0\].content is None, expected a"),
    (FORMS[0], "tokenizer.json", changed("added_tokens", 0, "special", "no"), r"\[0\].special is 'no', expected"),
    (FORMS[0], "tokenizer.json", changed("added_tokens", 0, "id", 2257), "two of the added_tokens have the same id"),
    (FORMS[0], "tokenizer.json", changed("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", 5), "expected Byte"),
    (FORMS[0], "tokenizer.json", changed("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", "("),
     "its split pattern is no regular expression"),
    ("merges.txt", "vocab.json", changed("A", "32"), "has the id '32', expected a whole number"),
    ("merges.txt", "vocab.json", of_bytes(lambda data: data[:-9]), "vocab.json is not valid json"),
    ("merges.txt", "merges.txt", of_bytes(lambda data: data[:40] + b"\xff\xfe" + data[40:]), "merges.txt is not UTF-8"),
    ("merges.txt", "merges.txt", of_bytes(lambda data: data + b"a b c\n"), "not of two tokens"),
    ("merges.txt", "tokenizer_config.json", changed("added_tokens_decoder", []), "added_tokens_decoder is a list of 0"),
    ("merges.txt", "tokenizer_config.json", changed("added_tokens_decoder", "2257", "x"), "added_tokens_decoder.2257"),
    ("merges.txt", "tokenizer_config.json", changed("added_tokens_decoder", "x", {}), "added_tokens_decoder.x.id is '"),
    ("merges.txt", "tokenizer_config.json", changed("added_tokens_decoder", "2257", {}), "2257.content is missing"),
    ("merges.txt", "added_tokens.json", lambda path: write_json(path, {"<x>": [1]}), "field <x> is a list of 1, expec"),
    (*RANKS, of_bytes(lambda data: data + b"QUFB -1\n"), "line 2257 has the rank -1 after 2255"),
    (*RANKS, of_bytes(lambda data: data + b"QUFB 3\n"), "line 2257 has the rank 3 after 2255"),
    (*RANKS, of_bytes(lambda data: b"\n".join(data.split(b"\n")[:-3])), "no token has the id 2254"),
    (*RANKS, lines_of(lambda lines: lines.pop(700)), "no token has the id 700|no two earlier"),
    (*RANKS, lines_of(lambda lines: lines.insert(300, lines.pop(400))), "line 301 has "),
    (*RANKS, lines_of(lambda lines: lines.append(lines[400].split()[0] + b" 2300")), "once mor"),
    (*RANKS, lines_of(lambda lines: lines.append(b"IQ== 4294967296")), "has the rank 429496729"),
    (*RANKS, lines_of(lambda lines: lines.__setitem__(2250, b"AAECAwQ= 2250")), "which no two ea"),
    (*RANKS, lines_of(lambda lines: lines.__setitem__(0, b"IR== 0")), "line 1 is 'IR== 0', expe"),
    ("merges.txt", "vocab.json", lambda path: write_json(path, without_last(path)), "is no token|no ordinary token"),
    ("merges.txt", "merges.txt", lines_of(lambda lines: lines.pop()), "1 tokens of the vocabulary, .* by no merge"),
    ("merges.txt", "merges.txt", of_bytes(lambda data: b"#version: 0.2\n"), "2000 tokens of the vocabulary"),
    (FORMS[0], "tokenizer.json", changed("model", "vocab", "A", 9999), "no token has the id 32, expected one for each"),
    (FORMS[0], "tokenizer.json", changed("added_tokens", 3, "content", "<|im_end|>"), "has two ids, '<.im_end.>' is"),
    (*RANKS, of_bytes(lambda data: data + b"\xff"), "qwen.tiktoken is not UTF-8"),
])
def test_a_damaged_file_is_refused_in_one_line(directories, tmp_path, form, name, edit, seen):
    shutil.copytree(directories[form], tmp_path, dirs_exist_ok=True)
    edit(tmp_path / name)
    with pytest.raises(ValueError, match=seen) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(directories, tmp_path, hf, form):
    shutil.copytree(directories[form], tmp_path, dirs_exist_ok=True)
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert_same_ids(Tokenizer.from_pretrained(tmp_path), hf, count=20)
