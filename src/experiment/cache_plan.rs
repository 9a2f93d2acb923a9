//! The size and the place of a cache of frozen layers.

use std::path::PathBuf;

use serde::Serialize;

/// What a cache of the frozen layers' output will take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachePlan {
    /// Layers before the first adapter.
    pub frozen_layers: usize,
    /// Bytes of all splits.
    pub bytes: u64,
    /// The most that the directory may take.
    pub limit: u64,
    /// Where it is; none: in memory.
    pub directory: Option<PathBuf>,
}
