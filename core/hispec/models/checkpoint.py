"""The configuration, generation config and tokenizer of a checkpoint.

The files are found by `checkpoint_files`, the weights are read by `checkpoint_weights`. None of the three imports torch, so
that a mistake is reported before seconds are spent on the import.
"""

import warnings
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hispec.errors import UnavailableError, UsageError
from hispec.models import gguf, gguf_hub, gguf_names
from hispec.models.checkpoint_files import ADAPTER, CONFIG, GENERATION_CONFIG, TOKENIZER, VOCABULARIES
from hispec.models.checkpoint_weights import CheckpointWeights
from hispec.models.hub import quieten_transformers
from hispec.profile import Profile, models_of

if TYPE_CHECKING:
    from hispec.models.config import ModelConfig


class Checkpoint(CheckpointWeights):
    """A model: its files, fetched from the hub when they are asked for, its weights and its configuration.

    Arguments and attributes are those of `CheckpointFiles`.
    """

    @cached_property
    def config(self) -> "ModelConfig":
        """Return its configuration.

        Raises:
            UsageError: no such folder, or an architecture that cannot be decoded hierarchically.
            UnavailableError: the hub cannot be reached or has no such model.
        """
        from hispec.models.interpret import interpret, interpret_original  # takes seconds: it imports torch

        values = self._config_values()
        config = interpret(values, self.shown)
        if config is not None:
            return config
        original = self.load_original()
        with self.explaining():
            config = interpret_original(original, self.shown)
        return replace(config, gguf=values["gguf"], dtype=values.get("dtype")) if self.gguf_file is not None else config

    def _config_values(self) -> dict[str, Any]:
        """Return the object in `config.json`, or the values of a GGUF file in its place. Raises the errors of
        `config`.
        """
        self.check_name()
        if self.header is not None:
            return self._values(self.header)
        with self.explaining():  # fails early: `transformers` would try, and wait, once more
            if self.find(CONFIG) is None and not self.is_local:
                gguf_hub.check_other(self.model, self.revision)
        if self.is_local and self.here(ADAPTER):
            raise UsageError(
                f"{self.model} has an adapter ({ADAPTER}) next to its weights, which hispec does not apply",
                f"merge it into the weights by merge_and_unload of peft, or move {ADAPTER} out of the folder",
            )
        try:
            return self.read(CONFIG)
        except ValueError as error:
            raise UnavailableError(
                f"config.json of {self.model} is not a JSON object: {error}", "download or save the model again"
            ) from error

    def load_original(self) -> Any:
        """Return the configuration as `transformers` understands it; errors as `config`."""
        from transformers import AutoConfig

        quieten_transformers()
        if self.header is not None:
            return self._original_of(self.header)
        with self.explaining():
            source = str(self.shipped or self.model)
            return AutoConfig.from_pretrained(source, revision=self.commit, trust_remote_code=False)

    def _original_of(self, header: gguf.Header) -> Any:
        """Return the configuration of a GGUF file as `transformers` has it; errors as `config`."""
        from transformers import AutoConfig

        if header.architecture in gguf_names.ARCHITECTURES:
            values = self._values(header)
            return AutoConfig.for_model(**{key: value for key, value in values.items() if key != "gguf"})
        try:
            return AutoConfig.from_pretrained(**self.gguf_arguments())
        except (ValueError, KeyError, TypeError, NotImplementedError):
            raise UsageError(
                f"{self.name} has the architecture {header.architecture!r}, which transformers does not read from GGUF",
                f"choose one of these: {', '.join(gguf_names.ARCHITECTURES)}; or the model in safetensors",
            ) from None

    def gguf_arguments(self) -> dict[str, str]:
        """Return the arguments of `from_pretrained` of tokenizers and configurations for its GGUF file.

        It is the file itself, or its header alone where that is all there is of it here; errors as `header`.
        """
        path = self._header_file
        assert path is not None
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}

    @property
    def depth(self) -> int | None:
        """Return the number of layers, None where the configuration does not say it or is not on this machine (yet)."""
        depth = (self.read_here(CONFIG) or {}).get("num_hidden_layers")
        return depth if isinstance(depth, int) else None

    def generation_config(self) -> dict[str, Any]:
        """Return the content of `generation_config.json`, empty if it is broken, for random weights and for a GGUF file.

        Where there is none its options are looked for in `config.json`, as `transformers` does.

        Raises:
            UnavailableError: the hub cannot be reached.
        """
        if self.dummy or self.gguf_file is not None:
            return {}
        with self.explaining():
            try:
                return self.read(GENERATION_CONFIG if self.find(GENERATION_CONFIG) is not None else CONFIG)
            except ValueError as error:
                warnings.warn(f"generation_config.json is not a JSON object and is ignored: {error}", stacklevel=2)
                return {}

    def generation_config_here(self) -> dict[str, Any]:
        """Return the generation config as far as its file is on this machine; a broken one counts as empty."""
        if self.dummy or self.gguf_file is not None:
            return {}
        absent = self._look(GENERATION_CONFIG, self.revision) is False
        return self.read_here(CONFIG if absent else GENERATION_CONFIG) or {}

    def tokenizer_folder(self) -> str:
        """Return the folder of its tokenizer on this machine, after downloading it. Raises the errors of `find`."""
        config = self.find(CONFIG)
        found = [self.find(name) for name in TOKENIZER]
        if self.is_local or config is None:
            return self.model
        if found[0] is None:
            for name in VOCABULARIES:
                self.find(name)
        return str(config.parent)


def checkpoints_of(profile: Profile, *modes: str, dummy: bool = False) -> dict[str, Checkpoint]:
    """Return the checkpoints that modes of a profile read, by the names that it has for them, the target's first."""
    models = {name: revision for mode in modes for name, revision in models_of(profile, mode).items()}
    return {name: Checkpoint(name, revision, dummy) for name, revision in models.items()}
