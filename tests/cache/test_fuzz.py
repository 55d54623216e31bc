"""Valid shards and manifests, harmed at random: the same records come out, or a PipelineError, and nothing else.

The examples are the same at every run (derandomize), so that a failure is a change of the code.
"""

import contextlib
import copy
import io
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_makers import make_teacher, make_utterances, rows_of, same
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cache import parquet, webdataset
from cache.description import described
from cache.distributions import check_distributions, mass_faults
from cache.errors import PipelineError
from cache.formats import FORMATS
from cache.info import statistics
from cache.records import FIELDS, check_record
from cache.shards import ShardReader, open_shards
from cache.verify import faults

FUZZ = settings(
    max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MEMORY = 400 << 20  # more than all of it takes; one bomb that went off would be beyond it


@pytest.fixture(autouse=True)
def within_bounds() -> Iterator[None]:
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < MEMORY


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("fuzz")
    found = {}
    for format in FORMATS:
        found["utterances", format] = make_utterances(root / f"utterances-{format}", format, rows=[2, 1])
        found["teacher", format] = make_teacher(root / f"teacher-{format}", found["utterances", format], format)
    return found


# Bytes

PLACE = st.integers(0, 1 << 30)  # taken modulo the length
LENGTH = st.sampled_from([1, 2, 4, 8, 64, 512, 1024, 4096])
MUTATIONS = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("put"), PLACE, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("cut"), PLACE, st.just(0)),
    st.tuples(st.just("remove"), PLACE, LENGTH),
    st.tuples(st.just("repeat"), PLACE, LENGTH),
    st.tuples(st.just("swap"), PLACE, st.tuples(PLACE, LENGTH)),
    st.tuples(st.just("splice"), PLACE, PLACE),
)


def mutated(data: bytes, other: bytes, mutation: tuple) -> bytes:
    """other: a shard from which a splice takes its end."""
    what, place, how = mutation
    at = place % max(1, len(data))
    if what == "flip":
        return data[:at] + bytes(byte ^ 1 << how for byte in data[at : at + 1]) + data[at + 1 :]
    if what == "put":
        return data[:at] + how + data[at + len(how) :]
    if what == "insert":
        return data[:at] + how + data[at:]
    if what == "cut":
        return data[:at]
    if what == "remove":
        return data[:at] + data[at + how :]
    if what == "repeat":
        return data[: at + how] + data[at:]
    if what == "splice":
        return data[:at] + other[how % len(other) :]
    second, length = how
    one, two = sorted([at, second % max(1, len(data))])
    middle = data[one + length : two]
    return data[:one] + data[two : two + length] + middle + data[one : one + length] + data[two + length :]


def check_types(records: list[dict], kind: str, bounds: dict) -> None:
    """What a tar gives that was changed within its data: records of the right types, which are checked once more."""
    for record in records:
        check_record(record, FIELDS[kind], "fuzz")
        if kind == "teacher":
            try:
                check_distributions(record, bounds, "fuzz")
            except PipelineError:
                continue
            assert isinstance(mass_faults(record, bounds["bits"], bounds["top_k"]), list)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", FIELDS)
def test_harmed_bytes(kind, format, folders):
    codec = {"parquet": parquet, "webdataset": webdataset}[format]
    reader = ShardReader(folders[kind, format], kind)
    first, second = ((reader.folder / entry["name"]).read_bytes() for entry in reader.shards)
    expected, others = reader.read(0), reader.read(1)
    bounds = ShardReader(folders["teacher", format], "teacher").provenance

    @settings(FUZZ, max_examples=400)
    @given(st.lists(MUTATIONS, min_size=1, max_size=3))
    def check(mutations):
        data = first
        for mutation in mutations:
            data = mutated(data, second, mutation)
        try:
            found = codec.read(io.BytesIO(data), FIELDS[kind], "fuzz")
        except PipelineError as error:
            event("refused")
            assert str(error).startswith("fuzz")
            return
        if same(found, expected) or same(found, others):  # a splice can put one shard whole in the other's place
            event("the same")
            return
        event("other records")
        assert format == "webdataset"  # which has no checksums of its own: the manifest has
        check_types(found, kind, bounds)

    check()


# Manifests

ODD = st.sampled_from(
    [None, True, -1, 0, 1, 2, 1 << 40, 1e308, float("nan"), "", "x", "../x", "parquet", [], [[]], {}, {"id": "x"}]
)


def paths_of(value: object, at: tuple = ()) -> Iterator[tuple]:
    """Where every part of a JSON value lies."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*at, key)
        yield from paths_of(part, (*at, key))


def changed(manifest: dict, place: int, how: str, odd: object) -> dict:
    manifest = copy.deepcopy(manifest)
    paths = list(paths_of(manifest))
    *parents, last = paths[place % len(paths)]
    parent = manifest
    for key in parents:
        parent = parent[key]
    if how == "remove":
        del parent[last]
    elif how == "repeat" and isinstance(parent, list):
        parent.append(parent[last])
    elif how == "turn" and isinstance(parent[last], list):
        parent[last].reverse()
    elif how == "nudge" and type(parent[last]) in (int, float):
        parent[last] += 1
    else:
        parent[last] = odd
    return manifest


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", FIELDS)
def test_harmed_manifests(kind, format, folders):
    folder = folders[kind, format]
    path = folder / "manifest.json"
    whole = path.read_text()
    expected = rows_of(folder, kind)

    @FUZZ
    @given(PLACE, st.sampled_from(["remove", "repeat", "turn", "nudge", "put", "put"]), ODD)
    def check(place, how, odd):
        path.write_text(json.dumps(changed(json.loads(whole), place, how, odd)))
        # whatever it says, all of it is named, and what cannot be summed up is refused
        lines = list(faults(folder))
        assert lines or json.dumps(json.loads(path.read_text())) == json.dumps(json.loads(whole))
        with contextlib.suppress(PipelineError):
            found = statistics(open_shards(folder))
            assert json.dumps(found)
            assert list(described(found))
        try:
            reader = open_shards(folder)
            found = [row for index in range(len(reader.shards)) for row in reader.read(index)]
            reader.fingerprint()
            if reader.kind == "teacher":
                reader.tail()
        except PipelineError as error:
            event("refused")
            assert "\n" not in str(error)
            return
        event("read")
        assert same(found, expected)

    try:
        check()
    finally:
        path.write_text(whole)
