"""The progress of reading a checkpoint is reported while it is read, by hispec or by `transformers`."""

import shutil
from itertools import pairwise

import pytest
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from hispec.errors import UnavailableError
from hispec.models.checkpoint import Checkpoint
from hispec.models.loading import load_stack
from hispec.models.placement import Placement


@pytest.mark.parametrize("stack", ["fused", "transformers"])
def test_bytes_are_told_from_none_to_all(shipped_model, stack):
    seen = []
    load_stack(Checkpoint("builtin:tiny"), Placement(stack=stack), watch=seen.append)
    assert {(one.doing, one.what) for one in seen} == {("reading", "builtin:tiny")}
    sizes = {one.size for one in seen}
    assert sizes == {(shipped_model / "model.safetensors").stat().st_size}
    done = [one.done for one in seen]
    assert done[0] == 0 and done[-1] > 0.9 * max(sizes) and len(done) > 100
    assert all(before <= after for before, after in pairwise(done))
    assert logging.set_tqdm_hook(None) is None  # what was there before is there again


def test_what_does_not_fit_is_refused_before_anything_is_read(shipped_model, tmp_path):
    folder, seen = shutil.copytree(shipped_model, tmp_path / "model"), []
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][1:].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnavailableError, match=r"model\.norm\.weight is missing or misshapen"):
        load_stack(Checkpoint(str(folder)), Placement(stack="fused"), watch=seen.append)
    assert [one.done for one in seen] == [0]
