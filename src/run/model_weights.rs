//! A model's weights as transformers' `save_pretrained` writes them: `model.safetensors`, or shards and their index.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::json;

use crate::atomic_file;
use crate::interrupt;
use crate::model::merged::NamedTensor;
use crate::model::weights::Precision;

/// All tensors, where one file holds them.
pub const WEIGHTS: &str = "model.safetensors";
/// The shard of each tensor.
pub const INDEX: &str = "model.safetensors.index.json";
/// The largest shard, as transformers 4 has it: 5 GB.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes tensors into a directory, each made, converted and written on its own. A shard has at most `shard_bytes`
/// unless one tensor alone is larger.
///
/// # Errors
/// If a tensor cannot be made or written, `dtype` cannot hold it, or the user wants to stop.
pub fn write(directory: &Path, tensors: &[NamedTensor<'_>], dtype: Precision, shard_bytes: u64) -> Result<()> {
    let mut by_name: Vec<&NamedTensor<'_>> = tensors.iter().collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = by_name.windows(2).find(|pair| pair[0].name == pair[1].name) {
        anyhow::bail!("two tensors are called `{}`; this is a bug in llmcls, please report it", pair[0].name);
    }
    let shards = shards(&by_name, dtype, shard_bytes);
    if let [all] = &shards[..] {
        return write_file(&directory.join(WEIGHTS), all, dtype);
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_file(&directory.join(&name), shard, dtype)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.as_str(), name.clone())));
    }
    let total: u64 = by_name.iter().map(|tensor| bytes_of(tensor, dtype)).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    atomic_file::write_bytes(&directory.join(INDEX), serde_json::to_string_pretty(&index)?.as_bytes())
}

/// Consecutive tensors that fit into a shard together.
fn shards<'a, 'b>(
    tensors: &[&'a NamedTensor<'b>],
    dtype: Precision,
    shard_bytes: u64,
) -> Vec<Vec<&'a NamedTensor<'b>>> {
    let mut shards: Vec<Vec<&NamedTensor<'_>>> = vec![Vec::new()];
    let mut bytes = 0;
    for &tensor in tensors {
        let of_tensor = bytes_of(tensor, dtype);
        if bytes + of_tensor > shard_bytes && bytes > 0 {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += of_tensor;
        shards.last_mut().expect("there is a shard").push(tensor);
    }
    shards
}

fn bytes_of(tensor: &NamedTensor<'_>, dtype: Precision) -> u64 {
    (tensor.len() * size_of(dtype)) as u64
}

fn size_of(dtype: Precision) -> usize {
    match dtype {
        Precision::Float32 => 4,
        Precision::Bfloat16 | Precision::Float16 => 2,
    }
}

fn write_file(path: &Path, tensors: &[&NamedTensor<'_>], dtype: Precision) -> Result<()> {
    // safetensors takes numbers, not errors: the first one is kept for afterwards.
    let error = RefCell::new(None);
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), Converted { tensor, dtype, error: &error }));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let cannot_write = || format!("{}: cannot write", path.display());
    // safetensors makes a file that only its owner may read: it gets the permissions of a new file.
    let permissions = File::create(path).and_then(|file| file.metadata()).with_context(cannot_write)?.permissions();
    let written = safetensors::serialize_to_file(views, Some(metadata), path);
    if let Some(error) = error.into_inner() {
        return Err(error);
    }
    written.with_context(cannot_write)?;
    fs::set_permissions(path, permissions).with_context(cannot_write)
}

/// A tensor whose bytes are made while its file is written.
struct Converted<'a, 'b> {
    tensor: &'a NamedTensor<'b>,
    dtype: Precision,
    error: &'a RefCell<Option<anyhow::Error>>,
}

impl Converted<'_, '_> {
    fn bytes(&self) -> Result<Vec<u8>> {
        interrupt::check()?;
        let name = &self.tensor.name;
        let values = self.tensor.values().with_context(|| format!("tensor `{name}`"))?;
        ensure!(values.len() == self.tensor.len(), "tensor `{name}` has {} numbers", values.len());
        let bytes = match self.dtype {
            Precision::Float32 => pieces(&values, f32::to_le_bytes),
            Precision::Bfloat16 => pieces(&values, |value| bf16::from_f32(value).to_le_bytes()),
            Precision::Float16 => pieces(&values, |value| f16::from_f32(value).to_le_bytes()),
        };
        let dtype = self.dtype;
        let is_infinite = move |value: f32| match dtype {
            Precision::Float32 => !value.is_finite(),
            Precision::Bfloat16 => !bf16::from_f32(value).is_finite(),
            Precision::Float16 => !f16::from_f32(value).is_finite(),
        };
        if let Some(value) = values.par_iter().copied().find_first(|value| is_infinite(*value)) {
            anyhow::bail!("tensor `{name}` holds {value}, which this --dtype cannot hold; use bfloat16 or float32");
        }
        Ok(bytes)
    }
}

fn pieces<const N: usize>(values: &[f32], convert: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * N];
    bytes.as_chunks_mut::<N>().0.par_iter_mut().zip(values).for_each(|(bytes, value)| *bytes = convert(*value));
    bytes
}

impl View for Converted<'_, '_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            Precision::Float32 => Dtype::F32,
            Precision::Bfloat16 => Dtype::BF16,
            Precision::Float16 => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.error.borrow().is_some() {
            return Cow::Owned(Vec::new());
        }
        self.bytes()
            .unwrap_or_else(|error| {
                self.error.replace(Some(error));
                Vec::new()
            })
            .into()
    }

    fn data_len(&self) -> usize {
        self.tensor.len() * size_of(self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::Checkpoint;

    fn tensor(name: &str, shape: &[usize], first: f32) -> NamedTensor<'static> {
        let len: usize = shape.iter().product();
        NamedTensor::new(name.to_owned(), shape.to_vec(), move || {
            Ok((0..len).map(|index| first + 1.5 * index as f32).collect())
        })
    }

    #[test]
    fn shards_hold_every_tensor_once_and_none_is_larger_than_its_limit_unless_one_tensor_is() {
        let directory = tempfile::tempdir().unwrap();
        let tensors =
            [tensor("b", &[5], 0.0), tensor("a", &[2, 3], 7.0), tensor("c", &[40], -3.0), tensor("d", &[1], 2.0)];
        // a and b fit together, c is larger than a shard, d follows it.
        write(directory.path(), &tensors, Precision::Bfloat16, 24).unwrap();
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(directory.path().join(INDEX)).unwrap()).unwrap();
        let shard = |number: usize| format!("model-{number:05}-of-00003.safetensors");
        assert_eq!(
            index,
            json!({"metadata": {"total_size": 2 * 52},
                "weight_map": {"a": shard(1), "b": shard(1), "c": shard(2), "d": shard(3)}})
        );
        let paths: Vec<_> = (1..=3).map(|number| directory.path().join(shard(number))).collect();
        let checkpoint = Checkpoint::open(&paths).unwrap();
        for tensor in &tensors {
            assert_eq!(checkpoint.floats(&tensor.name, &tensor.shape).unwrap(), tensor.values().unwrap());
        }
        assert!(!directory.path().join(WEIGHTS).exists());
    }

    #[test]
    fn a_number_that_the_dtype_cannot_hold_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let tensors = [tensor("a", &[3], 65_519.0)];
        let error = write(directory.path(), &tensors, Precision::Float16, SHARD_BYTES).unwrap_err().to_string();
        assert!(error.contains("`a` holds 65520.5") && error.contains("bfloat16"), "{error}");
        write(directory.path(), &tensors, Precision::Float32, SHARD_BYTES).unwrap();
    }
}
