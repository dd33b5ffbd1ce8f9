"""Streamed text against the decoding of all ids at once, over kinds of tokenizers and random ids."""

from random import Random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hispec.text import TextStream

WORDS = ["a", "b", "s", "t", "m", "n", "e", "do", "not", "hello", "world", "tion", "é", "漢", "👍", "\ufffd", "12"]
SIGNS = [".", ",", "?", "!", "'", "n't", "'s", "'ve", "'re", "'m", "ve", "re", " ", "  ", "\n", "-"]
BYTES = [f"<0x{byte:02X}>" for byte in (0x0A, 0x20, 0x41, 0x80, 0x82, 0x9F, 0xA4, 0xAC, 0xC3, 0xE2, 0xF0, 0xFF)]
ADDED = [AddedToken("<think>"), AddedToken("  "), AddedToken("é!"), AddedToken("<|end|>", special=True)]
CORPUS = ["Hello world, it isn't a tion. naïve 漢字 👍🏽 café!", "They're 12 apples; I've two ' s."] * 4


def byte_level():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    return raw


def byte_fallback(strip=1):
    """Like that of Llama 2, which strips the first space; Gemma's does not."""
    tokens = [*BYTES, *WORDS, *SIGNS, *(f"▁{word}" for word in WORDS), "▁", "▁▁", "▁,", "▁."]
    vocab = {token.replace(" ", "▁▁▁") if token.isspace() else token: None for token in dict.fromkeys(tokens)}
    raw = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(vocab)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", strip, 0)] if strip else steps)
    return raw


def gemma():
    return byte_fallback(strip=0)


def strip_more():
    return byte_fallback(strip=3)


def unigram():
    tokens = ["<unk>", "▁", *WORDS, *SIGNS, *(f"▁{token}" for token in (*WORDS, *SIGNS))]
    raw = Tokenizer(models.Unigram([(token, -1.0) for token in dict.fromkeys(tokens)], unk_id=0))
    raw.decoder = decoders.Metaspace()
    return raw


def unigram_bytes():
    """Like that of T5 and others, with bytes for characters that are not in the vocabulary."""
    tokens = ["<unk>", *BYTES, "▁", *WORDS, *SIGNS, *(f"▁{token}" for token in (*WORDS, *SIGNS))]
    model = models.Unigram([(token, -1.0) for token in dict.fromkeys(tokens)], unk_id=0, byte_fallback=True)
    raw = Tokenizer(model)
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return raw


def word_piece(cleanup=True):
    tokens = ["[UNK]", *WORDS, *SIGNS, *(f"##{token}" for token in (*WORDS, *SIGNS))]
    raw = Tokenizer(models.WordPiece({t: i for i, t in enumerate(dict.fromkeys(tokens))}, unk_token="[UNK]"))
    raw.decoder = decoders.WordPiece(cleanup=cleanup)
    return raw


def word_piece_as_is():
    return word_piece(cleanup=False)


def with_suffix():
    tokens = [*WORDS, *SIGNS, *(f"{word}</w>" for word in (*WORDS, *SIGNS))]
    vocab = {token: id_ for id_, token in enumerate(dict.fromkeys(tokens))}
    raw = Tokenizer(models.BPE(vocab, [], end_of_word_suffix="</w>"))
    raw.decoder = decoders.BPEDecoder()
    return raw


def no_decoder():
    tokens = [*WORDS, *SIGNS]
    return Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate(tokens)}, unk_token="a"))


KINDS = (
    byte_level,
    byte_fallback,
    gemma,
    strip_more,
    unigram,
    unigram_bytes,
    word_piece,
    word_piece_as_is,
    with_suffix,
    no_decoder,
)


def fast(raw, **options):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **options)
    tokenizer.add_tokens(ADDED)
    return tokenizer


def streamed(tokenizer, ids, stops=()):
    """The pieces, each with what all of it was then; the text must only grow."""
    stream, pieces = TextStream(tokenizer, stops), []
    for token in ids:
        pieces.append(stream.feed(token))
        assert stream.text == "".join(pieces)
    pieces.append(stream.finish())
    assert stream.text == "".join(pieces)
    return stream.text


def random_ids(random, size):
    """Some long, some of few distinct tokens so that odd neighbours are frequent; beyond the vocabulary, too."""
    length = random.choice((3, 6, 12, 40))
    ids = [random.randrange(size + 3) for _ in range(length)]
    few = random.sample(range(size + 3), 5)
    return [random.choice(few) if random.random() < random.choice((0.0, 0.7)) else id_ for id_ in ids]


