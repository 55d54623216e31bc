"""Both formats hold the same records, can be read with stock readers, and do not give a wrong row for a damaged one."""

import contextlib
import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as stock_webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import parquet, webdataset
from cache.errors import PipelineError
from cache.npy import npy_bytes
from cache.records import FIELDS, TEACHER_FIELDS, UTTERANCE_FIELDS

CODECS = pytest.mark.parametrize("codec", [parquet, webdataset], ids=["parquet", "webdataset"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # anything but halves of a surrogate pair
NUMBER = st.none() | st.floats(allow_nan=False)
COUNT = st.none() | st.integers(0, 2**62)


def arrays(dtype: str, numbers: st.SearchStrategy, length: int) -> st.SearchStrategy:
    return st.lists(numbers, min_size=length, max_size=length).map(lambda values: np.array(values, dtype))


@st.composite
def teacher_records(draw: st.DrawFn) -> dict:
    counts = draw(st.lists(st.integers(0, 5), max_size=4))
    ids, kept = st.integers(0, 65535), sum(counts)
    return {
        "id": draw(TEXT),
        "targets": draw(arrays("uint16", ids, len(counts))),
        "target_source": draw(st.none() | TEXT),
        "top_counts": np.array(counts, np.uint16),
        "top_ids": draw(arrays("uint16", ids, kept)),
        "top_probs": draw(arrays("uint8", st.integers(1, 255), kept)),
        "tail_log_probs": draw(arrays("float32", st.floats(-1000, 0, width=32) | st.just(-np.inf), len(counts))),
        "mean_log_prob": draw(NUMBER),
        "teacher_text": draw(st.none() | TEXT),
        "compression_ratio": draw(NUMBER),
        "word_errors": draw(COUNT),
        "words": draw(COUNT),
    }


UTTERANCES = st.fixed_dictionaries(
    {name: TEXT for name, kind in UTTERANCE_FIELDS.items() if kind == "str"}
    | {"seconds": st.floats(allow_nan=False), "audio": st.binary(max_size=40)}
)
RECORDS = {"teacher": teacher_records(), "utterances": UTTERANCES}


def teacher_record(number: int, tokens: int = 3) -> dict:
    """Fixed numbers, so that the bytes made of them can be pinned; 1, 2, 3, 1, ... tokens are kept."""
    counts = 1 + np.arange(tokens) % 3
    kept = np.arange(counts.sum())
    heard = number % 2 == 0
    return {
        "id": f"clip.v{number}",
        "targets": (np.arange(tokens) + 65530).astype(np.uint16),
        "target_source": ("transcript", "teacher")[number % 2] if tokens else None,
        "top_counts": counts.astype(np.uint16),
        "top_ids": (kept * 7 + number).astype(np.uint16),
        "top_probs": (255 - 9 * kept - number).astype(np.uint8),
        "tail_log_probs": np.float32(-1) / (1 + np.arange(tokens, dtype=np.float32)),
        "mean_log_prob": -number / 3 if tokens else None,
        "teacher_text": f"kůň č. {number}" if heard else None,
        "compression_ratio": 1.0 if heard else None,
        "word_errors": number if heard else None,
        "words": 5 if heard else None,
    }


TEACHER = [teacher_record(0), teacher_record(1, 0), teacher_record(2, 5)]
UTTERANCE = {
    "id": "a.b\nc",
    "text": "žluťoučký kůň",
    "seconds": 0.1,
    "speaker": "",
    "group": "g",
    "source": "x/y.ogg",
    "audio_sha256": "00",
    "audio": b"fLaC\x00\xff",
}


def same(found: list[dict], expected: list[dict]) -> bool:
    """Values and their types, dtypes included."""

    def equal(a: object, b: object) -> bool:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return type(a) is type(b) and a == b

    return len(found) == len(expected) and all(
        a.keys() == b.keys() and all(equal(a[name], b[name]) for name in b)
        for a, b in zip(found, expected, strict=True)
    )


def written(codec, folder: Path, records: list[dict], kind: str = "teacher") -> Path:
    path = folder / f"shard{codec.SUFFIX}"
    with open(path, "wb") as file:
        codec.write(file, FIELDS[kind], records)
    return path


def read(codec, path: Path, fields: dict[str, str] = TEACHER_FIELDS) -> list[dict]:
    with open(path, "rb") as file:
        return codec.read(file, fields, str(path))


@CODECS
@pytest.mark.parametrize("kind", FIELDS)
def test_any_record_comes_back(codec, kind, tmp_path):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(RECORDS[kind], max_size=4))
    def check(records):
        path = written(codec, tmp_path, records, kind)
        digest = hashlib.sha256(path.read_bytes()).digest()
        assert same(read(codec, path, FIELDS[kind]), records)
        assert hashlib.sha256(written(codec, tmp_path, records, kind).read_bytes()).digest() == digest

    check()


@CODECS
def test_many_rows_keep_their_order(codec, tmp_path):
    """More than a row group of Parquet, and more than two digits can count, so that names sort otherwise."""
    records = [teacher_record(number, number % 4) for number in range(parquet.ROWS_PER_GROUP + 10)]
    assert same(read(codec, written(codec, tmp_path, records)), records)


@CODECS
def test_some_of_the_fields(codec, tmp_path):
    path = written(codec, tmp_path, TEACHER)
    only = {"id": "str", "tail_log_probs": "float32[]"}
    assert same(read(codec, path, only), [{name: record[name] for name in only} for record in TEACHER])


def test_tar_bytes_are_pinned(tmp_path):
    """They depend on the records alone: not on the clock, the user, the folder or a library's version."""
    path = written(webdataset, tmp_path, TEACHER)
    assert (
        hashlib.sha256(path.read_bytes()).hexdigest()
        == "81dcc4395ba970c75b308ef467d599eb6984f9fb67544604c0d3c76dff615cb9"
    )
    path = written(webdataset, tmp_path, [UTTERANCE], "utterances")
    assert (
        hashlib.sha256(path.read_bytes()).hexdigest()
        == "3f3f976cb32e3ddc770df488f35e2f2713d63d4582ba62cf34f794860067fdfe"
    )


def test_parquet_schema_is_pinned():
    text = {name: str(parquet.arrow_schema(FIELDS[name]).remove_metadata()).splitlines() for name in FIELDS}
    assert text["teacher"] == [
        "id: string not null",
        "targets: list<item: uint16 not null> not null",
        "  child 0, item: uint16 not null",
        "target_source: string",
        "top_counts: list<item: uint16 not null> not null",
        "  child 0, item: uint16 not null",
        "top_ids: list<item: uint16 not null> not null",
        "  child 0, item: uint16 not null",
        "top_probs: list<item: uint8 not null> not null",
        "  child 0, item: uint8 not null",
        "tail_log_probs: list<item: float not null> not null",
        "  child 0, item: float not null",
        "mean_log_prob: double",
        "teacher_text: string",
        "compression_ratio: double",
        "word_errors: int64",
        "words: int64",
    ]
    strings = ["id", "text", "speaker", "group", "source", "audio_sha256"]
    expected = {**dict.fromkeys(strings, "string"), "seconds": "double", "audio": "binary"}
    assert text["utterances"] == [f"{name}: {expected[name]} not null" for name in UTTERANCE_FIELDS]


def test_stock_parquet_reader(tmp_path):
    """Plain columns: the most likely token and its probability with nothing but pyarrow and numpy."""
    table = pq.read_table(written(parquet, tmp_path, TEACHER))
    assert table.column_names == list(TEACHER_FIELDS)
    assert table.column("id").to_pylist() == ["clip.v0", "clip.v1", "clip.v2"]
    for row, record in zip(table.to_pylist(), TEACHER, strict=True):
        first = np.cumsum([0, *row["top_counts"]])[:-1].tolist()
        assert [row["top_ids"][place] for place in first] == [record["top_ids"][place] for place in first]
        assert first == [0, 1, 3, 6, 7][: len(first)]
        codes = np.array(row["top_probs"])
        np.testing.assert_array_equal((codes / 255) ** 4, (record["top_probs"] / 255) ** 4)
        assert np.array_equal(np.array(row["tail_log_probs"], np.float32), record["tail_log_probs"])
        assert row["targets"] == record["targets"].tolist()
        scalars = ("mean_log_prob", "teacher_text", "compression_ratio", "word_errors", "words")
        assert all(row[name] == record[name] for name in scalars)


def test_stock_webdataset_reader(tmp_path):
    """With its own decoder of .npy and .json; ids with dots do not run samples together."""
    path = written(webdataset, tmp_path, TEACHER)
    samples = list(stock_webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == ["clip.v0", "clip.v1", "clip.v2"]
    for sample, record in zip(samples, TEACHER, strict=True):
        for name, kind in TEACHER_FIELDS.items():
            if kind.endswith("[]"):
                assert sample[f"{name}.npy"].dtype == record[name].dtype
                assert np.array_equal(sample[f"{name}.npy"], record[name])
            else:
                assert sample["json"][name] == record[name]


def test_stock_webdataset_reader_of_utterances(tmp_path):
    path = written(webdataset, tmp_path, [UTTERANCE, {**UTTERANCE, "id": "a.b"}], "utterances")
    samples = list(stock_webdataset.WebDataset(str(path), shardshuffle=False))
    assert [json.loads(sample["json"])["id"] for sample in samples] == ["a.b\nc", "a.b"]
    assert [sample["flac"] for sample in samples] == [UTTERANCE["audio"]] * 2


@CODECS
def test_a_file_that_was_cut(codec, tmp_path):
    """Parquet is refused wherever it was cut. A tar gives its first samples at most (the manifest knows its size)."""
    path = written(codec, tmp_path, TEACHER)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 97), *range(len(whole) - 12, len(whole)), *range(0, len(whole), 512)}:
        path.write_bytes(whole[:length])
        try:
            rows = read(codec, path)
        except PipelineError as error:
            assert str(path) in str(error)
        else:
            assert codec is webdataset
            assert same(rows, TEACHER[: len(rows)])


