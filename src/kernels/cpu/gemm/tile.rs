//! Weights, packed tile by tile: strips of a few columns of y, unit by unit along k.

#![expect(unsafe_code, reason = "packed words are reached by raw pointers")]

use std::cell::RefCell;
use std::ops::Range;

use super::kernel::{Kernel, Number, Words};
use super::weights::{Direction, Weights};

/// Columns of y that one tile of weights serves at most: in blocks of 256 units, 256 KiB of L2.
pub(super) const COLUMNS: usize = 256;

/// Rows of weights that are fetched ahead.
const AHEAD: usize = 8;

thread_local! {
    static TILE: RefCell<Words> = const { RefCell::new(Words::NONE) };
}

/// Calls `f` with a buffer of this thread.
pub(super) fn with_buffer<R>(words: usize, f: impl FnOnce(&mut [u32]) -> R) -> R {
    TILE.with_borrow_mut(|tile| f(tile.of(words)))
}

/// Packs some terms of the chains of some columns of y, at most [`COLUMNS`]. Strips are `strip_words`
/// apart.
pub(super) fn pack<K: Kernel>(
    weights: &Weights<'_>,
    columns: Range<usize>,
    terms: Range<usize>,
    to: &mut [u32],
    strip_words: usize,
) {
    let strips = columns.len().div_ceil(K::STRIP);
    let units = terms.len().div_ceil(K::TERMS);
    assert!(columns.len() <= COLUMNS.next_multiple_of(K::STRIP) && columns.end <= weights.outputs());
    assert!(terms.end <= weights.depth() && !columns.is_empty());
    assert!((strips - 1) * strip_words + units * K::WORDS * K::STRIP <= to.len());
    let to = to.as_mut_ptr();
    K::Number::with_buffer(16 * terms.len().max(columns.len()), |buffer| match weights.direction {
        Direction::Forward => {
            // Decoded lines are in the cache already.
            let ahead = if K::in_place(weights.source).is_some() { 16 * weights.stride } else { 0 };
            for group in (0..strips * K::STRIP).step_by(16) {
                let rows = (columns.start + group).min(columns.end)..(columns.start + group + 16).min(columns.end);
                let count = rows.len();
                let lines = lines::<K>(weights, rows, terms.clone(), buffer);
                // SAFETY: a kernel is chosen only where the CPU has its instructions; the assertions above.
                unsafe {
                    let to = to.add(group / K::STRIP * strip_words + group % K::STRIP);
                    K::transpose(to, K::STRIP, 16, &lines[..count], terms.len(), ahead);
                }
            }
        }
        Direction::Backward => {
            for k in terms.clone().step_by(K::TERMS) {
                for row in k + AHEAD..k + AHEAD + K::TERMS {
                    prefetch::<K>(weights, row, &columns);
                }
                let rows = k..(k + K::TERMS).min(terms.end);
                // The second of a pair that lacks it is zeros, at the buffer's end.
                let zeros = 15 * columns.len();
                if rows.len() < K::TERMS {
                    buffer[zeros..][..columns.len()].fill(K::Number::default());
                }
                let mut pair = lines::<K>(weights, rows.clone(), columns.clone(), buffer);
                if rows.len() < K::TERMS {
                    pair[1] = buffer[zeros..].as_ptr();
                }
                // SAFETY: as above.
                unsafe {
                    let to = to.add((k - terms.start) / K::TERMS * K::WORDS * K::STRIP);
                    K::interleave(to, strip_words, [pair[0], pair[1]], columns.len());
                }
            }
        }
    });
}

/// Where the lines of a block of at most sixteen rows start: in place, or decoded.
fn lines<K: Kernel>(
    weights: &Weights<'_>,
    rows: Range<usize>,
    columns: Range<usize>,
    buffer: &mut [K::Number],
) -> [*const K::Number; 16] {
    let mut lines = [std::ptr::null(); 16];
    let in_place = K::in_place(weights.source);
    for ((line, row), buffer) in lines.iter_mut().zip(rows).zip(buffer.chunks_exact_mut(columns.len())) {
        let first = row * weights.stride + columns.start;
        *line = match in_place {
            Some(data) => data[first..][..columns.len()].as_ptr(),
            None => {
                K::read(weights.source, first, buffer);
                buffer.as_ptr()
            }
        };
    }
    lines
}

/// Asks for the cache lines of a part of a row: the CPU does not see such short runs coming.
fn prefetch<K: Kernel>(weights: &Weights<'_>, row: usize, columns: &Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(data) = K::in_place(weights.source)
        && row < weights.rows
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in data[row * weights.stride..][columns.clone()].chunks(64 / size_of::<K::Number>()) {
            // SAFETY: every x86-64 CPU has it, and it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (weights, row, columns);
}
