"""Preference optimization on pairs, with any of the pair losses.

Shapes: P pairs, which are the rows of a batch; T positions, E the size of an embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_ift.constants import IGNORE_INDEX
from lit_ift.losses.masking import per_sequence_mean
from lit_ift.losses.pair_sum import PairLossOption, pair_objective
from lit_ift.modules.feedback_module import AnswerScores, FeedbackModule
from lit_ift.modules.feedback_rows import FeedbackRows
from lit_ift.modules.inputs import Prepared, TrueTokens, named_input
from lit_ift.modules.one_sweep import Portion
from lit_ift.modules.packed import data_weights, owners
from lit_ift.modules.prompts import PromptEmbedder, pooled_prompts
from lit_ift.modules.stepping import Batch, ExampleLosses
from lit_ift.modules.token_weights import ContrastiveWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PreferenceModule(FeedbackModule):
    """Trains on pairs of a chosen and a rejected answer with the pair loss that is named.

    Chosen and rejected answers share one forward pass. Logged besides the loss: ``rewards/chosen``,
    ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies`` as the loss defines its rewards,
    ``logps/chosen`` and ``logps/rejected`` (sums over an answer) [nats], and for losses with a reference policy
    ``kl``: the mean of log π_ref - log π over all answers, which estimates KL(π_ref ‖ π) as far as the answers are
    such as the reference gives [nats an answer]. Metrics of a sum of losses have the name of their loss before theirs.
    Inputs with a look-ahead pass log ``lam``, and ``sft_loss``, the nll of chosen answers in it [nats a token].

    Args:
        model: see ``CausalLMModule``.
        loss: a name in ``lit_ift.losses.PAIR_LOSSES`` (dpo, ipo, simpo, orpo, …), or the import path of a function
            with their signature. Or a list of them, whose weighted sum is trained on: ``[{name: dpo, beta: 0.1},
            {name: sft, weight: 0.2}]``; see ``lit_ift.losses.pair_sum.SummedPairLoss``. A name in
            ``lit_ift.losses.TOKEN_LOSSES`` (propagation, dft, …) is a term on the chosen answers.
        options: hyperparameters of a single loss, such as ``{beta: 0.1}``, and what changes it:
            ``{ld_dpo: {alpha: 0.5}}``, ``{wpo: {clamp: true}}``; in a list they stand in the terms.
        input: what the policy reads of chosen answers: ``true_tokens``, ``temporal_residual`` (IFT's), ``neftune``,
            ``own_tokens`` or one of your own, see ``SFTModule``. All that losses are told of chosen answers is then of
            that input, while the other answers are read as they are. A reference reads the true tokens, so that losses
            with one take no other input.
        input_options: options of the input, such as ``{lam: 0.2}``, but for ``reuse_predictions``.
        prompt_embedder: hub id or folder of a sentence-embedding model, for losses that compare prompts (rpo); by
            default the policy's own hidden states are averaged over the prompt.
        token_weights: how tokens are weighted, for losses that take such weights (tis_dpo).
        **kwargs: see ``FeedbackModule``.

    Raises:
        ValueError: there is no such loss or input, an option that it does not use was given, or they do not go
            together.
    """

    kinds = frozenset({"preference"})
    not_saved = (*FeedbackModule.not_saved, "token_weights")

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        loss: PairLossOption = "dpo",
        options: dict[str, Any] | None = None,
        input: str = "true_tokens",
        input_options: dict[str, Any] | None = None,
        prompt_embedder: str | None = None,
        token_weights: ContrastiveWeights | None = None,
        **kwargs: Any,
    ) -> None:
        # Before the model, which may take long to load.
        self.pair_loss = pair_objective(loss, options)
        self.chosen_input = named_input(input, input_options)
        if input != "true_tokens" and self.pair_loss.needs_reference:
            raise ValueError(
                f"The loss {self.pair_loss.name!r} compares the policy with a reference, which reads the true tokens, "
                f"while input={input!r} gives the policy others to read of chosen answers. Use input='true_tokens', or "
                "losses without a reference, such as simpo or orpo."
            )
        if self.chosen_input.reused is not None:
            raise ValueError(
                "input_options: reuse_predictions keeps predictions of instruction rows, not of pairs. Leave it out."
            )
        self._check_used("prompt_embedder", prompt_embedder, "prompt_embeddings")
        self._check_used("token_weights", token_weights, "chosen_token_weights", is_needed=True)
        super().__init__(model, **kwargs)
        self.needs_gold = self.pair_loss.needs_gold
        self.uses_soft_labels = "preference" in self.pair_loss.inputs
        self.prompt_embedder = None if prompt_embedder is None else PromptEmbedder(prompt_embedder)
        self.token_weights = token_weights

    def _check_used(self, option: str, value: Any, name: str, *, is_needed: bool = False) -> None:
        asked = name in self.pair_loss.inputs
        if value is not None and not asked:
            raise ValueError(f"{option} has no effect: the loss {self.pair_loss.name!r} takes no {name}. Leave it out.")
        if value is None and asked and is_needed:
            raise ValueError(f"The loss {self.pair_loss.name!r} needs {option}.")

    @property
    def can_share_prompts(self) -> bool:
        return self.chosen_input.keeps_prompts

    @property
    def row_wise(self) -> bool:
        return self.pair_loss.row_wise

    @property
    def losses_without_weights(self) -> list[str]:
        """Names of the losses that make no use of weights that rows may have."""
        return self.pair_loss.losses_without_weights

    @property
    def needs_reference(self) -> bool:
        return self.pair_loss.needs_reference

    @property
    def needs_reference_tokens(self) -> bool:
        return self.pair_loss.needs_reference_tokens

    @property
    def needs_log_ratio_mean(self) -> bool:
        return self.pair_loss.needs_log_ratio_mean

    def prepare(self) -> None:
        super().prepare()
        self.chosen_input.prepare(self)
        if self.prompt_embedder is not None:
            self.prompt_embedder.prepare()
        if self.token_weights is not None:
            self.token_weights.prepare(self)

    def example_losses(self, batch: Batch) -> ExampleLosses:
        prepared = read_chosen(self.chosen_input, self, batch)
        hidden = prepared.hidden_states(self, batch)
        known = self._known_inputs(hidden, batch)

        def judge(answers: AnswerScores, some: Portion) -> ExampleLosses:
            of_some = {name: values[some.examples] for name, values in known.items()}
            inputs = self.pair_inputs(hidden, answers, batch, of_some)
            losses, metrics = self.pair_loss(inputs)
            return losses, {**self._own_metrics(answers, some, inputs, prepared), **metrics}

        return self.judged_answers(hidden, batch, judge, self.pair_loss.statistics)

    def _own_metrics(
        self, answers: AnswerScores, some: Portion, inputs: Mapping[str, Tensor], prepared: Prepared
    ) -> dict[str, Tensor]:
        """What is logged of some pairs whatever the loss."""
        chosen, rejected = answers.rows.answers("chosen"), answers.rows.answers("rejected")
        own = {"logps/chosen": answers.logps[chosen].detach(), "logps/rejected": answers.logps[rejected].detach()}
        if {"reference_chosen_logps", "reference_rejected_logps"} <= set(inputs):
            ratios = inputs["reference_chosen_logps"] + inputs["reference_rejected_logps"] - sum(own.values())
            own["kl"] = ratios / 2
            if self.needs_log_ratio_mean:
                own["log_ratio"] = -own["kl"]
        own |= {name: torch.full_like(own["logps/chosen"], value) for name, value in prepared.metrics.items()}
        if self.chosen_input.looks_ahead:
            first, of = (answers.tokens, slice(None)) if prepared.first is None else (prepared.first, some.examples)
            own["sft_loss"] = per_sequence_mean(first.nll[of], first.mask[of])[chosen].detach()
        return own

    def pair_inputs(
        self, hidden: Tensor, answers: AnswerScores, batch: Batch, known: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The inputs that the loss asks for, by the names of ``lit_ift.losses.registry.INPUTS``.

        Args:
            hidden: of the batch's rows, (B, T, D).
            answers: of all pairs of the batch, or of some of them.
            batch: what was read.
            known: what `_known_inputs` says of these answers; by default, of all answers of the batch.
        """
        known = self._known_inputs(hidden, batch) if known is None else known
        inputs = self._policy_inputs(answers)
        for name, values in known.items():
            inputs |= self._by_side(values.to(torch.promote_types(values.dtype, answers.logps.dtype)), answers, name)
        asked = self.pair_loss.inputs
        if "chosen_token_weights" in asked or "rejected_token_weights" in asked:
            inputs |= self._weights(answers, batch)
        if "prompt_embeddings" in asked:
            inputs["prompt_embeddings"] = self._prompt_embeddings(hidden, answers, batch)
        return {name: inputs[name] for name in asked}

    def _known_inputs(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What is known before the policy is asked, of all answers, by its name with ``{}`` for the side."""
        makers: dict[str, Callable[[], Tensor]] = {
            "reference_{}_logps": lambda: self.reference.logps(self, batch),
            "reference_{}_token_logps": lambda: -self.reference.scores(self, batch).nll,
            "{}_token_kl": lambda: self.reference.token_kl(self, hidden, batch),
            "{}_token_reverse_kl": lambda: self.reference.token_kl(self, hidden, batch, reverse=True),
        }
        if "data_weights" in batch:
            makers["{}_data_weights"] = lambda: data_weights(batch)
        asked = {name.replace("chosen", "{}").replace("rejected", "{}") for name in self.pair_loss.inputs}
        return {name: make() for name, make in makers.items() if name in asked}

    def _by_side(self, values: Tensor, answers: AnswerScores, name: str) -> dict[str, Tensor]:
        """Values of all answers as the inputs of each side, with its name put for ``{}``."""
        return {name.format(side): values[answers.rows.answers(side)] for side in ("chosen", "rejected")}

    def _policy_inputs(self, answers: AnswerScores) -> dict[str, Tensor]:
        inputs = {
            **self._by_side(answers.logps, answers, "{}_logps"),
            **self._by_side(answers.lengths, answers, "{}_lengths"),
            **self._by_side(-answers.tokens.nll, answers, "{}_token_logps"),
            **self._by_side(answers.tokens.mask, answers, "{}_mask"),
            # Unless the batch has others.
            **self._by_side(torch.ones_like(answers.tokens.nll), answers, "{}_data_weights"),
            "log_ratio_mean": answers.logps.new_full((len(answers.rows),), self.log_ratios.mean),
            "preference": answers.rows.scores.nan_to_num(1.0).to(answers.logps.dtype),
        }
        for name, values in answers.tokens.statistics.items():
            inputs |= self._by_side(values, answers, f"{{}}_token_{name}")
        if self.needs_gold:
            gold = answers.rows.answers("gold")
            inputs |= {"gold_logps": answers.logps[gold], "gold_lengths": answers.lengths[gold]}
        return inputs

    def _weights(self, answers: AnswerScores, batch: Batch) -> dict[str, Tensor]:
        assert self.token_weights is not None
        return self._by_side(self.token_weights(self, answers, batch), answers, "{}_token_weights")

    def _prompt_embeddings(self, hidden: Tensor, answers: AnswerScores, batch: Batch) -> Tensor:
        pooled = (
            pooled_prompts(hidden.detach(), batch)
            if self.prompt_embedder is None
            else self.prompt_embedder(self, batch)
        )
        return pooled[answers.rows.answers("chosen")]


def read_chosen(token_input: TrueTokens, module: PreferenceModule, batch: Batch) -> Prepared:
    """What the policy reads of a batch: of chosen answers the input, of the others the true tokens."""
    if type(token_input) is TrueTokens:
        return token_input(module, batch)
    rows = FeedbackRows.of(batch)
    is_chosen = torch.isin(owners(batch), rows.answers("chosen"))
    prepared = token_input(module, {**batch, "labels": batch["labels"].where(is_chosen, IGNORE_INDEX)})
    read = prepared.embeddings.where(is_chosen[..., None], module.embed(batch["input_ids"]))
    return replace(prepared, embeddings=read)
