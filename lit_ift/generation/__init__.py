"""Answers of trained models: find the model that the user names, generate, keep, and talk."""

from lit_ift.generation.engine import Engine, GenerationOptions
from lit_ift.generation.find import ModelPlace, find_model

__all__ = ["Engine", "GenerationOptions", "ModelPlace", "find_model"]
