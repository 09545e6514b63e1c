"""`lit-ift data` from end to end, on a tiny tokenizer; and what a run keeps of the report."""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rowfiles import REAL_ROWS

from lit_ift.cli import main
from lit_ift.data.report.account import DataReport


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def config(tmp_path: Path, model_folder: Path, data_file: Path) -> Path:
    model = {"class_path": "IFTModule", "init_args": {"model": str(model_folder)}}
    options = {"train": str(data_file), "val_fraction": 0.3, "batch_size": 4, "max_length": 64}
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False}
    content = {
        "model": model,
        "data": {"class_path": "InstructionDataModule", "init_args": options},
        "trainer": {**trainer, "default_root_dir": str(tmp_path / "out")},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two good rows with the same question, a long one, and three bad ones."""
    path = tmp_path / "mixed.jsonl"
    rows: list[Any] = [
        {"prompt": "Why?", "completion": "So."},
        {"prompt": "why? ", "completion": "Because."},
        {"prompt": "How?", "completion": "b" * 200},
        {"prompt": "Who?", "completion": 3},
        {"remark": "<script>alert(1)</script>"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return path


def test_files_are_checked_and_bad_rows_never_stop_it(mixed: Path, model_folder: Path, tmp_path: Path, capsys) -> None:
    saved = tmp_path / "report.json"
    words = ["data", "check", mixed, "--tokenizer", model_folder, "--max_length", 64, "--json", saved]
    assert run(*words) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert re.search(r"rows read +6\n", re.sub(r" +\n", "\n", text))
    assert re.search(r"prompt seen before +1 +33\.3 % +1 prompt ", text)
    content = json.loads(saved.read_text())
    assert content["ok"] is True
    report = DataReport.from_dict(content["splits"]["train"])
    assert (report.rows_read, report.rows_kept, report.rows_skipped, report.rows_truncated) == (6, 3, 3, 1)
    assert report.row_ids["truncated"] == (f"{mixed}:3",)
    assert {f"{mixed}:{i}" for i in (4, 5, 6)} == {
        row_id for name, ids in report.row_ids.items() if name.startswith("skipped/") for row_id in ids
    }
    assert text.count("rows read") == 1, "the report is told once"


@pytest.mark.parametrize(
    ("words", "failed"),
    [
        (["--max_skipped", "0.5"], None),
        (["--max_skipped", "0.49"], "3 of 6 rows read were skipped (0.5000), but max_skipped=0.49"),
        (["--max_truncated=0"], "1 of 3 kept rows were truncated"),
        (["--max_duplicates", "0.3", "--max_disagreements", "0"], "1 of 3 kept rows have a prompt"),
    ],
)
def test_thresholds_fail_the_command(
    mixed: Path, model_folder: Path, tmp_path: Path, capsys, words: list[str], failed: str | None
) -> None:
    page = tmp_path / "report.html"
    common = ["data", "check", "--tokenizer", model_folder, mixed, "--max_length", 64, "--html", page]
    assert run(*common, *words) == (0 if failed is None else 1)
    error = capsys.readouterr().err
    assert (failed or "") in error
    assert ("failed:" in error) is (failed is not None)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert ("Failed: " in text) is (failed is not None)
    assert ("No threshold that was set is exceeded" in text) is (failed is None)
    for words in (str(mixed), str(model_folder), "the tokenizer&#x27;s own", f"lit-ift {version('lit-ift')}"):
        assert words in text


def test_no_usable_row_fails_with_its_report(tmp_path: Path, model_folder: Path, capsys) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "completion": 3}\n' * 4)
    assert run("data", "check", path, "--tokenizer", model_folder) == 1
    printed = capsys.readouterr()
    assert "none of 4 rows can be used" in printed.err
    assert re.search(r"skipped +4 +100\.0 %", printed.out)
    assert run("data", "preview", path, "--tokenizer", model_folder) == 1
    assert "none of 4 rows can be used" in capsys.readouterr().err


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lit_ift.modules.language_model.load_model", refuse)
    monkeypatch.setattr("torch.nn.Module.__init__", refuse)


@pytest.mark.usefixtures("no_model")
def test_a_configuration_is_checked_without_its_model(config: Path, tmp_path: Path, capsys) -> None:
    before, state = list(sys.argv), torch.random.get_rng_state()
    saved = tmp_path / "report.json"
    assert run("data", "check", "--config", config, "--json", saved) == 0
    assert list(json.loads(saved.read_text())["splits"]) == ["train", "val"]
    capsys.readouterr()
    words = ["--split", "val", "--data.init_args.max_length", 40, "--json", saved]
    assert run("data", "check", "--config", config, *words) == 0
    splits = json.loads(saved.read_text())["splits"]
    assert list(splits) == ["val"]
    assert splits["val"]["max_length"] == 40
    assert sys.argv == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
def test_every_split_is_checked_and_bad_rows_are_skipped(config: Path, mixed: Path, tmp_path: Path) -> None:
    saved = tmp_path / "report.json"
    extra = [f"--data.init_args.{split}={mixed}" for split in ("test", "predict")]
    assert run("data", "check", "--config", config, *extra, "--json", saved) == 0
    splits = json.loads(saved.read_text())["splits"]
    assert {split: report["rows_skipped"] for split, report in splits.items()} == {
        "train": 0,
        "val": 0,
        "test": 3,
        "predict": 3,
    }


@pytest.mark.usefixtures("no_model")
def test_generated_tasks_are_checked_too(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    content = yaml.safe_load(config.read_text())
    options = {"tasks": {"spell_backward": {}}, "train_size": 6, "val_size": 2, "max_length": 256}
    content["data"] = {"class_path": "TasksDataModule", "init_args": options}
    config.write_text(yaml.safe_dump(content))
    saved = tmp_path / "report.json"
    assert run("data", "check", "--config", config, "--json", saved) == 0
    assert json.loads(saved.read_text())["splits"]["train"]["rows_kept"] == 6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["check"], 2, "name the files to look at, or a configuration with --config"),
        (["check", "DATA"], 2, "--tokenizer"),
        (["check", "DATA", "--config", "CONFIG"], 2, "not both"),
        (["check", "DATA", "--tokeniser", "x"], 2, "Did you mean '--tokenizer'"),
        (["check", "--config", "CONFIG", "--max_skiped", "0"], 2, "Did you mean '--max_skipped'"),
        (["check", "--config", "CONFIG", "--data.init_args.max_lenght", "3"], 2, "Did you mean 'max_length'"),
        (["check", "DATA", "--data.init_args.max_length", "3"], 2, "name one with --config"),
        (["check", "--config", "CONFIG", "--split", "test"], 1, "It has train, val"),
        (["check", "--config", "CONFIG", "--max_skipped", "much"], 2, "max_skipped"),
        (["check", "--config", "CONFIG", "--max_skipped", "2"], 2, "max_skipped"),
        (["check", "--config", "CONFIG", "--json", "nowhere/r.json"], 1, "nowhere/r.json"),
        (["check", "nowhere.jsonl", "--tokenizer", "MODEL"], 1, "nowhere.jsonl"),
        (["preview", "--config", "CONFIG", "--rows", "0"], 2, "--rows=0"),
        (["preview", "--config", "CONFIG", "--batch", "--seed", "1"], 2, "--batch"),
        (["preview", "--config", "CONFIG", "--row_id", "rows.jsonl:99"], 1, "'rows.jsonl:99'"),
        (["build", "--config", "CONFIG", "--rows", "3"], 2, "unrecognized arguments: --rows 3"),
        (["chek"], 2, "Did you mean 'check'?"),
    ],
)
def test_wrong_calls_say_what_to_mend(
    config: Path, data_file: Path, model_folder: Path, capsys, words: list[str], code: int, message: str
) -> None:
    places = {"CONFIG": config, "DATA": data_file, "MODEL": model_folder}
    assert run("data", *(places.get(word, word) for word in words)) == code
    error = capsys.readouterr().err
    assert message in error
    assert not any(noise in error for noise in ("Traceback", "usage:", "Union subtypes"))


def test_preview_shows_rows(data_file: Path, model_folder: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "preview.html"
    files = ["data", "preview", data_file, "--tokenizer", model_folder]
    assert run(*files, "--rows", 2, "--html", page) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert re.findall(r"rows\.jsonl:(\d+) ", text) == ["1", "2"]
    assert "<|im_start|>user↵\nSay 0 times b<|im_end|>↵\n<|im_start|>assistant↵\nb<|im_end|>↵" in text
    saved = page.read_text()
    trained, control = (
        re.search(rf'<span class="(r\d+)"> {words} </span>', saved)[1]
        for words in ("trained", "control token, trained")
    )
    assert f'<span class="{trained}">b</span><span class="{control}">&lt;|im_end|&gt;</span>' in saved
    assert run(*files, "--row_id", "rows.jsonl:7", "--tokens") == 0
    text = capsys.readouterr().out
    assert re.findall(r"rows\.jsonl:(\d+) ", text) == ["7"]
    assert "<|im_end|> 2|" in text
    drawn = []
    for seed in (1, 1, 2):
        assert run(*files, "--rows", 4, "--seed", seed) == 0
        drawn.append(re.findall(r"rows\.jsonl:(\d+) ", capsys.readouterr().out))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.usefixtures("no_model")
def test_preview_shows_a_batch_with_its_padding(config: Path, capsys) -> None:
    words = ["--split", "val", "--rows", 9, "--data.init_args.pad_to_multiple_of", 64]
    assert run("data", "preview", "--config", config, "--batch", *words) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"rows\.jsonl:\d+ ", text)) == 4
    counted = [(int(tokens), int(padding)) for tokens, padding in re.findall(r"(\d+) tokens, .* (\d+) padding", text)]
    assert [tokens + padding for tokens, padding in counted] == [64] * 4
    assert [int(number) for number in re.findall(r"<\|im_end\|>×(\d+)\n", text)] == [padding for _, padding in counted]


def test_preview_shows_both_answers_of_a_batch_of_pairs(tmp_path: Path, model_folder: Path, capsys) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "Why?", "chosen": answer, "rejected": "No."} for answer in ("So.", "For a longer reason.")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data", "preview", path, "--tokenizer", model_folder, "--batch"]
    assert run(*words) == 0
    text = capsys.readouterr().out
    counted = re.findall(r"pairs\.jsonl:(\d) \((\w+)\) +(\d+) tokens, (\d+) trained(?:, (\d+) padding)?", text)
    assert sorted(found[:2] for found in counted) == [(n, side) for n in "12" for side in ("chosen", "rejected")]
    assert len({int(tokens) + int(padding or 0) for _, _, tokens, _, padding in counted}) == 1
    assert run(*words, "--rows", 1) == 0
    assert capsys.readouterr().out.count("pairs.jsonl:") == 2


@pytest.mark.usefixtures("no_model")
def test_build_reads_every_split(config: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    called = []
    module = "lit_ift.data.modules.conversation.ConversationDataModule"
    monkeypatch.setattr(f"{module}.prepare_data", lambda self: called.append(self), raising=False)
    monkeypatch.setattr(f"{module}.cache_folder", lambda self, split: Path("cache") / split, raising=False)
    assert run("data", "build", "--config", config) == 0
    text = capsys.readouterr().out
    assert len(called) == 1
    assert re.search(r"train: .* rows read, .*; cached in cache/train\n", text)
    assert re.search(r"val: .* rows read, .*; cached in cache/val\n", text)


def test_build_stops_at_a_bad_row(mixed: Path, model_folder: Path, capsys) -> None:
    assert run("data", "build", mixed, "--tokenizer", model_folder) == 1
    assert "mixed.jsonl:4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "prompt,completion\nHi,Hello\nBye,See\n"),
        ("rows.tsv", "prompt\tcompletion\nHi\tHello\nBye\tSee\n"),
        ("rows.json", '[{"prompt": "Hi", "completion": "Hello"}, {"prompt": "Bye", "completion": "See"}]'),
    ],
)
def test_a_configuration_reads_every_kind_of_file(config: Path, name: str, text: str, tmp_path: Path, capsys) -> None:
    # jsonargparse takes such files for parts of a configuration, and what is in them for the value of the option.
    path = tmp_path / name
    path.write_text(text)
    words = ["--config", config, "--data.init_args.train", path, "--data.init_args.val_fraction", "0"]
    assert run("data", "check", *words) == 0
    assert re.search(r"rows read +2\n", re.sub(r" +\n", "\n", capsys.readouterr().out))
    with pytest.raises(SystemExit) as ended:
        run("fit", *words, "--print_config")
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["train"] == str(path)


@pytest.mark.parametrize("command", ["check", "preview", "build"])
def test_every_command_lists_its_options(command: str, capsys) -> None:
    assert run("data", command, "--help") == 0
    text = capsys.readouterr().out
    for option in ("--tokenizer", "--chat_template", "--layout", "--split", "--config"):
        assert option in text
    assert "--val_fraction" not in text


def test_checkpoint_and_model_card_keep_the_figures(config: Path, tmp_path: Path, data_file: Path) -> None:
    argv = list(sys.argv)
    try:
        assert run("fit", "--config", config) == 0
    finally:
        sys.argv = argv
    folder = tmp_path / "out" / "runs" / "version_0"
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    reports = checkpoint["data_reports"]
    assert reports["train"]["rows_kept"] + reports["val"]["rows_kept"] == 21
    assert reports["train"]["turn_ends"] == {"<|im_end|>": reports["train"]["rows_kept"]}
    card = (folder / "model" / "README.md").read_text()
    assert f"rows_kept: {reports['train']['rows_kept']}" in card
    section = card.partition("## Data")[2].partition("\n## ")[0]
    assert f"{data_file}:\n" in section  # The source is named, its rows are not.
    assert f"{data_file.name}:1" not in section
    assert "row_ids" not in section
    assert len(section) < 3000
    generation = json.loads((folder / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] in (2, [2])


@pytest.mark.parametrize("name", ["oasst", "toolcalls"])
def test_real_files(name: str, smollm2: str, tmp_path: Path) -> None:
    path = REAL_ROWS / "instruct" / f"{name}.jsonl"
    saved = tmp_path / "report.json"
    assert run("data", "check", path, "--tokenizer", smollm2, "--json", saved, "--max_unstopped", 0) == 0
    report = DataReport.from_dict(json.loads(saved.read_text())["splits"]["train"])
    assert report.rows_kept + report.rows_skipped == report.rows_read in (14, 8)
    assert report.turn_ends[0].token == "<|im_end|>"


def test_a_file_that_no_row_can_be_read_of_tells_the_reason(tmp_path: Path, model_folder: Path, capsys) -> None:
    lines = {
        "UTF-8": b'{"prompt": "O\xf9?", "completion": "L\xe0."}',
        "NaN": b'{"prompt": "Why?", "completion": NaN}',
        "more than once": b'{"prompt": "Why?", "prompt": "How?", "completion": "So."}',
        "single quotes": b"{'prompt': 'Why?', 'completion': 'So.'}",
    }
    for reason, line in lines.items():
        path = tmp_path / "bad.jsonl"
        path.write_bytes(line + b"\n")
        for command in ("check", "preview"):
            assert run("data", command, path, "--tokenizer", model_folder) == 1
            printed = capsys.readouterr()
            assert reason in printed.out + printed.err
            assert "there is no row" not in printed.out + printed.err


def test_one_bad_file_does_not_stop_the_check_of_the_others_and_fails_it(
    tmp_path: Path, model_folder: Path, capsys
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.csv").write_text('prompt,completion\nWhy?,So.\n"How?,So.\n')
    (folder / "b.csv").write_bytes(b"")
    (folder / "c.csv").write_text("prompt,completion\nWho?,I.\nWho?,\n")
    cache = tmp_path / "cache"
    words = ["data", "check", folder, "--tokenizer", model_folder, "--cache_dir", cache]
    for _ in range(2):
        assert run(*words, "--json", tmp_path / "report.json") == 1
        printed = capsys.readouterr()
        assert "2 of the files cannot be read to the end" in printed.err
        output = " ".join(printed.out.split())
        assert f"{folder}/a.csv:3: the row that starts here has a quoting error" in output
        assert f"{folder}/b.csv: there is no row in it" in output
        content = json.loads((tmp_path / "report.json").read_text())
        assert content["ok"] is False
        report = DataReport.from_dict(content["splits"]["train"])
        assert (report.rows_kept, report.rows_skipped, len(report.unread)) == (2, 1, 2)
    assert not list(cache.glob("train-*")), "a run must not find these rows as if they were all"


def test_a_split_without_a_usable_row_does_not_stop_the_check_of_the_others(config: Path, tmp_path: Path) -> None:
    bad, saved = tmp_path / "bad.jsonl", tmp_path / "report.json"
    bad.write_text('{"prompt": "Why?", "completion": 3}\n')
    good = tmp_path / "good.jsonl"
    extra = ["--data.init_args.train", bad, "--data.init_args.val_fraction", 0, "--data.init_args.val", good]
    good.write_text('{"prompt": "Why?", "completion": "So."}\n')
    assert run("data", "check", "--config", config, *extra, "--json", saved) == 1
    splits = json.loads(saved.read_text())["splits"]
    assert {split: report["rows_kept"] for split, report in splits.items()} == {"train": 0, "val": 1}


def test_every_skipped_row_is_written_also_where_rows_were_cached(
    mixed: Path, model_folder: Path, tmp_path: Path, capsys
) -> None:
    mixed.write_text(mixed.read_text() + '{"prompt": "Who?", "completion": ""}\n' * 150)
    skipped = tmp_path / "skipped.jsonl"
    words = ["data", "check", mixed, "--tokenizer", model_folder, "--max_length", 64]
    assert run(*words) == 0
    assert run(*words, "--skipped", skipped) == 0
    rows = [json.loads(line) for line in skipped.read_text().splitlines()]
    assert sorted(int(row["row_id"].rpartition(":")[2]) for row in rows) == list(range(4, 157))
    assert {row["reason"] for row in rows} == {"field", "layout", "unreadable"}
    assert all(row["problem"] and row["remedy"] and row["split"] == "train" for row in rows)
    assert run(*words, "--skipped", tmp_path / "nowhere" / "rows.jsonl") == 1
    assert "cannot be written" in capsys.readouterr().err
