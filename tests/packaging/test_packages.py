"""Wheel and sdist are whole: where nothing of the checkout is seen, the wheel works, and so does a project on it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "external_project"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
NOT_HERE = ("vllm",)
"""Extras that the development environment has not, for they need a GPU."""

pytestmark = pytest.mark.examples


class Environment(NamedTuple):
    """An environment into which the wheel was installed; what lit-ift depends on is that of the tests.

    Args:
        folder: of the environment.
        empty: a folder to start from, in which nothing of the repository is found.
        wheel: what was installed.
    """

    folder: Path
    empty: Path
    wheel: Path

    def run(self, *words: object) -> str:
        """What a command of the environment prints."""
        program, *rest = map(str, words)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [self.folder / "bin" / program, *rest],
            cwd=self.empty,
            env=clean | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout

    def install(self, package: Path) -> None:
        options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
        python = self.folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, package], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows or would take; building leaves folders behind."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("sdist"), "--sdist")


@pytest.fixture(scope="module")
def environment(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Of the wheel that is made of the sdist."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (inner,) = unpacked.iterdir()
    wheel = built(inner, tmp_path_factory.mktemp("wheel"), "--wheel")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    made = Environment(folder, tmp_path_factory.mktemp("empty"), wheel)
    made.install(wheel)
    return made


def built(folder: Path, output: Path, kind: str) -> Path:
    """The one file that a build makes, by what is installed."""
    words = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(output), str(folder)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(words, check=True, capture_output=True, env=clean)
    (made,) = output.iterdir()
    return made


def test_the_wheel_brings_all_recipes_and_texts(environment: Environment) -> None:
    with zipfile.ZipFile(environment.wheel) as archive:
        names = set(archive.namelist())
    configs = {f"lit_ift/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.*")}
    assert configs
    assert configs <= names
    package = {
        str(path.relative_to(ROOT)) for path in (ROOT / "lit_ift").rglob("*.*") if "__pycache__" not in path.parts
    }
    assert {name for name in package if not name.endswith("configs")} <= names
    assert not {name for name in names if name.startswith(("tests/", "configs/", "docs/", "examples/"))}


def test_the_wheel_works_from_an_empty_folder(environment: Environment) -> None:
    where = environment.run("python", "-c", "import lit_ift; print(lit_ift.__file__)").strip()
    assert Path(where).is_relative_to(environment.folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert environment.run("lit-ift", "--version").strip() == f"lit-ift {project['version']}"
    assert "qwen3/8b-lora" in environment.run("lit-ift", "recipes", "list")
    assert json.loads(environment.run("lit-ift", "schema"))["title"] == "Configuration of lit-ift fit"
    shown = yaml.safe_load(environment.run("lit-ift", "fit", "--config", "qwen3/8b-lora", "--print_config"))
    assert shown["model"]["init_args"]["model"] == "Qwen/Qwen3-8B-Base"
    assert shown["model"]["init_args"]["lora"]["r"] == 16


def test_a_project_on_lit_ift_trains_its_own_objective(
    environment: Environment, model_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    environment.install(project)
    small = [
        *("--model.model", model_folder, "--data.train", data_file, "--data.max_length", 512, "--data.batch_size", 2),
        *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.max_steps", 1),
        *("--trainer.accumulate_grad_batches", 1, "--trainer.limit_val_batches", 0),
    ]
    environment.run("lit-ift", "fit", "--config", project / "capped.yaml", *small)
    run = environment.empty / "checkpoints/runs/version_0"
    assert "train/capped_share" in (run / "metrics.csv").read_text(encoding="utf-8")
    saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]
    assert (saved["class_path"], saved["init_args"]["cap"]) == ("capped_loss.CappedModule", 4.0)
    assert "3 passed" in environment.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", project)


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - set(NOT_HERE)))
def test_each_extra_alone_is_met_by_what_the_tests_run_with(extra: str) -> None:
    """A bound that the development environment breaks is one that no test has seen."""
    for requirement in required_by(extra):
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement


def required_by(extra: str) -> list[Requirement]:
    """What an extra needs on this machine, and the extras that it names."""
    needed = []
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        if requirement.name == "lit-ift":
            assert requirement.extras <= set(EXTRAS)
            needed += [other for inner in requirement.extras for other in required_by(inner)]
        else:
            needed.append(requirement)
    return needed


@pytest.mark.pythons
@pytest.mark.parametrize("minor", [11, 12, 13])
def test_every_file_is_of_the_oldest_python_on(minor: int) -> None:
    """Read by that Python where it is installed, else by the present one in its grammar."""
    code = (
        "import ast, sys\n"
        "for name in sys.argv[1:]:\n"
        f"    ast.parse(open(name, encoding='utf-8').read(), name, feature_version=(3, {minor}))\n"
    )
    files = map(str, sorted((ROOT / "lit_ift").rglob("*.py")))
    done = subprocess.run([python_of(minor), "-c", code, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def python_of(minor: int) -> str:
    """A Python of this version, on the path or pyenv's; the present one if there is none."""
    code = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
    found = [shutil.which(f"python3.{minor}"), *sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))]
    for python in filter(None, found):
        if subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0:
            return str(python)
    return sys.executable
