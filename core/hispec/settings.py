"""Every setting of how to decode, each written once: name, type, default, and what is told of it.

Options, `HISPEC_*` variables, keys of profiles, `/set` and the tables of the documentation are read from `SETTINGS`.
`hispec --help` reads it too, so this module imports nothing that takes time.
"""
# ruff: noqa: RUF009 (the calls in the place of defaults return fields)

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from hispec.errors import BadValueError
from hispec.limits import MAX_INT, MAX_SEED, WIDEST_PASS

PREFIX = "HISPEC_"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")
"""The kinds of device of torch that compute; all but the first may have a number."""
COOLEST = 1e-4
"""Dividing float32 logits by less may leave its range; the difference to greedy decoding is long gone."""
HOTTEST = 1e4
WEAKEST, STRONGEST = 0.01, 100.0
"""Bounds of the repetition penalty."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for pydantic, which this module does not import."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return the schema of the type with the bounds."""
        return handler(source) | {key: bound for key, bound in asdict(self).items() if bound is not None}


@dataclass(frozen=True)
class Read:
    """A function that reads or checks a value; its `ValueError`s have words for users.

    Attributes:
        function: returns the value.
        first: whether it runs before the type's own reading.
    """

    function: Callable[[Any], Any]
    first: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return the schema of the type with the function."""
        from pydantic_core import core_schema

        wrap = (
            core_schema.no_info_before_validator_function
            if self.first
            else core_schema.no_info_after_validator_function
        )
        return wrap(self.function, handler(source))


def parse_memory(text: str) -> dict[int | str, int]:
    """Read bytes by device, `0=20GB,1=20GB,cpu=60GB`: GPUs have numbers.

    Raises:
        BadValueError: with words for users.
    """
    found: dict[int | str, int] = {}
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"\s*(\d+|cpu)\s*=\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", part.lower())
        if match is None or match[3] not in UNITS:
            raise BadValueError(f"{part!r} is not a device and its memory", "give for example 0=20GB,1=20GB,cpu=60GB")
        found[int(match[1]) if match[1].isdigit() else match[1]] = int(float(match[2]) * UNITS[match[3]])
    return found


def _memory(text: str) -> str:
    parse_memory(text)
    return text


def _drawable(temperature: float) -> float:
    if 0 < temperature < COOLEST:
        raise BadValueError(f"{temperature!r} is too close to 0", f"give 0, greedy decoding, or at least {COOLEST}")
    return temperature


def _shares(value: Any) -> Any:
    """Read what an option or a variable says, `0.55,0.75` or `2=0.75,int4=0.97`, as numbers, with their names if any."""
    if not isinstance(value, str):
        return value
    found: list[float | tuple[str, float]] = []
    try:
        for part in value.split(","):
            name, named, share = part.rpartition("=")
            found.append((name.strip(), float(share)) if named else float(share))
    except ValueError:
        raise BadValueError(
            f"{value!r} is no list of shares", "give, for example, 0.55,0.75 or 2=0.75,int4=0.97"
        ) from None
    return tuple(found)


def _device(name: str) -> str:
    if name != "auto" and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d{{1,3}})?", name):
        raise BadValueError(f"{name!r} is not a device", "give auto, cpu, cuda or cuda:N")
    return name


def _width(value: Any) -> Any:
    """Read what an option or a variable says, `8`, as a number."""
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    if value not in ("auto", "free") and not (type(value) is int and 1 <= value <= WIDEST_PASS):
        raise BadValueError(f"{value!r} is no width", f"give auto, free, or rows from 1 to {WIDEST_PASS}")
    return value


Quantization = Literal["int4", "int8"]
"""Formats of a quantized copy of a model's weights."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Graphs = Annotated[
    Literal["auto", "on", "off"], Read(lambda value: {"0": "off", "1": "on"}.get(value, value), first=True)
]
Count = Annotated[int, Range(ge=1, le=MAX_INT)]
Seed = Annotated[int, Range(ge=0, le=MAX_SEED)]
Share = Annotated[float, Range(gt=0, le=1)]
Shares = Annotated[tuple[Share | tuple[str, Share], ...], Read(_shares, first=True)]
Temperature = Annotated[float, Range(ge=0, le=HOTTEST), Read(_drawable)]
Width = Annotated[int | Literal["auto", "free"], Read(_width, first=True)]


