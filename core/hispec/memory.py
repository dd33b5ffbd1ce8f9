"""Estimates the memory that decoding will need, before anything is loaded, and checks that it is free.

Weights are counted exactly, from safetensors headers where they can be had, else from `config.json`; the KV cache is as
large as the context that is asked for; the workspace is estimated. docs/memory.md has the formulas, and what a
measurement made of them.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from hispec.counts import counted
from hispec.errors import UnavailableError
from hispec.limits import CACHE_STEP, FREE_ROWS, SMALL_MATRIX, WIDEST, WIDEST_FIXED
from hispec.machine import Device, device_named, packs_as_float16, together
from hispec.models.checkpoint import Checkpoint, checkpoints_of
from hispec.models.checkpoint_files import CONFIG
from hispec.models.config import ModelConfig, read_config
from hispec.models.dtypes import FLOATS, STORED, bits_per_weight, heads_in_8_bits, packed_float16
from hispec.models.families import FAMILIES
from hispec.models.tensors import Tensors
from hispec.profile import Profile, copies_of
from hispec.settings import Settings

PROMPT_TOKENS = 1024
"""The assumed length of a prompt in tokens, while it is not known."""
HUB_TIMEOUT = 10.0
"""Seconds for each request for a header."""
LOGIT_BYTES = 4 * 3
"""Bytes of a logit, its copy that sampling changes, and the one that is verified, in float32."""


class InsufficientMemoryError(UnavailableError):
    """Less memory is free than is needed.

    Args:
        summary: the need in one sentence.
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
        model: the name that the profile has for the model.
        role: target, draft or intermediate.
        layers: its depth.
        parameters: the number of its parameters; quantized ones count as the values that they stand for.
        dtype: the dtype of the computation and of the KV cache.
        quantization: `4bit`, `8bit`, `stored` as its checkpoint has it, or None.
        weights, copies, kv_cache, workspace: bytes; the copies are those that levels of other weights read.
        download: bytes that are not on this machine yet.
        source: the file that the parameters were counted from: `safetensors`, `gguf` or `config.json`.
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
    copies: int = 0


@dataclass(frozen=True)
class Need:
    """The memory that a profile needs: its models, and the positions of their KV caches."""

    models: tuple[ModelNeed, ...]
    positions: int

    @property
    def total(self) -> int:
        """Return the bytes of all of it."""
        return sum(need.weights + need.copies + need.kv_cache for need in self.models) + self.workspace

    @property
    def workspace(self) -> int:
        """Return bytes; the models run one after the other, but keep what they have allocated."""
        return sum(need.workspace for need in self.models)

    @property
    def download(self) -> int:
        """Return the bytes that are yet to be downloaded."""
        return sum(need.download for need in self.models)

    def lines(self) -> list[tuple[int, str]]:
        """Return the terms of the sum: bytes, and a description."""
        rows = [(need.weights, _weights_of(need)) for need in self.models]
        rows += [(need.copies, f"quantized copies of {need.model}") for need in self.models if need.copies]
        rows += [
            (need.kv_cache, f"KV cache of {counted(self.positions, 'position')} ({need.role}, {need.dtype})")
            for need in self.models
        ]
        return [*rows, (self.workspace, "workspace, about")]


def estimate(
    profile: Profile, settings: Settings, *, prompt_tokens: int = PROMPT_TOKENS, timeout: float | None = None
) -> Need | None:
    """Return the memory that a profile needs on its device.

    Args:
        profile: the profile whose models are counted.
        settings: mode, device, dtype, stack, quantization, lengths.
        prompt_tokens: the length of the prompt in tokens.
        timeout: the seconds that each request to the hub may take, for what is not on this machine; None sends none.

    Returns:
        The need; None where the configuration of a model is neither here nor shipped, or too little is known of its
        weights.
    """
    dummy = settings.load_format == "dummy"
    configs = {one: _config_of(one) for one in checkpoints_of(profile, settings.mode, dummy=dummy).values()}
    longest, models = prompt_tokens + settings.max_new_tokens, []
    for checkpoint, config in configs.items():
        if config is None:
            return None
        if checkpoint.name == profile.target.model:  # the first
            longest = min(longest, config.context)
        tensors = None if dummy else checkpoint.tensors_here()
        if tensors is None and timeout is not None and not dummy:
            tensors = checkpoint.fetch_headers(timeout)
        if tensors is None and config.family not in FAMILIES:
            return None
        models.append(_Estimate(profile, settings, checkpoint, config, tensors))
    positions = [model.positions(longest) for model in models]
    return Need(tuple(model.need(own) for model, own in zip(models, positions, strict=True)), max(positions))


