#!/usr/bin/env python3
"""Makes tests/fixtures/rows/: files as pandas, pyarrow and Python's json and csv write them, with what those read.

    pip install pandas==3.1.1 pyarrow==26.0.1
    python scripts/make_rows_fixtures.py

`expected.json` maps a file to the texts of its cells, row by row: null for a missing value.
"""

import csv
import datetime
import decimal
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "rows"
TEXTS = ['plain', 'a "quoted" word', 'two\nlines', '5" disk', "semi; colon, comma", "größer 🙂", " blanks "]


def cells(rows, columns):
    return {"columns": columns, "rows": [[row.get(column) for column in columns] for row in rows]}


def write_csv(expected):
    rows = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    for name, options in [
        ("crlf.csv", {"lineterminator": "\r\n"}),
        ("cr.csv", {"lineterminator": "\r", "quoting": csv.QUOTE_ALL}),
        ("tabs.csv", {"delimiter": "\t"}),
        ("semicolons.csv", {"delimiter": ";", "quoting": csv.QUOTE_ALL}),
    ]:
        with open(OUT / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"], **options)
            writer.writeheader()
            writer.writerows(rows)
        separator = options.get("delimiter", ",")
        with open(OUT / name, encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file, delimiter=separator, strict=True))
        read = pd.read_csv(OUT / name, sep=separator, dtype=str, keep_default_na=False)
        assert name == "cr.csv" or read.to_dict("records") == found
        expected[name] = cells(found, ["id", "text"])
    with open(OUT / "unquoted.csv", "w", encoding="utf-8", newline="") as file:
        file.write('id\ttext\n0\t"open\n1\tsaid "no", twice\n2\t5" disk\n')
    read = pd.read_csv(OUT / "unquoted.csv", sep="\t", dtype=str, quoting=csv.QUOTE_NONE)
    expected["unquoted.csv"] = cells(read.to_dict("records"), ["id", "text"])


def write_json(expected):
    rows = [
        {"id": 123456789012345678901234, "text": "a", "score": float("nan")},
        {"id": 2, "label": True, "text": "Infinity, NaN and \\ \"", "score": -float("inf")},
        {"text": None, "id": -3, "score": 0.5, "tags": ["x", 1, None]},
    ]
    columns = ["id", "text", "score", "label", "tags"]
    texts = []
    for row in json.loads(json.dumps(rows)):
        score = row.get("score")
        texts.append({
            "id": str(row["id"]),
            "text": row["text"],
            "score": None if score is None or score != score or abs(score) == float("inf") else repr(score),
            "label": "true" if row.get("label") else None,
            "tags": row.get("tags"),
        })
    mark = "\ufeff"
    for name, content in [
        ("lines.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        ("marked.jsonl", mark + "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)),
        ("array.json", json.dumps(rows)),
        ("indented.json", json.dumps(rows, indent=2) + "\n"),
        ("objects.json", "\n".join(json.dumps(row, indent=2) for row in rows)),
    ]:
        (OUT / name).write_bytes(content.encode())
        expected[name] = cells(texts, columns)


def write_parquet(expected):
    table = pa.table({
        "text": pa.array(["a", "ö", None], pa.binary()),
        "large": pa.array(["x", None, "z"], pa.large_string()),
        "dictionary": pa.array(["p", "q", "p"]).dictionary_encode(),
        "flag": pa.array([decimal.Decimal("0.00"), decimal.Decimal("1.00"), None], pa.decimal128(5, 2)),
        "float32": pa.array([0.1, float("nan"), 1.0], pa.float32()),
        "uint64": pa.array([18446744073709551615, 0, 1], pa.uint64()),
        "label": pa.array([1, 0, -1], pa.int64()),
        "labels": pa.array([[2, 0], [], None], pa.list_(pa.int64())),
    })
    names = {"names": ["billing", "login", "refund"], "_type": "ClassLabel"}
    features = {"label": names, "labels": {"feature": names, "_type": "List"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rows = []
    for row in table.to_pylist():
        rows.append({
            "text": row["text"] and row["text"].decode(),
            "large": row["large"],
            "dictionary": row["dictionary"],
            "flag": row["flag"] is not None and str(row["flag"]) or None,
            "float32": None if row["float32"] != row["float32"] else str(pa.scalar(row["float32"], pa.float32())),
            "uint64": str(row["uint64"]),
            "label": None if row["label"] < 0 else names["names"][row["label"]],
            "labels": row["labels"] and [names["names"][label] for label in row["labels"]],
        })
        rows[-1]["labels"] = [] if row["labels"] == [] else rows[-1]["labels"]
    # As numpy and Python print the shortest digits.
    for row, text in zip(rows, ["0.1", None, "1.0"]):
        row["float32"] = text
    for codec in ["none", "snappy", "zstd", "gzip", "lz4", "brotli"]:
        pq.write_table(table, OUT / f"{codec}.parquet", compression=codec)
        expected[f"{codec}.parquet"] = cells(rows, table.column_names)
    odd = pa.table({
        "text": ["a"],
        "day": pa.array([datetime.date(2026, 1, 2)]),
        "raw": pa.array([b"\xff\xfe"], pa.binary()),
        "nested": pa.array([{"x": 1, "y": "z"}]),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "time": pa.array([datetime.datetime(2026, 1, 2, 3, 0, 5)]),
        "clock": pa.array([datetime.time(3, 4)]),
    })
    printed = [str(value) for value in odd.select(["day", "time"]).to_pandas().iloc[0]]
    assert printed == ["2026-01-02", "2026-01-02 03:00:05"]  # tests/rows.rs expects these
    pq.write_table(odd, OUT / "odd.parquet")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    expected = {}
    write_csv(expected)
    write_json(expected)
    write_parquet(expected)
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
