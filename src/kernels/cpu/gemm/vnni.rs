//! Sums of products of int8: `VPDPBUSD`, and the same sums without it.

#![expect(unsafe_code, reason = "vector loads take raw pointers")]

use super::path::Path;

/// Rows of x that are multiplied together at most.
pub(super) const ROWS: usize = 12;
/// Columns of y in a strip.
pub(super) const STRIP: usize = 32;

/// `sums[r][c] = Σ x · w` for a group of rows and a strip: `x` has a word of four numbers without a sign for
/// each unit and row, `w` one with a sign for each unit and column.
///
/// # Safety
/// The CPU has the path's instructions, and the words are there.
pub(super) unsafe fn multiply(path: Path, units: usize, x: *const u32, w: *const u32, sums: &mut [[i32; STRIP]; ROWS]) {
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match path {
            Path::Avx512 if is_x86_feature_detected!("avx512vnni") => return x86_64::by_vnni(units, x, w, sums),
            Path::Avx512 | Path::Avx2 => return x86_64::by_avx2(units, x, w, sums),
            _ => {}
        }
    }
    let _ = path;
    for unit in 0..units {
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = unsafe { *x.add(unit * ROWS + row) }.to_le_bytes();
            for (column, sum) in sums.iter_mut().enumerate() {
                let w = unsafe { *w.add(unit * STRIP + column) }.to_le_bytes();
                *sum += x.iter().zip(w).map(|(&x, w)| i32::from(x) * i32::from(w as i8)).sum::<i32>();
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::{ROWS, STRIP};

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn by_vnni(units: usize, x: *const u32, w: *const u32, sums: &mut [[i32; STRIP]; ROWS]) {
        let mut all = [[_mm512_setzero_si512(); 2]; ROWS];
        for unit in 0..units {
            let w = [0, 16].map(|half| unsafe { _mm512_loadu_si512(w.add(unit * STRIP + half).cast()) });
            for row in 0..ROWS {
                let x = _mm512_set1_epi32(unsafe { *x.add(unit * ROWS + row) } as i32);
                for half in 0..2 {
                    all[row][half] = _mm512_dpbusd_epi32(all[row][half], x, w[half]);
                }
            }
        }
        for (all, sums) in all.iter().zip(sums) {
            for half in 0..2 {
                unsafe { _mm512_storeu_si512(sums.as_mut_ptr().add(16 * half).cast(), all[half]) };
            }
        }
    }

    /// Four rows by eight columns at a time: even and odd bytes apart, as sums of two products fit 32 bits and
    /// not 16.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn by_avx2(units: usize, x: *const u32, w: *const u32, sums: &mut [[i32; STRIP]; ROWS]) {
        const GROUP: usize = 4;
        for column in (0..STRIP).step_by(8) {
            for row in (0..ROWS).step_by(GROUP) {
                let mut all = [_mm256_setzero_si256(); GROUP];
                for unit in 0..units {
                    let w = unsafe { _mm256_loadu_si256(w.add(unit * STRIP + column).cast()) };
                    let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
                    let odd = _mm256_srai_epi16::<8>(w);
                    for (index, all) in all.iter_mut().enumerate() {
                        let x = unsafe { *x.add(unit * ROWS + row + index) };
                        let x_even = _mm256_set1_epi32((x & 0x00ff_00ff) as i32);
                        let x_odd = _mm256_set1_epi32((x >> 8 & 0x00ff_00ff) as i32);
                        let two = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
                        *all = _mm256_add_epi32(*all, two);
                    }
                }
                for (index, all) in all.into_iter().enumerate() {
                    unsafe { _mm256_storeu_si256(sums[row + index].as_mut_ptr().add(column).cast(), all) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At the ends of the range, where sums of 16 bits would overflow.
    #[test]
    fn every_path_gives_the_same_sums() {
        let units = 75;
        let number = |at: usize| [0u8, 255, 128, 127, 129, 1, 254, 3][(at * 7 % 8) ^ (at / 8 % 8)];
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| number(4 * at + byte)));
        let x: Vec<u32> = (0..units * ROWS).map(word).collect();
        let w: Vec<u32> = (0..units * STRIP).map(|at| word(at + 5)).collect();
        let run = |path| {
            let mut sums = [[0; STRIP]; ROWS];
            unsafe { multiply(path, units, x.as_ptr(), w.as_ptr(), &mut sums) };
            sums
        };
        let expected = run(Path::Portable);
        assert!(expected.iter().flatten().any(|&sum| sum > 1 << 20));
        #[cfg(target_arch = "x86_64")]
        {
            let best = Path::of_this_cpu(super::super::path::Compute::Float32);
            for path in [best, Path::Avx2] {
                if best != Path::Portable {
                    assert!(run(path) == expected, "{path:?}");
                }
            }
        }
    }
}
