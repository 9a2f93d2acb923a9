#!/usr/bin/env python3
"""Checks that Python reads the tokenizer of a run as llmcls does: trains a run for a step on each directory of
make_token_fixtures.py, and compares the ids of AutoTokenizer for its best/ with those that llmcls is tested for.

    pip install transformers==4.57.6 sentencepiece     # and again with transformers 5
    python scripts/check_tokenizers.py [BINARY]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers
from make_token_fixtures import OUT, ROOT, TEXTS, write
from transformers import AutoTokenizer

MODELS = {
    "llama": "llama_untied", "xlm-roberta": "xlm_roberta", "gemma3_text": "gemma3", "deberta-v2": "deberta_v3",
}


def main():
    transformers.utils.logging.set_verbosity_error()
    binary = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/llmcls").resolve()
    fixtures = json.loads((OUT / "cases_4.json").read_text(encoding="utf-8"))
    limit = fixtures["max_length"]
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        rows = "".join(f"{row},a text of {row} words,{row % 2},{row // 2 % 2}\n" for row in range(8))
        (root / "rows.csv").write_text("id,text,a,b\n" + rows)
        for number, case in enumerate(fixtures["cases"]):
            base, out = root / f"base_{number}", root / f"out_{number}"
            if case["base"] == "sentencepiece":
                (base).mkdir()
                (base / "tokenizer.json").write_bytes((OUT / "sentencepiece.json").read_bytes())
                for name, value in case["files"].items():
                    (base / name).write_text(json.dumps(value))
            else:
                write(case, base)
            model = case["model_type"]
            config = json.loads((ROOT / "tests/fixtures" / MODELS.get(model, model) / "config.json").read_text())
            (base / "config.json").write_text(json.dumps(config | {"vocab_size": 600}))
            (root / "config.yaml").write_text(json.dumps({
                "exp": {"output_root": str(out), "seeds": [1]},
                "model": {"model_name": str(base), "random_init": True, "lora_r": 2, "lora_target_modules": "all-linear"},
                "data": {"dataset_name": "d", "train_csv": str(root / "rows.csv"), "val_csv": str(root / "rows.csv"),
                         "id_column": "id", "target_text_column": "text", "max_length": limit},
                "train": {"max_steps": 1, "batch_size": 4},
            }))
            subprocess.run([binary, "train", "-q", "--config", root / "config.yaml"], check=True, stderr=subprocess.DEVNULL)
            best = next(out.glob("**/best"))
            tokenizer = AutoTokenizer.from_pretrained(best)
            ids = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in TEXTS]
            if tokenizer.pad_token is None and tokenizer.eos_token is not None:
                print(f"case {number}: no token to pad with")
                wrong += 1
            for text, found, expected in zip(TEXTS, ids, case["ids"]):
                if found != expected:
                    print(f"case {number}, {case['model_type']}, {text!r}: {found}, expected {expected}")
                    wrong += 1
    print(f"transformers {transformers.__version__}: {len(fixtures['cases'])} runs, {wrong} differences")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
