//! AdamW's numbers (Loshchilov and Hutter, 2019): one step, and how moments are held.

use super::cpu::dynamic_map::DynamicMap;

/// Storage of moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentStorage {
    /// 8 bytes a parameter.
    Float32,
    /// About 2 bytes a parameter.
    EightBit,
}

/// The numbers that 8-bit codes stand for.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) first: DynamicMap,
    pub(crate) second: DynamicMap,
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) learning_rate: f32,
    pub(crate) gradient_scale: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) epsilon: f32,
    /// 1 − β1^t
    pub(crate) correction1: f32,
    /// √(1 − β2^t)
    pub(crate) correction2: f32,
    /// 1 − learning rate · weight decay
    pub(crate) decay: f32,
}

impl Maps {
    pub(crate) fn new() -> Self {
        Self { first: DynamicMap::new(true), second: DynamicMap::new(false) }
    }
}
