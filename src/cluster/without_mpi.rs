//! Ranks in a build without MPI: there are none.

use anyhow::{Result, bail};

/// No value of it can exist.
pub(super) enum Ranks {}

impl Ranks {
    pub(super) fn start() -> Result<Self> {
        bail!("llmcls is built without the feature `mpi`")
    }

    pub(super) fn rank(&self) -> usize {
        match *self {}
    }

    pub(super) fn size(&self) -> usize {
        match *self {}
    }

    pub(super) fn in_job(&self, _rank: usize) -> usize {
        match *self {}
    }

    pub(super) fn split(&self, _part: usize) -> Self {
        match *self {}
    }

    pub(super) fn send(&self, _numbers: &[f32], _to: usize) {
        match *self {}
    }

    pub(super) fn receive(&self, _numbers: &mut [f32], _from: usize) {
        match *self {}
    }

    pub(super) fn broadcast(&self, _numbers: &mut [f32]) {
        match *self {}
    }

    pub(super) fn broadcast_bytes(&self, _bytes: Vec<u8>) -> Vec<u8> {
        match *self {}
    }

    pub(super) fn gather_bytes(&self, _bytes: &[u8]) -> Vec<Vec<u8>> {
        match *self {}
    }
}

/// Ends all ranks.
pub(super) fn abort(status: u8) -> ! {
    std::process::exit(status.into())
}

/// Leaves the job.
pub(super) fn finish() {}
