"""Pictures of the head without a GPU: a still, a contact sheet, a video with sound (docs/spec/face.md 4.2).

numpy renders; Pillow writes PNG and WebP, ffmpeg writes MP4. Neither is needed for anything else.

T face frames, K = 52 blendshapes. Other letters: V vertices, F triangles, H rows and W columns of an image, A values
per vertex (depth, red, green, blue). A sample is a quarter of a pixel.

How a triangle becomes pixels. A sample is one integer: depth in the upper bits, red, green and blue in the lower ones.
The nearer sample is the larger integer, so `maximum.at` does the depth test. Within a triangle the integer is linear,
a + b * column + c * row; one such formula serves all four values, as adding integers adds their fields. Every triangle
is split at its middle corner into an upper and a lower half, each half into spans, one per row, and each span into
samples. Each step handles all triangles at once, as long arrays.
"""
import io
import os
import shutil
import subprocess
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio import blocks, open_sound, quiet
from disk import regular, replacing
from face.head import rotation
from face_decoder import FPS

BACKGROUND = (232, 234, 238)        # sRGB
SAMPLES = 2                         # a pixel is the mean of 2 x 2 samples: smooth edges
MARGIN = 0.04                       # free share of the image on the two sides that the head comes nearest to
CLOSE = 3.5                         # width of an image of the face alone, in interocular distances

# Directions to the lights in camera coordinates: +X right, +Y up, +Z to the camera. The light on a surface that faces
# the key light sums to about 1.
KEY, FILL = np.array([0.25, 0.45, 0.86]), np.array([-0.80, 0.10, 0.59])
KEY_LIGHT, FILL_LIGHT, SKY_LIGHT = 0.72, 0.16, 0.24
SHINE, SHININESS = 0.06, 24

# A sample, from the top: 19 bits of signed depth, then three fields of 15 bits of colour: 2 free ones, for the sum of
# four samples, 8 of the value, 5 of its fraction.
DEPTH, FIELDS, FRACTION = 45, (30, 15, 0), 5
NEAREST = 1 << 17                   # steps of depth along the head's longest side; four times as many fit
THINNEST = 1e-3                     # smaller triangles (twice the area, in samples) are seen edge-on and left out
LAYERS = 32                         # triangles may cover the image this many times: more takes minutes and gigabytes


def normals(vertices, faces) -> np.ndarray:
    """vertices (V, 3), faces (F, 3) counter-clockwise from outside -> unit normals (V, 3) float32.

    A vertex gets the mean of its triangles' normals, weighted by area, or +Z if they have none.
    """
    a, b, c = (vertices.take(faces[:, i], axis=0) for i in range(3))
    across = np.cross(b - a, c - a)                             # (F, 3) normals as long as twice the area
    corners = faces.ravel()
    total = np.stack([np.bincount(corners, across[:, i].repeat(3), len(vertices)) for i in range(3)], axis=1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.maximum(length, 1e-30), (0, 0, 1)).astype(np.float32)


def _camera(head, size, yaw, close) -> tuple:
    """Orthographic (matrix, offset): `vertices @ matrix + offset` are column and row in samples, and depth, which grows
    towards the camera."""
    turn, side = rotation("y", yaw), size * SAMPLES
    seen = head.vertices @ turn.T
    low, high = seen.min(0), seen.max(0)
    middle, extent = (low + high) / 2, (high - low)[:2].max() / (1 - 2 * MARGIN)
    if close:
        middle[1] = (head.eyes[:, 1].mean() + head.vertices[head.lips, 1].mean()) / 2
        extent = CLOSE * head.interocular
    scale = np.array([side, -side, NEAREST]) / (extent, extent, np.ptp(head.vertices, axis=0).max())
    return turn.T * scale, np.array([side / 2, side / 2, 0]) - middle * scale


