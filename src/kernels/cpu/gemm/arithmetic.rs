//! What a product in bf16 is: what `VDPBF16PS` and `VCVTNEPS2BF16` compute, in portable code.
//!
//! One output is one chain over k, two terms at a time, whatever the blocking:
//!
//! ```text
//! c ← y or 0
//! for each pair (2i, 2i + 1):  c ← c + x[2i + 1] · w[2i + 1];  c ← c + x[2i] · w[2i]
//! ```
//!
//! Each `+ ·` is fused and rounded once, to nearest even. Denormal operands count as zero, and a
//! result that is denormal *after rounding to 24 bits* becomes zero, as with FTZ and DAZ in MXCSR.
//! With an odd depth the last pair is filled up with zeros.

/// The bf16 nearest to `x`, ties to even; denormals become zero, NaN quiet.
#[inline(always)]
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if magnitude > 0x7f80_0000 {
        (bits >> 16) as u16 | 0x40
    } else if magnitude < 0x0080_0000 {
        (bits >> 16) as u16 & 0x8000
    } else {
        rounded
    }
}

/// The f32 that a bf16 operand counts as.
#[inline(always)]
pub(crate) fn widen(x: u16) -> f32 {
    let x = if x & 0x7f80 == 0 { x & 0x8000 } else { x };
    f32::from_bits(u32::from(x) << 16)
}

/// c + a · b, rounded once, denormals flushed; a NaN is the first of a, b, c that is one.
fn multiply_add(c: f32, a: f32, b: f32) -> f32 {
    const INVALID: u32 = 0xffc0_0000;
    const SCALE: f32 = 4_294_967_296.0;
    let flush = |x: f32| if x.is_subnormal() { 0.0f32.copysign(x) } else { x };
    let (a, b, c) = (flush(a), flush(b), flush(c));
    if let Some(nan) = [a, b, c].into_iter().find(|x| x.is_nan()) {
        return f32::from_bits(nan.to_bits() | 0x40_0000);
    }
    let sum = a.mul_add(b, c);
    if sum.is_nan() {
        return f32::from_bits(INVALID);
    }
    // Whether a sum is denormal is asked of the sum with 24 bits. Near the limit `mul_add` has kept
    // 23, so ask a sum that is 2³² as large. Nothing overflows: a sum this small has small terms.
    let is_tiny = sum.abs() <= f32::MIN_POSITIVE && (a * SCALE).mul_add(b, c * SCALE).abs() < f32::MIN_POSITIVE * SCALE;
    if is_tiny { 0.0f32.copysign(sum) } else { sum }
}

/// One lane of `VDPBF16PS`.
pub(crate) fn dot_pair(c: f32, a: [u16; 2], b: [u16; 2]) -> f32 {
    multiply_add(multiply_add(c, widen(a[1]), widen(b[1])), widen(a[0]), widen(b[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_with_denormals_zero() {
        for bits in (0..=u32::MAX).step_by(4099) {
            let x = f32::from_bits(bits);
            let expected = if x.is_subnormal() { 0.0f32.copysign(x) } else { x };
            assert_eq!(round(x), half::bf16::from_f32(expected).to_bits(), "{bits:08x}");
        }
    }

    #[test]
    fn a_sum_near_the_smallest_normal_number_is_flushed_by_its_24_bits() {
        // 1.5 · 2⁻¹²⁷ is flushed; 2⁻¹²⁶ less a 25th bit rounds up to a normal number and stays.
        assert_eq!(multiply_add(0.0, 1.5 * 2f32.powi(-64), 2f32.powi(-63)), 0.0);
        let least = f32::MIN_POSITIVE;
        assert_eq!(multiply_add(least, -(2f32.powi(-76)), 2f32.powi(-76)), least);
    }
}
