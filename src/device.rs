//! Selection of the device that computes.

use anyhow::Result;

use crate::exit::Usage;

/// The stack of a thread that computes: such threads recurse no deeper than the main thread does.
pub const STACK_BYTES: usize = 8 << 20;

/// The value of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first GPU, if this build can use one and it is there, else the CPU.
    Auto,
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl Choice {
    /// Reads `auto`, `cpu`, `cuda` or `cuda:<n>`.
    pub fn parse(name: &str) -> Result<Self> {
        match name.split_once(':') {
            None if name == "auto" => Ok(Self::Auto),
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", index)) if index.parse::<u16>().is_ok() => Ok(Self::Cuda(index.parse()?)),
            Some(("cuda", _)) => Err(Usage(format!("--device {name}: expected cuda:<n> with a device number")).into()),
            _ => Err(Usage(format!("--device {name}: expected auto, cpu, cuda or cuda:<n>")).into()),
        }
    }
}

/// Starts the pool of worker threads; 0 means one a core.
///
/// The calling thread becomes one of them: what it computes then starts, and ends, without waking it up. A lone thread does
/// not, because others would wait for it while it waits for them.
pub fn start_threads(threads: usize) -> Result<()> {
    Ok(pool_of(threads).build_global()?)
}

/// A pool of its own for the calling thread, as [`start_threads`] makes one for all.
pub fn own_threads() -> Result<rayon::ThreadPool> {
    Ok(pool_of(rayon::current_num_threads()).build()?)
}

fn pool_of(threads: usize) -> rayon::ThreadPoolBuilder {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
    let is_alone =
        threads == 1 || threads == 0 && std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
    if is_alone { builder } else { builder.use_current_thread() }
}

/// The machine's cores, whichever of them this process may use.
#[must_use]
pub fn cores() -> usize {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let listed = info.lines().filter(|line| line.starts_with("processor")).count();
    if listed > 0 { listed } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

/// The CPU's name, where the system tells.
#[must_use]
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
