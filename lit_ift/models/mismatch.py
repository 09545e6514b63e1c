"""What keeps a checkpoint from being loaded into a model."""

from collections.abc import Mapping
from typing import Any


def misfit(model: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> str:
    """What of a checkpoint does not fit a model, with an example of each fault."""
    missing, unknown = [key for key in model if key not in checkpoint], [key for key in checkpoint if key not in model]
    faults = []
    if missing:
        faults.append(f"it lacks {len(missing)} weights of the model, such as {missing[0]}")
    if unknown:
        faults.append(f"it has {len(unknown)} that the model lacks, such as {unknown[0]}")
    for key in model.keys() & checkpoint.keys():
        own, other = getattr(model[key], "shape", None), getattr(checkpoint[key], "shape", None)
        if own != other:
            faults.append(f"{key} has the shape {tuple(other or ())}, not {tuple(own or ())}")
            break
    return (
        f"The checkpoint is of another model: {'; '.join(faults) or 'its weights cannot be copied'}. Give the model "
        "and its adapter (model.init_args.model, lora) as in the run that wrote it."
    )
