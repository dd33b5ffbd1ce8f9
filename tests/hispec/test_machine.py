"""Free memory: the host's, less what containers withhold; a GPU's, with what this process has cached."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from hispec import machine
from hispec.machine import device_named, devices, disk_free, host

GB = 10**9


@pytest.fixture
def containers(monkeypatch, tmp_path):
    """The control groups of a container, as the test writes them, on a host with 64 GB, 60 of them free."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "self")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=60 * GB, total=64 * GB))

    def write(line, group, **files):
        (tmp_path / "self").write_text(line + "\n")
        folder = tmp_path / "cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(str(text))

    return write


def test_the_host_alone(containers):
    containers("0::/", "")
    assert (host().free, host().total) == (60 * GB, 64 * GB)


def test_version_2_limits_of_every_group_count_and_page_cache_does_not(containers):
    stat = f"anon 1\ninactive_file {GB}\nactive_file 5\n"
    containers("0::/pod/app", "pod/app", memory__max="max", memory__current=0, memory__stat=stat)
    containers("0::/pod/app", "pod", memory__max=8 * GB, memory__current=3 * GB, memory__stat=stat)
    assert (host().free, host().total) == (6 * GB, 8 * GB)


def test_version_1_limits(containers):
    limits = {
        "memory__limit_in_bytes": 4 * GB,
        "memory__usage_in_bytes": 5 * GB,
        "memory__stat": "total_inactive_file 0",
    }
    containers("4:cpu,memory:/docker/x", "memory/docker/x", **limits)
    assert (host().free, host().total) == (0, 4 * GB)


def test_without_a_limit_version_1_says_a_huge_number(containers):
    limits = {"memory__limit_in_bytes": 2**63 - 4096, "memory__usage_in_bytes": GB, "memory__stat": ""}
    containers("4:memory:/", "memory", **limits)
    assert (host().free, host().total) == (60 * GB, 64 * GB)


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, the second one current; this process keeps 2 GB and uses half of them."""
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "current_device", lambda: 1)
    monkeypatch.setattr(cuda, "mem_get_info", lambda index: (70 * GB + index, 80 * GB))
    monkeypatch.setattr(cuda, "memory_reserved", lambda index: 2 * GB)
    monkeypatch.setattr(cuda, "memory_allocated", lambda index: GB)
    monkeypatch.setattr(cuda, "get_device_name", lambda index: f"GPU {index}")


@pytest.mark.usefixtures("gpus")
def test_gpus_by_name():
    assert [device.name for device in devices()] == ["cuda:0", "cuda:1", "cpu"]
    assert device_named("auto").name == device_named("cuda").name == "cuda:1"
    assert device_named("cuda:1").free == 71 * GB + 1
    assert device_named("cuda:7") is None
    assert device_named("cpu").name == "cpu"


@pytest.mark.usefixtures("gpus")
def test_devices_together():
    host_free = host().free
    every = machine.together()
    assert every.name == "cuda:0 + cuda:1 + cpu"
    assert every.free == pytest.approx(142 * GB + 1 + host_free, abs=GB)


def test_without_a_gpu_auto_is_the_host():
    if not torch.cuda.is_available():
        assert [device.name for device in devices()] == ["cpu"]
        assert device_named("auto").name == "cpu"
        assert device_named("cuda") is None


def test_disk_space_of_a_folder_that_is_not_there_yet(tmp_path):
    assert disk_free(tmp_path / "not" / "yet") > 0


@pytest.mark.parametrize(
    ("info", "has"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 sha\n", True),
        ("flags\t\t: amx_tile amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("model name\t: bf16 in name only\nflags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
        (None, False),
    ],
)
def test_bfloat16_instructions_are_those_that_linux_lists(monkeypatch, tmp_path, info, has):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    assert machine.has_bfloat16() == has
