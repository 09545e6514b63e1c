"""Raw text: rows that are documents, for continued pre-training."""

from lit_ift.data.parse.messages import parse_text
from lit_ift.data.read.records import Record
from lit_ift.data.rows import Document, Row
from lit_ift.errors import RowError


def parse_document(record: Record) -> Row:
    """``text``: all of it is learned."""
    text = parse_text(record, "text", record.data["text"])
    if not text.strip():
        raise RowError(record.origin, "text", "is empty", "Fill it in or remove the row")
    return Row("instruction", record.origin, {"answer": Document(text)})
