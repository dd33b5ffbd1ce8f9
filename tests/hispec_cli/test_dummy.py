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


def test_bench_says_what_agreement_was_chosen(hispec, tmp_path):
    options = ("--limit", "1", "--warmup", "0", "--max-new-tokens", "8", "--arms", "hispec,autoregressive")
    page = tmp_path / "report.md"
    outcome = hispec(
        "bench", "--load-format", "dummy", "--dummy-agreement", "0.5,0.7", *options, "--format", "json", "-o", page
    )
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert report["synthetic_weights"] is True
    assert report["environment"]["agreement"]["asked"] == [0.5, 0.7]
    assert "was chosen" in page.read_text()


def test_agreement_needs_dummy_weights(hispec):
    outcome = hispec("generate", "Hello", "--dummy-agreement", "0.5,0.7")
    assert outcome.code == 2
    assert "--load-format dummy" in outcome.err


def test_every_shipped_profile_is_valid_offline(hispec):
    for name, _ in list_profiles():
        assert hispec("profile", "validate", name).code == 0
