//! Choice of the instructions and number types of a product.

/// In what products with frozen weights are computed on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Both operands in f32.
    #[default]
    Float32,
    /// Both operands rounded to bf16, with sums in f32.
    Bfloat16,
}

impl Compute {
    /// As configurations have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// The CPU's instructions that compute it.
    #[must_use]
    pub fn instructions(self) -> &'static str {
        match (Path::of_this_cpu(self), self) {
            (Path::Amx, _) => "AMX",
            (Path::Avx512, Self::Bfloat16) => "AVX512_BF16",
            (Path::Avx512, Self::Float32) => "AVX-512",
            (Path::Avx2, _) => "AVX2",
            (Path::Portable, _) => "none in particular",
        }
    }

    /// Returns true if this CPU has an instruction for it.
    #[must_use]
    pub fn is_native(self) -> bool {
        match self {
            Self::Float32 => true,
            Self::Bfloat16 => matches!(Path::of_this_cpu(self), Path::Avx512 | Path::Amx),
        }
    }

    /// Returns true if this CPU computes it at least as fast as f32.
    #[must_use]
    pub fn is_fast(self) -> bool {
        self == Self::Float32 || is_bf16_fast(Path::of_this_cpu(self), has_amx())
    }
}

/// Which instructions compute a product. The result is the same, but for f32 on a portable path and for tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Tiles, for bf16 alone, where they are asked for.
    Amx,
    Avx512,
    Avx2,
    Portable,
}

impl Path {
    /// The fastest that this CPU has.
    pub(crate) fn of_this_cpu(compute: Compute) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::kernels::cpu::math::Level;
            let level = Level::of_this_cpu();
            let has_avx512 = level == Level::V4 && (compute == Compute::Float32 || has_avx512_bf16());
            if compute == Compute::Bfloat16 && has_avx512 && super::tiles::is_on() {
                return Self::Amx;
            }
            match level {
                Level::V4 | Level::V3 if !has_avx512 => Self::Avx2,
                Level::V4 | Level::V3 => Self::Avx512,
                Level::Baseline => Self::Portable,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = compute;
            Self::Portable
        }
    }
}

/// CPUs with AMX also have `VDPBF16PS`, but run it slowly (a Xeon, two cores: 140 GFLOP/s, and 177 in f32). Their fast way
/// to bf16 is AMX.
fn is_bf16_fast(path: Path, has_amx: bool) -> bool {
    path == Path::Amx || path == Path::Avx512 && !has_amx
}

fn has_amx() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::tiles::are_in_the_cpu();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Returns true if this CPU has `VDPBF16PS` and the environment permits it.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx512_bf16() -> bool {
    use crate::kernels::cpu::math::Level;
    Level::of_this_cpu() == Level::V4 && is_x86_feature_detected!("avx512bf16")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_fast_by_tiles_or_where_there_are_none() {
        for (path, has_amx, expected) in [
            (Path::Avx512, false, true),
            (Path::Avx512, true, false),
            (Path::Amx, true, true),
            (Path::Avx2, false, false),
            (Path::Avx2, true, false),
            (Path::Portable, false, false),
        ] {
            assert_eq!(is_bf16_fast(path, has_amx), expected, "{path:?} {has_amx}");
        }
    }
}
