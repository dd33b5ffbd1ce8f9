"""Groups of options shared by commands, each defined once as a dataclass that commands take as one argument."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hispec_cli import completion
from hispec_cli.ui.console import choose_color


class Format(StrEnum):
    """How an answer is written to stdout."""

    auto = "auto"
    plain = "plain"
    json = "json"
    jsonl = "jsonl"

    @property
    def is_json(self) -> bool:
        """Whether answers are JSON values."""
        return self in (Format.json, Format.jsonl)


class Color(StrEnum):
    """When to colour."""

    auto = "auto"
    always = "always"
    never = "never"


class Mode(StrEnum):
    """Which levels take part."""

    hispec = "hispec"
    single_layer = "single-layer"
    autoregressive = "autoregressive"


class Stack(StrEnum):
    """What runs the layers."""

    auto = "auto"
    fused = "fused"
    transformers = "transformers"


class DeviceMap(StrEnum):
    """Over how many devices the layers go."""

    none = "none"
    auto = "auto"


class Quantization(StrEnum):
    """How many bits a weight has."""

    none = "none"
    four = "4bit"
    eight = "8bit"


class LoadFormat(StrEnum):
    """Where the weights come from."""

    auto = "auto"
    dummy = "dummy"


class Dtype(StrEnum):
    """Of the weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Policy(StrEnum):
    """What decides when to draft on and when to judge."""

    static = "static"
    adaptive = "adaptive"


_model = partial(typer.Option, rich_help_panel="Model")
_decoding = partial(typer.Option, rich_help_panel="Decoding")
_sampling = partial(typer.Option, rich_help_panel="Sampling")
_hardware = partial(typer.Option, rich_help_panel="Weights and devices")
message_option = partial(typer.Option, rich_help_panel="Text")
"""An option in the section on what the model reads and where it ends."""
output_option = partial(typer.Option, rich_help_panel="Output")
"""An option in the section on what is written where, and how it looks."""

OF_PROFILE = "the profile's"
"""The default of an option that a profile answers."""


@dataclass(frozen=True)
class CommonOptions:
    """What every command takes."""

    color: Annotated[
        Color,
        typer.Option(
            envvar="HISPEC_COLOR",
            callback=choose_color,
            is_eager=True,
            help="Colours; auto: where stderr is a terminal and NO_COLOR is unset.",
        ),
    ] = Color.auto
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False


@dataclass(frozen=True)
class ProfileOptions:
    """Which model, and which of its exits."""

    profile: Annotated[
        str | None,
        _model(
            metavar="NAME|FILE",
            autocompletion=completion.profiles,
            show_default="HISPEC_PROFILE, else tiny, the shipped model",
            help="A profile, which names the models and how to decode with them.",
        ),
    ] = None
    model: Annotated[
        str | None,
        _model(metavar="ID|PATH", help="An early-exit checkpoint without a profile: a hub id or a folder."),
    ] = None
    draft_exit: Annotated[
        int | None,
        _model(
            min=1,
            metavar="N",
            show_default=f"{OF_PROFILE}; with --model an eighth of the depth",
            help="Layers that draft.",
        ),
    ] = None
    intermediate_exit: Annotated[
        int | None,
        _model(
            min=1,
            metavar="N",
            show_default=f"{OF_PROFILE}; with --model a quarter of the depth",
            help="Layers that judge drafts.",
        ),
    ] = None
    offline: Annotated[
        bool, _model("--offline", envvar="HISPEC_OFFLINE", help="Never touch the network, as HF_HUB_OFFLINE=1.")
    ] = False


@dataclass(frozen=True)
class ModelOptions(ProfileOptions):
    """Which model to load, and how it is talked to."""

    chat_template: Annotated[
        Path | None,
        _model(
            metavar="FILE",
            show_default="HISPEC_CHAT_TEMPLATE, the profile's, else the tokenizer's",
            help="A Jinja chat template; base models have none.",
        ),
    ] = None
    force: Annotated[bool, _model("--force", help="Load models that do not seem to fit the memory that is free.")] = (
        False
    )


