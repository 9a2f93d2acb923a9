#!/usr/bin/env python3
"""llmcls against PyTorch + transformers + peft: same machine, weights, token ids and threads, in turn.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 safetensors
    cargo build --release --locked && scripts/get_smollm2
    python scripts/bench/compare.py [--shapes s1,s2,s3,smollm2] [--repeats 3] [--steps 3] [--real_batches 6]

Needs a quiet machine; S3 needs 12 GB of memory. Repeats are interleaved, and a ratio is that of tokens
a second (real tokens, without padding) of two neighbouring runs; the table gives the median ratio and
its range. PyTorch runs as it is fastest: with OpenMP waiting actively or passively, in f32 or in bf16
(autocast), for inference also through torch.compile, tried in each cell. Real texts come in batches grouped
by length, to both. llmcls runs in --compute. An inference cell also compares the losses: both must have
computed the same.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "models" / "bench"
SHAPES = {  # hidden, layers, heads, key-value heads, inter, vocabulary
    "s1": (256, 4, 8, 4, 704, 4096),
    "s2": (768, 12, 12, 4, 2048, 32000),
    "s3": (2048, 16, 32, 8, 8192, 128256),
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, LABELS = 2, 10
POLICIES: dict[str, str] = {}  # the faster way of waiting, by shape: chosen in its first cell
WAYS = {"f32": [], "bf16": ["--autocast"]}  # in what PyTorch computes


def prepare(shape: str, rank: int = RANK) -> tuple[Path, Path]:
    """The base, and an adapter for it, once."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = ROOT / "models" / "smollm2-135m-instruct" if shape == "smollm2" else WORK / shape
    if not (base / "config.json").exists():
        hidden, layers, heads, kv, inter, vocabulary = SHAPES[shape]
        config = LlamaConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
            intermediate_size=inter, vocab_size=vocabulary, tie_word_embeddings=True, rope_theta=500000.0,
            max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
        with torch.device(device):
            model = LlamaForCausalLM(config)
        # A GPU's bases are held in bf16 at most.
        model.to(torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(base, max_shard_size="20GB")
    adapter = WORK / (f"{shape}-adapter" if rank == RANK else f"{shape}-adapter-{rank}")
    if not adapter.exists():
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=LABELS).to(device, torch.float32)
        model.config.pad_token_id = model.config.eos_token_id
        lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=rank, lora_dropout=0.05, target_modules=TARGETS)
        model = get_peft_model(model, lora)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.02)
        model.save_pretrained(adapter)
    return base, adapter


def batches(shape: str, kind: str, count: int) -> Path:
    path = WORK / f"{shape}-{kind}.json"
    vocabulary = 49152 if shape == "smollm2" else SHAPES[shape][5]
    if kind.startswith("real"):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(ROOT / "models" / "smollm2-135m-instruct" / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(256)
        with open(ROOT / "data" / "debtags" / "train.csv", encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file)][: 8 * count]
        rows = [[2 + token % (vocabulary - 2) for token in tokenizer.encode(text).ids] for text in texts]
        # Grouped by length, as both programs can: without it PyTorch computes padding.
        rows.sort(key=len)
        content = [rows[start : start + 8] for start in range(0, len(rows), 8)]
    else:
        length = int(kind)
        content = [[[2 + (row * 7919 + at * 104729) % (vocabulary - 2) for at in range(length)] for row in range(4)]]
    path.write_text(json.dumps(content))
    return path


