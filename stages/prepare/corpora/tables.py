"""Tables of text: tab-separated without any quoting, and CSV."""

import csv
import io

from cache.errors import PipelineError
from cache.storage import AnyPath


def read_text(path: AnyPath) -> str:
    """The file's text without a byte order mark, line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not UTF-8 text (byte {error.start}): convert it to UTF-8") from None


def read_raw_tsv(path: AnyPath, columns: list[str] | None = None) -> list[dict[str, str]]:
    """Rows of a file in which a quote is a character like any other and only "\\n" ends a line.

    columns: the names, for a file without a header line. Raises PipelineError naming a line of another length.
    """
    lines = [line.removesuffix("\r").split("\t") for line in read_text(path).removesuffix("\n").split("\n")]
    names, first = (columns, 1) if columns else (lines.pop(0), 2)
    rows = []
    for number, fields in enumerate(lines, first):
        if len(fields) != len(names):
            raise PipelineError(
                f"{path}, line {number}: {len(fields)} columns, expected {len(names)} ({', '.join(names)})"
            )
        rows.append(dict(zip(names, fields, strict=True)))
    return rows


def read_csv(path: AnyPath, delimiter: str) -> list[dict[str, str]]:
    """Rows of a file with a header, fields quoted as CSV has it. Raises PipelineError naming the line that is wrong."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        names = [name.strip() for name in next(reader, [])]
        for fields in reader:
            if fields and len(fields) != len(names):
                raise PipelineError(f"{path}, line {reader.line_num}: {len(fields)} columns, expected {len(names)}")
            rows += [dict(zip(names, fields, strict=True))] if fields else []
    except csv.Error as error:
        raise PipelineError(f"{path}, line {reader.line_num}: {error}") from None
    require_columns(path, names, [])
    return rows


def require_columns(path: AnyPath, found: list[str], wanted: list[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing or not found:
        raise PipelineError(f"{path}: no column {', '.join(missing)}; it has {', '.join(found) or 'nothing'}")
