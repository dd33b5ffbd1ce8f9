"""Where people type: line editing, history, completion of commands, several lines, paste."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.output import create_output

from hispec_cli.chat.commands import COMMANDS, FILES, split
from hispec_cli.ui.safe_text import visible

PROMPT, CONTINUED = "> ", "  "


class Keyboard:
    """Reads what is typed at a terminal.

    Enter sends; Alt-Enter, or Enter after a backslash, begins another line, and a paste keeps its lines. Ctrl-C clears
    what is typed, which the history keeps.

    Args:
        keep_history: between runs, in a file for its owner alone.
    """

    def __init__(self, keep_history: bool) -> None:
        self._session: PromptSession[str] = PromptSession(
            message=PROMPT,
            prompt_continuation=lambda width, _line, _soft: CONTINUED,
            multiline=True,
            history=PrivateHistory(history_file()) if keep_history else InMemoryHistory(),
            completer=CommandCompleter(),
            complete_while_typing=False,
            reserve_space_for_menu=4,
            key_bindings=_bindings(),
            input_processors=[HarmlessText()],
            enable_suspend=True,
            enable_open_in_editor=True,
            output=create_output(always_prefer_tty=True),
        )

    def read(self) -> str:
        """What was sent.

        Raises:
            EOFError: Ctrl-D on an empty line, or the terminal has gone.
            KeyboardInterrupt: Ctrl-C on an empty line.
        """
        return self._session.prompt()


class PrivateHistory(FileHistory):
    """What was typed, in a file that only its owner may read; without one where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        """The latest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Add to the end."""
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(string)


class CommandCompleter(Completer):
    """Completes slash commands and what they take."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may stand at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or text.startswith("//") or "\n" in text:
            return
        name, argument = split(text)
        if " " not in text:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    ending = " " if command.takes else ""
                    yield Completion(f"/{command.name}{ending}", -len(text), display_meta=command.help)
            return
        if name not in COMMANDS:
            return
        choices = COMMANDS[name].choices(argument)
        if choices is FILES:
            paths = PathCompleter(expanduser=True).get_completions(Document(argument), complete_event)
            yield from (path for path in paths if visible(path.text) == path.text)
            return
        word = text.rpartition(" ")[2]
        ending = " " if name == "set" and " " not in argument else ""
        yield from (Completion(choice + ending, -len(word)) for choice in choices if choice.startswith(word))


class HarmlessText(Processor):
    """Shows signs that would turn the direction of writing as a replacement character.

    Control characters prompt_toolkit shows as such itself.
    """

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """One sign for each, so that the cursor stays where it is."""
        return Transformation([(style, _harmless(text)) for style, text, *_ in transformation_input.fragments])


def _harmless(text: str) -> str:
    if text.isascii():
        return text
    return "".join("\ufffd" if sign >= "\x80" and visible(sign) != sign else sign for sign in text)


def history_file() -> Path:
    """Where what was typed is kept."""
    return platformdirs.user_state_path("hispec") / "chat-history"


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        elif buffer.text.strip():
            buffer.cursor_position = len(buffer.text)  # or the rows below the cursor would be written over
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _another_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c")
    def _clear(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text.strip():
            buffer.reset(append_to_history=True)
        else:
            get_app().exit(exception=KeyboardInterrupt())

    return bindings
