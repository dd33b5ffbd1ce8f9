"""The slash commands of `hispec chat`."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hispec.counts import counted
from hispec.errors import UsageError
from hispec.metrics import exit_name
from hispec.settings import SETTINGS
from hispec_cli.options import GrammarOptions
from hispec_cli.ui.console import say
from hispec_cli.ui.panels import outcome

if TYPE_CHECKING:
    from hispec_cli.commands.chat.chat import Chat

FILES = ("",)
"""Choices of a command that takes a file."""
KEYS = tuple(name for name, setting in SETTINGS.items() if not setting.at_loading)
"""Settings that may change after the weights are loaded."""
SWITCH = ("on", "off")
MATCHES = ("json-schema", "grammar", "regex")
"""What answers may be made to match, by the names of the options."""
KEYBOARD = {
    "Enter": "send; what is typed during an answer waits until it has ended",
    "Alt-Enter": "another line; so does Enter after a backslash",
    "Tab": "complete a command, a setting or a file name",
    "Up, Down": "earlier inputs",
    "Ctrl-R": "search them: Enter sends, Esc edits, Ctrl-C gives up",
    "Ctrl-X Ctrl-E": "edit in $EDITOR",
    "Ctrl-C": "stop an answer, or clear what is typed",
    "Ctrl-D": "leave",
}
"""Keys that are not self-evident, and what they do."""


class Leave(Exception):  # noqa: N818 (not an error)
    """The user leaves."""


@dataclass(frozen=True)
class SlashCommand:
    """A command.

    Attributes:
        name: without the slash.
        takes: its argument, as the help shows it.
        help: a description of what it does.
        run: executes it, given the text after the name.
        choices: returns the words that may come next, given the words after the command so far.
    """

    name: str
    takes: str
    help: str
    run: Callable[["Chat", str], None]
    choices: Callable[[str], Sequence[str]] = lambda _: ()


def split(text: str) -> tuple[str, str]:
    """Return a command's name and its argument."""
    name, _, argument = text[1:].partition(" ")
    return name, argument.strip()


def take(chat: "Chat", text: str) -> bool:
    """Execute an input: a command, or a prompt, which begins with `//` if its text begins with a slash.

    Returns:
        Whether an answer was interrupted.

    Raises:
        HispecError: a command or an answer fails.
        Leave: the user leaves.
    """
    chat.interrupted = False
    if text.startswith("/") and not text.startswith("//"):
        run(chat, text.rstrip())
    else:
        chat.ask(text.removeprefix("/"))
    return chat.interrupted


def run(chat: "Chat", text: str) -> None:
    """Run a command as it was written.

    Raises:
        UsageError: no such command, or something that it does not take.
        Leave: the user leaves.
    """
    name, argument = split(text)
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{near[0]}? " if near else ""
        raise UsageError(
            f"there is no command /{name}", f"{hint}/help lists them; // begins a text that begins with a slash"
        )
    if argument and not command.takes:
        raise UsageError(f"/{name} takes no argument", f"write /{name} alone")
    command.run(chat, argument)


def _help(chat: "Chat", _: str) -> None:
    rows = {f"/{command.name} {command.takes}": command.help for command in COMMANDS.values()} | {"": ""} | KEYBOARD
    width = max(map(len, rows))
    for name, does in rows.items():
        say(f"{name:<{width}}  {does}".rstrip(), "none")


def _reset(chat: "Chat", _: str) -> None:
    chat.replace(chat.conversation.system, ())


def _undo(chat: "Chat", _: str) -> None:
    turn = chat.conversation.undo()
    say(f"taken back: {_short(turn.prompt)}")
    chat.save()


def _retry(chat: "Chat", _: str) -> None:
    if chat.conversation.turns and chat.conversation.engine.settings.temperature == 0:
        say("temperature is 0, which gives the same answer while nothing else is changed")
    chat.retry()


def _system(chat: "Chat", text: str) -> None:
    if not text:
        say(f"system: {chat.conversation.system or 'none'}", "none")
        say("/system TEXT gives another, /system off removes it")
        return
    from hispec.conversation import check_template

    conversation, system = chat.conversation, None if text == "off" else text
    check_template(conversation.engine.profile, conversation.engine.tokenizer, system)
    conversation.system = system
    say(f"system: {_short(chat.conversation.system or 'none')}")
    chat.save()


