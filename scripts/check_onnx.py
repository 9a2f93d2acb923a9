#!/usr/bin/env python3
"""Checks that an exported directory becomes ONNX, and that onnxruntime predicts what llmcls predicts.

    pip install torch==2.15.0 transformers==4.57.6 optimum-onnx onnxruntime
    optimum-cli export onnx --model MODEL --task text-classification ONNX
    python scripts/check_onnx.py target/release/llmcls MODEL ONNX/model.onnx

MODEL is a directory that `llmcls export` wrote. Prints the largest difference of a probability on its labels as texts, and
fails above 1e-4.
"""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
from transformers import AutoTokenizer


def main() -> None:
    llmcls, model, onnx = sys.argv[1:]
    with open(f"{model}/classifier.json", encoding="utf-8") as file:
        classifier = json.load(file)
    texts = [*classifier["labels"], "a longer text, with commas and the number 7", " ".join(classifier["labels"])]
    asked = [part for text in texts for part in ("--text", text)]
    printed = subprocess.run([llmcls, "predict", "--run", model, *asked], check=True, capture_output=True, text=True).stdout
    ours = np.array([json.loads(line)["probs"] for line in printed.splitlines()])
    session = onnxruntime.InferenceSession(onnx)
    names = {value.name for value in session.get_inputs()}
    encoded = AutoTokenizer.from_pretrained(model)(texts, truncation=True, padding=True, return_tensors="np")
    logits = session.run(["logits"], {name: value.astype(np.int64) for name, value in encoded.items() if name in names})[0]
    if classifier["problem_type"].startswith("single"):
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        theirs = exponents / exponents.sum(-1, keepdims=True)
    else:
        theirs = 1 / (1 + np.exp(-logits))
    worst = np.abs(ours - theirs).max()
    print(f"{len(texts)} texts, largest difference of a probability {worst:.1e}")
    sys.exit(bool(worst > 1e-4))


if __name__ == "__main__":
    main()
