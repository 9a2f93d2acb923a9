//! Keys that requests bear.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::secret;

/// Digests of the keys: compared in the same time whatever a request bears.
#[derive(Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Reads keys, one a line; blank lines are none.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let keys = text.lines().map(str::trim).filter(|key| !key.is_empty());
        Self(keys.inspect(|key| secret::remember(key)).map(|key| Sha256::digest(key).into()).collect())
    }

    /// Returns true if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds keys.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Returns true if this is one of the keys.
    #[must_use]
    pub fn accept(&self, key: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        // Every key is compared: the time tells nothing of which one it was.
        let equal = |found, known: &[u8; 32]| found | known.as_slice().ct_eq(digest.as_slice());
        self.0.iter().fold(Choice::from(0), equal).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_the_keys_is_accepted_and_nothing_near_them() {
        let keys = Keys::read("  first-key \n\nsecond-key\n");
        assert!(keys.accept("first-key") && keys.accept("second-key"));
        for wrong in ["", "first-ke", "first-key ", "First-key", "first-key\nsecond-key"] {
            assert!(!keys.accept(wrong), "{wrong}");
        }
        assert!(Keys::read(" \n").is_empty() && !Keys::default().accept(""));
    }
}
