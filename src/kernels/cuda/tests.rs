//! Every op on the GPU against its CPU reference: outputs and gradients, in f32 and in bf16.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use crate::kernels::buffer::{elements, modify, tensor};
use crate::kernels::constant::Constant;
use crate::kernels::cpu::memory::Buffer;
use crate::kernels::cpu::nf4::Nf4;
use crate::kernels::device::Device;
use crate::kernels::matrix::{FrozenMatrix, Storage};
use crate::ops::activation::{Activation, activate, gated};
use crate::ops::adamw::{self, Maps, MomentStorage, Moments, ParamMoments, Step, sum_of_squares};
use crate::ops::attention::{AttentionKind, ByDistance, Distances, Sequences, attention, relative_attention};
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::finite_differences::numbers;
use crate::ops::layer_norm::{LayerNorm, layer_norm};
use crate::ops::lora_linear::{Adapter, LoraLinear, lora_linear};
use crate::ops::rms_norm::{RmsNorm, rms_norm};
use crate::ops::rope::{RopeTable, rope};
use crate::ops::rows::{add, add_scaled, columns, gather};
use crate::ops::tape::{DropoutKey, Param, Tape, Value};
use crate::ops::to_host::to_host;

type Input = (Vec<f32>, (usize, usize));

fn gpu() -> Device {
    Device::gpu(0).expect("the tests with `--ignored` need a GPU")
}

/// An op's output, the gradients of its inputs, and those of its parameters.
fn run(
    device: &Device,
    inputs: &[Input],
    params: &[Rc<Param>],
    f: &dyn Fn(&Tape, &[Value], &Device) -> Result<Value>,
) -> Vec<Vec<f32>> {
    let tape = Tape::recording(Some(DropoutKey { seed: 7, micro_batch: 3 }));
    let (values, gradients): (Vec<_>, Vec<_>) = inputs
        .iter()
        .map(|(data, shape)| Value::leaf(device.put(tensor(data.clone(), *shape).unwrap()).unwrap()))
        .unzip();
    for param in params {
        param.clear_gradient();
    }
    let output = f(&tape, &values, device).unwrap();
    let mut results = vec![elements(output.tensor()).unwrap().to_vec()];
    let shape = output.tensor().dims2().unwrap();
    let incoming = device.put(tensor(numbers(shape.0 * shape.1, 99), shape).unwrap()).unwrap();
    tape.backward(&output, incoming).unwrap();
    drop(values);
    results.extend(gradients.iter().map(|gradient| match gradient.take() {
        Some(gradient) => elements(&gradient).unwrap().to_vec(),
        None => Vec::new(),
    }));
    results.extend(params.iter().map(|param| elements(param.gradient()).unwrap().to_vec()));
    results
}

/// Rounded to bf16, so that both sides start from the same numbers.
fn rounded(data: &[f32]) -> Vec<f32> {
    data.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect()
}

fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "{what}: result {index}");
        let largest = expected.iter().fold(1e-3f32, |max, x| max.max(x.abs()));
        for (at, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= tolerance * largest, "{what}: result {index} at {at}: {a}, not {b}");
        }
    }
}

/// Sums in another order.
const F32: f32 = 2e-5;
/// bf16 has 8 bits; a few roundings on the way.
const BF16: f32 = 3e-2;

/// `make` gives the op's parameters at a device.
fn compare_with_params(
    what: &str,
    inputs: &[Input],
    make: &dyn Fn(&Device) -> Vec<Rc<Param>>,
    f: &dyn Fn(&Tape, &[Value], &Device, &[Rc<Param>]) -> Result<Value>,
) {
    let gpu = gpu();
    let rounded: Vec<Input> = inputs.iter().map(|(data, shape)| (rounded(data), *shape)).collect();
    let on = |device: &Device, inputs: &[Input]| {
        let params = make(device);
        run(device, inputs, &params, &|tape, values, device| f(tape, values, device, &params))
    };
    let exact = gpu.with_dtype(DType::F32);
    let found = on(&exact, inputs);
    assert_close(&found, &on(&Device::cpu(), inputs), F32, &format!("{what}, f32"));
    assert_eq!(found, on(&exact, inputs), "{what}: twice, the same bytes");
    let narrow = gpu.with_dtype(DType::BF16);
    assert_close(&on(&narrow, &rounded), &on(&Device::cpu(), &rounded), BF16, &format!("{what}, bf16"));
}

fn compare(what: &str, inputs: &[Input], f: &dyn Fn(&Tape, &[Value]) -> Result<Value>) {
    compare_with_params(what, inputs, &|_| Vec::new(), &|tape, values, _, _| f(tape, values));
}

