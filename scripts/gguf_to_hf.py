#!/usr/bin/env python3
"""Turns a GGUF file of the Llama architecture into a directory as on the Hugging Face Hub.

    pip install gguf safetensors numpy
    python scripts/gguf_to_hf.py FILE.gguf OUTDIR

Writes config.json, model.safetensors (f32; quantized tensors are dequantized), tokenizer.json, and
chat_template.jinja if the file has a chat template.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def to_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores the rows of q and k for interleaved rotary pairs, the Hub as two halves."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def tensors(reader: GGUFReader, heads: int, key_value_heads: int) -> dict:
    out = {}
    for tensor in reader.tensors:
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type)).astype(np.float32)
        name = tensor.name.removesuffix(".weight")
        if name in TOP_NAMES:
            key = TOP_NAMES[name]
        elif name.startswith("blk."):
            _, layer, part = name.split(".")
            if part in ("attn_q", "attn_k"):
                weight = to_halves(weight, heads if part == "attn_q" else key_value_heads)
            key = f"model.layers.{layer}.{LAYER_NAMES[part]}"
        else:
            print("left out:", tensor.name)
            continue
        out[f"{key}.weight"] = np.ascontiguousarray(weight)
    return out


def tokenizer(fields: dict) -> dict:
    if fields["tokenizer.ggml.model"] != "gpt2":
        sys.exit("only byte-level BPE tokenizers are converted")
    words, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    splitter = byte_level
    if fields.get("tokenizer.ggml.pre") == "smollm":
        splitter = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
    added = [
        {"id": index, "content": words[index], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index, kind in enumerate(types)
        if kind == 3  # control tokens
    ]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": splitter, "post_processor": None, "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {word: index for index, word in enumerate(words)}, "merges": fields["tokenizer.ggml.merges"],
        },
    }


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    reader = GGUFReader(source)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        sys.exit(f"{source}: architecture {fields['general.architecture']}, expected llama")
    heads, key_value_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    weights = tensors(reader, heads, key_value_heads)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": fields["llama.embedding_length"] // heads,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_text(json.dumps(tokenizer(fields), ensure_ascii=False), encoding="utf-8")
    if template := fields.get("tokenizer.chat_template"):
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    print(len(weights), "tensors,", sum(weight.size for weight in weights.values()), "weights")


if __name__ == "__main__":
    main()
