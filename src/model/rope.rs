//! Rotary frequencies, `θ^(−2i/d)`, and how a configuration stretches them.

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

/// Kinds of scaling of rotary frequencies.
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
    /// Dynamic NTK within the context length of pretraining, where it changes nothing.
    Dynamic {
        /// Context length of pretraining, in tokens: the longest text for which that holds.
        original: usize,
    },
    /// YaRN (Peng et al., 2023): low frequencies divided, high ones kept, those between blended by their index.
    Yarn {
        /// Divides low frequencies.
        factor: f64,
        /// Indices between which frequencies are blended; those below are kept.
        low: f64,
        /// See `low`; those above are divided.
        high: f64,
        /// Multiplies cos and sin.
        attention_factor: f64,
    },
    /// LongRoPE within the context length of pretraining: each frequency divided by a factor of its own.
    Long {
        /// One factor a frequency.
        short_factor: Vec<f64>,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Context length of pretraining, in tokens: the longest text these factors are for.
        original: usize,
    },
}

impl Rope {
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

    /// The factor of cos and sin.
    #[must_use]
    pub fn scale(&self) -> f32 {
        match self.scaling {
            RopeScaling::Long { attention_factor, .. } | RopeScaling::Yarn { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }
}

impl RopeScaling {
    fn apply(&self, index: usize, frequency: f64) -> f64 {
        match *self {
            Self::None | Self::Dynamic { .. } => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Long { ref short_factor, .. } => frequency / short_factor[index],
            Self::Yarn { factor, low, high, .. } => {
                let divided = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
                divided * frequency / factor + (1.0 - divided) * frequency
            }
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
