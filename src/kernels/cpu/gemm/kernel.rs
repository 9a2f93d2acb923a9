//! What one instruction set does differently.

#![expect(unsafe_code, reason = "packed words are reached by raw pointers")]

use std::cell::RefCell;

use super::weights::Source;

/// Units of a chain done before the next columns: a panel of 14 rows takes 14 KiB of L1.
pub(super) const DEPTH: usize = 256;

/// An instruction set for one kind of number.
///
/// Packed operands are made of units: `TERMS` neighbours along k in `WORDS` words of 32 bits.
///
/// # Safety
/// Every unsafe function needs the CPU to have the instruction set, and pointers to as much as it is
/// told.
pub(super) trait Kernel: Copy + Send + Sync {
    /// What numbers are before they are packed.
    type Number: Number;
    /// Rows of x in a panel at most.
    const ROWS: usize;
    /// Columns of y in a strip of packed weights: a multiple of 16.
    const STRIP: usize;
    /// Neighbours along k that are packed together: 1 or 2.
    const TERMS: usize;
    /// Words that these take.
    const WORDS: usize;

    /// Whether [`Kernel::panel`] can read strips where they lie, with units further apart than a strip.
    const READS_STRIDED: bool = false;

    /// Whether there is [`Kernel::panel_of_rows`].
    const READS_ROWS: bool = false;

    /// Rows that a panel of `rows` is padded to.
    fn panel_width(rows: usize) -> usize {
        rows
    }

    /// The stored numbers, if they can be packed as they are.
    fn in_place(source: Source<'_>) -> Option<&[Self::Number]>;

    /// The stored numbers from flat index `first` on.
    fn read(source: Source<'_>, first: usize, to: &mut [Self::Number]);

    /// Numbers of x.
    fn narrow(to: &mut [Self::Number], from: &[f32]);

    /// Packs up to sixteen lines along k into the first `lanes` of `width` columns, and fetches what
    /// stands `ahead` numbers behind them. It may write up to seven words more.
    unsafe fn transpose(
        to: *mut u32,
        width: usize,
        lanes: usize,
        lines: &[*const Self::Number],
        len: usize,
        ahead: usize,
    );

    /// Packs the `TERMS` first of two lines that are neighbours along k, cutting them into strips.
    unsafe fn interleave(to: *mut u32, strip_words: usize, lines: [*const Self::Number; 2], columns: usize);

    /// Packs `len` rows of `lanes` numbers, `stride` apart, times `scale`: a panel of a matrix that lies
    /// with its columns end to end. Only for f32.
    unsafe fn copy_columns(to: *mut u32, lanes: usize, from: *const f32, stride: usize, len: usize, scale: f32) {
        for k in 0..len {
            for lane in 0..lanes {
                unsafe { *to.cast::<f32>().add(k * lanes + lane) = scale * *from.add(k * stride + lane) };
            }
        }
    }

    /// Multiplies a panel by every strip.
    unsafe fn panel(rows: usize, units: usize, x: *const u32, strips: &Strips);

    /// The same for rows of x where they lie, `stride` apart: where x is read too seldom to
    /// be packed.
    unsafe fn panel_of_rows(_rows: usize, _units: usize, _x: *const f32, _stride: usize, _strips: &Strips) {
        unreachable!("only kernels that read rows where they lie are asked to")
    }
}

/// A number before it is packed.
pub(super) trait Number: Copy + Default + Send + Sync + 'static {
    /// Calls `f` with a buffer of this thread, at least `len` long: what it holds is left from before.
    fn with_buffer<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Number for $number {
            fn with_buffer<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
                thread_local! {
                    static BUFFER: RefCell<Vec<$number>> = const { RefCell::new(Vec::new()) };
                }
                BUFFER.with_borrow_mut(|buffer| {
                    buffer.resize(buffer.len().max(len), <$number>::default());
                    f(buffer)
                })
            }
        }
    )*};
}
numbers!(f32, u16);

/// Packed weights and the part of y that they make.
pub(super) struct Strips {
    pub(super) weights: *const u32,
    /// Words from one strip to the next.
    pub(super) strip_words: usize,
    /// Words from one unit to the next: a strip's columns, unless it lies in a larger matrix.
    pub(super) unit_words: usize,
    /// Columns of a strip.
    pub(super) strip: usize,
    /// Columns of y; the last strip may be narrower.
    pub(super) columns: usize,
    /// The first row's first column.
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
    /// Whether the chains start at y instead of zero.
    pub(super) add: bool,
}

impl Strips {
    pub(super) fn count(&self) -> usize {
        self.columns.div_ceil(self.strip)
    }
}

/// Words that start at a cache line: a load or store of 64 bytes must not straddle two.
#[derive(Default)]
pub(super) struct Words(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Words {
    pub(super) const NONE: Self = Self(Vec::new());

    /// At least `len` words: what they hold is left from before.
    pub(super) fn of(&mut self, len: usize) -> &mut [u32] {
        if self.0.len() * 16 < len {
            self.0.resize(len.div_ceil(16), Line([0; 16]));
        }
        // SAFETY: a line is sixteen words without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }

    pub(super) fn as_ptr(&self) -> *const u32 {
        self.0.as_ptr().cast()
    }

    pub(super) fn bytes(&self) -> usize {
        64 * self.0.len()
    }
}

/// A pointer that threads share; each writes its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub(super) *mut T);

// SAFETY: whoever makes one gives each thread a part of its own.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn get(self) -> *mut T {
        self.0
    }
}
