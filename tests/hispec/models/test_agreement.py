"""Random weights with a chosen agreement: it is met, where it is met depends on the text, and nothing becomes cheaper."""

import json

import pytest
import torch

from hispec.api import Engine
from hispec.early_exit import AGREEMENT
from hispec.errors import UsageError
from hispec.events import Committed, Verified
from hispec.models.agreement import COPY_TOLERANCE, FREQUENT, TOLERANCE, set_agreement
from hispec.models.checkpoint import Checkpoint
from hispec.models.loading import draw_stack
from hispec.models.placement import Placement
from hispec.precedence import SCHEMA, Agreement, read_agreement, resolve_settings
from hispec.profile import parse_profile, profile_for_model
from tests.support import random_model

EXITS = (1, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dummy")
    sizes = {"layers": 6, "vocab": 600, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    random_model("llama", max_position_embeddings=512, **sizes).config.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder):
    return dummy(folder, (0.55, 0.75))


def dummy(folder, agreement, **options):
    profile = profile_for_model(str(folder), 6, *EXITS)
    options = {"load_format": "dummy", "dtype": "float32", "max_new_tokens": 200} | options
    return Engine.from_profile(profile, dummy_agreement=agreement, policy="static", **options)


def prompts(count):
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 600, (count, 40), generator=rng).tolist()


def outcomes(engine, prompt):
    """The text, and per level each of its verifications on a token: whether it accepted."""
    verdicts, ids = {}, []
    for event in engine.decoder().decode(prompt, 200):
        if isinstance(event, Verified):
            verdicts.setdefault(event.level, []).extend(
                [True] * event.accepted + [False] * (event.accepted < event.proposed)
            )
        if isinstance(event, Committed):
            ids += event.token_ids
    return ids, verdicts


@pytest.mark.parametrize(
    ("agreement", "stack"), [((0.55, 0.75), "fused"), ((0.7, 0.88), "fused"), ((0.7, 0.88), "transformers")]
)
def test_the_acceptance_that_decoding_measures_is_the_chosen_one(folder, engine, agreement, stack):
    chosen = engine if (agreement, stack) == ((0.55, 0.75), "fused") else dummy(folder, agreement, stack=stack)
    alone = chosen.with_settings(mode="single-layer")
    verified = {"draft": [], "intermediate": []}
    for prompt in prompts(4):
        verified["draft"] += outcomes(alone, prompt)[1]["target"]
        verified["intermediate"] += outcomes(chosen, prompt)[1]["target"]
    for share, verdicts in zip(agreement, verified.values(), strict=True):
        assert len(verdicts) > 400
        assert sum(verdicts) / len(verdicts) == pytest.approx(share, abs=0.08)
    told = chosen.environment["agreement"]
    assert told["asked"] == list(agreement)
    assert told["measured"] == pytest.approx(agreement, abs=TOLERANCE)


def test_where_exits_agree_depends_on_the_text(engine):
    """After the very same last token they agree in some places and not in others, and no two texts share them."""
    stack = engine.hierarchy.stack_of(-1)
    texts = torch.tensor(prompts(8))
    texts[:, 1::2] = 7
    same = []
    with torch.inference_mode():
        stack.reserve(40)
        for text in texts.tolist():
            early = stack.run(stack.embed(text), 0, EXITS[1], 0)
            late = stack.run(early, EXITS[1], 6, 0)
            same.append((stack.head(early).argmax(-1) == stack.head(late).argmax(-1))[1::2])
    agrees = torch.stack(same).float()
    assert 0.4 < agrees.mean() < 0.95
    assert len({tuple(row.tolist()) for row in agrees}) == len(agrees)
    assert ((agrees.mean(0) > 0) & (agrees.mean(0) < 1)).float().mean() > 0.5  # most positions do both


