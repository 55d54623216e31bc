"""Shards made to do harm: each is refused with a PipelineError, and takes no more memory than a shard may."""

import io
import json
import struct
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from cache_makers import make_teacher, make_utterances, same, teacher_record
from makers import make_utterance
from sources import ROOT

from cache import parquet, webdataset
from cache.errors import PipelineError
from cache.formats import FORMATS
from cache.npy import npy_bytes, read_npy
from cache.pages import _page
from cache.records import FIELDS, check_size
from cache.shards import ShardReader, ShardWriter
from stages.shared.audio import SAMPLE_RATE, decode_flac, encode_flac

LISTS = {"id": "str", "targets": "uint16[]"}
MANY = 12_345_678  # uint16 values, which take 200 MB while they are decoded
LIMIT = 1 << 26  # in the tests that measure memory; a shard may take more


def refusal(codec, data: bytes, fields: dict[str, str] = LISTS) -> str:
    with pytest.raises(PipelineError) as caught:
        codec.read(io.BytesIO(data), fields, "shard")
    assert str(caught.value).startswith("shard")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Parquet


def lists_of_zeros(values: int, **options) -> bytes:
    """One row; run-length coding makes a few hundred bytes of any number of equal values."""
    schema = parquet.arrow_schema(LISTS)
    zeros = pa.ListArray.from_arrays(pa.array([0, values], pa.int32()), pa.array(np.zeros(values, np.uint16)))
    table = pa.Table.from_arrays([pa.array(["x"]), zeros.cast(schema.field("targets").type)], schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **options)
    return buffer.getvalue()


def one_string(rows: int, length: int) -> bytes:
    """A dictionary of one string, to which every row refers."""
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * length]))
    table = pa.table({"id": ids}, pa.schema([pa.field("id", ids.type, False)]))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", store_schema=False, row_group_size=rows)
    return buffer.getvalue()


def prefixes(rows: int, length: int) -> bytes:
    """Strings of which each is the one before: delta coding keeps their lengths alone."""
    schema = pa.schema([pa.field("id", pa.string(), False)])
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, schema, compression="zstd", use_dictionary=False, column_encoding={"id": "DELTA_BYTE_ARRAY"}
    ) as writer:
        writer.write_table(pa.table({"id": ["x" * length] * rows}, schema))
    return buffer.getvalue()


