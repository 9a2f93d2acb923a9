//! Records the commit for `--version` and `environment.json`.
//!
//! With the feature `cuda`, compiles the kernels in `src/kernels/cuda` to PTX, which the driver compiles for
//! the card: for compute capability 8.0 and later, or for `CUDA_COMPUTE_CAP` alone.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    record_commit();
    #[cfg(feature = "cuda")]
    compile_kernels();
}

/// Sets `LLMCLS_VERSION`, and `LLMCLS_COMMIT` if it is known: given by a packager, or of this checkout.
fn record_commit() {
    println!("cargo::rerun-if-env-changed=LLMCLS_COMMIT");
    let version = env!("CARGO_PKG_VERSION");
    let commit = std::env::var("LLMCLS_COMMIT").ok().filter(|commit| !commit.is_empty()).or_else(commit_of_checkout);
    match commit {
        Some(commit) => {
            println!("cargo::rustc-env=LLMCLS_COMMIT={commit}");
            println!("cargo::rustc-env=LLMCLS_VERSION={version} ({})", &commit[..commit.len().min(9)]);
        }
        None => println!("cargo::rustc-env=LLMCLS_VERSION={version}"),
    }
}

/// None in a package, or where another project's checkout holds these sources.
fn commit_of_checkout() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let own = std::fs::canonicalize(std::env::var_os("CARGO_MANIFEST_DIR")?).ok()?;
    let top = std::fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()?;
    if top != own {
        return None;
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    // Changes with each commit and each checkout.
    println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    commit.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(commit)
}

#[cfg(feature = "cuda")]
fn compile_kernels() {
    const FOLDER: &str = "src/kernels/cuda";
    const KERNELS: [&str; 11] = [
        "activation",
        "attention",
        "dropout",
        "elementwise",
        "low_rank",
        "nf4",
        "norm",
        "optimizer",
        "relative",
        "rope",
        "rows",
    ];
    println!("cargo::rerun-if-changed={FOLDER}");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    cudaforge::KernelBuilder::new()
        .source_files(KERNELS.map(|name| format!("{FOLDER}/{name}.cu")).to_vec())
        .watch(["common", "attention", "attention_bf16", "tensor_cores"].map(|name| format!("{FOLDER}/{name}.cuh")))
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .and_then(|kernels| kernels.write(std::path::Path::new(&out).join("ptx.rs")))
        .expect("nvcc, of CUDA 13, must be on the PATH: scripts/setup_cuda gets it");
}
