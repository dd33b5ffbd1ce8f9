"""A recording of a drafter does not depend on other recorded levels, and ends when time is up."""

from random import Random

from hispec.calibration.recording import LevelSpec, Recorder, record_all
from tests.hispec.calibration.conftest import PROMPTS
from tests.support import decode_ids

READERS = [LevelSpec("random", exit_) for exit_ in range(1, 7)]


def test_branches_of_one_drafter_leave_those_of_the_others_alone(stack, hierarchy_at):
    recorder = Recorder({"random": stack}, READERS, {}, "random")
    written = decode_ids(hierarchy_at(), (1,), prompt=PROMPTS[0], max_new_tokens=30)
    text = recorder.record(PROMPTS[0], written)
    together = list(recorder.branches(PROMPTS[0], text, dict.fromkeys(READERS[:3], 4), 6, Random(1)))
    assert len({spec for spec, _ in together}) == 3
    for spec, branch in together:
        (mistake,) = branch.prompt
        best = text.predictions[spec].argmax
        places = [at for at, token in enumerate(best) if token == mistake and token != text.tokens[at]]
        alone = []
        for at in places:
            recorder.record(PROMPTS[0], written)  # what the caches hold is the text again
            alone.append(recorder._branch([*PROMPTS[0], *written[:at]], mistake, spec, 6))
        assert any(branch.tokens == other.tokens and branch.predictions == other.predictions for other in alone)


def test_where_time_is_short_a_few_texts_and_one_branch_of_each_are_recorded(stack, hierarchy_at):
    recorder = Recorder({"random": stack}, READERS, {}, "random")

    def write(prompt):
        return decode_ids(hierarchy_at(), (1,), prompt=list(prompt), max_new_tokens=12)

    recorded = record_all(recorder, PROMPTS * 3, write, Random(0), out_of_time=lambda: True)
    assert len(recorded.texts) == 8
    assert 1 <= sum(map(len, recorded.branches.values())) <= 8
