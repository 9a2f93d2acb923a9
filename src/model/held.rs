//! Frozen matrices that outlive a classifier, so that the next one on the same base need not read them again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;

use super::weights::Weights;
use crate::kernels::matrix::FrozenMatrix;

/// The frozen matrices of one base in one storage on one device, by their names in the files.
#[derive(Default)]
pub struct HeldWeights(RefCell<HashMap<String, Arc<FrozenMatrix>>>);

impl HeldWeights {
    /// The matrix of a name: the one that is held, or a new one, which is held from now on.
    ///
    /// # Errors
    /// If `make` fails.
    pub(super) fn matrix(
        &self,
        name: &str,
        weights: &Weights,
        make: impl FnOnce() -> Result<FrozenMatrix>,
    ) -> Result<Arc<FrozenMatrix>> {
        if let Some(matrix) = self.0.borrow().get(name) {
            weights.pass();
            return Ok(Arc::clone(matrix));
        }
        let matrix = Arc::new(make()?);
        self.0.borrow_mut().insert(name.to_owned(), Arc::clone(&matrix));
        Ok(matrix)
    }
}
