#!/usr/bin/env python3
"""Checks that Python's peft loads what llmcls trained and predicts the same.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2
    python scripts/check_peft.py SEED_DIR CSV [ROWS]

SEED_DIR is a seed's directory of a run on the given test CSV, whose base is a local directory. Prints
the largest difference between probabilities; fails above 1e-3.
"""

import csv
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast


def main() -> None:
    seed, rows = Path(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 40
    about = json.loads((seed / "best" / "classifier.json").read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(seed / "best" / "tokenizer.json"))
    name = Path(about["base"]["name"])
    # Of a GGUF file transformers reads the weights, too.
    source = (name.parent, {"gguf_file": name.name}) if name.suffix == ".gguf" else (name, {})
    base = AutoModelForSequenceClassification.from_pretrained(
        source[0], num_labels=len(about["labels"]), torch_dtype=torch.float32, **source[1]
    )
    if base.config.pad_token_id is None:
        base.config.pad_token_id = base.config.eos_token_id
    model = PeftModel.from_pretrained(base, seed / "best").eval()
    with open(sys.argv[2], encoding="utf-8", newline="") as file:
        texts = [row[about["target_text_column"]] for row in csv.DictReader(file)][:rows]
    with open(seed / "predictions_test.jsonl", encoding="utf-8") as file:
        ours = [json.loads(line)["probs"] for line in file][:rows]
    worst = 0.0
    with torch.no_grad():
        for text, expected in zip(texts, ours):
            ids = tokenizer(text, truncation=True, max_length=about["max_length"], return_tensors="pt")["input_ids"]
            probabilities = torch.sigmoid(model(input_ids=ids).logits[0])
            worst = max(worst, (probabilities - torch.tensor(expected)).abs().max().item())
    print(f"{len(texts)} rows, largest difference of a probability {worst:.2e}")
    sys.exit(worst > 1e-3)


if __name__ == "__main__":
    main()
