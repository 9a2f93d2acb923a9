//! The modules that models are made of: frozen, with an adapter, or trained.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use crate::kernels::buffer;
use crate::kernels::device::Device;
use crate::kernels::matrix::FrozenMatrix;
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::embedding::{TableRows, embedding};
use crate::ops::layer_norm::{LayerNorm, layer_norm, trained_layer_norm};
use crate::ops::linear::linear;
use crate::ops::lora_linear::{LoraLinear, lora_linear, lora_linears};
use crate::ops::rms_norm::{RmsNorm, rms_norm};
use crate::ops::rows::add;
use crate::ops::tape::{Param, Tape, Value};

/// A linear layer.
#[derive(Clone)]
pub(super) enum Linear {
    /// Of the base, with an adapter if it is a target.
    Frozen(Rc<LoraLinear>),
    /// Of the head, or where every weight is trained.
    Trained { weight: Rc<Param>, bias: Option<Rc<Param>> },
}

impl Linear {
    /// `(N, in)` to `(N, out)`, added to `residual` if given.
    pub(super) fn forward(&self, tape: &Tape, x: &Value, residual: Option<&Value>) -> candle_core::Result<Value> {
        match self {
            Self::Frozen(layer) => lora_linear(tape, x, layer, residual),
            Self::Trained { weight, bias } => linear(tape, x, weight, bias.as_ref(), residual),
        }
    }

    /// The outputs of several layers with the same input, which frozen ones read once for all of them.
    pub(super) fn all<const K: usize>(tape: &Tape, x: &Value, layers: [&Self; K]) -> candle_core::Result<[Value; K]> {
        let frozen: Vec<&Rc<LoraLinear>> = layers.iter().filter_map(|layer| layer.frozen()).collect();
        if let Ok(frozen) = <[&Rc<LoraLinear>; K]>::try_from(frozen) {
            return lora_linears(tape, x, frozen);
        }
        let outputs: Vec<Value> =
            layers.iter().map(|layer| layer.forward(tape, x, None)).collect::<candle_core::Result<_>>()?;
        Ok(outputs.try_into().unwrap_or_else(|_| unreachable!("an output for each layer")))
    }

    fn frozen(&self) -> Option<&Rc<LoraLinear>> {
        match self {
            Self::Frozen(layer) => Some(layer),
            Self::Trained { .. } => None,
        }
    }

    /// `residual + drop(linear(x))`: one op where nothing is dropped.
    pub(super) fn add_to(
        &self,
        tape: &Tape,
        x: &Value,
        site: &Dropout,
        residual: &Value,
    ) -> candle_core::Result<Value> {
        if !site.is_active(tape) {
            return self.forward(tape, x, Some(residual));
        }
        let y = dropout(tape, self.forward(tape, x, None)?, site)?;
        add(tape, &y, residual)
    }
}

/// A norm.
#[derive(Clone)]
pub(super) enum Norm {
    Rms(Rc<RmsNorm>),
    Layer(Rc<LayerNorm>),
    Trained { weight: Rc<Param>, bias: Option<Rc<Param>>, epsilon: f32 },
}

impl Norm {
    pub(super) fn forward(&self, tape: &Tape, x: &Value) -> candle_core::Result<Value> {
        match self {
            Self::Rms(norm) => rms_norm(tape, x, norm),
            Self::Layer(norm) => layer_norm(tape, x, norm),
            Self::Trained { weight, bias, epsilon } => trained_layer_norm(tape, x, weight, bias.as_ref(), *epsilon),
        }
    }
}

/// A table of embeddings, `(V, D)`.
pub(super) enum Embedding {
    Frozen(Arc<FrozenMatrix>),
    /// `padding`: a row that keeps its numbers, as in torch.
    Trained {
        table: Rc<Param>,
        padding: Option<u32>,
    },
}

impl Embedding {
    /// The mean of all rows: the embedding of no token in particular.
    pub(super) fn mean(&self) -> candle_core::Result<Vec<f32>> {
        let rows = self.rows();
        let mut all = vec![0.0; rows * self.width()];
        match self {
            Self::Frozen(table) => table.read(0, &mut all),
            Self::Trained { table, .. } => all.copy_from_slice(&buffer::elements(table.value())?),
        }
        let mut sums = vec![0.0f64; self.width()];
        for row in all.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        Ok(sums.into_iter().map(|sum| (sum / rows as f64) as f32).collect())
    }

    /// Reads one row.
    pub(super) fn read_row(&self, row: u32, out: &mut [f32]) -> candle_core::Result<()> {
        let first = row as usize * self.width();
        match self {
            Self::Frozen(table) => table.read(first, out),
            Self::Trained { table, .. } => {
                out.copy_from_slice(&buffer::elements(table.value())?[first..first + self.width()]);
            }
        }
        Ok(())
    }

    fn width(&self) -> usize {
        match self {
            Self::Frozen(table) => table.columns(),
            Self::Trained { table, .. } => table.value().dims()[1],
        }
    }

    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Frozen(table) => table.rows(),
            Self::Trained { table, .. } => table.value().dims()[0],
        }
    }
}

/// Row n is row `rows[n]` of the first table times `scale`, plus those of the other tables: `(N, D)`.
///
/// # Errors
/// If a token id is outside the first table, or some tables are trained and others not.
pub(super) fn embed(tape: &Tape, device: &Device, scale: f32, parts: &[(&Embedding, Rc<[u32]>)]) -> Result<Value> {
    let (words, tokens) = &parts[0];
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= words.rows()) {
        bail!(
            "token id {token} is outside the model's vocabulary of {}: tokenizer.json and config.json do not belong together",
            words.rows()
        );
    }
    let (mut frozen, mut trained) = (Vec::new(), Vec::new());
    for (table, rows) in parts {
        match table {
            Embedding::Frozen(table) => frozen.push((table, rows)),
            Embedding::Trained { table, padding } => {
                trained.push(TableRows { table: Rc::clone(table), rows: Rc::clone(rows), padding: *padding });
            }
        }
    }
    if !trained.is_empty() {
        ensure!(frozen.is_empty() && scale == 1.0, "trained embeddings are neither scaled nor added to frozen ones");
        return Ok(embedding(tape, trained)?);
    }
    let width = frozen[0].0.columns();
    let tokens: &[u32] = tokens;
    let frozen: Vec<(&FrozenMatrix, &[u32])> = frozen.into_iter().map(|(table, rows)| (&**table, &**rows)).collect();
    let x = device.put_rows((tokens.len(), width), |first, block| {
        let mut other = vec![0.0; width];
        for (n, x) in (first..).zip(block.chunks_exact_mut(width)) {
            frozen[0].0.read(tokens[n] as usize * width, x);
            if scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= scale);
            }
            for (table, rows) in &frozen[1..] {
                table.read(rows[n] as usize * width, &mut other);
                x.iter_mut().zip(&other).for_each(|(x, other)| *x += other);
            }
        }
    })?;
    Ok(Value::constant(x))
}
