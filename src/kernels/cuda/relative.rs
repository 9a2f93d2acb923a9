//! Scores by distance: products with their tables by cuBLAS, a head at a time, and their gradients; see `relative.cu`.

use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::gemm::{Operand, gemm};
use super::launch::{Code, Grid, kernels, ptx};
use super::memory::{Activations, Address, activations, address_of, clear, device_of, floats, scratch};
use super::shape::Shape;
use super::tiles::Tiles;
use crate::kernels::attention::{Plan, Relative};

const CODE: Code = Code { name: "relative", ptx: ptx::RELATIVE };
/// Queries or keys of a block.
const TILE: u32 = 128;

kernels! { CODE:
    fn slopes_by_query<T>(out: Address<Activations>, sequences: Address<u32>, tiles: Address<u32>, shape: Shape);
    fn slopes_by_key<T>(out: Address<Activations>, sequences: Address<u32>, tiles: Address<u32>, shape: Shape);
}

/// What a pass over scores reads and writes by distance.
pub(super) struct Products {
    of_queries: Option<Tensor>,
    of_keys: Option<Tensor>,
    slopes: Option<Tensor>,
}

impl Products {
    /// Products of q and k with the tables, `(rows, H·P)`; and room for the gradient of scores, if it is asked for.
    pub(super) fn new(
        device: &CudaDevice,
        [q, k]: [&Tensor; 2],
        relative: &Relative,
        plan: &Plan,
        has_slopes: bool,
    ) -> Result<Self> {
        let tables = [&relative.keys, &relative.queries].map(Option::is_some);
        if tables != [false; 2] && relative.distances.rows.windows(2).any(|pair| pair[0] > pair[1]) {
            bail!("rows of tables do not ascend with the distance");
        }
        let product = |x: &Tensor, table: &Option<Tensor>| {
            table.as_ref().map(|table| products(device, x, table, plan)).transpose()
        };
        let reach = (plan.queries, plan.kind.heads * (relative.distances.longest + 1));
        Ok(Self {
            of_queries: product(q, &relative.keys)?,
            of_keys: product(k, &relative.queries)?,
            slopes: (has_slopes && tables != [false; 2]).then(|| scratch(device, DType::F32, reach)).transpose()?,
        })
    }

    /// Tells a kernel where they are.
    pub(super) fn describe(&self, device: &CudaDevice, relative: &Relative, shape: &mut Shape) -> Result<()> {
        let address = |tensor: &Option<Tensor>| tensor.as_ref().map_or(Ok(Address::none()), floats);
        shape.longest = relative.distances.longest as u32;
        shape.table = relative.distances.table as u64;
        shape.rows = address_of(relative.distances.rows.on(device)?);
        shape.of_queries = address(&self.of_queries)?;
        shape.of_keys = address(&self.of_keys)?;
        shape.bias = relative.bias.as_ref().map_or(Ok(Address::none()), |bias| bias.on(device).map(address_of))?;
        shape.slopes = address(&self.slopes)?;
        Ok(())
    }
}

fn products(device: &CudaDevice, x: &Tensor, table: &Tensor, plan: &Plan) -> Result<Tensor> {
    let (rows, count, d) = (x.dim(0)?, table.dim(0)?, plan.kind.head_size);
    let output = scratch(device, DType::F32, (rows, plan.kind.heads * count))?;
    let [out, x, table] = [Operand::of(&output)?, Operand::of(x)?, Operand::of(table)?];
    for head in 0..plan.kind.heads {
        let [x, table] = [x, table].map(|operand| operand.part(head * d, d));
        gemm(device, out.part(head * count, count), false, 1.0, x, table.transposed())?;
    }
    Ok(output)
}

/// Which of an attention's inputs a table is multiplied by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Queries,
    Keys,
}

/// Adds what comes by way of the table to the gradient of `x`; gives the gradient of the table.
pub(super) fn table_gradient(
    side: Side,
    (x, of_x): (&Tensor, Option<&Tensor>),
    table: &Tensor,
    plan: &Plan,
    shape: Shape,
) -> Result<Tensor> {
    let device = device_of(x)?;
    let (rows, count, d, heads) = (x.dim(0)?, table.dim(0)?, plan.kind.head_size, plan.kind.heads);
    let by_row = scratch(&device, x.dtype(), (rows, heads * count))?;
    clear(&by_row)?;
    let wanted = Tiles { of_keys: side == Side::Keys, rows: TILE as usize, latest_first: false };
    let held = plan.tiles.on(&device, wanted, plan.offsets_of(wanted.of_keys))?;
    let grid = Grid { blocks: (held.len() as u32 / 2, heads as u32), threads: TILE, shared_bytes: 0 };
    let (out, sequences) = (activations(&by_row)?, address_of(plan.sequences.on(&device)?));
    let tiles = address_of(&held);
    match side {
        Side::Queries => kernel::slopes_by_query(&device, x.dtype(), grid, out, sequences, tiles, shape)?,
        Side::Keys => kernel::slopes_by_key(&device, x.dtype(), grid, out, sequences, tiles, shape)?,
    }
    let gradient = scratch(&device, table.dtype(), table.shape())?;
    let (slopes, scale) = (Operand::of(&by_row)?, plan.kind.scale);
    for head in 0..heads {
        let slopes = slopes.part(head * count, count);
        if let Some(of_x) = of_x {
            gemm(
                &device,
                Operand::of(of_x)?.part(head * d, d),
                true,
                scale,
                slopes,
                Operand::of(table)?.part(head * d, d),
            )?;
        }
        let (out, x) = (Operand::of(&gradient)?.part(head * d, d), Operand::of(x)?.part(head * d, d));
        gemm(&device, out, false, scale, slopes.transposed(), x)?;
    }
    Ok(gradient)
}
