"""Instructions of IFEval that the harness's checkers can check here."""

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, Final

from lit_ift.errors import RowError, needing

SAMPLE: Final = "One sentence stands here. Another one follows."
"""What each checker is tried on."""

NO_PUNKT: Final = "needs nltk's punkt: python -m nltk.downloader punkt_tab"
UNKNOWN: Final = "the harness has no checker of this kind"


def checkers() -> dict[str, Any]:
    """The harness's checker classes by kind of instruction, without the download that it starts when imported.

    Language detection is seeded: the same answer has the same score.

    Raises:
        UserError: a package of the extra is missing.
    """
    with needing("lm-evaluation-harness with ifeval", "eval", "The kind ifeval"):
        import nltk
        from langdetect import DetectorFactory

        DetectorFactory.seed = 0
        download, nltk.download = nltk.download, lambda *_, **__: False
        try:
            with redirect_stdout(io.StringIO()):  # It says that it has downloaded.
                from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
        finally:
            nltk.download = download
    return dict(INSTRUCTION_DICT)


def without_uncheckable(
    documents: Sequence[dict[str, Any]], origins: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Leave out each row that has an instruction which cannot be checked here.

    Args:
        documents: rows of IFEval.
        origins: where they stand.

    Returns:
        The others, and for each kind that cannot be checked and the reason, its number of rows. A row with several such
        kinds counts for each.

    Raises:
        RowError: an instruction lacks an option that its checker needs, or has one that it does not know.
    """
    kept, left_out = [], Counter[str]()
    known = checkers()
    for document, origin in zip(documents, origins, strict=True):
        reasons = {
            f"{name}: {reason}"
            for index, name in enumerate(document["instruction_id_list"])
            if (reason := _why_not(known, document, index, origin)) is not None
        }
        left_out.update(reasons)
        if not reasons:
            kept.append(document)
    return kept, dict(left_out)


def _why_not(known: dict[str, Any], document: dict[str, Any], index: int, origin: str) -> str | None:
    """Why an instruction cannot be checked, tried as the harness does it; None if it can."""
    name = document["instruction_id_list"][index]
    if name not in known:
        return UNKNOWN
    checker = known[name](name)
    try:
        checker.build_description(**{key: value for key, value in (document["kwargs"][index] or {}).items() if value})
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=document["prompt"])
        checker.check_following(SAMPLE)
    except (TypeError, ValueError, AttributeError) as error:
        problem = f"the checker of {name} refuses them: {error}"
        raise RowError(origin, f"kwargs[{index}]", problem, "Give the options of IFEval") from error
    except LookupError as error:
        if "punkt" not in str(error):
            raise
        return NO_PUNKT
    return None
