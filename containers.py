"""Opens a sound file and finds out whether it is truncated, which libsndfile does not report.

A copy or a download that ended early leaves a header whose size is larger than the file (chunks, au, Sphere), an Ogg
stream without its last page, or half a frame of an mp3. A truncated FLAC fails while it is read (`audio.blocks`). A
recorder that streams, or was killed, leaves a size that is too small or none: then all of the file is sound.
"""
import math
from dataclasses import dataclass

UNKNOWN = 2 ** 63 - 1       # libsndfile's number of frames for a FLAC that was written to a pipe
STREAMED = 0x7f000000       # bytes: programs that write to a pipe state this size or more, for "until the end"
SLACK, MP3_SLACK = 0.01, 0.1        # seconds that may be missing: headers and mp3 encoders are slightly off
TELEPHONE = 8_000           # Hz: speech at a lower rate cannot be understood
# The first bytes of a file -> offset of its first chunk; bytes of a chunk's name; bytes of its size; byte order; bytes
# of the chunk's own header that the size includes; alignment of chunks.
CHUNKS = {b"RIFF": (12, 4, 4, "little", 0, 2), b"RIFX": (12, 4, 4, "big", 0, 2), b"RF64": (12, 4, 4, "little", 0, 2),
          b"FORM": (12, 4, 4, "big", 0, 2), b"caff": (8, 4, 8, "big", 0, 1), b"riff": (40, 16, 8, "little", 24, 8)}
MOST_CHUNKS = 1000          # before the sound; ends the search in a damaged header
KBPS = ((8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),                # of mp3: MPEG-2 and 2.5
        (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320))            # MPEG-1


@dataclass
class Extent:
    """The stated length of a sound against the real one. share: bytes stated in the header / bytes in the file.
    size_at, size_bytes: position and width of the header's size if it is too small, else 0. samples: lower bound of
    the length. broken: what is incomplete at the end. guess: libsndfile only estimates the length."""
    share: float = 1
    size_at: int = 0
    size_bytes: int = 0
    samples: int = 0
    broken: str = ""
    guess: bool = False


def forwards(raw):
    """The soundfile.SoundFile of an open file, with an attribute extent: an `Extent`, None for containers not known
    here. Raises soundfile.LibsndfileError if it is not audio."""
    import soundfile

    class Forwards(soundfile.SoundFile):
        """soundfile seeks after every read, which fails at the end of a FLAC of unknown length."""

        def seekable(self):
            return False

    extent = stated_extent(raw)
    raw.seek(0)
    file = Forwards(Patched(raw, extent) if extent and extent.size_at else raw)
    at = raw.tell()
    others = {"MP3": mp3_frames, "OGG": ogg_pages, "FLAC": lambda raw: Extent(guess=file.frames == UNKNOWN)}
    file.extent = extent or others.get(file.format, lambda raw: None)(raw)
    raw.seek(at)
    return file


def notes_of(file, count: int) -> dict:
    """kind -> message about the length and the rate of an open file, of which `count` samples can be read."""
    rate, seconds, extent = file.samplerate, count / file.samplerate, file.extent or Extent(guess=True)
    stated = max(count * extent.share, extent.samples, 0 if extent.guess else file.frames)
    notes = {}
    if stated - count > (MP3_SLACK if file.format == "MP3" else SLACK) * rate:
        notes["cut off"] = f"is cut off or damaged: {seconds:.2f} of {stated / rate:.2f} s can be read"
    elif extent.broken:
        notes["cut off"] = f"is cut off: {extent.broken} after {seconds:.2f} s"
    if extent.size_at:
        notes["length"] = f"has another length in its header than it has: all {seconds:.1f} s are taken"
    if file.extent is None:
        notes["length"] = f"is of a kind ({file.format}) that does not show whether it is cut off"
    if rate < TELEPHONE:
        notes["low rate"] = f"has {rate} samples per second, too few to understand speech: expected {TELEPHONE} or more"
    return notes


class Patched:
    """An open file whose header states a wrong size at `extent.size_at`. Reads give the largest number there, which
    libsndfile takes for "until the end"."""

    def __init__(self, raw, extent: Extent):
        self.raw, self.seek, self.tell = raw, raw.seek, raw.tell
        self.patch = range(extent.size_at, extent.size_at + extent.size_bytes)

    def read(self, count=-1) -> bytes:
        begin = self.raw.tell()
        data = bytearray(self.raw.read(count))
        for at in self.patch:
            if begin <= at < begin + len(data):
                data[at - begin] = 0xff
        return bytes(data)


