#!/usr/bin/env python3
"""Writes tests/fixtures/labels: the same labels in each form that files have, and scikit-learn's 0/1 matrix.

pandas writes the cells (so lists are as Python and numpy print them), pyarrow the Parquet file,
MultiLabelBinarizer the matrix. Needs pandas, pyarrow and scikit-learn.
"""

import json
import pathlib

import numpy as np
import pandas as pd
from sklearn.preprocessing import MultiLabelBinarizer

OUT = pathlib.Path(__file__).parent.parent / "tests/fixtures/labels"
ROWS = [["billing", "feature request"], ["login"], [], ["login", "billing"], ["feature request"], ["it's late", "login"],
        ["billing"], ["it's late"], ["feature request", "login", "billing"], ["login"]]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    binarizer = MultiLabelBinarizer()
    matrix = binarizer.fit_transform(ROWS)
    expected = {"labels": list(binarizer.classes_), "matrix": matrix.tolist()}
    (OUT / "expected.json").write_text(json.dumps(expected) + "\n")
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(len(ROWS))]})

    def write(name, cells):
        frame.assign(tags=cells).to_csv(OUT / f"{name}.csv", index=False)

    for name, sign in [("comma", ","), ("semicolon", "; "), ("bar", "|")]:
        write(name, [sign.join(row) for row in ROWS])
    write("json", [json.dumps(row) for row in ROWS])
    write("python", ROWS)
    write("tuple", [tuple(row) for row in ROWS])
    write("set", [set(row) for row in ROWS])
    write("numpy", [np.array(row, dtype=object) for row in ROWS])
    write("label_studio", [row[0] if len(row) == 1 else json.dumps({"choices": row}) for row in ROWS])
    write("cats", [dict(zip(binarizer.classes_, map(int, row))) for row in matrix])
    write("fasttext", [" ".join("__label__" + label.replace(" ", "_") for label in row) for row in ROWS])
    write("multi_hot", [row.tolist() for row in matrix])
    write("multi_hot_numpy", [row.astype(float) for row in matrix])
    write("multi_hot_text", [",".join(map(str, row)) for row in matrix])
    frame.assign(tags=ROWS).to_json(OUT / "doccano.jsonl", orient="records", lines=True)
    frame.assign(tags=ROWS).to_parquet(OUT / "list.parquet", index=False)
    frame.assign(tags=[row.tolist() for row in matrix]).to_parquet(OUT / "multi_hot.parquet", index=False)

    def columns(name, of):
        flags = pd.DataFrame([[of(flag) for flag in row] for row in matrix], columns=binarizer.classes_)
        pd.concat([frame, flags], axis=1).to_csv(OUT / f"columns_{name}.csv", index=False)

    columns("integers", int)
    columns("decimals", lambda flag: f"{flag:.2f}")
    columns("booleans", bool)
    columns("words", lambda flag: "Yes" if flag else "no")
    columns("letters", lambda flag: "Y" if flag else "N")
    columns("ones", lambda flag: "1" if flag else "")
    columns("marks", lambda flag: "x" if flag else None)


main()
