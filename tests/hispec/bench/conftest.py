"""The shipped model once, and short answers: what is measured here is the measuring."""

import pytest

from hispec import Engine


@pytest.fixture(scope="package")
def engine():
    return Engine.from_profile("tiny", max_new_tokens=16)
