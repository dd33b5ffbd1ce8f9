"""Checks of options, environment, profile and files, before torch is imported or weights are read."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hispec.counts import counted
from hispec.errors import UsageError
from hispec_cli.options import DecodingOptions, GrammarOptions, ModelOptions, ProfileOptions
from hispec_cli.ui.console import say
from hispec_cli.ui.loading import Loading

if TYPE_CHECKING:
    from hispec.grammar import Grammar
    from hispec.profile import Profile, TargetSection
    from hispec.settings import Settings

YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Choice:
    """The checked choice of profile and settings.

    Attributes:
        model: the options that name it.
        decoding: the options that say how.
        profile: the profile that follows from the model options.
    """

    model: ModelOptions
    decoding: DecodingOptions
    profile: "Profile"

    @property
    def settings(self) -> "Settings":
        """Return the settings, as far as they are known before the model is loaded."""
        return self.resolved[0]

    @cached_property
    def resolved(self) -> "tuple[Settings, dict[str, str]]":
        """Return the settings and their origins."""
        return resolve(self.profile, self.decoding)


def resolve(profile: "Profile", decoding: DecodingOptions) -> "tuple[Settings, dict[str, str]]":
    """Return the settings and their origins; a checkpoint's own are among them where it is on this machine.

    Raises:
        UsageError: a setting is invalid, as for `hispec.precedence.resolve_settings`.
    """
    from hispec.models.checkpoint import Checkpoint
    from hispec.precedence import resolve_settings

    checkpoint = Checkpoint(profile.target.model, profile.target.revision, is_dummy(decoding))
    config = checkpoint.generation_config_here()
    return resolve_settings(decoding, profile, environ=os.environ, generation_config=config)


def choose(model: ModelOptions, decoding: DecodingOptions, *, shared: bool = False) -> Choice:
    """Choose a model and how to decode with it, and refuse what cannot be.

    Args:
        model: the model options.
        decoding: the decoding options.
        shared: whether the command can share its work among the ranks of torchrun.

    Raises:
        UsageError: options that exclude each other or are out of range, a faulty profile or chat template, exits that
            are too deep.
        UnavailableError: a package is missing, or the configuration of a model without a profile is not available.
    """
    from hispec.extras import require
    from hispec.launched import check_launched
    from hispec.precedence import without_effect

    prepare_hub(model)
    dummy = is_dummy(decoding)
    with Loading("reading the profile"):
        template = chat_template_of(model)
        profile = choose_profile(model, mode=chosen_value("mode", decoding), dummy=dummy)
        if template is not None:
            profile = profile.model_copy(update={"chat_template": template})
        choice = Choice(model, decoding, profile)
        settings, origins = choice.resolved
        if settings.tensor_parallel and not shared:
            raise UsageError("--tensor-parallel is for hispec generate alone", "leave it out")
        if settings.tensor_parallel:
            check_launched()
        if settings.needs_bitsandbytes:
            require("quantization", f"--quantization {settings.quantization}")
        check_profile_files(profile, settings.mode, dummy=dummy)
    for note in without_effect(settings, origins):
        say(f"note: {note}", "yellow")
    return choice


def load_depth(target: "TargetSection", dummy: bool) -> int:
    """Return a model's number of layers, after downloading its configuration if needed."""
    from hispec.models.checkpoint import Checkpoint

    return Checkpoint(target.model, target.revision, dummy).config.num_layers


def ask_for_depth(target: "TargetSection", dummy: bool) -> int:
    """Return a model's number of layers, 0 where the hub does not tell it in time."""
    from hispec.doctor import HUB_SECONDS
    from hispec.models.checkpoint import Checkpoint

    checkpoint = Checkpoint(target.model, target.revision)
    if checkpoint.is_local:
        return load_depth(target, dummy)
    checkpoint.fetch_config(HUB_SECONDS)
    return checkpoint.depth or 0


