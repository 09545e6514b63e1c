"""What a configuration names is what its option needs, or nothing is called; and it may stand in the current folder."""

import sys
from pathlib import Path
from typing import Any

# Its log handler keeps the stderr that there is at the first import, which must not be that of a single test.
import lightning.pytorch  # noqa: F401
import pytest
import torch
import yaml
from commands import run
from tiny import tiny_model

from lit_ift import SFTModule

OWN = """
from __future__ import annotations

from typing import TYPE_CHECKING

import lightning as L
import torch
from torch.optim import SGD, Optimizer

from lit_ift import SFTModule

if TYPE_CHECKING:
    from nowhere import Thing


def called() -> None:
    open("called", "w").close()


def unannotated(params, lr=0.1):
    called()


def of_another_kind(params, lr=0.1) -> torch.nn.Module:
    called()


def for_type_checkers(lr=0.1) -> Thing:
    called()


def sgd(params, lr=0.1) -> Optimizer:
    return SGD(params, lr=lr)


def steps(optimizer, size: int = 5) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, size)


def callback(word: str = "a") -> L.Callback:
    return L.Callback()


class Own(SFTModule):
    def __init__(self, model: str, *, extra: int = 3, **kwargs):
        super().__init__(model, **kwargs)
"""


@pytest.fixture
def config(tmp_path: Path, model_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    content = {
        "model": {"class_path": "SFTModule", "init_args": {"model": str(model_folder)}},
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"train": str(data_file), "val_fraction": 0.3, "batch_size": 4, "max_length": 64},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "default_root_dir": str(tmp_path / "out"),
            "enable_progress_bar": False,
        },
        "export": {"enabled": False},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "own_classes", raising=False)
    return path


def described(path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": init_args}


SYSTEM = described("os.system", command="touch called")
POPEN = described("subprocess.Popen", args=["touch", "called"])
UNFIT = [
    ("model.init_args.optimizer", SYSTEM, "torch.optim.optimizer.Optimizer"),
    ("model.init_args.optimizer", POPEN, "to be a subclass of <class 'Optimizer'>"),
    ("model.init_args.optimizer", "os.system", "to be a function that returns <class 'Optimizer'>"),
    ("model.init_args.optimizer", described("own_classes.unannotated"), "annotated to return one"),
    ("model.init_args.optimizer", described("own_classes.of_another_kind"), "annotated to return one"),
    ("model.init_args.optimizer", described("own_classes.steps"), "annotated to return one"),
    ("model.init_args.lr_scheduler", SYSTEM, "torch.optim.lr_scheduler.LRScheduler"),
    ("model.init_args.lr_scheduler", described("own_classes.for_type_checkers"), "annotated to return one"),
    ("trainer.callbacks", SYSTEM, "os.system does not correspond to a subclass of Callback"),
    ("trainer.callbacks", [POPEN], "subprocess.Popen does not correspond to a subclass of Callback"),
    (
        "trainer.callbacks",
        [described("lightning.pytorch.callbacks.LambdaCallback", on_fit_start=SYSTEM)],
        "trainer.callbacks[0].on_fit_start=posix.system does not fit and was not called",
    ),
    ("trainer.logger", SYSTEM, "os.system does not correspond to a subclass of Logger"),
    ("model.init_args.lora", {"r": SYSTEM}, "model.lora.r=posix.system does not fit"),
]


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize("from_yaml", [True, False])
def test_nothing_is_called_that_does_not_fit(
    config: Path, tmp_path: Path, capsys: Any, command: str, from_yaml: bool
) -> None:
    for option, value, message in UNFIT:
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
        words: list[str] = [f"--{option}", text.strip()]
        if from_yaml:
            nested: Any = value
            for name in reversed(option.split(".")):
                nested = {name: nested}
            (tmp_path / "more.yaml").write_text(yaml.safe_dump(nested))
            words = ["--config", "more.yaml"]
        assert run(command, "--config", config, *words) in (1, 2), value
        assert message in capsys.readouterr().err
        assert not (tmp_path / "called").exists(), value


def test_objects_in_options_of_any_value_stay_values(config: Path, tmp_path: Path) -> None:
    run("fit", "--config", config, "--model.init_args.generation", "{stop_strings: " + str(POPEN) + "}")
    assert not (tmp_path / "called").exists()


def test_classes_and_functions_of_the_current_folder(config: Path, tmp_path: Path) -> None:
    words = ["--model", "own_classes.Own", "--model.init_args.optimizer", "own_classes.sgd"]
    words += ["--model.init_args.lr_scheduler", "{class_path: own_classes.steps, init_args: {size: 7}}"]
    words += ["--trainer.callbacks", "[{class_path: own_classes.callback, init_args: {word: b}}]"]
    assert run("fit", "--config", config, *words) == 0
    assert "own_classes.Own" in (tmp_path / "out/runs/version_0/config.yaml").read_text()


def test_the_current_folder_comes_last(config: Path, tmp_path: Path) -> None:
    """A file named like an installed package must not stand in for it."""
    assert config.is_file()
    assert run("nope") == 2
    assert sys.path[-1] == str(tmp_path)


def test_an_optimizer_by_half_its_name(config: Path, capsys: Any) -> None:
    assert run("fit", "--config", config, "--model.init_args.optimizer", "adamw") == 2
    assert "There is no class 'adamw'. Did you mean 'AdamW'?" in capsys.readouterr().err


@pytest.mark.parametrize("own", [False, True])
def test_help_shows_the_class_of_the_configuration(config: Path, capsys: Any, own: bool) -> None:
    config.write_text(config.read_text().replace("SFTModule", "IFTModule"))
    words = ["--model", "own_classes.Own"] if own else []
    with pytest.raises(SystemExit) as stopped:
        run("fit", "--config", config, *words, "--model.help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert ("--model.extra" in shown, "--model.lam_schedule" in shown) == (own, not own)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "optimizer",
            "adamw",
            r"optimizer='adamw' does not fit .*torch\.optim\.optimizer\.Optimizer",
        ),
        ("optimizer", torch.optim.SGD([torch.zeros(1)]), "optimizer=SGD"),
        ("optimizer", torch.nn.Linear, "Linear does not fit"),
        ("lr_scheduler", print, r"lr_scheduler=builtins\.print does not fit"),
    ],
)
def test_python_hears_the_same(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SFTModule(tiny_model(), **{option: value})


def test_python_may_give_a_function_that_says_nothing() -> None:
    module = SFTModule(tiny_model(), optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    assert module.optimizers is not None
