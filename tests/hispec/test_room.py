"""Prompts that the context does not hold: found by the beginning where they are far too long, by their tokens otherwise."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hispec.room import CHARACTERS, TooLongError, check_beginning, check_room
from hispec.text import encode_prompt

CONTEXT = 20


@pytest.fixture
def tokenizer():
    """One token a word, of any length."""
    raw = Tokenizer(models.WordLevel(vocab={"?": 0}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template="{{ messages[0].content }}")


def test_a_text_that_is_far_too_long_is_refused_by_its_beginning(tokenizer):
    seen = []

    def tokenize(text, **options):
        seen.append(text)
        return tokenizer(text, **options)

    text = "a " * 100_000
    with pytest.raises(
        TooLongError, match="the first 160 of 200,000 characters have 80 tokens, and the context holds 20"
    ):
        check_beginning(tokenize, text, CONTEXT)
    assert seen == [text[: CHARACTERS * CONTEXT]]


@pytest.mark.parametrize("raw", [True, False])
def test_a_prompt_is_refused_so_with_a_template_and_without(tokenizer, raw):
    with pytest.raises(TooLongError, match="the first 160 of"):
        encode_prompt(tokenizer, "a " * 1000, raw=raw, context=CONTEXT)
    assert len(encode_prompt(tokenizer, "a " * 1000, raw=raw)) == 1000


@pytest.mark.parametrize("raw", [True, False])
def test_a_long_text_of_few_tokens_is_not_refused(tokenizer, raw):
    text = f"{'a' * 100_000} b {' ' * 100_000} c"
    assert encode_prompt(tokenizer, text, raw=raw, context=CONTEXT) == [0] * 3


def test_as_many_tokens_as_the_context_holds_leave_no_room():
    assert check_room([0] * (CONTEXT - 1), CONTEXT, "model") == 1
    with pytest.raises(TooLongError, match="the prompt has 20 tokens, and the context of model holds 20") as refused:
        check_room([0] * CONTEXT, CONTEXT, "model")
    assert refused.value.hint == "shorten the prompt by at least 1 token"
