//! Rates of products with frozen weights, of our kernels and of the crate `gemm`, in turn:
//! `cargo bench --bench gemm [-- ROUNDS [N IN OUT]]`. `LLMCLS_CPU=x86-64-v3` limits ours to AVX2;
//! `gemm` takes AVX2, and with `--features gemm/x86-v4` AVX-512. Figures worth keeping go into LOG.md.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]
#![allow(unsafe_code, reason = "gemm takes raw pointers")]

use std::time::Instant;

use candle_core::{Device, Tensor};
use gemm::Parallelism;
use half::bf16;
use llmcls::kernels::Compute;
use llmcls::kernels::cpu::memory::Buffer;
use llmcls::kernels::cpu::nf4::Nf4;
use llmcls::kernels::matrix::{FrozenMatrix, Storage};
use rayon::prelude::*;

const SHAPES: [(usize, usize, usize); 16] = [
    (512, 768, 768),
    (512, 768, 2048),
    (512, 2048, 768),
    (512, 576, 576),
    (512, 576, 1536),
    (512, 2048, 2048),
    (512, 2048, 8192),
    (512, 8192, 2048),
    (64, 768, 768),
    (1024, 384, 1536),
    (16, 768, 2048),
    (8, 768, 2048),
    (4, 768, 2048),
    (2, 768, 2048),
    (1, 768, 2048),
    (4, 2048, 2048),
];

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(20);
    let shapes = match numbers[..] {
        [_, n, inputs, outputs] => vec![(n, inputs, outputs)],
        _ => SHAPES.to_vec(),
    };
    println!(
        "{} threads; GFLOP/s, the best of {rounds} rounds in turn\n{:>20} {}",
        rayon::current_num_threads(),
        "n, in, out",
        ["gemm y", "f32 y", "ratio", "packed", "bf16 y", "packed", "nf4 y", "gemm dx", "f32 dx", "ratio", "bf16 dx"]
            .map(|name| format!("{name:>8}"))
            .concat()
    );
    for (n, inputs, outputs) in shapes {
        rates(rounds, n, inputs, outputs);
    }
}

fn rates(rounds: usize, n: usize, inputs: usize, outputs: usize) {
    let numbers = |len: usize| -> Vec<f32> { (0..len).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect() };
    let (x, g, w) = (numbers(n * inputs), numbers(n * outputs), numbers(inputs * outputs));
    let float32 = || Storage::F32(Buffer::Owned(w.clone()));
    let bfloat16 = || Storage::Bf16(Buffer::Owned(w.iter().map(|&w| bf16::from_f32(w)).collect()));
    let nf4 = Nf4::quantize(w.len(), |first, out| out.copy_from_slice(&w[first..first + out.len()]));
    let matrix = |storage, compute| FrozenMatrix::new(storage, outputs, inputs).computed_in(compute);
    let f32 = matrix(float32(), Compute::Float32);
    let f32_packed = matrix(float32(), Compute::Float32);
    f32_packed.pack();
    let bf16 = matrix(bfloat16(), Compute::Bfloat16);
    let bf16_packed = matrix(bfloat16(), Compute::Bfloat16);
    bf16_packed.pack();
    let nf4 = matrix(Storage::Nf4(nf4), Compute::Bfloat16);
    let (mut y, mut dx) = (vec![0.0; n * outputs], vec![0.0; n * inputs]);
    let tensor = |data: &[f32], width: usize| Tensor::from_slice(data, (n, width), &Device::Cpu).unwrap();
    let (of_x, of_g) = (tensor(&x, inputs), tensor(&g, outputs));
    // Products are added to what is there, so that no time goes into new memory.
    let mut sum = tensor(&y, outputs);
    let mut forward = |matrix: &FrozenMatrix| {
        sum = matrix.product(&of_x, Some(sum.clone())).unwrap();
    };
    let back = |matrix: &FrozenMatrix, dx: &mut Tensor| {
        *dx = matrix.product_transposed(&of_g, Some(dx.clone())).unwrap();
    };
    let mut of_dx = tensor(&dx, inputs);
    let flops = 2.0 * (n * inputs * outputs) as f64;
    let mut best = [f64::INFINITY; 8];
    // Short products several times: a clock's tick is no measure of them.
    let times = (2e7 / flops).ceil() as usize;
    for _ in 0..rounds {
        let mut time = |index: usize, f: &mut dyn FnMut()| {
            let begin = Instant::now();
            (0..times).for_each(|_| f());
            best[index] = best[index].min(begin.elapsed().as_secs_f64() / times as f64);
        };
        time(0, &mut || by_gemm(&x, &w, &mut y, (n, inputs, outputs), true));
        time(1, &mut || forward(&f32));
        time(2, &mut || forward(&f32_packed));
        time(3, &mut || forward(&bf16));
        time(4, &mut || forward(&bf16_packed));
        time(5, &mut || forward(&nf4));
        time(6, &mut || by_gemm(&g, &w, &mut dx, (n, outputs, inputs), false));
        time(7, &mut || back(&f32, &mut of_dx));
    }
    let mut backward = f64::INFINITY;
    for _ in 0..rounds {
        let begin = Instant::now();
        (0..times).for_each(|_| back(&bf16, &mut of_dx));
        backward = backward.min(begin.elapsed().as_secs_f64() / times as f64);
    }
    let rate = |seconds: f64| flops / seconds / 1e9;
    let [gemm, f32, packed, bf16, bf16_packed, nf4, gemm_dx, f32_dx] = best.map(rate);
    println!(
        "{:>20} {gemm:8.0}{f32:8.0}{:8.2}{packed:8.0}{bf16:8.0}{bf16_packed:8.0}{nf4:8.0}{gemm_dx:8.0}{f32_dx:8.0}{:8.2}{:8.0}",
        format!("{n}, {inputs}, {outputs}"),
        f32 / gemm,
        f32_dx / gemm_dx,
        rate(backward)
    );
}

/// The former computation of products: tasks of equal columns around `gemm`.
fn by_gemm(x: &[f32], w: &[f32], y: &mut [f32], (n, depth, columns): (usize, usize, usize), is_forward: bool) {
    struct Shared(*mut f32);
    // SAFETY: each task writes its own columns.
    unsafe impl Sync for Shared {}
    let y = &Shared(y.as_mut_ptr());
    let tasks = columns.div_ceil(256).next_multiple_of(rayon::current_num_threads());
    let width = columns.div_ceil(tasks).next_multiple_of(16);
    let starts: Vec<usize> = (0..columns).step_by(width).collect();
    starts.into_par_iter().with_max_len(1).for_each(|start| {
        let end = (start + width).min(columns);
        // W is `(columns, depth)` forward and `(depth, columns)` backward.
        let (first, row, column) = if is_forward { (start * depth, 1, depth) } else { (start, columns, 1) };
        // SAFETY: the strides stay inside the slices.
        unsafe {
            gemm::gemm(
                n,
                end - start,
                depth,
                { y }.0.add(start),
                1,
                columns as isize,
                true,
                x.as_ptr(),
                1,
                depth as isize,
                w.as_ptr().add(first),
                column as isize,
                row as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    });
}
