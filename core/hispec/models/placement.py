"""The placement of a model: its dtype, its stack, and its devices: one, several, or shared among ranks."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from hispec.errors import UnavailableError, UsageError
from hispec.extras import require
from hispec.launched import launched
from hispec.models.config import ModelConfig
from hispec.models.parts import find_parts
from hispec.models.sharding import Shard
from hispec.settings import Quantization, Settings, parse_memory

_offloaded: list[TemporaryDirectory[str]] = []
"""The folder of weights that are on disk in another format than in their checkpoint; removed when the process ends."""

CPU = torch.device("cpu")
QUANTIZED_BITS = {"4bit": 4, "8bit": 8}


@dataclass(frozen=True)
class Placement:
    """The way in which a model is loaded; by default in its checkpoint's dtype, on the CPU.

    Attributes:
        device: the device of the weights, unless they are spread.
        dtype: a key of `hispec.models.dtypes.FLOATS`, or `auto` for the checkpoint's own or a faster one.
        stack: `fused`, `transformers`, or `auto` for the fused one where it applies.
        spread: over all GPUs, then the CPU's memory, then the disk.
        max_memory: bytes of devices (GPU numbers, `cpu`) that may be used; what `accelerate` finds free where empty.
        quantization: a key of `QUANTIZED_BITS`, of bitsandbytes; `int4` or `int8`, of the fused stack; or `none`.
        shard: this process's part, if the processes that torchrun started share every matrix.
        shallow: the number of layers that levels below the target read, which stay on the first device.
        stages: numbers of layers on each of several GPUs, in their order, for the fused stack; empty for one device.
    """

    device: torch.device = CPU
    dtype: str = "auto"
    stack: str = "auto"
    spread: bool = False
    max_memory: Mapping[int | str, int] = field(default_factory=dict)
    quantization: str = "none"
    shard: Shard | None = None
    shallow: int = 0
    stages: tuple[tuple[torch.device, int], ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> "Placement":
        """Return the placement that settings ask for.

        Raises:
            UsageError: a device that torch does not know.
            UnavailableError: this machine lacks the device, or the library that quantizes.
        """
        device, shard = choose_device(settings.device), None
        if settings.tensor_parallel:
            place = launched()
            shard = Shard(place.rank, place.count)
            device = torch.device("cuda", place.local_rank) if device.type == "cuda" else device
        if settings.needs_bitsandbytes:
            require("quantization", f"--quantization {settings.quantization}")
        return cls(
            device,
            settings.dtype,
            settings.stack,
            settings.device_map == "auto",
            parse_memory(settings.max_memory),
            settings.quantization,
            shard,
        )

    @property
    def special(self) -> str | None:
        """Return the part of the placement that only the modules of `transformers` can do, None if there is none."""
        if self.spread:
            return "its layers are spread over devices"
        others = self.quantization != "none" and self.fused_quantization is None
        return "its weights are quantized by bitsandbytes" if others else None

    @property
    def fused_quantization(self) -> Quantization | None:
        """Return the format of weights that the fused stack quantizes, None for plain ones."""
        return next((known for known in get_args(Quantization) if known == self.quantization), None)

    def dtype_for(self, config: ModelConfig) -> str:
        """Return the dtype to load a model in, see `ModelConfig.faster_dtype`."""
        return config.faster_dtype(self.dtype, self.device.type, as_stored=self.special is not None)

    def check(self, config: ModelConfig, name: str) -> str | None:
        """Return why a model does not run on the fused stack, None where it does.

        Raises:
            UsageError: the fused stack was requested and cannot run the model, or the weights are quantized already.
        """
        if config.quantized and self.quantization != "none":
            raise UsageError(f"the weights of {name} are quantized already", "leave out --quantization")
        if config.gguf is not None and self.quantization in QUANTIZED_BITS:
            raise UsageError(
                f"{name} is a GGUF file, and {self.special}",
                "leave that out, choose --quantization int4 or int8, or the model in safetensors",
            )
        reason = config.why_not_fused or self.special
        if reason is None and self.stack == "transformers":
            reason = "it is not asked for"
        if config.gguf is not None and self.shard is not None and reason is not None:
            raise UsageError(
                f"--tensor-parallel shares the matrices of a GGUF file on the fused stack only, and {name} does not run "
                f"on it: {reason}",
                "leave out --tensor-parallel or --stack transformers, or choose the model in safetensors",
            )
        if self.fused_quantization is not None and reason is not None:
            raise UsageError(
                f"{self.quantization} weights need the fused stack, on which {name} does not run: {reason}",
                "choose --quantization 4bit or 8bit (bitsandbytes), or leave out what keeps it from the fused stack",
            )
        if self.stack == "fused" and reason is not None:
            raise UsageError(f"{name} does not run on the fused stack: {reason}", "use --stack auto or transformers")
        return reason

    def settled(self, config: ModelConfig, original: Any, name: str, held: int | None, taken: int) -> "Placement":
        """Return where a model that is to be spread goes: onto the fused stack, where GPUs or one device can hold it.

        Args:
            config: its shape.
            original: its configuration of `transformers`.
            name: the model, as the user named it.
            held: the bytes of its weights, copies, KV cache and workspace; None where they are not known.
            taken: bytes of the first device that other models take.

        Raises:
            UnavailableError: a limit is for a GPU that is not there.
            UsageError: the placement is impossible, as for `check` and `plan_devices`.
        """
        if not self.spread:
            return self
        self._check_gpus()
        free = _memory_of_devices(self.max_memory)
        first = next(iter(free))
        spread = replace(self, max_memory=free | {first: max(0, free[first] - taken)})
        if self.stack == "transformers" or replace(self, spread=False).check(config, name) is not None:
            return spread
        alone = replace(self, spread=False, max_memory={}, device=_device_of(first))
        if held is not None and held <= spread.max_memory[first]:
            return alone
        dtype = getattr(torch, config.settle_dtype(self.dtype_for(config), None))
        where = plan_devices(original, name, dtype, 8 * dtype.itemsize, spread.max_memory, self.shallow, held)
        places = [device for module, device in where.items() if module.rpartition(".")[2].isdigit()]
        counts = {device: places.count(device) for device in dict.fromkeys(places)}
        devices = list(counts)
        if devices[0] != first or not (devices == ["cpu"] or all(isinstance(device, int) for device in devices)):
            return spread
        stages = tuple((_device_of(device), count) for device, count in counts.items())
        return replace(alone, stages=stages) if len(stages) > 1 else alone

    def _check_gpus(self) -> None:
        if missing := [d for d in self.max_memory if isinstance(d, int) and d >= torch.accelerator.device_count()]:
            raise UnavailableError(f"this machine has no GPU {missing[0]}", "name others in --max-memory")

    def options(self, config: Any, name: str, dtype: torch.dtype) -> dict[str, Any]:
        """Return arguments for `from_pretrained`.

        Args:
            config: a configuration of `transformers`.
            name: the model, as the user named it.
            dtype: the dtype of the weights, or of the computation where they are quantized.

        Raises:
            UnavailableError: a limit is for a GPU that is not there.
        """
        found: dict[str, Any] = {}
        if self.shard is not None:
            from transformers.distributed import DistributedConfig

            known = "tp_plan" in getattr(DistributedConfig, "__dataclass_fields__", ())
            found = {"distributed_config": DistributedConfig(tp_plan="auto")} if known else {"tp_plan": "auto"}
        elif self.spread:
            self._check_gpus()
            bits = QUANTIZED_BITS.get(self.quantization, 8 * dtype.itemsize)
            # Its message would name another library's options.
            logging.getLogger("accelerate").setLevel(logging.ERROR)
            found = {"device_map": plan_devices(config, name, dtype, bits, self.max_memory, self.shallow)}
            if "disk" in found["device_map"].values():
                _offloaded.append(TemporaryDirectory(prefix="hispec-offload-"))
                found["offload_folder"] = _offloaded[-1].name
        elif self.quantization != "none" or getattr(config, "quantization_config", None):
            found = {"device_map": {"": self.device}}  # quantized weights are made where they stay
        if self.quantization != "none":
            found["quantization_config"] = _bitsandbytes(self.quantization, dtype)
        return found


def choose_device(name: str) -> torch.device:
    """Return the first GPU for `auto`, where there is one; anything else is what torch calls a device.

    Raises:
        UsageError: torch does not know the name.
        UnavailableError: this machine lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("the meta device computes nothing")
    except RuntimeError:
        raise UsageError(f"{name!r} is not a device", "use auto, cpu, cuda or cuda:N") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UnavailableError(f"this machine has no usable device {name!r}", "use --device auto or cpu") from None
    return device


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    # Said for every matrix, and of faster kernels elsewhere: nothing that a user must know.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    if quantization == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True)


