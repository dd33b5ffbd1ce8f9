"""Fits the exits of a model, from its name to the files; all checks come before any weights are read."""

import hashlib
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from hispec.budget import Budget
from hispec.exits.fit import Fit, FitSettings, fit_exits
from hispec.exits.request import FitRequest, exits_to_fit
from hispec.exits.text import read_rows, split
from hispec.exits.verdict import WORTH, best_speedup
from hispec.files import write_whole
from hispec.models.checkpoint import Checkpoint
from hispec.models.download import fetch_weights
from hispec.models.loading import load_stack
from hispec.models.placement import Placement, choose_device
from hispec.models.tokenizer import load_tokenizer
from hispec.models.transformers_stack import TransformersStack
from hispec.models.translator import Provenance, digest_of_model, save_translators
from hispec.profile import BUILTIN, DraftSection, IntermediateSection, Profile, TargetSection
from hispec.progress import Watch, unwatched

MAX_HELD_OUT_TOKENS = 16_384
READING_SHARE = 0.2
"""The share of the budget after which no more text is read."""


class FitJob:
    """A request that has been checked, its text read.

    Args:
        request: the model, exits and text.
        settings: the options of the fit; `batch_rows` is set from the request's `batch_tokens`.
        budget: the time budget of the command.

    Attributes:
        exits: ascending.
        profile_path, translators_path: the files that will be written.
        rows, held_out: the text, [rows, tokens] each.

    Raises:
        UsageError: exits that the model does not have, text that cannot be used, files that would be replaced, an
            unsupported model.
        UnavailableError: a device or a model is not available.
    """

    def __init__(self, request: FitRequest, settings: FitSettings, budget: Budget | None = None) -> None:
        self.request, self.budget = request, budget or Budget()
        self.profile_path, self.translators_path = request.check_files()
        # Gradients can pass through the modules of `transformers`; the translators fitted on them fit every stack.
        self._placement = Placement(choose_device(request.device), request.dtype, "transformers")
        self._checkpoint = Checkpoint(request.model, request.revision)
        self._config = self._checkpoint.config
        self.exits = exits_to_fit(request, self._config.num_layers)
        row_tokens = min(request.row_tokens, self._config.context)
        batch_rows = max(1, request.batch_tokens // row_tokens)
        self.settings = FitSettings(**asdict(settings) | {"batch_rows": batch_rows})
        tokenizer = load_tokenizer(self._checkpoint)
        max_held_out = max(1, MAX_HELD_OUT_TOKENS // row_tokens)
        enough = settings.steps * batch_rows + max_held_out
        text = read_rows(
            request.text,
            tokenizer,
            self._config.vocab_size,
            row_tokens,
            enough,
            lambda: self.budget.over(READING_SHARE),
        )
        self.rows, self.held_out = split(text, max_held_out)
        self._text_digest = hashlib.sha256(text.numpy().tobytes()).hexdigest()

    def load(self, watch: Watch = unwatched) -> TransformersStack:
        """Load the model, telling `watch` how far it is; errors as `load_stack`."""
        fetch_weights([self._checkpoint], watch)
        stack = load_stack(self._checkpoint, self._placement, watch)
        assert isinstance(stack, TransformersStack)
        return stack

    def run(
        self,
        stack: TransformersStack,
        see: Callable[[Fit], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Fit:
        """Fit the exits of the loaded model; see `fit_exits`."""
        return fit_exits(stack, self.exits, self.rows, self.held_out, self.settings, see, interrupted, self.budget)

    def save(self, fit: Fit) -> Profile:
        """Write the translators, and then the profile that uses them.

        Returns:
            The profile.

        Raises:
            UnavailableError: the files cannot be written.
        """
        request, depth = self.request, self._config.num_layers
        commit = self._checkpoint.commit_here
        provenance = Provenance(
            model=request.model,
            revision=commit or request.revision,
            model_digest=digest_of_model(self._checkpoint, depth),
            hidden_size=self._config.hidden_size,
            num_layers=depth,
            exits=self.exits,
            made=self.describe(fit),
        )
        save_translators(self.translators_path, fit.translators, provenance)
        path = Path(self._checkpoint.model)
        local = path.is_dir() and not request.model.startswith(BUILTIN)
        if self._checkpoint.gguf_file is not None:
            path /= self._checkpoint.gguf_file
        profile = Profile(
            name=self.profile_path.stem,
            description=f"{request.model} with translators at {_listed(self.exits)}, by hispec fit-exits",
            target=TargetSection.model_validate(
                {
                    "model": str(path.resolve()) if local else request.model,
                    "revision": commit or request.revision,
                    "dtype": request.dtype,
                }
            ),
            draft=DraftSection(exit_layer=self.exits[0]),
            intermediate=IntermediateSection(exit_layer=self.exits[1]) if len(self.exits) > 1 else None,
            translators=self.translators_path.name,
        )
        text = yaml.safe_dump(_plain(profile), sort_keys=False, allow_unicode=True, width=100)
        write_whole(self.profile_path, text.encode(), "make room, or choose another --out")
        return profile

    def best_speedup(self, fit: Fit, exit_layer: int) -> float:
        """Return the most that an exit can gain as the draft, see `hispec.exits.verdict`."""
        return best_speedup(fit.after[exit_layer].agreement, exit_layer, self._config.num_layers)

    def pays(self, fit: Fit, exit_layer: int) -> bool:
        """Return whether an exit agrees with the model often enough for what its layers cost."""
        return self.best_speedup(fit, exit_layer) >= WORTH

    def describe(self, fit: Fit) -> dict[str, Any]:
        """Return the provenance of the translators, and their agreement, as JSON values."""
        return {
            "exits": [
                {
                    "exit_layer": exit_,
                    "agreement": {"before": fit.before[exit_].agreement, "after": fit.after[exit_].agreement},
                    "kl": {"before": fit.before[exit_].kl, "after": fit.after[exit_].kl},
                    "best_speedup": self.best_speedup(fit, exit_),
                    "pays": self.pays(fit, exit_),
                }
                for exit_ in self.exits
            ],
            "steps": fit.step,
            "ended": fit.ended,
            "seconds": round(fit.seconds, 3),
            "text": {
                "file": self.request.text.name,
                "tokens_fitted_on": self.rows.numel(),
                "tokens_held_out": fit.looks_at * self.held_out.shape[1],
                "row_tokens": self.rows.shape[1],
                "sha256_of_ids": self._text_digest,
            },
            "settings": asdict(self.settings),
            "budget_s": None if math.isinf(self.budget.seconds) else self.budget.seconds,
            "environment": {
                "device": torch.cuda.get_device_name(self._placement.device)
                if self._placement.device.type == "cuda"
                else "cpu",
                "dtype": self.request.dtype,
                "threads": torch.get_num_threads(),
                "hispec": version("hispec"),
                "torch": torch.__version__,
                "transformers": version("transformers"),
                "python": platform.python_version(),
            },
        }


def _plain(profile: Profile) -> dict[str, Any]:
    """Return a profile as a person would write it: nothing that is the default."""
    return {"schema": 1} | profile.model_dump(by_alias=True, exclude_defaults=True)


def _listed(exits: Sequence[int]) -> str:
    *most, last = map(str, exits)
    return f"exits {', '.join(most)} and {last}" if most else f"exit {last}"
