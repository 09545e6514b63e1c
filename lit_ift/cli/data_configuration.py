"""The data module of a configuration, as ``lit-ift data`` looks at it."""

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser

from lit_ift.cli.training import LitIFTCLI, explained_for_trainer, take_paths_as_they_are
from lit_ift.data.modules.conversation import ConversationDataModule
from lit_ift.errors import UserError, told_as
from lit_ift.models.added_tokens import add_tokens
from lit_ift.models.load import load_tokenizer


def load(words: Sequence[str], *, skip_bad_rows: bool) -> ConversationDataModule:
    """The data module of a configuration, which knows a tokenizer.

    Args:
        words: options of ``fit``.
        skip_bad_rows: skip and count them, whatever the configuration says.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value.
        UserError: the configuration cannot be used.
    """
    argv = sys.argv
    sys.argv = [argv[0], "fit", *words]
    try:
        module: ConversationDataModule = (BadRowsSkipped if skip_bad_rows else DataOnly).run().datamodule
    except ArgumentError as error:
        raise explained_for_trainer(error, "fit") from error
    finally:
        sys.argv = argv
    return module


class DataOnly(LitIFTCLI):
    """Parses what ``fit`` parses, and makes nothing but the data module."""

    skip_bad_rows = False

    def instantiate_classes(self) -> None:
        config = self.config["fit"]
        if self.skip_bad_rows and "init_args.on_bad_row" in config.data:
            config.data["init_args.on_bad_row"] = "skip"
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(L.LightningDataModule, "data")
        take_paths_as_they_are(parser)
        with told_as(ValueError, lambda error: UserError(f"The configuration cannot be used: {error}")):
            module = parser.instantiate_classes(parser.parse_object({"data": config.data})).data
        if not isinstance(module, ConversationDataModule):
            raise UserError(f"data: {type(module).__name__} keeps no report. Use a ConversationDataModule.")
        if module.tokenizer_source is None:
            module.tokenizer_source = _tokenizer_of_model(config.model)
        self.datamodule = module

    def _set_seed(self) -> None:
        """Leave the global generators alone: the data modules draw from their own."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing: the data module is all that is wanted."""


class BadRowsSkipped(DataOnly):
    """The same; bad rows are skipped and counted, whatever the configuration says."""

    skip_bad_rows = True


def _tokenizer_of_model(model: Any) -> Any:
    """The tokenizer that the module would load."""
    options = model.get("init_args") or {}
    own, of_model = options.get("tokenizer"), options.get("model")
    spec = own or of_model
    if not isinstance(spec, str):
        raise UserError("Neither data.tokenizer nor the model's tokenizer is named. Set data.init_args.tokenizer.")
    tokenizer = load_tokenizer(
        spec,
        revision=options.get("revision") if own in (None, of_model) else None,
        trust_remote_code=bool(options.get("trust_remote_code")),
    )
    add_tokens(tokenizer, options.get("added_tokens") or ())
    return tokenizer
