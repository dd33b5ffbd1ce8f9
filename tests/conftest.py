"""Shared by all tests: no network, few threads, and tiny random models whose exits disagree with each other."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from hispec.profile import resolve_model
from tests.support import random_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session", params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def model(request):
    """A random four-layer Llama in float32."""
    return random_model("llama", seed=request.param)


@pytest.fixture(scope="session")
def shipped_model():
    """The folder of the model that ships with the package."""
    return Path(resolve_model("builtin:tiny"))
