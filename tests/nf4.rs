//! Against bitsandbytes 0.50.2 on the CPU; the numbers are made by `scripts/make_nf4_fixture.py`.

use llmcls::ops::dynamic_map::DynamicMap;
use llmcls::ops::nf4::{LEVELS, Nf4};
use safetensors::SafeTensors;

#[test]
fn quantization_is_that_of_bitsandbytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nf4.safetensors");
    let file = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let bytes = |name: &str| tensors.tensor(name).unwrap().data().to_vec();
    let floats = |name: &str| -> Vec<f32> {
        bytes(name).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    assert_eq!(LEVELS.as_slice(), floats("levels"));
    assert_eq!(DynamicMap::new(true).values().as_slice(), floats("nested_map"));
    assert_eq!(DynamicMap::new(false).values().as_slice(), floats("unsigned_map"));

    let weight = floats("weight");
    let ours = Nf4::quantize(weight.len(), |first, out| out.copy_from_slice(&weight[first..first + out.len()]));
    assert_eq!(ours.codes, bytes("codes"));
    // The mean of the scales is summed in another order: its last bits differ.
    assert!((ours.offset - floats("offset")[0]).abs() < 1e-6);
    for (ours, theirs) in ours.nested_absmax.iter().zip(floats("nested_absmax")) {
        assert!((ours - theirs).abs() < 1e-6);
    }
    // So a scale that lies between two values of the map may take the other one.
    let theirs = bytes("absmax");
    let differing = ours.absmax.iter().zip(&theirs).filter(|(a, b)| a != b).count();
    assert!(ours.absmax.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 1) && differing <= 3, "{differing}");
}
