"""The definition of every decoding setting: name, type, default and help text.

Options, `HISPEC_*` variables, profile keys, `/set` and the tables of the documentation are generated from `SETTINGS`.
`hispec --help` needs it too, so this module imports nothing that is slow to import.
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
"""The device types of torch that can compute; all but the first may have an index."""
COOLEST = 1e-4
"""The lowest temperature above 0. A lower one could overflow float32, and would not differ from greedy decoding."""
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
    """A function that converts or checks a value; the messages of its `ValueError`s are shown to users.

    Attributes:
        function: returns the value.
        first: whether it runs before the type's own validation.
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
    """Parse the memory of each device, in bytes: `0=20GB,1=20GB,cpu=60GB`. GPUs are given by number.

    Raises:
        BadValueError: the text cannot be parsed.
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
    """Parse the value of an option or a variable, `0.55,0.75` or `2=0.75,int4=0.97`, to numbers, with their names if any."""
    if not isinstance(value, str):
        return value
    found: list[float | tuple[str, float]] = []
    try:
        for part in value.split(","):
            name, named, share = part.rpartition("=")
            found.append((name.strip(), float(share)) if named else float(share))
    except ValueError:
        raise BadValueError(
            f"{value!r} is not a list of shares", "give, for example, 0.55,0.75 or 2=0.75,int4=0.97"
        ) from None
    return tuple(found)


def _device(name: str) -> str:
    if name != "auto" and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d{{1,3}})?", name):
        raise BadValueError(f"{name!r} is not a device", "give auto, cpu, cuda or cuda:N")
    return name


def _width(value: Any) -> Any:
    """Parse the value of an option or a variable, `8`, to a number."""
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    if value not in ("auto", "free") and not (type(value) is int and 1 <= value <= WIDEST_PASS):
        raise BadValueError(f"{value!r} is not a width", f"give auto, free, or rows from 1 to {WIDEST_PASS}")
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
    """The description of a setting; `SETTINGS` completes it with name, type and default of the field in `Settings`.

    Attributes:
        help: the help text, for help pages and the documentation.
        panel: the section of a help page that lists its option; None if it has no option.
        section: the section of a profile that has the setting as a key; None if profiles do not have it.
        checkpoint: the condition under which the target's generation config sets it; None if it never does.
        at_loading: whether it applies when the weights are loaded, so that a chat cannot change it.
        calibration: `found` if a calibration finds it and writes it into a profile, `given` if what a calibration
            measures depends on it, None if neither. The effect of settings at loading is recorded in the environment.
        metavar: the placeholder of the value in help pages, where the type does not give one.
        accepts: a description of the accepted values, where the type does not give one.
        unset: a description of what happens without a value, where the default does not give one.
        offers: the values that a shell completes, where the type does not give them.
        name, type, default: those of the field.
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
        """Return the name of its command-line option."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the name of its environment variable."""
        return PREFIX + self.name.upper()

    @property
    def nullable(self) -> bool:
        """Return whether None is a valid value."""
        return NoneType in get_args(self.type)

    @property
    def kind(self) -> Any:
        """Return the type of its option: a number, a flag, a choice, or else text."""
        held = get_args(self.type)[0] if self.nullable else self.type
        bare = held.__origin__ if get_origin(held) is Annotated else held
        return bare if bare in (int, float, bool) or get_origin(bare) is Literal else str

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the accepted values if the type lists them all; otherwise empty."""
        return get_args(self.kind)

    @property
    def otherwise(self) -> str:
        """Return the value that applies if neither option nor variable sets one, as text for users; empty if there is
        none.
        """
        above = [f"the {one}'s" for one, has in (("profile", self.section), ("checkpoint", self.checkpoint)) if has]
        default = f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        default = self.unset or {"False": "off" if above else "", "None": ""}.get(default, default)
        return ", ".join([*above, f"else {default}"]) if above else default


def _setting(default: Any, help: str, **told: Any) -> Any:  # noqa: A002
    """Return a field of `Settings` with its default and a description; `told` are arguments of `Setting`."""
    return field(default=default, metadata={"told": Setting(help, **told)})


_decoding = partial(_setting, panel="Decoding", section="decoding")
_sampling = partial(_setting, panel="Sampling", section="sampling", checkpoint="sampling")
_loading = partial(_setting, panel="Weights and devices", at_loading=True)


@dataclass(frozen=True)
class Settings:
    """The decoding settings. The defaults apply where no other source has a value; `hispec.precedence` has the
    order.
    """

    mode: Literal["hispec", "single-layer", "autoregressive"] = _decoding(
        "hispec", "Decode with all levels, with draft and target only, or with the target alone.", section=None
    )
    draft_tokens: Count = _decoding(
        2, "Number of tokens to draft before the intermediate level verifies them.", calibration="found"
    )
    validate_every: Count = _decoding(
        4, "Number of waiting tokens at which the target verifies them.", calibration="found"
    )
    policy: Literal["static", "adaptive"] = _decoding(
        "adaptive",
        "Decide when to verify by confidence and measured costs (adaptive), or by fixed lengths (static). static is the "
        "default if only lengths are given.",
        calibration="found",
    )
    lookup: bool | None = _decoding(
        None,
        "Add a lowest level that drafts from n-grams of the session's texts and from recycled logits.",
        unset="as the levels say",
    )
    max_new_tokens: Count = _decoding(256, "Maximum number of tokens in an answer.", checkpoint="always")
    intermediate_top_k: Count = _decoding(
        1,
        "Let the intermediate level accept a token that is among its N most probable.",
        panel=None,
        calibration="given",
    )
    temperature: Temperature = _sampling(
        0.0,
        "Sampling temperature; 0 is greedy decoding, which always takes the most probable token.",
        metavar="T",
        accepts=f"0, or a number from {COOLEST} to {HOTTEST:g}",
    )
    top_k: Annotated[int, Range(ge=0, le=MAX_INT)] = _sampling(
        0, "Sample from the N most probable tokens only; 0 is no limit."
    )
    top_p: Share = _sampling(
        1.0, "Sample from the fewest most probable tokens whose total probability is P.", metavar="P"
    )
    min_p: Annotated[float, Range(ge=0, le=1)] = _sampling(
        0.0, "Sample from tokens at least P times as probable as the most probable one.", metavar="P"
    )
    repetition_penalty: Annotated[float, Range(ge=WEAKEST, le=STRONGEST)] = _sampling(
        1.0, "Penalize tokens that already occur in the text; 1 is no penalty.", checkpoint="always", metavar="X"
    )
    seed: Seed | None = _setting(
        None,
        "Random seed. The same seed gives the same answer in every mode and with every profile of the model.",
        panel="Sampling",
        unset="drawn",
    )
    device: Annotated[str, Read(_device)] = _loading(
        "auto",
        "Device to decode on: auto, cpu, cuda or cuda:N.",
        metavar="DEVICE",
        accepts="`auto`, `cpu`, `cuda`, `cuda:N`, or another device of torch",
        offers=("auto", "cpu", "cuda"),
    )
    dtype: Dtype = _loading(
        "auto",
        "Data type of the weights. auto is the checkpoint's, or bfloat16 on a CPU that is faster with it.",
        section="target",
    )
    stack: Literal["auto", "fused", "transformers"] = _loading(
        "auto",
        "Implementation of the layers. auto is the fused stack, the faster one, for every model that it supports.",
    )
    device_map: Literal["none", "auto"] = _loading(
        "none", "auto spreads the layers over all GPUs, then the CPU's memory, then the disk."
    )
    max_memory: Annotated[str, Read(_memory)] = _loading(
        "",
        "Memory that --device-map may use on each device, for example 0=20GB,1=20GB,cpu=60GB.",
        metavar="DEVICE=SIZE,...",
        accepts="devices and their memory",
    )
    quantization: Literal["none", "int4", "int8", "4bit", "8bit"] = _loading(
        "none",
        "Quantize the weights while loading: int4 and int8 on the fused stack, 4bit and 8bit with bitsandbytes.",
        section="target",
    )
    tensor_parallel: bool = _loading(False, "Split every matrix among the processes that torchrun started.")
    width: Width = _loading(
        "auto",
        "Number of rows of a pass. auto and a number give the same token ids in every mode; free is the fastest, and "
        "token ids may differ where two logits are equal but for rounding.",
        metavar="auto|ROWS|free",
        accepts=f"`auto`, `free`, or a whole number from 1 to {WIDEST_PASS}",
    )
    graphs: Graphs = _loading(
        "auto", "Run the fused stack in fixed shapes, recorded as CUDA graphs. auto does so on CUDA.", panel=None
    )
    load_format: Literal["auto", "dummy"] = _loading(
        "auto", "dummy draws random weights instead of a download: speed and memory are real, the text is noise."
    )
    dummy_agreement: Shares | None = _loading(
        None,
        "For random weights, how often each exit agrees with the model, shallow to deep or by number, and each whole "
        "copy by its format, e.g. 0.55,0.75 or 2=0.75,int4=0.97.",
        metavar="SHARE,...",
        accepts="numbers between 0 and 1, rising from exit to exit; named ones too: `2=0.75`, `int4=0.97`",
    )

    @property
    def quantizes_fused(self) -> bool:
        """Return whether the fused stack quantizes the weights."""
        return self.quantization in get_args(Quantization)

    @property
    def needs_bitsandbytes(self) -> bool:
        """Return whether bitsandbytes quantizes the weights."""
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
