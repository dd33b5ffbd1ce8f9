"""A description of this machine, and a check whether a profile can run on it, before anything is downloaded."""

import os
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from hispec.errors import HispecError, UnavailableError, UsageError
from hispec.extras import EXTRAS
from hispec.loading import settled
from hispec.machine import Device, computes_natively, devices, disk_free
from hispec.memory import PROMPT_TOKENS, ModelNeed, Need, check_fits, chosen_device, estimate, gigabytes
from hispec.models.checkpoint import Checkpoint, checkpoints_of
from hispec.models.checkpoint_files import CONFIG
from hispec.models.hub import State, hub_state, within
from hispec.models.values import check_values
from hispec.profile import Profile, check_depths
from hispec.settings import SETTINGS, Settings
from hispec.vocabulary import check_vocabulary

HUB_SECONDS = 5.0
"""The timeout of one request to the hub."""
VOCABULARY_SECONDS = 60.0
"""The timeout for fetching the tokenizers of a profile's models, a few megabytes if they are not on this machine."""
OPTIONAL = (*(package.replace("_", "-") for packages in EXTRAS.values() for package in packages), "hf-xet")
"""Packages that are used where they are installed: those of extras, and one for faster downloads."""
DTYPES = SETTINGS["dtype"].choices[1:]
Weights = Literal["here", "to download", "refused", "missing", "unknown"]


@dataclass(frozen=True)
class Computes:
    """A device and the dtypes that it multiplies matrices in; `native` ones have instructions of their own."""

    device: Device
    dtypes: tuple[str, ...]
    native: tuple[str, ...]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "name": self.device.name,
            "title": self.device.title,
            "free_bytes": self.device.free,
            "total_bytes": self.device.total,
            "dtypes": list(self.dtypes),
            "native_dtypes": list(self.native),
        }


