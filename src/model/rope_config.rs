//! Rotary frequencies, `θ^(−2i/d)`, and how a configuration stretches them.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The rotary embedding of some layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// θ
    pub theta: f64,
    /// For contexts longer than those of pretraining.
    pub scaling: RopeScaling,
    /// Elements of a head that are rotated: d, or fewer.
    pub width: usize,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of pretraining, in tokens.
        original_max_position_embeddings: f64,
    },
    /// LongRoPE within the context length of pretraining: each frequency divided by a factor of its own.
    Long {
        /// One factor a frequency.
        short_factor: Vec<f64>,
        /// Multiplies cos and sin.
        attention_factor: f64,
    },
}

/// The part of a configuration that describes a rotary embedding, in either spelling.
#[derive(Clone, Deserialize)]
pub(super) struct Scaling {
    // transformers 4 had `type` first and `rope_type` later; files with both hold the same in both.
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    short_factor: Option<Vec<f64>>,
    attention_factor: Option<f64>,
}

/// The lengths of a model's contexts, in tokens.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// Longest context.
    pub(super) longest: usize,
    /// Context of pretraining, if the configuration tells it beside its scaling.
    pub(super) original: Option<usize>,
}

impl Rope {
    /// From a configuration's `rope_theta` and `rope_scaling` or `rope_parameters`, for heads of which
    /// `width` elements are rotated.
    pub(super) fn from_parts(
        theta: Option<f64>,
        scaling: Option<Scaling>,
        width: usize,
        lengths: Lengths,
    ) -> Result<Self> {
        let theta = scaling.as_ref().and_then(|s| s.rope_theta).or(theta).unwrap_or(10_000.0);
        let scaling = scaling.map_or(Ok(RopeScaling::None), |scaling| scaling.resolve(width, lengths))?;
        Ok(Self { theta, scaling, width })
    }

    /// The `width / 2` frequencies.
    #[must_use]
    pub fn frequencies(&self) -> Vec<f32> {
        (0..self.width / 2)
            .map(|i| {
                let frequency = self.theta.powf(-2.0 * i as f64 / self.width as f64);
                self.scaling.apply(i, frequency) as f32
            })
            .collect()
    }

    /// What cos and sin are multiplied by.
    #[must_use]
    pub fn scale(&self) -> f32 {
        match self.scaling {
            RopeScaling::Long { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }
}

impl Scaling {
    fn resolve(self, width: usize, lengths: Lengths) -> Result<RopeScaling> {
        let need = |value: Option<f64>, key: &str| value.with_context(|| format!("rope scaling lacks `{key}`"));
        Ok(match self.rope_type.or(self.r#type).as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: need(self.factor, "factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: need(self.factor, "factor")?,
                low_freq_factor: need(self.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(self.high_freq_factor, "high_freq_factor")?,
                original_max_position_embeddings: need(
                    self.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            },
            // Phi-3 called it so before the paper was out.
            Some("longrope" | "su") => {
                let short_factor = self.short_factor.context("rope scaling lacks `short_factor`")?;
                ensure!(
                    short_factor.len() == width / 2,
                    "rope scaling has {} short factors for {} frequencies",
                    short_factor.len(),
                    width / 2
                );
                let original = lengths.original.unwrap_or(lengths.longest) as f64;
                let factor = match lengths.original {
                    Some(_) => lengths.longest as f64 / original,
                    None => self.factor.unwrap_or(1.0),
                };
                let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
                RopeScaling::Long { short_factor, attention_factor: self.attention_factor.unwrap_or(usual) }
            }
            Some(other) => bail!("rope type `{other}` is not supported; supported: default, linear, llama3, longrope"),
        })
    }
}

impl RopeScaling {
    fn apply(&self, index: usize, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Long { ref short_factor, .. } => frequency / short_factor[index],
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength < original_max_position_embeddings / high_freq_factor {
                    frequency
                } else if wavelength > original_max_position_embeddings / low_freq_factor {
                    frequency / factor
                } else {
                    let turns = original_max_position_embeddings / wavelength;
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}
