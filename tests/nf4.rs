//! Against bitsandbytes 0.50.2; the numbers are made by `scripts/make_4bit_fixtures.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use llmcls::kernels::cpu::dynamic_map::DynamicMap;
use llmcls::kernels::cpu::nf4::{LEVELS, Nf4};
use llmcls::ops::tape::Param;
use llmcls::training::optimizer::{AdamW, MomentStorage, Moments};

struct Numbers(HashMap<String, Tensor>);

impl Numbers {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.0[name].flatten_all().unwrap().to_vec1().unwrap()
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn quantization_is_that_of_bitsandbytes() {
    let numbers = Numbers::open("nf4.safetensors");
    assert_eq!(LEVELS.as_slice(), numbers.floats("levels"));
    assert_eq!(DynamicMap::new(true).values().as_slice(), numbers.floats("nested_map"));
    assert_eq!(DynamicMap::new(false).values().as_slice(), numbers.floats("unsigned_map"));

    let weight = numbers.floats("weight");
    let ours = Nf4::quantize(weight.len(), |first, out| out.copy_from_slice(&weight[first..first + out.len()]));
    assert_eq!(ours.codes, numbers.bytes("codes"));
    // The mean of the scales is summed in another order: its last bits differ.
    assert!((ours.offset - numbers.floats("offset")[0]).abs() < 1e-6);
    assert!(largest_difference(&ours.nested_absmax, &numbers.floats("nested_absmax")) < 1e-6);
    // So a scale that lies between two values of the map may take the other one.
    let theirs = numbers.bytes("absmax");
    let differing = ours.absmax.iter().zip(&theirs).filter(|(a, b)| a != b).count();
    assert!(ours.absmax.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 1) && differing <= 3, "{differing}");
}

/// Its own codes and scales, dequantized by both: the products round alike, to the last bit.
#[test]
fn dequantization_is_that_of_bitsandbytes() {
    let numbers = Numbers::open("nf4.safetensors");
    let expected = numbers.floats("whole.dequantized");
    let weights = Nf4 {
        codes: numbers.bytes("whole.codes"),
        absmax: numbers.bytes("whole.absmax"),
        nested_map: Box::new(DynamicMap::new(true)),
        nested_absmax: numbers.floats("whole.nested_absmax"),
        offset: numbers.floats("whole.offset")[0],
        len: expected.len(),
    };
    let mut ours = vec![0.0; expected.len()];
    weights.dequantize(0, &mut ours);
    assert_eq!(ours, expected);
}

/// Three steps, one with an infinite gradient. Ours are in f32, the expected ones in f64: a moment
/// between two values of a map may take the other one.
#[test]
fn eight_bit_adamw_follows_the_rule_of_bitsandbytes() {
    let numbers = Numbers::open("adamw8bit.safetensors");
    let start = numbers.0["start"].clone();
    let count = start.elem_count();
    let param = Param::new("p", start).unwrap();
    let mut optimizer = AdamW::new(std::slice::from_ref(&param), 0.1, MomentStorage::EightBit).unwrap();
    for gradient in numbers.floats("gradients").chunks(count) {
        param.clear_gradient();
        param.add_to_gradient(gradient).unwrap();
        optimizer.step(0.01, 1.0).unwrap();
    }
    let after: Vec<f32> = param.value().to_vec1().unwrap();
    let expected = numbers.floats("after");
    let off = after.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
    assert!(off <= 4 && largest_difference(&after, &expected) < 1e-2, "{off} parameters differ");
    let moments = optimizer.moments().next().unwrap().unwrap().into_owned();
    let Moments::Blockwise(moments) = moments else { panic!("moments are not in 8 bits") };
    assert!(largest_difference(&moments.first_scales, &numbers.floats("first_scales")) < 1e-5);
    assert!(largest_difference(&moments.second_scales, &numbers.floats("second_scales")) < 1e-5);
    for (ours, theirs) in [(&moments.first, "first"), (&moments.second, "second")] {
        let theirs = numbers.bytes(theirs);
        let differing = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
        assert!(ours.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 1) && differing <= 4, "{differing} codes");
    }
    assert_eq!(optimizer.bytes(), AdamW::bytes_for(std::slice::from_ref(&param), MomentStorage::EightBit));
    assert!(optimizer.bytes() < 2 * count + 8 * (count / 256 + 1) + 1);
}