def _shade(normal, albedo, yaw) -> np.ndarray:
    """Unit normals (V, 3) and linear colours (V, 3) -> colours under the lights, sRGB in 2 ... 253, (V, 3)."""
    normal = normal @ rotation("y", yaw).T
    half = KEY + (0, 0, 1)
    key, fill, glance = (np.maximum(normal @ (light / np.linalg.norm(light)), 0) for light in (KEY, FILL, half))
    light = KEY_LIGHT * key + FILL_LIGHT * fill + SKY_LIGHT * (1 + normal[:, 1]) / 2 + 0.1
    linear = albedo * light[:, None] + SHINE * (glance ** SHININESS)[:, None]
    return np.clip(linear, 0, 1) ** (1 / 2.2) * 251 + 2         # 2 ... 253: interpolation may round beyond the ends


def _planes(values, edges, away) -> np.ndarray:
    """Values (A, 3, F) at the corners -> (A, 3, F): value at the first corner's sample, change per column, per row.

    edges: the two edges from the first corner, (2, 2, F). away (2, F): from that corner to the centre of its sample.
    """
    (x1, y1), (x2, y2) = edges
    rise = values[:, 1:] - values[:, :1]                                                # (A, 2, F)
    per_column, per_row = (np.stack([y2, -x2]), np.stack([-y1, x1])) / (x1 * y2 - x2 * y1)
    slope = rise[:, :1] * per_column + rise[:, 1:] * per_row
    return np.concatenate([values[:, :1] + (slope * away).sum(1, keepdims=True), slope], axis=1)


def _pack(depth, colour) -> np.ndarray:
    """Integer depth (...) and red, green, blue (3, ...), in their smallest steps -> samples (...) int64."""
    return (depth << DEPTH) + sum(part << field for part, field in zip(colour, FIELDS))


def _rasterize(samples, points, shaded, faces) -> None:
    """Draw the triangles that face the camera into samples (H, W) int64. Raises ValueError if they cover too much.

    points (V, 3): column and row in samples, depth; shaded (V, 3): colours in 2 ... 253; faces (F, 3).
    """
    height, width = samples.shape
    x, y = points[:, 0], points[:, 1]
    a, b, c = faces.T
    doubled = (x[c] - x[a]) * (y[b] - y[a]) - (x[b] - x[a]) * (y[c] - y[a])
    faces = faces[doubled > THINNEST]                           # counter-clockwise on the image, whose rows go down
    faces = np.take_along_axis(faces, y[faces].argsort(axis=1, kind="stable"), axis=1).T        # (3, F), top to bottom
    x, y = x[faces], y[faces]                                                           # (3, F)
    if np.ptp(y.clip(0, height), axis=0).sum() > LAYERS * height * width:
        raise ValueError(f"the head's {faces.shape[1]} triangles are too many and too long to render at this size")

    # The linear function of every triangle. Moving its origin to column 0, row 0 is exact, as integers wrap around.
    edges = np.stack([x[1:] - x[0], y[1:] - y[0]], axis=1)
    column, row = np.floor(x[0]).astype(np.int64), np.floor(y[0]).astype(np.int64)
    values = np.stack([points[:, 2], *(shaded.T * (1 << FRACTION))])[:, faces]          # (4, 3, F)
    planes = np.rint(_planes(values, edges, np.stack([column + 0.5 - x[0], row + 0.5 - y[0]]))).astype(np.int64)
    a, b, c = _pack(planes[0], planes[1:])
    a -= b * column + c * row

    # Halves: above and below the middle corner. A side is its column at the centre of row 0, and its slope. The two
    # triangles at an edge compute the same numbers for it, so no sample is written twice or left out.
    def side(i, j):
        slope = (x[j] - x[i]) / np.maximum(y[j] - y[i], 1e-9)
        return np.stack([x[i] + slope * (0.5 - y[i]) - 0.5, slope])

    long, above, below = side(0, 2), side(0, 1), side(1, 2)
    bulges_right = edges[0, 0] * edges[1, 1] > edges[1, 0] * edges[0, 1]
    left = np.concatenate([np.where(bulges_right, long, short) for short in (above, below)], axis=1)
    right = np.concatenate([np.where(bulges_right, short, long) for short in (above, below)], axis=1)
    rows = np.ceil(y - 0.5).clip(0, height).astype(np.int64)

    # Spans: the rows of every half, then the samples of every span. With c - b * width in place of c, a sample's index
    # in the image replaces its column.
    half, row = _ranges(np.concatenate(rows[:2]), np.diff(rows, axis=0).ravel())
    ends = (np.ceil(side[0][half] + side[1][half] * row).clip(0, width) for side in (left, right))
    begin, end = (column.astype(np.int64) + row * width for column in ends)
    a, b, c = (np.concatenate([part, part])[half] for part in (a, b, c - b * width))
    span, index = _ranges(begin, np.maximum(end - begin, 0))
    np.maximum.at(samples.reshape(-1), index, (a + c * row)[span] + b[span] * index)