def choose_profile(
    model: ProfileOptions,
    *,
    mode: str = "hispec",
    dummy: bool = False,
    find_depth: "Callable[[TargetSection, bool], int]" = load_depth,
) -> "Profile":
    """Return the profile that the options name, or one for a checkpoint without.

    Args:
        model: the options.
        mode: the decoding mode; one without an intermediate level ignores the option for its exit.
        dummy: whether weights will be drawn at random.
        find_depth: returns the number of layers of a model without a profile whose configuration is not on this
            machine, or has another name for it; 0 stands for no exits.

    Raises:
        UsageError: no such profile or folder, exits out of order or too deep.
        UnavailableError: the configuration is not available, as for `find_depth`.
    """
    from hispec.profile import TargetSection, profile_for_model, with_exits

    if model.model is not None and model.profile is not None:
        raise UsageError("--model and --profile were both given", "give one of them")
    exits = (model.draft_exit, model.intermediate_exit)
    if model.model is None:
        profile = load_named(model.profile or default_profile())
        check_exits(model, profile.target.model, depth_of(profile.target, dummy=dummy))
        return with_exits(profile, *exits, mode)
    check_model(model.model, dummy=dummy)
    target = TargetSection(model=model.model)
    depth = depth_of(target, dummy=dummy)
    if depth is None:
        depth = find_depth(target, dummy)
    check_exits(model, model.model, depth)
    return profile_for_model(model.model, depth, *exits)


def chat_template_of(model: ModelOptions) -> str | None:
    """Return the chat template that options or environment name, None where they name none.

    Raises:
        UsageError: the file cannot be read, as for `read_template`.
    """
    path = model.chat_template or os.environ.get("HISPEC_CHAT_TEMPLATE")
    if not path:
        return None
    from hispec.chat_template import read_template

    return read_template(Path(path))


def default_profile() -> str:
    """Return the profile that is taken where none is named."""
    return os.environ.get("HISPEC_PROFILE") or "tiny"


def load_named(name: str) -> "Profile":
    """Read a profile, and say so where it is one of the user's own that hides a shipped one; errors as `load_profile`."""
    from hispec.profile import find_profile, read_profile, shadows

    path = find_profile(name)
    profile = read_profile(path)
    if shadows(path) and name == path.stem:
        say(f"profile {name} is your own, {path}: it replaces the shipped one of this name", "yellow")
    return profile


def check_message(
    system: str | None, stop: Sequence[str] | None, *, raw: bool = False, template: Path | None = None
) -> None:
    """Refuse a system message, stop texts or a chat template that no model could be given.

    Raises:
        UsageError: text is not UTF-8, a stop text is empty, or a system message or a chat template is combined with
            --raw.
    """
    from hispec.text import check_stop
    from hispec.utf8 import check_utf8

    check_utf8(system or "", "the system message")
    check_stop(stop or ())
    if raw and system is not None:
        raise UsageError("a system message needs a chat template, and --raw uses none", "leave out --raw or --system")
    if raw and template is not None:
        raise UsageError("--chat-template and --raw exclude each other", "give one of them")


def choose_grammar(options: GrammarOptions) -> "Grammar | None":
    """Return the grammar that an answer must match, checked as far as it can be without a model; None for any text.

    Raises:
        UsageError: more than one was given, a file that cannot be read, or a grammar that cannot be used.
        UnavailableError: llguidance is not installed.
    """
    given = {"--json-schema": options.json_schema, "--grammar": options.grammar, "--regex": options.regex}
    named = [name for name, value in given.items() if value is not None]
    if not named:
        return None
    if len(named) > 1:
        raise UsageError(f"{named[0]} and {named[1]} exclude each other", "give one of them")
    from hispec.grammar import Grammar

    if options.json_schema is not None:
        grammar = Grammar.json_schema(_read_text(options.json_schema, named[0]))
    elif options.grammar is not None:
        grammar = Grammar.lark(_read_text(options.grammar, named[0]))
    else:
        grammar = Grammar.regex(options.regex or "")
    grammar.check()
    return grammar


