//! The angles of rotary position embedding (Su et al., 2021).

use super::constant::Constant;

/// cos and sin of every position's angles.
#[derive(Debug)]
pub struct RopeTable {
    /// `(positions, half)`
    pub(crate) cos: Constant,
    /// `(positions, half)`
    pub(crate) sin: Constant,
    /// Pairs of a head that are rotated: d/2, or fewer.
    pub(crate) half: usize,
    /// d
    pub(crate) head_size: usize,
}

impl RopeTable {
    /// Angles `position · frequency` for positions `0 .. positions`, for heads of width `head_size`, of
    /// which the first `2 · frequencies` elements are rotated. cos and sin are multiplied by `scale`.
    ///
    /// # Panics
    /// If a head has fewer elements than that.
    #[must_use]
    pub fn new(frequencies: &[f32], head_size: usize, scale: f32, positions: usize) -> Self {
        assert!(2 * frequencies.len() <= head_size, "{} frequencies for heads of {head_size}", frequencies.len());
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        Self {
            cos: angles().map(|angle| scale * angle.cos()).collect::<Vec<_>>().into(),
            sin: angles().map(|angle| scale * angle.sin()).collect::<Vec<_>>().into(),
            half: frequencies.len(),
            head_size,
        }
    }

    /// The number of positions in the table.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}
