"""`hispec generate` on the shipped model: formats, prompts, options."""

import json

from tests.hispec_cli.conftest import QUESTION

KEYS = {"schema", "profile", "prompt", "text", "token_ids", "finish_reason", "stats", "environment"}
STATS = {
    *("prompt_tokens", "new_tokens", "tokens_per_second", "time_to_first_token_s", "seconds", "target_passes"),
    *("tokens_per_target_pass", "levels"),
}


def as_json(hispec, *arguments, **keywords):
    outcome = hispec("generate", *arguments, "--format", "json", **keywords)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_plain_is_the_answer_and_nothing_else(hispec):
    outcome = hispec("generate", QUESTION)
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out == as_json(hispec, QUESTION)["text"] + "\n"
    assert "#### " in outcome.out


def test_json_has_the_published_keys(hispec):
    record = as_json(hispec, QUESTION)
    assert set(record) == KEYS
    assert set(record["stats"]) == STATS
    assert set(record["stats"]["seconds"]) == {"prefill", "draft", "intermediate", "target", "total"}
    assert [level["name"] for level in record["stats"]["levels"]] == ["draft", "intermediate"]
    assert set(record["stats"]["levels"][0]) == {
        *("name", "model", "exit_layer", "proposed", "accepted", "acceptance_rate"),
    }
    assert {"device", "dtype", "torch", "transformers", "revision"} <= set(record["environment"])
    assert (record["schema"], record["profile"], record["prompt"]) == ("hispec.generate/1", "tiny", QUESTION)
    assert record["finish_reason"] == "eos"
    assert record["stats"]["new_tokens"] == len(record["token_ids"])


def test_json_lines_tell_the_story_in_order_and_the_trace_is_the_same(hispec, tmp_path):
    outcome = hispec("generate", QUESTION, "--format", "jsonl", "--trace", tmp_path / "trace.jsonl")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.out == (tmp_path / "trace.jsonl").read_text()
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["prefilled", "committed"] and kinds[-1] == "finished"
    assert {"drafted", "judged"} <= set(kinds)
    times = [event["t"] for event in events]
    assert times == sorted(times)
    committed = [event for event in events if event["event"] == "committed"]
    finished = events[-1]
    assert "".join(event["text"] for event in committed) == finished["text"]
    assert [token for event in committed for token in event["token_ids"]] == finished["token_ids"]
    assert set(finished) == KEYS | {"event", "t"}


def test_every_mode_writes_the_same(hispec):
    modes = {mode: as_json(hispec, QUESTION, "--mode", mode) for mode in ("hispec", "single-layer", "autoregressive")}
    assert len({tuple(record["token_ids"]) for record in modes.values()}) == 1
    assert [len(record["stats"]["levels"]) for record in modes.values()] == [2, 1, 0]
    assert modes["autoregressive"]["stats"]["tokens_per_target_pass"] == 1
    assert modes["hispec"]["stats"]["tokens_per_target_pass"] > 1.5


def test_either_stack_writes_the_same_and_is_named(hispec, monkeypatch):
    fused = as_json(hispec, QUESTION)
    other = as_json(hispec, QUESTION, "--stack", "transformers")
    assert fused["token_ids"] == other["token_ids"]
    assert (fused["environment"]["stack"], other["environment"]["stack"]) == ("fused", "transformers")
    monkeypatch.setenv("HISPEC_STACK", "transformers")
    assert as_json(hispec, QUESTION, "--max-new-tokens", 2)["environment"]["stack"] == "transformers"


def test_exits_and_periods_change_the_work_but_not_the_text(hispec):
    plain = as_json(hispec, QUESTION)
    other = as_json(
        *(hispec, QUESTION, "--draft-exit", 3, "--intermediate-exit", 6),
        *("--draft-tokens", 2, "--validate-every", 2, "--policy", "static", "--dtype", "float32", "--device", "cpu"),
    )
    assert other["token_ids"] == plain["token_ids"]
    assert [level["exit_layer"] for level in other["stats"]["levels"]] == [3, 6]
    assert other["stats"]["target_passes"] > plain["stats"]["target_passes"]