@dataclass(frozen=True)
class Machine:
    """The hardware and software of this machine.

    Attributes:
        python, torch, transformers: versions.
        system: the operating system.
        threads: the number of threads that torch computes with.
        cores: the number of cores that this process may use.
        devices: GPUs first.
        cache: the folder for downloads, and its free space in bytes.
        hub: its address, whether it answers, and whether this user is logged in.
        packages: versions of required and optional packages, None where they are not installed.
    """

    python: str
    torch: str
    transformers: str
    system: str
    threads: int
    cores: int
    devices: tuple[Computes, ...]
    cache: tuple[Path, int]
    hub: tuple[str, State, bool]
    packages: dict[str, str | None]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object."""
        endpoint, state, logged_in = self.hub
        return {
            "python": self.python,
            "torch": self.torch,
            "transformers": self.transformers,
            "system": self.system,
            "threads": self.threads,
            "cores": self.cores,
            "devices": [device.to_record() for device in self.devices],
            "cache": {"path": str(self.cache[0]), "free_bytes": self.cache[1]},
            "hub": {"endpoint": endpoint, "state": state, "logged_in": logged_in},
            "packages": self.packages,
        }


@dataclass
class DoctorVerdict:
    """The result of the check whether a profile can run here.

    Attributes:
        profile: its name.
        device: the device to run on, None where its memory cannot be queried.
        need: None where too little is known of a model.
        weights: for each model, whether its weights are on this machine or can be downloaded.
        vocabulary: whether the models' ids mean the same tokens; None for one model, or where that is not known.
        problems: the reasons why the profile cannot run, each with a hint.
    """

    profile: str
    device: Device | None
    need: Need | None
    weights: dict[str, Weights]
    vocabulary: bool | None = None
    problems: list[HispecError] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 0 where the profile can run; else the exit code of the first problem."""
        return self.problems[0].exit_code if self.problems else 0

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object."""
        need = self.need
        return {
            "name": self.profile,
            "runs": not self.problems,
            "device": self.device.name if self.device else None,
            "free_bytes": self.device.free if self.device else None,
            "needed_bytes": need.total if need else None,
            "download_bytes": need.download if need else None,
            "positions": need.positions if need else None,
            "workspace_bytes": need.workspace if need else None,
            "models": [_model_record(model, self.weights[model.model]) for model in need.models] if need else [],
            "weights": self.weights,
            "same_vocabulary": self.vocabulary,
            "problems": [_problem_record(problem) for problem in self.problems],
        }


def _problem_record(problem: HispecError) -> dict[str, str]:
    """Return a problem as JSON; `cause` and `cure` are the older names of its two lines."""
    return {"message": problem.message, "hint": problem.hint, "cause": problem.message, "cure": problem.hint}


def examine_machine() -> Machine:
    """Look at everything; the hub is asked one question, and given `HUB_SECONDS` to answer."""
    import torch
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    return Machine(
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        threads=torch.get_num_threads(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        devices=tuple(_computes(device) for device in devices()),
        cache=(cache, disk_free(cache)),
        hub=(constants.ENDPOINT, hub_state(HUB_SECONDS), get_token() is not None),
        packages=_packages(),
    )


def examine_profile(
    profile: Profile, settings: Settings, machine: Machine, prompt_tokens: int | None = None
) -> DoctorVerdict:
    """Return whether a profile can run: memory, disk, weights, access, depths and vocabularies.

    Args:
        profile: the profile to check.
        settings: the settings to decode with.
        machine: a description of this machine.
        prompt_tokens: the length of the prompt in tokens.
    """
    reachable = machine.hub[1] == "reachable"
    checkpoints = checkpoints_of(profile, settings.mode, dummy=settings.load_format == "dummy")
    weights = {name: _weights(checkpoint, reachable) for name, checkpoint in checkpoints.items()}
    for name, checkpoint in checkpoints.items():
        if weights[name] == "to download" and checkpoint.read_here(CONFIG) is None:
            checkpoint.fetch_config(HUB_SECONDS)
    if checkpoints[profile.target.model].read_here(CONFIG) is not None:
        with suppress(HispecError):  # the problem is reported below
            profile = settled(profile, settings, prompt_tokens)
    need = estimate(
        profile,
        settings,
        prompt_tokens=prompt_tokens or PROMPT_TOKENS,
        timeout=HUB_SECONDS if "to download" in weights.values() else None,
    )
    verdict = DoctorVerdict(profile.name, chosen_device(settings), need, weights)
    for name, checkpoint in checkpoints.items():
        if (values := checkpoint.read_here(CONFIG)) is not None:
            _tell(verdict, partial(check_values, values, name))
        if checkpoint.is_local and not verdict.problems:
            _tell(verdict, partial(getattr, checkpoint, "config"))
    for check in (_memory, _disk, _downloads, _depths):
        check(verdict, profile, machine)
    if len(checkpoints) > 1 and settings.load_format != "dummy":
        _vocabularies(verdict, list(checkpoints.values()))
    if settings.load_format != "dummy" and not verdict.problems and set(weights.values()) == {"here"}:
        _files(verdict, list(checkpoints.values()))
    return verdict


def _memory(verdict: DoctorVerdict, profile: Profile, machine: Machine) -> None:
    need, device = verdict.need, verdict.device
    if need is None and verdict.problems:
        return  # a configuration that is wrong
    if need is None:
        verdict.problems.append(
            UnavailableError(
                f"the configuration of {', '.join(verdict.weights)} is neither on this machine nor available",
                "check the name and the network, or give a local folder",
            )
        )
    elif device is None:
        verdict.problems.append(UnavailableError("there is no such device here", "use --device auto, cpu or cuda:N"))
    else:
        _tell(verdict, partial(check_fits, need, device, profile.name))


def _disk(verdict: DoctorVerdict, profile: Profile, machine: Machine) -> None:
    folder, free = machine.cache
    size = sum(m.download for m in verdict.need.models if verdict.weights[m.model] != "here") if verdict.need else 0
    if size > free:
        verdict.problems.append(
            UnavailableError(
                f"the download of {profile.name} takes {gigabytes(size)}, and {gigabytes(free)} are free in {folder}",
                "make room, or set HF_HOME to a folder on a larger disk",
            )
        )


def _downloads(verdict: DoctorVerdict, profile: Profile, machine: Machine) -> None:
    from hispec.models.loading import check_weights

    endpoint, state, _ = machine.hub
    for model, weights in verdict.weights.items():
        if weights == "refused":
            message = f"{model} is behind a licence that you have not accepted, or you are not logged in"
            hint = f"accept it at {endpoint}/{model}, then run: hf auth login"
        elif weights == "missing" and Checkpoint(model).is_local:
            _tell(verdict, partial(check_weights, Checkpoint(model)))
            continue
        elif weights == "missing":
            message, hint = f"there is no model {model} to be had", "check its name, revision and folder"
        elif weights == "unknown":
            message = f"the weights of {model} are not here, and the hub is {state}"
            hint = "connect to the network, or give a local folder" if state != "offline" else "leave out --offline"
        else:
            continue
        verdict.problems.append(UnavailableError(message, hint))


def _depths(verdict: DoctorVerdict, profile: Profile, machine: Machine) -> None:
    for need in verdict.need.models if verdict.need else ():
        _tell(verdict, partial(check_depths, profile, need.model, need.layers))


def _vocabularies(verdict: DoctorVerdict, checkpoints: list[Checkpoint]) -> None:
    """Compare tokenizers by id -> token; those that are not here are fetched, if their models can be."""
    if any(weights not in ("here", "to download") for weights in verdict.weights.values()):
        return
    from hispec.models.tokenizer import load_tokenizer

    def compare() -> bool | UsageError:
        own, *others = [(checkpoint.name, load_tokenizer(checkpoint)) for checkpoint in checkpoints]
        try:
            for name, tokenizer in others:
                check_vocabulary(own[1], tokenizer, own[0], name)
        except UsageError as error:
            return error
        return True

    found = within(VOCABULARY_SECONDS, compare, None)
    if isinstance(found, UsageError):
        verdict.vocabulary = False
        verdict.problems.append(found)
    else:
        verdict.vocabulary = found


def _files(verdict: DoctorVerdict, checkpoints: list[Checkpoint]) -> None:
    """Refuse tokenizers and weights that are here and cannot be loaded."""
    from hispec.models.loading import check_weights
    from hispec.models.tokenizer import load_tokenizer

    for checkpoint in checkpoints:
        _tell(verdict, partial(load_tokenizer, checkpoint))
        _tell(verdict, partial(check_weights, checkpoint))


def _tell(verdict: DoctorVerdict, check: Callable[[], object]) -> None:
    try:
        check()
    except HispecError as error:
        verdict.problems.append(error)


def _weights(checkpoint: Checkpoint, reachable: bool) -> Weights:
    if checkpoint.dummy or checkpoint.tensors_here() is not None:
        return "here"
    if checkpoint.is_local:
        return "missing"
    if not reachable:
        return "unknown"
    access = checkpoint.access(HUB_SECONDS)
    return "to download" if access == "granted" else access


def _model_record(need: ModelNeed, weights: Weights) -> dict[str, Any]:
    record = asdict(need)
    sizes = {f"{key}_bytes": record.pop(key) for key in ("weights", "copies", "kv_cache", "workspace", "download")}
    return record | sizes | {"weights": weights}


def _computes(device: Device) -> Computes:
    import torch

    def multiplies(name: str) -> bool:
        try:
            square = torch.ones(2, 2, dtype=getattr(torch, name), device=device.name)
            return bool((square @ square)[0, 0] == 2)
        except RuntimeError:
            return False

    if device.name.startswith("cuda"):
        recent = torch.cuda.get_device_capability(device.name)[0] >= 8  # Ampere
        native = set(DTYPES) if recent else {"float32", "float16"}
    else:
        native = {name for name in DTYPES if computes_natively(name)}
    possible = tuple(name for name in DTYPES if multiplies(name))
    return Computes(device, possible, tuple(name for name in possible if name in native))


def _packages() -> dict[str, str | None]:
    needed = [line for line in requires("hispec") or () if "extra ==" not in line]
    names = [match[0] for line in needed if (match := re.match(r"[\w.-]+", line))]
    return {name: _version_of(name) for name in [*names, *OPTIONAL]}


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
