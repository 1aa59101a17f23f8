"""The face in a browser: one HTML file with head, sound, text and curves that needs no network (docs/spec/face.md 4.1).

    write_viewer("answer.html", track, audio="answer.wav", text="Hello.")
    write_gallery("answers.html", [("First", track, "1.wav", "Hello."), ...])

The page is viewer.html, viewer.css, viewer_head.js and viewer.js (WebGL, no third-party code). This file joins them and
adds the data as one JSON block: the mesh and sparse shapes as 16-bit integers, deflated; tracks as 16-bit integers;
sounds as 16-bit mono WAV. Text from the model can never become markup: the JSON has no markup characters, and a
Content-Security-Policy admits only the page's own script, by hash. A page of 10 s has about 0.9 MB, mostly sound.

T face frames, K = 52 blendshapes in the order of arkit.ARKIT_NAMES. Other letters: V vertices, F triangles, Q moved
vertices, summed over the shapes.
"""
import base64
import functools
import hashlib
import html
import io
import json
import re
import zlib
from pathlib import Path

import numpy as np

from audio import blocks, open_sound, quiet, survey
from disk import regular, replacing
from face.arkit import ARKIT_NAMES
from face.head import Head, make_head

LEVELS_PER_SECOND = 100         # of the waveform strip
PAUSE_SECONDS = 0.2             # a sentence may begin after a silence of this length
STEPS_PER_HEAD = 25000          # integer steps in the height of the head: 10 micrometres for 0.25 m
PAGE_BYTES = 128 << 20          # largest size of tracks, sounds and texts: browsers do not open much larger pages


def write_viewer(path, track, fps: float = 30, audio=None, text: str = "", head: Head | None = None,
                 title: str = "Ex-Omni") -> None:
    """Write a page that plays one answer.

    track: (T, K), clipped to [0, 1], frame t shown at t / fps s. audio: path of a sound file, or None. text: what is
    said. head: default `make_head()`. After its last frame the face fades to rest within 0.2 s; playing ends then, or
    with the sound if that is longer. Raises ValueError for an invalid track or sound, or if the page would be larger
    than PAGE_BYTES, which is 35 minutes of sound at 22.05 kHz.
    """
    write_gallery(path, [(title, track, audio, text)], fps, head, title)


def write_gallery(path, answers, fps: float = 30, head: Head | None = None, title: str = "Ex-Omni: answers") -> None:
    """Write a page that plays any of several answers.

    answers: [(title, track, audio or None, text), ...]; other arguments and errors as for `write_viewer`. Raises
    ValueError without answers.
    """
    entries, size = [], 0
    for name, track, audio, text in answers:
        entries.append(_answer(name, track, audio, text, fps))
        size += sum(len(value) for value in entries[-1].values() if isinstance(value, str)) + len(text)
        if size > PAGE_BYTES:
            raise ValueError(f"{path} would have more than {PAGE_BYTES >> 20} MiB with {name}: show fewer or shorter "
                             "answers, or write .mp4")
    if not entries:
        raise ValueError("a gallery of no answers: give at least one")
    data = {"title": title, "names": ARKIT_NAMES, "head": pack_head(head or make_head()), "answers": entries}
    with replacing(path) as temporary:
        temporary.write_bytes(fill(data).encode("utf-8", "xmlcharrefreplace"))      # lone surrogates must not fail


def fill(data: dict) -> str:
    """viewer.html with style, script and data filled in, and a policy that admits this style and script by hash."""
    template, style, *scripts = (Path(__file__).with_name("viewer" + name).read_text(encoding="utf-8")
                                 for name in (".html", ".css", "_head.js", ".js"))
    script = "\n".join(scripts)
    policy = (f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
              "media-src data: blob:; img-src data:; base-uri 'none'; form-action 'none'")
    parts = {"policy": policy, "style": style, "script": script, "title": html.escape(data["title"]),
             "data": _inert_json(data)}
    return re.sub(r"{{(\w+)}}", lambda mark: parts[mark[1]], template)      # one pass: {{title}} in the data stays


