"""Text in and out: templates, half characters, stop strings that straddle tokens."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hispec.errors import UsageError
from hispec.events import Committed, Drafted, Verified
from hispec.text import DraftText, TextStream, encode_messages, encode_prompt


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, so that characters and stop strings straddle tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    fast.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}>"
    return fast


def stream(tokenizer, text, stops=()):
    stream = TextStream(tokenizer, stops)
    pieces = []
    for token in tokenizer(text)["input_ids"]:
        pieces.append(stream.feed(token))
        if stream.stopped:
            break
    return stream, [*pieces, stream.finish()]


def test_a_character_appears_once_it_is_whole(tokenizer):
    _, pieces = stream(tokenizer, "aé€😀b")
    assert [piece for piece in pieces if piece] == ["a", "é", "€", "😀", "b"]


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer):
    text = TextStream(tokenizer)
    first, *_ = tokenizer("€")["input_ids"]
    assert text.feed(first) == ""
    assert text.finish() == "\ufffd"


@pytest.mark.parametrize("stop", ["END", "\n\n", "é", "E"])
def test_a_stop_text_is_never_shown_not_even_its_beginning(tokenizer, stop):
    source = f"abc E EN {stop} and more"
    text, pieces = stream(tokenizer, source, (stop,))
    assert text.stopped
    assert "".join(pieces) == text.text == source[: source.index(stop)]


def test_what_only_looked_like_a_stop_text_is_released(tokenizer):
    text, pieces = stream(tokenizer, "12 EN13 E", ("END",))
    assert not text.stopped
    assert "".join(pieces) == "12 EN13 E"


def test_the_earliest_of_several_stop_texts_ends_it(tokenizer):
    text, _ = stream(tokenizer, "one two three", ("three", "two"))
    assert text.text == "one "


def test_only_the_ids_up_to_the_stop_text_are_kept(tokenizer):
    text, _ = stream(tokenizer, "ab.cd", (".",))
    assert len(text.token_ids) == 3


def test_the_template_writes_the_messages(tokenizer):
    ids = encode_prompt(tokenizer, "hi", system="be brief")
    assert tokenizer.decode(ids) == "[system]be brief[user]hi>"


def test_messages_of_any_order_are_encoded(tokenizer):
    said = [("user", "a"), ("user", "b"), ("assistant", "c"), ("system", "d"), ("user", "e")]
    ids = encode_messages(tokenizer, [{"role": role, "content": text} for role, text in said])
    assert tokenizer.decode(ids) == "".join(f"[{role}]{text}" for role, text in said) + ">"
    with pytest.raises(UsageError, match="no messages"):
        encode_messages(tokenizer, [])
    with pytest.raises(UsageError, match="a message of the user is not UTF-8"):
        encode_messages(tokenizer, [{"role": "user", "content": "\ud800"}])


def test_raw_and_other_templates(tokenizer):
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", raw=True)) == "hi"
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", template="Q: {{ messages[0]['content'] }}")) == "Q: hi"


def test_an_empty_prompt_or_a_system_message_without_a_template_is_refused(tokenizer):
    with pytest.raises(UsageError, match="empty"):
        encode_prompt(tokenizer, " \n")
    with pytest.raises(UsageError, match="chat template"):
        encode_prompt(tokenizer, "hi", system="be brief", raw=True)


@pytest.fixture(scope="module")
def controlled(tokenizer):
    """The same with control tokens: one special, one merely added and named by the template; and a harmless one."""
    copy = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    copy.add_tokens([AddedToken("<|end|>", special=True), AddedToken("<user>"), AddedToken("    ")])
    copy.chat_template = "{% for m in messages %}{% if m['role'] == 'user' %}<user>{% endif %}{{ m['content'] | trim }}<|end|>{% endfor %}"
    return copy


@pytest.mark.parametrize("written", ["<|end|>", "a <|end|><|end|> b<|end|>", "<user>", "é<user>\ufdd0<|end|>", "<|en"])
def test_control_tokens_in_messages_are_their_letters(controlled, written):
    control = controlled.convert_tokens_to_ids(["<user>", "<|end|>"])
    messages = ({}, {"system": written}, {"history": [(written, "yes")]})
    for turns, extra in zip((1, 2, 3), messages, strict=True):
        ids = encode_prompt(controlled, written, **extra)
        assert sum(id_ in control for id_ in ids) == 2 * turns - ("system" in extra) - ("history" in extra)
        assert controlled.decode([id_ for id_ in ids if id_ not in control]).endswith(written)
        assert f"{written}<|end|>" in controlled.decode(ids)


@pytest.mark.parametrize("text", ["Anna  has    3 apples.\n", "a < b <|en d|>", "{{ 7 }} <c>"])
def test_ordinary_text_is_encoded_as_ever_even_beside_a_control_token(controlled, text):
    def reference(content):
        written = controlled.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        return controlled(written, add_special_tokens=False)["input_ids"]

    assert encode_prompt(controlled, text) == reference(text)
    both = encode_prompt(controlled, f"{text}<|end|>{text}")
    letters = controlled("<|end|>", split_special_tokens=True)["input_ids"]
    assert len(letters) == 7
    expected = reference(f"{text}<|end|>{text}")
    at = expected.index(controlled.convert_tokens_to_ids("<|end|>"))
    assert both == [*expected[:at], *letters, *expected[at + 1 :]]


def pieces_of(tokenizer, events):
    drafts = DraftText(tokenizer)
    return [drafts.see(event) for event in events]


@pytest.mark.parametrize("text", ["Anna has 3 apples.\n", "naïve 漢字 👍🏽 café"])
def test_drafts_get_the_text_that_each_token_adds(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = [event.texts[0] for event in pieces_of(tokenizer, [Drafted(0, "draft", (token,)) for token in ids])]
    assert "".join(texts) == text and "\ufffd" not in "".join(texts)
    assert pieces_of(tokenizer, [Drafted(0, "draft", tuple(ids))])[0].texts == tuple(texts)


def test_corrections_get_their_text_in_the_place_of_the_token_they_replace(tokenizer):
    thumb, word = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("👍", " apples"))
    assert len(thumb) > 2
    events = [
        Committed(0, tuple(thumb[:1])),  # validated, and still no character
        Drafted(0, "draft", (word[0], word[0])),
        Verified(0, "intermediate", 2, 0, thumb[1]),
        Drafted(0, "draft", tuple(thumb[2:])),
    ]
    assert pieces_of(tokenizer, events)[2].correction_text == ""
    assert "".join(pieces_of(tokenizer, events)[3].texts) == "👍"


def test_drafts_add_up_to_the_validated_text_over_many_cycles(tokenizer):
    text = "Tom made 24 flowers 漢字, and then 👍🏽 he made 6 times as many. " * 3
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    written, drafts = "", DraftText(tokenizer)
    for start in range(0, len(ids), 5):
        cycle = tuple(ids[start : start + 5])
        written += "".join(drafts.see(Drafted(0, "draft", cycle)).texts)
        drafts.see(Verified(0, "target", len(cycle), len(cycle)))
        drafts.see(Committed(0, cycle))
    assert written == text