def data_pages(path: Path) -> range:
    """The bytes before the footer: pages and their headers."""
    whole = path.read_bytes()
    return range(4, len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"))


def test_a_flipped_byte_in_the_pages_of_parquet_is_refused(tmp_path):
    """Or changes nothing that is read, such as a field of a page's header; a wrong row it never gives."""
    path = written(parquet, tmp_path, TEACHER)
    whole = path.read_bytes()
    refused = 0
    for offset in data_pages(path):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x20]) + whole[offset + 1 :])
        try:
            assert same(read(parquet, path), TEACHER)
        except PipelineError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.5 * len(data_pages(path))


def test_a_flipped_byte_in_the_footer_of_parquet_is_refused(tmp_path):
    path = written(parquet, tmp_path, TEACHER)
    whole = path.read_bytes()
    for offset in range(data_pages(path).stop, len(whole), 3):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        try:
            assert same(read(parquet, path), TEACHER)
        except PipelineError as error:
            assert str(path) in str(error)


def test_a_column_name_that_is_no_text(tmp_path):
    """The names in the footer are read before anything else is checked."""
    path = written(parquet, tmp_path, TEACHER)
    path.write_bytes(path.read_bytes().replace(b"tail_log_probs", b"tail\xfflog_probs"))
    with pytest.raises(PipelineError, match="shard.parquet"):
        read(parquet, path)


