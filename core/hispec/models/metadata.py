"""What can be known of a model without loading it, and without torch: from its folder or the hub's cache."""

import json
from pathlib import Path
from typing import Any

from hispec.errors import UsageError
from hispec.profile import Target, resolve_model

CONFIGS = Path(__file__).parent / "configs"


def shipped_config(model: str) -> Path | None:
    """The configuration that ships for a hub id, None where there is none."""
    path = CONFIGS / f"{model.replace('/', '--')}.json"
    return path if model.count("/") == 1 and path.is_file() else None


def looks_local(model: str) -> bool:
    """Return whether a model's name is that of a folder rather than of a repository."""
    return Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1


def check_folder(model: str) -> None:
    """Refuse a name that neither a folder of a model nor a repository of the hub can have.

    Args:
        model: a local folder or a hub id, as `resolve_model` returns it.

    Raises:
        UsageError: a folder without config.json, or a name that no repository has.
    """
    if looks_local(model):
        if not (Path(model) / "config.json").is_file():
            raise UsageError(
                f"no model at {model}: it has no config.json", "pass a folder saved by save_pretrained, or a hub id"
            )
        return
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(model)
    except HFValidationError:
        raise UsageError(
            f"{model!r} is neither a folder nor an id that a hub could have", "give a folder, or an id such as org/name"
        ) from None


def read_generation_config(target: Target) -> dict[str, Any]:
    """The target's `generation_config.json`, empty where it is not on this machine (yet)."""
    return read_json(target, "generation_config.json") or {}


def read_depth(target: Target, *, dummy: bool = False) -> int | None:
    """Return a model's number of layers, None where its configuration does not say it or is not on this machine (yet).

    Args:
        target: the model.
        dummy: take the configuration that ships for the model, where one does.
    """
    shipped = shipped_config(target.model) if dummy else None
    config = json.loads(shipped.read_text(encoding="utf-8")) if shipped else read_json(target, "config.json") or {}
    depth = config.get("num_hidden_layers")
    return depth if isinstance(depth, int) else None


def read_commit(target: Target) -> str | None:
    """The commit of a hub model as it lies in the cache; None for a folder."""
    path = find_file(target, "config.json")
    return path.parent.name if path is not None and path.parent.parent.name == "snapshots" else None


def read_json(target: Target, name: str) -> dict[str, Any] | None:
    """A model's JSON file, None where it is not on this machine (yet) or is no object."""
    path = find_file(target, name)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
    except (OSError, ValueError):
        return None  # loading the model will say what is wrong with it
    return found if isinstance(found, dict) else None


def find_file(target: Target, name: str) -> Path | None:
    """A model's file in its folder or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    model = resolve_model(target.model)
    if Path(model).is_dir():
        return Path(model) / name
    try:
        path = try_to_load_from_cache(model, name, revision=target.revision)
    except ValueError:  # not a name that a hub could have
        return None
    return Path(path) if isinstance(path, str) else None