def varint(number: int, length: int = 0) -> bytes:
    """As Thrift writes it; drawn out to `length` bytes, so that it can stand where a longer one did."""
    length = length or -(-(number << 1).bit_length() // 7)
    digits = [(number << 1 >> 7 * place) & 127 for place in range(length)]
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def lying_footer(data: bytes, values: int) -> bytes:
    """Says 3 values, where its pages hold `values`."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    true = varint(values)
    assert true in data[:start]
    assert true in data[start:]
    return data[:start] + data[start:].replace(true, varint(3, len(true)))


LIMITED = """
    # Reads each file and says by how many bytes the process grew.
    import sys
    from pathlib import Path
    from cache import parquet
    from cache.errors import PipelineError

    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    parquet.READ_BYTES = {limit}
    for path in sys.argv[1:]:
        before = peak()
        fields = {{"id": "str"}} if "string" in path else {fields!r}
        with open(path, "rb") as file:
            try:
                outcome = f"read {{len(parquet.read(file, fields, 'shard'))}}"
            except PipelineError as error:
                outcome = f"refused {{error}}"
        print(peak() - before, outcome, sep="\t")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_bounded_whatever_a_parquet_file_claims(tmp_path):
    honest, most = lists_of_zeros(MANY), LIMIT // 16
    files = {
        "warm": lists_of_zeros(10),  # loads what pyarrow loads at its first file
        "honest": honest,
        "lying": lying_footer(honest, MANY),
        "over": lists_of_zeros(most + 1000),
        "under": lists_of_zeros(most - 1000),
        "strings": one_string(100_000, 1 << 19),
        "same-strings": prefixes(500, 1 << 19),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    script = textwrap.dedent(LIMITED.format(limit=LIMIT, fields=LISTS))
    command = [sys.executable, "-c", script, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    grown = {name: int(line[0]) for name, line in zip(files, lines, strict=True)}
    found = {name: line[1] for name, line in zip(files, lines, strict=True)}
    assert {name: text.split()[0] for name, text in found.items()} == {
        **dict.fromkeys(["warm", "under"], "read"),
        **dict.fromkeys(["honest", "lying", "over", "strings", "same-strings"], "refused"),
    }
    assert f"pages of {MANY} values, its footer says 3" in found["lying"]
    assert "expected at most" in found["honest"]
    assert f"decode to more than {LIMIT} bytes" in found["strings"]
    assert max(grown[name] for name in ("honest", "lying", "over")) < 1 << 24  # never decoded
    assert LIMIT // 2 < grown["under"] < 2 * LIMIT  # what was foreseen is needed, and enough
    assert grown["strings"] + grown["same-strings"] < LIMIT  # of 52 GB and 262 MB


def test_a_page_header_decides_not_the_footer():
    """What the check rests on: pyarrow decodes all values of a page, though the footer says that there are three."""
    data = lying_footer(lists_of_zeros(MANY // 40), MANY // 40)
    before = pa.total_allocated_bytes()
    table = pq.ParquetFile(io.BytesIO(data)).read()
    assert len(table["targets"][0].values) == MANY // 40
    assert pa.total_allocated_bytes() - before > MANY // 40


def edited(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


FLIPPED = """
    # Reads a shard with one bit of each byte of its footer flipped.
    import io, sys
    from pathlib import Path
    from cache import parquet
    from cache.errors import PipelineError
    from cache.records import TEACHER_FIELDS

    data = Path(sys.argv[1]).read_bytes()
    refused = 0
    for offset in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data)):
        harmed = data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]
        try:
            assert len(parquet.read(io.BytesIO(harmed), TEACHER_FIELDS, "shard")) == 2
        except PipelineError:
            refused += 1
    print(refused)
"""


def test_a_damaged_footer_does_not_end_the_process(tmp_path):
    """pyarrow 26 aborts at 8 of these when it is asked for a column's metadata: no exception could be caught."""
    folder = make_teacher(tmp_path / "teacher", make_utterances(tmp_path / "utterances", rows=[2]))
    command = [sys.executable, "-c", textwrap.dedent(FLIPPED), str(folder / "shard-00000.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


def test_an_oversized_footer_is_not_parsed():
    data = lists_of_zeros(10)
    claim = edited(data, data[-8:-4], struct.pack("<I", 1 << 30))
    assert "no footer of at most" in refusal(parquet, claim)


def test_a_page_that_claims_to_be_larger_than_it_is(monkeypatch):
    """pyarrow would make room for it before it decompresses anything; neither the footer nor the checksum speaks of it."""
    buffer = io.BytesIO()
    table = pa.table({"id": ["x" * 300_000] * 10}, pa.schema([pa.field("id", pa.string(), False)]))
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False, write_page_checksum=True)
    data = buffer.getvalue()
    at = pq.ParquetFile(buffer).metadata.row_group(0).column(0).data_page_offset
    page, length = _page(io.BytesIO(data), at, len(data))
    assert page.uncompressed > 1 << 20
    true = varint(page.uncompressed)
    grown = data[:at] + edited(data[at : at + length], true, varint((1 << 27) - 1, len(true))) + data[at + length :]
    monkeypatch.setattr(parquet, "READ_BYTES", 1 << 27)
    assert "bytes are needed; expected at most" in refusal(parquet, grown, {"id": "str"})
    assert len(parquet.read(io.BytesIO(data), {"id": "str"}, "shard")) == 10


@pytest.mark.parametrize(
    "options",
    [
        {"data_page_version": "2.0"},
        {"compression": "gzip"},
        {"compression": "none", "use_dictionary": False},
        {"use_dictionary": False, "column_encoding": {"id": "DELTA_BYTE_ARRAY"}},
        {"row_group_size": 1},
        {"data_page_size": 1, "write_batch_size": 1},
        {"store_schema": False},
        {"write_page_index": True},
    ],
    ids=str,
)
def test_parquet_that_another_program_wrote(options):
    """The pages' headers are read in all of their forms."""
    schema = parquet.arrow_schema(LISTS)
    rows = [{"id": f"x{number}" * 30, "targets": np.arange(number, dtype=np.uint16)} for number in range(40)]
    columns = [pa.array([row[name] for row in rows], schema.field(name).type) for name in LISTS]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), buffer, **options)
    assert same(parquet.read(buffer, LISTS, "shard"), rows)


@pytest.mark.parametrize(
    "columns",
    [
        {"id": pa.array(["x"], pa.large_string()), "targets": pa.array([[1]], pa.list_(pa.uint16()))},
        {"id": pa.array(["x"]).dictionary_encode(), "targets": pa.array([[1]], pa.list_(pa.uint16()))},
        {"id": pa.array([["x"]]), "targets": pa.array([[[1]]])},
        {"id": pa.array([{"list": "x"}]), "targets": pa.array([{"list": {"element": 1}}])},
        {"id.x": pa.array(["x"]), "targets": pa.array([[1]])},
        {"id": pa.nulls(1), "targets": pa.nulls(1)},
        {},
    ],
    ids=["large strings", "dictionaries", "lists", "structs", "other names", "nulls", "nothing"],
)
def test_parquet_of_other_types(columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    assert "not a shard of this kind" in refusal(parquet, buffer.getvalue())


def test_text_that_is_no_text():
    """A Parquet string is any bytes; pyarrow does not look at them until they are asked for."""
    buffer = io.BytesIO()
    schema = pa.schema([pa.field("id", pa.string(), False)])
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<2i", 0, 1)), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.Table.from_arrays([column], schema=schema), buffer)
    assert "not a readable Parquet shard" in refusal(parquet, buffer.getvalue(), {"id": "str"})


# WebDataset


def tar_of(members: list[tuple[str, bytes]], change=lambda info: None, **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(row: int = 0) -> list[tuple[str, bytes]]:
    text = json.dumps({"id": "x"}).encode()
    return [(f"{row:06d}.json", text), (f"{row:06d}.targets.npy", npy_bytes(np.zeros(3, np.uint16)))]


def test_the_sample_is_a_good_one():
    assert webdataset.read(io.BytesIO(tar_of(sample())), LISTS, "shard")[0]["id"] == "x"


@pytest.mark.parametrize("kind", "123456SLKxg", ids=lambda kind: f"type-{kind}")
def test_a_member_that_is_no_plain_file(kind):
    """Links, devices, folders, pipes, sparse files, and headers that change the next one."""

    def change(info):
        info.type, info.linkname = kind.encode(), "/etc/passwd"

    assert "no plain file" in refusal(webdataset, tar_of(sample(), change))


def test_a_sparse_file_of_terabytes():
    """tarfile would go by the header that comes before it."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 42)}

    def change(info):
        info.pax_headers = {**headers, "GNU.sparse.name": info.name}

    hostile = tar_of(sample(), change, format=tarfile.PAX_FORMAT)
    assert "no plain file (type b'x')" in refusal(webdataset, hostile)


@pytest.mark.parametrize("size", [1 << 20, 1 << 40, (1 << 63) - 1])
def test_a_member_that_claims_more_than_there_is(size):
    """Reading what the header says would ask for the memory first."""
    whole = tar_of(sample())
    info = tarfile.TarInfo("000000.json")
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert "is cut at" in refusal(webdataset, header + whole[512:])


def test_a_compressed_tar():
    for mode in ("w:gz", "w:xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            info = tarfile.TarInfo("000000.json")
            tar.addfile(info, io.BytesIO())
        assert "not a readable tar" in refusal(webdataset, buffer.getvalue())


@pytest.mark.parametrize("name", ["../../outside.json", "/etc/passwd.json", "000001.json", "json", "-00001.json", ""])
def test_a_name_that_is_no_samples(name):
    refusal(webdataset, tar_of([(name, b"{}"), *sample()]))


def test_a_member_that_is_there_twice():
    assert "'000000.json' is there twice" in refusal(webdataset, tar_of([*sample(), *sample()]))


def test_members_of_other_fields_are_passed_over_unread():
    """As the stock reader does; so that a sample may be read in part."""
    rows = webdataset.read(io.BytesIO(tar_of([*sample(), ("000000.pkl", b"cos\nsystem\n")])), LISTS, "shard")
    assert [sorted(row) for row in rows] == [["id", "targets"]]


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id": ' + b"9" * 1_000_000 + b"}",
        b'{"id": "x", "more": ' + b"9" * 1_000_000 + b"}",
        b'{"id": "' + b"x" * (1 << 20) + b'"}',
        b'{"id": "\\ud800"}',
        b'{"id": 1e999}',
        b'{"id": null}',
        b'[["id", "x", "y"]]',
        b"\xff\xfe\x00\x00",
        b"",
    ],
    ids=lambda text: repr(text[:16]),
)
def test_hostile_json(text):
    members = [("000000.json", text), *sample()[1:]]
    assert "shard, sample 000000" in refusal(webdataset, tar_of(members))


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<u2', 'fortran_order': False, 'shape': (2, 1), }", b"\0" * 4),
        npy("{'descr': '<u2', 'fortran_order': False, 'shape': (), }", b"\0" * 2),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8),
        npy("{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000,), }"),
        npy("{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (1,), }", b"\0" * 2),
        npy("(" * 30_000),
        npy("-" * 30_000 + "1"),
        npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1,), }", b"\0" * 2, b"\x02\x00"),
        b"\x93NUMPY",
        b"",
    ],
    ids=range(11),
)
def test_hostile_npy(data):
    with pytest.raises(ValueError, match="npy header|bytes for"):
        read_npy(data)
    assert "shard, sample 000000" in refusal(webdataset, tar_of([*sample()[:1], ("000000.targets.npy", data)]))


def test_npy_of_each_type_comes_back():
    for dtype in ("uint8", "uint16", "int64", "float16", "float32", "float64"):
        for length in (0, 1, 1000):
            array = np.arange(length).astype(dtype)
            found = read_npy(npy_bytes(array))
            assert found.dtype == array.dtype
            assert np.array_equal(found, array)


# Audio


def claiming(flac: bytes, samples: int) -> bytes:
    """The 36 bits of STREAMINFO that say how long the recording is."""
    return flac[:21] + bytes([flac[21] & 0xF0 | samples >> 32]) + (samples & 0xFFFFFFFF).to_bytes(4, "big") + flac[26:]


@pytest.mark.parametrize("samples", [0, SAMPLE_RATE + 1, 20 * 3600 * SAMPLE_RATE, (1 << 36) - 1])
def test_flac_that_claims_more_than_its_record_says(samples):
    """Room for 2^36 samples would be 256 GB; 0 stands for a length that is not known."""
    second = encode_flac(np.zeros(SAMPLE_RATE, np.float32))
    assert len(decode_flac(second, 1.0)) == len(decode_flac(claiming(second, SAMPLE_RATE), 1.0)) == SAMPLE_RATE
    with pytest.raises(PipelineError, match="claims .* s, expected at most 1.000 s"):
        decode_flac(claiming(second, samples), 1.0)


def test_a_minute_of_silence_in_a_record_of_a_second():
    minute = encode_flac(np.zeros(60 * SAMPLE_RATE, np.float32))
    assert len(minute) < 4000
    with pytest.raises(PipelineError, match="claims 60.000 s, expected at most 1.000 s"):
        decode_flac(minute, 1.0)
    assert len(decode_flac(minute, 60.0)) == 60 * SAMPLE_RATE


@pytest.mark.parametrize("channels", [2, 8])
def test_flac_of_many_channels(channels):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((10, channels), np.int16), SAMPLE_RATE, format="FLAC")
    with pytest.raises(PipelineError, match=f"{channels} channels, expected FLAC of 16000 Hz mono"):
        decode_flac(buffer.getvalue())


def test_audio_in_another_format():
    """A shard holds FLAC; the dozens of other formats that libsndfile reads stay out of it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(10, np.int16), SAMPLE_RATE, format="WAV")
    with pytest.raises(PipelineError, match="is WAV of 16000 Hz"):
        decode_flac(buffer.getvalue())


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("format", FORMATS)
def test_a_length_that_no_recording_has(format, seconds, tmp_path):
    """It is what bounds the audio."""
    writer = ShardWriter(tmp_path, "utterances", {}, format)
    writer.write(0, [{**make_utterance(0), "seconds": seconds}], seconds=1.0)
    writer.finish()
    for only in ((), ("seconds",)):
        with pytest.raises(PipelineError, match="seconds, expected 0 to 86400"):
            ShardReader(tmp_path, "utterances").read(0, only)


# The writer refuses what the readers would


def test_a_shard_too_large_to_be_read_is_not_written(tmp_path, monkeypatch):
    record = {"id": "x", **teacher_record(1)}
    size = 12 * 1024 + 4 * (len("x") + len(record["teacher_text"]) + len(record["target_source"]))
    size += 16 * sum(value.size for value in record.values() if isinstance(value, np.ndarray))
    monkeypatch.setattr("cache.records.MAX_SHARD_BYTES", 2 * size)
    check_size([record] * 2, FIELDS["teacher"], "shard")
    writer = ShardWriter(tmp_path, "teacher", {})
    with pytest.raises(PipelineError, match=rf"3 records take {3 * size} bytes.*make the shards smaller"):
        writer.write(0, [record] * 3)
    assert list(tmp_path.iterdir()) == []


# Manifests


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../../etc/passwd"},
        {"name": "/etc/passwd"},
        {"name": "shard-00001.parquet"},
        {"name": "shard-00000.pkl"},
        {"index": 1},
        {"index": -1},
        {"rows": True},
        {"rows": 1e9},
        {"bytes": None},
        {"content": 5},
        {"left_out": "x"},
        {"left_out": [{"id": 5}]},
        {"seconds": "x"},
    ],
    ids=str,
)
def test_a_hostile_entry(change, tmp_path):
    folder = make_teacher(tmp_path / "teacher", make_utterances(tmp_path / "utterances"))
    manifest = manifest_of(folder)
    manifest["shards"][0].update(change)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match="manifest.json"):
        ShardReader(folder, "teacher")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, '{"settings": {}}'], ids=range(4))
def test_a_hostile_manifest(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(PipelineError, match="manifest.json"):
        ShardReader(tmp_path, "teacher")


@pytest.mark.parametrize(
    "settings", [{}, {"vocab_size": "x"}, {"bits": 0}, {"bits": 99}, {"vocab_size": 1 << 40}], ids=str
)
def test_hostile_settings(settings, tmp_path):
    folder = make_teacher(tmp_path / "teacher", make_utterances(tmp_path / "utterances"))
    manifest = manifest_of(folder)
    manifest["settings"] = {**manifest["settings"], **settings} if settings else {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match="vocab_size|bits"):
        ShardReader(folder, "teacher").read(0)


def test_the_makers_shards_are_good(tmp_path):
    utterances = make_utterances(tmp_path / "utterances")
    for format in ("parquet", "webdataset"):
        folder = make_teacher(tmp_path / format, utterances, format)
        assert same(ShardReader(folder, "teacher").read(0)[:1], [{"id": "clip-000", **teacher_record(0)}])
        assert ShardReader(folder, "teacher").tail().sum() == pytest.approx(1)
