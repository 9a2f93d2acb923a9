//! Declarations of kernels, and their launch.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, DeviceRepr, LaunchArgs, LaunchConfig, sys};
use candle_core::{CudaDevice, DType, Result};

use crate::kernels::mask::Choice;

#[expect(unreachable_pub, reason = "the build script writes them so")]
pub(super) mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// Blocks, threads a block, and bytes of shared memory a block.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: (u32, u32),
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

pub(super) const THREADS: u32 = 256;
/// Threads that run together.
pub(super) const WARP: u32 = 32;

impl Grid {
    /// Threads that share `work` items among them; kernels loop if there are more.
    pub(super) fn over(work: usize) -> Self {
        let blocks = work.div_ceil(THREADS as usize).clamp(1, 1 << 16) as u32;
        Self { blocks: (blocks, 1), threads: THREADS, shared_bytes: 0 }
    }

    /// A warp for each row.
    pub(super) fn warp_each(rows: usize) -> Self {
        Self { blocks: (rows.div_ceil((THREADS / WARP) as usize) as u32, 1), threads: THREADS, shared_bytes: 0 }
    }
}

/// The PTX of a `.cu` file, and its name.
#[derive(Clone, Copy)]
pub(super) struct Code {
    pub(super) name: &'static str,
    pub(super) ptx: &'static str,
}

/// What a kernel is compiled for: the type of activations, and for bf16 the most columns of a head.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    pub(super) dtype: DType,
    pub(super) width: usize,
}

/// A flag, as kernels take it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Flag(i32);

impl From<bool> for Flag {
    fn from(flag: bool) -> Self {
        Self(i32::from(flag))
    }
}

/// A stream of random numbers: `Stream` in common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct StreamWords([u32; 4]);

impl From<&Choice> for StreamWords {
    fn from(choice: &Choice) -> Self {
        Self(choice.stream.words())
    }
}

// SAFETY: an int.
#[expect(unsafe_code, reason = "a parameter of a kernel")]
unsafe impl DeviceRepr for Flag {}

// SAFETY: laid out as in C.
#[expect(unsafe_code, reason = "a parameter of a kernel")]
unsafe impl DeviceRepr for StreamWords {}

