"""The request for a fit of exits, with all checks that need no torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hispec.counts import counted
from hispec.errors import UsageError
from hispec.profile import BUILTIN, user_folder
from hispec.settings import Dtype


@dataclass(frozen=True)
class FitRequest:
    """The model, exits and text of a fit.

    Attributes:
        model: a folder, a hub id or `builtin:NAME`.
        text: a UTF-8 file with text similar to what the model will read and write.
        exits: layers to read after; None takes a quarter and half of the depth.
        out: the profile to write, .yaml; None is one in the user's own folder, named after the model.
        revision: the revision of a hub id.
        row_tokens: length of a row of text, in tokens.
        batch_tokens: tokens of an update.
        device, dtype: the settings of the same names in `hispec.settings.Settings`.
        force: replace files that are there.
    """

    model: str
    text: Path
    exits: Sequence[int] | None = None
    out: Path | None = None
    revision: str | None = None
    row_tokens: int = 512
    batch_tokens: int = 4096
    device: str = "auto"
    dtype: Dtype = "auto"
    force: bool = False

    def check_files(self) -> tuple[Path, Path]:
        """Find out before the fit what would lose its result after it.

        Returns:
            The profile and the translators that will be written.

        Raises:
            UsageError: a text that cannot be read, files that would be replaced, a folder that cannot be written to.
        """
        try:
            with self.text.open("rb"):
                pass
        except OSError as error:
            raise UsageError(f"{self.text} cannot be read: {error.strerror}", "check the path of --text") from None
        profile = _profile_path(self)
        translators = profile.with_suffix(".safetensors")
        _check_writable(profile, translators, self.force)
        return profile, translators


def default_exits(num_layers: int) -> tuple[int, ...]:
    """Return a quarter and half of the depth: twice what the paper takes for models that are trained for early exit."""
    draft = max(1, round(num_layers / 4))
    half = round(num_layers / 2)
    return (draft, half) if draft < half else (draft,)


def exits_to_fit(request: FitRequest, num_layers: int) -> tuple[int, ...]:
    """Return the exits to fit, ascending.

    Raises:
        UsageError: an exit is not one of a model with that many layers.
    """
    if num_layers < 2:
        raise UsageError(f"{request.model} has one layer, which leaves no exit to fit", "choose a deeper model")
    if request.exits is None:
        return default_exits(num_layers)
    wrong = [exit_ for exit_ in request.exits if not 1 <= exit_ < num_layers]
    if wrong or not request.exits:
        named = f"--exits names {wrong[0]}" if wrong else "--exits names no exit"
        raise UsageError(
            f"{named}, and {request.model} has {counted(num_layers, 'layer')}",
            f"choose exits from 1 to {num_layers - 1}",
        )
    return tuple(sorted(set(request.exits)))


def _profile_path(request: FitRequest) -> Path:
    if request.out is None:
        name = Path(request.model.removeprefix(BUILTIN)).expanduser().name or "model"
        return user_folder() / f"{name.lower()}-exits.yaml"
    path = request.out.expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out is {request.out}, and the profile is YAML", "name a file that ends in .yaml")
    return path


def _check_writable(profile: Path, translators: Path, force: bool) -> None:
    for path in (profile, translators):
        if path.is_dir():
            raise UsageError(f"{path} is a folder", "choose another --out")
        if path.exists() and not force:
            raise UsageError(f"{path} exists", "choose another --out, or replace it with --force")
    folder = profile.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}", "choose another --out") from None
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder} cannot be written to", "choose another --out")
