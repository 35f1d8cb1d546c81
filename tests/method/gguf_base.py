"""A tiny Llama as llama.cpp would store it, written a second time, row by row, to check what the adapters are written for."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def stored_row(row: int, heads: int, rows: int) -> int:
    """Return where llama.cpp keeps a row of q or k: it rotates rows 2i and 2i + 1 of a head, transformers rows i and i + size/2."""
    size = rows // heads
    head, inside = divmod(row, size)
    half, index = divmod(inside, size // 2)
    return head * size + 2 * index + half


def to_stored(rows: Tensor, heads: int) -> Tensor:
    result = torch.empty_like(rows)
    for row in range(rows.shape[0]):
        result[stored_row(row, heads, rows.shape[0])] = rows[row]
    return result


def from_stored(rows: Tensor, heads: int) -> Tensor:
    return torch.stack([rows[stored_row(row, heads, rows.shape[0])] for row in range(rows.shape[0])])


def heads_of(config: Any, name: str) -> int | None:
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.rsplit(".", maxsplit=1)[-1])


def tensor_name(name: str) -> str:
    """Return llama.cpp's name of a parameter."""
    parts = name.split(".")
    if parts[1] == "layers":
        return f"blk.{parts[2]}.{NAMES[parts[-2]]}.{parts[-1]}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(name, "output.weight")


def write_llama(model: LlamaForCausalLM, path: Path) -> Path:
    """Write the model in float32 with a vocabulary of made-up words."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_words(writer, config.vocab_size)
    for name, parameter in model.named_parameters():
        heads = heads_of(config, name.rpartition(".")[0])
        values = parameter.detach() if heads is None else to_stored(parameter.detach(), heads)
        writer.add_tensor(tensor_name(name), np.ascontiguousarray(values.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_words(writer: gguf.GGUFWriter, count: int) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"t{index}" for index in range(3, count))])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([2, 3, 3, *[1] * (count - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
