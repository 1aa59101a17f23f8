"""Readers of tables with columns for sound and text: csv, jsonl or parquet. Any corpus can be written as one. See
corpus.py.
"""
import csv
import warnings
from functools import partial
from pathlib import Path

from corpora.corpus import asr, spoken, user
from corpora.files import AROUND, fail, find, json_rows, located
from corpora.sound import Clip, Skip, Sound
from disk import first_duplicate, open_text

COLUMNS = ("id", "audio", "text", "answer", "answer_audio", "face", "speaker", "split")
# Types of the cells in a row of json or parquet.
KINDS = dict.fromkeys(("id", "text", "answer"), (str, int, float)) | {"face": (str,), "split": (str,)} | dict.fromkeys(
    ("audio", "answer_audio"), (str, bytes, dict))
ROWS = 16                   # rows of a parquet file in memory at once; they may contain the sound


def table(source: Path, args):
    """A table of one's own.

        SOURCE.csv, SOURCE.tsv      a header with some of: id, audio, text, answer, answer_audio, face, speaker, split
        SOURCE.jsonl, SOURCE.json   lines, or a list, of objects with these keys

    What a row becomes follows from what it has:

        audio, text                             asr         text is what is said
        audio, answer                           qa          text, if it is there too, is what is asked
        text, answer                            chat, qa    qa where answer_audio is there
        text or answer, answer_audio            tts         read aloud by the voice of the answers
        text or answer, answer_audio, face      tts, face   audio stands for answer_audio where that is missing
        text or answer                          tts         a text to be spoken by another command
        audio, text, answer_audio               asr, tts

    audio, answer_audio and face are paths from the directory of SOURCE, or from --root. split is train, val or test. id
    is the row's number where it is missing. A csv may have semicolons or tabs. Other columns are kept with each sample.
    """
    for path in find(source, ".csv", ".tsv", ".jsonl", ".json") if source.is_file() else ():
        rows = csv_rows(path) if path.suffix.lower() in (".csv", ".tsv") else json_rows(path)
        for number, (where, load) in enumerate(rows, 1):
            yield where, partial(table_clip, load, f"{path.stem}-{number}", args.root or path.parent,
                                 {"fps": args.fps, "order": args.order})


def csv_rows(path: Path):
    """Yield the rows of a table, like files.json_rows. Raises ValueError if its header has no column for sound or text,
    or one name twice."""
    with warnings.catch_warnings(record=True) as warned:                # a refused file gives its error alone
        warnings.simplefilter("always")
        opened = open_text(path)
    with opened as file:
        lines = (line.replace("\0", "") for line in file)
        first = next(lines, "")
        header, delimiter = max(((columns(first, mark), mark) for mark in "\t,;"),
                                key=lambda one: (len(set(one[0]) & set(COLUMNS)), len(one[0])))
        twice = first_duplicate(filter(None, header))
        if not "".join(header).isprintable():
            raise ValueError(f"{path} is no text: is it compressed, or a spreadsheet? Unpack it, or save it as csv")
        if twice or not set(header) & {"audio", "text", "answer", "answer_audio"}:
            raise ValueError(f"{path} has the columns {', '.join(header)[:200] or 'none'}, " + (
                f"{twice} twice: rename one" if twice else f"expected some of {', '.join(COLUMNS)}"))
        for each in warned:
            warnings.warn(each.message, stacklevel=2)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)      # a quote that is never closed is an error
        while True:
            begun = rows.line_num + 2                                   # line number in the file, header included
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                open_quote = "unexpected end" in str(error)
                yield f"{path.name} line {begun}", partial(
                    fail, "bad row", "a quote is never closed, all that follows is lost" if open_quote else error)
                continue
            if cells:
                yield f"{path.name} line {rows.line_num + 1}", partial(named, header, cells)