def test_verify_compares_with_the_target_alone(hispec):
    outcome = hispec("generate", QUESTION, "--verify", "--format", "json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["verified"] is True
    assert "identical to the target's own" in outcome.err


def test_verify_exits_4_when_an_id_differs_and_still_shows_the_answer(hispec, monkeypatch):
    from hispec.decoding.engine import DecodeLoop

    # A rule that lets every draft through is what a broken engine would do.
    monkeypatch.setattr(DecodeLoop, "accepted", lambda self, level, waiting, *_: len(waiting))
    outcome = hispec("generate", QUESTION, "--verify", "--format", "json", "--draft-exit", 1)
    assert outcome.code == 4
    assert json.loads(outcome.out)["verified"] is False
    assert "differs from the target's own" in outcome.err


def test_max_new_tokens_cuts_exactly(hispec):
    whole = as_json(hispec, QUESTION)["token_ids"]
    for count in (1, 2, 7):
        record = as_json(hispec, QUESTION, "--max-new-tokens", count)
        assert (record["token_ids"], record["finish_reason"]) == (whole[:count], "length")


def test_a_stop_text_ends_the_answer_before_it(hispec):
    whole = as_json(hispec, QUESTION)["text"]
    record = as_json(hispec, QUESTION, "--stop", "###", "--stop", "never written")
    assert record["text"] == whole[: whole.index("###")]
    assert record["finish_reason"] == "stop"


def test_the_environment_sets_options_and_options_win(hispec, monkeypatch):
    monkeypatch.setenv("HISPEC_MAX_NEW_TOKENS", "3")
    monkeypatch.setenv("HISPEC_MODE", "autoregressive")
    assert len(as_json(hispec, QUESTION)["token_ids"]) == 3
    record = as_json(hispec, QUESTION, "--max-new-tokens", 5, "--mode", "hispec")
    assert len(record["token_ids"]) == 5 and record["stats"]["levels"]


def test_a_seed_gives_the_same_sampled_answer_again(hispec):
    options = ("--temperature", 1.5, "--top-p", 0.95, "--max-new-tokens", 30)
    first, again, other = (as_json(hispec, QUESTION, *options, "--seed", seed) for seed in (1, 1, 5))
    assert first["token_ids"] == again["token_ids"] != other["token_ids"]
    assert (first["seed"], other["seed"]) == (1, 5)
    unseeded = as_json(hispec, QUESTION, *options)
    assert as_json(hispec, QUESTION, *options, "--seed", unseeded["seed"])["token_ids"] == unseeded["token_ids"]
    assert as_json(hispec, QUESTION, *options, "--verify")["verified"]


def test_an_option_wins_over_the_profile_of_the_environment(hispec, monkeypatch, shipped_model):
    monkeypatch.setenv("HISPEC_PROFILE", "tinny")
    assert hispec("generate", QUESTION).code == 2
    assert as_json(hispec, QUESTION, "--model", shipped_model)["profile"] == str(shipped_model)
    assert as_json(hispec, QUESTION, "--profile", "tiny")["profile"] == "tiny"
    monkeypatch.setenv("HISPEC_DRAFT_TOKENS", "")  # empty is unset
    assert as_json(hispec, QUESTION, "--profile", "tiny")


def test_a_failed_verification_is_told_after_the_answer(hispec):
    outcome = hispec("generate", QUESTION, "--verify")
    assert outcome.out.endswith("\n") and outcome.err.startswith("verified: ")


def test_prompts_come_from_arguments_files_and_pipes(hispec, tmp_path):
    short = ("--max-new-tokens", 1)
    (tmp_path / "question.txt").write_text(QUESTION)
    assert as_json(hispec, f"@{tmp_path / 'question.txt'}", *short)["prompt"] == QUESTION
    assert as_json(hispec, "-", *short, stdin=QUESTION)["prompt"] == QUESTION
    assert as_json(hispec, *short, stdin=QUESTION)["prompt"] == QUESTION
    assert as_json(hispec, "How many?", *short, stdin="Anna has 3.")["prompt"] == "Anna has 3.\nHow many?"


def test_system_and_raw_change_what_the_model_reads(hispec):
    short = ("--max-new-tokens", 1)
    plain, system, raw = (
        as_json(hispec, QUESTION, *short, *extra)["stats"]["prompt_tokens"]
        for extra in ((), ("--system", "You are a helpful assistant."), ("--raw",))
    )
    assert raw < plain < system


def test_a_model_without_a_profile_drafts_with_what_it_can_have(hispec, shipped_model):
    def levels(*options):
        record = as_json(hispec, QUESTION, "--model", shipped_model, *options)
        found = [(level["exit_layer"], level.get("weights") == "int4") for level in record["stats"]["levels"]]
        return found, record["token_ids"]

    plain, ids = levels("--mode", "autoregressive")
    assert plain == []
    own = {
        (): [(0, False), (2, True), (16, True)],
        ("--draft-exit", 3): [(0, False), (3, True), (16, True)],
        ("--draft-exit", 3, "--intermediate-exit", 5): [(3, False), (5, False)],
        ("--stack", "transformers"): [(0, False), (2, False)],
        ("--quantization", "int8"): [(0, False), (2, False)],
    }
    for options, expected in own.items():
        found, written = levels(*options)
        assert found == expected
        assert written == ids or "--quantization" in options


def test_control_characters_from_a_model_never_reach_a_terminal():
    from hispec_cli.ui.safe_text import visible

    assert visible("a\x1b[31mb\x07\u202ec\r\x9b\n\td é €") == "a\\x1b[31mb\\x07\\u202ec\\r\\x9b\n\td é €"


def test_a_mode_without_an_intermediate_level_does_not_ask_where_it_is(hispec, monkeypatch):
    plain = as_json(hispec, QUESTION)["token_ids"]
    for exit_layer in (2, 5, 15):  # the profile's intermediate exit is 2
        record = as_json(hispec, QUESTION, "--mode", "single-layer", "--draft-exit", exit_layer)
        assert [level["exit_layer"] for level in record["stats"]["levels"]] == [exit_layer]
        assert record["token_ids"] == plain
    assert as_json(hispec, QUESTION, "--mode", "autoregressive", "--draft-exit", 5)["token_ids"] == plain
    monkeypatch.setenv("HISPEC_MODE", "single-layer")
    assert as_json(hispec, QUESTION, "--draft-exit", 5)["token_ids"] == plain
    both = hispec("generate", QUESTION, "--draft-exit", 5, "--intermediate-exit", 4)
    assert both.code == 2 and "must be deeper" in both.err


def test_lengths_that_do_not_go_together_are_told_and_answered(hispec):
    outcome = hispec("generate", QUESTION, "--draft-tokens", 20, "--format", "json")
    assert outcome.code == 0 and json.loads(outcome.out)["finish_reason"] == "eos"
    assert outcome.err.startswith("note: draft_tokens 20 is above validate_every 12")


def test_the_largest_seed_answers_again_and_the_next_is_refused(hispec):
    options = ("--temperature", 1.5, "--max-new-tokens", 20)
    largest = [as_json(hispec, QUESTION, *options, "--seed", 2**63 - 1) for _ in range(2)]
    assert largest[0]["token_ids"] == largest[1]["token_ids"] and largest[0]["seed"] == 2**63 - 1
    assert hispec("generate", QUESTION, *options, "--seed", 2**63).code == 2
