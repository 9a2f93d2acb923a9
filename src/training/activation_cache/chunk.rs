//! A chunk's file: `rows` (N, D) and the CRC-32C of each text's rows, as safetensors.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::atomic_file;
use crate::kernels::cpu::memory::{Buffer, map_file};
use crate::model::frozen_rows::FrozenRows;

/// The end of a chunk's file name.
pub(super) const ENDING: &str = "safetensors";
const ROWS: &str = "rows";
const CHECKSUMS: &str = "checksums";

/// Numbers of a chunk: ours, or in a mapped file.
pub(super) type Numbers = Arc<Buffer<f32>>;

/// Rows of each text, and their width.
pub(super) struct Shape {
    pub(super) rows: Vec<usize>,
    pub(super) width: usize,
}

impl Shape {
    pub(super) fn numbers(&self) -> usize {
        self.rows.iter().sum::<usize>() * self.width
    }

    /// Each text's part.
    pub(super) fn split(&self, numbers: &Numbers) -> impl Iterator<Item = FrozenRows> {
        let mut start = 0;
        self.rows.iter().map(move |rows| {
            let range = start..start + rows * self.width;
            start = range.end;
            FrozenRows::new(Arc::clone(numbers), range)
        })
    }

    fn checksums(&self, numbers: &Numbers) -> Vec<u32> {
        let texts: Vec<FrozenRows> = self.split(numbers).collect();
        texts.par_iter().map(|rows| crc32c::crc32c(bytemuck::cast_slice(rows.numbers()))).collect()
    }
}

pub(super) fn owned(numbers: Vec<f32>) -> Numbers {
    Arc::new(Buffer::Owned(numbers))
}

/// Writes a chunk; it appears whole or not at all.
pub(super) fn write(path: &Path, shape: &Shape, numbers: &[f32]) -> Result<()> {
    let mut start = 0;
    let checksums: Vec<u32> = shape
        .rows
        .iter()
        .map(|rows| {
            let of_text = &numbers[start..start + rows * shape.width];
            start += of_text.len();
            crc32c::crc32c(bytemuck::cast_slice(of_text))
        })
        .collect();
    let rows = numbers.len() / shape.width;
    let views = [
        (ROWS, TensorView::new(Dtype::F32, vec![rows, shape.width], bytemuck::cast_slice(numbers))?),
        (CHECKSUMS, TensorView::new(Dtype::U32, vec![checksums.len()], bytemuck::cast_slice(&checksums))?),
    ];
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>)?;
    atomic_file::write_bytes(path, &bytes)
}

/// Maps a chunk, and checks that it is whole.
///
/// # Errors
/// If it is damaged, or of other texts.
pub(super) fn read(path: &Path, shape: &Shape) -> Result<Numbers> {
    let file = map_file(path).context("cannot read")?;
    let tensors = SafeTensors::deserialize(&file).context("damaged")?;
    let (rows, checksums) = (tensors.tensor(ROWS)?, tensors.tensor(CHECKSUMS)?);
    ensure!(
        rows.dtype() == Dtype::F32 && rows.shape() == [shape.numbers() / shape.width, shape.width],
        "damaged: it has rows of another shape"
    );
    let start = rows.data().as_ptr() as usize - file.as_ptr() as usize;
    let numbers = Arc::new(Buffer::mapped(&file, start..start + rows.data().len()));
    let found = shape.checksums(&numbers);
    ensure!(bytemuck::cast_slice::<u32, u8>(&found) == checksums.data(), "damaged: a checksum differs");
    numbers.release();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_reads_back_as_it_was_and_any_damage_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.safetensors");
        let shape = Shape { rows: vec![2, 1, 4], width: 3 };
        let numbers: Vec<f32> = (0..21).map(|index| index as f32 - 7.5).collect();
        write(&path, &shape, &numbers).unwrap();
        let read_back = read(&path, &shape).unwrap();
        assert_eq!(&read_back[..], &numbers[..]);
        let texts: Vec<Vec<f32>> = shape.split(&read_back).map(|rows| rows.numbers().to_vec()).collect();
        assert_eq!(texts.concat(), numbers);
        assert_eq!(texts.iter().map(Vec::len).collect::<Vec<_>>(), [6, 3, 12]);

        // Other texts, of the same number of tokens or not.
        for rows in [vec![1, 2, 4], vec![2, 1, 3]] {
            assert!(read(&path, &Shape { rows, width: 3 }).is_err());
        }
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(5).chain([whole.len() - 1]) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &damaged).unwrap();
            let same = read(&path, &shape).is_ok_and(|found| found[..] == numbers[..]);
            assert!(read(&path, &shape).is_err() || same, "byte {at}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        assert!(read(&path, &shape).is_err());
    }
}
