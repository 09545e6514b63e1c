"""``lit-ift frozen-lake`` as it is called."""

import csv
from pathlib import Path

import pytest
import yaml

from lit_ift import cli
from lit_ift.cli.lake import read
from lit_ift.frozen_lake.files import load_study

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "configs/frozen-lake/default.yaml"
TINY = [
    *("--protocol.updates", "4", "--protocol.tuning_seeds", "2", "--protocol.seeds", "2", "--protocol.points", "2"),
    *("--protocol.learning_rates", "[0.01]", "--start.updates", "3", "--reinforce.games", "2", "--ppo.games", "2"),
    *("--figures", "false", "--animations", "false", "--progress", "false"),
]


def test_a_study_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["frozen-lake", "--config", str(DEFAULT), *TINY, "--output", str(tmp_path)]
    assert cli.main([*words, "--methods", "[sft, ift, dpo, orpo]", "--ift.lam", "0.4"]) == 0
    output = capsys.readouterr().out
    assert "DPO < IFT" in output
    assert "The claimed order" in output
    study = load_study(tmp_path / "results.json")
    assert study.settings["ift"]["lam"] == 0.4
    assert [outcome.name for outcome in study.outcomes] == ["sft", "ift", "dpo", "orpo"]
    with (tmp_path / "seeds.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 4 * 2
    assert (tmp_path / "results.csv").exists()
    capsys.readouterr()
    drawn = ["frozen-lake", "--redraw", str(tmp_path / "results.json"), "--figures", "false", "--animations", "false"]
    assert cli.main([*drawn, "--output", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.splitlines()[:10] == output.splitlines()[:10]


def test_print_config_is_the_default_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The file states every option, with the values that hold without it."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["frozen-lake", "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed.pop("redraw") is None
    assert printed == yaml.safe_load(DEFAULT.read_text())
    assert read(["--config", str(DEFAULT)]) == read([])


def test_an_own_map_from_the_command_line() -> None:
    settings, _ = read(["--lake.map", "[SFF, FHF, FFG]"])
    assert settings.lake.map == ["SFF", "FHF", "FFG"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--ift.lamb", "0.3"], 2, "Did you mean '--ift.lam'"),
        (["--lake.suboptimal", "last"], 2, "suboptimal"),
        (["--methods", "[sft, simpo]"], 1, "must name at least one of sft, ift"),
        (["--ift.lam", "1.5"], 1, "ift.lam=1.5 must be at least 0 and at most 1"),
        (["--ift_noisy.gamma", "2"], 1, "ift_noisy.gamma=2.0 must be"),
        (["--dpo.beta", "-1", "--methods", "[sft]"], 1, "dpo.beta=-1.0 must be above 0"),
        (["--protocol.seeds", "0"], 1, "protocol.seeds=0 must be at least 2"),
        (["--protocol.seed", "1" + 19 * "0"], 1, "protocol.seed=1" + 19 * "0"),
        (["--methods", "[]"], 1, "must name at least one of"),
        (["--lake.map", "[SFF, FXG]"], 1, "row 2, column 2 is 'X'"),
        (["--lake.map", "[SHG, FHF]"], 1, "no path leads from the start"),
        (["--redraw", "nothing.json"], 1, "nothing.json cannot be read"),
    ],
)
def test_wrong_calls_say_what_to_mend(
    words: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["frozen-lake", *TINY, "--output", str(tmp_path / "out"), *words]) == code
    error = capsys.readouterr().err
    assert error.startswith("lit-ift frozen-lake: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_ift.cli.lake.run_study", lambda settings: pytest.fail("trained"))
    (tmp_path / "taken").write_text("mine")
    for output in ("taken", "taken/below"):
        assert cli.main(["frozen-lake", *TINY, "--output", str(tmp_path / output)]) == 1
        error = capsys.readouterr().err
        assert f"output={tmp_path / output}: {tmp_path / 'taken'} is no folder" in error
    assert (tmp_path / "taken").read_text() == "mine"
