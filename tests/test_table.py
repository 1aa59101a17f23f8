"""`prepare.py corpus table`: tables in any encoding, with any delimiter; json whatever its name; odd cells."""
import gzip
import json
import re
import warnings

import pytest

import made_corpora
import prepare
from corpora import files
from data import Split
from disk import encoding_of
from published_models import refused

TEXTS = ["Grüße, wie geht's?", "naïve café", "Ça va?", "plain"]


def run(tmp_path, name: str, data: bytes, *options) -> dict:
    """The command on a table of that name -> id or number of a row: its answer; what it printed is in run.said."""
    for number in range(4):
        if not (tmp_path / f"{number}.wav").exists():
            made_corpora.write(tmp_path / f"{number}.wav", made_corpora.tone(0.3, number))
    (tmp_path / name).write_bytes(data)
    out = tmp_path / f"out {len(list(tmp_path.iterdir()))}"
    prepare.main(["corpus", "table", str(tmp_path / name), "--out", str(out), "--workers", "1", "--val", "0", *options])
    return {row["id"].removeprefix("t-"): row["answer"] for row in Split(out / "train").rows}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_a_table_is_read_in_its_own_encoding(tmp_path, encoding, ending):
    if ending == ".jsonl":
        text = "".join(json.dumps({"audio": f"{n}.wav", "text": said}, ensure_ascii=False) + "\r\n"
                       for n, said in enumerate(TEXTS))
    else:
        mark = {".csv": ",", ".tsv": "\t"}[ending]
        text = f"audio{mark}text\r\n" + "".join(f'{n}.wav{mark}"{said}"\r\n' for n, said in enumerate(TEXTS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [*run(tmp_path, f"t{ending}", text.encode(encoding)).values()] == TEXTS
    said = [str(one.message) for one in caught if "UTF-8" in str(one.message)]
    assert bool(said) == (encoding in ("cp1252", "latin-1")) and all("Windows-1252" in one for one in said)


def test_one_damaged_letter_does_not_change_the_others(tmp_path):
    text = ("audio,text\n" + "".join(f'{n}.wav,"{said}"\n' for n, said in enumerate(TEXTS))).encode()
    with pytest.warns(UserWarning, match="1 characters of it are damaged"):
        found = run(tmp_path, "t.csv", text.replace("ï".encode(), b"\xff"))
    assert [*found.values()] == [TEXTS[0], "na\ufffdve café", *TEXTS[2:]]


def test_the_encoding_of_any_size_is_found_block_by_block(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 4095 + "é".encode() + b"b" * (1 << 20) + "你".encode())
    assert encoding_of(tmp_path / "a") == "utf-8-sig"
    (tmp_path / "a").write_bytes(b"")
    assert encoding_of(tmp_path / "a") == "utf-8-sig"
    (tmp_path / "a").write_bytes(b"a" * (1 << 21) + b"\xe9t\xe9")
    with pytest.warns(UserWarning, match="a is not all UTF-8"):
        assert encoding_of(tmp_path / "a") == "cp1252"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("names", [("audio", "text"), ("Audio", " TEXT "), ("AUDIO", "Text")])
def test_delimiters_and_capitals_of_other_programs(tmp_path, mark, names):
    text = mark.join(names) + "\n" + "".join(f'{n}.wav{mark}"{said}"\n' for n, said in enumerate(TEXTS))
    assert [*run(tmp_path, "t.csv", text.encode()).values()] == TEXTS


ROWS = [{"audio": f"{n}.wav", "text": said} for n, said in enumerate(TEXTS)]


@pytest.mark.parametrize("name, text", [
    ("t.json", "\n".join(map(json.dumps, ROWS))), ("t.json", "\n\n".join(map(json.dumps, ROWS)) + "\n"),
    ("t.json", json.dumps(ROWS)), ("t.json", json.dumps(ROWS, indent=1)), ("t.json", json.dumps({"rows": ROWS})),
    ("t.json", json.dumps({"about": 3, "rows": ROWS}, indent=2) + "\n"), ("t.jsonl", json.dumps(ROWS)),
    ("t.jsonl", "\n".join(json.dumps({key.upper(): cell for key, cell in row.items()}) for row in ROWS)),
    ("t.jsonl", json.dumps(ROWS, indent=1)), ("t.jsonl", "\r\n".join(map(json.dumps, ROWS)))])
def test_json_is_read_as_what_it_holds_whatever_its_name(tmp_path, name, text):
    assert [*run(tmp_path, name, text.encode()).values()] == TEXTS


@pytest.mark.parametrize("row, why", [
    ([1, 2], "[1, 2], expected an object"), ("x", '"x", expected an object'), (None, "null, expected an object"),
    (5, "5, expected an object"), ({"text": ["a"]}, "text is \"['a']\", expected a text"),
    ({"text": {"en": "a"}}, "expected a text"), ({"text": True}, "text is 'True', expected a text"),
    ({"audio": 5, "text": "a"}, "audio is '5', expected a sound"),
    ({"audio": ["0.wav"], "text": "a"}, "expected a sound"),
    ({"audio": {"path": 7}, "text": "a"}, "a sound is '7', expected a path"), ({"id": [1], "text": "a"}, "id is '[1]'"),
    ({"text": "a", "split": 3}, "split is '3'"), ({"text": "a", "split": "dev"}, "split 'dev', expected train"),
    ({"text": "a", "audio": "0.wav", "face": 1}, "face is '1', expected a text")])
def test_cells_that_are_none_are_counted_and_named(tmp_path, capsys, row, why):
    assert run(tmp_path, "t.jsonl", (json.dumps(row) + "\n" + json.dumps(ROWS[0])).encode()) == {"2": TEXTS[0]}
    printed = capsys.readouterr().out
    assert "skipped 1: bad row, first t.jsonl line 1: " in printed and why in printed
    assert not re.search(r"\w+Error", printed), "no word of Python's"


def test_broken_json_is_counted_without_a_word_of_pythons(tmp_path, capsys):
    run(tmp_path, "t.jsonl", b'{"text": \n' + b"[" * 100_000 + b"\n" + json.dumps(ROWS[0]).encode())
    printed = capsys.readouterr().out
    assert "skipped 2: bad row, first t.jsonl line 1: no json: " in printed and "Error" not in printed


def test_numbers_are_texts_and_nan_is_nothing(tmp_path):
    rows = [{"id": 7, "text": 42}, {"id": 1.5, "text": "a", "answer": float("nan")}]
    assert run(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)).encode()) == {"7": "42", "1.5": "a"}


