#!/usr/bin/env python3
"""Makes the numbers of 4-bit training that tests/ compares with, from bitsandbytes, transformers and peft.

    pip install torch==2.15.0 transformers==4.57.6 peft==0.21.2 bitsandbytes==0.50.2 accelerate safetensors numpy
    python scripts/make_4bit_fixtures.py

  tests/fixtures/nf4.safetensors     matrices quantized to NF4 with double quantization, on the CPU
  tests/fixtures/adamw8bit.safetensors  steps of 8-bit AdamW: the rule of bitsandbytes' CUDA kernel written out
                                     in numpy; its first step is held against the CPU kernel
  tests/fixtures/llama_4bit/         a 4-bit checkpoint as transformers saves it, an adapter as peft saves
                                     it, and what they compute
"""

import json
import shutil
import tempfile
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def nf4() -> None:
    torch.manual_seed(4)
    # 277 blocks of 64, the last one partial; more than one nested block of 256.
    weight = torch.randn(130, 136) * torch.rand(130, 1)
    codes, state = F.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    # bitsandbytes dequantizes correctly on the CPU only where rows are whole blocks.
    whole = torch.randn(48, 128) * torch.rand(48, 1)
    whole_codes, whole_state = F.quantize_4bit(whole, blocksize=64, compress_statistics=True, quant_type="nf4")
    tensors = {
        "weight": weight,
        "codes": codes.flatten(),
        "absmax": state.absmax.flatten(),
        "nested_absmax": state.state2.absmax.flatten(),
        "nested_map": state.state2.code.flatten(),
        "offset": state.offset.reshape(1),
        "levels": state.code.flatten(),
        "unsigned_map": F.create_dynamic_map(signed=False).flatten(),
        "whole.codes": whole_codes.flatten(),
        "whole.absmax": whole_state.absmax.flatten(),
        "whole.nested_absmax": whole_state.state2.absmax.flatten(),
        "whole.offset": whole_state.offset.reshape(1),
        "whole.dequantized": F.dequantize_4bit(whole_codes, whole_state),
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / "nf4.safetensors")


SIGNED, UNSIGNED = F.create_dynamic_map(signed=True).numpy(), F.create_dynamic_map(signed=False).numpy()
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def nearest(values: np.ndarray, x: float) -> int:
    return int(np.argmin(np.abs(values.astype(np.float64) - x)))


