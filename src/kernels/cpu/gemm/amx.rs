//! bf16 by AMX's tiles: over the strips of the AVX-512 path, off unless `LLMCLS_AMX=1`.
//!
//! **Never run on a CPU that has it**: no machine at hand does. The tests run everything but the tile
//! instructions, which they replace by their definition.
//!
//! Its order of sums is its own, so its results differ from those of the other paths in the last bits,
//! and a run that used it can be repeated bit for bit only with it. By the manual, `TDPBF16PS` sums 32
//! terms of a chain like this, each `+ ·` fused, denormals zero, and only then adds to the chain:
//!
//! ```text
//! even ← Σ x[2i] · w[2i];  odd ← Σ x[2i + 1] · w[2i + 1]      i ascending, from 0 to 15
//! c ← c + (even + odd)
//! ```
//! A chain's terms are taken 32 at a time from each block's start, filled up with zeros at its end.

#![expect(unsafe_code, reason = "tiles are reached by raw pointers")]

use std::arch::asm;

use super::avx512;
use super::kernel::{DEPTH, Kernel, Strips};
use super::weights::Source;

/// Rows and columns of words of a tile.
const TILE: usize = 16;
const STRIP: usize = 32;

/// bf16 with AMX-BF16.
#[derive(Clone, Copy)]
pub(super) struct Bfloat16;

impl Kernel for Bfloat16 {
    type Number = u16;
    const ROWS: usize = TILE;
    const STRIP: usize = STRIP;
    const TERMS: usize = 2;
    const WORDS: usize = 1;

    fn in_place(source: Source<'_>) -> Option<&[u16]> {
        avx512::Bfloat16::in_place(source)
    }

    fn read(source: Source<'_>, first: usize, to: &mut [u16]) {
        avx512::Bfloat16::read(source, first, to);
    }

    fn narrow(to: &mut [u16], from: &[f32]) {
        avx512::Bfloat16::narrow(to, from);
    }

    unsafe fn transpose(to: *mut u32, width: usize, lanes: usize, lines: &[*const u16], len: usize, ahead: usize) {
        unsafe { avx512::Bfloat16::transpose(to, width, lanes, lines, len, ahead) }
    }

    unsafe fn interleave(to: *mut u32, strip_words: usize, lines: [*const u16; 2], columns: usize) {
        unsafe { avx512::Bfloat16::interleave(to, strip_words, lines, columns) }
    }

    unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips) {
        unsafe { panel(rows, units, x, strips, by_tiles) }
    }
}

/// Sixteen rows of sixteen words: a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block([[u32; TILE]; TILE]);

/// The sums of two strips: each sixteen rows of 32.
#[repr(C, align(64))]
struct Sums([[[f32; STRIP]; TILE]; 2]);

/// `sums[s] += x · w[s]` for two strips, a block of 16 units at a time: `blocks` of x, and w 128 bytes
/// from unit to unit.
type Multiply = unsafe fn(blocks: &[Block], w: [*const u32; 2], sums: &mut Sums);

unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips, multiply: Multiply) {
    assert!(rows <= TILE && units <= DEPTH && strips.unit_words == STRIP, "a panel that does not fit tiles");
    let mut blocks = [Block([[0; TILE]; TILE]); DEPTH / TILE];
    for unit in 0..units {
        for row in 0..rows {
            blocks[unit / TILE].0[row][unit % TILE] = unsafe { *x.add(unit * rows + row) };
        }
    }
    let whole = units / TILE;
    for first in (0..strips.count()).step_by(2) {
        // Without a second strip the first is computed twice.
        let of = [first, (first + 1).min(strips.count() - 1)];
        let mut sums = Sums([[[0.0; STRIP]; TILE]; 2]);
        let row = |strip: usize, row: usize| {
            let columns = (strips.columns - strip * STRIP).min(STRIP);
            (strips.y.wrapping_add(row * strips.y_stride + strip * STRIP), columns)
        };
        if strips.add {
            for (sums, strip) in sums.0.iter_mut().zip(of) {
                for (index, sums) in sums.iter_mut().enumerate().take(rows) {
                    let (y, columns) = row(strip, index);
                    unsafe { std::ptr::copy_nonoverlapping(y, sums.as_mut_ptr(), columns) };
                }
            }
        }
        let weights = of.map(|strip| strips.weights.wrapping_add(strip * strips.strip_words));
        unsafe { multiply(&blocks[..whole], weights, &mut sums) };
        if !units.is_multiple_of(TILE) {
            // What stands behind the last unit is no weight.
            let mut last = [[0u32; TILE * STRIP]; 2];
            for (last, weights) in last.iter_mut().zip(weights) {
                let count = units % TILE * STRIP;
                unsafe { std::ptr::copy_nonoverlapping(weights.add(whole * TILE * STRIP), last.as_mut_ptr(), count) };
            }
            unsafe { multiply(&blocks[whole..=whole], [last[0].as_ptr(), last[1].as_ptr()], &mut sums) };
        }
        for (sums, strip) in sums.0.iter().zip(of) {
            for (index, sums) in sums.iter().enumerate().take(rows) {
                let (y, columns) = row(strip, index);
                unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), y, columns) };
            }
        }
    }
}

