"""One cell of the comparison in PyTorch: prints one JSON object, as `llmcls bench` does.

Padded as transformers pads: each batch to its longest row, with an attention mask.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.utils import logging


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--adapter")
    parser.add_argument("--batches")
    parser.add_argument("--mode", choices=["train", "infer"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--base", choices=["float32", "bfloat16", "4bit"], default="float32", help="how the base is held")
    parser.add_argument("--autocast", action="store_true", help="compute in bf16 on the CPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model: for inference")
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    is_gpu = args.device == "cuda"

    def now():
        if is_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    started = now()
    how = {"dtype": torch.float32 if args.base == "float32" else torch.bfloat16}
    if args.base == "4bit":
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if is_gpu:
        how["device_map"] = {"": 0}
    base = AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=args.labels, problem_type="multi_label_classification", **how
    )
    # Encoders have no token for the end.
    base.config.pad_token_id = pad = base.config.eos_token_id or 0
    model = PeftModel.from_pretrained(base, args.adapter, is_trainable=args.mode == "train")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01) if trained else None
    load_seconds = now() - started
    load_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def autocast():
        enabled = args.base != "float32" if is_gpu else args.autocast
        return torch.autocast(args.device, torch.bfloat16, enabled=enabled)

    def step(rows):
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=args.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=args.device)
        labels = torch.tensor(
            [[float((7 * row + 3 * label) % 5 == 0) for label in range(args.labels)] for row in range(len(rows))],
            device=args.device,
        )
        if args.mode == "infer":
            with torch.no_grad(), autocast():
                return model(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
        optimizer.zero_grad()
        with autocast():
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    model.train(args.mode == "train")
    if args.compile:
        model = torch.compile(model, dynamic=True)
    with open(args.batches, encoding="utf-8") as file:
        batches = json.load(file)
    for index in range(args.warmup):
        step(batches[index % len(batches)])
    seconds, losses, tokens = [], [], []
    for index in range(args.steps):
        rows = batches[index % len(batches)]
        begin = now()
        losses.append(step(rows))
        seconds.append(now() - begin)
        tokens.append(sum(map(len, rows)))
    print(json.dumps({
        "seconds": seconds, "losses": losses, "tokens": tokens, "tokens_per_second": sum(tokens) / sum(seconds),
        "load_seconds": load_seconds, "load_peak_bytes": load_peak, "median": statistics.median(seconds),
        "gpu_peak_bytes": torch.cuda.max_memory_allocated() if is_gpu else None,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


if __name__ == "__main__":
    main()