def _ranges(first, count) -> tuple:
    """Concatenated ranges first[i], first[i] + 1, ... of length count[i] -> (index i of each integer, the integers)."""
    which = np.arange(len(count)).repeat(count)
    return which, np.arange(len(which)) + (first - (count.cumsum() - count))[which]


def _averaged(samples) -> np.ndarray:
    """Samples (2 H, 2 W) int64 -> pixels (H, W, 3) uint8."""
    total = samples[::2] + samples[1::2]
    total = total[:, ::2] + total[:, 1::2]
    return np.stack([(total >> field + FRACTION + 2).astype(np.uint8) for field in FIELDS], axis=2)


def renderer(head, track, size=512, yaw=0.0, background=BACKGROUND, close=False):
    """A function: frame (K,) of `track` (T, K) -> image (size, size, 3) uint8.

    Triangles that no frame of the track moves are rendered once, here; each call renders only the others over them.
    yaw: radians, positive turns the face to its own left. background: sRGB, 0 ... 255. close: only the face, from the
    brows to the chin.
    """
    active = np.flatnonzero(np.any(track, axis=0))
    matrix, offset = _camera(head, size, yaw, close)
    albedo, rest = head.colors.astype(np.float64) ** 2.2, normals(head.vertices, head.faces)
    moves = np.any(head.deltas[active], axis=(0, 2))
    turns = np.zeros(len(moves), bool)                          # vertices whose normals can change
    turns[head.faces[moves[head.faces].any(1)]] = True
    moving = turns[head.faces].any(1)

    samples = np.full((size * SAMPLES,) * 2, _pack(-2 * NEAREST, [int(value) << FRACTION for value in background]))
    _rasterize(samples, head.vertices @ matrix + offset, _shade(rest, albedo, yaw), head.faces[~moving])
    base = _averaged(samples)

    used, faces = np.unique(head.faces[moving], return_inverse=True)
    faces = faces.reshape(-1, 3)
    turns, rest, vertices, albedo = turns[used, None], rest[used], head.vertices[used], albedo[used]
    deltas = head.deltas[np.ix_(active, used)].reshape(len(active), 3 * len(used))

    def render(frame) -> np.ndarray:
        """A frame (K,) -> (size, size, 3) uint8."""
        image = base.copy()
        posed = vertices + (frame[active].astype(np.float32) @ deltas).reshape(-1, 3)
        points = posed @ matrix + offset
        if not len(points):
            return image
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        (left, top), (right, bottom) = (np.clip((low // SAMPLES, high // SAMPLES + 1), 0, size)).astype(int)
        crop = np.s_[top * SAMPLES:bottom * SAMPLES, left * SAMPLES:right * SAMPLES]
        over = samples[crop].copy()
        shaded = _shade(np.where(turns, normals(posed, faces), rest), albedo, yaw)
        _rasterize(over, points - (left * SAMPLES, top * SAMPLES, 0), shaded, faces)
        image[top:bottom, left:right] = _averaged(over)
        return image

    return render


def still(head, pose, size=512, yaw=0.0, background=BACKGROUND, close=False) -> np.ndarray:
    """An image (size, size, 3) uint8 of the head with the weights `pose` (K,). Other arguments as for `renderer`."""
    return renderer(head, np.asarray(pose)[None], size, yaw, background, close)(np.asarray(pose))


def images(head, track, size=512, yaw=0.0, background=BACKGROUND):
    """Yield the T images (size, size, 3) uint8 of a track (T, K), rendered by several threads.

    Equal frames in a row share one array.
    """
    render, workers = renderer(head, track, size, yaw, background), min(4, os.cpu_count() or 1)
    ahead, before = deque(), None
    with ThreadPoolExecutor(workers) as pool:           # threads suffice: numpy releases the interpreter's lock
        for frame in track:
            same = before is not None and np.array_equal(frame, before)
            ahead.append(ahead[-1] if same else pool.submit(render, frame))
            before = frame
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        for future in ahead:
            yield future.result()


def find_pillow():
    """Pillow's modules (Image, ImageDraw, ImageFont). Raises ValueError where it is not installed."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise ValueError("pictures need Pillow: pip install Pillow") from None
    return Image, ImageDraw, ImageFont


def write_png(path, image) -> None:
    """Write an image (H, W, 3) uint8. Raises ValueError where Pillow is missing."""
    picture = find_pillow()[0].fromarray(image)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def sheet(head, poses, columns=9, size=170, yaw=0.25) -> np.ndarray:
    """A contact sheet of the poses [(label, weights (K,)), ...], row by row -> (H, columns * size, 3) uint8.

    All labels have the largest font size at which the longest one fits. Raises ValueError if Pillow is missing.
    """
    Image, ImageDraw, ImageFont = find_pillow()
    fonts = (ImageFont.load_default(points) for points in range(max(size // 10, 7), 5, -1))
    font = next(font for font in fonts if font.size == 6 or max(font.getlength(name) for name, _ in poses) < size - 4)
    strip = 2 * font.size
    canvas = Image.new("RGB", (columns * size, -(-len(poses) // columns) * (size + strip)), BACKGROUND)
    text = ImageDraw.Draw(canvas)
    for i, (label, pose) in enumerate(poses):
        left, top = i % columns * size, i // columns * (size + strip)
        canvas.paste(Image.fromarray(still(head, pose, size, yaw, close=True)), (left, top))
        text.text((left + size // 2, top + size + strip // 2), label, fill=(40, 44, 52), font=font, anchor="mm")
    return np.asarray(canvas)


def write_video(path, track, sound, head, size=512, yaw=0.0) -> None:
    """Write a track (T, K) with its sound file (or None) as a video, frame t at t / 30 s.

    path: .mp4, H.264 and AAC by ffmpeg; or .webp, an animation by Pillow with the sound in a .wav of the same name. If
    the sound is longer than the face, the last frame is held; if the face is longer, silence follows the sound. An
    older file at `path` is replaced when the new one is complete. Raises ValueError for another ending, a track that is
    not (T, K) and finite, an odd size, an unreadable sound, a .wav of that name with another sound, or if ffmpeg or
    Pillow is missing.
    """
    path, track = Path(path), np.asarray(track, np.float32)
    if track.ndim != 2 or track.shape[1] != head.deltas.shape[0] or not len(track) or not np.isfinite(track).all():
        raise ValueError(f"a face track of shape {track.shape}: expected (frames, {len(head.deltas)}), all finite")
    write = {".mp4": _write_mp4, ".webp": _write_webp}.get(path.suffix.lower())
    if write is None:
        raise ValueError(f"cannot write a video as {path.name}: use a name that ends in .mp4 or .webp")
    if size % 2 or not 2 <= size <= 4096:
        raise ValueError(f"a video of {size} x {size} pixels: the sides must be even, 2 to 4096")
    write(path, np.clip(track, 0, 1), sound, head, size, yaw)


def _seconds(sound) -> float:
    """The length of a sound file, counted, as its header may not have it. Raises ValueError if it is unreadable."""
    with quiet(), open_sound(regular(sound, "a sound file")) as file:
        return sum(map(len, blocks(file, sound))) / file.samplerate


def find_ffmpeg() -> str:
    """Path of ffmpeg: imageio-ffmpeg's, else the one on the PATH. Raises ValueError if there is none."""
    try:
        import imageio_ffmpeg
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):         # RuntimeError: the package has no program
        found = shutil.which("ffmpeg")
    if found is None:
        raise ValueError("an .mp4 needs ffmpeg: pip install imageio-ffmpeg (a name ending in .webp works without)")
    return found


def _write_mp4(path, track, sound, head, size, yaw) -> None:
    total = len(track)
    command = [find_ffmpeg(), "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size}x{size}",
               "-r", str(FPS), "-i", "-"]
    if sound is not None:
        total = max(total, int(np.ceil(_seconds(sound) * FPS - 1e-6)))
        command += ["-i", str(Path(sound).resolve()), "-map", "0:v", "-map", "1:a", "-c:a", "aac",
                    "-af", f"apad=whole_dur={total / FPS:.6f}"]
    track = np.pad(track, ((0, total - len(track)), (0, 0)), mode="edge")
    with replacing(path) as temporary:
        command += ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p",
                    "-movflags", "+faststart", "-f", "mp4", str(temporary)]
        _pipe(tqdm(images(head, track, size, yaw), path.name, total, unit="frame", disable=None), command, path)


def _pipe(pictures, command, path) -> None:
    """Run ffmpeg with images as its input. Raises ValueError if it fails; it never outlives this function."""
    with tempfile.TemporaryFile() as log, \
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log) as encoder:
        try:
            with suppress(BrokenPipeError):     # ffmpeg has ended; the reason is read below
                for image in pictures:
                    encoder.stdin.write(image.data)
                encoder.stdin.close()
            encoder.wait()
        finally:
            encoder.kill()                      # after an interrupt or a failed image; no effect if it has ended
            with suppress(BrokenPipeError):
                encoder.stdin.close()
        if encoder.returncode:
            log.seek(0)
            reason = (log.read().decode(errors="replace").strip().rpartition("\n")[2]
                      or f"it ended with {encoder.returncode} and gave no reason")
            raise ValueError(f"ffmpeg could not write {path}: {reason}")


