"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Folder of the pretrained SmolLM2-135M-Instruct, downloaded once into checkpoints/models."""
    from lit_ift.errors import UserError
    from lit_ift.models import obtain_model

    root = Path(os.environ.get("LIT_IFT_CHECKPOINTS") or Path(__file__).parents[1] / "checkpoints")
    try:
        return obtain_model("HuggingFaceTB/SmolLM2-135M-Instruct", cache_dir=root / "models").path
    except UserError as error:
        pytest.skip(str(error))
