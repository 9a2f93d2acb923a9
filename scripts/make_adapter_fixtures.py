#!/usr/bin/env python3
"""Makes tests/fixtures/adapters/: LoRA of peft in its less usual forms, and bases that bring their head.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 safetensors
    python scripts/make_adapter_fixtures.py

Each directory has adapter_config.json and adapter_model.safetensors as peft saves them, and expected.json: the base's
fixture, token ids, and the logits of transformers and peft. A base of its own stands beside them.
"""

import json
import logging
import shutil
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
OUT = ROOT / "adapters"
LABELS = 3
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLAIN = dict(r=3, lora_alpha=5)
MODERNBERT = dict(
    vocab_size=61, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, initializer_range=0.2, local_attention=10, norm_bias=True, classifier_bias=True,
    attn_implementation="sdpa", reference_compile=False, pad_token_id=60, cls_token_id=0, sep_token_id=59,
    bos_token_id=0, eos_token_id=59,
)
DISTILBERT = dict(
    vocab_size=61, dim=24, hidden_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64, initializer_range=0.2,
    pad_token_id=60,
)
ROBERTA = dict(
    vocab_size=61, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, initializer_range=0.2, type_vocab_size=1,
)
# Name: fixture of the base, or its class and configuration; the adapter's configuration.
CASES = {
    "rslora": ("llama_untied", dict(**PLAIN, use_rslora=True, target_modules=ALL)),
    "patterns": ("llama_untied", dict(
        **PLAIN, target_modules=ALL, rank_pattern={r"layers\.1\.self_attn\.q_proj": 5, "q_proj|up_proj": 2},
        alpha_pattern={"down_proj": 11, r"layers\.0\..*": 2},
    )),
    "rslora_patterns": ("llama_untied", dict(
        **PLAIN, target_modules=ALL, use_rslora=True, rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 9},
    )),
    "layers": ("llama_tied", dict(**PLAIN, target_modules=["q_proj", "mlp.up_proj"], layers_to_transform=[0, 2])),
    "one_layer": ("llama_tied", dict(**PLAIN, target_modules=["v_proj"], layers_to_transform=1, layers_pattern="layers")),
    "exclude_names": ("llama_tied", dict(**PLAIN, target_modules=ALL, exclude_modules=["k_proj", "1.mlp.up_proj"])),
    "exclude_pattern": ("llama_tied", dict(**PLAIN, target_modules="all-linear", exclude_modules=r".*layers\.[01]\..*")),
    "pattern": ("llama_tied", dict(**PLAIN, target_modules=r".*\.(q_proj|v_proj)$")),
    "pooler_saved_whole": ("bert", dict(**PLAIN, target_modules=["query", "dense"], modules_to_save=["pooler"])),
    "modernbert_head_left_out": (("ModernBert", MODERNBERT), dict(**PLAIN, target_modules=["Wqkv", "attn.Wo"])),
    "modernbert_head_adapted": (("ModernBert", MODERNBERT), dict(**PLAIN, target_modules=["Wqkv", "head.dense"])),
    "distilbert_head_left_out": (("DistilBert", DISTILBERT), dict(**PLAIN, target_modules=["q_lin", "lin1"])),
    # Without a task, peft trains no head: the base's classifier counts.
    "roberta_head_of_the_base": (("Roberta", ROBERTA), dict(**PLAIN, target_modules=["query", "value"], task_type=None)),
}


def base_of(source, out: Path):
    """The base with a classifier, and where it lies."""
    if isinstance(source, str):
        config = json.loads((ROOT / source / "config.json").read_text())
        config = transformers.AutoConfig.for_model(**config, num_labels=LABELS)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        state = load_file(ROOT / source / "model.safetensors")
        missing = model.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys, missing
        return model
    family, keys = source
    names = {index: name for index, name in enumerate(["x", "y", "z"])}
    config = getattr(transformers, f"{family}Config")(**keys, id2label=names, label2id={v: k for k, v in names.items()})
    model = getattr(transformers, f"{family}ForSequenceClassification")._from_config(
        config, **({"attn_implementation": "sdpa"} if family == "ModernBert" else {})
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key.lower() and key.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif key.endswith("bias") or key.startswith("classifier"):
                parameter.normal_(0, 0.3)
    model.save_pretrained(out)
    return model


def make(name: str, source, settings: dict) -> None:
    torch.manual_seed(len(name))
    out = OUT / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model = base_of(source, out)
    vocabulary = model.config.vocab_size
    model = get_peft_model(model, LoraConfig(**{"task_type": "SEQ_CLS", "lora_dropout": 0.0, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    model.eval()
    tokens = [torch.randint(4, vocabulary - 2, (length,)).tolist() for length in (9, 1, 23)]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([row])).logits[0].tolist() for row in tokens]
    expected = {"base": source if isinstance(source, str) else None, "token_ids": tokens, "logits": logits}
    (out / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, logits[0])


def main() -> None:
    logging.disable(logging.WARNING)
    for name, (source, settings) in CASES.items():
        make(name, source, settings)


if __name__ == "__main__":
    main()
