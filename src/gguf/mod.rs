//! GGUF files, as llama.cpp writes them, read as a base: candle reads their headers and widens their blocks; names,
//! the order of rotated rows, the configuration and the tokenizer are mapped back to those of transformers.

mod blocks;
mod config;
mod header;
mod names;
pub mod q8_0;
mod tokenizer;

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Content;

pub use blocks::Blocks;
use header::Header;
use names::Architecture;

/// A GGUF file whose header was read.
pub struct GgufFile {
    header: Header,
    architecture: Architecture,
}

/// A tensor, by its name in transformers.
pub struct GgufTensor {
    /// Such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Outer dimension first.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub blocks: Blocks,
    /// Where they are in the file.
    pub bytes: Range<usize>,
}

/// Whether a path names a GGUF file.
#[must_use]
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

impl GgufFile {
    /// Reads the header.
    ///
    /// # Errors
    /// If the file cannot be read, is no GGUF file, or of an architecture that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let content = Content::read(&mut BufReader::new(File::open(path)?))?;
            let header = Header { path: path.to_owned(), content };
            ensure!(
                header.count("split.count")?.unwrap_or(1) <= 1,
                "it is one of several parts; join them with llama-gguf-split --merge"
            );
            let name = header.text("general.architecture")?.context("it names no `general.architecture`")?;
            Ok(Self { architecture: Architecture::of(name)?, header })
        };
        read().with_context(|| format!("{}: not a usable GGUF file", path.display()))
    }

    /// All tensors that the model computes with.
    ///
    /// # Errors
    /// If one is unknown, or stored in a way that is not read.
    pub fn tensors(&self) -> Result<Vec<GgufTensor>> {
        let mut names: Vec<&String> = self.header.content.tensor_infos.keys().collect();
        names.sort_unstable();
        let mut tensors = Vec::with_capacity(names.len());
        for stored in names {
            let tensor = self.tensor(stored);
            tensors.extend(tensor.with_context(|| format!("{}: tensor `{stored}`", self.header.path.display()))?);
        }
        Ok(tensors)
    }

    fn tensor(&self, stored: &str) -> Result<Option<GgufTensor>> {
        let Some((name, layout)) = self.architecture.name_of(stored, &self.header)? else { return Ok(None) };
        let info = &self.header.content.tensor_infos[stored];
        let dtype = info.ggml_dtype;
        use GgmlDType::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        ensure!(
            [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K].contains(&dtype),
            "it is stored as {dtype:?}; read are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"
        );
        let shape = info.shape.dims().to_vec();
        let (len, columns) = (info.shape.elem_count(), shape.last().copied().unwrap_or(1));
        ensure!(columns.is_multiple_of(dtype.block_size()), "rows of {columns} are no whole blocks");
        let start = usize::try_from(self.header.content.tensor_data_offset.saturating_add(info.offset))?;
        let bytes = start..start.saturating_add(len / dtype.block_size() * dtype.type_size());
        Ok(Some(GgufTensor { name, blocks: Blocks { dtype, layout, columns }, shape, bytes }))
    }

    /// `config.json`, `tokenizer.json` and `tokenizer_config.json`, by their names, as transformers would have them.
    ///
    /// # Errors
    /// If the file asks for something that is not supported, or lacks a key.
    pub fn model_files(&self, has_tokenizer: bool) -> Result<Vec<(&'static str, String)>> {
        let make = || -> Result<Vec<(&'static str, String)>> {
            let mut files = vec![("config.json", config::of(&self.header, self.architecture)?)];
            if !has_tokenizer {
                files.extend(tokenizer::of(&self.header, self.architecture)?);
            }
            files.into_iter().map(|(name, json)| Ok((name, serde_json::to_string_pretty(&json)? + "\n"))).collect()
        };
        make().with_context(|| format!("{}", self.header.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_by_its_ending() {
        assert!(is_gguf(Path::new("a/b.Q4_0.gguf")) && is_gguf(Path::new("B.GGUF")));
        assert!(!is_gguf(Path::new("gguf")) && !is_gguf(Path::new("a.gguf.txt")));
    }

    #[test]
    fn what_is_no_gguf_file_is_refused_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.gguf");
        std::fs::write(&path, b"GGUF\x03\0\0\0\xff\xff").unwrap();
        let error = format!("{:#}", GgufFile::open(&path).err().unwrap());
        assert!(error.contains("x.gguf: not a usable GGUF file"), "{error}");
    }
}
