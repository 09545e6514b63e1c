"""The composed configuration of a ``fit``, whose module and data module are made once, without model or rows."""

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentParser

from lit_ift.cli.training import LitIFTCLI, explained_for_trainer, take_paths_as_they_are
from lit_ift.errors import UserError, told_as
from lit_ift.modules import CausalLMModule
from lit_ift.recipes import with_files


def composed(words: Sequence[str]) -> dict[str, Any]:
    """What ``--print_config`` would print, as plain values.

    Args:
        words: from ``fit`` on.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value.
        UserError: the configuration cannot be used.
    """
    argv = sys.argv
    sys.argv = [argv[0], *with_files(words)]
    try:
        made: Any = Composed.run()
    except ArgumentError as error:
        raise explained_for_trainer(error, words[0]) from error
    finally:
        sys.argv = argv
    values: dict[str, Any] = made.values
    return values


class Composed(LitIFTCLI):
    """Parses what ``fit`` parses, and makes module and data module, which refuse what they cannot use."""

    def instantiate_classes(self) -> None:
        config = self.config["fit"]
        self.values = yaml.safe_load(self._parser("fit").dump(config, skip_none=False))
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(CausalLMModule, "model", required=True)
        parser.add_subclass_arguments(L.LightningDataModule, "data", required=True)
        take_paths_as_they_are(parser)
        with told_as(ValueError, lambda error: UserError(f"The configuration cannot be used: {error}")):
            parser.instantiate_classes(parser.parse_object({"model": config.model, "data": config.data}))

    def _set_seed(self) -> None:
        """Leave the global generators alone."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""
