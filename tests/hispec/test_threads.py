"""The number of threads is measured, unless somebody has said it."""

import pytest
import torch

from hispec import threads
from hispec.threads import fastest_threads, tune_threads
from tests.support import fused_stack, random_model


@pytest.fixture
def stack():
    return fused_stack(random_model())


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def costs(monkeypatch):
    """Seconds by number of threads, and which were measured."""
    measured, seconds = [], {1: 1.0, 2: 0.6, 3: 0.5, 4: 0.4, 6: 0.3, 8: 0.2}

    def timed(_stack):
        measured.append(torch.get_num_threads())
        return seconds[measured[-1]]

    monkeypatch.setattr(threads, "_seconds", timed)
    return seconds, measured


@pytest.mark.parametrize(
    ("changes", "most", "best", "tried"),
    [
        ({}, 4, 4, [1, 2, 4]),
        ({}, 6, 6, [1, 2, 4, 6]),
        ({}, 1, 1, [1]),
        ({4: 0.7}, 8, 2, [1, 2, 4]),  # slower: eight are not tried
        ({2: 1.1}, 4, 1, [1, 2]),
        ({2: 0.97, 4: 0.96}, 4, 1, [1, 2, 4]),  # hardly faster is not worth a thread
        ({2: 0.97, 4: 0.5}, 4, 4, [1, 2, 4]),
    ],
)
def test_the_fastest_number_is_found_without_trying_all(stack, costs, changes, most, best, tried):
    costs[0].update(changes)
    assert fastest_threads(stack, most) == best
    assert costs[1] == tried
    assert torch.get_num_threads() == 4


def test_what_is_measured_is_set(stack, costs):
    costs[0][4] = 2.0
    assert tune_threads(stack, {}) == torch.get_num_threads() == 2


@pytest.mark.parametrize("name", [*threads.SET_BY_USERS, "WORLD_SIZE"])
def test_what_the_user_or_a_launcher_has_set_stays(stack, costs, name):
    assert tune_threads(stack, {name: "4"}, known=1) == torch.get_num_threads() == 4
    assert not costs[1]


def test_what_is_known_is_not_measured_again_where_the_machine_has_as_many(stack, costs):
    assert tune_threads(stack, {}, known=3) == torch.get_num_threads() == 3
    torch.set_num_threads(4)
    assert not costs[1]
    assert tune_threads(stack, {}, known=5) == 4


def test_a_gpu_is_left_alone(stack, costs):
    stack.device = torch.device("cuda")
    assert tune_threads(stack, {}) == 4 and not costs[1]


def test_a_real_measurement_leaves_the_model_ready(stack):
    lease = stack.cache.lease = object()
    assert fastest_threads(stack, 2) in (1, 2)
    assert stack.cache.lease is not lease, "a decoding that was under way must notice that its cache is gone"


def test_an_interrupted_measurement_leaves_the_threads_as_they_were(stack, monkeypatch):
    def interrupted(_stack):
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "_seconds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastest_threads(stack, 2)
    assert torch.get_num_threads() == 4
