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
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util


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
    test = seed / "test_metrics.json"
    if test.exists():
        expected = json.loads(test.read_text(encoding="utf-8"))["eval_f1_micro"]
        [event] = events.Scalars("test/f1_micro")
        assert abs(event.value - expected) <= 1e-6, (event.value, expected)
        compared += 1
    curves = [tag for tag in events.Tags()["tensors"] if tag.startswith("pr_curve/")]
    for tag in curves:
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == "pr_curves"
        last = tensor_util.make_ndarray(events.Tensors(tag)[-1].tensor_proto)
        found, wrong, right, missed, precision, recall = last
        assert last.shape == (6, 127) and len(set(found + missed)) == 1 and len(set(wrong + right)) == 1, tag
        assert abs(recall[0] - 1) < 1e-6 and recall[-1] == 0 and all(recall[:-1] >= recall[1:]), tag
        assert all(abs(precision - found / (found + wrong).clip(min=1))[found + wrong > 0] < 1e-6), tag
    assert curves, "no precision-recall curve"
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    chosen = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert chosen["batch_size"].number_value >= 1 and chosen["base"].string_value, chosen
    print(f"{len(curves)} precision-recall curves; chosen: {', '.join(sorted(chosen))}")
    print(f"{len(tags)} tags, {compared} values agree: {', '.join(tags[:8])} ...")


if __name__ == "__main__":
    main()
