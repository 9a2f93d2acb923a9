//! Rotary positions: see `rope.cu`.

use candle_core::{Result, Tensor};

use super::launch::{Code, Grid, kernels, ptx};
use super::memory::{Activations, Address, activations, address_of, device_of};
use crate::kernels::constant::Constant;
use crate::kernels::rope::RopeTable;

const CODE: Code = Code { name: "rope", ptx: ptx::ROPE };

kernels! { CODE:
    fn rope<T>(
        x: Address<Activations>, cos: Address<f32>, sin: Address<f32>, positions: Address<u32>, rows: u32, width: u32,
        head_size: u32, half: u32, sign: f32,
    );
}

/// Rotates every head of the rows of `x` in place, by `sign` times the angles of their positions.
pub(in crate::kernels) fn rotate(x: &Tensor, table: &RopeTable, positions: &Constant<u32>, sign: f32) -> Result<()> {
    let (device, (rows, width)) = (device_of(x)?, x.dims2()?);
    let [cos, sin] = [address_of(table.cos.on(&device)?), address_of(table.sin.on(&device)?)];
    let positions = address_of(positions.on(&device)?);
    let grid = Grid::over(rows * (width / table.head_size) * table.half);
    let sizes = [rows, width, table.head_size, table.half].map(|size| size as u32);
    let [rows, width, head_size, half] = sizes;
    kernel::rope(&device, x.dtype(), grid, activations(x)?, cos, sin, positions, rows, width, head_size, half, sign)
}
