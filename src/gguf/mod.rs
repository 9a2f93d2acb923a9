//! GGUF files, as llama.cpp writes them, read as a base: candle reads their headers and widens their blocks; names,
//! the order of rotated rows, the configuration and the tokenizer are mapped back to those of transformers.

mod blocks;
mod config;
mod names;
mod tokenizer;

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};

pub use blocks::Blocks;
use names::Architecture;

/// A GGUF file whose header was read.
pub struct GgufFile {
    path: PathBuf,
    content: Content,
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
            let text = |key: &str| content.metadata.get(key).and_then(|value| value.to_string().ok());
            let name = text("general.architecture").context("it names no `general.architecture`")?;
            let architecture = Architecture::of(name)?;
            ensure!(
                !content.metadata.contains_key("split.count") || content.tensor_infos.contains_key("token_embd.weight"),
                "it is one of several parts; join them with llama-gguf-split --merge"
            );
            Ok(Self { path: path.to_owned(), architecture, content })
        };
        read().with_context(|| format!("{}: not a usable GGUF file", path.display()))
    }

    /// All tensors that the model computes with.
    ///
    /// # Errors
    /// If one is unknown, or stored in a way that is not read.
    pub fn tensors(&self) -> Result<Vec<GgufTensor>> {
        let mut names: Vec<&String> = self.content.tensor_infos.keys().collect();
        names.sort_unstable();
        let mut tensors = Vec::with_capacity(names.len());
        for stored in names {
            let tensor = self.tensor(stored);
            tensors.extend(tensor.with_context(|| format!("{}: tensor `{stored}`", self.path.display()))?);
        }
        Ok(tensors)
    }

    fn tensor(&self, stored: &str) -> Result<Option<GgufTensor>> {
        let Some((name, layout)) = self.architecture.name_of(stored, self)? else { return Ok(None) };
        let info = &self.content.tensor_infos[stored];
        let dtype = info.ggml_dtype;
        use GgmlDType::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        ensure!(
            [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K].contains(&dtype),
            "it is stored as {dtype:?}; read are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"
        );
        let shape = info.shape.dims().to_vec();
        let (len, columns) = (info.shape.elem_count(), shape.last().copied().unwrap_or(1));
        ensure!(columns.is_multiple_of(dtype.block_size()), "rows of {columns} are no whole blocks");
        let start = usize::try_from(self.content.tensor_data_offset.saturating_add(info.offset))?;
        let bytes = start..start.saturating_add(len / dtype.block_size() * dtype.type_size());
        Ok(Some(GgufTensor { name, blocks: Blocks { dtype, layout, columns }, shape, bytes }))
    }

    /// `config.json`, `tokenizer.json` and `tokenizer_config.json`, by their names, as transformers would have them.
    ///
    /// # Errors
    /// If the file asks for something that is not supported, or lacks a key.
    pub fn model_files(&self, has_tokenizer: bool) -> Result<Vec<(&'static str, String)>> {
        let make = || -> Result<Vec<(&'static str, String)>> {
            let mut files = vec![("config.json", config::of(self)?)];
            if !has_tokenizer {
                files.extend(tokenizer::of(self)?);
            }
            files.into_iter().map(|(name, json)| Ok((name, serde_json::to_string_pretty(&json)? + "\n"))).collect()
        };
        make().with_context(|| format!("{}", self.path.display()))
    }

    /// A key of the metadata.
    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A count, whatever type of integer it is stored as.
    fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.to_u64().or_else(|_| value.to_i64().map(|number| number.max(0) as u64));
        let number = match value {
            Value::I32(number) => Ok(*number as u64),
            _ => number,
        };
        Ok(Some(number.with_context(|| format!("`{key}` is no count"))? as usize))
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        let value = self.value(key);
        value.map(|value| value.to_f32().with_context(|| format!("`{key}` is no number"))).transpose()
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        let value = self.value(key).map(|value| value.to_string().map(String::as_str));
        value.transpose().with_context(|| format!("`{key}` is no text"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.value(key).map(|value| value.to_bool().with_context(|| format!("`{key}` is no flag"))).transpose()
    }

    fn texts(&self, key: &str) -> Result<Vec<String>> {
        let Some(value) = self.value(key) else { bail!("it has no `{key}`") };
        let list = value.to_vec().with_context(|| format!("`{key}` is no list"))?;
        list.iter().map(|text| Ok(text.to_string()?.clone())).collect::<Result<_>>().with_context(|| key.to_owned())
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
