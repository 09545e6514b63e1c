"""Half fine-tuning: each round trains a random half of the model."""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from lit_ift.distributed import check_strategy
from lit_ift.errors import UserError
from lit_ift.modules.optim import plain_name
from lit_ift.options import CheckedOptions, PositiveInt

Group = Literal["attention", "feed-forward", "norm"]
Layer = tuple[str, int]
"""What its parameters' names begin with, and its number."""

_LAYER: Final = re.compile(r"^(?P<stack>.*?)\.(?P<number>\d+)\.(?P<rest>.+)$")
_ADAPTER: Final = re.compile(r"\.(lora_|base_layer\b|modules_to_save\b|ia3_)")


class HalfFineTuning(CheckedOptions, Callback):
    """Half Fine-Tuning (arXiv:2404.18466): each round trains one random half of the layers' parameters.

    Works with every module. In each decoder layer half of the attention's matrices, of the feed-forward network's
    and of the norms are frozen, whichever they are; where a layer has an odd number, half of the layers freeze one more
    than the others. A matrix is frozen with its bias, and an adapter's matrices together. What stands outside of the
    layers (embeddings, output head, last norm) is always trained. Only parameters that are trained anyway are halved.

    The halves depend on the seed and the number of the round alone, so they are the same on every rank and after
    resuming. Frozen parameters get no gradient, so that neither the optimizer's momentum nor weight decay moves them;
    the gradient's norm, its clipping and what ``on_before_optimizer_step`` sees concern the trained half. Their
    gradients are computed and dropped: this keeps the optimizer's state of the frozen half from being made, but
    unlike freezing by ``requires_grad`` it saves no time, and it may change in the course of a run.

    Logs ``hft/trainable_share``, the share of the model's trainable parameters that this round trains, the
    embeddings included.

    Args:
        every_n_steps: optimizer steps of a round.
        every_n_epochs: epochs of a round. By default the whole run is one round, as in the paper's fine-tuning; there
            a new round begins with each task or stage.
        seed: of the choice.

    Raises:
        ValueError: an option is not positive, or both are given.
    """

    def __init__(
        self, every_n_steps: PositiveInt | None = None, every_n_epochs: PositiveInt | None = None, seed: int = 0
    ) -> None:
        if every_n_steps is not None and every_n_epochs is not None:
            raise ValueError(
                f"every_n_steps={every_n_steps} and every_n_epochs={every_n_epochs}: a round has one length, give one"
            )
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self._units: dict[Layer, dict[Group, list[str]]] = {}
        self._members: dict[str, list[nn.Parameter]] = {}
        self._round: int | None = None
        self._frozen: list[nn.Parameter] = []
        self._share = 1.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        check_strategy(trainer)  # Some would have joined a layer's matrices.
        self._members = trained_units(pl_module)
        self._units = layer_groups(self._members)
        self._round = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        current = self.round_of(trainer.global_step, trainer.current_epoch)
        if current != self._round:
            self._round = current
            frozen = frozen_half(self._units, self.seed, current)
            self._frozen = [parameter for unit in sorted(frozen) for parameter in self._members[unit]]
            total = sum(parameter.numel() for members in self._members.values() for parameter in members)
            self._share = 1 - sum(parameter.numel() for parameter in self._frozen) / total
        pl_module.log("hft/trainable_share", self._share)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not `requires_grad`, which DDP must not see change. Optimizers skip what has no gradient, decay and all.
        for parameter in self._frozen:
            parameter.grad = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._members, self._frozen = {}, []

    def round_of(self, step: int, epoch: int) -> int:
        """Number of the round that an optimizer step of an epoch belongs to, both from 0."""
        if self.every_n_steps is not None:
            return step // self.every_n_steps
        return epoch // self.every_n_epochs if self.every_n_epochs is not None else 0


def trained_units(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by the submodule that they belong to; an adapter's by the one that it adapts."""
    units: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        name = plain_name(name)
        if parameter.requires_grad:
            adapter = _ADAPTER.search(name)
            units[name[: adapter.start()] if adapter else name.rpartition(".")[0]].append(parameter)
    return dict(units)


def layer_groups(units: Mapping[str, Sequence[nn.Parameter]]) -> dict[Layer, dict[Group, list[str]]]:
    """Which units each layer has in each group; those outside of layers are left out.

    Raises:
        UserError: there is no layer with trainable parameters.
    """
    layers: dict[Layer, dict[Group, list[str]]] = defaultdict(lambda: defaultdict(list))
    for unit, parameters in units.items():
        place = _LAYER.match(unit)
        if place is None:
            continue
        group: Group = "attention" if "attn" in place["rest"] or "attention" in place["rest"] else "feed-forward"
        if all(parameter.ndim < 2 for parameter in parameters):
            group = "norm"
        layers[place["stack"], int(place["number"])][group].append(unit)
    if not layers:
        raise UserError(
            f"HalfFineTuning finds no numbered layers, such as 'model.layers.0', with trainable parameters; "
            f"what is trained: {', '.join(list(units)[:5]) or 'nothing'}."
        )
    return {layer: dict(groups) for layer, groups in layers.items()}


def frozen_half(layers: Mapping[Layer, Mapping[Group, Sequence[str]]], seed: int, round_number: int) -> set[str]:
    """A random half of each group of each layer, the same for the same seed and round.

    Where a group has an odd number of units, half of those layers, rounded down, freeze one more than they train.
    """
    draw = random.Random(f"half/{seed}/{round_number}")
    frozen: set[str] = set()
    groups: tuple[Group, ...] = ("attention", "feed-forward", "norm")
    for group in groups:
        odd = [layer for layer in sorted(layers) if len(layers[layer].get(group, ())) % 2]
        one_more = set(draw.sample(odd, len(odd) // 2))
        for layer in sorted(layers):
            units = sorted(layers[layer].get(group, ()))
            frozen.update(draw.sample(units, len(units) // 2 + (layer in one_more)))
    return frozen
