#!/usr/bin/env python3
"""What MPI costs, and how training grows with ranks of one thread, on one machine with at least two cores.

    cargo build --release --locked --features mpi && python3 scripts/bench/ranks.py --model models/smollm2-135m-instruct

Needs a quiet machine and mpirun, no Python package. A step is the difference of a long run's time and a short one's, over
the steps between, and a figure the median over --repeats, whose runs take turns:

- communication: what a step of 2 ranks takes beyond half of a step of one rank, the same rows and window, one thread a
  rank. That is an upper bound: one rank has the machine's memory for itself.
- ranks for threads: 2 ranks of one thread over one rank of 2 threads, the same window.
- seeds: 4 seeds on one rank of one thread, over twice the time of 2 ranks of one thread.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
}


class Bench:
    def __init__(self, args: argparse.Namespace, root: str):
        self.args, self.root = args, root

    def command(self, ranks: int, threads: int, **settings: object) -> list[str]:
        settings = {
            "model.model_name": self.args.model, "model.random_init": "false", "model.torch_dtype": "bfloat16",
            "model.lora_r": 8, "model.lora_alpha": 16, "data.max_length": 128, "train.batch_size": 4,
            "data.max_val_samples": 4, "data.test_csv": "null", "train.save_total_limit": 1,
        } | {key.replace("__", "."): value for key, value in settings.items()}
        command = [self.args.bin, "train", "--quiet", "--device", "cpu", "--config", "configs/tiny.yaml", "--threads", str(threads),
                   "--override_output_root", tempfile.mkdtemp(dir=self.root)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        # Unbound, as the operating system schedules the one program too.
        return (["mpirun", "--bind-to", "none", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []) + command

    def seconds(self, command: list[str]) -> float:
        start = time.perf_counter()
        result = subprocess.run(command, cwd=ROOT, env=os.environ | MPI, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(result.stderr)
        return time.perf_counter() - start

    def step(self, ranks: int, threads: int) -> float:
        few, many, window = 2, 2 + self.args.steps, self.args.window
        times = []
        for steps in (few, many):
            settings = {
                "train__max_steps": steps, "train__gradient_accumulation_steps": window,
                # One evaluation, at the end.
                "data__max_train_samples": steps * window * 4,
            }
            times.append(self.seconds(self.command(ranks, threads, **settings)))
        return (times[1] - times[0]) / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=str(ROOT / "target" / "release" / "llmcls"))
    parser.add_argument("--model", default=str(ROOT / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(args, root)
        cells = {
            "1 rank of one thread": (1, 1), "2 ranks of one thread": (2, 1), "4 ranks of one thread": (4, 1),
            "1 rank of 2 threads": (1, 2),
        }
        measured: dict[str, list[float]] = {name: [] for name in cells}
        seeds: list[list[float]] = [[], []]
        for _ in range(args.repeats):
            for name, cell in cells.items():
                measured[name].append(bench.step(*cell))
            settings = {
                "exp__seeds": "[1, 2, 3, 4]", "train__max_steps": args.steps, "data__max_train_samples": 4 * args.steps,
                "train__gradient_accumulation_steps": 1,
            }
            for times, ranks in zip(seeds, (1, 2)):
                times.append(bench.seconds(bench.command(ranks, 1, **settings)))
    print(f"| a window of {args.window} micro-batches | seconds a step (all runs) |\n|---|---|")
    for name, times in measured.items():
        print(f"| {name} | {statistics.median(times):.3f} ({', '.join(f'{t:.3f}' for t in times)}) |")
    one, two, four, threads = measured.values()
    ratio = lambda a, b: statistics.median(x / y for x, y in zip(a, b))
    print(f"communication: {1 - ratio(one, two) / 2:.1%} of a step")
    print(f"2 ranks of one thread over 1 rank of 2 threads: {ratio(threads, two):.3f} times as fast")
    print(f"2 ranks over 1: {ratio(one, two):.2f} times as fast; 4 over 1: {ratio(one, four):.2f} (more ranks than cores wait)")
    one, two = seeds
    print(f"4 seeds: {statistics.median(one):.1f} s on 1 rank, {statistics.median(two):.1f} s on 2: efficiency {ratio(one, two) / 2:.3f}")


if __name__ == "__main__":
    main()
