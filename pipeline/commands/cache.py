"""pipeline cache info, verify, convert, diff"""

from collections.abc import Iterator
from typing import Any

from cache.convert import convert as convert_shards
from cache.description import counts, described
from cache.diff import LIKELY, compare
from cache.errors import PipelineError
from cache.info import statistics
from cache.resume import Rerun
from cache.shards import ShardReader, open_shards
from cache.storage import AnyPath
from cache.verify import faults
from pipeline.errors import each
from pipeline.options import print_descriptions, print_json, printable
from pipeline.progress import ProgressReport
from stages.shared.audio import SAMPLE_RATE, audio_sha256, decode_flac

IDS_SHOWN = 10


def info(folders: tuple[AnyPath, ...], as_json: bool) -> None:
    found: list[dict[str, Any]] = []

    def look(folder: AnyPath) -> None:
        with ProgressReport(f"cache info {folder}", "records") as progress:
            found.append(statistics(open_shards(folder), progress))

    try:
        each(folders, str, look)
    finally:
        print_descriptions(found, as_json, described)


def verify(folders: tuple[AnyPath, ...], utterances: AnyPath | None) -> None:
    """Prints every fault. Raises PipelineError with their number."""
    source = ShardReader(utterances, "utterances", check_sizes=False) if utterances else None
    broken = found = 0
    for folder in folders:
        before = found
        with ProgressReport(f"cache verify {folder}", "records") as progress:
            for fault in faults(folder, source, _audio_faults, progress):
                print(printable(fault), flush=True)
                found += 1
        broken += found > before
        if found == before:
            reader = open_shards(folder)
            print(f"{printable(str(folder))}: {len(reader.shards)} shards, {sum(reader.rows)} records: whole")
    if found:
        raise PipelineError(
            f"faults: {found}, in {broken} of {len(folders)} folders: make them again, or copy them again"
        )


def _audio_faults(record: dict) -> list[str]:
    """Compares the audio of an utterance with its record. Returns a line for each difference."""
    try:
        samples = decode_flac(record["audio"], record["seconds"])
    except PipelineError as error:
        return [str(error)]
    found = {
        f"{len(samples) / SAMPLE_RATE} seconds of audio": (len(samples) / SAMPLE_RATE, record["seconds"]),
        "audio_sha256 of the samples": (audio_sha256(samples), record["audio_sha256"]),
    }
    return [f"{name}: {one}, expected {other}" for name, (one, other) in found.items() if one != other]


def convert(folder: AnyPath, out: AnyPath, format: str, rerun: Rerun) -> None:
    with ProgressReport(f"cache convert {folder}", "records") as progress:
        manifest = convert_shards(open_shards(folder), out, format, rerun, progress)
    size = sum(entry["bytes"] for entry in manifest["shards"])
    print(f"{out}: {len(manifest['shards'])} {format} shards, {manifest['rows']} records, {size} bytes")


def diff(first: AnyPath, second: AnyPath, as_json: bool) -> bool:
    """Prints how the two differ. Returns whether they are equal."""
    readers = open_shards(first), open_shards(second)
    with ProgressReport(f"cache diff {first} {second}", "records") as progress:
        found = compare(*readers, progress)
    if as_json:
        print_json(found)
    else:
        for line in _differences(found):
            print(printable(line))
    return found["equal"]


def _differences(found: dict[str, Any]) -> Iterator[str]:
    first, second = found["folders"]
    yield f"records: {found['records'][0]} in {first}, {found['records'][1]} in {second}, {found['same']} the same"
    for name, (one, other) in found["settings"].items():
        yield f"setting {name}: {one!r} in {first}, {other!r} in {second}"
    if found["shards"]:
        yield f"records per shard: {found['shards'][0]} in {first}, {found['shards'][1]} in {second}"
    for folder, ids in ((first, found["only_in_first"]), (second, found["only_in_second"])):
        if ids:
            more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
            yield f"only in {folder}: {len(ids)} records: {', '.join(ids[:IDS_SHOWN])}{more}"
    if found["moved"]:
        yield f"in another place: {found['moved']} records"
    for name, count in found["fields"].items():
        yield f"field {name}: differs in {count} records"
    if found["left_out"]:
        yield f"left out: {counts(found['left_out'][0]) or 'nothing'}; {counts(found['left_out'][1]) or 'nothing'}"
    if found["tail"]:
        yield f"mean tail: {found['tail']:.4f} of its mass lies elsewhere"
    if (distances := found["distributions"]) and distances["positions"]:
        yield from _distances(distances)
    yield "equal" if found["equal"] else "different"


def _distances(found: dict[str, Any]) -> Iterator[str]:
    yield f"distributions, at the {found['positions']} positions with the same target:"
    yield f"  Jensen-Shannon, nats: mean {found['js_mean']:.3g}, greatest {found['js_max']:.3g}"
    yield f"  over the tokens that both keep: mean {found['js_mean_of_common']:.3g}"
    yield f"  the same most likely token: {100 * found['same_top']:.2f} %"
    yield f"  greatest difference of a log-probability where p > {LIKELY}: {found['log_prob_max']:.3g}"
