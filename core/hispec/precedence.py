"""Resolves the value of a setting from option, environment, profile, generation config and default, in this order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from hispec.counts import counted
from hispec.errors import UsageError
from hispec.limits import MAX_INT
from hispec.profile import Profile, exits_of_target, explain
from hispec.settings import COOLEST, HOTTEST, SETTINGS, STRONGEST, WEAKEST, Quantization, Settings

SCHEMA = TypeAdapter(Settings)
NARROWEST = 1e-9
"""A top-p that leaves only the most probable token."""
WARPERS = ("top_k", "top_p", "min_p")
"""Settings that restrict the tokens that may be drawn."""
LENGTHS = ("draft_tokens", "validate_every")
"""Settings of the static policy alone."""


class SettingError(UsageError):
    """A value that a setting does not accept.

    Args:
        error: the error of the validation.
        name: the name that the source of the setting has for it.
    """

    def __init__(self, error: ValidationError, name: str) -> None:
        super().__init__(*explain(error, name))
        self._error = error
        self.setting = str(error.errors()[0]["loc"][0])
        """The name of the setting itself."""

    def named(self, name: str) -> "SettingError":
        """Return the same error with another name of the setting."""
        return SettingError(self._error, name)


def resolve_settings(
    options: Mapping[str, Any],
    profile: Profile,
    *,
    environ: Mapping[str, str] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> tuple[Settings, dict[str, str]]:
    """Take every setting from the first source that has it.

    Args:
        options: the values that the user gave just now; None stands for a value that was not given.
        profile: the profile in use.
        environ: environment variables, `HISPEC_DRAFT_TOKENS` and the like; none by default.
        generation_config: the target's generation config; invalid values in it are ignored.

    Returns:
        The settings, and for each the name of its source.

    Raises:
        UsageError: a value that is not accepted, naming its source; settings that exclude each other.
    """
    sources: dict[str, Mapping[str, Any]] = {
        "option": options,
        "environment": _variables(environ or {}),
        "profile": _keys(profile),
        "generation config": usable_settings(generation_config or {})[0],
    }
    if profile.single_layer is not None and _pick(sources, ["mode"])[0].get("mode") == "single-layer":
        sources["profile"] = {**sources["profile"], "validate_every": profile.single_layer.draft_tokens}
    values, origins = _pick(sources, SETTINGS)
    if origins["policy"] == "default" and _given(LENGTHS, origins):
        values["policy"] = "static"  # else they would change nothing
    settings = _read(values, origins)
    check_placement(settings)
    if settings.dummy_agreement is not None:
        if settings.load_format != "dummy":
            raise UsageError(
                "--dummy-agreement applies to random weights only",
                "add --load-format dummy, or leave out --dummy-agreement",
            )
        read_agreement(settings.dummy_agreement, exits_of_target(profile))
    return settings, origins


def complete_settings(settings: Settings, origins: Mapping[str, str], generation_config: Mapping[str, Any]) -> Settings:
    """Return settings with what nothing else has said taken from the target's generation config.

    Args:
        settings: the settings from `resolve_settings`, to which the generation config may not have been applied yet.
        origins: the sources from `resolve_settings`.
        generation_config: the target's generation config, as for `resolve_settings`.
    """
    usable = usable_settings(generation_config)[0]
    found = {name: value for name, value in usable.items() if origins[name] == "default"}
    return _read(asdict(settings) | found, origins) if found else settings


def chosen_value(name: str, options: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """Return the value of one setting from option or environment, otherwise its default.

    Raises:
        UsageError: a value that is not accepted, naming its source.
    """
    return getattr(_read(*_pick({"option": options, "environment": _variables(environ)}, [name])), name)


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, setting in SETTINGS.items() if (value := environ.get(setting.variable))}


def _keys(profile: Profile) -> dict[str, Any]:
    """Return the settings that a profile makes."""
    sections = {name: getattr(profile, setting.section) for name, setting in SETTINGS.items() if setting.section}
    return {name: getattr(section, name) for name, section in sections.items() if name in section.model_fields_set}


def _pick(sources: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values that sources have, each from the first that has it, and for every name its source."""
    values, origins = {}, dict.fromkeys(names, "default")
    for name in origins:
        for source, found in sources.items():
            if found.get(name) is not None:
                values[name], origins[name] = found[name], source
                break
    return values, origins


