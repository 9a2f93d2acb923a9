#!/usr/bin/env python3
"""How far PyTorch's gradients in bf16 (autocast on the CPU) are from its own in f32, on the models of
make_fixtures.py: writes tests/fixtures/bf16_errors.json, ‖difference‖ / ‖gradient‖ over all trained parameters.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 safetensors
    python scripts/make_bf16_fixture.py
"""

import json
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
NAMES = ["llama_tied", "llama_untied", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "bert", "roberta", "distilbert", "modernbert"]


def error(name: str) -> float:
    directory = FIXTURES / name
    batch = json.loads((directory / "batch.json").read_text())
    labels = torch.tensor(batch["labels"])
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=labels.shape[1], problem_type=batch["problem_type"], dtype=torch.float32
    )
    model = PeftModel.from_pretrained(base, directory / "adapter", is_trainable=True)
    model.train()
    if batch["problem_type"].startswith("single"):
        labels = labels.argmax(1)
    rows, pad = batch["token_ids"], base.config.pad_token_id
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    expected = load_file(directory / "expected.safetensors")
    difference = total = 0.0
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            exact = expected[f"gradient.{key.replace('.default', '').replace('modules_to_save.', '')}"]
            difference += (parameter.grad - exact).double().square().sum().item()
            total += exact.double().square().sum().item()
    return (difference / total) ** 0.5


def main() -> None:
    errors = {name: round(error(name), 6) for name in NAMES}
    (FIXTURES / "bf16_errors.json").write_text(json.dumps(errors, indent=1) + "\n")
    print(errors)


if __name__ == "__main__":
    main()
