#!/usr/bin/env python3
"""Makes tests/fixtures/rope.json: frequencies and scales of rotary embeddings as transformers computes them.

    pip install torch==2.15.0 transformers==4.57.6      # then again with transformers==5.24.0
    python scripts/make_rope_fixtures.py

The two versions write keys of their own into the same file; src/model/families/rope.rs holds both.
"""

import json
from pathlib import Path

import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "rope.json"
SIZES = dict(vocab_size=50, hidden_size=96, intermediate_size=36, num_hidden_layers=1, num_attention_heads=4)
CASES = [
    dict(type="linear", factor=3.0),
    dict(type="dynamic", factor=2.5),
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=512),
    dict(type="yarn", factor=3.0),
    dict(rope_type="yarn", factor=16.0, original_max_position_embeddings=256, beta_fast=20, beta_slow=2, truncate=False),
    dict(rope_type="yarn", factor=40.0, original_max_position_embeddings=128, mscale=0.9, mscale_all_dim=0.7),
    dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=300, attention_factor=1.25),
    dict(rope_type="yarn", factor=0.5, original_max_position_embeddings=300),
]
THETAS = [10000.0, 1000000.0, 77.0]


def main() -> None:
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    cases = []
    for theta in THETAS:
        for scaling in CASES:
            given = dict(model_type="llama", **SIZES, max_position_embeddings=1024, rope_theta=theta, rope_scaling=scaling)
            config = LlamaConfig(**json.loads(json.dumps({k: v for k, v in given.items() if k != "model_type"})))
            kind = scaling.get("rope_type") or scaling["type"]
            frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
            saved = json.loads(config.to_json_string(use_diff=False))
            saved = {key: saved[key] for key in ("rope_theta", "rope_scaling", "rope_parameters") if saved.get(key)}
            cases.append({"given": given, "saved": saved, "scale": scale, "frequencies": frequencies.tolist()})
    found[transformers.__version__.split(".")[0]] = cases
    lines = ",\n".join(
        f'"{version}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]" for version, cases in found.items()
    )
    OUT.write_text(f"{{{lines}}}\n")
    print(OUT, len(cases), "cases")


if __name__ == "__main__":
    main()
