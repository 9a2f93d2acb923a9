//! Tables by distance, which some encoders add to attention's scores: DeBERTa's position embeddings, projected in every
//! layer, and MPNet's biases, the same in all layers.

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::Tensor;

use super::batch::Batch;
use super::builder::Builder;
use super::config::{BackboneConfig, Disentangled, RelativeConfig};
use super::embeddings::NORM;
use super::modules::Embedding;
use crate::kernels::buffer;
use crate::kernels::constant::Constant;
use crate::kernels::device::Device;
use crate::ops::attention::Distances;
use crate::ops::tape::{Tape, Value};

/// The table of a model.
pub(super) struct Relative {
    kind: Kind,
    device: Device,
}

enum Kind {
    /// The table after its norm, `(2 · span, D)`.
    Disentangled {
        config: Disentangled,
        table: Vec<f32>,
        width: usize,
    },
    Bias {
        bias: Arc<Constant>,
        rows: usize,
    },
}

/// The table as far as a batch reaches.
pub(super) struct Reach {
    pub(super) distances: Arc<Distances>,
    /// What layers project.
    pub(super) table: Option<Tensor>,
    pub(super) bias: Option<Arc<Constant>>,
}

impl Relative {
    pub(super) fn new(
        builder: &mut Builder<'_>,
        config: &BackboneConfig,
        relative: &RelativeConfig,
        epsilon: f32,
    ) -> Result<Self> {
        let kind = match relative {
            RelativeConfig::Disentangled(disentangled) => {
                let (rows, width) = (2 * disentangled.span(), config.hidden_size);
                let mut table = vec![0.0; rows * width];
                read(&builder.embedding(disentangled.table, rows, width, None)?, width, &mut table)?;
                if let Some(norm) = disentangled.norm {
                    let norm = builder.norm(norm, width, NORM, epsilon)?;
                    let normed = norm.forward(&Tape::off(), &Value::constant(buffer::tensor(table, (rows, width))?))?;
                    table = buffer::elements(normed.tensor())?.to_vec();
                }
                Kind::Disentangled { config: *disentangled, table, width }
            }
            RelativeConfig::Bias { table, rows } => {
                let heads = config.num_attention_heads;
                let mut bias = vec![0.0; rows * heads];
                read(&builder.embedding(table, *rows, heads, None)?, heads, &mut bias)?;
                Kind::Bias { bias: Arc::new(bias.into()), rows: *rows }
            }
        };
        Ok(Self { kind, device: builder.device.clone() })
    }

    /// The part of the table that the longest sequence of a batch needs.
    pub(super) fn up_to(&self, batch: &Batch) -> Result<Reach> {
        let longest = batch.positions.iter().max().map_or(0, |&last| last as usize);
        match &self.kind {
            Kind::Bias { bias, rows } => Ok(Reach {
                distances: Arc::new(Distances::new(longest, *rows, mpnet_bucket)),
                table: None,
                bias: Some(Arc::clone(bias)),
            }),
            Kind::Disentangled { config, table, width } => {
                // Rows ascend with the distance.
                let reach = longest as i64;
                let (first, last) = (config.row(-reach), config.row(reach));
                let rows = table[first * width..(last + 1) * width].to_vec();
                let rows = buffer::tensor(rows, (last + 1 - first, *width))?;
                let distances = Distances::new(longest, last + 1 - first, |distance| config.row(distance) - first);
                Ok(Reach { distances: Arc::new(distances), table: Some(self.device.put(rows)?), bias: None })
            }
        }
    }
}

/// All rows of a table.
fn read(table: &Embedding, width: usize, out: &mut [f32]) -> Result<()> {
    for (row, out) in (0..).zip(out.chunks_exact_mut(width)) {
        table.read_row(row, out)?;
    }
    Ok(())
}

impl Disentangled {
    /// Rows of the table on either side.
    pub(super) fn span(&self) -> usize {
        if self.buckets > 0 { self.buckets } else { self.reach }
    }

    /// Checks sizes that the logarithm relies on.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.buckets == 0 || self.buckets > 1 && self.reach > self.buckets / 2 + 1,
            "position_buckets {} with max_relative_positions {}, expected at least 2 buckets and a longer reach",
            self.buckets,
            self.reach
        );
        ensure!((1..=1 << 24).contains(&self.span()), "max_relative_positions is {}", self.reach);
        Ok(())
    }

    /// The row of a distance, position of the query less that of the key; as `make_log_bucket_position` of transformers
    /// 4.57.6 computes it, in f32.
    fn row(&self, distance: i64) -> usize {
        let span = self.span() as i64;
        let mid = (self.buckets / 2) as i64;
        let bucket = if self.buckets == 0 || distance.abs() <= mid {
            distance
        } else {
            let turns = (distance.abs() as f32 / mid as f32).ln();
            let whole = (((self.reach - 1) as f64 / mid as f64) as f32).ln();
            let steps = (turns / whole * (mid - 1) as f32).ceil() + mid as f32;
            (steps as i64) * distance.signum()
        };
        (bucket + span).clamp(0, 2 * span - 1) as usize
    }
}

/// As `relative_position_bucket` of transformers 4.57.6 computes it, in f32.
fn mpnet_bucket(distance: i64) -> usize {
    const BUCKETS: usize = 16;
    const EXACT: usize = 8;
    const FARTHEST: f64 = 128.0;
    let far = distance.unsigned_abs() as usize;
    let bucket = if far < EXACT {
        far
    } else {
        let turns = (far as f32 / EXACT as f32).ln() / (FARTHEST / EXACT as f64).ln() as f32;
        (EXACT + (turns * (BUCKETS - EXACT) as f32) as usize).min(BUCKETS - 1)
    };
    bucket + if distance < 0 { BUCKETS } else { 0 }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Tables {
        /// Buckets, reach, and the bucket of each distance from 0 on.
        deberta: Vec<(usize, usize, Vec<i64>)>,
        /// Of the distances from −600 to 600.
        mpnet: Vec<usize>,
    }

    /// Made by `scripts/make_distance_fixtures.py`.
    #[test]
    fn buckets_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/distances.json");
        let tables: Tables = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(tables.deberta.len() > 5);
        for (buckets, reach, expected) in tables.deberta {
            let config =
                Disentangled { table: "", norm: None, buckets, reach, keys: None, queries: None, is_shared: true };
            config.check().unwrap();
            let span = config.span() as i64;
            for (distance, bucket) in expected.into_iter().enumerate() {
                let [there, back] = [distance as i64, -(distance as i64)].map(|distance| config.row(distance) as i64);
                assert_eq!(there, (bucket + span).min(2 * span - 1), "{buckets} {reach}: {distance}");
                assert_eq!(back, (span - bucket).max(0), "{buckets} {reach}: -{distance}");
            }
        }
        let found: Vec<usize> = (-600..=600).map(mpnet_bucket).collect();
        assert_eq!(found, tables.mpnet);
    }
}
