//! Where weights come from: safetensors files, mapped, or a seed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::digest_cache;
use super::former_names;
pub use super::tensor_in_file::{BaseStorage, Precision};
use super::tensor_in_file::{TensorInFile, convert};
use crate::file_identity::FileIdentity;
use crate::gguf::{self, Blocks, GgufFile, q8_0};
use crate::kernels::cpu::dynamic_map::{DynamicMap, MAP_SIZE};
use crate::kernels::cpu::memory::{map_file, release_pages};
use crate::kernels::cpu::nf4::{self, Nf4};
use crate::kernels::matrix::{FrozenMatrix, Storage};
use crate::rng::{Purpose, Stream};

/// Suffix that bitsandbytes adds to the name of a 4-bit tensor to name the description of its form.
const QUANT_STATE: &str = ".quant_state.bitsandbytes__nf4";

/// A source of weights.
pub enum Weights {
    /// Tensors of one or several safetensors files.
    Checkpoint(Checkpoint),
    /// Normal numbers from a seed.
    Random {
        /// `model.init_seed`
        seed: u32,
        /// The configuration's `initializer_range`.
        std: f32,
        /// Matrices made so far: each is a stream of its own, in the order in which they are asked
        /// for, which is the order of the model's state dict.
        made: Cell<u32>,
    },
}

/// Mapped safetensors files.
pub struct Checkpoint {
    tensors: BTreeMap<String, TensorInFile>,
    /// Identity of each file before it was mapped.
    files: Vec<(PathBuf, Option<FileIdentity>)>,
    /// True if bitsandbytes quantized these weights.
    is_quantized: bool,
}

impl Weights {
    /// Normal numbers of deviation `std`.
    #[must_use]
    pub fn random(seed: u32, std: f32) -> Self {
        Self::Random { seed, std, made: Cell::new(0) }
    }

    /// A frozen `(rows, columns)` matrix.
    ///
    /// # Errors
    /// If there is no such tensor, or of another shape or dtype.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize, storage: BaseStorage) -> Result<FrozenMatrix> {
        let storage = match self {
            Self::Checkpoint(checkpoint) => match checkpoint.quantized(name, rows, columns)? {
                Some(weights) => Storage::Nf4(weights),
                None => {
                    // What a quantized checkpoint holds in full was left so on purpose.
                    let is_4bit = storage.is_4bit && !checkpoint.is_quantized;
                    let tensor = checkpoint.find(name, &[rows, columns])?;
                    tensor.check_finite(name, storage.precision)?;
                    tensor.store(BaseStorage { is_4bit, ..storage })
                }
            },
            Self::Random { seed, std, made } => {
                let stream = Stream::new(*seed, made.get(), 0, Purpose::Base);
                made.set(made.get() + 1);
                let read = |first: usize, out: &mut [f32]| stream.normal(first as u64, *std, out);
                convert(rows * columns, storage, read)
            }
        };
        Ok(FrozenMatrix::new(storage, rows, columns))
    }

    /// Makes the next random matrix the first one of its seed again: a model is built.
    pub(super) fn restart(&self) {
        if let Self::Random { made, .. } = self {
            made.set(0);
        }
    }

    /// Passes over a matrix that is at hand: the next random one stays what it is.
    pub(super) fn pass(&self) {
        if let Self::Random { made, .. } = self {
            made.set(made.get() + 1);
        }
    }

    /// A vector in f32; ones if the weights are random.
    ///
    /// # Errors
    /// If there is no such tensor, or of another shape or dtype.
    pub fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.floats(name, &[len]),
            Self::Random { .. } => Ok(vec![1.0; len]),
        }
    }

    /// A bias in f32, or `None` if the model has none; zeros if the weights are random.
    pub fn bias(&self, name: &str, len: usize, is_present: bool) -> Result<Option<Vec<f32>>> {
        Ok(match self {
            _ if !is_present => None,
            Self::Checkpoint(checkpoint) => Some(checkpoint.floats(name, &[len])?),
            Self::Random { .. } => Some(vec![0.0; len]),
        })
    }

    /// Returns true if a tensor of this name is in the files. Random weights have no names.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        matches!(self, Self::Checkpoint(checkpoint) if checkpoint.tensors.contains_key(name))
    }

    /// How a tensor of the files is stored, so that it can stay where it is; f32 if there is none of this name.
    #[must_use]
    pub fn precision(&self, name: &str) -> Precision {
        let Self::Checkpoint(checkpoint) = self else { return Precision::Float32 };
        match checkpoint.tensors.get(name).map(|tensor| tensor.dtype) {
            Some(Dtype::BF16) => Precision::Bfloat16,
            Some(Dtype::F16) => Precision::Float16,
            _ => Precision::Float32,
        }
    }

    /// The shape of a tensor of the files, if there is one of this name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.shape(name),
            Self::Random { .. } => None,
        }
    }
}

