#!/usr/bin/env python3
"""Checks that TensorBoard's own reader reads the event files of a run, and that they say what
history.jsonl says.

    pip install tensorboard==2.20.0
    python scripts/check_tensorboard.py SEED_DIR
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main() -> None:
    seed = Path(sys.argv[1])
    events = EventAccumulator(str(seed / "logs"), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    with open(seed / "history.jsonl", encoding="utf-8") as file:
        history = [json.loads(line) for line in file]
    compared = 0
    for key, tag in [("loss", "train/loss"), ("learning_rate", "train/learning_rate"), ("eval_f1_micro", "eval/f1_micro")]:
        expected = [(line["step"], line[key]) for line in history if key in line]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in expected], tag
        assert all(abs(a - b) <= 1e-6 * (1 + abs(b)) for (_, a), (_, b) in zip(found, expected)), tag
        compared += len(found)
    print(f"{len(tags)} tags, {compared} values agree: {', '.join(tags[:8])} ...")


if __name__ == "__main__":
    main()
