#!/usr/bin/env python3
"""Makes `tests/fixtures/whole/<family>.safetensors`: every gradient of an encoder that is trained in full.

Needs torch, transformers 4.57.6 and safetensors; NomicBERT is made with transformers 5.24.0. The models are those of `scripts/make_fixtures.py`; a batch is theirs
and one text with a padding token in it, whose embedding torch does not train. A file holds the head at the start, logits,
loss, each gradient and their norm, and the losses of five steps of AdamW with decay, clipping and a linear schedule.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
STEPS, LEARNING_RATE, WEIGHT_DECAY, CLIP = 5, 0.003, 0.1, 1.0


def make(name: str) -> None:
    torch.manual_seed(len(name))
    directory = FIXTURES / name
    batch = json.loads((directory / "batch.json").read_text())
    labels = len(batch["labels"][0])
    is_single = batch["problem_type"].startswith("single")
    model = AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=labels, problem_type=batch["problem_type"], attn_implementation="eager",
    ).float()
    loaded = {key.removeprefix(f"{model.base_model_prefix}.") for key in _names(directory)}
    start = {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.removeprefix(f"{model.base_model_prefix}.") not in loaded:
                parameter.normal_(0.5 if "norm" in key else 0, 0.2)
                start[f"start.{key}"] = parameter.clone()
    pad = model.config.pad_token_id
    texts = batch["token_ids"] + [[5, pad, 7, 9, 6]]
    rows = batch["labels"] + [batch["labels"][0]]
    width = max(map(len, texts))
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    targets = torch.tensor(rows)
    if is_single:
        targets = targets.argmax(1)
    trained = dict(model.named_parameters())
    decays = {key: not (key.endswith("bias") or "norm" in key.rsplit(".", 2)[-2].lower()) for key in trained}
    optimizer = torch.optim.AdamW(
        [
            {"params": [trained[key] for key in trained if decays[key]], "weight_decay": WEIGHT_DECAY},
            {"params": [trained[key] for key in trained if not decays[key]], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    expected, losses = dict(start), []
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (STEPS - step) / STEPS
        optimizer.zero_grad()
        result = model(input_ids=ids, attention_mask=mask, labels=targets)
        result.loss.backward()
        losses.append(result.loss.item())
        if step == 0:
            expected["logits"] = result.logits.detach().clone()
            for key, parameter in trained.items():
                expected[f"gradient.{key}"] = parameter.grad.detach().clone()
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), CLIP)
        if step == 0:
            expected["norm"] = norm.detach().reshape(1)
        optimizer.step()
    expected["losses"] = torch.tensor(losses)
    (FIXTURES / "whole").mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in expected.items()}, FIXTURES / "whole" / f"{name}.safetensors")
    print(name, len(trained), "parameters", losses, "norm", expected["norm"].item())


def _names(directory: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as file:
        return list(file.keys())


if __name__ == "__main__":
    of_version = {"4": ("bert", "roberta", "xlm_roberta", "distilbert", "modernbert"), "5": ("nomic_bert",)}
    for name in of_version[transformers.__version__[0]]:
        make(name)
