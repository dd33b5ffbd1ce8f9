"""Gates fail only when they are sure, and typing errors are found before the run."""

import pytest

from hispec.bench.gates import OPERATORS, accepted_keys, parse_gate
from hispec.bench.record import Estimate
from hispec.errors import UsageError
from tests.hispec.bench.examples import report

ARMS = ("hispec", "single-layer", "autoregressive", "hf")


@pytest.fixture(scope="module")
def made():
    """A report whose speed-up over plain decoding is 2 to 3, around 2.5, and its accuracy 0.9."""
    made = report(ARMS, rows=14)
    first = made.arms[0].model_copy(
        update={
            "speedup": {"autoregressive": Estimate(value=2.5, ci95=(2.0, 3.0)), "hf": Estimate(value=5.0, ci95=None)},
            "tokens_per_second": 100.0,
            "ci95": (90.0, 110.0),
            "tokens_per_target_pass": 5.5,
            "accuracy": made.arms[0].accuracy.model_copy(update={"value": 0.9}),
        }
    )
    return made.model_copy(update={"arms": [first, *made.arms[1:]]})


def outcome(expression, report):
    return parse_gate(expression, [arm.name for arm in report.arms]).apply(report).outcome


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("speedup<1.2", "passed"),
        ("speedup<2", "passed"),  # nowhere below 2
        ("speedup<=2", "inconclusive"),
        ("speedup<2.4", "inconclusive"),
        ("speedup<2.6", "inconclusive"),  # though 2.5 is below
        ("speedup<3", "inconclusive"),
        ("speedup<=3", "failed"),
        ("speedup<3.1", "failed"),
        ("speedup.autoregressive.value<2.6", "inconclusive"),  # naming the value drops no interval
        ("speedup>3", "passed"),
        ("speedup>=3", "inconclusive"),
        ("speedup>1.9", "failed"),
        ("speedup>=2", "failed"),
        ("speedup==2.5", "inconclusive"),
        ("speedup==4", "passed"),
        ("speedup!=2.5", "inconclusive"),
        ("speedup!=4", "failed"),
        ("tokens_per_second<95", "inconclusive"),
        ("tokens_per_second<111", "failed"),
        ("tokens_per_target_pass<2", "passed"),
        ("tokens_per_target_pass<5.6", "failed"),
        ("tokens_per_target_pass==5.5", "failed"),
        ("accuracy<0.9", "passed"),
        ("accuracy<0.91", "failed"),
        ("lossless.errors>0", "passed"),
        ("single-layer.lossless.ties>0", "failed"),
        ("speedup.hf<1", "inconclusive"),  # no interval: one prompt
    ],
)
def test_a_gate_fails_only_where_the_whole_interval_is_past_it(made, expression, expected):
    assert outcome(expression, made) == expected


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("limit", [1.0, 2.0, 2.5, 3.0, 4.0])
def test_the_verdict_is_that_of_every_point_of_the_interval(made, operator, limit):
    points = [2.0 + step / 64 for step in range(65)]
    held = [OPERATORS[operator](point, limit) for point in points]
    expected = "failed" if all(held) else "inconclusive" if any(held) else "passed"
    assert outcome(f"speedup{operator}{limit}", made) == expected


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("hispec.speedup.autoregressive.value<1", 2.5),
        (" speedup  <  1e0 ", 2.5),
        ("hispec.levels.draft.exit_layer<1", 1),
        ("levels.intermediate.exit_layer<1", 2),
        ("levels.1.exit_layer<1", 2),
        ("single-layer.levels.draft.exit_layer<1", 2),
        ("dataset.rows<1", 40),
        ("warmup<1", 3),
        ("config.draft_tokens<1", 2),
        ("config.sampling.temperature<0", 0.0),
        ("environment.threads<1", 1),
        ("hf.answers<1", 14),
    ],
)
def test_keys_are_paths_of_the_report(made, expression, value):
    assert parse_gate(expression, ARMS).apply(made).value == value


