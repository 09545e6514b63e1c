"""Errors that tell the user what to mend. The command line prints them without a traceback."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from typing import Literal, TypeVar
from unicodedata import category

RowReason = Literal["unreadable", "layout", "field", "template", "mask_disagreement", "too_long", "no_target"]
"""Why a row was left out, for counting: it is not valid JSON or text; its columns fit no layout; a field is missing or
has a wrong value; the chat template cannot render it; two ways to find the answers differ; the truncation policy drops
it; no target is left."""


def printable(text: str) -> str:
    """`text` with an escape for every character that prints nothing, such as those that steer a terminal.

    Line breaks, tabs and blanks of every width stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" or category(c) == "Zs" else escaped(c) for c in text)


def escaped(character: str) -> str:
    """A character as Python source writes it in ASCII."""
    return character.encode("unicode_escape").decode()


def nearest(name: object, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that `name` is most like; None if it is like none of them.

    Args:
        name: what the user wrote.
        known: what could be meant.
        cutoff: how alike two names must be, from 0 to 1 (`difflib.SequenceMatcher.ratio`).
    """
    names = sorted(known)
    in_other_case = [other for other in names if other.lower() == str(name).lower()]
    close = in_other_case or get_close_matches(str(name)[:60], names, n=1, cutoff=cutoff)
    return close[0] if close else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The question " Did you mean 'x'?" with a blank before it; empty if no known name is like `name`."""
    close = nearest(name, known)
    return f" Did you mean '{close}'?" if close else ""


class UserError(Exception):
    """Something in the data, the configuration or the machine that the user can mend.

    The message says what is wrong, where (file, line, field or option) and what to do about it. It may quote names
    from files, so whatever could steer a terminal is escaped here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


E = TypeVar("E", bound=BaseException)


@contextmanager
def told_as(kinds: type[E] | tuple[type[E], ...], tell: Callable[[E], Exception]) -> Iterator[None]:
    """Raise what ``tell`` makes of an error of these kinds in its place."""
    try:
        yield
    except kinds as error:
        raise tell(error) from error


def needing(package: str, extra: str, what: str) -> AbstractContextManager[None]:
    """Say in place of an `ImportError` what needs the package, and how to install it."""
    return told_as(
        ImportError, lambda error: UserError(f"{what} needs {package} ({error}): pip install 'lit-ift[{extra}]'")
    )


class RowError(UserError, ValueError):
    """A data row that cannot be trained on.

    Args:
        origin: where the row stands, as ``file:line`` or ``source#index``.
        field: the field at fault, such as ``messages[1].role``; empty if the whole row is.
        problem: what is wrong with it, with the value that was seen.
        remedy: what the user can do about it.
        reason: the kind of fault, for counting.
    """

    def __init__(self, origin: str, field: str, problem: str, remedy: str, *, reason: RowReason = "field") -> None:
        where = f"{origin}: field '{field}'" if field else origin
        super().__init__(f"{where}: {problem}. {remedy}")
        self.origin = origin
        self.field = field
        self.problem = problem
        self.remedy = remedy
        self.reason: RowReason = reason
        self.num_tokens: int | None = None
        """Length of the row's longest side [tokens], where it was refused after it had been tokenized."""


class NonFiniteLossError(UserError, ArithmeticError):
    """The training loss or a gradient became NaN or infinite; no optimizer step was taken with it."""
