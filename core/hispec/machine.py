"""The free memory by device, within a container's limits, and the free disk space. Queries of the host need no
torch.
"""

import ctypes
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {
    "bfloat16": frozenset(("avx512_bf16", "amx_bf16", "bf16")),
    "float16": frozenset(("avx512_fp16", "amx_fp16", "asimdhp")),
}
"""The names that Linux has for the instructions of a dtype, on x86 and ARM."""
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Files that exist under Linux where CUDA or ROCm may find a GPU; importing torch to learn that there is none takes
seconds.
"""
HOST_MEMORY = ("cpu", "mps")
"""Kinds of devices that compute in the host's memory."""


@dataclass(frozen=True)
class Device:
    """A place for weights.

    Attributes:
        name: the name that torch has for it.
        title: the name that its maker gave it.
        free, total: bytes.
    """

    name: str
    title: str
    free: int
    total: int


def devices() -> list[Device]:
    """Return all devices: GPUs first, as `auto` chooses, and the host last."""
    return [*_gpus(), host()]


def device_named(name: str) -> Device | None:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means, None for one whose memory cannot be queried."""
    kind, _, index = name.partition(":")
    if kind in HOST_MEMORY:
        return host(name)
    gpus = _gpus() if kind in ("auto", "cuda") else []
    if kind == "auto" and not gpus:
        return host()
    wanted = index if index else _current_gpu() if gpus else ""
    return next((gpu for gpu in gpus if gpu.name == f"cuda:{wanted}"), None)


def together() -> Device:
    """Return all devices as one, for layers that are spread over them."""
    found = devices()
    names = " + ".join(device.name for device in found)
    return Device(names, "", sum(device.free for device in found), sum(device.total for device in found))


def host(name: str = "cpu") -> Device:
    """Return the host's memory that is available without swapping, within the limits of the containers around the
    process.
    """
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for limit, used in _container_limits():
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return Device(name, processor_name(), free, total)


def disk_free(folder: Path) -> int:
    """Return the free bytes of the disk that has a folder, or will have it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def give_back_memory() -> None:
    """Return freed memory that the C library keeps to the system, where that library can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def processor_name() -> str:
    """Return the processor's architecture, as the system calls it."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def processor_flags() -> set[str]:
    """Return the instructions that the processor has beyond its first ones, as Linux calls them; empty elsewhere."""
    info = _cpu_info()
    return set(info.get("flags", info.get("Features", "")).split())


def has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 numbers by instructions of its own."""
    return computes_natively("bfloat16")


def computes_natively(dtype: str) -> bool:
    """Return whether the processor multiplies numbers of a dtype by instructions of its own."""
    return dtype == "float32" or not INSTRUCTIONS[dtype].isdisjoint(processor_flags())


def packs_as_float16(dtype: str) -> bool:
    """Return whether matrices of a dtype are packed by fbgemm on this processor, in float16, as far as it is known."""
    flags = processor_flags()
    return "avx2" in flags and (dtype == "float16" or (dtype == "bfloat16" and "avx512bw" not in flags))


def _cpu_info() -> dict[str, str]:
    """Return the properties that Linux reports of the first processor, by key; empty on other systems."""
    return _read_cpu_info(CPU_INFO)


@lru_cache  # every matrix that is loaded asks for the processor's instructions
def _read_cpu_info(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _gpus() -> list[Device]:
    if sys.platform == "linux" and "torch" not in sys.modules and not any(Path(d).exists() for d in GPU_DRIVERS):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        # Memory that this process has reserved from the driver but does not use is free for it.
        free += torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        found.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), free, total))
    return found


def _current_gpu() -> str:
    import torch

    return str(torch.cuda.current_device())


def _container_limits() -> Iterator[tuple[int, int]]:
    """Yield the limit and the use, in bytes, of every control group of this process, of versions 2 and 1 of Linux.

    Memory of the page cache counts as used, but the kernel reclaims it first unless a process maps it.
    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files,
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = (
                CGROUPS / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root) and (found := _limit_of(folder, *names)) is not None:
                yield found


def _limit_of(folder: Path, limit: str, current: str, cache: str) -> tuple[int, int] | None:
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        used = int((folder / current).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == cache:
                used -= int(value)
        return int(most), max(0, used)
    except (OSError, ValueError):
        return None
