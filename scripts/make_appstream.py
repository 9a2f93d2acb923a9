#!/usr/bin/env python3
"""Builds a second data set for recipes: Debian's desktop programs and their menu categories.

    curl -O https://deb.debian.org/debian/dists/bookworm/main/dep11/Components-amd64.yml.gz
    pip install pyyaml
    scripts/make_appstream.py Components-amd64.yml.gz OUT

text   = summary and description of a program, as its authors wrote them for AppStream (English)
labels = the freedesktop.org main categories that at least 80 programs have

Packages that data/debtags has are left out, as are texts that stand twice. Components of one source stay in one split.
"""

import collections
import csv
import gzip
import html
import random
import re
import sys
from pathlib import Path

import yaml

SEED = 42
# Of the rows; the rest is for training.
VALIDATION, TEST = 0.2, 0.2
LABELS = [
    "AudioVideo", "Audio", "Development", "Education", "Game", "Graphics", "Network", "Office", "Science", "System", "Utility",
]
DEBTAGS = Path(__file__).resolve().parent.parent / "data/debtags"


def components(path):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for document in yaml.load_all(file, Loader=loader):
            is_program = document.get("Type") in ("desktop-application", "console-application")
            if is_program and document.get("Categories") and "C" in document.get("Description", {}):
                yield document


def plain(markup):
    text = html.unescape(re.sub(r"<[^>]*>", " ", markup))
    return re.sub(r"\s+", " ", text).strip()


def text_of(component):
    summary = plain(component.get("Summary", {}).get("C", "")).rstrip(".")
    return f"{summary}. {plain(component['Description']['C'])}".strip()


def main(source, out):
    known = set()
    for name in ("train", "validation", "test"):
        with open(DEBTAGS / f"{name}.csv", encoding="utf-8", newline="") as file:
            known.update(row["uid"] for row in csv.DictReader(file))
    groups, seen = collections.defaultdict(list), set()
    for component in components(source):
        text = text_of(component)
        if component["Package"] in known or text.lower() in seen or not 80 <= len(text) <= 4000:
            continue
        seen.add(text.lower())
        row = [component["ID"], text, *(int(label in component["Categories"]) for label in LABELS)]
        # Programs of one project describe themselves alike.
        groups[component["Package"].split("-")[0]].append(row)
    order = sorted(groups)
    random.Random(SEED).shuffle(order)
    total = sum(map(len, groups.values()))
    splits = {"validation": [], "test": [], "train": []}
    for group in order:
        for name, part in (("validation", VALIDATION), ("test", TEST), ("train", 1)):
            if len(splits[name]) < part * total:
                splits[name] += groups[group]
                break
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        random.Random(SEED).shuffle(rows)
        with open(out / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([["uid", "text", *LABELS], *rows])
        frequencies = " ".join(f"{label} {sum(row[2 + at] for row in rows)}" for at, label in enumerate(LABELS))
        print(f"{name}: {len(rows)} rows, {sum(sum(row[2:]) for row in rows) / len(rows):.2f} labels each: {frequencies}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