def plan_devices(
    config: Any,
    name: str,
    dtype: torch.dtype,
    bits: int,
    max_memory: Mapping[int | str, int] | None = None,
    shallow: int = 0,
    held: int | None = None,
) -> dict[str, int | str]:
    """Spread a model over devices, in the order of its layers.

    `accelerate` divides the layers evenly among GPUs; what they cannot hold goes to the CPU and then to the disk. Unlike
    its own `auto`, everything that every exit needs (embedding, final norm, head) is on the first device, and so are the
    layers of the shallow exits, as far as they fit: to draft and to verify early, nothing leaves that device.

    Args:
        config: a configuration of `transformers`.
        name: the model, as the user named it.
        dtype: the dtype of weights that are not quantized.
        bits: the bits of a weight of the layers.
        max_memory: the memory that may be used on each device; see `Placement`.
        shallow: the number of layers that stay on the first device; see `Placement`.
        held: bytes of the whole model where more than its weights is counted; each layer takes its share.

    Returns:
        For every module its device: a GPU's number, `cpu` or `disk`.

    Raises:
        UsageError: an architecture that cannot be run in spans.
    """
    from accelerate.utils import CustomDtype, infer_auto_device_map
    from accelerate.utils.modeling import compute_module_sizes
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    layers = find_parts(model, name).layers
    names = {id(module): module_name for module_name, module in model.named_modules()}
    prefix = names[id(layers[0])].rpartition(".")[0]
    others = [
        names[id(child)]
        for child in (*model.children(), *model.base_model.children())
        if names[id(child)] not in (model.base_model_prefix, prefix)
    ]
    sizes = compute_module_sizes(model)
    pinned = sum(sizes[other] for other in others)
    if getattr(config, "tie_word_embeddings", False):
        pinned -= sizes[names[id(model.get_output_embeddings())]]
    weights = layer = sizes[f"{prefix}.0"] * bits // (8 * dtype.itemsize)
    if held is not None:
        layer = max(1, (held - pinned) // len(layers))

    shares = _memory_of_devices(max_memory or {})
    first, *more = shares
    gpus = [device for device in more if isinstance(device, int)]
    if gpus:
        even = (pinned + len(layers) * layer) // (len(gpus) + 1)
        shares[first] = min(shares[first], max(even, pinned + shallow * layer) + layer)  # one layer is kept free
        left = len(layers) - (shares[first] - pinned) // layer + 1
        even = -(-left // len(gpus)) * layer
        shares |= {device: min(shares[device], even + layer // 2) for device in gpus[:-1]}  # the last takes the rest
    shares[first] = max(0, shares[first] - pinned)
    shares = {device: share * weights // layer for device, share in shares.items()}  # only weights are counted
    where = infer_auto_device_map(
        torch.nn.ModuleList(layers),
        shares,
        no_split_module_classes=[type(layers[0]).__name__],
        dtype={4: CustomDtype.INT4, 8: torch.int8}.get(bits, dtype),
        clean_result=False,
    )
    return dict.fromkeys(others, first) | {f"{prefix}.{index}": device for index, device in where.items()}


def _device_of(key: int | str) -> torch.device:
    return torch.device("cuda", key) if isinstance(key, int) else torch.device(key)


def _memory_of_devices(limits: Mapping[int | str, int]) -> dict[int | str, int]:
    """Return bytes that may be used, by device: GPUs in order, the CPU last."""
    from accelerate.utils import get_max_memory

    free: dict[int | str, int] = get_max_memory()
    limited = [device for device in limits if isinstance(device, int)]
    gpus = limited or [device for device in free if isinstance(device, int)]
    devices: list[int | str] = [*sorted(gpus), "cpu"]
    return {device: limits.get(device, free.get(device, 0)) for device in devices}
