//! Ranks of an MPI job, over the machine's MPI library.
//!
//! MPI's own error handler ends the job, so that calls do not fail here.

use std::cell::RefCell;

use ::mpi::collective::CommunicatorCollectives;
use ::mpi::datatype::PartitionMut;
use ::mpi::environment::{self, Universe};
use ::mpi::topology::{Color, SimpleCommunicator};
use ::mpi::traits::{Communicator, Destination, Root, Source};
use ::mpi::{Count, Rank, Threading};
use anyhow::{Context, Result};

/// Elements of one message: MPI counts them in a C `int`.
const MESSAGE: usize = 1 << 28;

thread_local! {
    /// Lives as long as the job, on the thread that makes all calls.
    static UNIVERSE: RefCell<Option<Universe>> = const { RefCell::new(None) };
}

/// A communicator, and where its ranks stand in the whole job.
pub(super) struct Ranks {
    communicator: SimpleCommunicator,
    in_job: Vec<usize>,
}

impl Ranks {
    pub(super) fn start() -> Result<Self> {
        // The watch ends the job from a thread of its own.
        let (universe, _) = environment::initialize_with_threading(Threading::Multiple).context("it runs already")?;
        let communicator = universe.world();
        let size = usize::try_from(communicator.size())?;
        UNIVERSE.with(|kept| kept.replace(Some(universe)));
        Ok(Self { communicator, in_job: (0..size).collect() })
    }

    pub(super) fn rank(&self) -> usize {
        self.communicator.rank() as usize
    }

    pub(super) fn size(&self) -> usize {
        self.in_job.len()
    }

    pub(super) fn in_job(&self, rank: usize) -> usize {
        self.in_job[rank]
    }

    pub(super) fn split(&self, part: usize) -> Self {
        let color = Color::with_value(part as i32);
        let communicator = self.communicator.split_by_color(color).expect("every rank has a part");
        let own = [self.in_job[self.rank()] as u64];
        let mut all = vec![0u64; communicator.size() as usize];
        communicator.all_gather_into(&own[..], &mut all[..]);
        Self { communicator, in_job: all.into_iter().map(|rank| rank as usize).collect() }
    }

    pub(super) fn send(&self, numbers: &[f32], to: usize) {
        let process = self.communicator.process_at_rank(to as Rank);
        numbers.chunks(MESSAGE).for_each(|part| process.send(part));
    }

    pub(super) fn receive(&self, numbers: &mut [f32], from: usize) {
        let process = self.communicator.process_at_rank(from as Rank);
        for part in numbers.chunks_mut(MESSAGE) {
            process.receive_into(part);
        }
    }

    pub(super) fn broadcast(&self, numbers: &mut [f32]) {
        let leader = self.communicator.process_at_rank(0);
        numbers.chunks_mut(MESSAGE).for_each(|part| leader.broadcast_into(part));
    }

    pub(super) fn broadcast_bytes(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let leader = self.communicator.process_at_rank(0);
        let mut len = [bytes.len() as u64];
        leader.broadcast_into(&mut len[..]);
        bytes.resize(len[0] as usize, 0);
        bytes.chunks_mut(MESSAGE).for_each(|part| leader.broadcast_into(part));
        bytes
    }

    pub(super) fn gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let own = [bytes.len() as u64];
        let mut lengths = vec![0u64; self.size()];
        self.communicator.all_gather_into(&own[..], &mut lengths[..]);
        let total = lengths.iter().sum::<u64>() as usize;
        if total > MESSAGE {
            return (0..self.size()).map(|rank| self.bytes_of(rank, lengths[rank], bytes)).collect();
        }
        let counts: Vec<Count> = lengths.iter().map(|&len| len as Count).collect();
        let starts: Vec<Count> = counts
            .iter()
            .scan(0, |sum, count| {
                *sum += count;
                Some(*sum - count)
            })
            .collect();
        let mut all = vec![0u8; total];
        let mut parts = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
        self.communicator.all_gather_varcount_into(bytes, &mut parts);
        let mut rest = &all[..];
        let split = |&len: &u64| {
            let (part, after) = rest.split_at(len as usize);
            rest = after;
            part.to_vec()
        };
        lengths.iter().map(split).collect()
    }

    /// One rank's bytes, for all, in parts.
    fn bytes_of(&self, rank: usize, len: u64, own: &[u8]) -> Vec<u8> {
        let mut bytes = if rank == self.rank() { own.to_vec() } else { vec![0; len as usize] };
        let process = self.communicator.process_at_rank(rank as Rank);
        bytes.chunks_mut(MESSAGE).for_each(|part| process.broadcast_into(part));
        bytes
    }
}

/// Ends all ranks.
pub(super) fn abort(status: u8) -> ! {
    if environment::is_initialized() && !environment::is_finalized() {
        SimpleCommunicator::world().abort(status.into());
    }
    std::process::exit(status.into())
}

/// Leaves the job, once all ranks do.
pub(super) fn finish() {
    UNIVERSE.with(|kept| kept.take());
}
