#!/usr/bin/env python3
"""Holds the numbers of tests/fixtures to the installed transformers: most are made by transformers 4.

    pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 safetensors
    python scripts/check_families.py [NAME...]

For each fixture it loads the base as transformers does and the adapter as peft does, and compares logits and loss.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from make_fixtures import MODELS, OUT, classifier_class


def check(name: str, spec: dict) -> float:
    folder, expected = OUT / name, load_file(OUT / name / "expected.safetensors")
    batch = json.loads((folder / "batch.json").read_text())
    config = transformers.AutoConfig.from_pretrained(
        folder, num_labels=spec["labels"], problem_type=spec["problem"]
    )
    implementation = spec["config"].get("attn_implementation")
    # A base is read as the Hub's are: names without the head's, from a folder.
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / "config.json", copy)
        save_file(load_file(folder / "model.safetensors"), Path(copy) / "model.safetensors", {"format": "pt"})
        model = classifier_class(spec.get("class", "Llama")).from_pretrained(
            copy, config=config, **({"attn_implementation": implementation} if implementation else {})
        )
    model = PeftModel.from_pretrained(model.float(), folder / "adapter").train()
    rows, pad = batch["token_ids"], config.pad_token_id
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor(batch["labels"])
    if spec["problem"] == "single_label_classification":
        labels = labels.argmax(-1)
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask, labels=labels)
    error = (result.logits - expected["logits"]).abs().max() / (1 + expected["logits"].abs().max())
    return max(error.item(), abs(result.loss.item() - expected["loss"].item()))


def main() -> None:
    version = int(transformers.__version__.split(".")[0])
    names = sys.argv[1:] or [name for name, spec in MODELS.items() if spec.get("since", version) <= version]
    failed = []
    for name in names:
        error = check(name, MODELS[name])
        print(f"{name:20} {error:.1e}")
        if error > 1e-5:
            failed.append(name)
    if failed:
        sys.exit(f"transformers {transformers.__version__} gives other numbers: {', '.join(failed)}")


if __name__ == "__main__":
    main()
