"""Files of rows for tests: as bytes of a format, compressed by the ending of their name."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lit_ift.data.read.readers import read_records
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError

REAL_ROWS = Path(__file__).parent / "real_rows"
"""Files of published sets, a folder for each kind of row; its README.md tells where they are from."""
ROWS = [{"prompt": 'a\u2028b, "quoted"', "completion": "é\r\nnext"}, {"prompt": "c", "completion": ""}]
"""With what formats disagree on: a Unicode line separator, quotes, commas and line breaks."""


def compress(name: str, data: bytes) -> bytes:
    """`data` as a file of that name has it."""
    if name.lower().endswith(".gz"):
        return gzip.compress(data, mtime=0)  # Without the time: the bytes stand in names of tests.
    if name.lower().endswith(".zst"):
        return bytes(pa.compress(data, "zstd", asbytes=True))
    return data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(compress(path.name, data))
    return path


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """CSV with a header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def read_all(path: Path) -> tuple[list[Record], list[RowError]]:
    """The rows that can be read and the errors of those that cannot."""
    errors: list[RowError] = []
    return list(read_records(path, on_row_error=errors.append)), errors


def feedback_rows(kind: str, count: int) -> list[dict[str, Any]]:
    """Rows of a kind, of unequal lengths."""
    prompts = [f"{kind} question {i} " + "x" * (7 * i % 20) for i in range(count)]
    answers = [f"answer {i} " + "y" * (5 * i % 13) for i in range(count)]
    if kind == "preference":
        return [{"prompt": p, "chosen": a, "rejected": f"no {a}{a}"} for p, a in zip(prompts, answers, strict=True)]
    worth: dict[str, list[dict[str, Any]]] = {
        "instruction": [{} for _ in prompts],
        "unpaired": [{"label": i % 2 == 0} for i in range(count)],
        "scored": [{"score": i / count} for i in range(count)],
    }
    return [{"prompt": p, "completion": a, **w} for p, a, w in zip(prompts, answers, worth[kind], strict=True)]


def write_feedback(folder: Path, **counts: int) -> dict[str, str]:
    """A file for each kind with so many rows; their paths by kind."""
    paths = {kind: folder / f"{kind}.jsonl" for kind in counts}
    return {kind: str(write(path, jsonl(feedback_rows(kind, counts[kind])))) for kind, path in paths.items()}
