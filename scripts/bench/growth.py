#!/usr/bin/env python3
"""How llmcls' training step grows: with tokens, sequence length, layers and threads. Prints a table.

    cargo build --release --locked && python3 scripts/bench/growth.py

Random weights of 12 layers x 768 (inter 2048, vocabulary 4096), LoRA r = 2 on all seven modules, f32;
the fastest of three steps. Needs a quiet machine and no Python package.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def step(directory: str, layers: int = 12, batch: int = 4, length: int = 128, threads: int = 0) -> tuple[float, int]:
    config = json.loads((ROOT / "data/tiny-llama/config.json").read_text())
    config |= {
        "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64,
        "num_hidden_layers": layers, "max_position_embeddings": 4096,
    }
    Path(directory, "config.json").write_text(json.dumps(config))
    command = [
        str(ROOT / "target/release/llmcls"), "bench", "--quiet", "--config", "configs/tiny.yaml",
        "--set", f"model.model_name={directory}", "--set", "model.lora_r=2", "--set", "model.lora_dropout=0.05",
        "--batch_size", str(batch), "--length", str(length), "--steps", "3", "--threads", str(threads),
    ]
    result = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    return min(result["seconds"]), result["peak_bytes"]


def main() -> None:
    rows = [
        ("tokens (sequences of 128)", [(f"{128 * b}", dict(batch=b)) for b in (1, 2, 4, 8, 16)]),
        ("sequence length (2,048 tokens)", [(str(n), dict(batch=2048 // n, length=n)) for n in (128, 256, 512, 1024, 2048)]),
        ("layers (4 x 128)", [(str(n), dict(layers=n)) for n in (3, 6, 12, 24)]),
        ("threads (4 x 128)", [(str(n), dict(threads=n)) for n in range(1, len(os.sched_getaffinity(0)) + 1)]),
    ]
    print("| what grows | value: seconds a step, peak memory |\n|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for name, cells in rows:
            measured = [(label, *step(directory, **options)) for label, options in cells]
            text = "; ".join(f"{label}: {seconds:.2f} s, {peak / 1e6:.0f} MB" for label, seconds, peak in measured)
            print(f"| {name} | {text} |", flush=True)


if __name__ == "__main__":
    main()
