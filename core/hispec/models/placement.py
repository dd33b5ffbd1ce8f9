"""Where the weights of a model go: one device, several with what is left on CPU and disk, or shared among ranks."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hispec.errors import UnavailableError, UsageError
from hispec.extras import require
from hispec.models.parts import find_parts

_offloaded: list[TemporaryDirectory[str]] = []
"""Where weights lie that are on disk in another form than in their checkpoint; gone when the process ends."""

QUANTIZED_BITS = {"4bit": 4, "8bit": 8}


@dataclass(frozen=True)
class Placement:
    """How a model that is more than one device's weights is loaded; by default it is not.

    Attributes:
        spread: over all GPUs, then the CPU's memory, then the disk.
        max_memory: bytes of devices (GPU numbers, `cpu`) that may be used; what `accelerate` finds free where empty.
        quantization: a key of `QUANTIZED_BITS`, of bitsandbytes; or `none`.
        tensor_parallel: every matrix is shared among the processes that torchrun started.
        shallow: layers that levels below the target read, which shall stay on the first device.
    """

    spread: bool = False
    max_memory: Mapping[int | str, int] = field(default_factory=dict)
    quantization: str = "none"
    tensor_parallel: bool = False
    shallow: int = 0

    @property
    def special(self) -> str | None:
        """What of it only the modules of `transformers` can do, None where there is nothing."""
        if self.tensor_parallel:
            return "its matrices are shared among processes"
        if self.spread:
            return "its layers are spread over devices"
        return "its weights are quantized" if self.quantization != "none" else None

    def options(self, config: Any, name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Arguments for `from_pretrained`.

        Args:
            config: of `transformers`.
            name: the model, as the user named it.
            dtype: of the weights, or of computing where they are quantized.
            device: of a model that is not spread.

        Raises:
            UnavailableError: a limit is for a GPU that is not there.
            UsageError: weights that are quantized shall be quantized again.
        """
        found: dict[str, Any] = {}
        if self.tensor_parallel:
            from transformers.distributed import DistributedConfig

            known = "tp_plan" in getattr(DistributedConfig, "__dataclass_fields__", ())
            found = {"distributed_config": DistributedConfig(tp_plan="auto")} if known else {"tp_plan": "auto"}
        elif self.spread:
            if missing := [d for d in self.max_memory if isinstance(d, int) and d >= torch.accelerator.device_count()]:
                raise UnavailableError(f"this machine has no GPU {missing[0]}", "name others in --max-memory")
            bits = QUANTIZED_BITS.get(self.quantization, 8 * dtype.itemsize)
            # It tells what was asked for, and says so under another library's name.
            logging.getLogger("accelerate").setLevel(logging.ERROR)
            found = {"device_map": plan(config, name, dtype, bits, self.max_memory, self.shallow)}
            if "disk" in found["device_map"].values():
                _offloaded.append(TemporaryDirectory(prefix="hispec-offload-"))
                found["offload_folder"] = _offloaded[-1].name
        elif self.quantization != "none" or getattr(config, "quantization_config", None):
            found = {"device_map": {"": device}}  # quantized weights are made where they stay
        if self.quantization != "none":
            check_not_quantized(name, bool(getattr(config, "quantization_config", None)))
            found["quantization_config"] = _bitsandbytes(self.quantization, dtype)
        return found


def check_not_quantized(name: str, quantized: bool) -> None:
    """Refuse to quantize weights that are quantized as they are stored.

    Raises:
        UsageError: naming the model.
    """
    if quantized:
        raise UsageError(f"the weights of {name} are quantized already", "leave out --quantization")


def check_quantization(quantization: str) -> None:
    """Refuse quantization where the library for it is not installed.

    Raises:
        UnavailableError: naming the library.
    """
    if quantization != "none":
        require("quantization", f"--quantization {quantization}")


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    # Said for every matrix, and of faster kernels elsewhere: nothing that a user must know.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    if quantization == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True)


def plan(
    config: Any,
    name: str,
    dtype: torch.dtype,
    bits: int,
    max_memory: Mapping[int | str, int] | None = None,
    shallow: int = 0,
) -> dict[str, int | str]:
    """Spread a model over devices, in the order of its layers.

    `accelerate` divides the layers evenly among GPUs; what they cannot hold goes to the CPU and then to the disk. Unlike
    its own `auto`, everything that every exit needs (embedding, final norm, head) is on the first device, and so are the
    layers of the shallow exits, as far as they fit: to draft and to judge early, nothing leaves that device.

    Args:
        config: of `transformers`.
        name: the model, as the user named it.
        dtype: of what is not quantized.
        bits: of a weight of the layers.
        max_memory: see `Placement`.
        shallow: see `Placement`.

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
    layer = sizes[f"{prefix}.0"] * bits // (8 * dtype.itemsize)

    shares = _memory_of_devices(max_memory or {})
    first, *more = shares
    gpus = [device for device in more if isinstance(device, int)]
    if gpus:
        even = (pinned + len(layers) * layer) // (len(gpus) + 1)
        shares[first] = min(shares[first], max(even, pinned + shallow * layer) + layer)  # of which one is kept free
        left = len(layers) - (shares[first] - pinned) // layer + 1
        even = -(-left // len(gpus)) * layer
        shares |= {device: min(shares[device], even + layer // 2) for device in gpus[:-1]}  # the last takes the rest
    shares[first] = max(0, shares[first] - pinned)
    where = infer_auto_device_map(
        torch.nn.ModuleList(layers),
        shares,
        no_split_module_classes=[type(layers[0]).__name__],
        dtype={4: CustomDtype.INT4, 8: torch.int8}.get(bits, dtype),
        clean_result=False,
    )
    return dict.fromkeys(others, first) | {f"{prefix}.{index}": device for index, device in where.items()}


def _memory_of_devices(limits: Mapping[int | str, int]) -> dict[int | str, int]:
    """Bytes that may be used, by device: GPUs in order, the CPU last."""
    from accelerate.utils import get_max_memory

    free: dict[int | str, int] = get_max_memory()
    limited = [device for device in limits if isinstance(device, int)]
    gpus = limited or [device for device in free if isinstance(device, int)]
    devices: list[int | str] = [*sorted(gpus), "cpu"]
    return {device: limits.get(device, free.get(device, 0)) for device in devices}
