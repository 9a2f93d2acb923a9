#!/usr/bin/env python3
"""Rows a second from text to probabilities: llmcls against ONNX Runtime and PyTorch, in turn.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 onnx onnxscript onnxruntime
    cargo build --release --locked && scripts/get_minilm && scripts/get_smollm2
    python scripts/bench/predict.py --run RUN [--model minilm|smollm2] [--rows 500] [--batch_size 8] [--repeats 3]

RUN is a finished llmcls run of that base. The same texts of data/debtags go through all programs, with
tokenizing, in batches of --batch_size, sorted by length and in file order. Python merges the adapter, exports
the model to ONNX and quantizes it (dynamic, QInt8). All cut texts at the run's max_length. int8 needs the run's
`llmcls eval --split validation --precision int8` first. llmcls's time is that of `predict` on all rows less that
on one row, so that loading does not count; Python's clock starts after a warm-up. A second table has the
median time of one text of 32 tokens.

With --model smollm2 and `pip install llama-cpp-python==0.3.36` there are also llama.cpp's rows,
`--ways llama-q8_0,llama-bf16`: the embeddings of the base of `scripts/get_smollm2 --gguf`, without adapter and head.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BASES = {"minilm": ROOT / "models/all-minilm-l6-v2", "smollm2": ROOT / "models/smollm2-135m-instruct"}
# Python's ways: how the model runs, and in what.
WAYS = ["onnx-int8", "onnx-f32", "torch-bf16", "torch-f32", "torch-bf16-compiled", "torch-f32-compiled"]
# llama.cpp's number for a type of file.
LLAMA_TYPES = {"llama-q8_0": 7, "llama-bf16": 32}


def texts(rows: int) -> list[str]:
    with open(ROOT / "data/debtags/train.csv", encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)][:rows]


def merged(args):
    """The base with the run's adapter merged into it, and its tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    adapter = next(Path(args.run).glob("seed_*/best"))
    labels = json.loads((adapter / "classifier.json").read_text())["labels"]
    base = AutoModelForSequenceClassification.from_pretrained(args.base, num_labels=len(labels), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(base.config.eos_token_id or 0)
    base.config.pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(base, adapter).merge_and_unload().eval(), tokenizer


def exported(args, model, way: str) -> str:
    """The path of an ONNX file."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = Path(args.work) / f"{args.model}.onnx"
    if not path.exists():
        model.config.use_cache = False
        ids = torch.ones((2, 8), dtype=torch.int64)
        axes = {name: {0: "batch", 1: "length"} for name in ["input_ids", "attention_mask"]} | {"logits": {0: "batch"}}
        torch.onnx.export(
            model, (ids, ids), str(path), input_names=["input_ids", "attention_mask"], output_names=["logits"],
            dynamic_axes=axes, opset_version=17, dynamo=False,
        )
    if way == "onnx-f32":
        return str(path)
    quantized = path.with_suffix(".int8.onnx")
    if not quantized.exists():
        quantize_dynamic(path, quantized, weight_type=QuantType.QInt8)
    return str(quantized)


def by_llama(args, way: str):
    """A function from texts to embeddings of the last token, by llama.cpp."""
    import llama_cpp

    path = Path(args.work) / f"{args.model}.{way}.gguf"
    if not path.exists():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize = LLAMA_TYPES[way], True
        if llama_cpp.llama_model_quantize(f"{args.base}.gguf".encode(), str(path).encode(), options):
            sys.exit(f"{args.base}.gguf: cannot be stored as {way}")
    tokens = args.batch_size * args.max_length
    model = llama_cpp.Llama(
        str(path), embedding=True, n_ctx=tokens, n_batch=tokens, n_ubatch=tokens, n_seq_max=args.batch_size,
        n_threads=args.threads, n_threads_batch=args.threads, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST, verbose=False,
    )
    tokenize = model.tokenize
    model.tokenize = lambda *text, **options: tokenize(*text, **options)[: args.max_length]
    return model.embed


def predictor(args, way: str):
    """A function from texts to logits."""
    if way in LLAMA_TYPES:
        return by_llama(args, way)
    import numpy
    import torch

    model, tokenizer = merged(args)
    encode = lambda batch, kind: tokenizer(batch, padding=True, truncation=True, max_length=args.max_length, return_tensors=kind)
    if way.startswith("onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        session = onnxruntime.InferenceSession(exported(args, model, way), options, providers=["CPUExecutionProvider"])
        names = {value.name for value in session.get_inputs()}

        def by_onnx(batch):
            encoded = {name: array.astype(numpy.int64) for name, array in encode(batch, "np").items() if name in names}
            return session.run(None, encoded)[0]

        return by_onnx
    if "compiled" in way:
        model = torch.compile(model, dynamic=True)
    is_bf16 = "bf16" in way

    def by_torch(batch):
        encoded = encode(batch, "pt")
        encoded.pop("token_type_ids", None)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            return model(**encoded).logits.float().numpy()

    return by_torch


def worker(args) -> None:
    """One of Python's ways: prints rows a second sorted and in file order, and the time of one text."""
    run = predictor(args, args.way)
    rows = texts(args.rows)
    for start in range(0, min(64, len(rows)), args.batch_size):
        run(rows[start : start + args.batch_size])
    result = {}
    for order in ["sorted", "file"]:
        begin = time.perf_counter()
        # By characters, as tokens are not known yet.
        ordered = sorted(rows, key=len) if order == "sorted" else rows
        for start in range(0, len(ordered), args.batch_size):
            run(ordered[start : start + args.batch_size])
        result[order] = len(rows) / (time.perf_counter() - begin)
    one = [args.one]
    times = []
    for _ in range(60):
        begin = time.perf_counter()
        run(one)
        times.append(time.perf_counter() - begin)
    result["one"] = 1e3 * statistics.median(times[10:])
    print(json.dumps(result))


def ours(args, precision: str) -> dict:
    """The same of llmcls."""
    def seconds(rows: list[str]) -> float:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "rows.jsonl")
            path.write_text("".join(json.dumps({"uid": str(at), "text": text}) + "\n" for at, text in enumerate(rows)))
            command = [args.bin, "--quiet", "predict", str(path), "-o", str(Path(directory, "out.jsonl")), "--run", args.run,
                       "--batch_size", str(args.batch_size), "--threads", str(args.threads), "--precision", precision, "--accept_loss",
                       "--set", f"model.model_name={args.base}"]
            begin = time.perf_counter()
            subprocess.run(command, check=True, cwd=ROOT)
            return time.perf_counter() - begin

    rows = texts(args.rows)
    load = min(seconds(rows[:1]) for _ in range(2))
    rate = len(rows) / (seconds(rows) - load)
    # A stream is answered text by text.
    command = [args.bin, "--quiet", "predict", "-", "-o", "-", "--run", args.run, "--threads", str(args.threads),
               "--precision", precision, "--accept_loss", "--set", f"model.model_name={args.base}"]
    times = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        process.stdin.write("uid,text\n")
        for at in range(60):
            begin = time.perf_counter()
            process.stdin.write(f'{at},"{args.one}"\n')
            process.stdin.flush()
            process.stdout.readline()
            times.append(time.perf_counter() - begin)
        process.stdin.close()
    # llmcls sorts by length itself: both orders of the file are the same work.
    return {"sorted": rate, "file": rate, "one": 1e3 * statistics.median(times[10:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--model", choices=list(BASES), default="minilm")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precisions", default="float32,bfloat16", help="llmcls's")
    parser.add_argument("--ways", default=",".join(WAYS), help="Python's")
    parser.add_argument("--work", default=str(ROOT / "models/bench"))
    parser.add_argument("--bin", default=str(ROOT / "target/release/llmcls"))
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.base = str(BASES[args.model])
    classifier = next(Path(args.run).glob("seed_*/best/classifier.json"))
    args.max_length = json.loads(classifier.read_text())["max_length"]
    Path(args.work).mkdir(parents=True, exist_ok=True)
    # 32 tokens for MiniLM's tokenizer, with its two special ones.
    args.one = "a tool that shows files as a tree and counts their sizes on disk for people who like to know what takes the space there"
    if args.way:
        worker(args)
        return
    found: dict[str, list[dict]] = {}
    for _ in range(args.repeats):
        for way in args.ways.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            # Waiting threads that spin take the other core from the one that works.
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
            if result.returncode:
                print(f"{way}: {result.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            found.setdefault(way, []).append(json.loads(result.stdout.splitlines()[-1]))
        for precision in args.precisions.split(","):
            found.setdefault(f"llmcls {precision}", []).append(ours(args, precision))
    print(f"{args.model}, {args.rows} rows, batches of {args.batch_size}, {args.threads} threads\n")
    print("| | rows/s, sorted | rows/s, file order | one text, p50 |\n|---|---|---|---|")
    for way, results in found.items():
        median = lambda key: statistics.median(result[key] for result in results)
        print(f"| {way} | {median('sorted'):.0f} | {median('file'):.0f} | {median('one'):.1f} ms |")


if __name__ == "__main__":
    main()
