#!/usr/bin/env python3
"""Makes tests/fixtures/nf4.safetensors: a matrix quantized by bitsandbytes to NF4 with double
quantization, on the CPU.

    pip install torch==2.15.0 bitsandbytes==0.50.2 safetensors
    python scripts/make_nf4_fixture.py
"""

from pathlib import Path

import torch
from bitsandbytes import functional as F
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "nf4.safetensors"


def main() -> None:
    torch.manual_seed(4)
    # 277 blocks of 64, the last one partial; more than one nested block of 256.
    weight = torch.randn(130, 136) * torch.rand(130, 1)
    codes, state = F.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    tensors = {
        "weight": weight,
        "codes": codes.flatten(),
        "absmax": state.absmax.flatten(),
        "nested_absmax": state.state2.absmax.flatten(),
        "nested_map": state.state2.code.flatten(),
        "offset": state.offset.reshape(1),
        "levels": state.code.flatten(),
        "unsigned_map": F.create_dynamic_map(signed=False).flatten(),
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT)
    print({key: (tuple(value.shape), value.dtype) for key, value in tensors.items()})


if __name__ == "__main__":
    main()