impl Checkpoint {
    /// Maps the files and reads their headers.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let (mut tensors, mut files) = (BTreeMap::new(), Vec::new());
        for path in paths {
            files.push((path.clone(), digest_cache::identity(path)));
            let file = map_file(path).with_context(|| format!("{}: cannot read", path.display()))?;
            if gguf::is_gguf(path) {
                tensors.extend(tensors_of_gguf(path, &file)?);
                continue;
            }
            let view = SafeTensors::deserialize(&file)
                .with_context(|| format!("{}: not a valid safetensors file; it may be cut short", path.display()))?;
            let start = file.as_ptr() as usize;
            for (name, tensor) in view.iter() {
                let offset = tensor.data().as_ptr() as usize - start;
                let mut entry = TensorInFile {
                    file: Arc::clone(&file),
                    path: path.clone(),
                    dtype: tensor.dtype(),
                    shape: tensor.shape().to_vec(),
                    bytes: offset..offset + tensor.data().len(),
                    blocks: None,
                };
                let mut name = name;
                if let Some(matrix) = name.strip_suffix(q8_0::SUFFIX).filter(|_| entry.dtype == Dtype::U8) {
                    entry.shape = q8_0::shape(&entry.shape)
                        .with_context(|| format!("{}: `{name}` is not a matrix in 8 bits", path.display()))?;
                    entry.blocks = Some(Blocks::q8_0(entry.shape[1]));
                    name = matrix;
                }
                tensors.insert(name.to_owned(), entry);
            }
        }
        former_names::replace(&mut tensors);
        let is_quantized = tensors.keys().any(|name| name.ends_with(QUANT_STATE));
        Ok(Self { tensors, files, is_quantized })
    }

    /// All tensors, in the order of their names.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInFile)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The files, and what each was before it was mapped.
    pub(super) fn files(&self) -> impl Iterator<Item = &(PathBuf, Option<FileIdentity>)> {
        self.files.iter()
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, if there is one of this name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// A tensor in f32, whatever its dtype in the file.
    ///
    /// # Errors
    /// If there is no such tensor, or of another shape or dtype, or it holds numbers that are not finite.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.find(name, shape)?;
        tensor.check_finite(name, Precision::Float32)?;
        Ok(tensor.to_f32())
    }

    /// The matrix as bitsandbytes quantized it, or `None` if it is held in full.
    fn quantized(&self, name: &str, rows: usize, columns: usize) -> Result<Option<Nf4>> {
        #[derive(Deserialize)]
        struct QuantState {
            quant_type: String,
            blocksize: usize,
            shape: Vec<usize>,
            nested_blocksize: Option<usize>,
            nested_offset: Option<f32>,
        }
        let Some(state) = self.tensors.get(&format!("{name}{QUANT_STATE}")) else { return Ok(None) };
        let read = || -> Result<Nf4> {
            let bytes = |part: &str, len: usize| -> Result<Vec<u8>> {
                let tensor = self.get(&format!("{name}{part}"))?;
                let found = tensor.bytes();
                ensure!(
                    tensor.dtype == Dtype::U8 && found.len() == len,
                    "`{name}{part}` is {:?} {:?}, expected {len} bytes",
                    tensor.dtype,
                    tensor.shape
                );
                Ok(found.to_vec())
            };
            let state: QuantState = serde_json::from_slice(state.bytes()).context("its quant_state is not valid")?;
            ensure!(
                state.quant_type == "nf4" && state.blocksize == nf4::BLOCK && state.shape == [rows, columns],
                "it is {} of shape {:?} in blocks of {}, expected nf4 of shape {:?} in blocks of {}",
                state.quant_type,
                state.shape,
                state.blocksize,
                [rows, columns],
                nf4::BLOCK
            );
            let (Some(nf4::NESTED_BLOCK), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
                bail!("its scales are not quantized in blocks of {} (bnb_4bit_use_double_quant)", nf4::NESTED_BLOCK);
            };
            ensure!(offset.is_finite(), "its nested_offset is {offset}");
            let levels = self.floats(&format!("{name}.quant_map"), &[nf4::LEVELS.len()])?;
            ensure!(
                levels.iter().zip(nf4::LEVELS).all(|(found, level)| (found - level).abs() < 1e-6),
                "its quant_map is not that of NF4"
            );
            let len = rows * columns;
            let blocks = len.div_ceil(nf4::BLOCK);
            let map = self.floats(&format!("{name}.nested_quant_map"), &[MAP_SIZE])?;
            let weights = Nf4 {
                codes: bytes("", len.div_ceil(2))?,
                absmax: bytes(".absmax", blocks)?,
                nested_map: Box::new(DynamicMap::from_values(&map).context("its nested_quant_map does not ascend")?),
                nested_absmax: self.floats(&format!("{name}.nested_absmax"), &[blocks.div_ceil(nf4::NESTED_BLOCK)])?,
                offset,
                len,
            };
            let codes = self.get(name)?;
            release_pages(&codes.file, codes.bytes.clone());
            Ok(weights)
        };
        read().map(Some).with_context(|| format!("{}: 4-bit tensor `{name}`", state.path.display()))
    }

    fn get(&self, name: &str) -> Result<&TensorInFile> {
        let Some(tensor) = self.tensors.get(name) else {
            let first =
                self.tensors.values().next().map_or_else(|| "the weights".into(), |t| t.path.display().to_string());
            bail!("{first}: no tensor `{name}` among {} in its file or shards", self.tensors.len());
        };
        Ok(tensor)
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<&TensorInFile> {
        let tensor = self.get(name)?;
        let path = tensor.path.display();
        ensure!(
            tensor.shape == shape,
            "{path}: tensor `{name}` has shape {:?}, expected {shape:?} from config.json",
            tensor.shape
        );
        ensure!(
            tensor.blocks.is_some() || tensor.is_plain(),
            "{path}: tensor `{name}` holds {:?}, expected F32, BF16 or F16",
            tensor.dtype
        );
        Ok(tensor)
    }
}