def columns(line: str, delimiter: str) -> list:
    """The names in the first line of a table, known ones in lower case; [] if it is not csv."""
    try:
        names = [name.strip(AROUND) for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []
    return [name.lower() if name.lower() in COLUMNS else name for name in names]


def named(header: list, cells: list) -> dict:
    """{column: cell} of a row, without empty cells. Raises Skip if it has more cells than the header."""
    if len(cells) > len(header):
        raise Skip("bad row", f"{len(cells)} cells, expected {len(header)}")
    return {name: cell for name, cell in zip(header, cells) if cell.strip()}


def table_clip(load, name: str, root: Path, form: dict) -> Clip:
    """The clip of a row, as described in `table`. form: arguments of read_track for its face."""
    row = {key.lower() if key.lower() in COLUMNS else key: value for key, value in load().items()
           if value is not None and value != "" and (value == value or key not in COLUMNS)}     # pandas writes NaN
    for key, kinds in KINDS.items():
        if key in row and (isinstance(row[key], bool) or not isinstance(row[key], kinds)):
            what = "sound" if bytes in kinds else "text"
            raise Skip("bad row", f"{key} is {str(row[key])[:60]!r}, expected a {what}")
    name = str(row.pop("id", name))
    text, answer = (str(row.pop(key, "")).strip() for key in ("text", "answer"))
    audio, reply = (sound_of(row.pop(key, None), root, name, key) for key in ("audio", "answer_audio"))
    face, split = row.pop("face", "").strip(AROUND), row.pop("split", "").strip(AROUND).lower() or None
    if split not in (None, "train", "val", "test"):
        raise Skip("bad row", f"split {split!r}, expected train, val or test")
    if face and not reply:
        audio, reply = None, audio
    if face and not reply:
        raise Skip("missing sound", f"{name} has a face without a sound")
    if answer and (audio or text):
        question = user(None) if audio else user(text)
        rows = [{"task": "qa" if audio or reply else "chat", "messages": [question], "answer": answer}]
    else:
        words = answer or text
        rows = [asr(name, words)] if audio else []
        rows += [spoken(name, words)] if words and (reply or not audio) else []
        rows += [spoken(name, words, "face")] if face else []
    if not rows:
        raise Skip("empty text", name)
    about = row | ({"text": text} if answer and text else {})
    return Clip(name, rows, audio=audio, answer_audio=reply, face_form=form, split=split,
                face=located(face, root, "face") if face else None, about=about)


def sound_of(cell, root: Path, name: str, column: str):
    """A cell -> its Sound, or None if it is empty. It may be a path, the bytes of a sound file, or {bytes, path} as
    `datasets` writes them. Raises Skip."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not isinstance(cell, (str, bytes, bytearray, type(None))):
        raise Skip("bad row", f"a sound is {str(cell)[:60]!r}, expected a path or bytes")
    if isinstance(cell, (bytes, bytearray)):
        return Sound(name, data=bytes(cell))
    return Sound(located(cell, root, column)) if cell and cell.strip(AROUND) else None


def parquet(source: Path, args):
    """VoiceAssistant-400K, UltraVoice, InstructS2S-200K and other sets in parquet, as the Hugging Face hub holds them.

        SOURCE, or SOURCE/**/*.parquet      columns that the options name; sounds are paths, bytes, or {bytes, path}

        --question-audio question_audio --answer answer [--answer-audio ...] [--question ...] [--id ...]

    Without --answer, --question is the transcript of its audio. A row's id is its file and number where --id is
    missing. Needs `pip install pyarrow`.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise OSError("`pip install pyarrow` to read parquet") from None
    names = {"audio": args.question_audio, "text": args.question, "answer": args.answer,
             "answer_audio": args.answer_audio, "id": args.id}
    names = {ours: theirs for ours, theirs in names.items() if theirs}
    for path in find(source, ".parquet"):
        where = path.relative_to(source).as_posix() if source.is_dir() else path.name
        try:
            file = ParquetFile(path)
        except (OSError, ValueError) as error:              # the base classes of pyarrow's own
            yield where, partial(fail, "bad row", f"{path}: {error}")
            continue
        lacking = set(names.values()) - set(file.schema_arrow.names)
        if lacking or not names:
            raise ValueError(f"{path} has the columns {', '.join(file.schema_arrow.names)}, "
                             + (f"not {', '.join(sorted(lacking))}" if lacking else "say which are what: --answer ..."))
        yield from parquet_rows(file, where, names, args.root or path.parent)


def parquet_rows(file, where: str, names: dict, root: Path):
    """Yield the rows of an open parquet file. names: {our name: the column's}."""
    number = 0
    try:
        for batch in file.iter_batches(ROWS, columns=[*dict.fromkeys(names.values())]):
            for row in batch.to_pylist():
                number += 1
                ours = {name: row[column] for name, column in names.items()}
                yield f"{where} row {number}", partial(table_clip, partial(dict, ours), f"{where}-{number}", root, {})
    except (OSError, ValueError) as error:
        yield f"{where} after row {number}", partial(fail, "bad row", f"damaged: {error}")
