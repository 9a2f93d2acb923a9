//! With the feature `cuda`, compiles the kernels in `src/kernels/cuda` to PTX, which the driver compiles for
//! the card: for compute capability 8.0 and later, or for `CUDA_COMPUTE_CAP` alone.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    compile_kernels();
}

#[cfg(feature = "cuda")]
fn compile_kernels() {
    const FOLDER: &str = "src/kernels/cuda";
    const KERNELS: [&str; 9] =
        ["activation", "attention", "dropout", "elementwise", "nf4", "norm", "optimizer", "rope", "rows"];
    println!("cargo::rerun-if-changed={FOLDER}");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    cudaforge::KernelBuilder::new()
        .source_files(KERNELS.map(|name| format!("{FOLDER}/{name}.cu")).to_vec())
        .watch([format!("{FOLDER}/common.cuh")])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .and_then(|kernels| kernels.write(std::path::Path::new(&out).join("ptx.rs")))
        .expect("nvcc, of CUDA 13, must be on the PATH: scripts/setup_cuda gets it");
}
