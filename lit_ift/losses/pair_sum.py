"""Pair losses as configurations write them: one by its name, or a weighted sum of several. Shapes: P pairs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_ift.losses.logprobs import Statistic
from lit_ift.losses.pair.changes import CHANGES
from lit_ift.losses.pair.chosen_tokens import ChosenTokenLoss
from lit_ift.losses.pair.objective import PairObjective
from lit_ift.losses.registry import PairLoss
from lit_ift.losses.schema import taken
from lit_ift.losses.token_registry import TOKEN_INPUTS, TOKEN_LOSSES, TokenLoss
from lit_ift.options import Positive, checked

PairLossOption = list[dict[str, Any]] | str
"""A name or import path, or terms of a sum."""


class SummedPairLoss(PairObjective):
    """A weighted sum of losses on the same pairs; what they share is computed once.

    A term is a pair loss, or a token loss on the chosen answers, such as IFT's ``propagation`` beside a contrast.

    Metrics of a term have its name before theirs, as ``dpo/rewards/margins``, and ``dpo/loss`` is its value before the
    weight. Terms of one name are told apart by their place in the list: ``dpo.0``, ``dpo.2``.

    Args:
        terms: for each loss a mapping with its ``name`` (or import path), its ``weight`` (1 if left out), and its
            options.

    Raises:
        ValueError: there is no term, or one is unfit; the message begins with its place, such as ``loss[1]``.
    """

    def __init__(self, terms: Sequence[Mapping[str, Any]]) -> None:
        if not terms:
            raise ValueError("loss=[] names no loss. Give at least one, such as [{name: dpo, beta: 0.1}].")
        made = [_term(f"loss[{place}]", term) for place, term in enumerate(terms)]
        self.losses = [loss for _, loss in made]
        self.weights = [weight for weight, _ in made]
        counts = Counter(loss.name for loss in self.losses)
        self.labels = [
            loss.name if counts[loss.name] == 1 else f"{loss.name}.{place}" for place, loss in enumerate(self.losses)
        ]
        self.name = " + ".join(self.labels)
        self.inputs = list(dict.fromkeys(name for loss in self.losses for name in loss.inputs))
        self.in_batch = any(loss.in_batch for loss in self.losses)

    @property
    def losses_without_weights(self) -> list[str]:
        return list(dict.fromkeys(name for loss in self.losses for name in loss.losses_without_weights))

    @property
    def statistics(self) -> dict[str, Statistic]:
        return {name: made for loss in self.losses for name, made in loss.statistics.items()}

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weighted: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for label, weight, loss in zip(self.labels, self.weights, self.losses, strict=True):
            losses, own = loss(inputs)
            weighted.append(weight * losses)
            metrics |= {f"{label}/loss": losses.detach(), **{f"{label}/{name}": values for name, values in own.items()}}
        return torch.stack(weighted).sum(0), metrics


def pair_objective(loss: PairLossOption, options: Mapping[str, Any] | None = None) -> PairObjective:
    """The pair loss that a configuration describes.

    Args:
        loss: a name in ``PAIR_LOSSES``, or in ``TOKEN_LOSSES`` for one on the chosen answers, or the import path of a
            function like these; or a list of terms, see ``SummedPairLoss``.
        options: of a single loss: its hyperparameters, and the changes in ``CHANGES``.

    Raises:
        ValueError: says what is unfit, and where in a list.
    """
    if not isinstance(loss, list | tuple):
        return _changed(loss, options or {})
    if options:
        raise ValueError(f"options={dict(options)} has no effect beside a list of losses: write them into its terms.")
    return SummedPairLoss(loss)


def _term(where: str, term: Any) -> tuple[float, PairObjective]:
    if not isinstance(term, Mapping) or "name" not in term:
        raise ValueError(f"{where}={term!r} must be a mapping with a name, such as {{name: dpo, weight: 0.8}}.")
    options = dict(term)
    name, weight = options.pop("name"), options.pop("weight", 1.0)
    try:
        return _weight(weight=weight), _changed(name, options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@checked
def _weight(weight: Positive) -> float:
    return weight


def _changed(name: str, options: Mapping[str, Any]) -> PairObjective:
    loss = _named(name, {option: value for option, value in options.items() if option not in CHANGES})
    for change in (name for name in CHANGES if name in options):
        own = options[change]
        if not isinstance(own, Mapping):
            raise ValueError(f"{change}={own!r} must be a mapping of its options, {{}} for none.")
        try:
            loss = CHANGES[change](loss, **own)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{change}: {error}") from error
    return loss


def _named(name: Any, options: Mapping[str, Any]) -> PairObjective:
    """A pair loss or a token loss on chosen answers, as the name or the inputs of the function say."""
    function = TOKEN_LOSSES[name] if isinstance(name, str) and name in TOKEN_LOSSES else PairLoss.find(name)
    asked = set(taken(function))
    if asked and asked <= set(TOKEN_INPUTS):
        return ChosenTokenLoss(TokenLoss(name, options))
    return PairLoss(name, options)
