//! Which device computes.

use anyhow::{Result, bail, ensure};

/// Checks `--device`: `auto`, `cpu`, `cuda` or `cuda:<n>`.
///
/// # Errors
/// If the device is not one that this build can use.
pub fn choose(name: &str) -> Result<()> {
    match name.split_once(':').unwrap_or((name, "0")) {
        ("auto" | "cpu", _) if !name.contains(':') => Ok(()),
        ("cuda", index) => {
            ensure!(index.parse::<u32>().is_ok(), "--device {name}: expected cuda:<n> with a device number");
            bail!("--device {name}: this build of llmcls computes on the CPU only; use --device cpu, or leave it out")
        }
        _ => bail!("--device {name}: expected auto, cpu, cuda or cuda:<n>"),
    }
}

/// Starts the pool of worker threads; 0 means one a core.
///
/// # Errors
/// If the system refuses the threads.
pub fn start_threads(threads: usize) -> Result<()> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}

/// The CPU's name, where the system tells.
#[must_use]
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
