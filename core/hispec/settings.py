"""Decoding settings and where each came from: option > environment > profile > generation config > default."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hispec.counts import counted
from hispec.errors import UsageError
from hispec.limits import LARGEST_SEED, MOST, WIDEST_PASS
from hispec.profile import (
    COOLEST,
    HOTTEST,
    STRONGEST,
    WEAKEST,
    Count,
    Dtype,
    MinP,
    Penalty,
    Profile,
    Share,
    Temperature,
    TopK,
    exits_of_target,
    explain,
)

PREFIX = "HISPEC_"
Stack = Literal["auto", "fused", "transformers"]
LoadFormat = Literal["auto", "dummy"]
Graphs = Annotated[
    Literal["auto", "on", "off"], BeforeValidator(lambda value: {"0": "off", "1": "on"}.get(value, value))
]
"""As an environment variable it is 0 or 1, too."""
Mode = Literal["hispec", "single-layer", "autoregressive"]
DeviceMap = Literal["none", "auto"]
Quantization = Literal["none", "4bit", "8bit"]
NARROWEST = 1e-9
"""A top-p that leaves only the likeliest token."""
WARPERS = ("top_k", "top_p", "min_p")
"""Settings that narrow down what a token is drawn from."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_memory(text: str) -> dict[int | str, int]:
    """Read bytes by device, `0=20GB,1=20GB,cpu=60GB`: GPUs have numbers.

    Raises:
        ValueError: with words for users.
    """
    found: dict[int | str, int] = {}
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"\s*(\d+|cpu)\s*=\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", part.lower())
        if match is None or match[3] not in UNITS:
            raise ValueError(f"{part!r} is not a device and its memory: give for example 0=20GB,1=20GB,cpu=60GB")
        found[int(match[1]) if match[1].isdigit() else match[1]] = int(float(match[2]) * UNITS[match[3]])
    return found


def _memory(text: str) -> str:
    parse_memory(text)
    return text


def _shares(value: Any) -> Any:
    """What an option or a variable says, `0.55,0.75`, as numbers."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(float(share) for share in value.split(","))
    except ValueError:
        raise ValueError(f"{value!r} is no list of shares: give, for example, 0.55,0.75") from None


DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")
"""The kinds of device of torch that compute; all but the first may have a number."""


def _device(name: str) -> str:
    if name != "auto" and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d{{1,3}})?", name):
        raise ValueError(f"{name!r} is not a device: give auto, cpu, cuda or cuda:N")
    return name


Device = Annotated[str, AfterValidator(_device)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Shares = Annotated[tuple[Share, ...], BeforeValidator(_shares)]


def _width(value: Any) -> Any:
    """Read what an option or a variable says, `8`, as a number."""
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    if value not in ("auto", "free") and not (type(value) is int and 1 <= value <= WIDEST_PASS):
        raise ValueError(f"{value!r} is no width: give auto, free, or rows from 1 to {WIDEST_PASS}")
    return value


Width = Annotated[int | Literal["auto", "free"], BeforeValidator(_width)]


class Settings(BaseModel):
    """How to decode; the values here are the defaults that everything else overrides.

    Attributes:
        mode: all levels of the profile, draft and target only, or the target alone.
        draft_tokens: tokens drafted before the next level judges, N_d.
        validate_every: tentatively accepted tokens before the target judges, N_i.
        policy: what decides between drafting on and judging.
        max_new_tokens: the most tokens of an answer.
        intermediate_top_k: levels below the target accept a token among the k with their highest scores: their
            likeliest, or when sampling those with the highest sums of log-probability and noise.
        temperature: 0 is greedy decoding; for this and the next four see `hispec.decoding.sampling.Sampling`.
        seed: equal seeds give equal answers, whatever drafts them; None draws one.
        device: `auto`, or a torch device.
        dtype: of the weights; `auto` is the checkpoint's own, on a CPU with bfloat16 instructions bfloat16 for large
            models in float32.
        stack: what runs the layers: our fused stack, the modules of `transformers`, or `auto`, the first that applies.
        device_map: `auto` spreads the layers over all GPUs, then the CPU's memory, then the disk.
        max_memory: what of each device `device_map` may use, as `parse_memory` reads it; by default what is free.
        quantization: of the weights while they are loaded, by bitsandbytes.
        tensor_parallel: share every matrix among the processes that torchrun started.
        width: rows of the passes that the target's results come from, so that all modes compute the same numbers: `auto`
            finds the row counts that agree to the last bit, a number pads every pass to that many, `free` pads none.
        graphs: whether the fused stack runs in fixed shapes, recorded as CUDA graphs: `auto` where there is CUDA.
        load_format: `dummy` draws weights at random on the device and downloads nothing but a configuration.
        dummy_agreement: for each exit of the target that a level reads, shallow to deep, how often it shall name the
            likeliest token of the whole model; of random weights only. See `hispec.models.agreement`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "hispec"
    draft_tokens: Count = 2
    validate_every: Count = 4
    policy: Literal["static", "adaptive"] = "static"
    max_new_tokens: Count = 256
    intermediate_top_k: Count = 1
    temperature: Temperature = 0.0
    top_k: TopK = 0
    top_p: Share = 1.0
    min_p: MinP = 0.0
    repetition_penalty: Penalty = 1.0
    seed: Seed | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    stack: Stack = "auto"
    device_map: DeviceMap = "none"
    max_memory: Annotated[str, AfterValidator(_memory)] = ""
    quantization: Quantization = "none"
    tensor_parallel: bool = False
    width: Width = "auto"
    graphs: Graphs = "auto"
    load_format: LoadFormat = "auto"
    dummy_agreement: Shares | None = None


