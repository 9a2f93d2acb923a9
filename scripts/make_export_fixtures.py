#!/usr/bin/env python3
"""Makes tests/fixtures/state_dicts.json: names and shapes of the tensors that transformers' classes for sequence
classification save, for each fixture that has a base and an adapter.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2    # then again with transformers==5.24.0
    python scripts/make_export_fixtures.py

Version 5 adds the families that version 4 has no code for.
"""

import json
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from make_fixtures import MODELS, classifier_class

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def main() -> None:
    path = FIXTURES / "state_dicts.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    version = int(transformers.__version__.split(".")[0])
    for adapter in sorted(FIXTURES.glob("*/adapter")):
        directory = adapter.parent
        model_type = json.loads((directory / "config.json").read_text())["model_type"]
        spec = MODELS.get(directory.name, {})
        if model_type not in CONFIG_MAPPING or spec.get("since", 4) < version and directory.name in found:
            continue
        labels = len(json.loads((directory / "batch.json").read_text())["labels"][0])
        config = AutoConfig.from_pretrained(directory, num_labels=labels)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = classifier_class(spec.get("class", "Llama"))._from_config(config)
        found[directory.name] = {name: list(tensor.shape) for name, tensor in sorted(model.state_dict().items())}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in sorted(found.items()))
    path.write_text("{" + lines + "}\n")
    print(*found)


if __name__ == "__main__":
    main()
