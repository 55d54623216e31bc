"""Writes and reads shards as WebDataset tars.

`<row>.json` holds strings and numbers, `<row>.<field>.npy` an array, `<row>.flac` audio. The stock `webdataset` package writes
them and can read them. Here they are read member by member: the stock reader ends silently at a tar that was cut at a member
boundary, and unpickles what it is given.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from cache.errors import PipelineError
from cache.npy import npy_bytes, read_npy
from cache.records import AUDIO_FIELD, READ_BYTES, READ_RECORDS, array_dtype, check_record

SUFFIX = ".tar"
JSON_BYTES = 1 << 20  # of a sample; parsed JSON can take thirty times its length


def write(file: BinaryIO, fields: dict[str, str], records: list[dict]) -> None:
    """Writes `records`. The bytes depend only on them: time stamps and owners are fixed."""
    import webdataset  # imported here: it loads torch, which nothing else in this package needs

    with webdataset.TarWriter(file, mtime=0, user="root", group="root") as tar:
        for row, record in enumerate(records):
            tar.write({"__key__": _key(row), **_members(record, fields)})


def _key(row: int) -> str:
    return f"{row:06d}"


def _members(record: dict, fields: dict[str, str]) -> dict[str, bytes]:
    # Keys are row numbers, and ids are in the JSON: as a key, an id with a dot would silently merge with its neighbour.
    scalars = {name: record[name] for name, kind in fields.items() if kind != "bytes" and array_dtype(kind) is None}
    members = {"json": json.dumps(scalars, ensure_ascii=False).encode()}
    if len(members["json"]) > JSON_BYTES:
        raise PipelineError(f"{record['id']}: {len(members['json'])} bytes of text, expected at most {JSON_BYTES}")
    for name, kind in fields.items():
        if array_dtype(kind) is not None:
            members[_ending(name, kind)] = npy_bytes(record[name])
        elif kind == "bytes":
            members[_ending(name, kind)] = record[name]
    return members


def _ending(name: str, kind: str) -> str:
    """Returns the ending of the member that holds a field."""
    if array_dtype(kind) is not None:
        return f"{name}.npy"
    return "flac" if name == AUDIO_FIELD else "json"


def read(file: BinaryIO, fields: dict[str, str], where: str) -> list[dict]:
    """Returns the shard's records in order, with the named `fields` (all, or some of them); arrays are numpy arrays.

    Members without a wanted field are skipped, as by the stock reader. Nothing is extracted: a member's name is never a path.
    Raises PipelineError, beginning with `where`, on a damaged or foreign file.
    """
    try:
        samples = _samples(file, {"json", *(_ending(name, kind) for name, kind in fields.items())})
    except (tarfile.TarError, OSError, ValueError, MemoryError) as error:
        raise PipelineError(f"{where}: not a readable tar shard ({error})") from None
    return [_record(members, fields, f"{where}, sample {_key(row)}") for row, members in enumerate(samples)]


def _samples(file: BinaryIO, wanted: set[str]) -> list[dict[str, bytes]]:
    """Returns the members of each sample that have the `wanted` endings."""
    samples: list[dict[str, bytes]] = []
    seen: set[str] = set()
    current = None
    for name, size in _members_of(file):
        key, _, ending = name.partition(".")
        if name in seen or not ending:
            raise ValueError(f"member {name!r} is {'there twice' if ending else 'no file of a sample'}")
        seen.add(name)
        if key != current:
            if key != _key(len(samples)) or len(samples) == READ_RECORDS:
                raise ValueError(f"sample {key!r}, expected {_key(len(samples))!r}, and at most {READ_RECORDS}")
            current = key
            samples.append({})
        if ending in wanted:
            samples[-1][ending] = file.read(size)
    return samples


def _members_of(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Yields each member's name and size, with `file` at the start of its data.

    tarfile itself follows links, makes sparse files of terabytes, lets one header override the next, allocates what a header
    claims, and ends silently at a damaged one. Here a member that is not a plain file within the archive is refused.
    """
    end = file.seek(0, os.SEEK_END)
    if end > READ_BYTES:
        raise ValueError(f"{end} bytes, expected at most {READ_BYTES}")
    at = 0
    while at < end:
        file.seek(at)
        block = file.read(tarfile.BLOCKSIZE)
        if not any(block):
            return
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        at += tarfile.BLOCKSIZE + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"member {member.name!r} is no plain file (type {member.type!r})")
        if member.size < 0 or at > end:
            raise ValueError(f"member {member.name!r} of {member.size} bytes is cut at {end}")
        yield member.name, member.size


def _record(members: dict[str, bytes], fields: dict[str, str], where: str) -> dict:
    try:
        if len(members["json"]) > JSON_BYTES:
            raise ValueError(f"{len(members['json'])} bytes of JSON, expected at most {JSON_BYTES}")
        record = dict(json.loads(members["json"], parse_int=_int))
        for name, kind in fields.items():
            if array_dtype(kind) is not None:
                record[name] = read_npy(members[_ending(name, kind)])
            elif kind == "bytes":
                record[name] = members[_ending(name, kind)]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise PipelineError(f"{where}: not a sample of this kind ({error})") from None
    return check_record({name: record[name] for name in fields if name in record}, fields, where)


def _int(digits: str) -> int:
    """Raises ValueError at more than 20 digits: Python's time grows with the square of a number's length."""
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
