"""Translators belong to a model and to a level, change what drafts, and never what is written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hispec import Engine, custom_generate
from hispec.calibration.job import job_of
from hispec.calibration.recording import LevelSpec, Recorder
from hispec.calibration.search import Configuration
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.errors import HispecError, ProfileError, UnavailableError
from hispec.events import Drafted
from hispec.models.checkpoint import Checkpoint
from hispec.models.dummy import dummy_tokenizer
from hispec.models.transformers_stack import TransformersStack
from hispec.models.translator import Provenance, Translator, TranslatorFile, digest_of_model, save_translators
from hispec.profile import Profile, read_profile
from tests.support import PROMPT, decode_ids, fused_stack, greedy_by_hand, random_model

VOCAB = 300
STACKS = {"transformers": lambda model: TransformersStack(model, "random"), "fused": fused_stack}


def random_translator(hidden=32, seed=0, scale=0.1):
    rng = torch.Generator().manual_seed(seed)
    return Translator(scale * torch.randn(hidden, hidden, generator=rng), scale * torch.randn(hidden, generator=rng))


def provenance(**changes):
    return replace(Provenance("some/model", None, None, 32, 4, (1, 2), {"steps": 3}), **changes)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "exits.safetensors"
    save_translators(path, {1: random_translator(seed=1), 2: random_translator(seed=2)}, provenance())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("model")
    random_model(vocab=VOCAB).save_pretrained(folder)
    dummy_tokenizer(VOCAB).save_pretrained(folder)
    return folder


@pytest.fixture(params=STACKS)
def stack(request):
    return STACKS[request.param](random_model())


def with_translators(stack, *translators):
    levels = [Level(f"exit {e}", stack, e, None, one) for e, one in enumerate(translators, start=1)]
    return Hierarchy([*levels, Level("target", stack, 4)])


def test_a_translator_adds_an_affine_map(stack):
    one, hidden = random_translator(), torch.randn(5, 32)
    torch.testing.assert_close(one.on(stack)(hidden), hidden + hidden @ one.weight + one.bias)


def test_the_identity_changes_nothing(stack):
    hidden = stack.embed(PROMPT)
    same = Translator(torch.zeros(32, 32), torch.zeros(32)).on(stack)
    torch.testing.assert_close(same(hidden), hidden, rtol=0, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_output_is_the_targets_whatever_translators_do(stack, seed):
    expected = greedy_by_hand(random_model(), 24)
    hierarchy = with_translators(stack, random_translator(seed=seed), random_translator(seed=seed + 9))
    assert decode_ids(hierarchy, (1, 2, 4), max_new_tokens=24) == expected


def test_a_translator_decides_what_its_level_says_through_whole_and_reduced_heads(stack):
    head = random_model().lm_head.weight.detach()
    longest = int(head.norm(dim=1).argmax())  # a state that points along this row is this token, through any norm
    one = Translator(torch.zeros(32, 32), 1000 * head[longest]).on(stack)
    drafted = []

    def see(_, event):
        drafted.extend(event.token_ids if isinstance(event, Drafted) else ())

    for reduced in (None, stack.reduce_head(torch.tensor(sorted({2, longest, 9})))):
        hierarchy = Hierarchy([Level("draft", stack, 1, reduced, one), Level("target", stack, 4)])
        assert decode_ids(hierarchy, (3, 3), after_event=see) == greedy_by_hand(random_model(), 12)
    assert set(drafted) == {longest}
    recorder = Recorder({"m": stack}, [LevelSpec("m", 1), LevelSpec("m", 2)], {}, "m", {("m", 1): one})
    predictions = recorder.record(PROMPT, [7, 8, 9]).predictions
    assert set(predictions[LevelSpec("m", 1)].argmax) == {longest} != set(predictions[LevelSpec("m", 2)].argmax)


def test_the_target_has_none(stack):
    one = random_translator().on(stack)
    with pytest.raises(ValueError, match="must not have a translator"):
        Hierarchy([Level("target", stack, 4, None, one)])


def test_files_give_back_what_was_saved(saved):
    file = TranslatorFile(saved)
    assert file.provenance == provenance() and file.read(3) is None
    torch.testing.assert_close(file.read(2).weight, random_translator(seed=2).weight, rtol=0, atol=0)
    torch.testing.assert_close(file.read(2).bias, random_translator(seed=2).bias, rtol=0, atol=0)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]  # nothing half-written stays


def rewrite(path, change):
    """Save a file again with other tensors or metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def flip(tensors, _):
    tensors["exits.2.weight"][3, 4] += 1


def shrink(tensors, _):
    tensors["exits.2.bias"] = tensors["exits.2.bias"][:5].clone()


def lose(tensors, _):
    del tensors["exits.1.bias"]


def forget(_, metadata):
    del metadata["provenance"]


def muddle(_, metadata):
    metadata["provenance"] = json.dumps({"model": "x"})


def disguise(_, metadata):
    metadata["schema"] = "something/else"


@pytest.mark.parametrize("damage", [flip, shrink, lose, forget, muddle])
def test_damaged_files_are_refused(saved, damage):
    rewrite(saved, damage)
    with pytest.raises(UnavailableError) as caught:
        file = TranslatorFile(saved)
        for exit_ in (1, 2):
            file.read(exit_)
    assert "damaged" in caught.value.message and "hispec fit-exits" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_files_cut_short_are_refused(saved, content):
    saved.write_bytes(saved.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UnavailableError, match="damaged"):
        TranslatorFile(saved)


