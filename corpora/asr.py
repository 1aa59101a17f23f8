"""Readers of speech with transcripts: LibriSpeech, AISHELL-1, WenetSpeech, GigaSpeech, Emilia. See corpus.py.

Transcripts are taken as they are published: LibriSpeech's and GigaSpeech's are in capitals, the others are not.
"""
import json
import re
import tarfile
from functools import partial
from operator import itemgetter
from pathlib import Path

import disk
from corpora.corpus import utterance
from corpora.files import fail, find, json_rows, tar_files
from corpora.sound import Skip, Sound, opened

MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_SPEECH = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")


def librispeech(source: Path, args):
    """LibriSpeech (openslr.org/12), and others of its layout.

        SOURCE/train-clean-100/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt      lines of ID TEXT
        SOURCE/train-clean-100/SPEAKER/CHAPTER/ID.flac

    dev-* are val, test-* are left out. SOURCE may also be one of these directories: then val is by speaker.
    """
    own = any(path.name.startswith("dev") for path in source.iterdir()) if source.is_dir() else False
    for path in find(source, ".trans.txt"):
        subset = path.relative_to(source).as_posix().split("/")[0].split("-")[0]
        split = {"dev": "val", "test": "test"}.get(subset, "train" if own else None)
        with disk.open_text(path) as file:
            for number, line in enumerate(file, 1):
                yield f"{path.name} line {number}", partial(librispeech_clip, line, path, split, args.tasks)


def librispeech_clip(line: str, path: Path, split, tasks):
    name, _, text = line.strip().partition(" ")
    if not re.fullmatch(r"\S+-\S+-\S+", name):
        raise Skip("bad row", f"{line[:60]!r}, expected SPEAKER-CHAPTER-NUMBER TEXT")
    return utterance(name, text, Sound(path.parent / f"{name}.flac"), tasks, split=split, group=name.split("-")[0])


def aishell(source: Path, args):
    """AISHELL-1 (openslr.org/33), its inner tars unpacked or not.

        SOURCE/transcript/aishell_transcript_v0.8.txt       lines of ID TEXT, words with spaces between them
        SOURCE/wav/{train,dev,test}/SPEAKER/ID.wav, or SOURCE/wav/SPEAKER.tar.gz with {train,dev,test}/SPEAKER/ID.wav

    dev is val, test is left out. The spaces are, too: Chinese is written without.
    """
    texts = {}
    for path in find(source / "transcript", ".txt"):
        with disk.open_text(path) as file:
            for line in file:
                name, _, text = line.strip().partition(" ")
                texts[name] = "".join(text.split())
    for path in find(source / "wav", ".wav") if texts else ():
        text = texts.pop(path.stem, None)
        yield path.stem, partial(aishell_clip, path.stem, text, path.parts, partial(Sound, path), args.tasks)
    for path in find(source / "wav", ".tar.gz") if texts else ():
        for name, member, tar in tar_files(path, "r|*"):
            if tar is None:
                yield path.name, member
            elif name.suffix == ".wav":
                text, load = texts.pop(name.stem, None), partial(unpacked, path, tar, member)
                yield name.stem, partial(aishell_clip, name.stem, text, name.parts, load, args.tasks)
    for name in texts:
        yield name, partial(fail, "missing sound", "a transcript without a wav")


def aishell_clip(name: str, text, parts: tuple, load, tasks):
    """parts: of the path, with the split and the speaker. load() -> Sound."""
    if text is None:
        raise Skip("missing text", "a wav without a transcript")
    split = {"train": "train", "dev": "val", "test": "test"}[parts[-3]]
    return utterance(name, text, load(), tasks, split=split, group=parts[-2])