def _set(chat: "Chat", text: str) -> None:
    key, _, value = text.partition(" ")
    key, value = key.replace("-", "_"), value.strip()
    settings = chat.conversation.engine.settings
    if key and key not in KEYS:
        if key in SETTINGS:
            raise UsageError(
                f"{key} is fixed once the model is loaded", f"start hispec chat with {SETTINGS[key].option}"
            )
        near = difflib.get_close_matches(key, KEYS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no setting {key}", f"{hint}/set lists them")
    if not value:
        for name in [key] if key else KEYS:
            say(f"{name} {'none' if getattr(settings, name) is None else getattr(settings, name)}", "none")
        return
    if value == "none" and not SETTINGS[key].nullable:
        raise UsageError(f"{key} cannot be none", f"/set {key} shows what it is")
    chat.set(key, None if value == "none" else value)


def _match(chat: "Chat", text: str) -> None:
    kind, _, value = text.partition(" ")
    value = value.strip()
    if not text:
        grammar = chat.conversation.grammar
        say(
            f"answers match {'any text' if grammar is None else f'the {grammar.kind} {_short(grammar.source)}'}", "none"
        )
    elif text == "off":
        chat.match(None)
    elif kind not in MATCHES or not value:
        raise UsageError(
            f"/match takes json-schema FILE, grammar FILE, regex TEXT or off, not {text}", "write /match regex yes|no"
        )
    else:
        from hispec_cli.checks import choose_grammar

        given: dict[str, Any] = {kind.replace("-", "_"): value if kind == "regex" else Path(value)}
        chat.match(choose_grammar(GrammarOptions(**given)))


def _spec(chat: "Chat", text: str) -> None:
    mode = chat.conversation.engine.settings.mode
    if text not in ("", *SWITCH):
        raise UsageError(f"/spec takes on or off, not {text}", "write /spec on or /spec off")
    if text == "off" and mode != "autoregressive":
        chat.speculative_mode = mode
        chat.set("mode", "autoregressive")
    elif text == "on" and mode == "autoregressive":
        chat.set("mode", chat.speculative_mode)
    else:
        say(f"speculation is {'off' if mode == 'autoregressive' else 'on'} (mode {mode})", "none")


def _show(chat: "Chat", _: str) -> None:
    conversation = chat.conversation
    engine, turns = conversation.engine, len(conversation.turns)
    target = engine.hierarchy.stack_of(-1)
    levels = [
        level.name + (f" {exit_name(level.exit_layer, level.weights)} of {level.model}" if level.exit_layer else "")
        for level in engine.new_stats().levels
    ]
    environment = engine.environment
    options = ", ".join(f"{key} {value}" for key, value in chat.options.items())
    rows = {
        "profile": engine.profile.name,
        "target": f"{target.name}, {counted(target.num_layers, 'layer')}, {environment['dtype']} on {environment['device']}",
        "levels": ", ".join([*levels, "target"]),
        "settings": options or "those of the profile",
        "system": conversation.system or "none",
        **({} if conversation.grammar is None else {"match": _short(conversation.grammar.source)}),
        "turns": f"{turns}, {conversation.length()} of {counted(engine.context, 'token')}",
        "session": f"{chat.store.name}, {chat.store.path}" if chat.store else "not saved",
    }
    for name, value in rows.items():
        say(f"{name:<9} {value}", "none")


def _stats(chat: "Chat", _: str) -> None:
    stats = chat.last_stats
    if stats is None:
        say("no answer yet", "none")
        return
    first = stats.time_to_first_token_s
    say(f"last answer: {outcome(stats)}", "none")
    said = f"prompt: {counted(stats.prompt_tokens, 'token')}, {stats.cached_tokens} of them already in the cache"
    say(said + (f"; first token after {first * 1000:.0f} ms" if first is not None else ""), "none")
    for level in stats.levels:
        rate = "nothing verified" if level.acceptance_rate is None else f"{level.acceptance_rate:.0%} accepted"
        say(f"{level.name}: {level.proposed} proposed, {rate}", "none")
    speed = chat.tokens / chat.seconds if chat.seconds else 0.0
    say(f"all answers since the start: {chat.answers}, {counted(chat.tokens, 'token')}, {speed:.1f} tokens/s", "none")


def _save(chat: "Chat", text: str) -> None:
    from hispec.session import read_session

    path = _path(text, "save")
    if not chat.conversation.turns:
        raise UsageError("there is no turn yet", "write something first")
    if path.exists():
        try:
            read_session(path)
        except UsageError:
            raise UsageError(f"{path} is there and is no saved conversation", "choose another name") from None
    chat.save_as(path)
    say(f"saved: {path}")


def _load(chat: "Chat", text: str) -> None:
    from hispec.session import read_session

    session = read_session(_path(text, "load"))
    chat.replace(session.system, session.turns)
    chat.show_last_turn()


def _quit(chat: "Chat", _: str) -> None:
    raise Leave


def _path(text: str, name: str) -> Path:
    if not text:
        raise UsageError(f"/{name} takes a file", f"write /{name} FILE")
    return Path(text).expanduser()


def _setting_choices(text: str) -> Sequence[str]:
    key, space, _ = text.partition(" ")
    if not space and key not in KEYS:
        return KEYS
    return SETTINGS[key].choices if key in SETTINGS else ()


def _matches(text: str) -> Sequence[str]:
    kind, space, _ = text.partition(" ")
    if not space:
        return (*MATCHES, "off")
    return FILES if kind in MATCHES[:2] else ()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


COMMANDS = {
    command.name: command
    for command in (
        SlashCommand("help", "", "list commands and keys", _help),
        SlashCommand("reset", "", "begin a new conversation", _reset),
        SlashCommand("undo", "", "take the last turn back", _undo),
        SlashCommand("retry", "", "answer the last prompt again", _retry),
        SlashCommand("system", "TEXT", "give a system message; off removes it", _system),
        SlashCommand("set", "KEY VALUE", "change how to decode; alone, list all keys", _set, _setting_choices),
        SlashCommand(
            "match",
            "KIND FILE",
            "answer in JSON of a json-schema, a text of a grammar or regex; or off",
            _match,
            _matches,
        ),
        SlashCommand("show", "", "model, settings and size of the conversation", _show),
        SlashCommand("stats", "", "figures of the last answer and of all", _stats),
        SlashCommand("spec", "on|off", "speculate, or let the target write alone", _spec, lambda _: SWITCH),
        SlashCommand("save", "FILE", "write the conversation to a file", _save, lambda _: FILES),
        SlashCommand("load", "FILE", "go on with a conversation from a file", _load, lambda _: FILES),
        SlashCommand("quit", "", "leave", _quit),
    )
}
