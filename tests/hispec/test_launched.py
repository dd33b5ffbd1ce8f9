"""The place of a process among those that torchrun or accelerate started with it."""

import pytest

from hispec.errors import UsageError
from hispec.launched import LaunchedProcess, check_launched, is_first, launched, started_by_torchrun

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


@pytest.fixture
def environment(monkeypatch):
    def given(*values):
        for name, value in zip(NAMES, values, strict=True):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return given


@pytest.mark.parametrize(
    ("values", "place", "by_torchrun", "first"),
    [
        ((None, None, None, None), LaunchedProcess(), 1, True),
        (("1", "0", "0", "x"), LaunchedProcess(), 1, True),
        (("4", "0", "0", "x"), LaunchedProcess(4, 0, 0), 4, True),
        (("4", "3", "1", "x"), LaunchedProcess(4, 3, 1), 4, False),
        (("4", "3", "1", None), LaunchedProcess(4, 3, 1), 1, False),
    ],
)
def test_the_place_is_what_the_launcher_says(environment, values, place, by_torchrun, first):
    environment(*values)
    assert (launched(), started_by_torchrun(), is_first()) == (place, by_torchrun, first)


@pytest.mark.parametrize("values", [("2", None, "0", "x"), ("2", "0", None, "x"), ("two", "0", "0", "x")])
def test_an_environment_that_no_launcher_makes_is_refused(environment, values):
    environment(*values)
    with pytest.raises(UsageError, match="not as torchrun sets it"):
        launched()


def test_work_is_shared_only_among_several_that_torchrun_started(environment):
    environment("2", "0", "0", None)
    with pytest.raises(UsageError, match="one process for each device"):
        check_launched()
    environment("2", "0", "0", "x")
    check_launched()