@pytest.mark.parametrize("mode", ["hispec", "single-layer"])
def test_output_stays_what_the_model_alone_writes(engine, mode):
    chosen, alone = engine.with_settings(mode=mode), engine.with_settings(mode="autoregressive")
    for prompt in prompts(3):
        ids, _ = outcomes(chosen, prompt)
        assert ids == outcomes(alone, prompt)[0]
        assert len(set(ids)) > 60


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_stays_of_full_size_and_dense(folder, dtype):
    _, drawn = draw_stack(Checkpoint(str(folder), dummy=True), Placement(dtype=dtype))
    stack, parts = draw_stack(Checkpoint(str(folder), dummy=True), Placement(dtype=dtype))
    set_agreement(stack, parts, Agreement(dict(zip(EXITS, (0.6, 0.8), strict=True)), {}))
    assert {name: part.shape for name, part in parts.items()} == {name: part.shape for name, part in drawn.items()}
    for name, part in parts.items():
        assert part.isfinite().all()
        assert (part == 0).float().mean() < 0.001, name


def test_frequent_words_come_first(engine):
    """Reduced heads have something to leave out: most of a text consists of the first token ids."""
    ids = [token for prompt in prompts(3) for token in outcomes(engine, prompt)[0]]
    assert 0.5 < sum(token < FREQUENT for token in ids) / len(ids) < 0.95


@pytest.mark.parametrize(
    ("agreement", "message"),
    [((0.5,), "1 share,"), ((0.75, 0.55), "not rising"), ((0.5, 0.5), "not rising"), ((0.5, 1.0), "not rising")],
)
def test_shares_that_do_not_belong_to_the_exits_are_refused(folder, agreement, message):
    with pytest.raises(UsageError, match=message):
        dummy(folder, agreement)


LEVELS = "draft: {exit_layer: 1}\nintermediate: {weights: int4}"


def with_copy(folder, agreement, levels=LEVELS, **options):
    profile = parse_profile(f"target: {{model: {folder}}}\n{levels}", folder / "mine.yaml")
    options = {"load_format": "dummy", "dtype": "float32", "policy": "static"} | options
    return Engine.from_profile(profile, dummy_agreement=agreement, **options)


def test_the_agreement_of_a_copy_is_chosen_too(folder):
    engine = with_copy(folder, "0.6,int4=0.95", max_new_tokens=200)
    told = engine.environment["agreement"]
    assert json.loads(json.dumps(told["asked"])) == [0.6, ["int4", 0.95]]
    assert told["measured"][0] == pytest.approx(0.6, abs=TOLERANCE)
    assert told["measured"][1] == ["int4", pytest.approx(0.95, abs=COPY_TOLERANCE)]
    verified = {"intermediate": [], "target": []}
    for prompt in prompts(4):
        ids, verdicts = outcomes(engine, prompt)
        assert ids == outcomes(engine.with_settings(mode="autoregressive"), prompt)[0]
        for level, found in verdicts.items():
            verified[level] += found
    for level, share, near in (("intermediate", 0.6, 0.09), ("target", 0.95, 0.03)):
        assert len(verified[level]) > 400
        assert sum(verified[level]) / len(verified[level]) == pytest.approx(share, abs=near)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_copy_of_an_ordinary_model_agrees_as_chosen_and_its_exits_seldom(tmp_path, dtype):
    random_model("llama", layers=16, vocab=600, hidden_size=64, head_dim=16).config.save_pretrained(tmp_path)
    stack, parts = draw_stack(Checkpoint(str(tmp_path), dummy=True), Placement(dtype=dtype))
    reached = set_agreement(stack, parts, Agreement({}, {"int4": 0.96}))
    assert reached.copies["int4"] == pytest.approx(0.96, abs=COPY_TOLERANCE)
    text = [id_ for prompt in prompts(4) for id_ in prompt][: stack.context]
    with torch.inference_mode():
        early = stack.run(stack.embed(text), 0, 2, 0)
        late = stack.run(early, 2, 16, 0)
        assert (stack.head(early).argmax(-1) == stack.head(late).argmax(-1)).float().mean() < AGREEMENT


