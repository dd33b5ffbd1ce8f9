"""Conversations: reusing what was run changes nothing, and nothing validated is ever lost."""

import re
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch

from hispec import Engine
from hispec.conversation import Conversation, turn_seed
from hispec.errors import OutOfMemoryError, UsageError
from hispec.events import Committed, Finished, Prefilled
from hispec.grammar import Grammar
from hispec.session import Turn
from hispec.text import encode_prompt

FIRST = "Anna has 3 apples. Ben has 4 times as many. How many apples do they have together?"
SECOND = "Ben has 12 cards. Mei gives Ben 5 more. How many cards does Ben have?"
SAMPLED = {"temperature": 1.2, "seed": 5}


@pytest.fixture(scope="module", params=["fused", "transformers"])
def engine(request):
    return Engine.from_profile("tiny", max_new_tokens=40, stack=request.param)


def ask(conversation, prompt=None):
    """Let it answer, or answer again: (the tokens found in the cache, the new turn)."""
    events = list(conversation.retry() if prompt is None else conversation.ask(prompt))
    assert isinstance(events[0], Prefilled) and isinstance(events[-1], Finished)
    assert events[-1].result.token_ids == list(conversation.turns[-1].token_ids)
    return events[0].cached_tokens, conversation.turns[-1]


@pytest.fixture(scope="module")
def fresh(engine):
    """Gives the same conversation on weights of its own, with nothing run yet."""
    other = Engine.from_profile("tiny", stack=engine.settings.stack)

    def copy(conversation):
        settings = asdict(conversation.engine.settings)
        return Conversation(other.with_settings(**settings), conversation.system, conversation.turns)

    return copy


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_turns_have_the_ids_that_they_have_without_reuse(engine, fresh, settings):
    conversation = Conversation(engine.with_settings(**settings))
    ask(conversation, FIRST)
    for prompt in (SECOND, "Why?", FIRST):
        before = fresh(conversation)
        length = len(
            encode_prompt(engine.tokenizer, "x", history=[(turn.prompt, turn.answer) for turn in conversation.turns])
        )
        cached, turn = ask(conversation, prompt)
        assert ask(before, prompt) == (0, turn)
        assert cached > length - 12  # all but the newest words and the template around them


def test_undo_retry_and_set_leave_the_cache_right(engine, fresh):
    conversation = Conversation(engine)
    for prompt in (FIRST, SECOND):
        ask(conversation, prompt)
    assert conversation.undo().prompt == SECOND
    steps = [
        {"prompt": "What is 2 + 2?"},
        {"prompt": None},
        {"settings": SAMPLED, "prompt": SECOND},
        {"settings": {"mode": "autoregressive"}, "prompt": None},
        {"settings": {"mode": "single-layer"}, "prompt": FIRST},
        {"settings": {"mode": "hispec"}, "prompt": SECOND},
        {"settings": {"policy": "adaptive", "temperature": 0}, "prompt": FIRST},
        {"system": "Be brief.", "prompt": FIRST},
    ]
    for step in steps:
        conversation.engine = conversation.engine.with_settings(**step.get("settings", {}))
        conversation.system = step.get("system", conversation.system)
        reference = fresh(conversation)
        cached, turn = ask(conversation, step["prompt"])
        assert ask(reference, step["prompt"]) == (0, turn)
        assert (cached > 0) == ("system" not in step)  # which begins the text


def test_answers_in_between_are_noticed(engine, fresh):
    conversation = Conversation(engine)
    ask(conversation, FIRST)
    expected = ask(fresh(conversation), SECOND)[1]
    engine.generate("What is 2 + 2?")  # takes the caches
    assert ask(conversation, SECOND) == (0, expected)


@pytest.mark.parametrize("count", range(1, 14))
def test_an_answer_left_at_any_event_keeps_what_was_validated_and_a_right_cache(engine, fresh, count):
    conversation = Conversation(engine)
    events, seen = conversation.ask(FIRST), []
    for event in events:
        seen.append(event)
        if len(seen) == count:
            break
    events.close()
    ids = tuple(token for event in seen if isinstance(event, Committed) for token in event.token_ids)
    text = "".join(event.text for event in seen if isinstance(event, Committed))
    assert conversation.turns == ([Turn(FIRST, text, ids, "interrupted")] if ids else [])
    reference = fresh(conversation)
    cached, turn = ask(conversation, SECOND)
    assert turn == ask(reference, SECOND)[1] and cached > 0


def test_every_turn_and_every_attempt_at_it_has_random_numbers_of_its_own(engine):
    assert len({turn_seed(7, turn, attempt) for turn in range(20) for attempt in range(20)}) == 400
    assert turn_seed(7, 0) == 7 and turn_seed(2**63 - 1, 1) == 999_999
    conversation = Conversation(engine.with_settings(**SAMPLED))
    first = [ask(conversation, FIRST)[1] for _ in range(3)]
    assert [turn.seed for turn in first] == [5, 1_000_005, 2_000_005]
    ask(conversation)
    events = conversation.retry()
    while len(conversation.turns) == 3 and not isinstance(next(events), Committed):
        pass
    events.close()  # what is kept of a broken-off attempt knows its seed too
    seeds = [conversation.turns[-1].seed, ask(conversation)[1].seed]
    assert seeds == [2_000_007, 2_000_008]
    again = Conversation(engine.with_settings(**SAMPLED), turns=conversation.turns)
    assert ask(again)[1].seed == 2_000_009
    again.engine = engine.with_settings(**{**SAMPLED, "seed": 6})
    assert [ask(again)[1].seed, ask(again)[1].seed] == [2_000_010, 2_000_011]


