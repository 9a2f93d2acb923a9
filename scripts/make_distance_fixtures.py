#!/usr/bin/env python3
"""Makes tests/fixtures/distances.json: rows of tables by distance, as DeBERTa and MPNet of transformers give them.

    pip install torch==2.15.0 transformers==4.57.6
    python scripts/make_distance_fixtures.py
"""

import json
from pathlib import Path

import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "distances.json"
# Buckets and reach; DeBERTa-v3 has the first.
SHAPES = [(256, 512), (32, 128), (8, 64), (5, 40), (50, 1000), (128, 512), (256, 2048), (16, 24)]

deberta = []
for buckets, reach in SHAPES:
    rows = make_log_bucket_position(torch.arange(700), buckets, reach).to(torch.long).tolist()
    deberta.append([buckets, reach, rows])
# The position of the key less that of the query is what it takes.
mpnet = MPNetEncoder.relative_position_bucket(-torch.arange(-600, 601)).tolist()
OUT.write_text(json.dumps({"deberta": deberta, "mpnet": mpnet}) + "\n")
