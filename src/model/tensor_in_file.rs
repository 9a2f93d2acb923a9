//! A tensor in a file: its numbers, in the form in which it is held in memory.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;

use crate::gguf::Blocks;
use crate::kernels::cpu::memory::{Buffer, release_pages};
use crate::kernels::cpu::nf4::Nf4;
use crate::kernels::matrix::Storage;

/// Storage of dense weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 4 bytes a weight.
    Float32,
    /// 2 bytes a weight, f32's range.
    Bfloat16,
    /// 2 bytes a weight, IEEE half.
    Float16,
}

/// Storage of a base in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseStorage {
    /// Storage of embeddings, and of linear layers that are not quantized.
    pub precision: Precision,
    /// True if linear layers are stored in 4 bits.
    pub is_4bit: bool,
}

/// The numbers of a tensor, where its file is mapped.
pub(super) struct TensorInFile {
    pub(super) file: Arc<Mmap>,
    pub(super) path: PathBuf,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
    /// Blocks that share a scale, as in a GGUF file; then `dtype` says nothing.
    pub(super) blocks: Option<Blocks>,
}

impl TensorInFile {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.file[self.bytes.clone()]
    }

    /// True if its numbers are stored one by one, in a type that is read.
    pub(super) fn is_plain(&self) -> bool {
        self.blocks.is_none() && matches!(self.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
    }

    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The numbers from `first` on, in f32.
    fn read(&self, first: usize, out: &mut [f32]) {
        let bytes = self.bytes();
        if let Some(blocks) = &self.blocks {
            return blocks.read(bytes, first, out);
        }
        match self.dtype {
            Dtype::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes[4 * first..].as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            Dtype::BF16 => {
                for (out, bytes) in out.iter_mut().zip(bytes[2 * first..].as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            _ => {
                for (out, bytes) in out.iter_mut().zip(bytes[2 * first..].as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*bytes).to_f32();
                }
            }
        }
    }

    /// Refuses NaN, infinity, and what becomes infinite when held in `precision`: one such weight makes every
    /// output NaN, or, in 4 bits, a wrong number without a word.
    pub(super) fn check_finite(&self, name: &str, precision: Precision) -> Result<()> {
        /// Numbers looked at by one thread at a time.
        const PIECE: usize = 1 << 18;
        let limit = precision.first_infinite();
        if self.blocks.is_some() {
            let piece = (0..self.len().div_ceil(PIECE)).into_par_iter().find_first(|piece| {
                let mut numbers = vec![0.0; PIECE.min(self.len() - piece * PIECE)];
                self.read(piece * PIECE, &mut numbers);
                numbers.iter().any(|number| number.abs().to_bits() >= limit)
            });
            release_pages(&self.file, self.bytes.clone());
            let Some(piece) = piece else { return Ok(()) };
            return self.refuse_infinite(name, piece * PIECE..((piece + 1) * PIECE).min(self.len()), limit);
        }
        let bytes = self.bytes();
        let largest = |bytes: &[u8]| -> u32 {
            match self.dtype {
                Dtype::F32 => {
                    let bits = bytes.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes) & 0x7fff_ffff);
                    bits.fold(0, u32::max)
                }
                Dtype::BF16 => {
                    let bits = bytes.as_chunks::<2>().0.iter().map(|&bytes| u16::from_le_bytes(bytes) & 0x7fff);
                    u32::from(bits.fold(0, u16::max)) << 16
                }
                _ => {
                    let bits = bytes.as_chunks::<2>().0.iter().map(|&bytes| u16::from_le_bytes(bytes) & 0x7fff);
                    f16::from_bits(bits.fold(0, u16::max)).to_f32().to_bits()
                }
            }
        };
        let size = self.dtype.bitsize() / 8;
        let piece = bytes.par_chunks(PIECE * size).position_first(|piece| {
            let is_bad = largest(piece) >= limit;
            // The pages of what is held in place are read again when they are needed.
            let first = piece.as_ptr() as usize - self.file.as_ptr() as usize;
            release_pages(&self.file, first..first + piece.len());
            is_bad
        });
        let Some(piece) = piece else { return Ok(()) };
        self.refuse_infinite(name, piece * PIECE..((piece + 1) * PIECE).min(self.len()), limit)
    }

    /// The error for the first number of a range that is not below `limit`.
    fn refuse_infinite(&self, name: &str, range: Range<usize>, limit: u32) -> Result<()> {
        let mut value = [0.0];
        let start = range.start;
        let mut is_bad = |index: usize| {
            self.read(index, &mut value);
            // Bits without the sign grow with the number, infinity after all finite ones, NaN after that.
            value[0].abs().to_bits() >= limit
        };
        let index = range.into_iter().find(|&index| is_bad(index)).unwrap_or(start);
        let cause = if value[0].is_finite() {
            "which model.torch_dtype cannot hold; use bfloat16 or float32"
        } else {
            "which is not a finite number: the file is damaged, or was saved from a training that diverged"
        };
        bail!("{}: tensor `{name}` holds {} as its number {index}, {cause}", self.path.display(), value[0])
    }

    pub(super) fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read(0, &mut out);
        out
    }

    /// In place where the file already holds what is asked for, else converted.
    pub(super) fn store(&self, storage: BaseStorage) -> Storage {
        match (self.dtype, storage) {
            (Dtype::F32, BaseStorage { precision: Precision::Float32, is_4bit: false }) => {
                Storage::F32(Buffer::mapped(&self.file, self.bytes.clone()))
            }
            (Dtype::BF16, BaseStorage { precision: Precision::Bfloat16, is_4bit: false }) => {
                Storage::Bf16(Buffer::mapped(&self.file, self.bytes.clone()))
            }
            (Dtype::F16, BaseStorage { precision: Precision::Float16, is_4bit: false }) => {
                Storage::F16(Buffer::mapped(&self.file, self.bytes.clone()))
            }
            _ => {
                let converted = convert(self.len(), storage, |first, out| self.read(first, out));
                release_pages(&self.file, self.bytes.clone());
                converted
            }
        }
    }
}

