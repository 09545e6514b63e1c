"""Data sets on the Hugging Face hub whose layout and splits are known, so that their id is all a user must give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class KnownDataset:
    """How a data set on the hub is read.

    Args:
        layout: a key of `lit_ift.data.parse.layouts.LAYOUTS`.
        splits: its split to take for each of train, val and test; one that is absent has none.
    """

    layout: str
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train"})


def _held_out(train: str, held_out: str) -> dict[str, str]:
    """Splits of a data set that has one beside its training split, for validation and test alike."""
    return {"train": train, "val": held_out, "test": held_out}


KNOWN_DATASETS: Final[dict[str, KnownDataset]] = {
    "allenai/tulu-3-sft-mixture": KnownDataset("messages"),
    "anthropic/hh-rlhf": KnownDataset("hh_rlhf", _held_out("train", "test")),
    "argilla/dpo-mix-7k": KnownDataset("preference", _held_out("train", "test")),
    "argilla/ultrafeedback-binarized-preferences-cleaned": KnownDataset("preference"),
    "databricks/databricks-dolly-15k": KnownDataset("dolly"),
    "garage-baind/open-platypus": KnownDataset("alpaca"),
    "huggingfaceh4/no_robots": KnownDataset("messages", _held_out("train", "test")),
    "huggingfaceh4/ultrachat_200k": KnownDataset("messages", _held_out("train_sft", "test_sft")),
    "huggingfaceh4/ultrafeedback_binarized": KnownDataset("preference", _held_out("train_prefs", "test_prefs")),
    "intel/orca_dpo_pairs": KnownDataset("orca"),
    "nvidia/helpsteer2": KnownDataset("helpsteer2", _held_out("train", "validation")),
    "open-orca/slimorca": KnownDataset("sharegpt"),
    "stingning/ultrachat": KnownDataset("ultrachat"),
    "tatsu-lab/alpaca": KnownDataset("alpaca"),
    "teknium/openhermes-2.5": KnownDataset("sharegpt"),
    "trl-lib/capybara": KnownDataset("messages", _held_out("train", "test")),
    "trl-lib/kto-mix-14k": KnownDataset("unpaired", _held_out("train", "test")),
    "trl-lib/ultrafeedback_binarized": KnownDataset("preference", _held_out("train", "test")),
    "vicgalle/alpaca-gpt4": KnownDataset("alpaca"),
    "yahma/alpaca-cleaned": KnownDataset("alpaca"),
}
"""By hub id in lower case. Local copies are recognised by their columns instead."""


def known_dataset(source: str) -> KnownDataset | None:
    """What is known of the hub id `source`, in any case of letters; None if nothing is."""
    return KNOWN_DATASETS.get(source.lower())
