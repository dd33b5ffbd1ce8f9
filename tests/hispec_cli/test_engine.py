"""Loading an engine for the choices of the command line."""

from types import SimpleNamespace

import pytest

from hispec_cli.checks import choose
from hispec_cli.engine import on_own_device
from hispec_cli.options import ModelOptions


@pytest.mark.parametrize(
    ("options", "variable", "expected"),
    [({}, "", "cuda:1"), ({}, "cuda", "cuda:1"), ({}, "cpu", "cpu"), ({"device": "cuda:0"}, "cuda", "cuda:0")],
)
def test_a_process_takes_a_gpu_of_its_own_unless_its_device_is_said(monkeypatch, options, variable, expected):
    monkeypatch.setenv("HISPEC_DEVICE", variable)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    choice = choose(ModelOptions(), options)
    assert on_own_device(choice, SimpleNamespace(count=4, local_rank=3)).settings.device == expected
    assert on_own_device(choice, SimpleNamespace(count=1, local_rank=0)) is choice