def test_a_flipped_byte_in_a_tar_is_refused_or_stays_within_its_sample(tmp_path):
    """A tar has no checksum over its data; but nothing other than a PipelineError may come out of it."""
    path = written(webdataset, tmp_path, [TEACHER[0]])
    whole = path.read_bytes()
    for offset in [place for place, byte in enumerate(whole) if byte]:
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x01]) + whole[offset + 1 :])
        try:
            assert len(read(webdataset, path)) <= 2
        except PipelineError as error:
            assert str(path) in str(error)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "ran")


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def teacher_members() -> dict[str, bytes]:
    members = webdataset._members(TEACHER[0], TEACHER_FIELDS)
    return {f"000000.{ending}": data for ending, data in members.items()}


def pickled_npy(target: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(target)], object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [pickled_npy, lambda target: pickle.dumps(Bomb(target))], ids=["object", "pickle"])
def test_a_pickle_in_a_tar_is_refused_and_does_not_run(make, tmp_path):
    target, hostile = tmp_path / "ran", make(tmp_path / "ran")
    path = tar_of(tmp_path / "shard.tar", {**teacher_members(), "000000.targets.npy": hostile})
    with pytest.raises(PipelineError, match=r"shard\.tar, sample 000000"):
        read(webdataset, path)
    assert not target.exists()
    # the same bytes do run where pickles are allowed: the bomb is a real one
    np.load(io.BytesIO(hostile), allow_pickle=True)
    assert target.exists()