/// Stores `len` numbers, read in pieces, so that they never all exist in f32 unless asked for.
pub(super) fn convert(len: usize, storage: BaseStorage, read: impl Fn(usize, &mut [f32]) + Sync) -> Storage {
    match storage {
        BaseStorage { precision, is_4bit: true } => Storage::Nf4(Nf4::quantize(len, |first, out| {
            read(first, out);
            // As transformers does: weights take `torch_dtype` first, then are quantized.
            precision.round(out);
        })),
        BaseStorage { precision: Precision::Float32, .. } => Storage::F32(Buffer::Owned(collect(len, read, |x| x))),
        BaseStorage { precision: Precision::Bfloat16, .. } => {
            Storage::Bf16(Buffer::Owned(collect(len, read, bf16::from_f32)))
        }
        BaseStorage { precision: Precision::Float16, .. } => {
            Storage::F16(Buffer::Owned(collect(len, read, f16::from_f32)))
        }
    }
}

impl Precision {
    /// The name in `torch_dtype`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }

    /// The bits of the smallest positive f32 that rounds to infinity.
    fn first_infinite(self) -> u32 {
        match self {
            Self::Float32 => 0x7f80_0000,
            Self::Bfloat16 => 0x7f7f_8000,
            // 65520, halfway between the largest f16 and what would come next.
            Self::Float16 => 0x477f_f000,
        }
    }

    fn round(self, values: &mut [f32]) {
        match self {
            Self::Float32 => {}
            Self::Bfloat16 => values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Self::Float16 => values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
        }
    }
}

fn collect<T: bytemuck::Zeroable + Copy + Send>(
    len: usize,
    read: impl Fn(usize, &mut [f32]) + Sync,
    to: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    const PIECE: usize = 16_384;
    let mut out = vec![T::zeroed(); len];
    out.par_chunks_mut(PIECE).enumerate().for_each_init(
        || vec![0.0; PIECE],
        |piece, (index, out)| {
            let piece = &mut piece[..out.len()];
            read(index * PIECE, piece);
            for (out, value) in out.iter_mut().zip(piece) {
                *out = to(*value);
            }
        },
    );
    out
}