def test_exits_are_named_by_number_whoever_reads_them(folder):
    levels = "draft: {exit_layer: 2, weights: int4}\nintermediate: {weights: int4}"
    told = with_copy(folder, (("2", 0.6), ("4", 0.8)), levels).environment["agreement"]
    assert [name for name, _ in told["measured"]] == ["2", "4"]
    assert [share for _, share in told["measured"]] == pytest.approx([0.6, 0.8], abs=TOLERANCE)
    in_order, _ = resolve_settings(
        {"dummy_agreement": "0.7", "load_format": "dummy"},
        parse_profile(f"target: {{model: {folder}}}\n{levels}", folder / "mine.yaml"),
    )
    assert in_order.dummy_agreement == (0.7,)


@pytest.mark.parametrize(
    ("agreement", "exits", "message"),
    [
        ("int5=0.9", [1], "neither an exit nor a copy"),
        ("0=0.9", [1], "neither an exit nor a copy"),
        ("1=0.5,1=0.6", [1], "names something twice"),
        ("int4=0.5,int4=0.6", [1], "names something twice"),
        ("0.5,3=0.6", [1, 3], "names some exits and not others"),
        ("3=0.5,1=0.6", [1], "not rising"),
        ("0.5,int4=0.9", [1, 3], "1 share, and the target is read at 2 exits"),
        ("int4=1", [], "not between 0 and 1"),
        ("int4=0.9,int8=0.99", [], "cannot be made to suit both"),
    ],
)
def test_shares_that_belong_to_nothing_are_refused(agreement, exits, message):
    shares = SCHEMA.validate_python({"dummy_agreement": agreement}).dummy_agreement
    with pytest.raises(UsageError, match=message):
        read_agreement(shares, exits)


def test_what_a_model_does_not_have_is_refused(folder):
    with pytest.raises(UsageError, match=r"names exit 6, and .* has 6 layers"):
        with_copy(folder, "6=0.9")
    with pytest.raises(UsageError, match="no copies on this stack"):
        with_copy(folder, "1=0.5,int4=0.9", "draft: {exit_layer: 1}", stack="transformers")


def test_many_layers_between_exits_count_as_much_as_few(tmp_path):
    """A few layers contribute as much as many do: neither exit meets its agreement at the other's cost."""
    random_model("llama", layers=16, vocab=600, hidden_size=32, head_dim=8).config.save_pretrained(tmp_path)
    stack, parts = draw_stack(Checkpoint(str(tmp_path), dummy=True), Placement(dtype="float32"))
    for agreement in ((0.61, 0.75), (0.77, 0.88)):
        reached = set_agreement(stack, parts, Agreement(dict(zip((3, 8), agreement, strict=True)), {}))
        assert [*reached.exits.values()] == pytest.approx(agreement, abs=TOLERANCE)


def test_what_is_not_met_is_told(folder, monkeypatch):
    monkeypatch.setattr("hispec.models.agreement.TOLERANCE", 0.0)
    with pytest.raises(UsageError, match=r"not on 0\.55"):
        dummy(folder, (0.55, 0.75))


def test_agreement_is_of_random_weights_only():
    with pytest.raises(UsageError, match="to random weights"):
        Engine.from_profile("tiny", dummy_agreement=(0.5, 0.7))


@pytest.mark.parametrize("text", ["high", "0.5,", "0.5;0.7", "1.5,2", "nan,0.5"])
def test_shares_are_numbers(folder, text):
    with pytest.raises(UsageError, match="--dummy-agreement"):
        resolve_settings({"dummy_agreement": text}, profile_for_model(str(folder), 6, *EXITS))


def test_shares_come_from_the_environment_too(folder):
    profile = profile_for_model(str(folder), 6, *EXITS)
    settings, _ = resolve_settings(
        {}, profile, environ={"HISPEC_DUMMY_AGREEMENT": "0.55, 0.75", "HISPEC_LOAD_FORMAT": "dummy"}
    )
    assert settings.dummy_agreement == (0.55, 0.75)
    assert json.loads(json.dumps(settings.to_record()))["dummy_agreement"] == [0.55, 0.75]