def stated_extent(raw) -> Extent | None:
    """The extent of a sound whose header states its size: chunks (wav, rf64, w64, aiff, svx, caf), au, Sphere. None for
    any other file."""
    end, number = raw.seek(0, 2), int.from_bytes
    raw.seek(0)
    head = raw.read(1024)
    if head[:4] == b".snd":
        return extent_of(8, 4, number(head[8:12], "big"), end - number(head[4:8], "big"))
    if head[:7] == b"NIST_1A":
        fields = {words[0]: words[2] for line in head.splitlines() if len(words := line.split()) == 3}
        names = (b"sample_count", b"channel_count", b"sample_n_bytes")
        if all(fields.get(name, b"").isdigit() for name in names):
            return extent_of(0, 0, math.prod(int(fields[name]) for name in names), end - 1024)
    if head[:4] not in CHUNKS:
        return None
    at, name_bytes, size_bytes, order, own_bytes, alignment = CHUNKS[head[:4]]

    def chunk(at):
        raw.seek(min(at, end))
        name, size = raw.read(name_bytes)[:4], number(raw.read(size_bytes), order)
        return name, max(0, size - own_bytes), at + name_bytes + size_bytes

    ds64 = ()                                                       # the chunk in which rf64 has its size
    for _ in range(MOST_CHUNKS):
        name, size, begin = chunk(at)
        if name == b"ds64":
            ds64 = begin + 8, 8, number(raw.read(16)[8:], "little")
        if name in (b"data", b"SSND", b"BODY"):
            size_at, width, stated = ds64 or (at + name_bytes, size_bytes, size)
            extent = extent_of(size_at, width, stated, end - begin)
            follows, length, inside = chunk(begin + stated + -stated % alignment)
            whole = follows.isascii() and follows.decode().isprintable() and inside + length <= end + 1
            if inside >= end or whole or follows[:3] in (b"ID3", b"TAG", b"APE"):       # another chunk, a player's tag
                extent.size_at = 0
            return extent
        at = begin + size + -size % alignment
    return Extent()


def extent_of(size_at: int, size_bytes: int, stated: int, present: int) -> Extent:
    """The extent of a sound whose header states a number of bytes, of which `present` are in the file."""
    if stated >= (STREAMED if size_bytes == 4 else 2 ** 62) or stated == present:
        return Extent()
    return Extent(stated / max(1, present)) if stated > present else Extent(1, size_at, size_bytes)


def ogg_pages(raw) -> Extent:
    """The extent of an Ogg stream. Its last page must be complete and marked as the last one. Of several streams one
    after the other libsndfile reads only the first; streams that are interleaved with it start in the first bytes."""
    raw.seek(0)
    begin = raw.read(256)
    raw.seek(max(0, raw.seek(0, 2) - 2 ** 17))                      # a page has 64 KiB at most
    tail = raw.read()
    at = tail.rfind(b"OggS\0")
    page = tail[at:]
    whole = at >= 0 and len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27:27 + page[26]]) and page[5] & 4
    return Extent(broken="its last page is missing" if not whole else
                  "another stream follows" if page[14:18] not in begin else "")


def mp3_frames(raw) -> Extent:
    """The extent of an mp3, from its number of frames. Without a tag in the first one libsndfile guesses the length."""
    end = raw.seek(0, 2)
    raw.seek(0)
    head = raw.read(10)
    at = 10 + sum(byte << 7 * n for n, byte in enumerate(head[:5:-1])) if head[:3] == b"ID3" else 0
    frames, size, tagged = 0, 576, False
    while at + 4 <= end:
        raw.seek(min(at, end))
        head = int.from_bytes(raw.read(4), "big")
        version, rate, kbps = head >> 19 & 3, head >> 10 & 3, head >> 12 & 15
        if head >> 21 != 0x7ff or head >> 17 & 3 != 1 or version == 1 or rate == 3 or kbps in (0, 15):
            break                                                   # a tag at the end, or not layer III
        size = 1152 if version == 3 else 576
        hertz = (44100, 48000, 32000)[rate] >> (2, 0, 1, 0)[version]
        length = size * 125 * KBPS[version == 3][kbps - 1] // hertz
        if not frames:
            first = raw.read(64)
            tagged = any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))
        frames, at = frames + 1, at + length + (head >> 9 & 1)
    least = size * max(0, frames - 6)                               # without the tag, encoder delay and padding
    return Extent(samples=least, broken="its last frame is not whole" if at > end else "", guess=not tagged)