@pytest.mark.parametrize("key", accepted_keys())
def test_every_advertised_key_is_accepted_and_every_one_finds_its_number(made, key):
    for word, stand_in in {"BASELINE": "hf", "LEVEL": "draft", "PHASE": "target", "INDEX": "0"}.items():
        key = key.replace(word, stand_in)
    key = key.replace("config.KEY", "config.draft_tokens").replace("environment.KEY", "environment.threads")
    arm = "hispec." if key.split(".")[0] in type(made.arms[0]).model_fields else ""
    assert parse_gate(arm + key + ">-1", ARMS).apply(made).value is not None


@pytest.mark.parametrize(
    ("expression", "message", "hint"),
    [
        ("speedup", "cannot be read", "KEY OP NUMBER"),
        ("<1", "cannot be read", "KEY OP NUMBER"),
        ("", "cannot be read", "KEY OP NUMBER"),
        ("speedup<1 2", "cannot be read", "KEY OP NUMBER"),
        ("speedup=1", "operator =", "<= >"),
        ("speedup<<1", "operator <<", "<= >"),
        ("speedup<fast", "compares with fast", "KEY OP NUMBER"),
        ("speedup<nan", "compares with nan", "KEY OP NUMBER"),
        ("speedup<inf", "compares with inf", "KEY OP NUMBER"),
        ("speedp<1.2", "no key speedp", "did you mean speedup?"),
        ("hispec.tokens_per_pass<2", "no key hispec.tokens_per_pass", "did you mean tokens_per_target_pass?"),
        ("lossless.error>0", "no key lossless.error", "did you mean lossless.errors?"),
        ("lossless>0", "no key lossless that is a number", "lossless.identical"),
        ("zzz<1", "no key zzz", "keys: speedup, accuracy"),
        ("arms<1", "no key arms", ""),
        ("levels.draft<1", "no key levels.draft", "levels"),
        ("levels.draft.accepted_lengths.x<1", "no key levels.draft.accepted_lengths.x", "INDEX"),
        ("hispec.dataset.rows<1", "no key hispec.dataset.rows", "dataset.rows"),
        ("profile<1", "no key profile", "keys:"),
        ("config<1", "no key config", "config.KEY"),
        ("ci95<1", "no key ci95", ""),
        ("speedup.autoregressive.ci95.0<1", "no key", "speedup.BASELINE"),
        ("hf-assisted.tokens<1", "names the arm hf-assisted", "this run has hispec, single-layer"),
        ("speedup.prompt-lookup<1", "over prompt-lookup", "autoregressive, hf, single-layer"),
        ("autoregressive.speedup<1", "with itself", ""),
    ],
)
def test_mistakes_are_found_before_the_run(expression, message, hint):
    with pytest.raises(UsageError) as caught:
        parse_gate(expression, ARMS)
    assert message in caught.value.message and hint in caught.value.hint


def test_a_speedup_over_an_arm_that_is_not_run_is_refused_before_the_run():
    with pytest.raises(UsageError) as caught:
        parse_gate("speedup.hf<1", ["hispec", "autoregressive"])
    assert "does not measure" in caught.value.message and "--arms" in caught.value.hint


def test_a_figure_that_a_complete_run_lacks_fails_and_says_so(made):
    verdict = parse_gate("hf.tokens_per_target_pass<2", ARMS).apply(made)
    assert (verdict.outcome, verdict.value) == ("failed", None)
    assert "no value in this run" in verdict.message
    assert outcome("config.prompt<1", made) == "failed"


def test_a_figure_that_an_interrupted_run_lacks_is_inconclusive(made):
    cut_short = made.model_copy(update={"status": "interrupted"})
    assert outcome("hf.tokens_per_target_pass<2", cut_short) == "inconclusive"


def test_one_prompt_is_never_sure_of_a_speed():
    single = report(ARMS, rows=1)
    for expression in ("speedup<100", "tokens_per_second<1e9"):
        verdict = parse_gate(expression, ARMS).apply(single)
        assert verdict.outcome == "inconclusive" and "no interval" in verdict.message


def test_the_message_tells_value_interval_and_limit(made):
    assert parse_gate("speedup<2.4", ARMS).apply(made).message == (
        "hispec.speedup.autoregressive is 2.5, 95 % interval 2 to 3, with 2.4 inside: more rows or repeats would tell"
    )
