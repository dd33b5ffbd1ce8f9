"""What decoding will need of a device's memory, before anything is loaded, and whether it is there.

Weights are counted exactly, from safetensors headers where they can be had, else from `config.json`; the KV cache is as
large as the context that is asked for; the workspace is estimated. docs/memory.md has the formulas, and what a
measurement made of them.
"""

import json
from dataclasses import dataclass
from typing import Any

from hispec.counts import counted
from hispec.errors import UnavailableError
from hispec.machine import Device, device_named, together
from hispec.models.config import FAMILIES
from hispec.models.headers import Headers, fetch_headers, read_headers
from hispec.models.metadata import read_json, shipped_config
from hispec.models.shape import FLOATS, PER_WEIGHT, Shape, fastest_dtype, read_shape
from hispec.profile import Profile, Target, models_of
from hispec.settings import Settings

PROMPT_TOKENS = 1024
"""What a prompt is taken for while it is not known."""
STEP, CHUNK, WIDEST = 256, 512, 16
"""Positions by which a KV cache grows; rows of a prompt that the fused stack runs at once; its widest kept buffers."""
HUB_TIMEOUT = 10.0
"""Seconds for each request for a header."""
LOGIT_BYTES = 4 * 3
"""Logits, and what is drawn from and what is judged, as float32."""
SAFETENSORS_FLOATS = ("F64", "F32", "F16", "BF16")
NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class InsufficientMemoryError(UnavailableError):
    """Less memory is free than is needed.

    Args:
        summary: how much.
        terms: the arithmetic.
    """

    def __init__(self, summary: str, terms: str) -> None:
        super().__init__(
            f"{summary}: {terms}",
            "choose a smaller model or dtype, a shorter --max-new-tokens or another --device, or try anyway with --force",
        )
        self.summary = summary


@dataclass(frozen=True)
class ModelNeed:
    """Bytes that one model takes.

    Attributes:
        model: as the profile names it.
        role: target, draft or intermediate.
        layers: its depth.
        parameters: its numbers, quantized ones counted as what they stand for.
        dtype: what it computes with, and its KV cache.
        quantization: `4bit`, `8bit`, `stored` as its checkpoint has it, or None.
        weights, kv_cache, workspace: bytes.
        download: bytes that are not on this machine yet.
        source: what the weights were counted from: `safetensors` or `config.json`.
    """

    model: str
    role: str
    layers: int
    parameters: int
    dtype: str
    quantization: str | None
    weights: int
    kv_cache: int
    workspace: int
    download: int
    source: str


@dataclass(frozen=True)
class Need:
    """What a profile takes: its models, and the positions of their KV caches."""

    models: tuple[ModelNeed, ...]
    positions: int

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(need.weights + need.kv_cache for need in self.models) + self.workspace

    @property
    def workspace(self) -> int:
        """Bytes; the models run one after the other, but keep what they have allocated."""
        return sum(need.workspace for need in self.models)

    @property
    def download(self) -> int:
        """Bytes."""
        return sum(need.download for need in self.models)

    def lines(self) -> list[tuple[int, str]]:
        """The arithmetic: bytes, and what they are."""
        rows = [(need.weights, _weights_of(need)) for need in self.models]
        rows += [
            (need.kv_cache, f"KV cache of {counted(self.positions, 'position')} ({need.role}, {need.dtype})")
            for need in self.models
        ]
        return [*rows, (self.workspace, "workspace, about")]


