"""What an error quotes from a file cannot steer the terminal that shows it."""

import json
from pathlib import Path

import pytest
from rowfiles import read_all

from lit_ift.data.parse.row_parser import RowParser
from lit_ift.data.read.readers import read_records
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError, UserError, printable

EVIL = "a\x1b[31mb\x9bc\u202ed\r\x07\u2028"


def test_only_what_prints_nothing_is_escaped() -> None:
    assert printable("é\n\t\xa0\u3000 漢🙂") == "é\n\t\xa0\u3000 漢🙂"
    assert printable(EVIL) == "a\\x1b[31mb\\x9bc\\u202ed\\r\\x07\\u2028"


@pytest.mark.parametrize("error", [UserError(EVIL), RowError(EVIL, EVIL, EVIL, EVIL)])
def test_errors_are_printable(error: UserError) -> None:
    assert not set(str(error)) & set("\x1b\x9b\u202e\r\x07\u2028")
    assert "a\\x1b[31mb" in str(error)


def test_names_of_columns_and_keys_are_shown_as_text(tmp_path: Path) -> None:
    twice = tmp_path / "a.csv"
    twice.write_text("\x1b]0;x,\x1b]0;x\n1,2\n")
    with pytest.raises(UserError) as caught:
        list(read_records(twice))
    keys = tmp_path / "b.jsonl"
    keys.write_text('{"\\u001b[2J": 1, "\\u001b[2J": 2}\n' + json.dumps({"\x1b[2J": 1}) + "\n")
    records, errors = read_all(keys)
    with pytest.raises(UserError) as of_layout:
        RowParser().parse(Record({"\x1b[2J": "x"}, "f:1"))
    assert len(records) == len(errors) == 1
    assert not any("\x1b" in str(error) for error in (caught.value, *errors, of_layout.value))