def test_other_files_and_none_are_refused(saved, tmp_path):
    rewrite(saved, disguise)
    with pytest.raises(ProfileError, match="holds no translators"):
        TranslatorFile(saved)
    with pytest.raises(ProfileError, match="there are no translators at"):
        TranslatorFile(tmp_path / "none")


def profile_of(folder, path, **changes):
    data = {"name": "p", "target": {"model": str(folder), "dtype": "float32"}, "translators": str(path)}
    return Profile.model_validate(data | {"draft": {"exit_layer": 1}, "intermediate": {"exit_layer": 2}} | changes)


def save_for(folder, path, digest, **changes):
    save_translators(
        path,
        {1: random_translator(seed=1), 2: random_translator(seed=2)},
        provenance(model="a/b", model_digest=digest, **changes),
    )


@pytest.mark.parametrize("kind", STACKS)
def test_engines_read_the_exits_of_a_profile_through_its_translators(folder, tmp_path, kind):
    path = tmp_path / "exits.safetensors"
    save_for(folder, path, digest_of_model(Checkpoint(str(folder)), 4))
    engine = Engine.from_profile(profile_of(folder, path), stack=kind, max_new_tokens=20)
    draft, intermediate, target = engine.hierarchy.levels
    assert engine.environment["stack"] == kind and target.translator is None
    torch.testing.assert_close(draft.translator.weight, random_translator(seed=1).weight)
    torch.testing.assert_close(intermediate.translator.weight, random_translator(seed=2).weight)
    answer = engine.generate("hello")
    engine.check_lossless(answer)
    assert answer.lossless
    # An exit that has none is read as it is, and one of another model never through those of the target.
    other = engine.with_profile(profile_of(folder, path, intermediate={"exit_layer": 3}))
    assert [level.translator is None for level in other.hierarchy.levels] == [False, True, True]
    assert other.generate("hello").token_ids == answer.token_ids
    # `calibrate` looks at the exits as they will be read.
    job = job_of(engine, [PROMPT] * 6, budget=1.0)
    assert job.translators.keys() == {(str(folder), 1), (str(folder), 2)}
    chosen = Configuration((LevelSpec(str(folder), 1), LevelSpec(str(folder), 3)), (1, 2))
    assert [level.translator is None for level in job.builder.hierarchy(chosen).levels] == [False, True, True]


def test_exits_of_a_copy_are_read_through_the_translators_of_the_target(folder, tmp_path):
    path = tmp_path / "exits.safetensors"
    save_for(folder, path, digest_of_model(Checkpoint(str(folder)), 4))
    levels = {"draft": {"exit_layer": 1, "weights": "int4"}, "intermediate": {"weights": "int8"}}
    engine = Engine.from_profile(profile_of(folder, path, **levels), max_new_tokens=20)
    draft, whole, _ = engine.hierarchy.levels
    torch.testing.assert_close(draft.translator.weight, random_translator(seed=1).weight)
    assert whole.translator is None
    answer = engine.generate("hello")
    engine.check_lossless(answer)
    assert answer.lossless


def test_translators_of_other_shapes_and_other_weights_are_refused(folder, tmp_path):
    path = tmp_path / "exits.safetensors"
    save_for(folder, path, None, num_layers=5)
    with pytest.raises(ProfileError, match=r"are for a/b \(5 layers of 32\), and .* has 4 layers of 32"):
        Engine.from_profile(profile_of(folder, path))
    save_for(folder, path, digest_of_model(Checkpoint(str(folder)), 4)[:-1] + "!")
    with pytest.raises(ProfileError, match="are for a/b, not for these of"):
        Engine.from_profile(profile_of(folder, path))


def test_a_digest_tells_siblings_apart_and_does_not_depend_on_the_folder(folder, tmp_path):
    own = digest_of_model(Checkpoint(str(folder)), 4)
    sibling = random_model(vocab=VOCAB)
    sibling.save_pretrained(tmp_path / "same")
    assert digest_of_model(Checkpoint(str(tmp_path / "same")), 4) == own
    sibling.model.layers[3].mlp.down_proj.weight.data[0, 0] += 1e-3
    sibling.save_pretrained(tmp_path / "tuned")
    assert digest_of_model(Checkpoint(str(tmp_path / "tuned")), 4) not in (own, None)
    assert digest_of_model(Checkpoint(str(tmp_path / "none")), 4) is None


def test_profiles_name_translators_relative_to_themselves(tmp_path, monkeypatch):
    (tmp_path / "p.yaml").write_text("target: {model: a/b}\ndraft: {exit_layer: 1}\ntranslators: t.safetensors\n")
    assert read_profile(tmp_path / "p.yaml").translators == str(tmp_path / "t.safetensors")
    monkeypatch.chdir(tmp_path)
    assert read_profile(Path("p.yaml")).translators == str(tmp_path / "t.safetensors")


def test_generate_of_transformers_takes_them(folder, tmp_path, saved):
    model = random_model(vocab=VOCAB)
    inputs = torch.tensor([PROMPT])
    plain = model.generate(inputs, max_new_tokens=20, do_sample=False)
    ours = model.generate(
        inputs, max_new_tokens=20, do_sample=False, custom_generate=custom_generate, translators=saved
    )
    assert ours.tolist() == plain.tolist()
    save_for(folder, saved, "another", hidden_size=32)
    model.config.name_or_path = str(folder)
    with pytest.raises(HispecError, match="are for a/b"):
        model.generate(inputs, max_new_tokens=2, custom_generate=custom_generate, translators=saved)
