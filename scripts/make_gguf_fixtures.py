#!/usr/bin/env python3
"""Makes tests/fixtures/gguf/: a GGUF file with a tensor of each type that is read, and what gguf makes of them.

    pip install gguf==0.17.1 numpy
    python scripts/make_gguf_fixtures.py

expected.json has the shape of each tensor, by its name in transformers, and the SHA-256 of its numbers in f32.
"""

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from gguf_to_hf import LAYER_NAMES, TOP_NAMES, to_halves

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "gguf"
WIDTH, INNER, HEADS, KEY_HEADS, HEAD, WORDS = 256, 64, 2, 1, 16, 48
SHAPES = {
    "attn_q": (HEADS * HEAD, WIDTH), "attn_k": (KEY_HEADS * HEAD, WIDTH), "attn_v": (KEY_HEADS * HEAD, WIDTH),
    "attn_output": (WIDTH, HEADS * HEAD), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
}
TYPES = [
    dict(attn_q="Q4_K", attn_k="Q5_K", attn_v="Q6_K", attn_output="Q4_0", ffn_gate="Q4_1", ffn_up="Q5_0", ffn_down="Q5_1"),
    dict(attn_q="BF16", attn_k="F16", attn_v="F32", attn_output="Q8_0", ffn_gate="Q6_K", ffn_up="Q4_K", ffn_down="Q4_1"),
]
# Where scales of f16 are in the blocks that gguf does not make.
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
random = np.random.default_rng(5)


def stored(shape: tuple, kind: str) -> np.ndarray:
    """Bytes of random numbers."""
    dtype = Type[kind]
    if kind not in SCALES:
        return gguf.quants.quantize(random.normal(0, 0.3, shape).astype(np.float32), dtype)
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    data = random.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        data[:, at:at + 2] = random.normal(0, 0.01, len(data)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return data.reshape(shape[0], -1)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(OUT / "tiny.gguf", "llama")
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(len(TYPES))
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(HEAD)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(HEAD)
    # Letters and two merges.
    words = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "Ġc"]
    words += [f"<unused{index}>" for index in range(WORDS - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<") else 1 for word in words])
    writer.add_token_merges(["a b", "Ġ c"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    expected = {}

    def add(name: str, shape: tuple, kind: str) -> None:
        data = stored(shape, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=Type[kind])
        numbers = np.ascontiguousarray(gguf.quants.dequantize(data, Type[kind])).astype(np.float32).reshape(shape)
        part = name.rsplit(".", 1)[-1]
        if part in ("attn_q", "attn_k"):
            numbers = to_halves(numbers, HEADS if part == "attn_q" else KEY_HEADS)
        key = TOP_NAMES.get(name) or f"model.layers.{name.split('.')[1]}.{LAYER_NAMES[part]}"
        digest = hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()
        expected[f"{key}.weight"] = {"shape": list(shape), "sha256": digest}

    def add_norm(name: str, key: str) -> None:
        numbers = random.uniform(0.5, 1.5, WIDTH).astype(np.float32)
        writer.add_tensor(f"{name}.weight", numbers)
        expected[f"{key}.weight"] = {"shape": [WIDTH], "sha256": hashlib.sha256(numbers.tobytes()).hexdigest()}

    add("token_embd", (WORDS, WIDTH), "Q8_0")
    add_norm("output_norm", "model.norm")
    for layer, types in enumerate(TYPES):
        for part, kind in types.items():
            add(f"blk.{layer}.{part}", SHAPES[part], kind)
        add_norm(f"blk.{layer}.attn_norm", f"model.layers.{layer}.input_layernorm")
        add_norm(f"blk.{layer}.ffn_norm", f"model.layers.{layer}.post_attention_layernorm")
    add("output", (WORDS, WIDTH), "Q6_K")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
