"""What the objectives on the tokens of one answer share: any token loss, on any input."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_ift.losses.logprobs import TokenScores, greedy
from lit_ift.losses.masking import per_sequence_mean
from lit_ift.losses.token_registry import TokenLoss
from lit_ift.modules.base import token_accuracy
from lit_ift.modules.inputs import TrueTokens
from lit_ift.modules.old_policy import OldPolicy
from lit_ift.modules.one_sweep import Portion, judged
from lit_ift.modules.packed import data_weights, unpacked
from lit_ift.modules.reference_module import ReferenceModule
from lit_ift.modules.stepping import Batch, ExampleLosses


class TokenModule(ReferenceModule):
    """An objective made of an input and a token loss, which a subclass sets before this class is initialised.

    Args:
        *args: see ``ReferenceModule``.
        **kwargs: see ``ReferenceModule``.

    Raises:
        ValueError: the loss compares with a policy that has read the true tokens, and the input is another one.
    """

    token_loss: TokenLoss
    token_input: TrueTokens
    caches_reference = False
    """Rows of an `InstructionDataModule` have no place for them; with a `FeedbackDataModule` ``cached`` can be set."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        steps = self.token_loss.old_policy_steps
        self.old_policy = None if steps is None else OldPolicy(steps)
        if steps is not None and type(self.token_input) is not TrueTokens:
            raise ValueError(
                f"The loss {self.token_loss.name!r} compares with what an old policy said of the true tokens, and "
                f"{type(self.token_input).__name__} gives the policy others to read. Use input='true_tokens'."
            )
        super().__init__(*args, **kwargs)

    @property
    def losses_without_weights(self) -> list[str]:
        """Names of the losses that make no use of weights that rows may have."""
        return [] if self.token_loss.takes_data_weights else [self.token_loss.name]

    @property
    def row_wise(self) -> bool:
        return self.token_loss.row_wise

    @property
    def can_share_prompts(self) -> bool:
        return self.token_input.reads_twice

    @property
    def needs_reference(self) -> bool:
        return self.token_loss.needs_reference

    @property
    def needs_reference_tokens(self) -> bool:
        return self.token_loss.needs_reference_tokens

    def prepare(self) -> None:
        super().prepare()
        self.token_input.prepare(self)
        if self.old_policy is not None:
            self.old_policy.prepare(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.token_input.reused is not None:
            self.token_input.reused.begin(self)
        if self.old_policy is not None:
            self.old_policy.begin(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.token_input.reused is not None:
            self.token_input.reused.save(self, checkpoint)
        if self.old_policy is not None:
            self.old_policy.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.token_input.reused is not None and self._trainer is not None and self.trainer.state.fn == "fit":
            self.token_input.reused.load(checkpoint)
        if self.old_policy is not None and self._trainer is not None:
            self.old_policy.load(checkpoint)

    def example_losses(self, batch: Batch) -> ExampleLosses:
        # Before any pass with gradient, because the weights change for it.
        old_logps = None if self.old_policy is None else self.old_policy.token_logps(self, batch)
        prepared = self.token_input(self, batch)
        hidden = prepared.hidden_states(self, batch)
        select = prepared.predict if prepared.reuses else greedy if prepared.best is None else None
        known = self._known_inputs(hidden, batch)
        if old_logps is not None:
            known["old_token_logps"] = old_logps

        def judge(scores: TokenScores, some: Portion) -> ExampleLosses:
            given = {name: values[some.rows] for name, values in known.items()}
            return self.per_example_loss(scores.nll, scores.mask, **{**self._inputs_of(scores), **given})

        losses, metrics, scores = judged(
            self, hidden, batch, judge, select=select, statistics=self.token_loss.statistics
        )
        first = scores if prepared.first is None else prepared.first
        best = scores.predictions if prepared.best is None else prepared.best
        own = {name: torch.full_like(losses, value).detach() for name, value in prepared.metrics.items()}
        if prepared.keep is not None:
            prepared.keep(scores.predictions)
        if prepared.reuses:  # There was no pass on the true tokens to speak of.
            return losses, {**own, **metrics}
        if self.token_input.looks_ahead:
            own["sft_loss"] = per_sequence_mean(first.nll, first.mask).detach()
        return losses, {**own, "token_accuracy": token_accuracy(best, unpacked(batch)["labels"]), **metrics}

    def per_example_loss(self, nll: Tensor, mask: Tensor, **inputs: Tensor) -> ExampleLosses:
        """See ``CausalLMModule``; what the token loss asks for besides is given by name."""
        if "data_weights" in self.token_loss.inputs:  # Here, for a subclass may override this with (nll, mask) alone.
            inputs.setdefault("data_weights", torch.ones_like(nll))
        return self.token_loss({"nll": nll, "mask": mask, **inputs})

    def _inputs_of(self, scores: TokenScores) -> dict[str, Tensor]:
        """The inputs that follow from the scores of tokens, by name; nll and mask are not among them."""
        inputs = dict(scores.statistics)
        if "token_logps" in self.token_loss.inputs:
            inputs["token_logps"] = -scores.nll
        if self.old_policy is not None:  # Unless another is given, the old policy is the present one.
            inputs["old_token_logps"] = -scores.nll.detach()
        return inputs

    def _known_inputs(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The inputs that are known before tokens are scored, by name; one row an example."""
        asked, inputs = self.token_loss.inputs, dict[str, Tensor]()
        if "data_weights" in asked and "data_weights" in batch:
            inputs["data_weights"] = data_weights(batch)
        if "reference_logps" in asked:
            inputs["reference_logps"] = self.reference.logps(self, batch)
        if "reference_token_logps" in asked:
            inputs["reference_token_logps"] = -self.reference.scores(self, batch).nll
        if "reference_token_kl" in asked:
            inputs["reference_token_kl"] = self.reference.token_kl(self, hidden, batch)
        return inputs
