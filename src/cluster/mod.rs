//! The processes that share a job: one alone, or the ranks of an MPI job.
//!
//! Every rank runs the same program on the same inputs. They meet in the calls of a [`Group`], which all of its
//! ranks must make in the same order. Rank 0 leads: it alone writes a run's files and messages. Nothing here adds numbers,
//! so no result depends on how MPI orders its sums.

mod job;
#[cfg(feature = "mpi")]
mod mpi;
mod ranks;
#[cfg(not(feature = "mpi"))]
mod without_mpi;

use std::ops::Range;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::interrupt::{self, Interrupted};
pub use job::{Member, end, end_all, fail, member};
use ranks::Ranks;

/// The processes that share a piece of work.
pub struct Group(Option<Ranks>);

/// Whether this build can start as one rank of several.
pub const HAS_MPI: bool = cfg!(feature = "mpi");

impl Group {
    /// This process alone.
    #[must_use]
    pub fn alone() -> Self {
        Self(None)
    }

    /// All processes that `mpirun` or `srun` started with this one; this one alone if there are none.
    ///
    /// # Errors
    /// If there are others, and this build or its MPI library cannot reach them.
    pub fn open() -> Result<Self> {
        let Some(launched) = job::launched() else { return Ok(Self::alone()) };
        if !HAS_MPI {
            bail!(
                "{launched} processes were started together, but this llmcls is built without MPI, so each would do \
                 the whole job alone; build it with `cargo build --release --features mpi`, or start one process"
            );
        }
        let ranks = Ranks::start().context("MPI does not start")?;
        if ranks.size() != launched {
            bail!(
                "{launched} processes were started together, but the MPI library that llmcls is linked to finds {}: \
                 mpirun or srun belongs to another MPI library; use the one llmcls was built with",
                ranks.size()
            );
        }
        let group = Self(Some(ranks));
        let hosts = group.gather(&job::host())?;
        job::begin(group.rank(), hosts);
        Ok(group)
    }

    /// This process's number in the group, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, Ranks::rank)
    }

    /// How many processes there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, Ranks::size)
    }

    /// Whether this process writes the files.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.rank() == 0
    }

    /// Splits the group into `parts` of consecutive ranks; returns this process's part and that part's number.
    #[must_use]
    pub fn split(&self, parts: usize) -> (Self, usize) {
        let part = (0..parts).find(|&part| share(part, parts, self.size()).contains(&self.rank())).unwrap_or(0);
        (Self(self.0.as_ref().map(|ranks| ranks.split(part))), part)
    }

    /// Sends numbers to a rank that receives them.
    pub fn send(&self, numbers: &[f32], to: usize) {
        if let Some(ranks) = &self.0 {
            job::while_waiting_for(ranks.in_job(to), || ranks.send(numbers, to));
        }
    }

    /// Receives numbers that a rank sends.
    pub fn receive(&self, numbers: &mut [f32], from: usize) {
        if let Some(ranks) = &self.0 {
            job::while_waiting_for(ranks.in_job(from), || ranks.receive(numbers, from));
        }
    }

    /// Gives rank 0's numbers to all.
    pub fn broadcast(&self, numbers: &mut [f32]) {
        if let Some(ranks) = &self.0 {
            job::while_waiting_for(ranks.in_job(0), || ranks.broadcast(numbers));
        }
    }

    /// Gives rank 0's bytes to all; the others' are ignored.
    #[must_use]
    pub fn broadcast_bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.0 {
            None => bytes,
            Some(ranks) => job::while_waiting_for(ranks.in_job(0), || ranks.broadcast_bytes(bytes)),
        }
    }

    /// Gives everyone's bytes to all, by rank.
    #[must_use]
    pub fn gather_bytes(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        match &self.0 {
            None => vec![bytes],
            Some(ranks) => job::while_waiting_for_all(|| ranks.gather_bytes(&bytes)),
        }
    }

    /// Gives rank 0's value to all: `value` runs on rank 0 alone.
    ///
    /// # Errors
    /// If `value` fails, on rank 0 only: the job must end then.
    pub fn from_leader<T: Serialize + DeserializeOwned>(&self, value: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.size() == 1 {
            return value();
        }
        let bytes = if self.is_leader() { serde_json::to_vec(&value()?)? } else { Vec::new() };
        Ok(serde_json::from_slice(&self.broadcast_bytes(bytes))?)
    }

    /// Gives everyone's value to all, by rank.
    ///
    /// # Errors
    /// If a value cannot be written as JSON.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, value: &T) -> Result<Vec<T>> {
        let all = self.gather_bytes(serde_json::to_vec(value)?);
        all.iter().map(|bytes| Ok(serde_json::from_slice(bytes)?)).collect()
    }

    /// Whether a signal has come to any of the ranks: all of them learn of it in the same call.
    ///
    /// # Errors
    /// [`Interrupted`], if one has.
    pub fn check_interrupt(&self) -> Result<(), Interrupted> {
        let own = interrupt::check();
        if self.size() == 1 {
            return own;
        }
        let signal = own.err().map_or(0, Interrupted::signal);
        let signals = self.gather_bytes(vec![signal]);
        match signals.into_iter().flatten().max().unwrap_or(0) {
            0 => Ok(()),
            signal => Err(Interrupted::by(signal)),
        }
    }

    /// The part of `count` things that is this process's.
    #[must_use]
    pub fn share(&self, count: usize) -> Range<usize> {
        share(self.rank(), self.size(), count)
    }
}

/// The things of `count` that one of `parts` gets: consecutive, no part has two more than another, and the first
/// thing is the first part's.
#[must_use]
pub fn share(part: usize, parts: usize, count: usize) -> Range<usize> {
    (part * count).div_ceil(parts)..((part + 1) * count).div_ceil(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once_and_are_even() {
        for parts in 1..9 {
            for count in 0..40 {
                let shares: Vec<_> = (0..parts).map(|part| share(part, parts, count)).collect();
                assert_eq!(shares[0].start, 0);
                assert_eq!(shares[0].is_empty(), count == 0, "a sum over a tree ends where its first leaf is");
                assert_eq!(shares[parts - 1].end, count);
                assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
                let sizes = shares.iter().map(ExactSizeIterator::len);
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn a_process_alone_leads_and_keeps_its_values() {
        let group = Group::alone();
        assert!(group.is_leader());
        assert_eq!(group.gather(&3).unwrap(), [3]);
        assert_eq!(group.from_leader(|| Ok("x".to_owned())).unwrap(), "x");
        assert_eq!(group.share(5), 0..5);
    }
}