def _write_webp(path, track, sound, head, size, yaw) -> None:
    Image = find_pillow()[0]
    times = np.rint(np.arange(len(track) + 1) * 1000 / FPS)     # the format has whole milliseconds
    wave = None
    if sound is not None:
        times[-1] = max(times[-1], round(_seconds(sound) * 1000))
        wave = _wave(path.with_suffix(".wav"), sound)
    rendered = tqdm(images(head, track, size, yaw), path.name, len(track), unit="frame", disable=None)
    with ExitStack() as files:                  # renamed together, the wav last
        if wave is not None:
            files.enter_context(replacing(path.with_suffix(".wav"))).write_bytes(wave)
        temporary = files.enter_context(replacing(path))
        _film(Image, iter(rendered), len(track)).save(temporary, format="WEBP", save_all=True, loop=0, quality=80,
                                                      method=0, duration=np.diff(times).astype(int).tolist())


def _wave(wav: Path, sound) -> bytes | None:
    """The sound as a 16-bit wav to write at `wav`, or None if `sound` is that file itself.

    Raises ValueError if another sound is there, which would be lost.
    """
    import soundfile
    if wav.exists() and wav.samefile(sound):
        return None
    out = io.BytesIO()
    with quiet(), open_sound(sound) as file, soundfile.SoundFile(out, "w", file.samplerate, file.channels, "PCM_16",
                                                                 format="WAV") as copy:
        while len(block := file.read(1 << 16, dtype="int16")):
            copy.write(block)
    if wav.exists() and regular(wav, "a sound file").read_bytes() != out.getvalue():
        raise ValueError(f"{wav} holds another sound and would be overwritten: rename it, or write a .webp of another "
                         "name")
    return out.getvalue()


def _film(Image, pictures, count: int):
    """A Pillow image of `count` frames, taken from `pictures` while it is saved: all at once take a GiB per minute."""
    film, shown = Image.fromarray(next(pictures)), 0

    def seek(frame):                            # Pillow asks for the frames in order, and at the end for the first
        nonlocal shown
        if frame > shown:
            shown, film.im = frame, Image.fromarray(next(pictures)).im

    film.n_frames, film.seek = count, seek
    return film