def test_what_is_no_text_is_refused_in_one_line(tmp_path, capsys):
    for name, data in (("a.csv", gzip.compress(b"audio,text\n0.wav,a\n")), ("b.csv", b"PK\3\4\x14\0\xff" * 9)):
        (tmp_path / name).write_bytes(data)
        assert "is no text: is it compressed, or a spreadsheet?" in refused(
            capsys, "corpus", "table", tmp_path / name, "--out", tmp_path / "out")


@pytest.mark.parametrize("text, says", [
    ("audio,text,text\n0.wav,a,b\n", "text twice: rename one"), ("sound,words\n0.wav,a\n", "columns sound, words"),
    ("", "columns none"), ("\n\n", "columns none"), ("audio|text\n0.wav|a\n", "columns audio|text")])
def test_a_header_that_does_not_fit_is_refused(tmp_path, capsys, text, says):
    (tmp_path / "t.csv").write_text(text)
    assert says in refused(capsys, "corpus", "table", tmp_path / "t.csv", "--out", tmp_path / "out")


def test_odd_sounds_are_counted(tmp_path, capsys):
    tone = made_corpora.tone(0.3, 1)
    made_corpora.write(tmp_path / "0.wav", (tone * [[1], [-1]]).T.astype("int16"))
    made_corpora.write(tmp_path / "1.wav", tone * 0)
    run(tmp_path, "t.csv", b"audio,text\n0.wav,a\n1.wav,b\n2.wav,c\n")
    printed = capsys.readouterr().out
    assert "odd 1: channels cancel, first t-1: has 2 channels" in printed
    assert "odd 1: silence, first t-2: is silent" in printed


def test_a_list_on_lines_of_any_length_is_read_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 50)
    (tmp_path / "t.jsonl").write_text(json.dumps(ROWS))
    assert [load() for _, load in files.json_rows(tmp_path / "t.jsonl")] == ROWS


def test_a_quote_that_is_never_closed_is_said_with_the_line_where_it_begins(tmp_path, capsys):
    text = 'audio,text\n0.wav,whole\n1.wav,"open\n2.wav,two\n3.wav,three\n'
    assert [*run(tmp_path, "t.csv", text.encode()).values()] == ["whole"]
    said = capsys.readouterr().out
    assert "bad row" in said and "t.csv line 3" in said and "a quote is never closed" in said


@pytest.mark.parametrize("cell", [" a/é.wav ", "\u202aa\\é.wav", "'a/é.wav'", "\u201ca/é.wav\u201d", "\ufeffa/é.wav\xa0",
                                  "a/e\u0301.wav", ".\\a\\é.wav", "file://{}/a/%C3%A9.wav", "{}/a/é.wav\r"])
def test_a_path_is_found_whatever_nobody_sees_around_it(tmp_path, cell):
    (tmp_path / "a").mkdir()
    made_corpora.write(tmp_path / "a" / "é.wav", made_corpora.tone(0.3, 0))
    row = json.dumps({"audio": cell.format(tmp_path), "text": "x", "split": " Train "})
    assert run(tmp_path, "t.jsonl", row.encode()) == {"1": "x"}


def test_a_path_that_leads_nowhere_is_said_with_what_was_tried(tmp_path, capsys):
    said = [f"t.csv line 2: audio is ' b\\\\c.wav', there is no file {tmp_path}/ b\\c.wav nor ",
            f" nor {tmp_path}/b/c.wav"]
    run(tmp_path, "t.csv", b"audio,text\n b\\c.wav,x\n0.wav,y\n")
    printed = capsys.readouterr().out
    assert all(part in printed for part in said), printed
