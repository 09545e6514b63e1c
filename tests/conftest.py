"""Fixtures for all tests."""

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings
from skips import SkipGuard

TESTS: Final = Path(__file__).parent
SLOW: Final = {"configs", "distributed", "integration"}
"""Folders all of whose tests run whole commands or several processes."""

# The same examples everywhere in CI, others at each run elsewhere. Examples have no deadline, for machines differ.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "explore")


def is_slow(path: Path) -> bool:
    return path.relative_to(TESTS).parts[0] in SLOW


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI"):
        config.pluginmanager.register(SkipGuard())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by where they are and what they ask for."""
    for item in items:
        if is_slow(item.path):
            item.add_marker("slow")
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker("model")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under ``--dist loadfile``, run all tests of ``distributed`` in one process too: they start several themselves."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = str(super()._split_scope(nodeid))
            return "distributed" if "distributed" in Path(path).parts else path

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test draws the same numbers, whatever ran before it in its process."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def no_launcher() -> None:
    """No test takes the port or the ranks over that Lightning left in the environment for an earlier one."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "RANK"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs leave an empty file for the picture of their curves, but where a test has the mark ``drawing``.

    Drawing takes longer than training a tiny model. ``tests/unit/callbacks`` looks at the pictures.
    """
    if is_slow(request.path) and request.node.get_closest_marker("drawing") is None:
        monkeypatch.setattr("lit_ift.callbacks.curves.draw_panels", lambda points, panels, path: path.touch())


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokenized data of all tests goes into one folder that is thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_IFT_DATA_CACHE", str(tmp_path_factory.mktemp("data-cache")))
        yield


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Folder of the pretrained SmolLM2-135M-Instruct, which the first process that asks downloads into checkpoints."""
    from lit_ift.errors import UserError
    from lit_ift.models import obtain_model

    root = Path(os.environ.get("LIT_IFT_CHECKPOINTS") or TESTS.parent / "checkpoints")
    try:
        return obtain_model("HuggingFaceTB/SmolLM2-135M-Instruct", cache_dir=root / "models").path
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level tokenizer, as `save_pretrained` writes it."""
    import torch
    from tiny import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 rows of prompt and completion, of different lengths."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"Say {i} times b", "completion": "b" * (1 + i % 7)} for i in range(21)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
