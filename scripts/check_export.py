#!/usr/bin/env python3
"""Checks that transformers reads what `llmcls export` writes, for every family, and predicts what llmcls predicts.

    pip install torch==2.15.0 transformers==4.57.6 safetensors        # and once more with transformers 5
    python scripts/check_export.py target/release/llmcls [RUN]

Each fixture of tests/fixtures with a base and an adapter of peft gets a tokenizer and is exported, sharded, in float32,
bfloat16 and float16; then AutoModelForSequenceClassification and pipeline("text-classification", top_k=None) read the
directory alone. The script prints the largest difference of a probability to that of `llmcls predict` with base and
adapter apart, and fails above 1e-5 in float32, or if a tensor is missing or left over. A RUN of your own is checked in
the same way, on its labels as texts.
"""

import importlib
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
LLMCLS = str(Path(sys.argv[1]).resolve())
# bfloat16 has 8 bits of a number: weights, and in Python activations, too. float16 has 11.
LIMITS = {"float32": 1e-5, "bfloat16": 0.2, "float16": 0.02}


def llmcls(*arguments: object) -> str:
    command = [LLMCLS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def predict(run: list[object], texts: list[str]) -> list[dict[str, float]]:
    asked = [part for text in texts for part in ("--text", text)]
    rows = [json.loads(line) for line in llmcls("predict", *run, *asked).splitlines()]
    return [dict(zip(row["labels"], row["probs"])) for row in rows]


def with_tokenizer(fixture: Path, base: Path) -> int:
    """Copies a base and gives it a tokenizer of one token a word; returns the number of words."""
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        (base / name).write_bytes((fixture / name).read_bytes())
    config = json.loads((base / "config.json").read_text())
    count = config["vocab_size"]
    vocabulary = {f"w{token}": token for token in range(count)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", pad_token=f"w{config['pad_token_id']}", model_max_length=64
    ).save_pretrained(base)
    return count


def register_class(out: Path) -> None:
    """Makes the classifier's class as its card says, where transformers has none (Granite; OLMo 2 in transformers 4)."""
    config = AutoConfig.from_pretrained(out)
    [name] = config.architectures
    if hasattr(transformers, name):
        return
    from transformers.modeling_layers import GenericForSequenceClassification

    module = importlib.import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")
    pretrained = getattr(module, name.replace("ForSequenceClassification", "PreTrainedModel"))
    made = type(name, (GenericForSequenceClassification, pretrained), {})
    AutoModelForSequenceClassification.register(type(config), made, exist_ok=True)


def check(name: str, run: list[object], texts: list[str], shard: str, place: Path) -> bool:
    expected = predict(run, texts)
    good = True
    for dtype, limit in LIMITS.items():
        out = place / dtype
        llmcls("export", *run, "--out", out, "--dtype", dtype, "--max_shard_size", shard)
        stored = getattr(torch, dtype)
        register_class(out)
        model, info = AutoModelForSequenceClassification.from_pretrained(out, dtype=stored, output_loading_info=True)
        loose = {key: value for key, value in info.items() if value and key in ("missing_keys", "unexpected_keys")}
        # transformers 5 takes the tokenizer of every qwen2 model for Qwen's own, and these have one of words.
        own = {"tokenizer": PreTrainedTokenizerFast.from_pretrained(out)} if model.config.model_type == "qwen2" else {}
        # The usual attention of transformers 4 leaves out Gemma 2's soft cap.
        eager = {"model_kwargs": {"attn_implementation": "eager"}} if model.config.model_type == "gemma2" else {}
        classify = pipeline("text-classification", model=str(out), top_k=None, truncation=True, dtype=stored, **own, **eager)
        # In batches, so that texts are padded.
        found = [{row["label"]: row["score"] for row in rows} for rows in classify(texts, batch_size=len(texts))]
        again = predict(["--run", out], texts)
        differ = lambda others: max(abs(a[key] - b[key]) for a, b in zip(expected, others, strict=True) for key in a)
        theirs, ours = differ(found), differ(again)
        fine = theirs <= limit and ours <= limit and not loose and model.dtype == stored
        shards = len(list(out.glob("*.safetensors")))
        print(f"{name:18} {dtype:9} {shards:2} files, transformers {theirs:.1e}, llmcls {ours:.1e}", loose or "")
        good &= fine
    return good


def of_fixture(fixture: Path, place: Path) -> bool:
    random.seed(len(fixture.name))
    words = with_tokenizer(fixture, place / "base")
    batch = json.loads((fixture / "batch.json").read_text())
    labels = [f"label {index}" for index in range(len(batch["labels"][0]))]
    config = {
        "model": {"model_name": str(place / "base"), "problem_type": batch["problem_type"], "torch_dtype": "float32"},
        "data": {"dataset_name": "d", "train_csv": str(place / "t.csv"), "val_fraction": 0.5, "label_columns": labels,
                 "max_length": 33},
    }
    (place / "t.csv").write_text(",".join(["text", *labels]) + "\n")
    (place / "config.yaml").write_text(json.dumps(config))
    run = ["--run", fixture / "adapter", "--config", place / "config.yaml"]
    # The last is cut.
    texts = [" ".join(f"w{random.randrange(2, words - 1)}" for _ in range(length)) for length in (7, 1, 24, 60)]
    return check(fixture.name, run, texts, "20KB", place)


def main() -> None:
    print("transformers", transformers.__version__)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    with tempfile.TemporaryDirectory() as directory:
        if len(sys.argv) > 2:
            run = ["--run", Path(sys.argv[2]).resolve()]
            labels = list(predict(run, ["a"])[0])
            results.append(check(Path(sys.argv[2]).name, run, [*labels, " ".join(labels * 40)], "5GB", Path(directory)))
        else:
            for adapter in sorted(FIXTURES.glob("*/adapter")):
                config = json.loads((adapter.parent / "config.json").read_text())
                if config["model_type"] not in transformers.CONFIG_MAPPING:
                    print(f"{adapter.parent.name:18} has no code in this version")
                    continue
                place = Path(directory) / adapter.parent.name
                place.mkdir()
                results.append(of_fixture(adapter.parent, place))
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
