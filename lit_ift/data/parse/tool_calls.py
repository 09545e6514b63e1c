"""Calls of functions by the assistant, and the declarations of these functions."""

from typing import Any, Final

from lit_ift.data.parse.values import check_nested, json_or_text, parse_text, shown, without_gaps
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError

ARGUMENTS: Final = "arguments"

OTHER_NAMES: Final = ("parameters", "args", "input", "kwargs")
"""What some tools call the arguments of a call."""

TOOL_COLUMNS: Final = ("tools", "functions")
"""Columns that declare functions; the second one is OpenAI's old name for it."""


def parse_tool_calls(record: Record, path: str, calls: Any) -> list[dict[str, Any]]:
    """Checked tool calls, whose arguments are objects, as most chat templates expect.

    Arguments that are a JSON object in a string become that object; absent and empty ones become an empty object.

    Raises:
        RowError: `calls` is not a list of objects, one of them names no function, or its arguments are no object.
    """
    calls = without_gaps(record, calls)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(record.origin, path, "is not a list of objects", "Write it as [{...}, ...]")
    return [_tool_call(record, f"{path}[{index}]", call) for index, call in enumerate(calls)]


def _tool_call(record: Record, path: str, call: dict[str, Any]) -> dict[str, Any]:
    holder, path = _function_of(record, call, path)
    arguments = _arguments(record, path, holder)
    return (
        {**call, "function": {**holder, ARGUMENTS: arguments}} if holder is not call else {**call, ARGUMENTS: arguments}
    )


def _function_of(record: Record, entry: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The object in a call or declaration that names the function, and its path.

    Raises:
        RowError: there is none, or it has no name.
    """
    holder: Any = entry
    if "function" in entry:
        holder, path = entry["function"], f"{path}.function"
        if not isinstance(holder, dict):
            raise RowError(record.origin, path, f"is {shown(holder)}", 'It must be an object such as {"name": ...}')
    name = holder.get("name")
    if not isinstance(name, str) or not name:
        problem = "is missing" if name is None else f"is {shown(name)}"
        raise RowError(record.origin, f"{path}.name", problem, "Name the function")
    return holder, path


def _arguments(record: Record, path: str, function: dict[str, Any]) -> dict[str, Any]:
    path = f"{path}.{ARGUMENTS}"
    arguments = function.get(ARGUMENTS)
    if ARGUMENTS not in function and (other := next((name for name in OTHER_NAMES if name in function), None)):
        raise RowError(record.origin, path, "is missing", f"Rename '{other}' to '{ARGUMENTS}'")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    parsed = json_or_text(record, path, arguments) if isinstance(arguments, str) else arguments
    if isinstance(parsed, dict):
        return parsed
    twice = parsed is not arguments and isinstance(parsed, str)
    problem = "is JSON inside JSON (encoded twice)" if twice else f"is no JSON object ({shown(arguments)})"
    raise RowError(record.origin, path, problem, 'Write it as one JSON object such as {"city": "Oslo"}')


def parse_tools(record: Record) -> list[dict[str, Any]] | None:
    """The declared functions in the column `tools`, or in `functions`: a list of objects, or it written as JSON.

    Raises:
        RowError: it is neither, nested too deeply, declares no named functions, or both columns are there.
    """
    declared = {column: tools for column in TOOL_COLUMNS if (tools := _declarations(record, column))}
    if len(declared) > 1:
        raise RowError(record.origin, "functions", "declares functions, and so does 'tools'", "Keep one of the two")
    if "functions" in declared:
        return [
            tool if "function" in tool else {"type": "function", "function": tool} for tool in declared["functions"]
        ]
    return declared.get("tools")


def _declarations(record: Record, column: str) -> list[dict[str, Any]] | None:
    tools = record.data.get(column)
    if isinstance(tools, dict | list):
        check_nested(record, column, tools)
        tools = without_gaps(record, tools)
    if isinstance(tools, str):
        # Sets on the hub keep them as JSON, since Arrow gives all objects of a column the same keys.
        tools = json_or_text(record, column, parse_text(record, column, tools)) if tools.strip() else None
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(
            record.origin, column, "is not a list of objects", "Write it as [{...}, ...], or as that in a JSON string"
        )
    for index, tool in enumerate(tools):
        _function_of(record, tool, f"{column}[{index}]")
    return tools