def _read(values: dict[str, Any], origins: Mapping[str, str]) -> Settings:
    """Return values as settings; errors as `resolve_settings`."""
    try:
        return SCHEMA.validate_python(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        shown = {"option": SETTINGS[name].option, "environment": SETTINGS[name].variable}.get(origins[name], name)
        raise SettingError(error, shown) from None


def check_placement(settings: Settings) -> None:
    """Refuse settings of where the weights go that exclude each other.

    Raises:
        UsageError: naming them.
    """
    if settings.device_map != "none" and settings.device != "auto":
        raise UsageError("--device names one device, and --device-map spreads over all", "give one of them")
    if settings.max_memory and settings.device_map == "none":
        raise UsageError("--max-memory limits what --device-map spreads over", "add --device-map auto, or leave it out")
    if settings.tensor_parallel and (settings.device_map != "none" or settings.needs_bitsandbytes):
        raise UsageError(
            "--tensor-parallel cannot be combined with --device-map or --quantization 4bit or 8bit",
            "leave out one or the other, or choose int4 or int8",
        )
    if settings.load_format == "dummy":
        if settings.tensor_parallel or settings.device_map != "none" or settings.needs_bitsandbytes:
            raise UsageError(
                "random weights are drawn on one device, whole or as int8 or int4",
                "leave out --load-format dummy, or the placement",
            )
        if settings.dummy_agreement is not None and settings.quantization != "none":
            raise UsageError(
                "--dummy-agreement changes weights, which quantized ones do not allow", "leave out one or the other"
            )


@dataclass(frozen=True)
class Agreement:
    """The agreement of random weights: the probability that a level's token is the whole model's.

    Attributes:
        exits: the agreement by exit layer, ascending.
        copies: the agreement by format of a whole quantized copy; at most one.
    """

    exits: Mapping[int, float]
    copies: Mapping[Quantization, float]

    def like(self, shares: Sequence[float | tuple[str, float]]) -> list[float | list[Any]]:
        """Return these shares, rounded, in the order and with the names that others of the same readings have."""
        by_name = {str(key): round(share, 3) for key, share in (*self.exits.items(), *self.copies.items())}
        in_order = iter(self.exits)
        return [
            by_name[str(next(in_order))] if isinstance(share, float | int) else [share[0], by_name[share[0]]]
            for share in shares
        ]


def read_agreement(shares: Sequence[float | tuple[str, float]], exits: Sequence[int]) -> Agreement:
    """Assign each share to an exit or a copy.

    Args:
        shares: one for each exit, shallow to deep, or each with the number of its exit; those of copies with a format.
        exits: the exits that levels read, of the target and of its copies, ascending, without the last layer.

    Raises:
        UsageError: the number of shares is not the number of exits, a name is unknown, or the shares are not ascending
            between 0 and 1.
    """
    shown = "--dummy-agreement " + ",".join(
        f"{share:g}" if isinstance(share, float | int) else f"{share[0]}={share[1]:g}" for share in shares
    )
    in_order = [share for share in shares if isinstance(share, float | int)]
    named = [share for share in shares if not isinstance(share, float | int)]
    formats: tuple[Quantization, ...] = get_args(Quantization)
    copies = {each: share for each in formats for name, share in named if name == each}
    by_number = {int(name): share for name, share in named if name.isdecimal() and int(name) > 0}
    if len(copies) + len(by_number) < len(named):
        raise UsageError(
            f"{shown} names something twice, or what is neither an exit nor a copy",
            f"name each exit by its number, and copies {' or '.join(formats)}: 2=0.75,int4=0.97",
        )
    if in_order and by_number:
        raise UsageError(f"{shown} names some exits and not others", "name all of them: 1=0.55,2=0.75, or none")
    if not by_number and len(in_order) != len(exits) and (in_order or not copies):
        raise UsageError(
            f"{shown} has {counted(len(in_order), 'share')}, and the target is read at {counted(len(exits), 'exit')}",
            f"give one share for each exit, shallow to deep: {list(exits)}"
            if exits
            else "choose levels that are its exits, or name exits: 2=0.75",
        )
    found = by_number or (dict(zip(exits, in_order, strict=True)) if in_order else {})
    rising = [found[exit_layer] for exit_layer in sorted(found)]
    if not all(0 < low < high < 1 for low, high in pairwise((1e-9, *rising, 1 - 1e-9))):
        raise UsageError(f"{shown} is not rising between 0 and 1", "a deeper exit agrees more: give 0.55,0.75")
    if len(copies) > 1:
        raise UsageError(
            f"{shown} names copies in {' and '.join(copies)}, and random weights cannot be made to suit both",
            "name one of them",
        )
    if not all(0 < share < 1 for share in copies.values()):
        raise UsageError(f"{shown} is not between 0 and 1", "give a copy less than 1: int4=0.97")
    return Agreement(dict(sorted(found.items())), copies)


def without_effect(settings: Settings, origins: Mapping[str, str]) -> list[str]:
    """Yield a message for each setting that the user gave and that has no effect, or less than it seems to have.

    Args:
        settings: the settings from `resolve_settings`.
        origins: the sources from `resolve_settings`. Values from a profile or a checkpoint are not reported.
    """
    found = []
    if settings.temperature == 0 and (ignored := _given(WARPERS, origins)):
        found.append(f"{_change(ignored)} nothing at temperature 0: the most probable token is always taken")
    lengths = _given(LENGTHS, origins)
    if settings.mode == "autoregressive":
        if lengths:
            found.append(f"{_change(lengths)} nothing in mode autoregressive: nothing is drafted")
        if settings.lookup and _given(["lookup"], origins):
            found.append("lookup changes nothing in mode autoregressive: nothing is drafted")
    elif settings.policy == "adaptive":
        if lengths:
            found.append(f"{_change(lengths)} nothing with the adaptive policy, which chooses lengths itself")
    elif settings.mode == "single-layer":
        if "draft_tokens" in lengths:
            found.append("draft_tokens changes nothing in mode single-layer: validate_every is how much is drafted")
    elif lengths and settings.draft_tokens > settings.validate_every:
        found.append(
            f"draft_tokens {settings.draft_tokens} is above validate_every {settings.validate_every}: the target "
            f"validates up to {counted(settings.draft_tokens, 'token')} at once; give validate_every at least "
            f"{settings.draft_tokens} for the intermediate level to pay"
        )
    return found


def _given(names: Iterable[str], origins: Mapping[str, str]) -> list[str]:
    """Return the settings that the user asked for just now."""
    return [name for name in names if origins.get(name) in ("option", "environment")]


def _change(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'change' if len(names) > 1 else 'changes'}"


def usable_settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read a generation config as `transformers` means it: its warpers count only where it samples.

    Returns:
        The settings, those that `transformers` would take brought within our bounds, and the names of those that are
        nonsense.
    """
    samples = config.get("do_sample") is True
    values: dict[str, Any] = {"temperature": 1.0, "top_k": 50} if samples else {}
    unusable = []
    for name, setting in SETTINGS.items():
        counts = setting.checkpoint == "always" or (setting.checkpoint == "sampling" and samples)
        if not counts or config.get(name) is None:
            continue
        fitting = [value for value in (config[name], _nearest(name, config[name])) if _is_accepted(name, value)]
        if fitting:
            values[name] = fitting[0]
        else:
            unusable.append(name)
    return values, unusable


def _nearest(name: str, value: Any) -> Any:
    """Return the accepted value next to one that `transformers` takes and we do not, None where it takes none."""
    if not isinstance(value, int | float):
        return None
    if name == "temperature" and value > 0:
        return 0.0 if value < COOLEST else HOTTEST
    if name == "top_p" and value >= 0:
        return min(1.0, value) or NARROWEST
    if name == "repetition_penalty" and value > 0:
        return min(max(value, WEAKEST), STRONGEST)
    if name in ("top_k", "max_new_tokens") and value > MAX_INT:
        return MAX_INT
    return None


def _is_accepted(name: str, value: Any) -> bool:
    try:
        SCHEMA.validate_python({name: value})
    except ValidationError:
        return False
    return value is not None
