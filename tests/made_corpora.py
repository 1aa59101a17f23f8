"""Small copies of public corpora, in their own layouts, for test_corpora.py: two speakers, odd characters, a damaged
row, a missing file. Each maker writes one below a directory and returns what must come out of it."""
import io
import json
import tarfile
from dataclasses import dataclass, field

import numpy as np
import soundfile

from face.arkit import APPLE_NAMES, ARKIT_NAMES

RATE = 16_000
ODD = "Grüße, “naïve” 你好 \u2028 <b> \\n {x}"


@dataclass
class Made:
    """options of the command; samples: id -> (split, task, answer, samples of its sound or None); skipped: reason ->
    how many."""
    options: list = field(default_factory=list)
    samples: dict = field(default_factory=dict)
    skipped: dict = field(default_factory=dict)


def tone(seconds: float, seed: int) -> np.ndarray:
    """(samples,) int16."""
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.02, len(t))
    return np.round((0.4 * np.sin(2 * np.pi * (150 + 20 * seed) * t) + noise) * 32767).astype(np.int16)


def write(path, samples, **form):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, **form)
    return samples


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lines(rows) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


def file_of(samples, form) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=form)
    return file.getvalue()


def heard(file, begin=0, end=None) -> np.ndarray:
    """The samples of a lossy file from second to second, as a whole decoding gives them."""
    samples = soundfile.read(io.BytesIO(file) if isinstance(file, bytes) else file, dtype="float32")[0]
    cut = samples[round(begin * RATE):None if end is None else round(end * RATE)]
    return np.round(cut.clip(-1, 1) * 32767).astype(np.int16)