DeviceOption = Annotated[
    str | None,
    _hardware(
        metavar="DEVICE", autocompletion=completion.devices, show_default="auto", help="auto, cpu, cuda or cuda:N."
    ),
]
DtypeOption = Annotated[Dtype | None, _hardware(show_default="auto", help="Of the weights; auto: the checkpoint's.")]
StackOption = Annotated[
    Stack | None,
    _hardware(
        show_default="auto",
        help="What runs the layers; auto: the fused stack, which is the faster, for every model that it can run.",
    ),
]
LoadFormatOption = Annotated[
    LoadFormat | None,
    _hardware(
        show_default="auto", help="dummy: random weights, no download; speed and memory are real, the text is noise."
    ),
]
MaxNewTokensOption = Annotated[
    int | None, _decoding(metavar="N", show_default="the profile's, else 256", help="Most tokens of an answer.")
]
ModeOption = Annotated[
    Mode | None,
    _decoding(show_default="hispec", help="All levels, draft and target only, or the target alone."),
]


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode. Unset options come from HISPEC_* variables, the profile, the target's generation config."""

    max_new_tokens: MaxNewTokensOption = None
    draft_tokens: Annotated[
        int | None,
        _decoding(metavar="N", show_default=OF_PROFILE, help="Tokens drafted before the intermediate level judges."),
    ] = None
    validate_every: Annotated[
        int | None,
        _decoding(metavar="N", show_default=OF_PROFILE, help="Waiting tokens at which the target validates."),
    ] = None
    policy: Annotated[
        Policy | None, _decoding(show_default=OF_PROFILE, help="What decides between drafting on and judging.")
    ] = None
    temperature: Annotated[
        float | None,
        _sampling(
            metavar="T",
            show_default="the profile's, the checkpoint's, else 0",
            help="0 always takes the likeliest token.",
        ),
    ] = None
    top_k: Annotated[int | None, _sampling(metavar="N", help="Draw from the N likeliest tokens; 0: from all.")] = None
    top_p: Annotated[
        float | None, _sampling(metavar="P", help="Draw from the likeliest tokens that have this probability.")
    ] = None
    min_p: Annotated[
        float | None, _sampling(metavar="P", help="Draw from tokens this share as likely as the likeliest.")
    ] = None
    repetition_penalty: Annotated[
        float | None, _sampling(metavar="X", help="Above 1 disfavours tokens already there.")
    ] = None
    seed: Annotated[
        int | None,
        _sampling(metavar="N", show_default="drawn", help="The same seed gives the same answer, whatever drafts it."),
    ] = None
    device: DeviceOption = None
    dtype: DtypeOption = None
    stack: StackOption = None
    width: Annotated[
        str | None,
        _hardware(
            metavar="auto|ROWS|free",
            show_default="auto",
            help="Rows of a pass: auto and a number give the same ids in every mode; free is the fastest and may differ "
            "where rounding decides.",
        ),
    ] = None
    device_map: Annotated[
        DeviceMap | None,
        _hardware(
            show_default="none", help="auto: spread the layers over all GPUs, then the CPU's memory, then the disk."
        ),
    ] = None
    max_memory: Annotated[
        str | None,
        _hardware(metavar="DEVICE=SIZE,...", help="What --device-map may use, for example 0=20GB,1=20GB,cpu=60GB."),
    ] = None
    quantization: Annotated[
        Quantization | None,
        _hardware(show_default=OF_PROFILE, help="Quantize the weights while loading; needs bitsandbytes."),
    ] = None
    tensor_parallel: Annotated[
        bool | None,
        _hardware("--tensor-parallel", help="Share every matrix among the processes that torchrun started."),
    ] = None
    load_format: LoadFormatOption = None
    dummy_agreement: Annotated[
        str | None,
        _hardware(
            metavar="SHARE,...",
            help="Of random weights: how often each exit, shallow to deep, agrees with the whole model, e.g. 0.55,0.75.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as `hispec.settings` names them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class AnswerOptions(DecodingOptions):
    """How to decode one answer."""

    mode: ModeOption = None


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take option groups: Typer sees their fields as options, the command gets the dataclasses.

    Args:
        command: some of whose parameters are annotated with a dataclass of this module.
    """
    hints = get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and is_dataclass(hint):
            groups[parameter.name] = hint
            inner = get_type_hints(hint, include_extras=True)
            shown += [_keyword(field.name, inner[field.name], field.default) for field in fields(hint)]
        else:
            shown.append(_keyword(parameter.name, hint, parameter.default))

    def expanded(**values: Any) -> Any:
        built = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        return command(**built, **values)

    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    expanded.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return expanded


def _keyword(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