def adamw_step(p, g, m, v, m_scale, v_scale, step, lr, decay, keep_sign=True):
    """One step of the CUDA kernel's rule, block by block, element by element."""
    c1, c2 = 1 - BETA1**step, np.sqrt(1 - BETA2**step)
    for block in range(-(-len(p) // 256)):
        at = range(256 * block, min(256 * block + 256, len(p)))
        first = {i: BETA1 * float(SIGNED[m[i]]) * m_scale[block] + (1 - BETA1) * g[i] for i in at}
        second = {i: BETA2 * float(UNSIGNED[v[i]]) * v_scale[block] + (1 - BETA2) * g[i] ** 2 for i in at}
        for i in at:
            if not np.isfinite(g[i]):
                first[i] = second[i] = 0.0
                continue
            p[i] -= lr * c2 / c1 * first[i] / (np.sqrt(second[i]) + c2 * EPSILON)
            p[i] *= 1 - lr * decay
        m_scale[block], v_scale[block] = max(map(abs, first.values())), max(second.values())
        for i in at:
            m[i] = nearest(SIGNED, first[i] / m_scale[block])
            v[i] = nearest(UNSIGNED, second[i] / v_scale[block])
            if keep_sign and np.signbit(SIGNED[m[i]]) != np.signbit(first[i]):
                m[i] += 1 if first[i] > 0 else -1


def adamw8bit() -> None:
    rng = np.random.default_rng(8)
    count, steps, lr, decay = 4096 + 300, 3, 0.01, 0.1
    gradients = rng.normal(size=(steps, count)) * rng.uniform(0.1, 1, size=count)
    gradients[1, 77] = np.inf
    start = rng.normal(size=count)
    zero_m, zero_v = nearest(SIGNED, 0), nearest(UNSIGNED, 0)

    def run(gradients, decay, keep_sign):
        p, m, v = start.copy(), np.full(count, zero_m), np.full(count, zero_v)
        scales = np.zeros(-(-count // 256)), np.zeros(-(-count // 256))
        for step, g in enumerate(gradients, 1):
            adamw_step(p, g, m, v, *scales, step, lr, decay, keep_sign)
        return p, m, v, scales

    # bitsandbytes' CPU kernel decays first and finds codes through a coarse table, so later steps drift
    # apart; one step without decay is the same.
    ours = run(gradients[:1], 0.0, keep_sign=True)
    p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = bitsandbytes.optim.AdamW8bit([p], lr=lr, weight_decay=0.0)
    p.grad = torch.tensor(gradients[0], dtype=torch.float32)
    optimizer.step()
    state = optimizer.state[p]
    worst = np.abs(p.detach().numpy() - ours[0]).max()
    scales = [np.abs(state[key].numpy() - scale).max() for key, scale in zip(("absmax1", "absmax2"), ours[3])]
    print(f"8-bit AdamW against bitsandbytes on the CPU: parameters within {worst:.1e}, scales within {max(scales):.1e}")
    assert worst < 1e-6 and max(scales) < 1e-6

    p, m, v, scales = run(gradients, decay, keep_sign=True)
    floats = {"start": start, "gradients": gradients, "after": p, "first_scales": scales[0], "second_scales": scales[1]}
    tensors = {key: torch.tensor(value, dtype=torch.float32) for key, value in floats.items()}
    tensors |= {"first": torch.tensor(m, dtype=torch.uint8), "second": torch.tensor(v, dtype=torch.uint8)}
    save_file(tensors, OUT / "adamw8bit.safetensors")


def llama() -> None:
    torch.manual_seed(7)
    out = OUT / "llama_4bit"
    shutil.rmtree(out, ignore_errors=True)
    config = LlamaConfig(
        vocab_size=89, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, initializer_range=0.2, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=88, pad_token_id=88,
    )
    with tempfile.TemporaryDirectory() as work:
        LlamaForCausalLM(config).save_pretrained(work)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["score"],
        )
        base = AutoModelForSequenceClassification.from_pretrained(
            work, num_labels=3, quantization_config=quantization, dtype=torch.float32, device_map="cpu",
            problem_type="multi_label_classification",
        )
    base.save_pretrained(out)
    for name in out.iterdir():
        if name.name not in ("config.json", "model.safetensors"):
            name.unlink()
    lora = LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, lora_dropout=0.0,
                      target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    model = get_peft_model(base, lora)
    trained = {k.replace(".default", "").replace("modules_to_save.", ""): p for k, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(0, 0.2)
    model.save_pretrained(out / "adapter")
    (out / "adapter" / "README.md").unlink(missing_ok=True)
    config = out / "adapter" / "adapter_config.json"
    saved = json.loads(config.read_text())
    # Else the name of the directory where this script worked.
    saved["base_model_name_or_path"] = "llama_4bit"
    config.write_text(json.dumps(saved, indent=2) + "\n")
    lengths = [21, 1, 40]
    tokens = [torch.randint(0, 88, (length,)).tolist() for length in lengths]
    labels = torch.randint(0, 2, (3, 3)).float()
    (out / "batch.json").write_text(
        json.dumps({"token_ids": tokens, "labels": labels.tolist(), "problem_type": "multi_label_classification"}) + "\n")
    ids = torch.tensor([row + [88] * (40 - len(row)) for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (40 - len(row)) for row in tokens])
    model.train()
    result = model(input_ids=ids, attention_mask=mask, labels=labels)
    result.loss.backward()
    expected = {"logits": result.logits.detach().clone(), "loss": result.loss.detach().reshape(1)}
    expected |= {f"gradient.{key}": parameter.grad.detach().clone() for key, parameter in trained.items()}
    expected["norm"] = torch.stack([p.grad.norm() for p in trained.values()]).norm().reshape(1)
    save_file(expected, out / "expected.safetensors")
    print("llama_4bit: loss", result.loss.item(), "modules", type(base.model.layers[0].mlp.up_proj).__name__)


if __name__ == "__main__":
    nf4()
    adamw8bit()
    llama()
