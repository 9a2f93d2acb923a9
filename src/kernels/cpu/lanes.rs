//! Sixteen f32 at once, in the registers of each CPU: the same sums in the same order on all of them.
//!
//! Generic code over [`Lanes`] is compiled for each instruction set by [`for_each_cpu`]. Intrinsics are
//! needed where the compiler would keep an array of sums in memory (see benches/LOG.md).

#![expect(unsafe_code, reason = "intrinsics, and loads from raw pointers")]

/// Floats in [`Lanes`].
pub(super) const WIDTH: usize = 16;

/// Sixteen numbers.
///
/// # Safety
/// Every function needs the CPU to have the instruction set, and pointers to as many numbers as it reads
/// or writes.
pub(super) trait Lanes: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// self + a · b, rounded once.
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// Zero where a bit is not set.
    unsafe fn keep(self, bits: u16) -> Self;
    /// The sum, by halves.
    unsafe fn total(self) -> f32;

    /// Bits of the numbers that are at least `least`.
    unsafe fn at_least(numbers: &[u32; WIDTH], least: u32) -> u16;

    /// The first `count`, and zeros.
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        let mut few = [0.0; WIDTH];
        unsafe {
            std::ptr::copy_nonoverlapping(from, few.as_mut_ptr(), count);
            Self::load(few.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        let mut few = [0.0; WIDTH];
        unsafe {
            self.store(few.as_mut_ptr());
            std::ptr::copy_nonoverlapping(few.as_ptr(), to, count);
        }
    }
}

/// Without instructions in particular.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; WIDTH]);

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; WIDTH])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; WIDTH]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; WIDTH]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|lane| a.0[lane].mul_add(b.0[lane], self.0[lane])))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }

    #[inline(always)]
    unsafe fn keep(self, bits: u16) -> Self {
        Self(std::array::from_fn(|lane| if bits >> lane & 1 == 1 { self.0[lane] } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn at_least(numbers: &[u32; WIDTH], least: u32) -> u16 {
        numbers.iter().enumerate().map(|(lane, &number)| u16::from(number >= least) << lane).sum()
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        let mut sums = self.0;
        let mut width = WIDTH / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        sums[0]
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::{Lanes, WIDTH};

    /// Two registers.
    #[derive(Clone, Copy)]
    pub(in crate::kernels::cpu) struct Avx2([__m256; 2]);

    /// One register.
    #[derive(Clone, Copy)]
    pub(in crate::kernels::cpu) struct Avx512(__m512);

    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self([_mm256_set1_ps(x); 2]) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0[0]);
                _mm256_storeu_ps(to.add(8), self.0[1]);
            }
        }

        #[inline(always)]
        unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
            unsafe { Self([_mm256_fmadd_ps(a.0[0], b.0[0], self.0[0]), _mm256_fmadd_ps(a.0[1], b.0[1], self.0[1])]) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self([_mm256_add_ps(self.0[0], other.0[0]), _mm256_add_ps(self.0[1], other.0[1])]) }
        }

        #[inline(always)]
        unsafe fn keep(self, bits: u16) -> Self {
            unsafe {
                let single = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let half = |x: __m256, bits: i32| {
                    let set = _mm256_and_si256(_mm256_set1_epi32(bits), single);
                    _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, single)))
                };
                Self([half(self.0[0], i32::from(bits & 0xff)), half(self.0[1], i32::from(bits >> 8))])
            }
        }

        #[inline(always)]
        unsafe fn at_least(numbers: &[u32; WIDTH], least: u32) -> u16 {
            unsafe {
                let least = _mm256_set1_epi32(least as i32);
                let half = |from: *const u32| {
                    let numbers = _mm256_loadu_si256(from.cast());
                    let is_least = _mm256_cmpeq_epi32(_mm256_max_epu32(numbers, least), numbers);
                    _mm256_movemask_ps(_mm256_castsi256_ps(is_least)) as u16
                };
                half(numbers.as_ptr()) | half(numbers.as_ptr().add(8)) << 8
            }
        }

        #[inline(always)]
        unsafe fn total(self) -> f32 {
            unsafe { total(_mm256_add_ps(self.0[0], self.0[1])) }
        }
    }

    impl Lanes for Avx512 {
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(x)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(from)) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self(_mm512_add_ps(self.0, other.0)) }
        }

        #[inline(always)]
        unsafe fn keep(self, bits: u16) -> Self {
            unsafe { Self(_mm512_maskz_mov_ps(bits, self.0)) }
        }

        #[inline(always)]
        unsafe fn at_least(numbers: &[u32; WIDTH], least: u32) -> u16 {
            unsafe {
                let numbers = _mm512_loadu_si512(numbers.as_ptr().cast());
                _mm512_cmpge_epu32_mask(numbers, _mm512_set1_epi32(least as i32))
            }
        }

        #[inline(always)]
        unsafe fn total(self) -> f32 {
            unsafe { total(_mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0))) }
        }
    }

    #[inline(always)]
    unsafe fn total(eight: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

/// Declares a function that runs a generic one, compiled for each instruction set. Numbers behind the
/// lanes are further generic arguments, of AVX-512 and of the others.
macro_rules! for_each_cpu {
    ($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) = $generic:ident<$($wide:literal),*; $($narrow:literal),*>;) => {
        $(#[$meta])*
        unsafe fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::cpu::lanes::{Avx2, Avx512};
                use $crate::kernels::cpu::math::Level;

                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,f16c")]
                unsafe fn x86_64_v4($($argument: $type),*) {
                    unsafe { $generic::<Avx512, $($wide),*>($($argument),*) }
                }

                #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,f16c")]
                unsafe fn x86_64_v3($($argument: $type),*) {
                    unsafe { $generic::<Avx2, $($narrow),*>($($argument),*) }
                }

                match Level::of_this_cpu() {
                    Level::V4 => return unsafe { x86_64_v4($($argument),*) },
                    Level::V3 => return unsafe { x86_64_v3($($argument),*) },
                    Level::Baseline => {}
                }
            }
            unsafe { $generic::<$crate::kernels::cpu::lanes::Portable, $($narrow),*>($($argument),*) }
        }
    };
}
pub(super) use for_each_cpu;