@pytest.mark.parametrize("clean", [False, True], ids=["as it is", "cleaned up"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_streamed_text_is_what_decoding_all_ids_gives(kind, clean, request):
    tokenizer = fast(kind(), clean_up_tokenization_spaces=clean)
    random = Random(f"{kind.__name__}/{clean}")
    for _ in range(request.config.getoption("--sequences")):
        ids = random_ids(random, len(tokenizer))
        assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True), ids


def test_cleaning_up_a_bpe_where_a_checkpoint_forces_it(request):
    options = {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
    tokenizer = fast(byte_level(), clean_up_tokenization_spaces=True, **options)
    assert tokenizer.decode(tokenizer("a .")["input_ids"]) == "a."
    random = Random("bpe")
    for _ in range(request.config.getoption("--sequences")):
        text = "".join(random.choice([*SIGNS, " n", " '", "a", "ab"]) for _ in range(12))
        ids = tokenizer(text)["input_ids"]
        assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True), text


def most_decoded(tokenizer, ids_of_text, monkeypatch):
    """The largest number of tokens that are decoded at once to stream a text."""
    ids = ids_of_text(tokenizer)
    decode, most = tokenizer.decode, 0

    def counted(ids, **options):
        nonlocal most
        most = max(most, len(ids))
        return decode(ids, **options)

    expected = decode(ids, skip_special_tokens=True)
    monkeypatch.setattr(tokenizer, "decode", counted)
    assert streamed(tokenizer, ids) == expected
    return most


def test_a_text_of_characters_in_several_tokens_is_streamed_a_few_tokens_at_a_time(monkeypatch):
    assert most_decoded(fast(byte_level()), lambda tokenizer: tokenizer("😀漢" * 200)["input_ids"], monkeypatch) <= 10


@pytest.mark.parametrize("kind", [byte_level, byte_fallback, word_piece], ids=lambda kind: kind.__name__)
def test_a_long_text_is_streamed_a_few_tokens_at_a_time(kind, monkeypatch):
    def words(tokenizer):
        return [id_ for id_ in range(len(tokenizer)) if tokenizer.decode([id_]).isalpha()] * 100

    assert most_decoded(fast(kind()), words, monkeypatch) <= 10


def ids_of(tokenizer, *tokens):
    return tokenizer.convert_tokens_to_ids(list(tokens))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (("<0x0A>", "<0xF0>", "hello"), "\ufffd\ufffdhello"),
        (("<0x41>", "<0xF0>", "<0x9F>", "▁a"), "\ufffd\ufffd\ufffd a"),
        (("hello", "<0x0A>", "<0xF0>"), "hello\ufffd\ufffd"),
        (("<0xFF>",), "\ufffd"),
        (("<0xE2>", "<|end|>", "<0x82>", "<0xAC>"), "€"),
    ],
)
def test_bytes_that_never_become_a_character_are_shown_as_such(tokens, text):
    tokenizer = fast(byte_fallback())
    ids = ids_of(tokenizer, *tokens)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert streamed(tokenizer, ids) == text


@pytest.mark.parametrize("kind", [byte_level, byte_fallback, unigram], ids=lambda kind: kind.__name__)
def test_a_word_appears_with_its_token(kind):
    tokenizer = fast(kind())
    words = {"hello", "world", "tion", "▁hello", "▁not", "12"}
    ids = [
        id_ for token, id_ in tokenizer.get_vocab().items() if (token.isascii() and token.isalpha()) or token in words
    ]
    stream = TextStream(tokenizer)
    assert all(stream.feed(token) for token in ids)


def test_a_byte_that_ends_an_answer_is_seen_at_once():
    tokenizer = fast(byte_fallback())
    stream = TextStream(tokenizer, ["\n"])
    for token in ids_of(tokenizer, "hello", "<0x0A>"):
        stream.feed(token)
    assert stream.stopped and stream.text == "hello"


STOPS = (
    ("hello<|end|>world", "<|end|>", "hello"),
    ("hello world<|end|>", "world<|end|>", "hello "),
    ("hello<|end|>, and", "<|end|>,", "hello"),
    ("a<|end|><|end|>b", "<|end|><|end|>", "a"),
    ("a<|end|>b<|end|><|end|>c", "<|end|><|end|>", "ab"),
    ("hello <|end|> world", " <|end|> w", "hello"),
    ("hello<|end|>world", "|end", "hello"),
)


@pytest.mark.parametrize(("source", "stop", "text"), STOPS)
def test_a_stop_text_may_have_special_tokens_in_it(source, stop, text):
    tokenizer = fast(byte_level())
    stream = TextStream(tokenizer, ["never", stop])
    ids = tokenizer(source)["input_ids"]
    pieces = []
    for token in ids:
        pieces.append(stream.feed(token))
        if stream.stopped:
            break
    assert stream.stopped
    assert "".join(pieces) + stream.finish() == stream.text == text
    until = len(stream.token_ids)
    assert stop in tokenizer.decode(ids[:until]) and stop not in tokenizer.decode(ids[: until - 1])


def test_text_around_a_special_token_that_only_began_a_stop_text_is_released():
    tokenizer = fast(byte_level())
    assert streamed(tokenizer, tokenizer("hello<|end|>world")["input_ids"], ["<|end|>!", "o<|end|>x"]) == "helloworld"
