"""Reads tables of text with a header: CSV from programs and spreadsheets, and tab-separated text, quoted or not."""

import codecs
import csv
import re
from dataclasses import dataclass

from cache.errors import PipelineError
from cache.storage import AnyPath

TAB = "\t"
NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?")


@dataclass(frozen=True)
class Table:
    names: list[str]
    rows: list[dict[str, str]]
    quoted: bool  # by CSV's rules; else a quote is a character like any other


class _MisfitError(Exception):
    """Says in which line the table cannot be read, with quotes or without."""


def read_text(path: AnyPath) -> str:
    """Returns the file's text, without a byte order mark; line ends are kept. It is UTF-8, or UTF-16 with that mark.

    Raises PipelineError where there is no such file, or it is no such text.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from None
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PipelineError(
            f"{path}, line {line}: not UTF-8 text (byte {error.start}), perhaps Windows-1252: convert it to UTF-8, "
            "in a spreadsheet by saving it as 'CSV UTF-8', elsewhere by `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None
    if "\0" in text:
        raise PipelineError(f"{path}: holds zero bytes, as UTF-16 without a mark does: convert it to UTF-8")
    return text


def read_table(
    path: AnyPath, delimiters: str, wanted: list[str], names: list[str] | None = None, advice: str = ""
) -> Table:
    """Returns every row that is not empty. Raises PipelineError naming the wrong line, or the missing columns.

    delimiters: the usual one first; another is taken where only it gives the header the `wanted` columns.
    names: the columns, for a file without a header. advice: what to do where columns are missing.
    """
    lines = _lines(read_text(path))
    delimiter = delimiters[0]
    if names is None:
        delimiter, names = _header(lines[0], delimiters, wanted)
        require_columns(path, names, wanted, advice)
        _refuse_twins(path, names)
        body, first = lines[1:], 2
    else:
        body, first = lines, 1
    try:
        records, quoted = _records(body, first, delimiter, len(names))
    except _MisfitError as error:
        raise PipelineError(f"{path}, {error}") from None
    return Table(names, [_row(names, record) for record in records], quoted)


def _lines(text: str) -> list[str]:
    text = text.replace("\r\n", "\n")
    return (text if "\n" in text else text.replace("\r", "\n")).split("\n")


def _row(names: list[str], fields: list[str]) -> dict[str, str]:
    return {name: field for name, field in zip(names, fields, strict=True) if name}  # pandas' index has no name


def _header(line: str, delimiters: str, wanted: list[str]) -> tuple[str, list[str]]:
    """Returns the delimiter and the names of the columns."""
    found = [(delimiter, [name.strip() for name in _fields(line, delimiter)]) for delimiter in delimiters]
    return next((each for each in found if set(wanted) <= set(each[1])), found[0])


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return line.split(delimiter)


def _records(lines: list[str], first: int, delimiter: str, width: int) -> tuple[list[list[str]], bool]:
    """Returns the rows' fields, and whether the table is quoted, which is decided for the whole file.

    first: the number of the first line. Tab-separated text that can be read in one way only is read in that way. If both
    ways are possible, it is quoted if quotes stand only where a writer of CSV puts them.
    """
    if not any(line.startswith('"') or f'{delimiter}"' in line for line in lines):
        return _raw(lines, first, delimiter, width), False
    try:
        quoted = _quoted(lines, first, delimiter, width)
    except _MisfitError as error:
        if delimiter != TAB:
            raise _MisfitError(f"{error}: put the field in quotes and double each quote in it") from None
        try:
            return _raw(lines, first, delimiter, width), False
        except _MisfitError as other:
            raise _MisfitError(f"{other}; with quotes read as in CSV, {error}") from None
    if delimiter != TAB:
        return quoted, True
    try:
        raw = _raw(lines, first, delimiter, width)
    except _MisfitError:
        return quoted, True
    return (quoted, True) if _as_a_writer_quotes(quoted, raw, delimiter) else (raw, False)


def _raw(lines: list[str], first: int, delimiter: str, width: int) -> list[list[str]]:
    records = []
    for number, line in enumerate(lines, first):
        fields = line.split(delimiter)
        if _holds_something(fields):
            _check_width(fields, width, number)
            records.append(fields)
    return records


def _quoted(lines: list[str], first: int, delimiter: str, width: int) -> list[list[str]]:
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    records, start = [], 0
    try:
        for fields in reader:
            _refuse_swallowed(lines[start : reader.line_num], first + start, delimiter, width)
            if _holds_something(fields):
                _check_width(fields, width, first + start)
                records.append(fields)
            start = reader.line_num
    except csv.Error as error:
        raise _MisfitError(f"line {first + start}: {error}") from None
    return records


def _holds_something(fields: list[str]) -> bool:
    """Spreadsheets save rows of nothing but delimiters."""
    return any(field.strip() for field in fields)


def _check_width(fields: list[str], width: int, number: int) -> None:
    if len(fields) != width:
        raise _MisfitError(f"line {number}: {len(fields)} columns, expected {width}")


def _refuse_swallowed(lines: list[str], number: int, delimiter: str, width: int) -> None:
    """Raises where a quoted field spans whole rows. Of the lines of such a field at most one can have all columns."""
    if len(lines) > 1 and sum(line.count(delimiter) == width - 1 for line in lines) > 1:
        raise _MisfitError(
            f"line {number}: a quote opens a field that is closed at line {number + len(lines) - 1} only, over whole rows"
        )


def _as_a_writer_quotes(quoted: list[list[str]], raw: list[list[str]], delimiter: str) -> bool:
    """Tells whether each quoted field needs its quotes, or stands in a column that is quoted throughout."""
    if len(quoted) != len(raw):  # a row of "" and nothing else
        return True
    for values, written in zip(zip(*quoted, strict=True), zip(*raw, strict=True), strict=True):
        pairs = list(zip(values, written, strict=True))
        bare = any(text and text[0] != '"' and not NUMBER.fullmatch(text) for _, text in pairs)
        needless = any(text[:1] == '"' and '"' not in value and delimiter not in value for value, text in pairs)
        if bare and needless:
            return False
    return True


def require_columns(path: AnyPath, found: list[str], wanted: list[str], advice: str = "") -> None:
    """Raises PipelineError naming the `wanted` columns that are not among those `found`. advice: ends the message."""
    missing = [name for name in wanted if name not in found]
    if missing or not any(found):
        there = ", ".join(name for name in found if name) or "nothing"
        raise PipelineError(f"{path}: no column {', '.join(missing)}; it has {there}{advice}")


def _refuse_twins(path: AnyPath, names: list[str]) -> None:
    twins = sorted({name for name in names if name and names.count(name) > 1})
    if twins:
        raise PipelineError(f"{path}: two columns are called {', '.join(twins)}: rename one")