@dataclass(frozen=True)
class Setting:
    """What is told of a setting; `SETTINGS` adds what its field in `Settings` says.

    Attributes:
        help: what it does, for help pages and the documentation.
        panel: the section of a help page that its option is in; None gives it no option.
        section: of a profile that has it as a key; None: profiles do not have it.
        checkpoint: when the target's generation config counts, if ever.
        at_loading: whether it is decided when the weights are loaded, so that a chat cannot change it.
        calibration: `found` if a calibration finds it and writes it into a profile, `given` if what a calibration
            measures depends on it, None if neither. What comes of settings at loading is in the environment anyway.
        metavar: what an option shows for its value, where the type does not say it.
        accepts: accepted values in words, likewise.
        unset: what happens without a value, in words, where the default does not say it.
        offers: values that a shell completes, likewise.
        name, type, default: of the field.
    """

    help: str
    panel: Literal["Decoding", "Sampling", "Weights and devices"] | None
    section: Literal["decoding", "sampling", "target"] | None = None
    checkpoint: Literal["always", "sampling"] | None = None
    at_loading: bool = False
    calibration: Literal["found", "given"] | None = None
    metavar: str | None = None
    accepts: str = ""
    unset: str = ""
    offers: tuple[str, ...] = ()
    name: str = ""
    type: Any = None
    default: Any = None

    @property
    def option(self) -> str:
        """Return the option of commands."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the environment variable."""
        return PREFIX + self.name.upper()

    @property
    def nullable(self) -> bool:
        """Return whether it can be without a value."""
        return NoneType in get_args(self.type)

    @property
    def kind(self) -> Any:
        """Return the type that an option reads: numbers, flags and choices as such, all else as text."""
        held = get_args(self.type)[0] if self.nullable else self.type
        bare = held.__origin__ if get_origin(held) is Annotated else held
        return bare if bare in (int, float, bool) or get_origin(bare) is Literal else str

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the accepted words, where there is nothing else to accept."""
        return get_args(self.kind)

    @property
    def otherwise(self) -> str:
        """Return what counts where neither option nor variable says it, in words; empty if there is nothing to say."""
        above = [f"the {one}'s" for one, has in (("profile", self.section), ("checkpoint", self.checkpoint)) if has]
        default = f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        default = self.unset or {"False": "off" if above else "", "None": ""}.get(default, default)
        return ", ".join([*above, f"else {default}"]) if above else default


def _setting(default: Any, help: str, **told: Any) -> Any:  # noqa: A002
    """Return a field of `Settings` with its default and what is told of it, as arguments of `Setting`."""
    return field(default=default, metadata={"told": Setting(help, **told)})


_decoding = partial(_setting, panel="Decoding", section="decoding")
_sampling = partial(_setting, panel="Sampling", section="sampling", checkpoint="sampling")
_loading = partial(_setting, panel="Weights and devices", at_loading=True)


@dataclass(frozen=True)
class Settings:
    """How to decode. The defaults are what counts where no other source has a value; see `hispec.precedence`."""

    mode: Literal["hispec", "single-layer", "autoregressive"] = _decoding(
        "hispec", "All levels, draft and target only, or the target alone.", section=None
    )
    draft_tokens: Count = _decoding(2, "Tokens drafted before the intermediate level verifies.", calibration="found")
    validate_every: Count = _decoding(4, "Waiting tokens at which the target validates.", calibration="found")
    policy: Literal["static", "adaptive"] = _decoding(
        "adaptive",
        "What decides between drafting on and verifying: confidence and measured costs, or fixed lengths, which count "
        "where only they are given.",
        calibration="found",
    )
    lookup: bool | None = _decoding(
        None,
        "Draft from n-grams of the session's texts, and from recycled logits, below all other levels.",
        unset="as the levels say",
    )
    max_new_tokens: Count = _decoding(256, "Most tokens of an answer.", checkpoint="always")
    intermediate_top_k: Count = _decoding(
        1, "The intermediate level accepts a token among its N most probable.", panel=None, calibration="given"
    )
    temperature: Temperature = _sampling(
        0.0,
        "0 always takes the most probable token.",
        metavar="T",
        accepts=f"0, or a number from {COOLEST} to {HOTTEST:g}",
    )
    top_k: Annotated[int, Range(ge=0, le=MAX_INT)] = _sampling(0, "Draw from the N most probable tokens; 0: from all.")
    top_p: Share = _sampling(
        1.0, "Draw from the most probable tokens that have this probability together.", metavar="P"
    )
    min_p: Annotated[float, Range(ge=0, le=1)] = _sampling(
        0.0, "Draw from tokens this share as likely as the most probable.", metavar="P"
    )
    repetition_penalty: Annotated[float, Range(ge=WEAKEST, le=STRONGEST)] = _sampling(
        1.0, "Above 1 disfavours tokens already there.", checkpoint="always", metavar="X"
    )
    seed: Seed | None = _setting(
        None, "The same seed gives the same answer, whatever drafts it.", panel="Sampling", unset="drawn"
    )
    device: Annotated[str, Read(_device)] = _loading(
        "auto",
        "auto, cpu, cuda or cuda:N.",
        metavar="DEVICE",
        accepts="`auto`, `cpu`, `cuda`, `cuda:N`, or another device of torch",
        offers=("auto", "cpu", "cuda"),
    )
    dtype: Dtype = _loading(
        "auto", "Of the weights; auto: the checkpoint's, or bfloat16 where a CPU is faster with it.", section="target"
    )
    stack: Literal["auto", "fused", "transformers"] = _loading(
        "auto", "What runs the layers; auto: the fused stack, which is the faster, for every model that it can run."
    )
    device_map: Literal["none", "auto"] = _loading(
        "none", "auto: spread the layers over all GPUs, then the CPU's memory, then the disk."
    )
    max_memory: Annotated[str, Read(_memory)] = _loading(
        "",
        "What --device-map may use, for example 0=20GB,1=20GB,cpu=60GB.",
        metavar="DEVICE=SIZE,...",
        accepts="devices and their memory",
    )
    quantization: Literal["none", "int4", "int8", "4bit", "8bit"] = _loading(
        "none",
        "Quantize the weights while loading: int4 and int8 for the fused stack, 4bit and 8bit by bitsandbytes.",
        section="target",
    )
    tensor_parallel: bool = _loading(False, "Share every matrix among the processes that torchrun started.")
    width: Width = _loading(
        "auto",
        "Rows of a pass: auto and a number give the same ids in every mode; free is the fastest and may differ "
        "where rounding decides.",
        metavar="auto|ROWS|free",
        accepts=f"`auto`, `free`, or a whole number from 1 to {WIDEST_PASS}",
    )
    graphs: Graphs = _loading(
        "auto", "Whether the fused stack runs in fixed shapes, recorded as CUDA graphs; auto: on CUDA.", panel=None
    )
    load_format: Literal["auto", "dummy"] = _loading(
        "auto", "dummy: random weights, no download; speed and memory are real, the text is noise."
    )
    dummy_agreement: Shares | None = _loading(
        None,
        "Of random weights: how often each exit, shallow to deep or by number, and whole copies agree with the model, "
        "e.g. 0.55,0.75 or 2=0.75,int4=0.97.",
        metavar="SHARE,...",
        accepts="numbers between 0 and 1, rising from exit to exit; named ones too: `2=0.75`, `int4=0.97`",
    )

    @property
    def quantizes_fused(self) -> bool:
        """Return whether the fused stack quantizes the weights."""
        return self.quantization in get_args(Quantization)

    @property
    def needs_bitsandbytes(self) -> bool:
        """Return whether that library quantizes the weights."""
        return self.quantization != "none" and not self.quantizes_fused

    def to_record(self) -> dict[str, Any]:
        """Return the values by name, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


_TYPES = get_type_hints(Settings, include_extras=True)
SETTINGS = {
    one.name: replace(one.metadata["told"], name=one.name, type=_TYPES[one.name], default=one.default)
    for one in fields(Settings)
}
"""All settings by name, in the order in which they are shown."""