def run(command: list[str], environment: dict[str, str]) -> dict:
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, cwd=ROOT, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="s1,s2,s3,smollm2")
    parser.add_argument("--batches", default="128,512,real", help="lengths of 4 sequences; real: 8 texts of data/debtags")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--real_batches", type=int, default=6)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compute", choices=["auto", "float32", "bfloat16"], default="auto", help="llmcls's model.compute")
    parser.add_argument("--bin", default=str(ROOT / "target" / "release" / "llmcls"))
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    print("| shape | batch | mode | PyTorch in | PyTorch s/step | llmcls s/step | tokens/s | ratio (range) | peak, PyTorch | peak, llmcls "
          "| above the weights | share of GEMM rate |\n" + "|---" * 12 + "|", flush=True)
    for shape in args.shapes.split(","):
        base, adapter = prepare(shape)
        for kind in ["128"] if shape == "s3" else args.batches.split(","):
            steps = args.real_batches if kind == "real" else args.steps
            file = str(batches(shape, kind, args.real_batches))
            for mode in ["train", "infer"]:
                cell(args, shape, kind, mode, steps, base, adapter, file)


def cell(args, shape, kind, mode, steps, base, adapter, file) -> None:
    common = ["--batches", file, "--mode", mode, "--steps", str(steps), "--labels", str(LABELS), "--threads", str(args.threads)]
    torch_command = [sys.executable, str(ROOT / "scripts/bench/torch_worker.py"), "--model", str(base), "--adapter", str(adapter)]
    settings = {
        "model.model_name": base, "model.init_adapter": adapter, "model.random_init": "false", "model.use_4bit": "false",
        "model.torch_dtype": "float32" if args.compute == "float32" else "bfloat16", "model.compute": args.compute,
        "model.lora_r": RANK, "model.lora_alpha": RANK, "model.lora_dropout": 0.05,
    }
    ours_command = [args.bin, "bench", "--quiet", "--config", "configs/tiny.yaml"]
    for key, value in settings.items():
        ours_command += ["--set", f"{key}={value}"]
    if shape not in POLICIES:
        waits = {policy: run(torch_command + common, {"OMP_WAIT_POLICY": policy}) for policy in ["ACTIVE", "PASSIVE"]}
        POLICIES[shape] = max(waits, key=lambda policy: waits[policy]["tokens_per_second"])
    policy = POLICIES[shape]
    ways = dict(WAYS)
    if mode == "infer":
        ways |= {f"{way}, compiled": arguments + ["--compile"] for way, arguments in WAYS.items()}
    tried = {way: run(torch_command + common + arguments, {"OMP_WAIT_POLICY": policy}) for way, arguments in ways.items()}
    fastest = max(tried, key=lambda way: tried[way]["tokens_per_second"])
    torch_command += ways[fastest]
    pairs = []
    for repeat in range(args.repeats):
        theirs = run(torch_command + common, {"OMP_WAIT_POLICY": policy})
        pairs.append((theirs, run(ours_command + common, {})))
    if mode == "infer":
        worst = max(abs(a - b) for theirs, ours in pairs for a, b in zip(theirs["losses"], ours["losses"]))
        is_exact = "bf16" not in fastest and args.compute == "float32"
        assert worst < (1e-3 if is_exact else 2e-2), f"{shape} {kind}: losses differ by {worst}"
    ratios = sorted(ours["tokens_per_second"] / theirs["tokens_per_second"] for theirs, ours in pairs)
    median = lambda side, f: statistics.median(f(pair[side]) for pair in pairs)
    seconds = lambda result: sum(result["seconds"]) / len(result["seconds"])
    peaks = [median(side, lambda result: result["peak_bytes"]) for side in (0, 1)]
    weights = pairs[0][1]["base_bytes"]
    above = (peaks[1] - weights) / max(peaks[0] - weights, 1)
    print(f"| {shape} | {'real × 8' if kind == 'real' else f'4 × {kind}'} | {mode} | {fastest} | {median(0, seconds):.3f} | {median(1, seconds):.3f} "
          f"| {median(1, lambda r: r['tokens_per_second']):.0f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) "
          f"| {peaks[0] / 1e9:.2f} GB | {peaks[1] / 1e9:.2f} GB ({peaks[1] / peaks[0]:.2f}) | {above:.2f} "
          f"| {median(1, lambda r: r['share_of_floor']):.2f} |", flush=True)


if __name__ == "__main__":
    main()