def estimate(
    profile: Profile,
    settings: Settings,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    quantization: str | None = None,
    timeout: float | None = None,
) -> Need | None:
    """What a profile needs on its device.

    Args:
        profile: which models.
        settings: mode, dtype, stack, lengths.
        prompt_tokens: of the text that is read.
        quantization: `4bit` or `8bit` as bitsandbytes does it while loading; by default that of the settings.
        timeout: seconds for each request to the hub, for what is not on this machine; None asks nobody.

    Returns:
        The need; None where the configuration of a model is neither here nor shipped, or too little is known of its
        weights.
    """
    if quantization is None and settings.quantization != "none":
        quantization = settings.quantization
    needs = []
    longest = prompt_tokens + settings.max_new_tokens
    for model, revision in models_of(profile, settings.mode).items():
        target = Target(model=model, revision=revision)
        values = read_json(target, "config.json") or _shipped(model)
        shape = read_shape(values) if values else None
        if shape is None:
            return None
        if model == profile.target.model:
            longest = min(longest, shape.context)
        needs.append((target, shape))
    positions = -(-longest // STEP) * STEP
    models = []
    for target, shape in needs:
        need = _need(profile, target, shape, settings, positions, quantization, timeout)
        if need is None:
            return None
        models.append(need)
    return Need(tuple(models), positions)


def check_profile(
    profile: Profile,
    settings: Settings,
    device: str,
    prompt_tokens: int | None = None,
    *,
    spread: bool = False,
    quantization: str | None = None,
) -> None:
    """Refuse a profile whose models do not fit; what cannot be known is not refused.

    Args:
        profile: whose configurations are on this machine.
        settings: as for `estimate`.
        device: as torch calls it.
        prompt_tokens: of the text that is read, `PROMPT_TOKENS` where that is not known.
        spread: whether the layers go over all devices instead.
        quantization: as for `estimate`.

    Raises:
        InsufficientMemoryError: with the arithmetic.
    """
    place = together() if spread else device_named(device)
    need = estimate(
        profile,
        settings,
        prompt_tokens=prompt_tokens or PROMPT_TOKENS,
        quantization=quantization,
        timeout=HUB_TIMEOUT,
    )
    if need is not None and place is not None:
        check_fits(need, place, profile.name)


def check_fits(need: Need, device: Device, name: str) -> None:
    """Refuse what does not fit.

    Args:
        need: what is needed.
        device: where.
        name: of the profile.

    Raises:
        InsufficientMemoryError: with the arithmetic.
    """
    if need.total <= device.free:
        return
    terms = " + ".join(f"{gigabytes(size)} {what}" for size, what in need.lines())
    raise InsufficientMemoryError(
        f"{name} needs {gigabytes(need.total)} on {device.name}, and {gigabytes(device.free)} are free", terms
    )


def prompt_size(text: str) -> int:
    """Tokens that a text may have, before a tokenizer is there: three bytes each, and room for a chat template."""
    return len(text.encode("utf-8", errors="replace")) // 3 + 64


def gigabytes(size: int) -> str:
    """Bytes as 10^9 of them, the unit that checkpoints and GPUs are sold in."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e9:.4f} GB"


def _need(
    profile: Profile,
    target: Target,
    shape: Shape,
    settings: Settings,
    positions: int,
    quantization: str | None,
    timeout: float | None,
) -> ModelNeed | None:
    """What one model needs; None for weights that cannot be seen, of a family whose `config.json` does not tell them."""
    headers = None
    if settings.load_format != "dummy":
        headers = read_headers(target)
        if headers is None and timeout is not None:
            headers = fetch_headers(target, timeout)
    if headers is None and shape.family not in FAMILIES:
        return None
    dtype = _dtype(settings, shape, headers)
    item = FLOATS[dtype] // 8
    bits = PER_WEIGHT.get(quantization or "", shape.stored_bits)
    if headers is not None:
        parameters, weights = _count(headers, shape, dtype, quantization)
        download = headers.download
    else:
        parameters, weights = shape.parameters, shape.weights(dtype, bits)
        own = shape.dtype if shape.dtype in FLOATS else dtype
        download = 0 if settings.load_format == "dummy" else shape.weights(own, shape.stored_bits)
    return ModelNeed(
        model=target.model,
        role=_role(profile, target.model),
        layers=shape.layers,
        parameters=parameters,
        dtype=dtype,
        quantization=quantization or ("stored" if shape.stored_bits is not None else None),
        weights=weights,
        kv_cache=shape.kv_cache(positions, dtype),
        workspace=_workspace(shape, settings, positions, item)
        + (_words(profile, target.model) + _packed(shape, settings, dtype)) * shape.hidden * item,
        download=download,
        source="config.json" if headers is None else "safetensors",
    )


def _count(headers: Headers, shape: Shape, dtype: str, quantization: str | None) -> tuple[int, int]:
    """Parameters and bytes of what a checkpoint stores, once loaded."""
    parameters, bits = 0, 0.0
    for name, stored in headers.tensors.items():
        if shape.tied and name == "lm_head.weight":  # the embedding again
            continue
        linear = len(stored.shape) == 2 and ".layers." in name
        if stored.dtype not in SAFETENSORS_FLOATS:  # quantized: as it is
            each: float = stored.bits
        elif quantization is not None and linear:
            each = PER_WEIGHT[quantization]
        else:
            each = FLOATS[dtype]
        parameters += stored.numbers
        bits += stored.numbers * each
    return shape.parameters if shape.stored_bits is not None else parameters, int(bits) // 8


def _workspace(shape: Shape, settings: Settings, positions: int, item: int) -> int:
    """Bytes for everything else, estimated.

    Activations of the rows of a prompt that are run at once, scores of their attention where a kernel holds them,
    hidden states carried to the next level, logits of judged tokens, tables of rotary embeddings and masks.
    """
    fused = _fused(shape, settings)
    rows = min(positions, CHUNK) if fused else positions
    projected = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    activations = rows * (4 * shape.hidden + 2 * projected + 3 * shape.inner) * item
    scores = shape.heads * rows * positions * 4
    carried = positions * shape.hidden * item
    logits = (settings.validate_every + settings.draft_tokens + 1) * shape.vocab * LOGIT_BYTES
    tables = 2 * positions * (shape.head_size + WIDEST * shape.heads // shape.kv_heads) * item
    return activations + scores + carried + logits + tables


def _dtype(settings: Settings, shape: Shape, headers: Headers | None) -> str:
    """As loading chooses it: what is asked for, else what the configuration says, else what the tensors are."""
    if settings.dtype in FLOATS:
        return settings.dtype
    special = settings.device_map != "none" or settings.quantization != "none" or settings.tensor_parallel
    if shape.dtype in FLOATS and (special or shape.stored_bits is not None):
        return str(shape.dtype)
    if shape.dtype in FLOATS:
        device = device_named(settings.device)
        return str(fastest_dtype(shape.dtype, shape.hidden, device.name if device is not None else settings.device))
    stored = headers.tensors.values() if headers is not None else ()
    first = next((tensor.dtype for tensor in stored if tensor.dtype in SAFETENSORS_FLOATS), "")
    return NAMES.get(first, "float32")


def _role(profile: Profile, model: str) -> str:
    if model == profile.target.model:
        return "target"
    return "draft" if profile.draft is not None and profile.draft.model == model else "intermediate"


def _words(profile: Profile, model: str) -> int:
    """How many rows of a model's head are copied for levels that read only some words."""
    levels = [level for level in (profile.draft, profile.intermediate) if level is not None]
    return sum({level.head or 0 for level in levels if (level.model or profile.target.model) == model})


def _packed(shape: Shape, settings: Settings, dtype: str) -> int:
    """How many rows of a tied head are held twice: as the embedding, and packed for a CPU."""
    device = device_named(settings.device)
    on_cpu = device is not None and device.name.startswith("cpu")
    return shape.vocab if on_cpu and shape.tied and dtype != "float16" and _fused(shape, settings) else 0


def _fused(shape: Shape, settings: Settings) -> bool:
    return shape.family in FAMILIES and settings.stack != "transformers" and shape.stored_bits is None


def _shipped(model: str) -> dict[str, Any] | None:
    path = shipped_config(model)
    return json.loads(path.read_text(encoding="utf-8")) if path is not None else None


def _weights_of(need: ModelNeed) -> str:
    size = FLOATS[need.dtype] // 8
    each = f"x {size} bytes, {need.dtype}" if need.quantization is None else f"quantized: {need.quantization}"
    return f"weights of {need.model} ({need.role}, {need.parameters / 1e9:.3f} billion {each}, from {need.source})"