#[cfg(test)]
mod tests {
    use super::*;

    fn check<L: Lanes>() {
        let x: Vec<f32> = (0..16).map(|i| (i * 37 % 11) as f32 + 0.1).collect();
        unsafe {
            assert_eq!(L::load(x.as_ptr()).total(), Portable::load(x.as_ptr()).total());
            let mut kept = [1.0; WIDTH];
            L::load(x.as_ptr()).keep(0b1010_0000_0000_0110).store(kept.as_mut_ptr());
            for (lane, kept) in kept.into_iter().enumerate() {
                assert_eq!(kept, if [1, 2, 13, 15].contains(&lane) { x[lane] } else { 0.0 });
            }
            let numbers: [u32; WIDTH] = std::array::from_fn(|i| (i as u32).wrapping_mul(0x2345_6789));
            for least in [0, 1, 0x2345_6789, 0x8000_0000, u32::MAX] {
                assert_eq!(L::at_least(&numbers, least), Portable::at_least(&numbers, least));
            }
            let mut few = [7.0; WIDTH];
            L::load_first(x.as_ptr(), 5).store_first(few.as_mut_ptr(), 6);
            assert_eq!(few[..5], x[..5]);
            assert_eq!(few[5..7], [0.0, 7.0]);
        }
    }

    #[test]
    fn lanes_are_the_same_on_every_cpu() {
        check::<Portable>();
        #[cfg(target_arch = "x86_64")]
        {
            use crate::kernels::cpu::math::Level;
            if Level::of_this_cpu() != Level::Baseline {
                check::<Avx2>();
            }
            if Level::of_this_cpu() == Level::V4 {
                check::<Avx512>();
            }
        }
    }
}
