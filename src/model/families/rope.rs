//! Rotary embeddings in a `config.json`: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of
//! transformers 5.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::file::{ConfigFile, number};
use crate::model::rope::{Rope, RopeScaling};

/// Defaults of a family's rotary embedding.
pub(super) struct RopeDefaults {
    pub(super) theta: f64,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// Longest context, in tokens.
    pub(super) longest: usize,
    /// Context of pretraining of a LongRoPE, if the family tells it beside its scaling.
    pub(super) original: Option<usize>,
    /// True if a part of each head may be rotated.
    pub(super) may_be_partial: bool,
}

/// Reads the one rotary embedding that all layers share.
pub(super) fn shared(file: &ConfigFile, defaults: &RopeDefaults) -> Result<Rope> {
    let theta = file.optional_number("rope_theta")?.unwrap_or(defaults.theta);
    let old = object(file, "rope_scaling")?;
    let new = object(file, "rope_parameters")?;
    for parameters in [old, new].into_iter().flatten() {
        ensure!(
            !parameters.values().any(Value::is_object),
            "`rope_parameters` by layer type are not supported for this model_type"
        );
    }
    match (old, new) {
        (None, None) => Spelling { key: "rope_theta", keys: &Map::new(), is_new: false }.read(file, theta, defaults),
        (Some(keys), None) => Spelling { key: "rope_scaling", keys, is_new: false }.read(file, theta, defaults),
        (None, Some(keys)) => Spelling { key: "rope_parameters", keys, is_new: true }.read(file, theta, defaults),
        (Some(old), Some(new)) => {
            let old = Spelling { key: "rope_scaling", keys: old, is_new: false }.read(file, theta, defaults)?;
            let new = Spelling { key: "rope_parameters", keys: new, is_new: true }.read(file, theta, defaults)?;
            ensure!(old == new, "`rope_scaling` and `rope_parameters` say different things; remove one of them");
            Ok(new)
        }
    }
}

/// Reads the rotary embeddings of layers that see all tokens and of layers with a window; `is_scaled` says which of
/// them `rope_scaling` of transformers 4 is for.
pub(super) fn by_layer_type(
    file: &ConfigFile,
    thetas: [f64; 2],
    is_scaled: [bool; 2],
    defaults: &RopeDefaults,
) -> Result<[Rope; 2]> {
    let read = |kind: &str, theta: f64, is_scaled: bool| {
        if let Some(keys) = object(file, "rope_scaling")?.filter(|_| is_scaled) {
            return Spelling { key: "rope_scaling", keys, is_new: false }.read(file, theta, defaults);
        }
        let empty = Map::new();
        let parameters = object(file, "rope_parameters")?.unwrap_or(&empty);
        let keys = match parameters.get(kind) {
            Some(Value::Object(keys)) => keys,
            Some(Value::Null) | None if parameters.values().all(|value| value.is_object() || value.is_null()) => &empty,
            _ => bail!("`rope_parameters` are not given by layer type (full_attention, sliding_attention)"),
        };
        Spelling { key: "rope_parameters", keys, is_new: true }.read(file, theta, defaults)
    };
    Ok([read("full_attention", thetas[0], is_scaled[0])?, read("sliding_attention", thetas[1], is_scaled[1])?])
}

fn object<'a>(file: &'a ConfigFile, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    file.value(key)
        .map(|value| value.as_object().with_context(|| format!("`{key}` is {value}, expected a mapping")))
        .transpose()
}

/// The mapping that describes a rotary embedding, in either spelling.
struct Spelling<'a> {
    key: &'static str,
    keys: &'a Map<String, Value>,
    is_new: bool,
}