def chosen_device(settings: Settings) -> Device | None:
    """Return the device that settings choose, all devices as one where layers are spread; None where it is not
    known.
    """
    return together() if settings.device_map == "auto" else device_named(settings.device)


def check_profile(profile: Profile, settings: Settings, prompt_tokens: int | None = None) -> None:
    """Raise if a profile's models do not fit; if the need is not known, there is no check.

    Args:
        profile: a profile whose configurations are on this machine.
        settings: the settings, as for `estimate`.
        prompt_tokens: the length of the prompt in tokens, or `PROMPT_TOKENS` where it is not known.

    Raises:
        InsufficientMemoryError: the memory does not suffice; the message shows the sum.
    """
    place = chosen_device(settings)
    need = estimate(profile, settings, prompt_tokens=prompt_tokens or PROMPT_TOKENS, timeout=HUB_TIMEOUT)
    if need is not None and place is not None:
        check_fits(need, place, profile.name)


def copies_fit(profile: Profile, settings: Settings) -> bool:
    """Return whether copies, caches and workspace fit beside weights that are loaded; True where that is not known."""
    place = chosen_device(settings)
    need = estimate(profile, settings, prompt_tokens=PROMPT_TOKENS, timeout=HUB_TIMEOUT)
    if need is None or place is None:
        return True
    return sum(each.copies + each.kv_cache + each.workspace for each in need.models) <= place.free


def check_fits(need: Need, device: Device, name: str) -> None:
    """Refuse what does not fit.

    Args:
        need: the memory that is needed.
        device: the device that must hold it.
        name: the name of the profile.

    Raises:
        InsufficientMemoryError: the memory does not suffice; the message shows the sum.
    """
    if need.total <= device.free:
        return
    terms = " + ".join(f"{gigabytes(size)} {what}" for size, what in need.lines())
    raise InsufficientMemoryError(
        f"{name} needs {gigabytes(need.total)} on {device.name}, and {gigabytes(device.free)} are free", terms
    )


def prompt_size(text: str) -> int:
    """Return tokens that a text may have, before a tokenizer is there: three bytes each, and room for a chat template."""
    return len(text.encode("utf-8", errors="replace")) // 3 + 64


def gigabytes(size: int) -> str:
    """Return a size in units of 10^9 bytes, those of checkpoints and GPUs."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e9:.4f} GB"


def _config_of(checkpoint: Checkpoint) -> ModelConfig | None:
    """Return a model's configuration, from this machine or as shipped; None where neither exists."""
    values = checkpoint.read_here(CONFIG)
    if values is None and checkpoint.shipped_config is not None:
        values = replace(checkpoint, dummy=True).read_here(CONFIG)
    return read_config(values) if values else None