/// Declares the kernels of a `.cu` file, each with the parameters that it has there, as functions in
/// `kernel` of a device and a grid; `<T>` is a kernel for each type of activations, which the function is
/// given too, `<T, WIDTH>` one for each [`Variant`], `<RANK>` one for ranks up to 16 and one for ranks up to 64.
macro_rules! kernels {
    (@each $code:ident:) => {};
    (@each $code:ident: fn $name:ident<T>($($parameter:ident: $type:ty),* $(,)?); $($rest:tt)*) => {
        #[allow(clippy::too_many_arguments, reason = "a kernel has as many")]
        pub(super) fn $name(
            device: &candle_core::CudaDevice,
            dtype: candle_core::DType,
            grid: $crate::kernels::cuda::launch::Grid,
            $($parameter: impl Into<$type>),*
        ) -> candle_core::Result<()> {
            let name = match dtype {
                candle_core::DType::F32 => concat!(stringify!($name), "_f32"),
                candle_core::DType::BF16 => concat!(stringify!($name), "_bf16"),
                other => candle_core::bail!("activations of {other:?} on a GPU"),
            };
            kernels!(@launch $code, device, name, grid, $($parameter: $type),*)
        }
        kernels!(@each $code: $($rest)*);
    };
    (@each $code:ident: fn $name:ident<T, WIDTH>($($parameter:ident: $type:ty),* $(,)?); $($rest:tt)*) => {
        #[allow(clippy::too_many_arguments, reason = "a kernel has as many")]
        pub(super) fn $name(
            device: &candle_core::CudaDevice,
            variant: $crate::kernels::cuda::launch::Variant,
            grid: $crate::kernels::cuda::launch::Grid,
            $($parameter: impl Into<$type>),*
        ) -> candle_core::Result<()> {
            let name = match (variant.dtype, variant.width) {
                (candle_core::DType::F32, _) => concat!(stringify!($name), "_f32"),
                (candle_core::DType::BF16, 64) => concat!(stringify!($name), "_bf16_64"),
                (candle_core::DType::BF16, 128) => concat!(stringify!($name), "_bf16_128"),
                (candle_core::DType::BF16, 256) => concat!(stringify!($name), "_bf16_256"),
                (other, width) => candle_core::bail!("heads of {width} in {other:?} on a GPU"),
            };
            kernels!(@launch $code, device, name, grid, $($parameter: $type),*)
        }
        kernels!(@each $code: $($rest)*);
    };
    (@each $code:ident: fn $name:ident<RANK>($($parameter:ident: $type:ty),* $(,)?); $($rest:tt)*) => {
        #[allow(clippy::too_many_arguments, reason = "a kernel has as many")]
        pub(super) fn $name(
            device: &candle_core::CudaDevice,
            rank: usize,
            grid: $crate::kernels::cuda::launch::Grid,
            $($parameter: impl Into<$type>),*
        ) -> candle_core::Result<()> {
            let name = if rank <= 16 { concat!(stringify!($name), "_16") } else { concat!(stringify!($name), "_64") };
            kernels!(@launch $code, device, name, grid, $($parameter: $type),*)
        }
        kernels!(@each $code: $($rest)*);
    };
    (@each $code:ident: fn $name:ident($($parameter:ident: $type:ty),* $(,)?); $($rest:tt)*) => {
        #[allow(clippy::too_many_arguments, reason = "a kernel has as many")]
        pub(super) fn $name(
            device: &candle_core::CudaDevice,
            grid: $crate::kernels::cuda::launch::Grid,
            $($parameter: impl Into<$type>),*
        ) -> candle_core::Result<()> {
            kernels!(@launch $code, device, stringify!($name), grid, $($parameter: $type),*)
        }
        kernels!(@each $code: $($rest)*);
    };
    (@launch $code:ident, $device:ident, $name:expr, $grid:ident, $($parameter:ident: $type:ty),*) => {{
        use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
        $(let $parameter: $type = $parameter.into();)*
        let function = $crate::kernels::cuda::launch::function($device, $code, $name)?;
        let stream = $device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        $(builder.arg(&$parameter);)*
        $crate::kernels::cuda::launch::queue(builder, &function, $grid)
    }};
    ($code:ident: $($declarations:tt)*) => {
        /// The kernels of the `.cu` file.
        mod kernel {
            use super::*;

            kernels!(@each $code: $($declarations)*);
        }
    };
}
pub(super) use kernels;

thread_local! {
    static FUNCTIONS: RefCell<HashMap<&'static str, CudaFunction>> = RefCell::default();
}

/// A kernel, loaded once.
pub(super) fn function(device: &CudaDevice, code: Code, name: &'static str) -> Result<CudaFunction> {
    if let Some(function) = FUNCTIONS.with_borrow(|functions| functions.get(name).cloned()) {
        return Ok(function);
    }
    let function = device.get_or_load_custom_func(name, code.name, code.ptx)?.into_cuda_function();
    FUNCTIONS.with_borrow_mut(|functions| functions.insert(name, function.clone()));
    Ok(function)
}

/// Queues a kernel with its arguments: those that it was declared with.
pub(super) fn queue(mut builder: LaunchArgs<'_>, function: &CudaFunction, grid: Grid) -> Result<()> {
    if grid.shared_bytes > 48 << 10 {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, grid.shared_bytes as i32).w()?;
    }
    let config = LaunchConfig {
        grid_dim: (grid.blocks.0, grid.blocks.1, 1),
        block_dim: (grid.threads, 1, 1),
        shared_mem_bytes: grid.shared_bytes,
    };
    // SAFETY: the declarations have the kernels' parameters, and the callers, all in this folder, give
    // addresses of as many elements as a kernel touches; the tests compare every kernel with the CPU's.
    #[expect(unsafe_code, reason = "a kernel's parameters cannot be checked")]
    unsafe {
        builder.launch(config).w()?;
    }
    Ok(())
}