def test_a_retry_draws_another_answer_and_failing_keeps_the_first(engine):
    conversation = Conversation(engine.with_settings(**SAMPLED))
    turns = [ask(conversation, FIRST)[1], *(ask(conversation)[1] for _ in range(3))]
    assert [turn.seed for turn in turns] == [5, 6, 7, 8] and len({turn.token_ids for turn in turns}) > 1
    assert conversation.turns == turns[-1:]
    events = conversation.retry()
    next(events)
    events.close()
    assert conversation.turns == turns[-1:]


def test_a_conversation_that_is_too_long_is_refused_and_stays(engine, fresh):
    conversation = Conversation(engine)
    ask(conversation, FIRST)
    turns = conversation.turns
    with pytest.raises(
        UsageError, match=r"the conversation has [\d,]+ tokens, and the context of tiny holds 2048"
    ) as error:
        conversation.ask("one two three " * 2000)
    assert error.value.hint.startswith("leave out earlier turns, or shorten the prompt by at least ")
    assert conversation.turns == turns
    reference = fresh(conversation)
    cached, turn = ask(conversation, SECOND)
    assert cached > 0 and turn == ask(reference, SECOND)[1]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_when_memory_ends_what_was_validated_is_kept_and_it_goes_on(engine, monkeypatch, error):
    conversation = Conversation(engine)
    whole = ask(conversation, FIRST)[1]
    conversation.undo()
    stack, runs = engine.stacks["builtin:tiny"], []
    run = stack.run

    def fail(*arguments, **options):
        runs.append(arguments)
        if len(runs) == 24:
            raise error
        return run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stack, "run", fail)
        with pytest.raises(OutOfMemoryError, match="out of memory after"):
            list(conversation.ask(FIRST))
    (kept,) = conversation.turns
    assert 0 < len(kept.token_ids) < len(whole.token_ids)
    assert whole.token_ids[: len(kept.token_ids)] == kept.token_ids and whole.answer.startswith(kept.answer)
    assert ask(conversation)[1] == whole


def test_when_memory_ends_while_the_cache_grows_nothing_is_lost(engine, fresh, monkeypatch):
    conversation = Conversation(engine)
    ask(conversation, FIRST)
    cache = engine.stacks["builtin:tiny"].cache
    long = "Tom has 24 pens. " * (cache.positions // 6)
    new_zeros, made = torch.Tensor.new_zeros, []

    def fail(*arguments, **options):
        made.append(arguments)
        if len(made) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return new_zeros(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_zeros", fail)
        with pytest.raises(OutOfMemoryError, match="out of memory after 0"):
            list(conversation.ask(long))
    reference = fresh(conversation)
    cached, turn = ask(conversation, long)
    assert cached > 0 and ask(reference, long)[1] == turn
    assert [turn.prompt for turn in conversation.turns] == [FIRST, long]


def test_reuse_runs_only_the_new_rows(engine, monkeypatch):
    conversation = Conversation(engine)
    ask(conversation, FIRST)
    stack, rows = engine.stacks["builtin:tiny"], []
    run = stack.run
    monkeypatch.setattr(
        stack,
        "run",
        lambda hidden, start, end, at, **options: (
            rows.append((at, len(hidden), start, end)) or run(hidden, start, end, at, **options)
        ),
    )
    events = conversation.ask(SECOND)
    prefilled = next(events)
    events.close()
    new = prefilled.prompt_tokens - prefilled.cached_tokens
    assert new < prefilled.prompt_tokens / 2
    assert [(at, count) for at, count, *_ in rows] == [(prefilled.cached_tokens, new)] * len(rows)
    assert rows[0][2] == 0 and rows[-1][3] == stack.num_layers
    assert all(before[3] == after[2] for before, after in pairwise(rows))


def test_nothing_to_take_back(engine):
    conversation = Conversation(engine)
    for act in (conversation.undo, conversation.retry):
        with pytest.raises(UsageError, match="no turn yet"):
            act()


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_grammar_begins_again_in_every_answer(engine, settings):
    digits = Grammar.regex("[0-9]{3}(, [0-9]{3}){3}!")
    engine = engine.with_settings(**settings)
    conversation = Conversation(engine, grammar=digits)
    for prompt in (FIRST, SECOND, None):
        history = [(turn.prompt, turn.answer) for turn in conversation.turns[: None if prompt else -1]]
        _, turn = ask(conversation, prompt)
        assert re.fullmatch("[0-9]{3}(, [0-9]{3}){3}!", turn.answer), turn.answer
        alone = engine.with_settings(mode="autoregressive")
        *_, end = alone.stream(turn.prompt, seed=turn.seed, grammar=digits, history=history)
        assert list(turn.token_ids) == end.result.token_ids
    conversation.grammar = None
    assert not ask(conversation, "Why?")[1].answer.endswith("!")
    with pytest.raises(UsageError, match="cannot be used"):
        Conversation(engine, grammar=Grammar.regex("("))