@dataclass(frozen=True)
class _Estimate:
    """The estimate for one model, from its configuration and, where their headers can be read, its tensors."""

    profile: Profile
    settings: Settings
    checkpoint: Checkpoint
    config: ModelConfig
    tensors: Tensors | None

    @cached_property
    def device(self) -> str:
        """Return the device as torch calls it."""
        place = device_named(self.settings.device)
        return self.settings.device if place is None else place.name

    @property
    def special(self) -> bool:
        """Return whether only the modules of `transformers` can quantize the weights in this way."""
        return self.settings.needs_bitsandbytes

    @property
    def fused(self) -> bool:
        """Return whether the fused stack is to run it."""
        return self.config.why_not_fused is None and not self.special and self.settings.stack != "transformers"

    @cached_property
    def dtype(self) -> str:
        """Return the dtype as loading chooses it."""
        asked = self.config.faster_dtype(self.settings.dtype, self.device, as_stored=self.special)
        return self.config.settle_dtype(asked, None if self.tensors is None else self.tensors.dtype)

    @cached_property
    def on_grid(self) -> frozenset[str]:
        """Return the tensors that keep their 4 bits, where the others stay as they are; see `Tensors.on_grid`."""
        return self.tensors.on_grid if self.tensors is not None and self.quantization == "int4" else frozenset()

    @property
    def quantization(self) -> str | None:
        """Return the quantization while loading, None for weights as they are stored."""
        return None if self.settings.quantization == "none" else self.settings.quantization

    def positions(self, longest: int) -> int:
        """Return the positions of a KV cache for some tokens; where shapes are fixed, padded to a power of two."""
        graphs = self.settings.graphs
        if self.fused and (graphs == "on" or (graphs == "auto" and self.device.startswith("cuda"))):
            width = self.settings.width
            padding = max(WIDEST_FIXED, width) if isinstance(width, int) else WIDEST_FIXED
            return 1 << (longest + padding - 1).bit_length()
        return -(-longest // CACHE_STEP) * CACHE_STEP

    def need(self, positions: int) -> ModelNeed:
        """Return the memory that the model needs with a cache of that many positions."""
        config, tensors, dtype = self.config, self.tensors, self.dtype
        bits = config.stored_bits
        if self.quantization is not None:
            bits = self._bits_of_layer(self.quantization) * config.num_layers / config.layer_matrices
        if tensors is not None:
            parameters, weights = self._count(tensors)
            download = tensors.download
        else:
            parameters, weights = config.parameters, config.weights(dtype, bits)
            own = config.dtype if config.dtype in FLOATS else dtype
            download = 0 if self.checkpoint.dummy else config.weights(own, config.stored_bits)
        copied = sum(self._matrix(config.hidden_size, rows) for rows in self._reduced_heads) + self._packed
        return ModelNeed(
            model=self.checkpoint.name,
            role=self._role,
            layers=config.num_layers,
            parameters=parameters,
            dtype=dtype,
            quantization=self.quantization or ("stored" if config.stored_bits is not None else None),
            weights=weights + self._quantized_head,
            kv_cache=config.kv_cache(positions, dtype),
            workspace=self._workspace(positions) + copied,
            download=download,
            source="config.json" if tensors is None else tensors.source,
            copies=self._copies,
        )

    @property
    def _quantized_head(self) -> int:
        """Return the bytes that a quantized head adds if it is tied to the embedding; else a negative number, which it saves."""
        if not self.settings.quantizes_fused or self.on_grid:
            return 0
        plain = 0 if self.config.tied else FLOATS[self.dtype]
        bits = bits_per_weight(self.settings.quantization, self.config.hidden_size, self.device, self.config.vocab_size)
        return int(self.config.vocab_size * self.config.hidden_size * (bits - plain)) // 8

    @property
    def _copies(self) -> int:
        """Return bytes of the quantized weights that levels read: the layers up to the deepest exit, and perhaps a head."""
        config = self.config
        if self.checkpoint.name != self.profile.target.model:
            return 0
        head, bits = config.vocab_size * config.hidden_size, 0.0
        for quantization, layers in copies_of(self.profile, self.settings.mode, config.num_layers).items():
            bits += layers * self._bits_of_layer(quantization)
            if heads_in_8_bits(self.device):
                bits += head * bits_per_weight("int8", config.hidden_size, self.device, config.vocab_size)
        return int(bits) // 8

    def _bits_of_layer(self, quantization: str) -> float:
        """Return the bits of one layer's quantized matrices."""
        shapes = self.config.layer_shapes
        return sum(
            inputs * outputs * bits_per_weight(quantization, inputs, self.device, outputs) for inputs, outputs in shapes
        )

    def _count(self, tensors: Tensors) -> tuple[int, int]:
        """Return parameters and bytes of a checkpoint's tensors once they are loaded."""
        parameters, bits = 0, 0.0
        for name, stored in tensors.stored.items():
            if self.config.tied and name == "lm_head.weight":  # the embedding again
                continue
            linear = len(stored.shape) == 2 and ".layers." in name
            if stored.dtype not in STORED:  # quantized: as it is
                each: float = stored.bits
            elif self.quantization is not None and linear and (name in self.on_grid or not self.on_grid):
                each = bits_per_weight(self.quantization, stored.shape[1], self.device, stored.shape[0])
            else:
                each = FLOATS[self.dtype]
            parameters += stored.numbers
            bits += stored.numbers * each
        return self.config.parameters if self.config.stored_bits is not None else parameters, int(bits) // 8

    def _workspace(self, positions: int) -> int:
        """Return bytes for everything else, estimated.

        Activations of the rows of a prompt that are run at once, scores of their attention where a kernel holds them,
        hidden states carried to the next level, logits of verified tokens, tables of rotary embeddings and masks.
        """
        config, settings, item = self.config, self.settings, FLOATS[self.dtype] // 8
        rows = min(positions, FREE_ROWS) if self.fused else positions
        projected = (config.num_heads + 2 * config.num_kv_heads) * config.head_size
        activations = rows * (4 * config.hidden_size + 2 * projected + 3 * config.intermediate_size) * item
        scores = config.num_heads * rows * positions * 4
        carried = positions * config.hidden_size * item
        logits = (settings.validate_every + settings.draft_tokens + 1) * config.vocab_size * LOGIT_BYTES
        tables = 2 * positions * (config.head_size + WIDEST * config.num_heads // config.num_kv_heads) * item
        return activations + scores + carried + logits + tables

    @property
    def _role(self) -> str:
        if self.checkpoint.name == self.profile.target.model:
            return "target"
        draft = self.profile.draft
        return "draft" if draft is not None and draft.model == self.checkpoint.name else "intermediate"

    @property
    def _reduced_heads(self) -> set[int]:
        """Return how many rows of the head are copied for each reduced head of a level."""
        levels = [level for level in (self.profile.draft, self.profile.intermediate) if level is not None]
        own = [level for level in levels if (level.model or self.profile.target.model) == self.checkpoint.name]
        return {level.head for level in own if level.head}

    @property
    def _packed(self) -> int:
        """Return the bytes that packing adds to the weights: its padding, and a head that the embedding holds, too."""
        if self._packing is None:
            return 0
        config = self.config
        matrices = [(config.hidden_size, config.vocab_size)]
        matrices += [] if self.on_grid else list(config.layer_shapes) * config.num_layers
        added = sum(self._matrix(*shape) - self._plain(*shape) for shape in matrices)
        return added + (self._plain(*matrices[0]) if config.tied else 0)

    @property
    def _packing(self) -> Literal["onednn", "float16"] | None:
        """Return the form that a CPU's matrices are packed in; see `linear.packing`."""
        if self.device != "cpu" or not self.fused or (self.quantization is not None and not self.on_grid):
            return None
        large = self.config.largest_matrix >= SMALL_MATRIX
        if packs_as_float16(self.dtype):
            return "float16" if large else None
        return "onednn" if self.dtype == "bfloat16" or (self.dtype == "float32" and large) else None

    def _matrix(self, inputs: int, outputs: int) -> int:
        """Return the bytes of a matrix that is not quantized."""
        return packed_float16(inputs, outputs) if self._packing == "float16" else self._plain(inputs, outputs)

    def _plain(self, inputs: int, outputs: int) -> int:
        return inputs * outputs * FLOATS[self.dtype] // 8


def _weights_of(need: ModelNeed) -> str:
    size = FLOATS[need.dtype] // 8
    each = f"x {size} bytes, {need.dtype}" if need.quantization is None else f"quantized: {need.quantization}"
    return f"weights of {need.model} ({need.role}, {need.parameters / 1e9:.3f} billion {each}, from {need.source})"
