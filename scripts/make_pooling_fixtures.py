#!/usr/bin/env python3
"""Makes the numbers that tests/pooling.rs compares with, from transformers, peft and torch.

    pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 safetensors
    python scripts/make_pooling_fixtures.py

For bases and adapters of scripts/make_fixtures.py, pooled and attending in other ways than their families do, it writes
tests/fixtures/pooling/<case>.safetensors: logits, loss, each parameter and its gradient. Texts are computed one by one,
without padding. Bidirectional attention in all layers is transformers' own (`is_causal` in the configuration); from some
layer on it is the same with the mask of those layers set to zero, which is checked against it.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
# Name, base, pooling, first bidirectional layer (None: as the base is).
CASES = [
    ("bert_mean", "bert", "mean", None),
    ("roberta_mean", "roberta", "mean", None),
    ("distilbert_last", "distilbert", "last", None),
    ("mpnet_mean", "mpnet", "mean", None),
    ("deberta_mean", "deberta_v3", "mean", None),
    ("llama_mean", "llama_tied", "mean", None),
    ("llama_last_bidirectional", "llama_tied", "last", 0),
    ("llama_mean_from_1", "llama_tied", "mean", 1),
    ("qwen3_first_from_2", "qwen3", "first", 2),
    ("qwen3_last_from_1", "qwen3", "last", 1),
]


def see_both_sides(model: torch.nn.Module, first: int) -> None:
    """Lets the layers from `first` on see all tokens of a text that stands alone."""

    def open_mask(_module, args, kwargs):
        mask = kwargs["attention_mask"]
        return args, kwargs | {"attention_mask": torch.zeros_like(mask)}

    for layer in model.base_model.model.model.layers[first:]:
        layer.register_forward_pre_hook(open_mask, with_kwargs=True)


def load(base: str, is_causal: bool = True) -> torch.nn.Module:
    directory = FIXTURES / base
    labels = len(json.loads((directory / "batch.json").read_text())["labels"][0])
    config = AutoConfig.from_pretrained(directory, num_labels=labels)
    if not is_causal:
        config.is_causal = False
    model = AutoModelForSequenceClassification.from_pretrained(
        directory, config=config, attn_implementation="eager", dtype=torch.float32
    )
    model = PeftModel.from_pretrained(model, directory / "adapter", is_trainable=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def pooled(hidden: torch.Tensor, pooling: str, tokens: list[int], padding: int | None) -> torch.Tensor:
    """Of the states `(1, N, D)` of one text, `(1, D)`."""
    if pooling == "mean":
        return hidden.mean(1)
    if pooling == "first":
        return hidden[:, 0]
    # As GenericForSequenceClassification: the last token that is not padding.
    real = [at for at, token in enumerate(tokens) if token != padding]
    return hidden[:, real[-1] if real else 0]


def logits(model: torch.nn.Module, pooling: str, tokens: list[int]) -> torch.Tensor:
    inner = model.base_model.model
    is_decoder = hasattr(inner, "score")
    base = getattr(inner, inner.base_model_prefix)
    hidden = base(torch.tensor([tokens])).last_hidden_state
    x = pooled(hidden, pooling, tokens, inner.config.pad_token_id if is_decoder else None)
    if is_decoder:
        return inner.score(x)
    if hasattr(inner, "pre_classifier"):
        return inner.classifier(torch.relu(inner.pre_classifier(x)))
    if hasattr(inner, "pooler"):  # DeBERTa's belongs to the head, and takes the first token
        return inner.classifier(inner.pooler(x.unsqueeze(1)))
    if isinstance(getattr(inner.classifier, "original_module", inner.classifier), torch.nn.Linear):
        return inner.classifier(x)  # BERT: its pooler is made for the first token, and is left out
    return inner.classifier(x.unsqueeze(1))


def make(name: str, base: str, pooling: str, first: int | None) -> None:
    batch = json.loads((FIXTURES / base / "batch.json").read_text())
    model = load(base)
    if first is not None:
        see_both_sides(model, first)
    if first == 0:
        native = load(base, is_causal=False)
        for tokens in batch["token_ids"]:
            torch.testing.assert_close(logits(model, pooling, tokens), logits(native, pooling, tokens))
        model = native
    all_logits = torch.cat([logits(model, pooling, tokens) for tokens in batch["token_ids"]])
    labels = torch.tensor(batch["labels"])
    if batch["problem_type"].startswith("single"):
        loss = torch.nn.functional.cross_entropy(all_logits, labels.argmax(1))
    else:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(all_logits, labels)
    loss.backward()
    tensors = {"logits": all_logits.detach(), "loss": loss.detach().reshape(1)}
    for key, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        short = key.replace(".default", "").replace("modules_to_save.", "")
        tensors[f"value.{short}"] = parameter.detach().clone()
        tensors[f"gradient.{short}"] = parameter.grad
    out = FIXTURES / "pooling"
    out.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / f"{name}.safetensors")
    print(name, float(loss.detach()), len(tensors))


if __name__ == "__main__":
    for case in CASES:
        make(*case)
