//! Typed keys out of a GGUF file's header.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_core::quantized::gguf_file::{Content, Value};

/// A header, and where it is from.
pub(super) struct Header {
    pub(super) path: PathBuf,
    pub(super) content: Content,
}

impl Header {
    /// A key of the metadata.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A count, whatever type of integer it is stored as.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.to_u64().or_else(|_| value.to_i64().map(|number| number.max(0) as u64));
        let number = match value {
            Value::I32(number) => Ok(*number as u64),
            _ => number,
        };
        Ok(Some(number.with_context(|| format!("`{key}` is no count"))? as usize))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f32>> {
        let value = self.value(key);
        value.map(|value| value.to_f32().with_context(|| format!("`{key}` is no number"))).transpose()
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        let value = self.value(key).map(|value| value.to_string().map(String::as_str));
        value.transpose().with_context(|| format!("`{key}` is no text"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.value(key).map(|value| value.to_bool().with_context(|| format!("`{key}` is no flag"))).transpose()
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>> {
        let Some(value) = self.value(key) else { bail!("it has no `{key}`") };
        let list = value.to_vec().with_context(|| format!("`{key}` is no list"))?;
        list.iter().map(|text| Ok(text.to_string()?.clone())).collect::<Result<_>>().with_context(|| key.to_owned())
    }
}
