"""What the user may name as a model."""

import os
from pathlib import Path

import pytest

from lit_ift.errors import UserError
from lit_ift.generation.find import ModelPlace, find_model


def touch(path: Path, text: str = "", *, time: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path.parent, (time, time))
    os.utime(path, (time, time))
    return path


def test_a_run_is_its_newest_model(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "fit_3"
    template = "data: {class_path: X, init_args: {chat_template: zephyr}}"
    touch(run / "config.yaml", template + "\nmodel: {class_path: Y, init_args: {model: base/of-run}}")
    best = touch(run / "checkpoints" / "epoch=0-step=2.ckpt", time=9)
    assert find_model(str(run)) == ModelPlace("checkpoint", str(best), run)
    last = touch(run / "checkpoints" / "last.ckpt", time=5)
    assert find_model(str(run)).path == str(last)
    touch(run / "model" / "config.json", time=6)
    place = find_model(str(run))
    assert place == ModelPlace("model", str(run / "model"), run)
    assert (place.base(), place.chat_template()) == ("base/of-run", "zephyr")
    touch(run / "model-1" / "adapter_config.json", time=7)
    assert find_model(str(run)) == ModelPlace("adapter", str(run / "model-1"), run)
    touch(last, time=8)  # The run went on and was stopped.
    assert find_model(str(run)).path == str(last)
    with pytest.raises(UserError, match=r"folder of 1 runs.*such as the newest: .*fit_3"):
        find_model(str(tmp_path))


def test_folders_and_files(tmp_path: Path) -> None:
    whole = touch(tmp_path / "whole" / "config.json").parent
    touch(whole / "README.md", "---\nbase_model: some/base\ntags: [a]\n---\n# It")
    assert find_model(str(whole)) == ModelPlace("model", str(whole), None)
    assert find_model(str(whole)).base() == "some/base"
    touch(whole / "README.md", "---\n{broken\n---\n")
    assert find_model(str(whole)).base() is None
    assert find_model(str(touch(tmp_path / "a.ckpt"))).kind == "checkpoint"
    assert find_model(str(touch(tmp_path / "s" / "meta.pt").parent)).kind == "checkpoint"
    assert find_model(str(touch(tmp_path / "a.gguf"))).kind == "model"
    assert find_model("org/model") == ModelPlace("model", "org/model")
    with pytest.raises(UserError, match=r"neither a model nor checkpoints. Name the file: .*b\.gguf"):
        find_model(str(touch(tmp_path / "g" / "b.gguf").parent))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither a model nor checkpoints. Name the folder of a `fit` run"):
        find_model(str(tmp_path / "empty"))


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "fit_1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Model 'runs/fit_2': there is no such file or folder. Did you mean 'fit_1'"):
        find_model("runs/fit_2")
    with pytest.raises(UserError, match=r"no such file or folder. In runs there are: fit_1"):
        find_model("runs/xyz")
    for named in ("", "a.ckpt", "./a", "a/b/c"):
        with pytest.raises(UserError, match="no such file or folder"):
            find_model(named)
