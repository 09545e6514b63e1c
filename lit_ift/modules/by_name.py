"""Parameters chosen by patterns of their names: which are trained, and how fast."""

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lit_ift.errors import UserError, did_you_mean


def check_patterns(option: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Do nothing if each pattern matches a name.

    Args:
        option: that has the patterns.
        patterns: in which ``*`` stands for any characters.
        names: of the parameters that can be meant.

    Raises:
        UserError: one matches none; names that are like it are given.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            bare = pattern.strip("*.")
            near = [name for name in names if bare and bare in name][:3]
            hint = f" Did you mean '*{bare}*', as in {', '.join(near)}?" if near else did_you_mean(pattern, names)
            raise UserError(
                f"{option}: {pattern!r} matches the name of no parameter that it is about.{hint} Names are those of "
                f"the model, such as {', '.join(list(names)[:3])}; * stands for any characters."
            )


def freeze_by_name(model: nn.Module, freeze: Sequence[str], train: Sequence[str] | None) -> list[str]:
    """Take parameters out of training, and return their names.

    Args:
        model: whose trained parameters are chosen from.
        freeze: patterns of those to leave as they are.
        train: patterns of the only ones to train; None for all.

    Raises:
        UserError: a pattern matches no parameter, one of `train` no trained one, or nothing would be trained.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    check_patterns("model.freeze", freeze, [name for name, _ in model.named_parameters()])
    check_patterns("model.train_only", train or (), trained)
    frozen = [
        name
        for name in trained
        if any(fnmatchcase(name, pattern) for pattern in freeze)
        or (train is not None and not any(fnmatchcase(name, pattern) for pattern in train))
    ]
    if len(frozen) == len(trained):
        raise UserError("model.freeze and model.train_only leave nothing to train. Make their patterns narrower.")
    for name in frozen:
        trained[name].requires_grad_(False)
    return frozen


def factor_of(name: str, factors: dict[str, float]) -> float | None:
    """The factor of the first pattern that matches a parameter's name; None for none."""
    return next((factor for pattern, factor in factors.items() if fnmatchcase(name, pattern)), None)