impl Spelling<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>> {
        let value = self.keys.get(key).filter(|value| !value.is_null());
        value.map(|value| number(&format!("{}.{key}", self.key), value)).transpose()
    }

    fn need(&self, key: &str) -> Result<f64> {
        self.number(key)?.with_context(|| format!("`{}` lacks `{key}`", self.key))
    }

    fn read(&self, file: &ConfigFile, theta: f64, defaults: &RopeDefaults) -> Result<Rope> {
        let theta = self.number("rope_theta")?.unwrap_or(theta);
        ensure!(theta > 0.0, "`rope_theta` is {theta}, expected a positive number");
        let partial = match self.number("partial_rotary_factor")? {
            Some(partial) => partial,
            None => file.optional_number("partial_rotary_factor")?.unwrap_or(1.0),
        };
        ensure!(
            partial == 1.0 || defaults.may_be_partial,
            "`partial_rotary_factor` is {partial}, which is not supported for this model_type"
        );
        ensure!(partial > 0.0 && partial <= 1.0, "`partial_rotary_factor` is {partial}, expected above 0, at most 1");
        let width = (defaults.head_dim as f64 * partial) as usize;
        Ok(Rope { theta, scaling: self.scaling(file, theta, width, defaults)?, width })
    }

    fn scaling(&self, file: &ConfigFile, theta: f64, width: usize, defaults: &RopeDefaults) -> Result<RopeScaling> {
        // transformers 4 had `type` first and `rope_type` later; files with both hold the same in both.
        let kind = self.keys.get("rope_type").or_else(|| self.keys.get("type")).filter(|kind| !kind.is_null());
        let kind = kind.map(|kind| kind.as_str().with_context(|| format!("`rope_type` is {kind}, expected text")));
        Ok(match kind.transpose()? {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: self.factor()? },
            Some("dynamic") => {
                self.factor()?;
                RopeScaling::Dynamic { original: defaults.longest }
            }
            Some("llama3") => RopeScaling::Llama3 {
                factor: self.factor()?,
                low_freq_factor: self.need("low_freq_factor")?,
                high_freq_factor: self.need("high_freq_factor")?,
                original_max_position_embeddings: self.need("original_max_position_embeddings")?,
            },
            Some("longrope") => self.long(file, width, defaults)?,
            // Phi-3 called LongRoPE so before the paper was out; transformers still reads it so.
            Some("su" | "yarn") if defaults.original.is_some() => self.long(file, width, defaults)?,
            Some("yarn") => self.yarn(theta, width, defaults)?,
            Some(other) => bail!(
                "`{}`: rope type `{other}` is not supported; supported: default, linear, dynamic, yarn, llama3, longrope",
                self.key
            ),
        })
    }

    fn factor(&self) -> Result<f64> {
        let factor = self.need("factor")?;
        ensure!(factor > 0.0, "`{}.factor` is {factor}, expected a positive number", self.key);
        Ok(factor)
    }

    /// As transformers' `_compute_yarn_parameters`.
    fn yarn(&self, theta: f64, width: usize, defaults: &RopeDefaults) -> Result<RopeScaling> {
        // Python's `or`: 0 is as good as none.
        let given = |key: &str| Ok::<_, anyhow::Error>(self.number(key)?.filter(|&value| value != 0.0));
        let longest = defaults.longest as f64;
        let original = given("original_max_position_embeddings")?.unwrap_or(longest);
        ensure!(original > 0.0, "`{}.original_max_position_embeddings` is {original}", self.key);
        let factor = match self.number("factor")? {
            // DeepSeek's files leave it out; transformers 5 reads them so, and transformers 4 not at all.
            None if self.is_new => longest / original,
            _ => self.factor()?,
        };
        let usual = |factor: f64, scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let attention_factor = match (self.number("attention_factor")?, given("mscale")?, given("mscale_all_dim")?) {
            (Some(attention_factor), ..) => attention_factor,
            (None, Some(scale), Some(all)) => usual(factor, scale) / usual(factor, all),
            (None, ..) => usual(factor, 1.0),
        };
        let truncates = match self.keys.get("truncate") {
            None => true,
            Some(value) => value
                .as_bool()
                .with_context(|| format!("`{}.truncate` is {value}, expected true or false", self.key))?,
        };
        let width = width as f64;
        let index = |turns: f64| width * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
        let low = index(given("beta_fast")?.unwrap_or(32.0));
        let high = index(given("beta_slow")?.unwrap_or(1.0));
        let (low, high) = if truncates { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(width - 1.0));
        ensure!(low.is_finite() && high.is_finite(), "`{}`: the numbers of YaRN give no frequencies", self.key);
        let high = if low == high { high + 0.001 } else { high };
        Ok(RopeScaling::Yarn { factor, low, high, attention_factor })
    }

    /// LongRoPE within the context of pretraining: beyond it the factors are others, which are not computed.
    fn long(&self, file: &ConfigFile, width: usize, defaults: &RopeDefaults) -> Result<RopeScaling> {
        let factors = |key: &str| -> Result<Vec<f64>> {
            let list = self.keys.get(key).with_context(|| format!("`{}` lacks `{key}`", self.key))?;
            let list = list.as_array().with_context(|| format!("`{key}` is {list}, expected a list of numbers"))?;
            ensure!(list.len() == width / 2, "`{key}` has {} factors for {} frequencies", list.len(), width / 2);
            list.iter().map(|value| number(key, value)).collect()
        };
        let short_factor = factors("short_factor")?;
        ensure!(short_factor.iter().all(|factor| *factor > 0.0), "`short_factor` holds a factor that is not positive");
        factors("long_factor")?;
        // A family's own key stands beside the scaling and wins over one inside it.
        let inside = if self.is_new { self.number("original_max_position_embeddings")? } else { None };
        let beside = file.optional_number("original_max_position_embeddings")?;
        let original = beside.or(defaults.original.map(|original| original as f64));
        let is_known = original.is_some();
        let original = original.or(inside).unwrap_or(defaults.longest as f64);
        let given = self.number("factor")?;
        let ratio = defaults.longest as f64 / original;
        let factor = match self.is_new {
            true => given.unwrap_or(ratio),
            false if is_known => ratio,
            false => given.unwrap_or(1.0),
        };
        let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        Ok(RopeScaling::Long {
            short_factor,
            attention_factor: self.number("attention_factor")?.unwrap_or(usual),
            original: original as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// scripts/make_rope_fixtures.py: transformers 4.57.6 and 5.24.0.
    #[test]
    fn frequencies_are_those_of_transformers_in_either_spelling() {
        let fixture: Value = serde_json::from_str(include_str!("../../../tests/fixtures/rope.json")).unwrap();
        let mut count = 0;
        for case in ["4", "5"].iter().flat_map(|version| fixture[version].as_array().unwrap()) {
            let given = &case["given"];
            let mut saved = case["saved"].clone();
            saved["max_position_embeddings"] = given["max_position_embeddings"].clone();
            for file in [given, &saved] {
                let file = ConfigFile::parse(&file.to_string()).unwrap();
                let defaults = RopeDefaults {
                    theta: 10_000.0,
                    head_dim: 24,
                    longest: 1024,
                    original: None,
                    may_be_partial: false,
                };
                let rope = shared(&file, &defaults).unwrap();
                // Frequencies below are differences of f32 in transformers.
                assert!((f64::from(rope.scale()) - case["scale"].as_f64().unwrap()).abs() < 1e-6, "{given}");
                for (found, expected) in rope.frequencies().iter().zip(case["frequencies"].as_array().unwrap()) {
                    let expected = expected.as_f64().unwrap();
                    assert!((f64::from(*found) - expected).abs() < 2e-6 * expected, "{given}: {found} {expected}");
                    count += 1;
                }
            }
        }
        assert_eq!(count, 2 * 2 * 24 * 12);
    }

    #[test]
    fn rotary_embeddings_that_are_not_computed_are_refused_by_key() {
        for (scaling, part) in [
            (json!({"type": "hierarchical", "factor": 2.0}), "rope type `hierarchical`"),
            (json!({"type": "yarn"}), "`rope_scaling` lacks `factor`"),
            (json!({"type": "dynamic", "factor": 0.0}), "`rope_scaling.factor` is 0"),
            (json!({"type": "yarn", "factor": 2.0, "truncate": "no"}), "`rope_scaling.truncate`"),
        ] {
            let file = ConfigFile::parse(&json!({"model_type": "llama", "rope_scaling": scaling}).to_string()).unwrap();
            let defaults =
                RopeDefaults { theta: 10.0, head_dim: 8, longest: 64, original: None, may_be_partial: false };
            let error = format!("{:#}", shared(&file, &defaults).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