/// The 64 bytes that `LDTILECFG` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// All eight tiles with 16 rows of 64 bytes.
    const FULL: Self = Self {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };
}

/// In assembly, because the intrinsics are unstable: four tiles of sums, so that four chains are under way.
unsafe fn by_tiles(blocks: &[Block], w: [*const u32; 2], sums: &mut Sums) {
    if blocks.is_empty() {
        return;
    }
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{y} + {stride}]",
            "tileloadd tmm1, [{y} + {stride} + 64]",
            "tileloadd tmm2, [{y} + {stride} + 2048]",
            "tileloadd tmm3, [{y} + {stride} + 2112]",
            "2:",
            "tileloadd tmm4, [{x} + {dense}]",
            "tileloadd tmm5, [{w0} + {stride}]",
            "tileloadd tmm6, [{w0} + {stride} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tileloadd tmm5, [{w1} + {stride}]",
            "tileloadd tmm6, [{w1} + {stride} + 64]",
            "tdpbf16ps tmm2, tmm4, tmm5",
            "tdpbf16ps tmm3, tmm4, tmm6",
            "add {x}, 1024",
            "add {w0}, 2048",
            "add {w1}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{y} + {stride}], tmm0",
            "tilestored [{y} + {stride} + 64], tmm1",
            "tilestored [{y} + {stride} + 2048], tmm2",
            "tilestored [{y} + {stride} + 2112], tmm3",
            "tilerelease",
            config = in(reg) &TileConfig::FULL,
            y = in(reg) sums,
            // From row to row, of sums and of weights.
            stride = in(reg) 128usize,
            x = inout(reg) blocks.as_ptr() => _,
            dense = in(reg) 64usize,
            w0 = inout(reg) w[0] => _,
            w1 = inout(reg) w[1] => _,
            steps = inout(reg) blocks.len() => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::arithmetic::{dot_pair, round};
    use super::*;

    /// What the manual says that the tile instructions compute.
    unsafe fn by_definition(blocks: &[Block], w: [*const u32; 2], sums: &mut Sums) {
        for (index, block) in blocks.iter().enumerate() {
            for (sums, w) in sums.0.iter_mut().zip(w) {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let (mut even, mut odd) = (0.0, 0.0);
                        for unit in 0..TILE {
                            let x = block.0[row][unit];
                            let w = unsafe { *w.add((index * TILE + unit) * STRIP + column) };
                            even = dot_pair(even, [x as u16, 0], [w as u16, 0]);
                            odd = dot_pair(odd, [(x >> 16) as u16, 0], [(w >> 16) as u16, 0]);
                        }
                        *sum += even + odd;
                    }
                }
            }
        }
    }

    /// Small whole numbers, whose sums are exact in any order, at shapes that do not fill tiles.
    #[test]
    fn panels_by_tiles_match_plain_loops() {
        for (rows, units, columns) in [(16usize, 32usize, 64usize), (5, 19, 77), (1, 3, 9), (16, 256, 33)] {
            let number = |seed: usize| ((seed * 37 + seed / 7) % 15) as f32 - 7.0;
            let pair = |at: usize| u32::from(round(number(2 * at))) | u32::from(round(number(2 * at + 1))) << 16;
            let count = columns.div_ceil(STRIP);
            let x: Vec<u32> = (0..units * rows).map(pair).collect();
            // What stands behind the units would spoil every sum.
            let strip_words = (units + 16) * STRIP;
            let mut w = vec![0x7fc0_7fc0; count * strip_words];
            for strip in 0..count {
                for at in 0..units * STRIP {
                    w[strip * strip_words + at] = pair(1000 * strip + at);
                }
            }
            for add in [false, true] {
                let mut y = vec![3.0f32; rows * columns];
                let strips = Strips {
                    weights: w.as_ptr(),
                    strip_words,
                    unit_words: STRIP,
                    strip: STRIP,
                    columns,
                    y: y.as_mut_ptr(),
                    y_stride: columns,
                    add,
                };
                unsafe { panel(rows, units, x.as_ptr(), &strips, by_definition) };
                for (at, y) in y.iter().enumerate() {
                    let (row, column) = (at / columns, at % columns);
                    let of_x = |unit: usize, term: usize| number(2 * (unit * rows + row) + term);
                    let of_w = |unit: usize, term: usize| {
                        number(2 * (1000 * (column / STRIP) + unit * STRIP + column % STRIP) + term)
                    };
                    let terms = (0..units).flat_map(|unit| [0, 1].map(|term| of_x(unit, term) * of_w(unit, term)));
                    assert_eq!(*y, terms.sum::<f32>() + if add { 3.0 } else { 0.0 }, "{rows}, {units}: {at}");
                }
            }
        }
    }
}
