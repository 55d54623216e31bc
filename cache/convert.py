"""Writes the records of a folder of shards again in another format, with the other facts of its manifest."""

from typing import Any

from cache import files
from cache.errors import PipelineError
from cache.locks import sole_writer
from cache.progress import Progress, silent
from cache.resume import Rerun
from cache.shards import LEFT_OUT, NOTICED, ShardReader, ShardWriter, write_shard
from cache.storage import AnyPath

_OF_FILE = {
    "index",
    "name",
    "rows",
    "bytes",
    "sha256",
}  # fields of an entry that depend on the format or are counted again
_OF_HEADER = {"format_version", "kind", "format", "fields", "settings", "shards", "rows", "sha256"}


def convert(
    source: ShardReader,
    out: AnyPath,
    format: str,
    rerun: Rerun = "refuse",
    progress: Progress[str] = silent,
) -> dict[str, Any]:
    """Writes the records of `source` to `out` in `format` and returns the manifest. Resumes where it was interrupted.

    Raises PipelineError where a shard does not hold the records that its manifest lists, and, if `rerun` is `refuse`, where
    `out` holds other records.
    """
    if str(out.resolve()) == str(source.folder.resolve()):
        raise PipelineError(f"{out}: this is the folder of the shards themselves, expected another folder to write to")
    with sole_writer(out):
        return _convert(source, ShardWriter(out, source.kind, source.provenance, format, rerun), rerun, progress)


def _convert(source: ShardReader, writer: ShardWriter, rerun: Rerun, progress: Progress[str]) -> dict[str, Any]:
    out = writer.folder
    _discard_others(source, writer, rerun)
    done, total = sum(source.rows[index] for index in writer.shards), sum(source.rows)
    progress(total if writer.complete else done, total, "")
    if writer.complete:
        return ShardReader(out, source.kind).manifest
    for index, rows in enumerate(source.rows):
        if index not in writer.shards:
            writer.record(_converted(source, index, out, writer.format))
            done += rows
            progress(done, total, "")
    _copy(source.folder / LEFT_OUT, out / LEFT_OUT)
    if (source.folder / NOTICED).exists():
        _copy(source.folder / NOTICED, out / NOTICED)
    for entry in source.data_files[len(source.shards) :]:
        _copy(source.folder / entry["name"], out / entry["name"])
        if files.sha256_file(out / entry["name"]) != entry.get("sha256"):
            raise _damaged(source, entry["name"])
    return writer.finish(**{name: value for name, value in source.manifest.items() if name not in _OF_HEADER})


def _discard_others(source: ShardReader, writer: ShardWriter, rerun: Rerun) -> None:
    """Discards records that differ from the source's.

    Equal settings do not ensure equal records: another machine rounds otherwise, or a transcript was corrected.
    """
    entries = ShardReader(writer.folder, source.kind).shards if writer.complete else list(writer.shards.values())
    expected = {entry["index"]: entry["content"] for entry in source.shards}
    found = {entry["index"]: entry["content"] for entry in entries}
    if not found.items() <= expected.items() or (writer.complete and found != expected):
        if rerun == "refuse":
            raise PipelineError(
                f"{writer.folder}: shards with the same settings, but other records than those of {source.folder}, are "
                "there already: give --update or --restart to make them again, or another folder"
            )
        writer.discard()


def _converted(source: ShardReader, index: int, out: AnyPath, format: str) -> dict[str, Any]:
    entry = source.shards[index]
    facts = {name: value for name, value in entry.items() if name not in {*_OF_FILE, "content"}}
    written = write_shard(out, source.kind, format, index, source.read(index), **facts)
    if written["content"] != entry["content"]:
        (out / written["name"]).unlink()
        raise _damaged(source, entry["name"])
    return written


def _damaged(source: ShardReader, name: str) -> PipelineError:
    return PipelineError(
        f"{source.folder / name}: its content is not what was written: `pipeline cache verify {source.folder}` lists all faults"
    )


def _copy(source: AnyPath, target: AnyPath) -> None:
    with files.atomic_path(target) as temporary:
        temporary.write_bytes(source.read_bytes())
