//! Reads typed keys out of a `config.json`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::ops::activation::{self, Activation};

/// The keys of a `config.json`. A key that is absent takes the default that transformers gives it.
pub(super) struct ConfigFile {
    keys: Map<String, Value>,
}

impl ConfigFile {
    pub(super) fn parse(text: &str) -> Result<Self> {
        Ok(Self { keys: serde_json::from_str(text).context("it is not a JSON object")? })
    }

    pub(super) fn new(keys: Map<String, Value>) -> Self {
        Self { keys }
    }

    pub(super) fn keys(&self) -> &Map<String, Value> {
        &self.keys
    }

    /// The value of a key, `None` if it is absent or null.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// A count, `None` if it is absent or null.
    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        self.value(key).map(|value| size(key, value)).transpose()
    }

    /// A count.
    pub(super) fn size(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    /// A count that null switches off.
    pub(super) fn nullable_size(&self, key: &str, default: usize) -> Result<Option<usize>> {
        if self.keys.contains_key(key) { self.optional_size(key) } else { Ok(Some(default)) }
    }

    /// A number, `None` if it is absent or null.
    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key).map(|value| number(key, value)).transpose()
    }

    /// A number that null switches off.
    pub(super) fn nullable_number(&self, key: &str, default: f64) -> Result<Option<f64>> {
        if self.keys.contains_key(key) { self.optional_number(key) } else { Ok(Some(default)) }
    }

    /// A number in f32.
    pub(super) fn float(&self, key: &str, default: f64) -> Result<f32> {
        Ok(self.optional_number(key)?.unwrap_or(default) as f32)
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.value(key).map_or(Ok(default), |value| {
            value.as_bool().with_context(|| format!("`{key}` is {value}, expected true or false"))
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.value(key)
            .map(|value| value.as_str().with_context(|| format!("`{key}` is {value}, expected text")))
            .transpose()
    }

    pub(super) fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(name) = self.text(key)? else { return Ok(default) };
        // Other names of the same functions.
        let usual = match name {
            "gelu_python" => "gelu",
            "gelu_python_tanh" | "gelu_accurate" => "gelu_new",
            name => name,
        };
        Activation::from_name(usual)
            .with_context(|| format!("{key} `{name}` is not supported; supported: {}", activation::NAMES))
    }

    /// Refuses a key that is set to anything but `usual`, its value in models that llmcls computes.
    pub(super) fn refuse_unless(&self, key: &str, usual: &[Value]) -> Result<()> {
        match self.value(key) {
            Some(value) if !usual.contains(value) => {
                let usual: Vec<String> = usual.iter().map(Value::to_string).collect();
                bail!("`{key}` is {value}, which llmcls does not compute; supported: {}", usual.join(", "))
            }
            _ => Ok(()),
        }
    }

    /// Refuses `layer_types` that differ from the windows a model of this family has.
    pub(super) fn check_layer_types(&self, windows: &[Option<usize>]) -> Result<()> {
        let Some(types) = self.layer_types(windows.len())? else { return Ok(()) };
        ensure!(
            types.iter().zip(windows).all(|(is_sliding, window)| *is_sliding == window.is_some()),
            "`layer_types` gives layers another attention than models of this family have, which llmcls does not compute"
        );
        Ok(())
    }

    /// For each layer, true if it has a window, by `layer_types`.
    pub(super) fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.value("layer_types") else { return Ok(None) };
        let list = value.as_array().with_context(|| format!("`layer_types` is {value}, expected a list"))?;
        ensure!(list.len() == layers, "`layer_types` has {} entries for {layers} layers", list.len());
        let types = list.iter().map(|kind| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => bail!("`layer_types` names {kind}; supported: full_attention, sliding_attention"),
        });
        types.collect::<Result<_>>().map(Some)
    }

    /// The labels of `id2label` in the order of their ids; none if there are none, or their ids have gaps.
    pub(super) fn labels(&self) -> Vec<String> {
        let Some(Value::Object(entries)) = self.value("id2label") else { return Vec::new() };
        let mut labels: Vec<(usize, String)> = Vec::with_capacity(entries.len());
        for (id, label) in entries {
            let (Ok(id), Some(label)) = (id.parse(), label.as_str()) else { return Vec::new() };
            labels.push((id, label.to_owned()));
        }
        labels.sort_unstable();
        let is_whole = labels.iter().enumerate().all(|(index, (id, _))| index == *id);
        labels.into_iter().filter(|_| is_whole).map(|(_, label)| label).collect()
    }

    /// The first of `bos_token_id` and `eos_token_id` that is set; `defaults` are the family's.
    pub(super) fn empty_token(&self, [bos, eos]: [Option<u32>; 2]) -> Option<u32> {
        self.token("bos_token_id", bos).or_else(|| self.token("eos_token_id", eos))
    }

    /// The id of a token, of a list the first; none if it is null, or -1 as some files write.
    pub(super) fn token(&self, key: &str, default: Option<u32>) -> Option<u32> {
        if !self.keys.contains_key(key) {
            return default;
        }
        let value = self.value(key)?;
        value.as_array().map_or(Some(value), |list| list.first())?.as_u64()?.try_into().ok()
    }
}

fn size(key: &str, value: &Value) -> Result<usize> {
    let whole = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=9e15).contains(number));
    Ok(whole.with_context(|| format!("`{key}` is {value}, expected a count"))? as usize)
}

pub(super) fn number(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("`{key}` is {value}, expected a number"))
}

/// The width of a head that the configuration does not give.
pub(super) fn head_dim(hidden_size: usize, heads: usize) -> Result<usize> {
    ensure!(
        heads > 0 && hidden_size.is_multiple_of(heads),
        "hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
    );
    Ok(hidden_size / heads)
}
