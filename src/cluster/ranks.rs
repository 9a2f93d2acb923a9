//! The ranks of a job, in a build with MPI or without.

#[cfg(feature = "mpi")]
pub(super) use super::mpi::{Ranks, abort, finish};
#[cfg(not(feature = "mpi"))]
pub(super) use super::without_mpi::{Ranks, abort, finish};
