"""Real models small enough to train in a second: a seeded Llama of two layers, and a tokenizer of one token a byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, which many models speak."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1 and 2; bytes follow. ``<|im_end|>`` ends a sequence."""


def make_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE, merges: tuple[tuple[str, str], ...] = (), **options: Any) -> Any:
    """Return a tokenizer of bytes, with ``merges`` of two symbols into one, that ends a sequence with ``<|im_end|>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *[left + right for left, right in merges]]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        **options,
    )
    fast.chat_template = chat_template
    return fast


def make_model(*, seed: int = 0, layers: int = 2, width: int = 64, vocabulary: int = 320, **options: Any) -> Any:
    """Return a Llama with random weights that depend on ``seed`` alone; large ones, so that an edit of them can learn."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
        **{"initializer_range": 0.3, **options},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def make_model_folder(folder: Path, *, seed: int = 0, layers: int = 2, width: int = 64) -> Path:
    """Write a tiny model and its tokenizer into ``folder`` as ``save_pretrained`` does, and return the folder."""
    make_model(seed=seed, layers=layers, width=width).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def chat_row(question: str, answer: str) -> dict[str, Any]:
    """Return one row of a chat data set."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_sums(path: Path, count: int, *, start: int = 0) -> Path:
    """Write ``count`` rows of one-digit sums as JSONL, different ones from each ``start`` on, and return the path."""
    rows = [chat_row(f"{n // 10 % 10}+{n % 10}=", str(n // 10 % 10 + n % 10)) for n in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
