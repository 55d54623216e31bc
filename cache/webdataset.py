"""Shards as WebDataset tars: `<row>.json` for strings and numbers, `<row>.<field>.npy` per array, `<row>.flac` for audio.

Written with the stock `webdataset` writer and readable with its reader. Read here by `tarfile`, member by member, since
the stock reader ends in silence at a tar that was cut at a member boundary and would unpickle what it is given.
"""

import json
import tarfile
import tokenize
from typing import BinaryIO

from cache.errors import PipelineError
from cache.npy import npy_bytes, read_npy
from cache.records import AUDIO_FIELD, array_dtype, check_record

SUFFIX = ".tar"


def write(file: BinaryIO, fields: dict[str, str], records: list[dict]) -> None:
    """Writes `records`; the bytes depend on nothing but them (time stamps and owners are fixed)."""
    import webdataset  # here, since it loads torch, which nothing else in this package needs

    with webdataset.TarWriter(file, mtime=0, user="root", group="root") as tar:
        for row, record in enumerate(records):
            tar.write({"__key__": f"{row:06d}", **_members(record, fields)})


def _members(record: dict, fields: dict[str, str]) -> dict[str, bytes]:
    # Keys are row numbers and ids stand in the JSON: an id with a dot would silently merge with its neighbour.
    scalars = {name: record[name] for name, kind in fields.items() if kind != "bytes" and array_dtype(kind) is None}
    members = {"json": json.dumps(scalars, ensure_ascii=False).encode()}
    for name, kind in fields.items():
        if array_dtype(kind) is not None:
            members[_ending(name, kind)] = npy_bytes(record[name])
        elif kind == "bytes":
            members[_ending(name, kind)] = record[name]
    return members


def _ending(name: str, kind: str) -> str:
    """Of the member that holds a field."""
    if array_dtype(kind) is not None:
        return f"{name}.npy"
    return "flac" if name == AUDIO_FIELD else "json"


def read(file: BinaryIO, fields: dict[str, str], where: str) -> list[dict]:
    """The shard's records in order, with the named `fields` (all, or some of them); arrays as numpy.

    Raises PipelineError, which begins with `where`, on a damaged or foreign file.
    """
    wanted = {"json", *(_ending(name, kind) for name, kind in fields.items())}
    samples: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                stream = tar.extractfile(member)
                if stream is None or not ending:
                    raise PipelineError(f"{where}: member '{member.name}' is not a file of a sample")
                if ending in wanted:
                    samples.setdefault(key, {})[ending] = stream.read()
        return [_record(members, fields, f"{where}, sample {key}") for key, members in samples.items()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise PipelineError(f"{where}: not a readable tar shard ({error})") from None


def _record(members: dict[str, bytes], fields: dict[str, str], where: str) -> dict:
    try:
        record = dict(json.loads(members["json"]))
        for name, kind in fields.items():
            if array_dtype(kind) is not None:
                record[name] = read_npy(members[_ending(name, kind)])
            elif kind == "bytes":
                record[name] = members[_ending(name, kind)]
    except (KeyError, ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise PipelineError(f"{where}: not a sample of this kind ({error})") from None
    return check_record({name: record[name] for name in fields if name in record}, fields, where)
