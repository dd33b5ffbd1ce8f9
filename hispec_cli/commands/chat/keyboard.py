"""The prompt of a chat: line editing, history, completion of commands, several lines, paste."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import control_is_searchable, is_searching
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent, merge_key_bindings
from prompt_toolkit.key_binding.key_bindings import KeyBindingsBase
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.output import create_output
from prompt_toolkit.search import SearchDirection, accept_search, start_search, stop_search
from prompt_toolkit.styles import Style

from hispec_cli.commands.chat.slash import COMMANDS, FILES, split
from hispec_cli.ui.safe_text import visible
from hispec_cli.ui.theme import PROMPT_STYLES, Palette

PROMPT, CONTINUED = "> ", "  "
_ENDS_LINE = (Keys.ControlM, Keys.ControlJ)
_LEAVES = (Keys.ControlC, Keys.ControlD)


class Keyboard:
    """Reads input from a terminal.

    Enter sends; Alt-Enter, or Enter after a backslash, begins another line, and a paste keeps its lines. Ctrl-C clears
    what is typed, which the history keeps.

    Args:
        keep_history: between runs, in a file for its owner alone.
        palette: the styles of the input; NO_COLOR leaves bold and the like.
    """

    def __init__(self, keep_history: bool, palette: Palette = Palette.default) -> None:
        look = PROMPT_STYLES[palette]
        self._session: PromptSession[str] = PromptSession(
            message=[("", "\n"), ("class:prompt", PROMPT)],
            style=Style.from_dict({"": look, "prompt": look}),
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
        """Return the input once it is sent.

        Raises:
            EOFError: Ctrl-D on an empty line, or the terminal has gone.
            KeyboardInterrupt: Ctrl-C on an empty line.
        """
        return self._session.prompt()

    def offer(self) -> None:
        """Put keys that were typed in the meantime into the next input, without sending it."""
        input_ = self._session.input
        keys = get_typeahead(input_)
        with input_.raw_mode():
            while more := input_.read_keys():
                keys += more
        while keys and keys[-1].key in _ENDS_LINE:
            keys.pop()
        another_line = [KeyPress(Keys.Escape), KeyPress(Keys.ControlM)]
        for key in keys:
            if key.key not in _LEAVES:
                store_typeahead(input_, another_line if key.key in _ENDS_LINE else [key])


class PrivateHistory(FileHistory):
    """The history of input, in a file that only its owner can read, or in memory if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        """Return the earlier inputs, the latest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Append a text to the file."""
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(string)


class CommandCompleter(Completer):
    """Completes slash commands and their arguments."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield the possible completions at the cursor."""
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
        """Return one sign for each, so that the cursor stays where it is."""
        return Transformation([(style, _harmless(text)) for style, text, *_ in transformation_input.fragments])


def _harmless(text: str) -> str:
    if text.isascii():
        return text
    return "".join("\ufffd" if sign >= "\x80" and visible(sign) != sign else sign for sign in text)


def history_file() -> Path:
    """Return the file of the history."""
    return platformdirs.user_state_path("hispec") / "chat-history"


def _bindings() -> KeyBindingsBase:
    bindings = KeyBindings()

    @bindings.add("enter", filter=~is_searching)
    def _send(event: KeyPressEvent) -> None:
        _send_or_go_on(event.current_buffer)

    @bindings.add("escape", "enter", filter=~is_searching)
    def _another_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c", filter=~is_searching)
    def _clear(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text.strip():
            buffer.reset(append_to_history=True)
        else:
            get_app().exit(exception=KeyboardInterrupt())

    return merge_key_bindings([bindings, _search_bindings()])


def _search_bindings() -> KeyBindings:
    """Search the history as in a shell: Enter sends the result, Ctrl-C restores the input before the search.

    The bindings that prompt_toolkit has of its own keep what was found when a search is given up, and let the keys
    that move and delete act on what is searched for.
    """
    bindings = KeyBindings()
    before = (0, 0)
    """The entry of the history and the place in it where the search began."""

    def begin(event: KeyPressEvent, direction: SearchDirection) -> None:
        nonlocal before
        before = (event.current_buffer.working_index, event.current_buffer.cursor_position)
        start_search(direction=direction)

    @bindings.add("c-r", filter=control_is_searchable)
    def _backward(event: KeyPressEvent) -> None:
        begin(event, SearchDirection.BACKWARD)

    @bindings.add("c-s", filter=control_is_searchable)
    def _forward(event: KeyPressEvent) -> None:
        begin(event, SearchDirection.FORWARD)

    @bindings.add("c-c", filter=is_searching)
    @bindings.add("c-g", filter=is_searching)
    def _give_up(event: KeyPressEvent) -> None:
        stop_search()
        buffer = event.app.current_buffer
        buffer.working_index, buffer.cursor_position = before

    @bindings.add("enter", filter=is_searching)
    def _send_found(event: KeyPressEvent) -> None:
        wanted = event.current_buffer.text
        _take_over(wanted)
        if wanted in event.app.current_buffer.text:
            _send_or_go_on(event.app.current_buffer)

    @bindings.add("escape", filter=is_searching, eager=True)
    def _found(event: KeyPressEvent) -> None:
        _take_over(event.current_buffer.text)

    for key in ("c-a", "c-b", "c-d", "c-e", "c-f", "c-k", "c-x", "delete", "end", "home", "left", "right", "tab"):

        @bindings.add(key, filter=is_searching)
        def _found_and_more(event: KeyPressEvent) -> None:
            _take_over(event.current_buffer.text)
            event.key_processor.feed(event.key_sequence[-1], first=True)

    return bindings


def _take_over(wanted: str) -> None:
    """End a search with its result."""
    if wanted:
        accept_search()
    else:
        stop_search()  # accepting would repeat the last search


def _send_or_go_on(buffer: Buffer) -> None:
    """Send the input; a backslash before the cursor starts another line instead."""
    if buffer.document.text_before_cursor.endswith("\\"):
        buffer.delete_before_cursor()
        buffer.newline(copy_margin=False)
    elif buffer.text.strip():
        buffer.cursor_position = len(buffer.text)  # or the rows below the cursor would be written over
        buffer.validate_and_handle()