fn input(rows: usize, columns: usize, seed: u32) -> Input {
    (numbers(rows * columns, seed), (rows, columns))
}

#[test]
#[ignore = "needs a GPU"]
fn norms_match_the_cpu() {
    for (rows, width, parts) in [(5, 21, 1), (9, 64, 3), (3, 1032, 1)] {
        let weight: Vec<f32> = numbers(width, 3).iter().map(|w| 1.0 + w).collect();
        let norm = Rc::new(RmsNorm { weight: weight.clone().into(), epsilon: 1e-3 });
        compare("rms_norm", &[input(rows, width * parts, 1)], &|tape, x| rms_norm(tape, &x[0], &norm));
        for bias in [None, Some(numbers(width, 4))] {
            let norm = Rc::new(LayerNorm { weight: weight.clone().into(), bias: bias.map(Into::into), epsilon: 1e-3 });
            compare("layer_norm", &[input(rows, width, 1)], &|tape, x| layer_norm(tape, &x[0], &norm));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn activations_match_the_cpu() {
    use Activation::{Gelu, GeluTanh, Relu, Silu, Tanh};
    for f in [Silu, Gelu, GeluTanh, Relu, Tanh] {
        let inputs = [input(7, 43, 1), input(7, 43, 2)];
        compare("activate", &inputs[..1], &|tape, x| activate(tape, &x[0], f));
        compare("gated", &inputs, &|tape, x| gated(tape, &x[0], &x[1], f));
        // A second gradient arrives where there is one.
        compare("twice", &inputs, &|tape, x| {
            let once = gated(tape, &x[0], &x[1], f)?;
            add(tape, &gated(tape, &x[1], &x[0], f)?, &once)
        });
    }
}

#[test]
#[ignore = "needs a GPU"]
fn dropout_draws_the_mask_of_the_cpu() {
    for (rows, width) in [(5, 24), (3, 37)] {
        let site = Dropout { p: 0.3, site: 5 };
        compare("dropout", &[input(rows, width, 1)], &|tape, x| {
            let copy = gather(tape, &x[0], &Rc::new((0..rows as u32).collect::<Vec<_>>().into()))?;
            dropout(tape, copy, &site)
        });
    }
}

#[test]
#[ignore = "needs a GPU"]
fn rope_matches_the_cpu() {
    for (frequencies, head_size) in [(&[1.0, 0.3, 0.05][..], 6), (&[1.0, 0.3], 6), (&[1.0; 16], 32)] {
        let table = Rc::new(RopeTable::new(frequencies, head_size, 1.2, 11));
        let positions = Rc::new(vec![0, 1, 2, 0, 10].into());
        compare("rope", &[input(5, 3 * head_size, 1)], &|tape, x| {
            // rope consumes its input.
            let copy = gather(tape, &x[0], &Rc::new((0..5).collect::<Vec<_>>().into()))?;
            rope(tape, copy, &table, &positions)
        });
    }
}

#[test]
#[ignore = "needs a GPU"]
fn rows_and_columns_match_the_cpu() {
    let indices = Rc::new(vec![4, 0, 2].into());
    compare("gather", &[input(5, 19, 1)], &|tape, x| gather(tape, &x[0], &indices));
    compare("columns", &[input(5, 19, 1)], &|tape, x| columns(tape, &x[0], 3..14));
    compare("add", &[input(5, 19, 1), input(5, 19, 2)], &|tape, x| add(tape, &x[0], &x[1]));
    compare("add_scaled", &[input(5, 19, 1), input(5, 19, 2)], &|tape, x| add_scaled(tape, &x[0], &x[1], 0.3));
    compare("both", &[input(5, 19, 1)], &|tape, x| {
        let copy = add(tape, &x[0], &x[0])?;
        let (left, right) = (columns(tape, &copy, 0..7)?, columns(tape, &copy, 5..12)?);
        let rows = gather(tape, &add(tape, &left, &right)?, &indices)?;
        add(tape, &rows, &gather(tape, &left, &indices)?)
    });
    compare("to_host", &[input(5, 19, 1)], &|tape, x| to_host(tape, add(tape, &x[0], &x[0])?));
}

/// A matrix where `device` computes.
fn matrix(device: &Device, rows: usize, columns: usize, is_4bit: bool) -> FrozenMatrix {
    let weights = rounded(&numbers(rows * columns, 1));
    let storage = if is_4bit {
        Storage::Nf4(Nf4::quantize(weights.len(), |first, out| {
            out.copy_from_slice(&weights[first..first + out.len()]);
        }))
    } else {
        Storage::F32(Buffer::Owned(weights))
    };
    device.hold(FrozenMatrix::new(storage, rows, columns)).unwrap()
}

fn param(device: &Device, rows: usize, columns: usize, seed: u32) -> Rc<Param> {
    let param = Param::new("p", device.zeros((rows, columns)).unwrap()).unwrap();
    let values = rounded(&numbers(rows * columns, seed));
    modify(param.value(), |to| to.copy_from_slice(&values)).unwrap();
    param
}

#[test]
#[ignore = "needs a GPU"]
fn lora_linear_matches_the_cpu() {
    // In bf16, widths of eights and ranks to 64 have kernels of their own; the others are cuBLAS's.
    let wide = [(11, 40, 24, 2), (150, 328, 296, 16), (37, 72, 88, 5), (20, 64, 136, 40), (20, 64, 72, 72)];
    for (rows, inputs, outputs, rank) in [(11, 19, 13, 2), (5, 130, 66, 6)].into_iter().chain(wide) {
        let given = [input(rows, inputs, 2), input(rows, outputs, 3)];
        for (is_4bit, has_bias, dropout) in [(false, true, 0.0), (true, false, 0.2)] {
            let make = |device: &Device| vec![param(device, rank, inputs, 4), param(device, outputs, rank, 5)];
            let layer = |device: &Device, params: &[Rc<Param>]| {
                Rc::new(LoraLinear {
                    weight: matrix(device, outputs, inputs, is_4bit).into(),
                    bias: has_bias.then(|| numbers(outputs, 7).into()),
                    adapter: (!params.is_empty()).then(|| Adapter {
                        a: Rc::clone(&params[0]),
                        b: Rc::clone(&params[1]),
                        scaling: 1.5,
                        dropout,
                        site: 3,
                    }),
                    slot: None,
                    merged: OnceCell::new(),
                })
            };
            compare_with_params("lora_linear", &given, &make, &|tape, x, device, params| {
                let layer = layer(device, params);
                // Twice: gradients of A, B and x add up.
                let once = lora_linear(tape, &x[0], &layer, Some(&x[1]))?;
                add(tape, &once, &lora_linear(tape, &x[0], &layer, None)?)
            });
            compare_with_params("frozen", &given, &|_| Vec::new(), &|tape, x, device, _| {
                lora_linear(tape, &x[0], &layer(device, &[]), Some(&x[1]))
            });
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn attention_matches_the_cpu() {
    let plain = AttentionKind {
        heads: 4,
        key_value_heads: 2,
        head_size: 16,
        is_causal: true,
        window: None,
        scale: 0.3,
        soft_cap: None,
        dropout: Dropout { p: 0.0, site: 0 },
    };
    let kinds = [
        plain,
        AttentionKind { is_causal: false, head_size: 20, ..plain },
        AttentionKind { head_size: 64, soft_cap: Some(0.7), ..plain },
        AttentionKind { heads: 2, key_value_heads: 1, head_size: 128, window: Some(9), ..plain },
        // On Hopper, tiles of 64 by 112: four fragments a warp, for some of the warps.
        AttentionKind { heads: 2, key_value_heads: 1, head_size: 112, ..plain },
        AttentionKind { heads: 2, key_value_heads: 1, head_size: 192, ..plain },
        AttentionKind { is_causal: false, window: Some(9), ..plain },
        AttentionKind { dropout: Dropout { p: 0.3, site: 2 }, ..plain },
    ];
    for kind in kinds {
        // Shorter than a tile, a tile and more, one token.
        let offsets = vec![0, 13, 13 + 70, 13 + 70 + 1];
        let last: Rc<[u32]> = vec![12, 82, 83].into();
        let tokens = 84;
        let all = [
            (tokens, Sequences::new(offsets.clone(), None)),
            (last.len(), Sequences::new(offsets.clone(), Some(last))),
            (21, Sequences::with_past(offsets.clone(), vec![0, 3, 20, 21])),
        ];
        for (asked, sequences) in all {
            let sequences = Rc::new(sequences);
            let (q, k) = (kind.heads * kind.head_size, kind.key_value_heads * kind.head_size);
            let inputs = [input(asked, q, 1), input(tokens, k, 2), input(tokens, k, 3)];
            compare(&format!("{kind:?}"), &inputs, &|tape, x| attention(tape, [&x[0], &x[1], &x[2]], kind, &sequences));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn relative_attention_matches_the_cpu() {
    let kind = AttentionKind {
        heads: 3,
        key_value_heads: 3,
        head_size: 20,
        is_causal: false,
        window: None,
        scale: 0.3,
        soft_cap: None,
        dropout: Dropout { p: 0.0, site: 0 },
    };
    let distances = Arc::new(Distances::new(71, 11, |distance| (distance.clamp(-9, 8) + 11) as usize / 2));
    let bias = Arc::new(Constant::from(numbers(11 * 3, 6)));
    let last: Rc<[u32]> = vec![0, 40, 83].into();
    for (queries, p) in [(None, 0.0), (Some(Rc::clone(&last)), 0.0), (None, 0.3)] {
        let kind = AttentionKind { dropout: Dropout { p, site: 2 }, ..kind };
        let asked = queries.as_ref().map_or(84, |queries| queries.len());
        let sequences = Rc::new(Sequences::new(vec![0, 13, 13 + 70, 13 + 70 + 1], queries));
        let inputs = [input(asked, 60, 1), input(84, 60, 2), input(84, 60, 3), input(11, 60, 4), input(11, 60, 5)];
        compare("scores by distance", &inputs, &|tape, x| {
            let (keys, queries) = (Some(&x[3]), Some(&x[4]));
            let by_distance = ByDistance { distances: &distances, keys, queries, bias: Some(&bias) };
            relative_attention(tape, [&x[0], &x[1], &x[2]], kind, &by_distance, &sequences)
        });
        compare("biases by distance", &inputs[..3], &|tape, x| {
            let by_distance = ByDistance { distances: &distances, keys: None, queries: None, bias: Some(&bias) };
            relative_attention(tape, [&x[0], &x[1], &x[2]], kind, &by_distance, &sequences)
        });
    }
}

#[test]
#[ignore = "needs a GPU"]
fn nf4_widens_to_the_same_bits() {
    let gpu = gpu();
    let exact = gpu.with_dtype(DType::F32);
    // The product with the identity is the matrix itself.
    for (rows, columns) in [(7, 37), (64, 300)] {
        let identity: Vec<f32> =
            (0..columns * columns).map(|at| f32::from(u8::from(at % (columns + 1) == 0))).collect();
        let product = |device: &Device| {
            let weight = matrix(device, rows, columns, true).into();
            let layer = LoraLinear { weight, bias: None, adapter: None, slot: None, merged: OnceCell::new() };
            let x = Value::constant(device.put(tensor(identity.clone(), (columns, columns)).unwrap()).unwrap());
            let y = lora_linear(&Tape::off(), &x, &Rc::new(layer), None).unwrap();
            elements(y.tensor()).unwrap().to_vec()
        };
        assert_eq!(product(&exact), product(&Device::cpu()));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn adamw_matches_the_cpu() {
    let gpu = gpu();
    for storage in [MomentStorage::Float32, MomentStorage::EightBit] {
        let maps = Maps::new();
        let devices = [Device::cpu(), gpu.clone()];
        let [cpu, device] = devices.map(|device| {
            let param = param(&device, 51, 131, 1);
            let zeros = Moments::zeros(51 * 131, storage, &maps);
            let mut moments = ParamMoments::new(&param, zeros, &maps).unwrap();
            for number in 1..4 {
                let gradient = numbers(51 * 131, 10 + number as u32);
                modify(param.gradient(), |to| to.copy_from_slice(&gradient)).unwrap();
                let step = Step {
                    learning_rate: 1e-2,
                    gradient_scale: 0.7,
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: 1e-8,
                    correction1: 1.0 - 0.9f32.powi(number),
                    correction2: (1.0 - 0.999f32.powi(number)).sqrt(),
                    decay: 0.99,
                };
                adamw::step(&maps, [(&mut moments, step, &*param)]).unwrap();
            }
            let norm = sum_of_squares([&*param]).unwrap();
            (elements(param.value()).unwrap().to_vec(), moments.read().unwrap().into_owned(), norm)
        });
        assert!((cpu.2 - device.2).abs() < 1e-9 * cpu.2, "{} {}", cpu.2, device.2);
        let differing = |a: &[u8], b: &[u8]| a.iter().zip(b).filter(|(a, b)| a != b).count();
        match (&cpu.1, &device.1) {
            (Moments::Float32 { first, second }, Moments::Float32 { first: on_device, second: too }) => {
                assert_close(&[on_device.clone(), too.clone()], &[first.clone(), second.clone()], 1e-6, "moments");
            }
            (Moments::Blockwise(cpu), Moments::Blockwise(device)) => {
                // A moment at the edge between two codes may fall to either side.
                assert!(differing(&cpu.first, &device.first) <= 4 && differing(&cpu.second, &device.second) <= 4);
                assert_close(
                    &[device.first_scales.clone(), device.second_scales.clone()],
                    &[cpu.first_scales.clone(), cpu.second_scales.clone()],
                    1e-6,
                    "scales",
                );
            }
            other => panic!("{other:?}"),
        }
        let far = cpu.0.iter().zip(&device.0).filter(|(a, b)| (*a - *b).abs() > 1e-6).count();
        assert!(far <= 4, "{far} values differ");
        // What a checkpoint holds comes back.
        let again = param(&gpu, 51, 131, 1);
        let held = ParamMoments::new(&again, device.1.clone(), &maps).unwrap();
        assert_eq!(*held.read().unwrap(), device.1);
    }
}

/// A launch for all parameters does to each what one for it alone does, and their squares add up.
#[test]
#[ignore = "needs a GPU"]
fn parameters_step_together_as_each_alone() {
    let gpu = gpu();
    let maps = Maps::new();
    let shapes = [(1, 3), (51, 131), (7, 600), (64, 128), (1, 256), (130, 300)];
    for storage in [MomentStorage::Float32, MomentStorage::EightBit] {
        let stepped = |is_together: bool| {
            let params: Vec<Rc<Param>> =
                shapes.iter().zip(1..).map(|(&(rows, columns), seed)| param(&gpu, rows, columns, seed)).collect();
            let held = |param: &Rc<Param>| {
                let zeros = Moments::zeros(param.value().elem_count(), storage, &maps);
                ParamMoments::new(param, zeros, &maps).unwrap()
            };
            let mut moments: Vec<ParamMoments> = params.iter().map(held).collect();
            for number in 1..3 {
                for (param, seed) in params.iter().zip(20..) {
                    let gradient = numbers(param.value().elem_count(), seed + 100 * number as u32);
                    modify(param.gradient(), |to| to.copy_from_slice(&gradient)).unwrap();
                }
                let step = |index: usize| Step {
                    learning_rate: 1e-2,
                    gradient_scale: 0.7,
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: 1e-8,
                    correction1: 1.0 - 0.9f32.powi(number),
                    correction2: (1.0 - 0.999f32.powi(number)).sqrt(),
                    decay: 0.99 - 0.01 * index as f32,
                };
                let updates = moments.iter_mut().zip(&params).enumerate();
                let mut updates: Vec<_> = updates.map(|(at, (held, param))| (held, step(at), &**param)).collect();
                if is_together {
                    adamw::step(&maps, updates).unwrap();
                } else {
                    updates.drain(..).for_each(|update| adamw::step(&maps, [update]).unwrap());
                }
            }
            let values: Vec<Vec<f32>> = params.iter().map(|param| elements(param.value()).unwrap().to_vec()).collect();
            let moments: Vec<Moments> = moments.iter().map(|held| held.read().unwrap().into_owned()).collect();
            let sum = sum_of_squares(params.iter().map(|param| &**param)).unwrap();
            let sums: f64 = params.iter().map(|param| sum_of_squares([&**param]).unwrap()).sum();
            assert!((sum - sums).abs() < 1e-12 * sum, "{sum}, not {sums}");
            (values, moments)
        };
        assert_eq!(stepped(true), stepped(false), "{storage:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn too_large_a_tensor_is_an_error_and_leaves_the_device_usable() {
    let gpu = gpu();
    let error = gpu.zeros((1 << 20, 1 << 20)).unwrap_err().to_string();
    assert!(error.contains("memory"), "{error}");
    let x: Tensor = gpu.zeros((2, 3)).unwrap();
    assert_eq!(&*elements(&x).unwrap(), &[0.0; 6]);
}

/// Tensors of many pieces of page-locked memory, and more than there are in all: each is written again.
#[test]
#[ignore = "needs a GPU"]
fn large_tensors_arrive_whole_one_after_another() {
    let gpu = gpu();
    for dtype in [DType::F32, DType::BF16] {
        let device = gpu.with_dtype(dtype);
        let sizes = [(1 << 14) + 3, (1 << 20) + 7, 5_000_001, 1 << 20, 6_500_009, 77, 5_000_001];
        let given: Vec<Vec<f32>> = sizes.iter().zip(1..).map(|(&size, seed)| numbers(size, seed)).collect();
        let put = |data: &Vec<f32>| device.put(tensor(data.clone(), data.len()).unwrap()).unwrap();
        let there: Vec<Tensor> = given.iter().map(put).collect();
        for (given, there) in given.iter().zip(&there) {
            let found = elements(there).unwrap();
            let same = if dtype == DType::F32 { **given == *found } else { rounded(given) == *found };
            assert!(same, "{} numbers as {dtype:?}", given.len());
        }
    }
}
