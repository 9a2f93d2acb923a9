#!/usr/bin/env python3
"""Load figures of `llmcls serve` and of a small PyTorch server with dynamic batching, for the same classifier.

Needs wrk. The PyTorch server merges the adapter into the base, batches what has come while the last batch was computed
(up to 32 texts, sorted by length and padded), and answers on HTTP/1.1 with kept connections.

    scripts/bench/serve.py --run RUN --model BASE --python PYTHON [--dtypes float32,bfloat16]
"""
import argparse, asyncio, csv, json, pathlib, re, signal, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).parent.parent.parent


def torch_server(args):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(args.threads)
    best = next(pathlib.Path(args.run).glob("seed_*/best"))
    facts = json.loads((best / "classifier.json").read_text())
    dtype = getattr(torch, args.dtype)
    base = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(facts["labels"]), dtype=dtype)
    model = PeftModel.from_pretrained(base, best).merge_and_unload().to(dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(best)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(model.config.eos_token_id or 0)
    model.config.pad_token_id = tokenizer.pad_token_id
    waiting = asyncio.Queue()

    def compute(texts):
        with torch.inference_mode():
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            batch = tokenizer([texts[i] for i in order], truncation=True, max_length=facts["max_length"], padding=True, return_tensors="pt")
            probs = torch.sigmoid(model(**batch).logits.float()).tolist()
        result = [None] * len(texts)
        for place, row in zip(order, probs):
            result[place] = row
        return result

    async def batches():
        loop = asyncio.get_running_loop()
        while True:
            taken = [await waiting.get()]
            while len(taken) < 32 and not waiting.empty():
                taken.append(waiting.get_nowait())
            for (_, future), row in zip(taken, await loop.run_in_executor(None, compute, [text for text, _ in taken])):
                future.set_result(row)

    async def connection(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                length = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
                body = json.loads(await reader.readexactly(length))
                futures = []
                for text in body["texts"]:
                    futures.append(asyncio.get_running_loop().create_future())
                    await waiting.put((text, futures[-1]))
                answer = json.dumps({"results": [{"probs": await future} for future in futures]}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    async def serve():
        task = asyncio.create_task(batches())
        compute(["warm up"] * 4)
        server = await asyncio.start_server(connection, "127.0.0.1", args.port)
        await asyncio.gather(server.serve_forever(), task)

    asyncio.run(serve())


def load(port, clients, seconds):
    """p50 and p99 in milliseconds, texts a second."""
    with open(ROOT / "data/debtags/test.csv", newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:256]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        bodies = ",".join(f"[==[{json.dumps({'texts': [text]})}]==]" for text in texts)
        script.write(f"local bodies = {{{bodies}}}\nlocal n = 0\nlocal first = 0\n"
                     "function setup(thread) thread:set('first', first); first = first + 101 end\n"
                     "function init() n = first end\n"
                     "function request() n = n % #bodies + 1\n"
                     "return wrk.format('POST', '/v1/predict', {['Content-Type']='application/json', ['Host']='localhost'}, bodies[n]) end\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", script.name, f"http://127.0.0.1:{port}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    time_at = lambda share: (lambda m: float(m[1]) * unit[m[2]])(re.search(rf"{share}%\s+([\d.]+)(us|ms|s)\b", text))
    if "Non-2xx" in text or "Socket errors" in text:
        print(text, file=sys.stderr)
    return time_at(50), time_at(99), float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))


def measured(name, command, args):
    server = subprocess.Popen(command)
    try:
        for _ in range(600):
            time.sleep(0.2)
            if server.poll() is not None:
                sys.exit(f"{name}: ended with {server.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{args.port}/health", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                continue
        load(args.port, 4, 2)
        for clients in args.clients:
            p50, p99, rate = load(args.port, clients, args.seconds)
            print(json.dumps({"server": name, "clients": clients, "p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "texts_per_second": round(rate, 1)}), flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--model", required=True, help="the base's directory")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch, transformers and peft")
    parser.add_argument("--binary", default=str(ROOT / "target/release/llmcls"))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 10, 32])
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["llmcls", "torch"])
    parser.add_argument("--serve", help=argparse.SUPPRESS, action="store_true")
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--port", help=argparse.SUPPRESS, type=int, default=18080)
    args, more = parser.parse_known_args()
    if args.serve:
        return torch_server(args)
    if args.only != "torch":
        measured("llmcls", [args.binary, "serve", "--quiet", "--port", str(args.port), "--run", args.run, *more], args)
    if args.only != "llmcls":
        for dtype in args.dtypes.split(","):
            command = [args.python, __file__, "--serve", "--run", args.run, "--model", args.model, "--dtype", dtype]
            measured(f"PyTorch {dtype}", [*command, "--threads", str(args.threads), "--port", str(args.port)], args)


if __name__ == "__main__":
    main()