def resolve_settings(
    options: Mapping[str, Any],
    profile: Profile,
    *,
    environ: Mapping[str, str] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> tuple[Settings, dict[str, str]]:
    """Take every setting from the first source that has it.

    Args:
        options: what the user asked for just now; None means not asked.
        profile: the profile in use.
        environ: environment variables, `HISPEC_DRAFT_TOKENS` and the like; none by default.
        generation_config: of the target; what is nonsense there counts as absent.

    Returns:
        The settings, and for each the name of its source.

    Raises:
        UsageError: a value that is not accepted, naming its source; settings that exclude each other.
    """
    sources: dict[str, Mapping[str, Any]] = {
        "option": options,
        "environment": {
            key.removeprefix(PREFIX).lower(): value
            for key, value in (environ or {}).items()
            if key.startswith(PREFIX) and value
        },
        "profile": profile.decoding.model_dump()
        | profile.sampling.model_dump()
        | profile.target.model_dump(include={"dtype", "quantization"}, exclude_unset=True),
        "generation config": usable_settings(generation_config or {})[0],
    }
    if profile.single_layer is not None and _first(sources, "mode") == "single-layer":
        sources["profile"] = {**sources["profile"], "validate_every": profile.single_layer.draft_tokens}
    values, origins = {}, dict.fromkeys(Settings.model_fields, "default")
    for name in Settings.model_fields:
        for source, found in sources.items():
            if found.get(name) is not None:
                values[name], origins[name] = found[name], source
                break
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        cause, cure = explain(error, values)
        cure = cure.partition("; YAML")[0].removesuffix(" without quotes")
        shown = {
            "option": f"--{name.replace('_', '-')}",
            "environment": PREFIX + name.upper(),
        }.get(origins[name], name)
        raise UsageError(cause.replace(name, shown, 1), cure) from None
    check_placement(settings)
    if settings.dummy_agreement is not None:
        if settings.load_format != "dummy":
            raise UsageError(
                "--dummy-agreement is of random weights", "add --load-format dummy, or leave out --dummy-agreement"
            )
        check_agreement(settings.dummy_agreement, exits_of_target(profile))
    return settings, origins


def check_placement(settings: Settings) -> None:
    """Refuse settings of where the weights go that exclude each other.

    Raises:
        UsageError: naming them.
    """
    if settings.device_map != "none" and settings.device != "auto":
        raise UsageError("--device names one device, and --device-map spreads over all", "give one of them")
    if settings.max_memory and settings.device_map == "none":
        raise UsageError("--max-memory limits what --device-map spreads over", "add --device-map auto, or leave it out")
    special = settings.device_map != "none" or settings.quantization != "none"
    if settings.tensor_parallel and special:
        raise UsageError(
            "--tensor-parallel goes with neither --device-map nor --quantization", "leave out one or the other"
        )
    if settings.load_format == "dummy" and (settings.tensor_parallel or special):
        raise UsageError(
            "random weights are drawn on one device, as they are", "leave out --load-format dummy, or the placement"
        )


def check_agreement(shares: Sequence[float], exits: Sequence[int]) -> None:
    """Refuse shares of agreement that do not belong to the exits.

    Args:
        shares: one for each exit.
        exits: of the target that levels read, ascending, without its last layer.

    Raises:
        UsageError: another number of shares than of exits, or shares that do not rise between 0 and 1.
    """
    shown = ",".join(f"{share:g}" for share in shares)
    if len(shares) != len(exits):
        raise UsageError(
            f"--dummy-agreement {shown} has {counted(len(shares), 'share')}, "
            f"and the target is read at {counted(len(exits), 'exit')}",
            f"give one share for each exit, shallow to deep: {exits}" if exits else "choose levels that are its exits",
        )
    if not all(0 < low < high < 1 for low, high in zip((1e-9, *shares), (*shares, 1 - 1e-9), strict=True)):
        raise UsageError(
            f"--dummy-agreement {shown} is not rising between 0 and 1", "a deeper exit agrees more: give 0.55,0.75"
        )


def without_effect(settings: Settings, origins: Mapping[str, str]) -> list[str]:
    """Say which settings that were asked for change nothing, or less than they seem to, each in a sentence.

    Args:
        settings: as `resolve_settings` returns them.
        origins: likewise. What a profile or a checkpoint says is not told.
    """
    asked = [name for name in Settings.model_fields if origins.get(name) in ("option", "environment")]
    found = []
    if settings.temperature == 0 and (ignored := [name for name in WARPERS if name in asked]):
        found.append(f"{_change(ignored)} nothing at temperature 0: the likeliest token is always taken")
    lengths = [name for name in ("draft_tokens", "validate_every") if name in asked]
    if settings.mode == "autoregressive":
        if lengths:
            found.append(f"{_change(lengths)} nothing in mode autoregressive: nothing is drafted")
    elif settings.policy == "adaptive":
        if lengths:
            found.append(f"{_change(lengths)} nothing with the adaptive policy, which chooses lengths itself")
    elif settings.mode == "single-layer":
        if "draft_tokens" in asked:
            found.append("draft_tokens changes nothing in mode single-layer: validate_every is how much is drafted")
    elif lengths and settings.draft_tokens > settings.validate_every:
        found.append(
            f"draft_tokens {settings.draft_tokens} is above validate_every {settings.validate_every}: the target "
            f"validates up to {counted(settings.draft_tokens, 'token')} at once; give validate_every at least "
            f"{settings.draft_tokens} for the intermediate level to pay"
        )
    return found


def _change(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'change' if len(names) > 1 else 'changes'}"


def _first(sources: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    return next((found[name] for found in sources.values() if found.get(name) is not None), None)


GENERATION_CONFIG = ("temperature", *WARPERS, "repetition_penalty", "max_new_tokens")
"""The settings that a generation config knows."""


def usable_settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read a generation config as `transformers` means it: its warpers count only where it samples.

    Returns:
        The settings, those that `transformers` would take brought within our bounds, and the names of those that are
        nonsense.
    """
    names = GENERATION_CONFIG if config.get("do_sample") is True else GENERATION_CONFIG[-2:]
    values: dict[str, Any] = {"temperature": 1.0, "top_k": 50} if config.get("do_sample") is True else {}
    unusable = []
    for name in names:
        if config.get(name) is None:
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
    if name in ("top_k", "max_new_tokens") and value > MOST:
        return MOST
    return None


def _is_accepted(name: str, value: Any) -> bool:
    try:
        Settings.model_validate({name: value})
    except ValidationError:
        return False
    return value is not None
