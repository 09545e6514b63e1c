"""Calls of functions by the assistant, and the declarations of these functions."""

from typing import Any, Final

from lit_ift.data.parse.fields import Field, shown
from lit_ift.data.read.record import Record

ARGUMENTS: Final = "arguments"

OTHER_NAMES: Final = ("parameters", "args", "input", "kwargs")
"""What some tools call the arguments of a call."""

TOOL_COLUMNS: Final = ("tools", "functions")
"""Columns that declare functions; the second one is OpenAI's old name for it."""


def parse_tool_calls(field: Field) -> list[dict[str, Any]]:
    """Checked tool calls, whose arguments are objects, as most chat templates expect.

    Arguments that are a JSON object in a string become that object; absent and empty ones become an empty object.

    Raises:
        RowError: the value is not a list of objects, one of them names no function, or its arguments are no object.
    """
    calls = []
    for call in _objects(field.without_gaps(), "Write it as [{...}, ...]"):
        function = _function_of(call)
        complete = {**function.value, ARGUMENTS: _arguments(function)}
        calls.append({**call.value, "function": complete} if "function" in call.value else complete)
    return calls


def parse_tools(record: Record) -> list[dict[str, Any]] | None:
    """The declared functions in the column `tools`, or in `functions`: a list of objects, or it written as JSON.

    Raises:
        RowError: it is neither, nested too deeply, declares no named functions, or both columns are there.
    """
    declared = {column: tools for column in TOOL_COLUMNS if (tools := _declarations(Field.of(record, column)))}
    if "functions" not in declared:
        return declared.get("tools")
    functions = Field.of(record, "functions")
    functions.require("tools" not in declared, "declares functions, and so does 'tools'", "Keep one of the two")
    return [tool if "function" in tool else as_function(tool) for tool in declared["functions"]]


def as_function(function: Any) -> dict[str, Any]:
    """A function, or a call of one, in OpenAI's form."""
    return {"type": "function", "function": function}


def _declarations(field: Field) -> list[dict[str, Any]] | None:
    field.check_nested()
    tools = field.without_gaps()
    if isinstance(tools.value, str):
        # Sets on the hub keep them as JSON, since Arrow gives all objects of a column the same keys.
        tools = field.holding(field.json_or_text() if field.value.strip() else None)
    if tools.value is None or tools.value == []:
        return None
    for tool in _objects(tools, "Write it as [{...}, ...], or as that in a JSON string"):
        _function_of(tool)
    declared: list[dict[str, Any]] = tools.value
    return declared


def _objects(field: Field, remedy: str) -> list[Field]:
    are_objects = isinstance(field.value, list) and all(isinstance(item, dict) for item in field.value)
    field.require(are_objects, "is not a list of objects", remedy)
    return field.items()


def _function_of(entry: Field) -> Field:
    """The object in a call or declaration that names the function."""
    function = entry.at("function") if "function" in entry.value else entry
    remedy = 'It must be an object such as {"name": ...}'
    function.require(isinstance(function.value, dict), f"is {shown(function.value)}", remedy)
    name = function.at("name")
    problem = "is missing" if name.value is None else f"is {shown(name.value)}"
    name.require(name.value and isinstance(name.value, str), problem, "Name the function")
    return function


def _arguments(function: Field) -> dict[str, Any]:
    field = function.at(ARGUMENTS)
    for name in OTHER_NAMES if ARGUMENTS not in function.value else ():
        field.require(name not in function.value, "is missing", f"Rename '{name}' to '{ARGUMENTS}'")
    if field.value is None or (isinstance(field.value, str) and not field.value.strip()):
        return {}
    parsed = field.json_or_text() if isinstance(field.value, str) else field.value
    if isinstance(parsed, dict):
        return parsed
    twice = parsed is not field.value and isinstance(parsed, str)
    problem = "is JSON inside JSON (encoded twice)" if twice else f"is no JSON object ({shown(field.value)})"
    raise field.error(problem, 'Write it as one JSON object such as {"city": "Oslo"}')
