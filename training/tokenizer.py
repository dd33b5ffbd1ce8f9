"""The shipped model's tokenizer: byte-level BPE over the generated text, every digit a token of its own."""

from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.problems import conversations

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train_tokenizer(vocab_size: int, seed: int, samples: int = 20_000, context: int = 2048) -> PreTrainedTokenizerFast:
    """Learn the merges from `samples` generated conversations.

    Args:
        vocab_size: upper bound; the generated text may support fewer merges.
        seed: of the generated text.
        samples: number of conversations read.
        context: the longest input, in tokens, that the tokenizer announces.
    """
    tokenizer = Tokenizer(models.BPE())
    # Digits first: a number is then read digit by digit, which is what makes column arithmetic learnable.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, SYSTEM, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source = conversations(Random(seed))
    texts = (message["content"] for _ in range(samples) for message in next(source))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": [SYSTEM, USER, ASSISTANT]})
    fast.chat_template = CHAT_TEMPLATE
    return fast
