//! Each op's forward and backward, at the sizes of a 768-wide model with 512 tokens:
//! `cargo bench --bench ops [-- FILTER]`. Figures worth keeping go into LOG.md.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::cell::OnceCell;
use std::hint::black_box;
use std::rc::Rc;

use candle_core::{Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use half::bf16;
use llmcls::kernels::cpu::memory::Buffer;
use llmcls::kernels::cpu::nf4::Nf4;
use llmcls::kernels::matrix::{FrozenMatrix, Storage};
use llmcls::ops::activation::{Activation, gated};
use llmcls::ops::attention::{AttentionKind, Sequences, attention};
use llmcls::ops::dropout::Dropout;
use llmcls::ops::lora_linear::{Adapter, LoraLinear, lora_linear};
use llmcls::ops::rms_norm::{RmsNorm, rms_norm};
use llmcls::ops::rope::{RopeTable, rope};
use llmcls::ops::tape::{DropoutKey, Param, Tape, Value};
use llmcls::rng::{Purpose, Stream};
use llmcls::training::optimizer::{AdamW, MomentStorage};

const TOKENS: usize = 512;
const WIDTH: usize = 768;
const INTER: usize = 2048;

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut out = vec![0.0; len];
    Stream::new(seed, 0, 0, Purpose::Base).uniform(0, 1.0, &mut out);
    out
}

fn tensor(shape: (usize, usize), seed: u32) -> Tensor {
    Tensor::from_vec(numbers(shape.0 * shape.1, seed), shape, &Device::Cpu).unwrap()
}

/// Times the forward alone, then forward and backward, of an op on inputs of the given shapes.
fn bench(c: &mut Criterion, name: &str, shapes: &[(usize, usize)], op: impl Fn(&Tape, Vec<Value>) -> Value) {
    let inputs: Vec<Tensor> = shapes.iter().zip(1..).map(|(&shape, seed)| tensor(shape, seed)).collect();
    c.bench_function(&format!("{name}/forward"), |b| {
        b.iter(|| {
            let values = inputs.iter().map(|input| Value::constant(input.copy().unwrap())).collect();
            black_box(op(&Tape::off(), values));
        });
    });
    c.bench_function(&format!("{name}/forward and backward"), |b| {
        b.iter(|| {
            let values = inputs.iter().map(|input| Value::leaf(input.copy().unwrap()).0).collect();
            let tape = Tape::recording(Some(DropoutKey { seed: 1, micro_batch: 2 }));
            let output = op(&tape, values);
            let gradient = output.tensor().copy().unwrap();
            tape.backward(&output, gradient).unwrap();
        });
    });
}

fn storages() -> [(&'static str, Storage); 3] {
    let weights = numbers(INTER * WIDTH, 9);
    [
        ("bf16", Storage::Bf16(Buffer::Owned(weights.iter().map(|&w| bf16::from_f32(w)).collect()))),
        (
            "nf4",
            Storage::Nf4(Nf4::quantize(weights.len(), |first, out| {
                out.copy_from_slice(&weights[first..first + out.len()]);
            })),
        ),
        ("f32", Storage::F32(Buffer::Owned(weights))),
    ]
}

fn ops(c: &mut Criterion) {
    for (name, storage) in storages() {
        let weight = FrozenMatrix::new(storage, INTER, WIDTH);
        let layer = Rc::new(LoraLinear {
            weight: weight.into(),
            bias: None,
            adapter: None,
            slot: None,
            merged: OnceCell::new(),
        });
        bench(c, &format!("frozen linear {name}"), &[(TOKENS, WIDTH)], |tape, inputs| {
            lora_linear(tape, &inputs[0], &layer, None).unwrap()
        });
    }
    for rank in [2, 16] {
        let param = |shape, seed| Param::new("p", tensor(shape, seed)).unwrap();
        let (a, b) = (param((rank, WIDTH), 3), param((INTER, rank), 4));
        let [_, _, (_, storage)] = storages();
        let layer = Rc::new(LoraLinear {
            weight: FrozenMatrix::new(storage, INTER, WIDTH).into(),
            bias: None,
            adapter: Some(Adapter { a, b, scaling: 1.5, dropout: 0.05, site: 0 }),
            slot: None,
            merged: OnceCell::new(),
        });
        bench(c, &format!("lora linear r={rank}"), &[(TOKENS, WIDTH)], |tape, inputs| {
            lora_linear(tape, &inputs[0], &layer, None).unwrap()
        });
    }
    let norm = Rc::new(RmsNorm { weight: numbers(WIDTH, 5).into(), epsilon: 1e-5 });
    bench(c, "rms norm", &[(TOKENS, WIDTH)], |tape, inputs| rms_norm(tape, &inputs[0], &norm).unwrap());
    let table = Rc::new(RopeTable::new(&numbers(32, 6), 64, 1.0, TOKENS));
    let positions = Rc::new((0..TOKENS as u32).collect::<Vec<_>>().into());
    bench(c, "rope", &[(TOKENS, WIDTH)], |tape, mut inputs| {
        rope(tape, inputs.pop().unwrap(), &table, &positions).unwrap()
    });
    bench(c, "swiglu", &[(TOKENS, INTER), (TOKENS, INTER)], |tape, inputs| {
        gated(tape, &inputs[0], &inputs[1], Activation::Silu).unwrap()
    });
    for length in [128, 512] {
        let kind = AttentionKind {
            heads: 12,
            key_value_heads: 4,
            head_size: 64,
            is_causal: true,
            window: None,
            scale: 0.125,
            soft_cap: None,
            dropout: Dropout { p: 0.0, site: 0 },
        };
        let offsets = (0..=TOKENS).step_by(length).collect();
        let sequences = Rc::new(Sequences::new(offsets, None));
        bench(c, &format!("attention {length}"), &[(TOKENS, WIDTH), (TOKENS, 256), (TOKENS, 256)], |tape, inputs| {
            attention(tape, [&inputs[0], &inputs[1], &inputs[2]], kind, &sequences).unwrap()
        });
    }
}

fn optimizers(c: &mut Criterion) {
    for (name, storage) in [("f32", MomentStorage::Float32), ("8 bit", MomentStorage::EightBit)] {
        let param = Param::new("p", tensor((1024, 1024), 1)).unwrap();
        param.add_to_gradient(&numbers(1024 * 1024, 2)).unwrap();
        let mut optimizer = AdamW::new(&[param], 0.01, storage).unwrap();
        c.bench_function(&format!("adamw {name}, 1 Mi parameters"), |b| {
            b.iter(|| optimizer.step(1e-4, 1.0).unwrap());
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = ops, optimizers
}
criterion_main!(benches);
