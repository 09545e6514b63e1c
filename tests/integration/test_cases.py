"""Awkward rows as people have them: what `lit-ift data check` makes of each file of ``tests/cases``."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_ift.cli import main

CASES = Path(__file__).parents[1] / "cases"


@pytest.mark.parametrize("case", json.loads((CASES / "cases.json").read_text()), ids=lambda case: case["file"])
def test_check_makes_of_a_file_what_is_right(case: dict[str, Any], tmp_path: Path, capfd) -> None:
    # A neutral name, so that no word that must be said is found in the path.
    path = shutil.copyfile(CASES / case["file"], tmp_path / f"rows{Path(case['file']).suffix}")
    saved = tmp_path / "report.json"
    # `check` skips bad rows by itself; the option says that a run that skips them does the same.
    options = [option for option in case["options"] if option not in ("--on_bad_row", "skip")]
    tokenizer = ["--tokenizer", str(CASES / "tokenizer")]
    code = main(["data", "check", str(path), *tokenizer, "--json", str(saved), *options])
    report = json.loads(saved.read_text(encoding="utf-8"))["splits"]["train"] if saved.exists() else {}
    output = capfd.readouterr()
    said = output.out + output.err + json.dumps(report.get("messages", {}), ensure_ascii=False)

    want = case["want"]
    for key, name in (("kept", "rows_kept"), ("turns", "trained_turns"), ("kinds", "kinds")):
        if key in want:
            assert report.get(name) == want[key], said
    for word in want.get("error", ()):
        assert word in said
    if "error" in want:
        assert code != 0 or report["rows_skipped"], said
    if want.get("stops"):
        assert code != 0, said
        assert not report.get("rows_kept"), said
