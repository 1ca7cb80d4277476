"""A tiny Llama in a GGUF file, as llama.cpp's own converter writes one. No paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain_plugins.errors import importing_extra

__all__ = ["CHAT_TEMPLATE", "bare_llama", "write_gguf"]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Unknown, BOS, and EOS that is the pad token as well, as in SmolLM2."""
NORMAL, CONTROL = 1, 3  # kinds of tokens
MERGES = ("h e", "l l", "he ll")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bare_llama() -> Any:
    """Return a Llama with the same random weights each time: hidden 32, two layers, four heads, two of keys."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(_tokens()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
        initializer_range=0.3,  # large, so that a weight in the wrong place moves every logit
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def write_gguf(file: Path, architecture: str = "llama") -> Path:
    """Write `bare_llama` in float32, with a byte-level tokenizer of three merges and a ChatML template.

    Args:
        file: where to.
        architecture: what the file calls it.

    Raises:
        InputError: gguf is not installed.
    """
    with importing_extra("a tiny GGUF file", "gguf", "gguf"):
        from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    model, tokens = bare_llama(), _tokens()
    config, heads = model.config, model.config.num_attention_heads
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(file, architecture)
    for name, value in _fields(config, tokens).items():
        getattr(writer, f"add_{name}")(value)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():  # a tied head is no parameter of its own
        rows = weight.detach()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbours, transformers the halves of a head
            rows = rows.unflatten(0, (-1, 2, config.hidden_size // heads // 2)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(names.get_name(name, (".weight",)), rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _fields(config: Any, tokens: list[str]) -> dict[str, Any]:
    """Return what a GGUF file says of its model and its tokenizer, by the names of `GGUFWriter`'s methods."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "rope_freq_base": config.rope_parameters["rope_theta"],
        "rope_dimension_count": config.hidden_size // config.num_attention_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "vocab_size": len(tokens),
        "tokenizer_model": "gpt2",  # byte-level BPE
        "token_list": tokens,
        "token_types": [CONTROL if one in SPECIAL else NORMAL for one in tokens],
        "token_merges": MERGES,
        **{f"{name}_token_id": id for name, id in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2))},
        "chat_template": CHAT_TEMPLATE,
    }


def _tokens() -> list[str]:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # one for each byte
    return [*SPECIAL, *letters, *(merge.replace(" ", "") for merge in MERGES)]
