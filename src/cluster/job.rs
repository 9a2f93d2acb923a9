//! This process's place in a job of several ranks, and how such a job ends: as a whole, with one message.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, panic};

use super::ranks;
use crate::console::{Grade, complain_of};

/// Seconds that a rank waits for another before it ends the job.
const DEADLINE: u64 = 1800;
/// Overrules it, in seconds.
const DEADLINE_VARIABLE: &str = "LLMCLS_RANK_TIMEOUT";

/// A rank of a job.
#[derive(Debug)]
pub struct Member {
    /// Its number, from 0.
    pub rank: usize,
    /// Where each rank runs.
    pub hosts: Vec<String>,
}

impl Member {
    /// How many ranks run on this machine, and how many of them come before this one.
    #[must_use]
    pub fn on_this_host(&self) -> (usize, usize) {
        let here = |ranks: &[String]| ranks.iter().filter(|host| **host == self.hosts[self.rank]).count();
        (here(&self.hosts), here(&self.hosts[..self.rank]))
    }

    fn name(&self, rank: usize) -> String {
        format!("rank {rank} on {}", self.hosts[rank])
    }
}

static MEMBER: OnceLock<Member> = OnceLock::new();

/// For whom this process waits, and since when.
static WAIT: Mutex<Option<(Instant, Option<usize>)>> = Mutex::new(None);

/// This process as a rank, if there are several.
#[must_use]
pub fn member() -> Option<&'static Member> {
    MEMBER.get()
}

/// How many processes a launcher started together, if more than one: Open MPI, MPICH and its kin, Slurm.
pub(super) fn launched() -> Option<usize> {
    let number = |name: &str| env::var(name).ok()?.parse::<usize>().ok();
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"]
        .into_iter()
        .find_map(number)
        .filter(|&processes| processes > 1)
}

/// This machine's name.
pub(super) fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| env::var("HOSTNAME").ok());
    name.map_or_else(|| "unknown host".to_owned(), |name| name.trim().to_owned())
}

/// From here on this process is one rank of several.
pub(super) fn begin(rank: usize, hosts: Vec<String>) {
    if MEMBER.set(Member { rank, hosts }).is_err() {
        return;
    }
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        ranks::abort(101);
    }));
    let deadline = env::var(DEADLINE_VARIABLE).ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(DEADLINE);
    let watch = move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            let wait = *WAIT.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((since, on)) = wait.filter(|(since, _)| since.elapsed().as_secs() >= deadline) else { continue };
            give_up(since.elapsed(), on);
        }
    };
    // Without the watch a rank that hangs is waited for, as by any other MPI program.
    let _ = thread::Builder::new().name("watch".into()).spawn(watch);
}

/// Ends the job because a rank does not answer.
fn give_up(waited: Duration, on: Option<usize>) -> ! {
    let whom = match (member(), on) {
        (Some(member), Some(rank)) => member.name(rank),
        _ => "another rank".to_owned(),
    };
    fail(&format!(
        "waited {} s for {whom}, which hangs, or computes longer than {DEADLINE_VARIABLE} allows: ending all ranks; the \
         last checkpoint stands",
        waited.as_secs()
    ));
    ranks::abort(crate::exit::FAILURE)
}

/// Runs `f`, which waits for one rank of the job.
pub(super) fn while_waiting_for<T>(rank: usize, f: impl FnOnce() -> T) -> T {
    waiting(Some(rank), f)
}

/// Runs `f`, which waits for all ranks of a group.
pub(super) fn while_waiting_for_all<T>(f: impl FnOnce() -> T) -> T {
    waiting(None, f)
}

fn waiting<T>(on: Option<usize>, f: impl FnOnce() -> T) -> T {
    let set = |wait| *WAIT.lock().unwrap_or_else(PoisonError::into_inner) = wait;
    set(Some((Instant::now(), on)));
    let result = f();
    set(None);
    result
}

/// Reports the failure of this rank, or of the whole process if it is alone.
pub fn fail(message: &str) {
    /// Most failures come to all ranks alike: rank 0 reports them, and ends the others meanwhile.
    const PATIENCE: Duration = Duration::from_secs(2);
    match member() {
        None => complain_of(Grade::Error, message),
        Some(member) => {
            if member.rank > 0 {
                thread::sleep(PATIENCE);
            }
            complain_of(Grade::Error, format!("{}: {message}", member.name(member.rank)));
        }
    }
}

/// Ends a job of several ranks, whatever they do; a process alone goes on and gets `status` back.
#[must_use]
pub fn end_all(status: u8) -> u8 {
    if member().is_some() { ranks::abort(status) } else { status }
}

/// Ends this process's part of a job: `status` is 0 or that of a signal that all ranks have agreed on, or the job is
/// ended for all.
pub fn end(status: u8) {
    match member() {
        None => {}
        Some(_) if status == 0 || status > 128 => ranks::finish(),
        Some(_) => ranks::abort(status),
    }
}
