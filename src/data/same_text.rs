//! When two texts count as the same: they differ in case and white space alone.
//!
//! Equal texts stay on one side of a split, and one that stands in two splits is reported; both by this rule.

use std::hash::{DefaultHasher, Hasher};

/// Stands for a text and all that are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextKey(u64, u64);

impl TextKey {
    /// The key of a text; `None` if it is blank.
    ///
    /// 128 bits of a hash, so that the texts themselves need not be held: no two of any data set agree by chance.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let mut folded = String::with_capacity(text.len());
        for word in text.split_whitespace() {
            if !folded.is_empty() {
                folded.push(' ');
            }
            match word.is_ascii() {
                true => folded.extend(word.chars().map(|letter| letter.to_ascii_lowercase())),
                false => folded.push_str(&word.to_lowercase()),
            }
        }
        let hash = |prefix: u8| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u8(prefix);
            hasher.write(folded.as_bytes());
            hasher.finish()
        };
        (!folded.is_empty()).then(|| Self(hash(1), hash(2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_white_space_do_not_count_and_all_else_does() {
        let key = TextKey::of("Grüße aus  KÖLN").unwrap();
        for same in ["grüße aus köln", " GRÜßE\taus\nKöln ", "Grüße\u{a0}aus Köln"] {
            assert_eq!(TextKey::of(same), Some(key), "{same:?}");
        }
        for other in ["Grüße ausKöln", "Grüsse aus Köln", "Grüße aus Köln.", "Grüße aus"] {
            assert_ne!(TextKey::of(other), Some(key), "{other:?}");
        }
        assert_eq!(TextKey::of(" \n"), None);
    }
}
