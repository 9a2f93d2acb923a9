#!/usr/bin/env python3
"""Makes tests/fixtures/state_dicts.json: names and shapes of the tensors that transformers' classes for sequence
classification save, for each fixture that has a base and an adapter.

    pip install torch==2.15.0 transformers==4.57.6
    python scripts/make_export_fixtures.py
"""

import json
from pathlib import Path

from transformers import AutoConfig, AutoModelForSequenceClassification

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def main() -> None:
    found = {}
    for adapter in sorted(FIXTURES.glob("*/adapter")):
        directory = adapter.parent
        labels = len(json.loads((directory / "batch.json").read_text())["labels"][0])
        config = AutoConfig.from_pretrained(directory, num_labels=labels)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForSequenceClassification.from_config(config)
        found[directory.name] = {name: list(tensor.shape) for name, tensor in sorted(model.state_dict().items())}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in found.items())
    (FIXTURES / "state_dicts.json").write_text("{" + lines + "}\n")
    print(*found)


if __name__ == "__main__":
    main()
