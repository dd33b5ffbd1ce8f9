"""The weights of a checkpoint: its files, those that are missing, and the tensors in them."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hispec.errors import UnavailableError
from hispec.models import gguf_hub, gguf_tensors
from hispec.models.checkpoint_files import ONLINE, CheckpointFiles
from hispec.models.hub import is_offline
from hispec.models.tensors import Stored, Tensors, read_headers

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class CheckpointWeights(CheckpointFiles):
    """A checkpoint's files, and the weights in them. Pickled weights are never opened."""

    def tensors(self) -> Tensors:
        """Return the tensors, after downloading files that are missing. An index is used for the names of files only.

        Pickled weights are never touched.

        Raises:
            UnavailableError: the weights are missing, as for `missing`, or a file is damaged.
        """
        if self.gguf_file is not None:
            path = self.find(self.gguf_file)
            self._check_whole([self.gguf_file] if path is None else [], [self.gguf_file])
            assert path is not None
            return gguf_tensors.GgufTensors.of(self._read_header(path), path)
        shards = self.shards()
        paths = {name: self.find(name) for name in shards}
        self._check_whole([name for name, path in paths.items() if path is None], shards)
        stored: dict[str, Stored] = {}
        for path in filter(None, paths.values()):
            try:
                stored |= read_headers(path)
            except SafetensorError as error:
                raise self._damaged(path.name, error) from error
        return Tensors(stored)

    def tensors_here(self) -> Tensors | None:
        """Return the tensors, None where not all of them are on this machine or one of their files is damaged."""
        if self.gguf_file is not None:
            path, header = self._file_here, self.header_here
            return None if path is None or header is None else gguf_tensors.GgufTensors.of(header, path)
        paths = [self.here(name) for name in self._shards_here()]
        if None in paths:
            return None
        try:
            stored = {name: one for path in filter(None, paths) for name, one in read_headers(path).items()}
        except Exception:  # loading the model will report the error
            return None
        return Tensors(stored) if stored else None

    def held(self, quantization: str) -> dict[str, Any] | None:
        """Return the tensor types of a GGUF file, and those that are kept as stored; None for another checkpoint.

        Args:
            quantization: the quantization that was requested.

        Returns:
            `gguf`: the number of tensors of each type; `packed`: the types that keep their 4 bits. All others are
                dequantized, and quantized again only if no type keeps its own.
        """
        tensors, header = self.tensors_here(), self.header_here
        if tensors is None or header is None:
            return None
        return {"gguf": header.kinds, "packed": tensors.kinds_on_grid if quantization == "int4" else []}

    def fetch_headers(self, timeout: float) -> Tensors | None:
        """Return the tensors according to the headers on the hub, by a few small requests; None where they are not
        available.

        Args:
            timeout: seconds for each request.
        """
        from huggingface_hub import HfApi

        if self.is_local or is_offline():
            return None
        if self.gguf_file is not None:
            self.fetch_config(timeout)
            return None if self.header_here is None else gguf_tensors.GgufTensors.of(self.header_here, None)
        try:
            found = HfApi().get_safetensors_metadata(self.model, revision=self.revision, timeout=timeout)
        except Exception:  # loading the model will report the error
            return None
        stored = {
            name: Stored(str(info.dtype), tuple(info.shape), self.here(file))
            for file, headers in found.files_metadata.items()
            for name, info in headers.tensors.items()
        }
        return Tensors(stored) if stored else None

    def shards(self) -> list[str]:
        """Return the names of the files that hold the weights: one file, or those that an index lists.

        One file that holds them all wins over an index, as in `transformers`.

        Raises:
            UnavailableError: an index that names files outside of the checkpoint.
            ValueError: the index is malformed.
        """
        if self.gguf_file is not None:
            return [self.gguf_file]
        if self._look(WEIGHTS, self.commit):
            return [WEIGHTS]
        index = self.read(INDEX).get("weight_map")
        if index is None:
            return [WEIGHTS]
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise ValueError(f"{INDEX} has no map of weights")
        names = sorted(set(index.values()))
        for name in names:
            if Path(name).name != name:
                raise UnavailableError(
                    f"the index of {self.model} names a file outside of it: {name}", "choose another checkpoint"
                )
        return names

    def _shards_here(self) -> list[str]:
        """Return the names of the files that hold the weights, according to the files on this machine."""
        if self.here(WEIGHTS) is not None:
            return [WEIGHTS]
        listed = (self.read_here(INDEX) or {}).get("weight_map")
        return sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else [WEIGHTS]

    def missing(self) -> dict[str, int]:
        """Return the files of the weights that are yet to be downloaded, and their bytes.

        Raises:
            UnavailableError: there are no weights that can be loaded, or files that the index names are missing.
        """
        shards = self.shards()
        sizes = {name: self._size(name) for name in shards}
        self._check_whole([name for name, size in sizes.items() if size is None], shards)
        return {name: size for name, size in sizes.items() if size}

    def _check_whole(self, absent: list[str], shards: list[str]) -> None:
        """Refuse a checkpoint without weights, or with an index that names more than there is."""
        if not absent:
            return
        if self.gguf_file is not None:
            raise gguf_hub.no_file(self.model, self.gguf_file, self.revision)
        if shards != [WEIGHTS]:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise UnavailableError(
                f"the weights of {self.model} are incomplete: its index names {absent[0]}{more}, which is not there",
                self._complete("copy the whole folder, or save it again", "choose another revision"),
            )
        if (pickle := next((name for name in PICKLES if self._size(name) is not None), None)) is not None:
            raise UnavailableError(
                f"the weights of {self.model} are pickled ({pickle}), and unpickling could run any code: "
                "only safetensors are loaded",
                "choose a revision with safetensors, or load it where you trust it and save_pretrained it",
            )
        raise UnavailableError(
            f"{self.model} has no weights: neither {WEIGHTS} nor an index of shards",
            self._complete("check that the folder is complete, or save it again", "choose another checkpoint"),
        )

    def _complete(self, local: str, remote: str) -> str:
        """Return how to complete a checkpoint, in a folder or from the hub."""
        return local if self.is_local else ONLINE if is_offline() else remote

    def _damaged(self, name: str, error: SafetensorError) -> UnavailableError:
        hint = "download or save the model again"
        if not self.is_local:
            at = f" --revision {self.revision}" if self.revision else ""
            hint = f"download it again: hf download {self.model} {name}{at} --force-download"
        return UnavailableError(f"the weights of {self.model} are damaged: {name}: {error}", hint)
