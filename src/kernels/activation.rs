//! The activations that models name.

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x)
    Silu,
    /// x · Φ(x), Φ the normal distribution.
    Gelu,
    /// The same with Φ approached by a hyperbolic tangent.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// tanh(x)
    Tanh,
}

impl Activation {
    /// By its name in transformers' configurations.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "relu" => Self::Relu,
            "tanh" => Self::Tanh,
            _ => return None,
        })
    }
}

/// Names that [`Activation::from_name`] knows.
pub const NAMES: &str = "silu, gelu, gelu_new, gelu_pytorch_tanh, relu, tanh";
