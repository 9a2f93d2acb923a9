//! Libraries that panic on damaged files: that is an error of the file, and nothing for the terminal.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; none if it panics, of which nothing is printed.
pub fn caught<T>(f: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_CAUGHT.get() {
                report(panic);
            }
        }));
    });
    let before = IS_CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    IS_CAUGHT.set(before);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_and_the_thread_goes_on() {
        assert_eq!(caught(|| caught(|| panic!("inside")).unwrap_or(1) + 1), Some(2));
        assert_eq!(caught(|| -> u8 { panic!("outside") }), None);
        assert!(!IS_CAUGHT.get());
    }
}
