"""`--load-format dummy` from the outside: it works end to end, and every result says that weights are synthetic."""

import json

from hispec.profile import list_profiles


def test_generate_says_that_weights_are_synthetic(hispec):
    outcome = hispec(
        "generate", "Hello", "--load-format", "dummy", "--max-new-tokens", "12", "--verify", "--format", "json"
    )
    assert outcome.code == 0
    assert "synthetic weights" in outcome.err
    record = json.loads(outcome.out)
    assert record["environment"]["weights"] == "dummy"
    assert record["verified"] is True


def test_bench_says_that_weights_are_synthetic(hispec):
    options = ("--limit", "2", "--warmup", "0", "--max-new-tokens", "8", "--arms", "hispec,autoregressive")
    outcome = hispec("bench", "--load-format", "dummy", *options, "--format", "json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert report["synthetic_weights"] is True
    assert report["environment"]["weights"] == "dummy"


def test_every_shipped_profile_is_valid_offline(hispec):
    for name, _ in list_profiles():
        assert hispec("profile", "validate", name).code == 0
