#!/usr/bin/env python3
"""Compares the decoding of `llmcls zeroshot --method generate --unconstrained` with transformers' `generate`.

    pip install torch==2.15.0 transformers==4.57.6
    scripts/bench/decode.py --model models/smollm2-135m-instruct [--rows 16] [--batch 1] [--rounds 3] [--dtype float32]

Both answer the same rows of data/debtags greedily with the same prompts, in batches of the same size, on the same
threads, and stop at the same tokens. A round runs both, one after the other; the medians of the rounds count. Loading
is not counted. The answers are compared, too: a difference is printed.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent.parent


def ours(args: argparse.Namespace, out: str) -> tuple[dict, Path]:
    """One run of llmcls: its metrics and its directory."""
    command = [
        str(args.binary), "zeroshot", "--config", "configs/smollm2_debtags.yaml", "--method", "generate",
        "--unconstrained", "--json", "--quiet", "--threads", str(args.threads), "--batch_size", str(args.batch),
        "--override_output_root", out, "--set", f"model.model_name={args.model}", "--set",
        f"data.max_test_samples={args.rows}", "--set", f"model.torch_dtype={args.dtype}",
    ]
    result = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    newest = max(Path(out).glob("*/debtags/zeroshot_*"), key=lambda path: path.stat().st_mtime)
    return json.loads(result.stdout), newest


def prompts(directory: Path, args: argparse.Namespace) -> list[str]:
    """Every row's prompt: that of the first row with the row's own text."""
    with open(ROOT / "data" / "debtags" / "test.csv", encoding="utf-8") as file:
        texts = [row["text"].strip() for row in csv.DictReader(file)][: args.rows]
    first = (directory / "prompt.txt").read_text(encoding="utf-8")
    assert first.count(texts[0]) == 1
    return [first.replace(texts[0], text) for text in texts]


class Theirs:
    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        torch.set_num_threads(args.threads)
        model = Path(args.model)
        model = model if model.is_absolute() else ROOT / model
        self.batch = args.batch
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"), padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, args.dtype)).eval()
        added = self.tokenizer.added_tokens_decoder
        self.ends = [index for index, token in added.items() if token.special]
        self.tokenizer.pad_token_id = self.ends[0]
        line = json.loads((directory / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
        labels = json.dumps(line["labels"], ensure_ascii=False)
        self.most = len(self.tokenizer(labels, add_special_tokens=False)["input_ids"]) + 32
        self.ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts(directory, args)]

    def answer(self) -> tuple[list[str], int, float]:
        """Answers, their tokens and the seconds that they took."""
        started = time.perf_counter()
        answers: list[str] = [""] * len(self.ids)
        count = 0
        order = sorted(range(len(self.ids)), key=lambda index: -len(self.ids[index]))
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            batch = self.tokenizer.pad({"input_ids": [self.ids[row] for row in rows]}, return_tensors="pt")
            with torch.no_grad():
                out = self.model.generate(
                    **batch, max_new_tokens=self.most, do_sample=False, eos_token_id=self.ends,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            for row, tokens in zip(rows, out[:, batch["input_ids"].shape[1] :].tolist()):
                end = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
                count += end
                answers[row] = self.tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
        return answers, count, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "llmcls")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    if args.rounds < 1:
        sys.exit("--rounds: at least 1")
    rates: dict[str, list[float]] = {"llmcls": [], "transformers": []}
    with tempfile.TemporaryDirectory() as out:
        _, directory = ours(args, out)
        theirs = Theirs(args, directory)
        found = [json.loads(line)["answer"] for line in open(directory / "answers.jsonl", encoding="utf-8")]
        for index in range(args.rounds):
            metrics, _ = ours(args, out)
            rates["llmcls"].append(metrics["zeroshot"]["answer_tokens_per_second"])
            answers, count, seconds = theirs.answer()
            rates["transformers"].append(count / seconds)
            print(f"round {index + 1}: " + ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items()), flush=True)
    same = sum(own == other for own, other in zip(found, answers, strict=True))
    print(f"{same} of {len(found)} answers are the same")
    for own, other in zip(found, answers):
        if own != other:
            print(f"  llmcls:       {own!r}\n  transformers: {other!r}")
    medians = {name: statistics.median(rate) for name, rate in rates.items()}
    print(f"tokens a second, median of {args.rounds}: " + ", ".join(f"{name} {rate:.1f}" for name, rate in medians.items()))
    print(f"{medians['llmcls'] / medians['transformers']:.2f} times transformers")


if __name__ == "__main__":
    main()
