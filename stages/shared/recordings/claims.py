"""Compares the length that a sound file's headers claim with the bytes that it has."""

import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

# A WAV that was written to a pipe claims 0xFFFFFFFF (ffmpeg), 0x7FFFFFFF (arecord) or 0x7FFFF000 (SoX) bytes: unknown.
UNKNOWN_BYTES = 0x7FFF_0000
OGG_PAGE = 27 + 255 + 255 * 255  # the most bytes
CHUNKS = 1000  # the most before the samples; a broken file may seem to have millions


@dataclass(frozen=True)
class Claim:
    data_bytes: int = 0  # of samples that the file has
    missing_bytes: int = 0  # that the headers claim and the file lacks
    unended: bool = False  # an Ogg stream without its last page
    counts_frames: bool = True  # whether libsndfile's number of frames is written in the file
    unset_size: int | None = None  # position of a WAV's size field that says 0 although samples follow


def read_claim(stream: BinaryIO) -> Claim:
    """Reads the claim from the headers; it is empty for other formats. Leaves `stream` at its beginning."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(1024)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
        claim = _chunks(stream, size, ">" if head[:4] in (b"RIFX", b"FORM") else "<")
    elif head[:4] in (b".snd", b"dns.") and len(head) >= 12:
        start, length = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:12])
        claim = _span(start, length, size)
    elif head[:4] == b"riff" and len(head) >= 24:
        claim = _span(0, struct.unpack("<Q", head[16:24])[0], size)
    elif head[:7] == b"NIST_1A":
        claim = _nist(head, size)
    elif head[:4] == b"OggS":
        claim = Claim(unended=not _ogg_ended(stream, size))
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        claim = Claim(counts_frames=_mp3_counts_frames(stream, head))
    else:
        claim = Claim()
    stream.seek(0)
    return claim


def _span(start: int, length: int, size: int) -> Claim:
    if length >= UNKNOWN_BYTES:
        return Claim()
    return Claim(data_bytes=max(0, size - start), missing_bytes=max(0, start + length - size))


def _chunks(stream: BinaryIO, size: int, order: str) -> Claim:
    """Reads the claim of a WAV, of any variant, or AIFF: chunk after chunk up to the one with the samples."""
    at, long_size = 12, None
    for _ in range(CHUNKS):
        name, length = _chunk(stream, at, order)
        if name == b"ds64":
            _, long_size = struct.unpack("<QQ", stream.read(16).ljust(16, b"\0"))
        elif name in (b"data", b"SSND", b"BODY"):
            if name == b"data" and length == 0 and _is_sound(stream, at + 8, size, order):
                return Claim(unset_size=at + 4)
            if long_size is not None and length == 0xFFFF_FFFF:
                return Claim(max(0, size - at - 8), max(0, at + 8 + long_size - size)) if long_size else Claim()
            return _span(at + 8, length, size)
        at += 8 + length + length % 2
        if at >= size:
            break
    return Claim()


def _chunk(stream: BinaryIO, at: int, order: str) -> tuple[bytes, int]:
    stream.seek(at)
    name, length = struct.unpack(f"{order}4sI", stream.read(8).ljust(8, b"\0"))
    return name, length


def _is_sound(stream: BinaryIO, at: int, size: int, order: str) -> bool:
    """Returns whether samples follow an empty `data` chunk, instead of a further chunk: the recorder never wrote the size."""
    name, length = _chunk(stream, at, order)
    return at < size and not (re.fullmatch(rb"[A-Za-z0-9 _]{4}", name) and at + 8 + length <= size)


def _nist(head: bytes, size: int) -> Claim:
    found = dict(re.findall(rb"(sample_count|channel_count|sample_n_bytes) -i (\d{1,12})", head))
    values = [int(found.get(name, 0)) for name in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    header = int(head[8:16]) if head[8:16].strip().isdigit() else 1024
    coded = re.search(
        rb"sample_coding -s\d+ \w+,", head
    )  # compressed (shorten): the samples take fewer bytes than claimed
    return Claim() if coded else _span(header, values[0] * values[1] * values[2], size)


def _ogg_ended(stream: BinaryIO, size: int) -> bool:
    """Returns whether the last page is whole and marked as the last."""
    stream.seek(max(0, size - 2 * OGG_PAGE))
    tail = stream.read()
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27 + tail[at + 26 : at + 27].ljust(1, b"\0")[0]:
        return False
    lacing = tail[at + 27 : at + 27 + tail[at + 26]]
    return bool(tail[at + 5] & 4) and len(tail) >= at + 27 + len(lacing) + sum(lacing)


def _mp3_counts_frames(stream: BinaryIO, head: bytes) -> bool:
    """Returns whether there is a Xing, Info or VBRI header. Without it an MP3's length is estimated from its first frame."""
    start = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        start = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))
    stream.seek(start)
    return re.search(rb"\xff[\xe2-\xff].{7,40}?(Xing|Info|VBRI)", stream.read(4096), re.DOTALL) is not None
