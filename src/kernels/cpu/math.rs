//! Vector arithmetic on slices, written so that the compiler vectorises it for each CPU.

#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

/// Floats in the widest vector register that we compile for (AVX-512).
const LANES: usize = 16;

/// Compiles a function once for each of x86-64-v4 (AVX-512), v3 (AVX2 and FMA) and the baseline, and
/// chooses at run time.
///
/// Closures written inside the function are compiled for the same instruction set; code that it
/// calls is so only if it is `#[inline(always)]`.
macro_rules! simd {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$meta])*
        $visibility fn $name($($argument: $type),*) $(-> $output)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,f16c")]
            fn x86_64_v4($($argument: $type),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,f16c")]
            fn x86_64_v3($($argument: $type),*) $(-> $output)? $body

            fn baseline($($argument: $type),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            match $crate::kernels::cpu::math::Level::of_this_cpu() {
                // SAFETY: the features were detected.
                #[expect(unsafe_code, reason = "calls code compiled for a CPU feature")]
                $crate::kernels::cpu::math::Level::V4 => return unsafe { x86_64_v4($($argument),*) },
                // SAFETY: the features were detected.
                #[expect(unsafe_code, reason = "calls code compiled for a CPU feature")]
                $crate::kernels::cpu::math::Level::V3 => return unsafe { x86_64_v3($($argument),*) },
                $crate::kernels::cpu::math::Level::Baseline => {}
            }
            baseline($($argument),*)
        }
    };
}
pub(crate) use simd;

/// Names the newest instruction set that may be used: `x86-64-v4` (AVX-512), `x86-64-v3` (AVX2 and FMA) or
/// `x86-64`. For tests: what is computed is the same with the first two.
#[cfg(target_arch = "x86_64")]
const LIMIT: &str = "LLMCLS_CPU";

/// Instruction sets that code is compiled for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    V4,
    V3,
    Baseline,
}

#[cfg(target_arch = "x86_64")]
impl Level {
    /// The features of this CPU, or fewer if the environment says so. Read once.
    pub(crate) fn of_this_cpu() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| match std::env::var(LIMIT).as_deref() {
            Ok("x86-64") => Self::Baseline,
            Ok("x86-64-v3") if Self::detect() != Self::Baseline => Self::V3,
            _ => Self::detect(),
        })
    }

    fn detect() -> Self {
        let has_v3 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("f16c");
        let has_v4 = has_v3
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (has_v4, has_v3) {
            (true, _) => Self::V4,
            (_, true) => Self::V3,
            _ => Self::Baseline,
        }
    }
}

/// e^x to about one unit in the last place, without a branch (Cephes' `expf` polynomial).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32
        .mul_add(r, 1.398_199_9e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    let value = p.mul_add(r * r, r) + 1.0;
    // The low bits of `shifted` hold n: add them to the exponent of `value`.
    f32::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh(x) to about 2e-7 of it, without a branch.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    // Near zero the difference of exponentials would lose its digits: the first terms of the series.
    let small = x
        * (-8.863_236e-3_f32)
            .mul_add(square, 2.186_948_8e-2)
            .mul_add(square, -5.396_825_4e-2)
            .mul_add(square, 1.333_333_4e-1)
            .mul_add(square, -3.333_333_4e-1)
            .mul_add(square, 1.0);
    let large = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    if square < 0.1 { small } else { large }
}

/// The error function to 1.5e-7, without a branch (Abramowitz and Stegun, 1964, 7.1.26).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let t = 1.0 / 0.327_591_1_f32.mul_add(magnitude, 1.0);
    let polynomial = 1.061_405_4_f32
        .mul_add(t, -1.453_152_1)
        .mul_add(t, 1.421_413_8)
        .mul_add(t, -0.284_496_75)
        .mul_add(t, 0.254_829_6);
    (1.0 - polynomial * t * exp(-magnitude * magnitude)).copysign(x)
}

/// sums + a·b, lane by lane.
#[inline(always)]
fn multiply_add(sums: [f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for lane in 0..LANES {
        out[lane] = a[lane].mul_add(b[lane], sums[lane]);
    }
    out
}

/// The sum of all lanes. Halving keeps the order fixed and the rounding small.
#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Σ a·b
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let (a_lanes, a_rest) = a[..b.len()].as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        sums = multiply_add(sums, a, b);
    }
    total(sums) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -80.0f32;
        while x < 80.0 {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.5e-7, "exp({x}) is off by {error}");
            x += 0.0137;
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 1e-37);
    }
}