def unpacked(path: Path, tar, member) -> Sound:
    """A file of a compressed tar, which is a stream: it must be read now. Raises Skip."""
    try:
        return Sound(f"{path} {member.name}", data=tar.extractfile(member).read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Skip("unreadable sound", f"{path}: {error}") from None


def wenetspeech(source: Path, args):
    """WenetSpeech (wenet.org.cn/WenetSpeech), 10,000 hours of Mandarin.

        SOURCE/WenetSpeech.json     {"audios": [{"aid", "path", "segments": [{"sid", "begin_time", "end_time", "text",
                                    "confidence", "subsets"}, ...]}, ...]}
        SOURCE/audio/...opus        as `path` says

    DEV is val, TEST_* are left out.
    """
    for path in find(source, "WenetSpeech.json"):
        for where, load in json_rows(path, "audios"):
            yield where, partial(segments, load, path, args.tasks, itemgetter("text"), "DEV", "TEST",
                                 args.min_confidence)


def gigaspeech(source: Path, args):
    """GigaSpeech (github.com/SpeechColab/GigaSpeech), 10,000 hours of English.

        SOURCE/GigaSpeech.json      {"audios": [{"aid", "path", "segments": [{"sid", "begin_time", "end_time",
                                    "text_tn", "subsets"}, ...]}, ...]}
        SOURCE/audio/...opus        as `path` says

    {DEV} is val, {TEST} is left out. <COMMA> and its like become punctuation; what is <SIL>, <MUSIC>, <NOISE> or
    <OTHER> is no speech.
    """
    for path in find(source, "GigaSpeech.json"):
        for where, load in json_rows(path, "audios"):
            yield where, partial(segments, load, path, args.tasks, punctuated, "{DEV}", "{TEST}")


def punctuated(segment: dict) -> str:
    """GigaSpeech's text with its marks replaced by punctuation. Raises Skip if it is no speech."""
    words = segment["text_tn"].split()
    if set(words) & set(NO_SPEECH):
        raise Skip("no speech", segment["sid"])
    return re.sub(r" (?=[,.?!])", "", " ".join(MARKS.get(word, word) for word in words))


def segments(load, path: Path, tasks, text, val: str, test: str, least=0.0) -> list:
    """The rows of one recording. text(segment) -> its text. val, test: prefixes of the names of these subsets. least:
    the least confidence of a transcript that is taken."""
    recording = load()
    where = f"{path.name}, {disk.typed(recording, 'aid', str, path.name)}"
    sound = path.parent / disk.typed(recording, "path", str, where)

    def clip(segment):
        name, subsets = disk.typed(segment, "sid", str, where), segment.get("subsets", recording.get("subsets", []))
        confidence = disk.typed(segment, "confidence", float, where, None)
        if confidence is not None and confidence < least:
            raise Skip("low confidence", f"{confidence:g}")
        begin, end = (disk.typed(segment, key, float, where) for key in ("begin_time", "end_time"))
        if not 0 <= begin < end:
            raise Skip("bad row", f"{name} lasts from {begin:g} s to {end:g} s")
        split = next((split for split, start in (("val", val), ("test", test))
                      if any(subset.startswith(start) for subset in subsets)), "train")
        about = {} if confidence is None else {"confidence": confidence}
        return utterance(name, text(segment), Sound(sound, begin, end), tasks, split=split,
                         group=recording["aid"], about=about)

    return [(f"{where}, segment {number}", partial(clip, segment))
            for number, segment in enumerate(disk.typed(recording, "segments", list, where), 1)]


def emilia(source: Path, args):
    """Emilia and Emilia-YODAS (huggingface.co/datasets/amphion/Emilia-Dataset), in either form.

        SOURCE/**/NAME.tar      pairs of ID.json and ID.mp3; the json has text, duration, speaker, language, dnsmos
        SOURCE/**/NAME.jsonl    lines of the same with id and wav, a path from the directory that NAME.jsonl lies in

    speaker, language and dnsmos are kept with each sample.
    """
    for path in find(source, ".jsonl"):
        for where, load in json_rows(path):
            yield where, partial(emilia_clip, load, lambda row, path=path: Sound(path.parent / row["wav"]), args)
    for path in find(source, ".tar"):
        pending = {}                                            # name -> its json or its sound, until both are read
        for name, member, tar in tar_files(path):
            key = str(name.with_suffix(""))
            if tar is None:
                yield path.name, member
            elif name.suffix == ".json":
                pending.setdefault(key, {})["text"] = Sound(path, member=(member.offset_data, member.size))
            elif name.suffix == ".mp3":
                pending.setdefault(key, {})["sound"] = Sound(path, member=(member.offset_data, member.size))
            if len(pending.get(key, ())) == 2:
                both = pending.pop(key)
                yield f"{path.name} {key}", partial(emilia_clip, partial(json_at, both["text"]),
                                                    lambda row, sound=both["sound"]: sound, args, name.stem)
        for key, part in pending.items():
            lacking = "text" if "sound" in part else "sound"
            yield f"{path.name} {key}", partial(fail, f"missing {lacking}", "")


def json_at(text: Sound):
    """The json at a place described by a Sound. Raises Skip if the tar is cut off, ValueError if it is no json."""
    with opened(text) as file:
        return json.load(file)


def emilia_clip(load, sound, args, name=None):
    """load() -> the row. sound(row) -> its Sound. name: of the sample, unless the row has an id."""
    row = load()
    name = disk.typed(row, "id", str, "the row", name)
    about = {key: row[key] for key in ("speaker", "language", "dnsmos") if key in row}
    if args.language and about.get("language") not in args.language:
        raise Skip("another language", about.get("language"))
    if args.min_dnsmos and not about.get("dnsmos", 0) >= args.min_dnsmos:
        raise Skip("low dnsmos", about.get("dnsmos"))
    return utterance(name, disk.typed(row, "text", str, "the row"), sound(row), args.tasks, about=about,
                     group=str(about.get("speaker", "")))