def archive(path, members: dict, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


# ---- speech with transcripts ---------------------------------------------------------------------------------------

def librispeech(root) -> Made:
    made = Made(["--tasks", "asr,tts"])
    for subset, speaker in (("train-clean-100", "84"), ("train-clean-100", "85"), ("dev-clean", "7"),
                            ("test-other", "8")):
        folder = root / subset / speaker / "121"
        texts = {f"{speaker}-121-{n:04}": f"{ODD} {n}" for n in range(3)}
        for n, (name, text) in enumerate(texts.items()):
            sound = write(folder / f"{name}.flac", tone(0.3 + n / 10, int(speaker) % 7 + n))
            if subset != "test-other":
                split = "val" if subset == "dev-clean" else "train"
                made.samples[name] = (split, "asr", text, sound)
                made.samples[f"{name}-tts"] = (split, "tts", text, None)
        put(folder / f"{speaker}-121.trans.txt", lines(f"{name} {text}" for name, text in texts.items()))
    folder = root / "train-clean-100" / "85" / "121"
    write(folder / "85-121-0004.flac", tone(31, 1))
    (folder / "85-121-0005.flac").write_bytes((folder / "85-121-0000.flac").read_bytes()[:900])
    (folder / "85-121-0006.flac").write_bytes(b"no sound")
    with open(folder / "85-121.trans.txt", "ab") as file:
        file.write(b"85-121-0003 NO FILE\n85-121-0004 TOO LONG\n85-121-0005 CUT OFF\n85-121-0006 NOT FLAC\n"
                   b"85-121-0007\nbroken \xff line\n85-121-0000 AGAIN\n")
    made.skipped = {"missing sound": 1, "too long": 1, "unreadable sound": 2, "empty text": 1, "bad row": 1,
                    "duplicate id": 1, "test split": 3}
    return made


def aishell(root, packed=False) -> Made:
    made, texts, tars = Made(skipped={"missing sound": 1, "missing text": 1, "test split": 1}), ["X0 没有 声音"], {}
    for n, (split, speaker) in enumerate([("train", "S0002"), ("train", "S0002"), ("train", "S0003"), ("dev", "S0724"),
                                          ("test", "S0764"), ("train", "S0003")]):
        name, sound = f"BAC009{speaker}W{n:04}", tone(0.3, n)
        if packed:
            tars.setdefault(speaker, {})[f"./{split}/{speaker}/{name}.wav"] = file_of(sound, "WAV")
        else:
            write(root / "wav" / split / speaker / f"{name}.wav", sound)
        if n < 5:
            texts.append(f"{name} 而 对 楼市 {n}")
        if n < 4:
            made.samples[name] = ("val" if split == "dev" else "train", "asr", f"而对楼市{n}", sound)
    for speaker, members in tars.items():
        archive(root / "wav" / f"{speaker}.tar.gz", members, "w:gz")
    if packed:
        (root / "wav" / "S9999.tar.gz").write_bytes(b"no tar")
        made.skipped["unreadable sound"] = 1
    put(root / "transcript" / "aishell_transcript_v0.8.txt", lines(texts))
    return made


def segmented(root, name: str, key: str, tags: tuple, text, made: Made) -> Made:
    """What WenetSpeech and GigaSpeech share: two recordings in opus, one of them missing, segments of the other."""
    path = root / "audio" / "train" / "Y1.opus"
    write(path, tone(6, 3), format="OGG", subtype="OPUS")
    train, val, test = tags
    spans = [(0.0, 0.8, train), (0.52, 1.5, train), (4.1, 5.9, val), (2.0, 3.0, test)]
    rows = [{"sid": f"Y1_S{n}", "begin_time": begin, "end_time": end, key: text(n), "confidence": 1.0, "speaker": "N/A",
             "subsets": [tag]} for n, (begin, end, tag) in enumerate(spans)]
    for n, (begin, end, tag) in enumerate(spans[:3]):
        made.samples[f"Y1_S{n}"] = ("val" if tag == val else "train", "asr", f"{ODD} {n}, ja?", heard(path, begin, end))
    more = rows[0] | {"sid": "Y1_S9"}
    rows += [more | {"begin_time": 3.0, "end_time": 2.0}, more | {"end_time": "soon"}, "no segment", rows[0],
             more | {key: " "}, more | {"sid": "Y1_S8", "begin_time": 9, "end_time": 10}, *made.options]
    audios = [{"aid": "Y1", "path": "audio/train/Y1.opus", "segments": rows}, {"aid": "Y2"},
              {"aid": "Y3", "path": "audio/train/Y3.opus", "segments": [more | {"sid": "Y3_S1"}]}]
    put(root / name, json.dumps({"dataset": name, "version": [1], "audios": audios}, ensure_ascii=False, indent=1))
    made.skipped |= {"bad row": 4, "duplicate id": 1, "empty text": 1, "unreadable sound": 1, "missing sound": 1,
                     "test split": 1}
    made.options = []
    return made


def wenetspeech(root) -> Made:
    low = {"sid": "low", "begin_time": 0, "end_time": 1, "text": "x", "confidence": 0.94}
    return segmented(root, "WenetSpeech.json", "text", ("L", "DEV", "TEST_NET"), lambda n: f"{ODD} {n}, ja?",
                     Made([low], skipped={"low confidence": 1}))


def gigaspeech(root) -> Made:
    noise = {"sid": "noise", "begin_time": 0, "end_time": 1, "text_tn": "<MUSIC>"}
    words = " ".join(ODD.split())
    made = segmented(root, "GigaSpeech.json", "text_tn", ("{XL}", "{DEV}", "{TEST}"),
                     lambda n: f"{ODD} {n} <COMMA> ja <QUESTIONMARK>", Made([noise], skipped={"no speech": 1}))
    made.samples = {name: (split, task, text.replace(ODD, words), sound)
                    for name, (split, task, text, sound) in made.samples.items()}
    return made


def emilia(root) -> Made:
    made = Made(["--tasks", "asr,tts", "--min-dnsmos", "3", "--val", "0"],
                skipped={"missing sound": 2, "missing text": 1, "low dnsmos": 1, "bad row": 2, "unreadable sound": 3})
    members, rows = {}, []
    for n, speaker in enumerate(["EN_A", "EN_A", "EN_B", "EN_B"]):
        name, sound = f"EN_{n}", file_of(tone(0.5, n), "MP3")
        row = {"id": name, "text": f" {ODD} {n}", "speaker": speaker, "language": "en", "dnsmos": 3.2 - (n == 3),
               "duration": 0.5}
        if n < 2:
            members |= {f"B/{name}.mp3": sound, f"B/{name}.json": json.dumps(row).encode()}
        else:
            put(root / "EN" / "B" / "mp3" / "x.txt", "")
            (root / "EN" / "B" / "mp3" / f"{name}.mp3").write_bytes(sound)
            rows.append(row | {"wav": f"B/mp3/{name}.mp3"})
        if n < 3:
            made.samples[name] = ("train", "asr", f"{ODD} {n}", heard(sound))
            made.samples[f"{name}-tts"] = ("train", "tts", f"{ODD} {n}", None)
    members |= {"B/lone.mp3": b"", "B/lone2.json": b"{}", "B/bad.json": b"{", "B/bad.mp3": b""}
    archive(root / "EN.tar", members)
    archive(root / "cut.tar", {"c.mp3": file_of(tone(0.5, 1), "MP3"), "c.json": json.dumps(row | {"id": "c"}).encode()})
    with open(root / "cut.tar", "r+b") as file:
        file.truncate(file.read().index(b'"text"'))                     # in the middle of the json
    (root / "damaged.tar").write_bytes(b"x" * 700)
    put(root / "EN" / "B.jsonl", lines([*rows, "{broken", rows[0] | {"id": "gone", "wav": "B/mp3/gone.mp3"}]))
    return made


# ---- dialogues -----------------------------------------------------------------------------------------------------

def instructs2s(root) -> Made:
    made = Made(["--val", "0"], skipped={"bad row": 4, "missing sound": 1, "empty text": 1})
    sounds = [write(root / "en" / f"{n} ü.wav", tone(0.4, n)) for n in range(3)]
    turn = lambda who, text, n=None, key="text": ({"from": who, key: text}
                                                  | ({} if n is None else {"speech": f"en/{n} ü.wav"}))
    first = {"id": "a", "speech": "en/0 ü.wav", "units": "a.npy",
             "conversations": [turn("human", "<speech>\nPlease answer.", key="value"), turn("gpt", ODD, key="value")]}
    second = {"id": "b", "conversation": [turn("human", "One?", 1), turn("gpt", "1.", 2), turn("human", "Two?", 0),
                                          turn("gpt", "2.", 2), turn("human", "Typed?"), turn("gpt", "Yes.")]}
    put(root / "one.json", json.dumps([first, second, {"id": "c"}, "no row",
                                       {"id": "d", "conversation": [turn("gpt", "alone")]}], ensure_ascii=False))
    put(root / "two.jsonl", lines([
        {"id": 5, "speech": "en/1 ü.wav", "conversations": [turn("human", "Said?", key="value"),
                                                            turn("gpt", "So.", key="value")]},
        {"id": "e", "speech": "en/none.wav", "conversations": first["conversations"]},
        {"id": "f", "speech": "en/0 ü.wav", "conversations": [turn("human", "<speech>", key="value"),
                                                              turn("gpt", " ", key="value")]}, "[]"]))
    made.samples = {"a": ("train", "qa", ODD, sounds[0]), "b-2": ("train", "qa", "1.", sounds[1]),
                    "b-4": ("train", "qa", "2.", sounds[0]), "b-6": ("train", "chat", "Yes.", None),
                    "5": ("train", "qa", "So.", sounds[1])}
    return made


def parquet(root) -> Made:
    import pyarrow
    from pyarrow.parquet import write_table
    made = Made(["--question-audio", "question_audio", "--question", "question", "--answer", "answer", "--answer-audio",
                 "spoken", "--val", "0"],
                skipped={"missing sound": 1, "unreadable sound": 1, "empty text": 1, "bad row": 1})
    sounds = [tone(0.4, n) for n in range(5)]
    cell = lambda data, path=None: {"bytes": data, "path": path}
    write(root / "x.wav", sounds[2])
    audio = [cell(file_of(sounds[0], "WAV")), cell(file_of(sounds[1], "FLAC"), "y.flac"), cell(None, "x.wav"),
             cell(None, "gone.wav"), cell(b"none"), cell(file_of(sounds[0], "WAV"))]
    answers = [f"{ODD} {n}" for n in range(5)] + [None]
    write_table(pyarrow.table({"question_audio": audio, "question": ["q", None, "q", "q", "q", ""], "answer": answers,
                               "spoken": [file_of(sounds[4], "WAV")] + [None] * 5}), root / "a.parquet")
    (root / "b.parquet").write_bytes(b"PAR1")
    made.samples = {f"a.parquet-{n + 1}": ("train", "qa", answers[n], sounds[n]) for n in range(3)}
    return made


# ---- faces ---------------------------------------------------------------------------------------------------------

def weights(seconds, fps, seed) -> np.ndarray:
    """(T, 52) weights in the order of ARKIT_NAMES."""
    t = np.arange(round(seconds * fps)) / fps
    return 0.5 + 0.4 * np.sin(np.outer(t, np.linspace(1, 4, 52)) + seed)


def beat(root) -> Made:
    made = Made(["--val", "0"], skipped={"missing face": 1, "unreadable face": 1, "face and sound differ": 1})
    for n, text in enumerate([ODD, "", "gone", "bad", "short"]):
        speaker = "2_ü" if n else "1_wayne"
        path = root / speaker / f"{speaker}_{n}.wav"
        sound, track = write(path, tone(1.2, n)), weights(1.2 if n < 4 else 4, 60, n)[:, :51]
        frames = [{"weights": row.tolist(), "time": t / 60, "rotation": []} for t, row in enumerate(track)]
        name, said = f"{speaker}/{path.stem}", " ".join(text.split())
        if n != 2:
            put(path.with_suffix(".json"), "{" if n == 3 else json.dumps({"names": ARKIT_NAMES[:51], "frames": frames}))
        if text:
            put(path.with_suffix(".txt"), text)
        if n < 2:
            made.samples[name] = ("train", "tts" if said else "face", said, sound)
        if n == 0:
            made.samples[f"{name}-face"] = ("train", "face", said, sound)
    return made


def unitalker(root) -> Made:
    made = Made(skipped={"no ARKit weights": 1, "missing face": 1, "test split": 1, "bad row": 1, "unreadable face": 1})
    row = lambda n, **more: {"annot_path": f"annot/{n}.npy", "audio_path": f"sound/{n}.wav", "id": n % 2, "fps": 60,
                             "annot_type": "arkit_blendshape", "dataset": "D3"} | more
    for n in range(5):
        sound = write(root / "D3" / "sound" / f"{n}.wav", tone(1, n))
        (root / "D3" / "annot").mkdir(exist_ok=True)
        np.save(root / "D3" / "annot" / f"{n}.npy", weights(1, 60, n)[:, :40 if n == 4 else 52])
        if n < 3:
            made.samples[f"D3/annot/{n}"] = ("val" if n == 2 else "train", "face", "", sound)
    np.save(root / "D3" / "sound" / "0.npy", tone(1, 0))
    vertices = row(3, annot_type="flame_vertices")
    splits = {"train": [row(0, audio_path="sound/0.npy"), row(1), row(9), vertices, row(4), 5], "val": [row(2)],
              "test": [row(3)]}
    for split, rows in splits.items():
        put(root / "D3" / f"{split}.json", json.dumps({"info": {"id_list": ["a", "b"]}, "data": rows}))
    return made


def faces(root) -> Made:
    made = Made(["--order", "apple", "--val", "0"], skipped={"missing face": 1, "unreadable sound": 1})
    for n in range(4):
        path = root / f"anna {n % 2}" / f"{n} ü.wav"
        sound = write(path, tone(1, n))
        track = weights(1, 30, n)
        if n == 0:
            np.save(path.with_suffix(".npy"), track[:, [ARKIT_NAMES.index(name) for name in APPLE_NAMES]])
        elif n < 3:
            put(path.with_suffix(".csv"), lines([",".join(ARKIT_NAMES), *(",".join(map(str, row)) for row in track)]))
        put(path.with_suffix(".txt"), f"{n}\nwords")
        if n < 2:
            name = f"anna {n}/{n} ü"
            made.samples[name] = ("train", "tts", f"{n} words", sound)
            made.samples[f"{name}-face"] = ("train", "face", f"{n} words", sound)
    (root / "anna 0" / "2 ü.wav").write_bytes(b"RIFF")
    return made


def table(root, ending=".csv") -> Made:
    """root: of the sounds; the table lies in it."""
    made = Made(skipped={"bad row": 2, "missing sound": 2, "empty text": 1, "duplicate id": 1})
    ask, reply = write(root / "ask ü.wav", tone(0.5, 1)), write(root / "reply.flac", tone(1, 2))
    put(root / "face.csv", lines([",".join(ARKIT_NAMES), *(",".join(map(str, row)) for row in weights(1, 30, 1))]))
    columns = ["id", "audio", "text", "answer", "answer_audio", "face", "split", "mood"]
    rows = [["asr", "ask ü.wav", ODD, "", "", "", "val", "calm"],
            ["qa", "ask ü.wav", "", "Yes.", "reply.flac", "", "", ""],
            ["typed", "", "Why?", "So.", "reply.flac", "", "", ""], ["chat", "", "Why?", "So.", "", "", "", ""],
            ["tts", "", "", "Read", "", "", "", ""], ["face", "reply.flac", "Own words", "", "", "face.csv", "", ""],
            ["both", "ask ü.wav", "Own", "", "reply.flac", "", "", ""],
            ["gone", "none.wav", "x", "", "", "", "", ""], ["alone", "", "x", "", "", "face.csv", "", ""],
            ["none", "", "", "", "reply.flac", "", "", ""], ["chat", "", "Again?", "x", "", "", "", ""],
            ["odd", "", "x", "", "", "", "dev", ""]]
    if ending == ".csv":
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [columns, *rows]]
        put(root / "table.csv", lines([*quoted, "1,2,3,4,5,6,7,8,9"]))
    else:
        put(root / "table.jsonl", lines([*(dict(zip(columns, row)) for row in rows), "{"]))
    made.samples = {
        "asr": ("val", "asr", ODD, ask), "qa": ("train", "qa", "Yes.", ask), "typed": ("train", "qa", "So.", reply),
        "chat": ("train", "chat", "So.", None), "tts": ("train", "tts", "Read", None),
        "face": ("train", "tts", "Own words", reply), "face-face": ("train", "face", "Own words", reply),
        "both": ("train", "asr", "Own", ask), "both-tts": ("train", "tts", "Own", reply)}
    return made
