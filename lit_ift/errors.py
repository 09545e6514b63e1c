"""Errors that tell the user what to mend. The command line prints them without a traceback."""


class UserError(Exception):
    """Something in the data, the configuration or the machine that the user can mend.

    The message says what is wrong, where (file, line, field or option) and what to do about it.
    """


class RowError(UserError, ValueError):
    """A data row that cannot be trained on.

    Args:
        origin: where the row stands, as ``file:line`` or ``source#index``.
        field: the field at fault, such as ``messages[1].role``; empty if the whole row is.
        problem: what is wrong with it, with the value that was seen.
        remedy: what the user can do about it.
    """

    def __init__(self, origin: str, field: str, problem: str, remedy: str) -> None:
        where = f"{origin}: field '{field}'" if field else origin
        super().__init__(f"{where}: {problem}. {remedy}")
        self.origin = origin
        self.field = field
        self.problem = problem
        self.remedy = remedy


class NonFiniteLossError(UserError, ArithmeticError):
    """The training loss or a gradient became NaN or infinite; no optimizer step was taken with it."""
