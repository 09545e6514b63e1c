"""What docs/data.md says of formats, sources, commands and own rows is so."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from lit_ift.cli import main
from lit_ift.data import KNOWN_DATASETS, LAYOUTS, InstructionDataModule, Record, RowParser
from lit_ift.data.parse.training_flags import FLAG_COLUMNS
from lit_ift.data.report.account import DataReport
from lit_ift.data.report.terminal import Thresholds, figures
from lit_ift.data.truncation import Truncation
from lit_ift.errors import RowError

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def table(header: str) -> list[list[str]]:
    """Cells of the rows of the table whose first header cell this is."""
    lines = PAGE[PAGE.index(f"| {header} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


COMMANDS = [line for part in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in part.splitlines()]
FORMATS = {name.strip("`"): cells for name, *cells in table("layout")}


@pytest.fixture
def here(tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's configurations and the user's files."""
    (tmp_path / "configs").symlink_to(Path(__file__).parents[2] / "configs")
    (tmp_path / "my.jsonl").write_bytes(data_file.read_bytes())
    (tmp_path / "faq.txt").write_text("Why?\tSo.\nHow?\tThus.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_layout_is_there() -> None:
    assert FORMATS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_layouts(name: str) -> None:
    columns, kind, example = FORMATS[name]
    layout = LAYOUTS[name]
    if name not in ("unpaired", "scored", "helpsteer2", "chosen"):
        named = set(re.findall(r"\w+", columns))
        everywhere = {"system", "tools", "functions", "label", "score", *FLAG_COLUMNS}
        assert named >= layout.optional - everywhere
        assert named >= set(layout.required[0])
    parser = RowParser(layout=name if layout.declared_only else None)
    row = parser.parse(Record(json.loads(example.strip("`")), "page"))
    assert (parser.layout, row.kind, layout.kind) == (name, kind, kind)


@pytest.mark.parametrize("column", ["imput", "context"])
def test_a_column_that_would_change_the_row_is_an_error(column: str) -> None:
    row = Record({"instruction": "Add.", column: "1 + 2", "output": "3"}, "page")
    with pytest.raises(RowError, match=column):
        RowParser().parse(row)
    assert RowParser(layout="alpaca").parse(row).kind == "instruction"
    assert RowParser(columns={column: None}).parse(row).kind == "instruction"


def test_known_hub_ids() -> None:
    ids = PAGE.partition("These hub ids")[2].partition("Copies of them")[0]
    assert {name.lower() for name in re.findall(r"`([^`]+)`", ids)} == KNOWN_DATASETS.keys()


def test_sources(here: Path) -> None:
    (here / "data").mkdir()
    (here / "data" / "a.jsonl.gz").touch()
    (here / "faq.csv").touch()
    module = InstructionDataModule(**yaml.safe_load(block("yaml")))
    assert [source.kind for source in module.sources["train"]] == ["pattern", "file", "hub", "hub"]
    assert module.sources["val"][0].path.lower() in KNOWN_DATASETS


def test_the_reports_lines_and_the_choices_are_explained(here: Path, model_folder: Path) -> None:
    assert main(["data", "check", "my.jsonl", "--tokenizer", str(model_folder), "--json", "report.json"]) == 0
    report = DataReport.from_dict(json.loads((here / "report.json").read_text())["splits"]["train"])
    explained = ", ".join(cells[0] for cells in table("line"))
    assert [line.name for line in figures(report) if line.name not in explained] == []
    assert [cells[0].split("`")[1] for cells in table("`truncation`")] == list(get_args(Truncation))
    assert all(f"--{name} " in PAGE for name in Thresholds.__annotations__)


def tiny(command: str, model_folder: Path) -> Iterator[str]:
    """Words that make a command small; they come last, so they win."""
    of_data = "--data.init_args." if "--config" in command else "--"
    yield from (f"{of_data}tokenizer", str(model_folder), f"{of_data}max_length", "512")
    if "--config" in command:
        yield from ("--data.init_args.val_fraction", "0.3")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, here: Path, model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*shlex.split(command)[1:], *tiny(command, model_folder)]) == 0
    assert capsys.readouterr().out
    for written in re.findall(r"--(?:json|html) (\S+)", command):
        assert (here / written).stat().st_size > 0


def test_own_rows(
    here: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (here / "my_data.py").write_text(block("python"))
    monkeypatch.syspath_prepend(str(here))
    (words,) = re.findall(r"`(--data my_data\.FaqDataModule [^`]*)`", PAGE)
    words = [*shlex.split(words), "--data.init_args.tokenizer", str(model_folder), "--json", "report.json"]
    assert main(["data", "check", "--config", "configs/sft/smollm2-135m.yaml", *words]) == 0
    assert json.loads((here / "report.json").read_text())["splits"]["train"]["rows_kept"] == 2


def test_fit_reads_what_build_has_cached(here: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_IFT_DATA_CACHE", str(here / "cache"))
    monkeypatch.setattr("sys.argv", ["lit-ift"])
    (command,) = (line for line in COMMANDS if " build " in line)
    options = {
        "model.init_args.model": model_folder,
        "data.init_args.max_length": 512,
        "data.init_args.val_fraction": 0.3,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.val_check_interval": 1.0,
        "trainer.fast_dev_run": True,
    }
    words = [
        *shlex.split(command)[3:],
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
    ]
    assert main(["data", "build", *words]) == 0
    built = sorted(path.name for path in (here / "cache").iterdir())
    assert [name.partition("-")[0] for name in built] == ["train", "val"]
    # What changes no row changes no key.
    assert main(["fit", *words, "--data.init_args.batch_size", "2", "--data.init_args.packing", "true"]) == 0
    assert sorted(path.name for path in (here / "cache").iterdir()) == built
    assert main(["fit", *words, "--data.init_args.max_length", "500"]) == 0
    assert len(list((here / "cache").iterdir())) == 4