/// The tensors of a GGUF file by transformers' names.
fn tensors_of_gguf(path: &Path, file: &Arc<Mmap>) -> Result<Vec<(String, TensorInFile)>> {
    let tensors = GgufFile::open(path)?.tensors()?.into_iter().map(|tensor| {
        ensure!(
            tensor.bytes.end <= file.len(),
            "{}: tensor `{}` ends beyond the file; it may be cut short",
            path.display(),
            tensor.name
        );
        let entry = TensorInFile {
            file: Arc::clone(file),
            path: path.to_owned(),
            dtype: Dtype::U8,
            shape: tensor.shape,
            bytes: tensor.bytes,
            blocks: Some(tensor.blocks),
        };
        Ok((tensor.name, entry))
    });
    tensors.collect()
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn checkpoint(path: &std::path::Path, dtype: Dtype, values: &[f32]) -> Checkpoint {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        };
        let view = safetensors::tensor::TensorView::new(dtype, vec![values.len()], &bytes).unwrap();
        std::fs::write(path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
        Checkpoint::open(&[path.to_owned()]).unwrap()
    }

    #[test]
    fn a_weight_that_is_not_finite_as_stored_is_named() {
        use Precision::{Bfloat16, Float16, Float32};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.safetensors");
        for (dtype, value, holds) in [
            (Dtype::F32, f32::NAN, &[][..]),
            (Dtype::F32, f32::NEG_INFINITY, &[]),
            (Dtype::F32, 65519.0, &[Float32, Bfloat16, Float16]),
            (Dtype::F32, -65520.0, &[Float32, Bfloat16]),
            (Dtype::F32, f32::MAX, &[Float32]),
            (Dtype::BF16, f32::NAN, &[]),
            (Dtype::BF16, f32::INFINITY, &[]),
            (Dtype::BF16, 1e5, &[Float32, Bfloat16]),
            (Dtype::F16, f32::NAN, &[]),
            (Dtype::F16, 65504.0, &[Float32, Bfloat16, Float16]),
            (Dtype::F16, f32::INFINITY, &[]),
        ] {
            // Behind the first piece.
            let mut values = vec![0.5; 300_000];
            values[280_001] = value;
            let checkpoint = checkpoint(&path, dtype, &values);
            let tensor = checkpoint.find("w", &[values.len()]).unwrap();
            for precision in [Float32, Bfloat16, Float16] {
                let result = tensor.check_finite("w", precision);
                assert_eq!(result.is_ok(), holds.contains(&precision), "{dtype:?} {value} {precision:?}");
                if let Err(error) = result {
                    let text = error.to_string();
                    assert!(text.contains("m.safetensors: tensor `w`") && text.contains("number 280001"), "{text}");
                }
            }
        }
    }
}
