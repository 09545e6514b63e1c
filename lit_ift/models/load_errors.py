"""Say in words what went wrong when transformers could not load something."""

from collections.abc import Iterator

from lit_ift.errors import UserError
from lit_ift.models.source import ModelSource


def explain_load_error(source: ModelSource, error: Exception, *, what: str) -> UserError:
    """Turn an error of transformers, safetensors or the hub client into one that says what to do.

    Args:
        source: what was loaded.
        error: as it was raised.
        what: the part that was loaded: config.json, model or tokenizer.

    Returns:
        The error to raise. An error that is a UserError already is returned as it is.
    """
    if isinstance(error, UserError):
        return error
    first_lines = " ".join(str(error).strip().splitlines()[:3])
    remedy = _remedy(source, error)
    return UserError(
        f"{source.path}: the {what} cannot be loaded: {type(error).__name__}: {first_lines} {remedy}".strip()
    )


def _remedy(source: ModelSource, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "If you trust the code in that repository, set trust_remote_code to true."
    if "attn_implementation" in str(error) or "attention implementation" in str(error).lower():
        return "Choose another attn_implementation (eager always works) or leave it out."
    if isinstance(error, ImportError):
        return "Install the package that is named, or choose an option that does not need it."
    if type(error).__name__ == "SafetensorError":
        return "The weights are damaged or cut short: copy or download them again."
    return _local_remedy(error) if source.is_local else _hub_remedy(source.revision, error)


def _local_remedy(error: Exception) -> str:
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error):
        return "Some weights have another shape than config.json asks for (table above)."
    return "Check that the folder holds a complete model: config.json, safetensors weights, tokenizer files."


def _hub_remedy(revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    causes = list(_causes(error))
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return "The model is gated: accept its terms on its page, then set HF_TOKEN to a token of that account."
    if any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
        return f"The repository exists, but not its revision '{revision}': check the spelling."
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        return (
            "No such repository, or a private one: check the spelling (a local folder must exist), and set "
            "HF_TOKEN for a private one."
        )
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return "HF_HUB_OFFLINE is set and the cache does not hold the model: unset it, or name a local folder."
    return (
        "Where the hub cannot be reached from this machine, copy the model here and name its folder, or fill the "
        "Hugging Face cache (HF_HOME) and set HF_HUB_OFFLINE=1. Private models need HF_TOKEN; a pinned revision "
        "must be in the cache."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