def _source(code: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'"


def _inert_json(data) -> str:
    """JSON that cannot end its HTML element: ASCII only, with <, > and & as escapes."""
    return re.sub("[<>&]", lambda char: f"\\u{ord(char[0]):04x}", json.dumps(data, separators=(",", ":")))


def _base64(array) -> str:
    return base64.b64encode(array.tobytes() if isinstance(array, np.ndarray) else array).decode()


@functools.cache        # heads are compared by identity; make_head() always returns the same one
def pack_head(head: Head) -> dict:
    """Mesh and shapes for the page: {"vertices", "triangles", "moves", "step", "low", "size", "packed"}.

    packed is base64 of `size` bytes, deflated: little-endian arrays, one after another: positions uint16 (V, 3),
    triangles uint16 (F, 3), number of moved vertices of each shape uint16 (K,), their indices as differences uint16
    (Q,), their moves int16 (3, Q), colours with gloss uint8 (V, 4). With more than 65,535 vertices the second to fourth
    are uint32. Metres are low + step * position and step * move. The error per axis is half a step, 6 micrometres, or
    more if a shape moves a vertex further than the head is large. Raises ValueError for a head without a size.
    """
    count = len(head.vertices)
    low = head.vertices.min(axis=0).astype(np.float64)
    size, reach = (head.vertices.max(axis=0) - low).max(), np.abs(head.deltas).max()
    if not 0 < max(size, reach) < np.inf:
        raise ValueError(f"the head is {size:g} m large and its shapes move it by {reach:g} m: expected other numbers")
    step, index = max(size / STEPS_PER_HEAD, reach / 32767), "<u2" if count <= 65535 else "<u4"
    deltas = np.rint(head.deltas / step)
    positions = np.rint((head.vertices - low) / step).astype("<u2")
    shapes, moved = np.nonzero(deltas.any(axis=2))                                  # (Q,) each, shape by shape
    starts = np.diff(shapes, prepend=-1) > 0
    gaps = np.where(starts, moved, np.diff(moved, prepend=0)).astype(index)
    moves = deltas[shapes, moved].T.astype("<i2")                                   # (3, Q): equal axes deflate better
    counts = np.bincount(shapes, minlength=len(deltas)).astype(index)
    gloss = np.full(count, 0.2)
    gloss[head.lips] = 0.5                                                          # lips shine more than skin
    colors = np.rint(np.column_stack([head.colors, gloss]) * 255).astype("u1")
    raw = b"".join(array.tobytes() for array in [positions, head.faces.astype(index), counts, gaps, moves, colors])
    return {"vertices": count, "triangles": len(head.faces), "moves": len(moved), "step": float(step),
            "low": low.tolist(), "size": len(raw), "packed": _base64(zlib.compress(raw, 9))}


def _answer(title: str, track, audio, text: str, fps: float) -> dict:
    """One answer in the page's JSON; "heard" is the length of the sound in seconds, 0 without one."""
    track = np.asarray(track, dtype=np.float32)
    if track.ndim != 2 or track.shape[1] != len(ARKIT_NAMES) or not len(track):
        raise ValueError(f"{title}: the face track is {track.shape}, expected (frames, {len(ARKIT_NAMES)}), a frame "
                         "or more: columns in the order of arkit.ARKIT_NAMES")
    if not np.isfinite(track).all():
        raise ValueError(f"{title}: frame {np.argwhere(~np.isfinite(track))[0][0]} of the face track is not a number")
    if not 1 <= fps <= 1000:
        raise ValueError(f"{title}: {fps} frames per second, expected 1 to 1000")
    track = np.clip(track, 0, 1)
    sound, levels, sound_seconds = (None, np.zeros(0), 0.0) if audio is None else read_sound(audio)
    seconds = max(len(track) / fps, sound_seconds)
    pieces = sentences(text)
    return {"title": title, "fps": fps, "frames": len(track), "track": _base64(np.rint(track * 65535).astype("<u2")),
            "lanes": lanes(track), "sound": sound and _base64(sound), "heard": sound_seconds,
            "levels": _base64(np.rint(levels * 255).astype("u1")), "seconds": seconds,
            "sentences": list(zip(sentence_starts(pieces, levels, seconds), pieces))}


def read_sound(path) -> tuple[bytes, np.ndarray, float]:
    """A sound file -> (16-bit mono WAV, levels in [0, 1] at LEVELS_PER_SECOND, length in seconds).

    Raises FileNotFoundError, or ValueError if it is unreadable or too long for a page.
    """
    import soundfile
    mix, parts, size = survey(regular(path, "a sound file")), [], 0
    with quiet(), open_sound(path) as file:
        rate = file.samplerate
        for block in blocks(file, path):
            parts.append(mix(block))
            size += len(block) * 2
            if size > PAGE_BYTES * 3 // 4:          # base64 has four characters for three bytes
                raise ValueError(f"{path} holds more than {size / 2 / rate / 60:.0f} minutes of sound, too much for a "
                                 "page: cut it into pieces, or write .mp4")
    samples = np.concatenate(parts or [np.zeros(0, np.float32)])
    wav = io.BytesIO()
    soundfile.write(wav, samples, rate, format="WAV", subtype="PCM_16")
    seconds = len(samples) / rate
    edges = np.arange(int(np.ceil(seconds * LEVELS_PER_SECOND))) * rate // LEVELS_PER_SECOND
    levels = np.maximum.reduceat(abs(samples), edges) if len(edges) else np.zeros(0)
    return wav.getvalue(), levels / max(levels.max(initial=0), 1e-4), seconds


def lanes(track: np.ndarray) -> list:
    """Columns of a track (T, K) whose curves are shown: jawOpen, then the four with the largest root mean square.

    Of a left and a right that move alike (within 0.05) only one is shown.
    """
    chosen = [ARKIT_NAMES.index("jawOpen")]
    for column in np.argsort(-(track ** 2).mean(axis=0), kind="stable").tolist():
        name = ARKIT_NAMES[column]
        both = name.replace("Left", "Right"), name.replace("Right", "Left")
        twins = [other for other in chosen if ARKIT_NAMES[other] in both]
        alike = any(np.allclose(track[:, column], track[:, twin], rtol=0, atol=0.05) for twin in twins)
        if column not in chosen and not alike and len(chosen) < 5:
            chosen.append(column)
    return chosen


def sentences(text: str) -> list:
    """The text cut into sentences; joined they are the text. A full stop ends one only before a space, so 3.14 stays
    whole."""
    ends = [mark.end() for mark in re.finditer(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+[」』”’]*\s*|\n\s*", text)]
    cuts = [0, *ends, len(text)]
    return [text[a:b] for a, b in zip(cuts, cuts[1:]) if b > a]


def sentence_starts(pieces: list, levels: np.ndarray, seconds: float) -> list:
    """Estimated start of each sentence in seconds; the model gives no times for its text.

    Characters are spread evenly over the time with sound, or over all the time if levels are empty. Then a start moves
    to the end of the nearest pause, if that is closer than half of the sentence before and after.
    """
    if not pieces:
        return []
    levels = levels if levels.any() else np.ones(max(1, round(seconds * LEVELS_PER_SECOND)))
    voiced = levels > 0.1 * np.quantile(levels, 0.95)
    spoken = np.cumsum(voiced)
    characters = np.cumsum([0] + [len(piece) for piece in pieces])
    bounds = np.searchsorted(spoken, characters / characters[-1] * spoken[-1], side="right").astype(float)
    bounds[0], bounds[-1] = 0, len(levels)
    changes = np.flatnonzero(np.diff(voiced)) + 1
    pauses = np.array([end for begin, end in zip(changes, changes[1:])
                       if not voiced[begin] and end - begin >= PAUSE_SECONDS * LEVELS_PER_SECOND])
    starts = bounds[:-1].copy()
    for i, after in zip(range(1, len(pieces)), np.searchsorted(pauses, bounds[1:-1])):
        nearest = min(pauses[max(after - 1, 0):after + 1], key=lambda end: abs(end - bounds[i]), default=bounds[i])
        if abs(nearest - bounds[i]) <= min(bounds[i] - bounds[i - 1], bounds[i + 1] - bounds[i]) / 2:
            starts[i] = nearest
    return np.round(np.maximum.accumulate(starts) / LEVELS_PER_SECOND, 2).tolist()
