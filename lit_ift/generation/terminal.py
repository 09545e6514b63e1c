"""``lit-ift chat`` on a terminal, or from a file of questions."""

from collections.abc import Callable
from functools import partial
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_ift.errors import UserError, did_you_mean, printable
from lit_ift.generation.talk import Talk

BLOCK: Final = '"""'
"""Begins and ends a message of several lines."""

HELP: Final = {
    "/compare [QUESTION]": "answers of the base model and of this one side by side, to the last question or a new one",
    "/system [TEXT]": "set the system message; without a text, leave it out",
    "/reset": "forget the conversation; the system message stays",
    "/help": "show these commands",
    "/quit": "end, as Ctrl-D does",
}
"""What is typed instead of a message, and what it does."""

NOTES: Final = (
    'A message of several lines stands between """ and """. Ctrl-C stops an answer. A blank before / makes a message.'
)


class ChatTerminal:
    """Reads messages and commands, and shows answers.

    Args:
        talk: the conversation.
        ask: gives the next line for a prompt, and raises EOFError at the end; ``input`` by default.
        console: to write to.
    """

    def __init__(self, talk: Talk, *, ask: Callable[[str], str] | None = None, console: Console | None = None) -> None:
        self.talk = talk
        self._ask = ask or input
        self._console = console or Console(highlight=False)
        self._commands: dict[str, Callable[[str], None]] = {
            "/compare": self._compare,
            "/system": self._system,
            "/reset": self._reset,
            "/help": lambda _: self._help(),
        }

    def run(self) -> None:
        """Talk until the end."""
        self._say("Write a message; /help shows the commands.")
        while (line := self._read()) is not None:
            name, _, rest = line.partition(" ")
            if name == "/quit":
                return
            try:
                if not line.startswith("/"):
                    self._answer(line)
                elif name in self._commands:
                    self._commands[name](rest.strip())
                else:
                    known = [*self._commands, "/quit"]
                    self._say(f"There is no command {name}.{did_you_mean(name, known)} /help shows them.")
            except UserError as error:
                self._say(str(error), style="red")

    def _read(self) -> str | None:
        """The next line or block that is not blank; None at the end."""
        try:
            while not (line := self._ask("> ")).strip():
                pass
            if not line.startswith(BLOCK):
                return line
            lines = [line.removeprefix(BLOCK)]
            while not lines[-1].rstrip().endswith(BLOCK):
                lines.append(self._ask("... "))
        except EOFError:
            return None
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        text = "\n".join(lines).strip("\n")
        return f" {text}" if text.startswith("/") else text  # A block is a message.

    def _answer(self, question: str) -> None:
        reply = self.talk.ask(question.strip(), partial(self._write, end=""))
        self._write("")
        if reply.forgotten:
            self._say(
                f"(The {reply.forgotten} oldest messages no longer fit into the model's context and are forgotten.)"
            )
        if reply.is_cut:
            longest = self.talk.options.max_new_tokens
            self._say(f"(Cut at {longest} tokens: start with a larger --max_new_tokens for longer answers.)")
        if reply.is_stopped:
            self._say("(Stopped.)")

    def _compare(self, question: str) -> None:
        question, before, after = self.talk.compare(question or None)
        table = Table(title=Text(printable(question), style="bold"), show_lines=True)
        for name in (f"base: {self.talk.opened.base_name}", f"trained: {self.talk.opened.place.path}"):
            table.add_column(Text(printable(name)), overflow="fold", ratio=1)
        table.add_row(Text(printable(before)), Text(printable(after)))
        self._console.print(table)

    def _system(self, text: str) -> None:
        self.talk.set_system(text or None)
        self._say("System message set; the conversation goes on." if text else "No system message.")

    def _reset(self, rest: str) -> None:
        if rest:
            raise UserError("/reset takes nothing behind it.")
        self.talk.reset()
        self._say("The conversation is forgotten.")

    def _help(self) -> None:
        for name, text in HELP.items():
            self._say(f"{name:<20} {text}")
        self._say(NOTES)

    def _say(self, text: str, style: str = "dim") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _write(self, text: str, end: str = "\n") -> None:
        """Show a model's words, whatever would steer a terminal in them escaped."""
        self._console.print(Text(printable(text)), end=end, soft_wrap=True)
