"""Opens a sound, and finds out whether it is cut off: libsndfile takes what is there for all there was.

A copy or a download that ended early leaves a size in the header that is larger than the file (chunks, au, Sphere), an
Ogg stream without its last page, or half a frame of an mp3. FLAC shows it while it is read (`audio.blocks`). A recorder
that streams, or was killed, leaves a size that is too small or none: there is sound to the end of the file.
"""
import math
from dataclasses import dataclass

UNKNOWN = 2 ** 63 - 1       # frames, as libsndfile says it of a FLAC that was written to a pipe
STREAMED = 0x7f000000       # bytes: who writes to a pipe states this much or more, and means "until the end"
SLACK, MP3_SLACK = 0.01, 0.1        # seconds that may be missing: headers, and encoders of mp3, are somewhat off
TELEPHONE = 8_000           # Hz: a lower rate holds no band that speech is understood from
# The first bytes of a file -> where its chunks begin; bytes of a chunk's name, of its size; their order; what the size
# counts besides what follows it; what chunks are padded to a multiple of.
CHUNKS = {b"RIFF": (12, 4, 4, "little", 0, 2), b"RIFX": (12, 4, 4, "big", 0, 2), b"RF64": (12, 4, 4, "little", 0, 2),
          b"FORM": (12, 4, 4, "big", 0, 2), b"caff": (8, 4, 8, "big", 0, 1), b"riff": (40, 16, 8, "little", 24, 8)}
MOST_CHUNKS = 1000          # before the sound: a damaged header may state zero for ever
KBPS = ((8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),                # of mp3: MPEG-2 and 2.5
        (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320))            # MPEG-1


@dataclass
class Extent:
    """Of a sound in its file. share: bytes that its header states over those that are there; size_at, size_bytes: where
    that stands, if there is more than it says; samples: as many at least; broken: what is not whole at its end; guess:
    whether libsndfile guesses its length."""
    share: float = 1
    size_at: int = 0
    size_bytes: int = 0
    samples: int = 0
    broken: str = ""
    guess: bool = False


def forwards(raw):
    """The soundfile.SoundFile of an open file; extent: an `Extent`, None where the container shows none. Raises
    soundfile.LibsndfileError where it is not audio."""
    import soundfile

    class Forwards(soundfile.SoundFile):
        """soundfile seeks after every read, which fails at the end of a FLAC of unknown length."""

        def seekable(self):
            return False

    extent = sized(raw)
    raw.seek(0)
    file = Forwards(Mended(raw, extent) if extent and extent.size_at else raw)
    at = raw.tell()
    others = {"MP3": mp3_frames, "OGG": ogg_pages, "FLAC": lambda raw: Extent(guess=file.frames == UNKNOWN)}
    file.extent = extent or others.get(file.format, lambda raw: None)(raw)
    raw.seek(at)
    return file


def notes_of(file, count: int) -> dict:
    """kind -> what is odd about the length and the rate of an open file, of which (count, channels) can be read."""
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


class Mended:
    """An open file whose size has a wrong number at `extent.size_at`: it is read as "unknown", which libsndfile takes
    for "until the end"."""

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


def sized(raw) -> Extent | None:
    """The extent of a sound whose size is stated in bytes: in chunks (wav, rf64, w64, aiff, svx, caf), au, Sphere.
    None where it is no such file."""
    end, number = raw.seek(0, 2), int.from_bytes
    raw.seek(0)
    head = raw.read(1024)
    if head[:4] == b".snd":
        return compared(8, 4, number(head[8:12], "big"), end - number(head[4:8], "big"))
    if head[:7] == b"NIST_1A":
        fields = {words[0]: words[2] for line in head.splitlines() if len(words := line.split()) == 3}
        names = (b"sample_count", b"channel_count", b"sample_n_bytes")
        if all(fields.get(name, b"").isdigit() for name in names):
            return compared(0, 0, math.prod(int(fields[name]) for name in names), end - 1024)
    if head[:4] not in CHUNKS:
        return None
    at, named, counted, order, besides, padded = CHUNKS[head[:4]]

    def chunk(at):
        raw.seek(min(at, end))
        return raw.read(named)[:4], max(0, number(raw.read(counted), order) - besides), at + named + counted

    long = ()                                                       # rf64 has its size elsewhere
    for _ in range(MOST_CHUNKS):
        name, size, begin = chunk(at)
        if name == b"ds64":
            long = begin + 8, 8, number(raw.read(16)[8:], "little")
        if name in (b"data", b"SSND", b"BODY"):
            place = long or (at + named, counted, size)
            extent, after = compared(*place, end - begin), begin + place[2] + -place[2] % padded
            follows, length, inside = chunk(after)
            whole = follows.isascii() and follows.decode().isprintable() and inside + length <= end + 1
            if inside >= end or whole or follows[:3] in (b"ID3", b"TAG", b"APE"):       # another chunk, a player's tag
                extent.size_at = 0
            return extent
        at = begin + size + -size % padded
    return Extent()


def compared(size_at: int, size_bytes: int, stated: int, held: int) -> Extent:
    """The extent of a sound whose header states a number of bytes, where `held` are left of the file."""
    if stated >= (STREAMED if size_bytes == 4 else 2 ** 62) or stated == held:
        return Extent()
    return Extent(stated / max(1, held)) if stated > held else Extent(1, size_at, size_bytes)


def ogg_pages(raw) -> Extent:
    """The extent of an Ogg stream, whose last page says that it is the last one, and is whole. Of streams one after the
    other libsndfile reads the first; those that begin with it have their serial numbers in the first bytes."""
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
    """The extent of an mp3: its frames are counted. Only a tag in the first one says how many there are."""
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
            break                                                   # a tag, or no frame of layer III
        size = 1152 if version == 3 else 576
        hertz = (44100, 48000, 32000)[rate] >> (2, 0, 1, 0)[version]
        length = size * 125 * KBPS[version == 3][kbps - 1] // hertz
        if not frames:
            first = raw.read(64)
            tagged = any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))
        frames, at = frames + 1, at + length + (head >> 9 & 1)
    least = size * max(0, frames - 6)                               # the tag's, an encoder's delay and padding
    return Extent(samples=least, broken="its last frame is not whole" if at > end else "", guess=not tagged)
