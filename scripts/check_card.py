#!/usr/bin/env python3
"""Checks a model card: huggingface_hub's parser reads its metadata, and its Python snippet runs and says what llmcls says.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2
    python scripts/check_card.py SEED_DIR

From the directory that the base's name is relative to. SEED_DIR is a seed's directory of a run with a test split.
"""

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard


def main() -> None:
    seed = Path(sys.argv[1]).resolve()
    best = seed / "best"
    card = ModelCard.load(best / "README.md")
    about = json.loads((best / "classifier.json").read_text(encoding="utf-8"))
    metrics = json.loads((seed / "test_metrics.json").read_text(encoding="utf-8"))
    data = card.data
    assert data.library_name == "peft" and data.pipeline_tag == "text-classification", data
    assert "multi-label" in data.tags and data.language, data
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    for name in ["f1_micro", "f1_macro"]:
        assert abs(found[name] - metrics[f"eval_{name}"]) < 1e-9, found
    print(f"metadata: {sorted(data.to_dict())}, {found}")

    code = re.search(r"```python\n(.*?)```", card.content, re.S)
    if code is None:
        print("no snippet: the base was made from a seed")
        return
    text = "a command line tool that plays chess"
    code = code[1].replace('"."', repr(str(best))).replace('"a text"', repr(text))
    code = re.sub(r"base_directory = .*", lambda _: f"base_directory = {about['base']['name']!r}", code)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {})
    theirs, predicted = map(eval, output.getvalue().strip().splitlines()[-2:])
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "rows.csv"
        rows.write_text(f"{about['id_column'] or 'id'},{about['target_text_column']}\n0,{text}\n", encoding="utf-8")
        command = ["target/release/llmcls", "predict", "-q", "--run", seed, "--input_csv", rows, "--output", "-"]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert predicted == ours["predicted"], (predicted, ours["predicted"])
    worst = max(abs(theirs[label] - p) for label, p in zip(ours["labels"], ours["probs"]))
    print(f"the snippet runs; largest difference of a probability {worst:.2e}")
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