def test_a_pickle_in_parquet_is_refused_and_does_not_run(tmp_path):
    """Neither as the file itself, nor as the extension type that older pyarrow unpickled while reading the schema."""
    path = tmp_path / "shard.parquet"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(PipelineError, match="shard.parquet"):
        read(parquet, path)
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Bomb(tmp_path / "ran")),
    }
    table = pa.table([pa.array(["x"])], pa.schema([pa.field("id", pa.string(), False, metadata)]))
    pq.write_table(table, path)
    with contextlib.suppress(PipelineError):
        assert read(parquet, path, {"id": "str"}) == [{"id": "x"}]
    assert not (tmp_path / "ran").exists()


@CODECS
@pytest.mark.parametrize("data", [b"", b"hello", b"PAR1PAR1", b"\0" * 20480], ids=["empty", "text", "magic", "zeros"])
def test_a_foreign_file(codec, data, tmp_path):
    path = tmp_path / f"shard{codec.SUFFIX}"
    path.write_bytes(data)
    try:
        assert read(codec, path) == []
        assert codec is webdataset  # nothing but zeros is an archive without samples
    except PipelineError as error:
        assert str(path) in str(error)


@CODECS
def test_a_shard_of_the_other_kind(codec, tmp_path):
    with pytest.raises(PipelineError, match="not a (shard|sample) of this kind"):
        read(codec, written(codec, tmp_path, [UTTERANCE], "utterances"))


def scalars(**changes) -> bytes:
    return json.dumps({**json.loads(teacher_members()["000000.json"]), **changes}).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("000000.json", b'["id"]'),
        ("000000.json", b"{"),
        ("000000.json", b"\xff"),
        ("000000.json", b'{"id": 5}'),
        ("000000.json", scalars(words=1.5)),
        ("000000.json", scalars(words=True)),
        ("000000.json", scalars(mean_log_prob="-1")),
        ("000000.json", scalars(id=None)),
        ("000000.targets.npy", b""),
        ("000000.targets.npy", npy_bytes(np.zeros((1, 1), np.uint16))),
        ("000000.targets.npy", npy_bytes(np.zeros(1, np.int64))),
        ("noending", b"x"),
    ],
)
def test_a_member_that_is_not_right(name, data, tmp_path):
    path = tar_of(tmp_path / "shard.tar", {**teacher_members(), name: data})
    with pytest.raises(PipelineError, match=r"shard\.tar"):
        read(webdataset, path)


@pytest.mark.parametrize("missing", ["json", "targets.npy", "tail_log_probs.npy"])
def test_a_sample_without_one_of_its_members(missing, tmp_path):
    members = {name: data for name, data in teacher_members().items() if name != f"000000.{missing}"}
    with pytest.raises(PipelineError, match=r"shard\.tar, sample 000000"):
        read(webdataset, tar_of(tmp_path / "shard.tar", members))


@pytest.mark.parametrize(
    "columns",
    [
        {"id": pa.array(["x"])},
        {"id": pa.array([1]), "tail_log_probs": pa.array([[0.5]])},
        {"id": pa.array(["x"]), "tail_log_probs": pa.array([[0.5]], pa.list_(pa.float64()))},
        {"id": pa.array(["x", None]), "tail_log_probs": pa.array([[0.5], None], pa.list_(pa.float32()))},
    ],
)
def test_parquet_with_other_columns_or_types(columns, tmp_path):
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(PipelineError, match="shard.parquet: columns .*, expected"):
        read(parquet, path, {"id": "str", "tail_log_probs": "float32[]"})
