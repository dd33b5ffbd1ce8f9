"""Translators: affine maps that let a shallow exit of an ordinary model predict what its last layer predicts.

A tuned lens (Belrose et al., arXiv 2303.08112, section 3): the hidden state h at an exit becomes h + h A + b before the
model's own final norm and head. With A and b zero, as they are before they are fitted, it is the plain exit. The target
is the full model, which has none, so the output never depends on them.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hispec.counts import counted
from hispec.errors import HispecError, ProfileError, UnavailableError
from hispec.files import write_whole
from hispec.models.checkpoint import Checkpoint
from hispec.models.linear import right_factor
from hispec.models.parts import NORMS
from hispec.models.stack import LayerStack

SCHEMA = "hispec.translators/1"
AGAIN = "fit it again with: hispec fit-exits"


@dataclass(frozen=True, eq=False)
class Translator:
    """The map of one exit.

    Attributes:
        weight: A, [hidden, hidden], multiplied from the right.
        bias: b, [hidden].
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return hidden states at the exit -> what the final norm reads, both [n, hidden]."""
        hidden = hidden.to(self.weight.device)  # a layer that is spread elsewhere left it there
        return torch.addmm(hidden, hidden, self.weight).add_(self.bias)

    def on(self, stack: LayerStack) -> "Translator":
        """Return a copy in the dtype and on the device of a stack, laid out as its multiplications are fastest."""
        size = len(self.bias)
        with torch.inference_mode(False):
            weight = right_factor(size, size, stack.dtype, stack.device).copy_(self.weight)
            return Translator(weight, self.bias.to(stack.device, stack.dtype, copy=True))


@dataclass(frozen=True)
class Provenance:
    """The model that a file of translators belongs to, and how it was fitted.

    Attributes:
        model: the name that its user gave the model.
        revision: the commit of a hub model, None for a folder.
        model_digest: the digest of the model from `digest_of_model`; None if it has none.
        hidden_size: width of the model.
        num_layers: its depth.
        exits: the exits that the file has translators for.
        made: everything else worth knowing: text, steps, agreement, versions.
    """

    model: str
    revision: str | None
    model_digest: str | None
    hidden_size: int
    num_layers: int
    exits: tuple[int, ...]
    made: Mapping[str, Any]


class TranslatorFile:
    """A file of translators, opened and checked.

    Args:
        path: a safetensors file as `save_translators` writes it.

    Raises:
        ProfileError: no such file, or something else.
        UnavailableError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ProfileError(f"there are no translators at {path}", f"mend the profile's translators, or {AGAIN}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise UnavailableError(f"the translators at {path} are damaged: {_line(error)}", AGAIN) from None
        if metadata.get("schema") != SCHEMA:
            raise ProfileError(f"{path} holds no translators of exits", f"name a file of {SCHEMA}, or {AGAIN}")
        try:
            values = json.loads(metadata["provenance"])
            self.provenance = Provenance(**values | {"exits": tuple(values["exits"])})
            self._digests = {exit_: json.loads(metadata["sha256"])[str(exit_)] for exit_ in self.provenance.exits}
            complete = names == {name for exit_ in self.provenance.exits for name in _names(exit_)}
        except (KeyError, TypeError, ValueError):
            complete = False
        if not complete:
            raise UnavailableError(f"the translators at {path} are damaged: their parts do not fit together", AGAIN)

    def check_shape(self, model: str, hidden_size: int, num_layers: int) -> None:
        """Refuse translators of a model of another shape.

        Raises:
            ProfileError: naming both models.
        """
        own = self.provenance
        if (own.hidden_size, own.num_layers) != (hidden_size, num_layers):
            raise ProfileError(
                f"the translators at {self.path} are for {own.model} ({counted(own.num_layers, 'layer')} of {own.hidden_size}), "
                f"and {model} has {counted(num_layers, 'layer')} of {hidden_size}",
                f"name the translators of {model}, or fit some with: hispec fit-exits",
            )

    def check_model(self, model: str, digest: str | None) -> None:
        """Refuse translators of another model, or of other weights of the same one; errors as `check_shape`."""
        own = self.provenance
        if None not in (digest, own.model_digest) and digest != own.model_digest:
            same = f"other weights of {own.model}" if own.model == model else own.model
            raise ProfileError(
                f"the translators at {self.path} are for {same}, not for these of {model}",
                f"name the translators of {model}, or fit some with: hispec fit-exits",
            )

    def read(self, exit_layer: int) -> Translator | None:
        """Return the translator of an exit in float32, None where the file has none for it; errors as the constructor."""
        if exit_layer not in self.provenance.exits:
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                weight, bias = (file.get_tensor(name) for name in _names(exit_layer))
        except (SafetensorError, OSError) as error:
            raise UnavailableError(f"the translators at {self.path} are damaged: {_line(error)}", AGAIN) from None
        size = self.provenance.hidden_size
        if (weight.shape, bias.shape) != ((size, size), (size,)) or _digest(weight, bias) != self._digests[exit_layer]:
            raise UnavailableError(f"the translators at {self.path} are damaged: exit {exit_layer} has changed", AGAIN)
        return Translator(weight, bias)


def save_translators(path: Path, translators: Mapping[int, Translator], provenance: Provenance) -> None:
    """Write translators by exit in float32, at once or not at all.

    Raises:
        UnavailableError: the file cannot be written.
    """
    parts: dict[int, tuple[Tensor, Tensor]] = {
        exit_: (one.weight.detach().float().cpu().contiguous(), one.bias.detach().float().cpu().contiguous())
        for exit_, one in translators.items()
    }
    tensors = {name: part for exit_, both in parts.items() for name, part in zip(_names(exit_), both, strict=True)}
    metadata = {
        "format": "pt",
        "schema": SCHEMA,
        "provenance": json.dumps(vars(provenance)),
        "sha256": json.dumps({exit_: _digest(*both) for exit_, both in parts.items()}),
    }
    hint = "make room, or write elsewhere"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error.strerror}", hint) from None
    write_whole(path, save(tensors, metadata), hint)


def digest_of_model(checkpoint: Checkpoint, num_layers: int) -> str | None:
    """Return what tells a checkpoint from its fine-tuned siblings: a hash of its final norm and of rows of its last
    layer.

    Read from the files, so it does not depend on the dtype, the device or what runs the layers.

    Args:
        checkpoint: the checkpoint of the model.
        num_layers: its depth.

    Returns:
        A SHA-256, None for a checkpoint whose tensors have other names.
    """
    try:
        tensors = checkpoint.tensors()
    except (OSError, ValueError, HispecError):
        return None
    layer = rf"\w+\.layers\.{num_layers - 1}\..+"
    norm = rf"\w+\.({'|'.join(NORMS)})\.weight"
    names = sorted(name for name in tensors.stored if re.fullmatch(f"{layer}|{norm}", name))
    if not names:
        return None
    digest = hashlib.sha256()
    for name in names:
        first = tensors.first(name)
        digest.update(f"{name} {list(tensors.stored[name].shape)} {first.dtype} ".encode())
        digest.update(_bytes(first))
    return digest.hexdigest()


def _names(exit_layer: int) -> tuple[str, str]:
    return f"exits.{exit_layer}.weight", f"exits.{exit_layer}.bias"


def _digest(weight: Tensor, bias: Tensor) -> str:
    digest = hashlib.sha256()
    for part in (weight, bias):
        digest.update(_bytes(part))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().view(torch.uint8).numpy() if tensor.dim() else tensor[None].view(torch.uint8).numpy()


def _line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