def _read_text(path: Path, option: str) -> str:
    try:
        return path.expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start})", "convert it first, for example with iconv"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}", f"check the path after {option}") from None


def check_model(model: str, *, dummy: bool = False) -> None:
    """Refuse what `--model` cannot name.

    Args:
        model: a folder, a hub id or `builtin:NAME`.
        dummy: whether weights will be drawn at random.

    Raises:
        UsageError: a profile, some other file, or a folder without a model.
    """
    from hispec.models.checkpoint import Checkpoint
    from hispec.profile import list_profiles

    if not model.strip():
        raise UsageError("--model is empty", "give a folder or a hub id")
    checkpoint = Checkpoint(model, dummy=dummy)
    path = Path(checkpoint.model)
    if path.suffix in YAML and not path.is_dir():
        raise UsageError(f"--model is {model}, the name of a profile's file", f"use --profile {model}")
    if path.is_file():
        raise UsageError(f"--model is {model}, a file", f"give the folder of the model: --model {path.parent}")
    if not path.is_dir() and model in dict(list_profiles()):
        raise UsageError(f"--model is {model}, the name of a profile", f"use --profile {model}")
    checkpoint.check_name()


def check_exits(model: ProfileOptions, name: str, depth: int | None) -> None:
    """Refuse exits that a model is too shallow for.

    Args:
        model: the options that name exits.
        name: the name of the model.
        depth: its number of layers, None or 0 where that is not known yet.

    Raises:
        UsageError: naming the option, and the exits that would do.
    """
    if not depth:
        return
    for option, exit_layer in (("--draft-exit", model.draft_exit), ("--intermediate-exit", model.intermediate_exit)):
        if exit_layer is not None and exit_layer >= depth:
            raise UsageError(
                f"{option} is {exit_layer}, and {name} has {counted(depth, 'layer')}",
                f"choose an exit from 1 to {depth - 1}" if depth > 1 else "choose a deeper model",
            )


def check_profile_files(profile: "Profile", mode: str, *, dummy: bool) -> None:
    """Refuse a profile that does not fit the files that it names, as far as they are on this machine.

    Raises:
        ProfileError: exits that a model is too shallow for, a reduced head without token frequencies.
        UsageError: a folder without a model.
    """
    from hispec.frequencies import frequent_ids
    from hispec.models.checkpoint import checkpoints_of
    from hispec.profile import check_depths

    for name, checkpoint in checkpoints_of(profile, mode, dummy=dummy).items():
        checkpoint.check_name()
        if (depth := checkpoint.depth) is not None:
            check_depths(profile, name, depth)
    levels = {"hispec": (profile.draft, profile.intermediate), "single-layer": (profile.draft,)}.get(mode, ())
    for level in levels:
        if level is not None and level.head is not None:
            frequent_ids(profile, level.head)


def depth_of(target: "TargetSection", *, dummy: bool = False) -> int | None:
    """Return a model's number of layers, as `Checkpoint.depth`."""
    from hispec.models.checkpoint import Checkpoint

    return Checkpoint(target.model, target.revision, dummy).depth


def chosen_value(name: str, decoding: DecodingOptions) -> Any:
    """Return the value of a setting from options or environment, before a profile is known; see
    `hispec.precedence.chosen_value`.
    """
    from hispec import precedence

    return precedence.chosen_value(name, decoding, os.environ)


def is_dummy(decoding: DecodingOptions) -> bool:
    """Return whether weights will be drawn at random."""
    return bool(chosen_value("load_format", decoding) == "dummy")


def prepare_hub(model: ProfileOptions) -> None:
    """Set the environment variables of the hub's client, which it reads when it is first imported."""
    if model.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # `Loading` shows the progress
