#!/usr/bin/env python3
"""Makes tests/fixtures/amazoncat/, a small data set in the form of the Hub's AmazonCat-13K, as pyarrow writes it.

    pip install pyarrow==26.0.1
    python scripts/make_amazoncat_fixture.py

train-00000.parquet (120 rows), train-00001.jsonl (30 rows), test-00000.parquet (40 rows): uid, title, content,
target_ind (a list of numbers). label_names.txt names the numbers.
"""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "amazoncat"
NAMES = ["books", "home & garden", "home / garden", "music", "toys", "2nd hand"]
WEIGHTS = [30, 20, 20, 8, 4, 2]


def main() -> None:
    random.seed(7)
    OUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(190):
        labels = sorted(set(random.choices(range(len(NAMES)), WEIGHTS, k=random.randint(0, 3))))
        content = "" if number % 17 == 0 else f"about {' and '.join(NAMES[label] for label in labels)}, \"{number}\""
        rows.append({"uid": f"B{number:04}", "title": f"Thing {number}", "content": content, "target_ind": labels})
    schema = pa.schema(
        [("uid", pa.string()), ("title", pa.string()), ("content", pa.string()), ("target_ind", pa.list_(pa.int64()))]
    )
    for name, part in [("train-00000", rows[:120]), ("test-00000", rows[150:])]:
        table = pa.Table.from_pylist(part, schema=schema)
        pq.write_table(table, OUT / f"{name}.parquet", compression="snappy", row_group_size=50)
    with open(OUT / "train-00001.jsonl", "w", encoding="utf-8") as file:
        for row in rows[120:150]:
            file.write(json.dumps(row) + "\n")
    (OUT / "label_names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
