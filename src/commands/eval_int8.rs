//! `llmcls eval --split validation --precision int8`: measures what int8 costs a classifier, and stores it.

use anyhow::{Context, Result};

use super::loaded::Loaded;
use crate::cli::{PrecisionArgs, RunArgs};
use crate::cluster::Group;
use crate::console::Console;
use crate::evaluation::NotFinite;
use crate::experiment::split_rows::SplitRows;
use crate::kernels::device::Device;
use crate::metrics::Scores;
use crate::model::quantization::{Maxima, Quantization};
use crate::predictor::Precision;
use crate::run::int8_file::{Int8File, Int8Scores};
use crate::training::scored::score;

/// Scores the validation rows as trained, taking note of how far inputs reach, and in int8.
///
/// # Errors
/// If the classifier belongs to no run, or a row cannot be used.
pub(super) fn measure(args: &RunArgs, device: &Device, group: &Group, console: Console) -> Result<()> {
    let as_trained = PrecisionArgs::default();
    let observing = Loaded::open_as(args, as_trained, Some(Quantization::Observe), device, console)?;
    let (rows, reference) = scores(&observing, args, group, console)?;
    let maxima = Int8File::rounded(of_all_ranks(observing.predictor.classifier.maxima(), group)?);
    let compute = observing.base.device.compute().name().to_owned();
    drop(observing);
    let in_int8 = PrecisionArgs { precision: Some(Precision::Int8), accept_loss: true };
    let quantization = Quantization::of(Some(&maxima));
    let quantized = Loaded::open_as(args, in_int8, Some(quantization), device, console)?;
    let (_, int8) = scores(&quantized, args, group, console)?;
    let of =
        |compute: String, scores: Scores| Int8Scores { compute, f1_micro: scores.f1_micro, f1_macro: scores.f1_macro };
    let scores = [of(compute, reference), of(Precision::Int8.name().to_owned(), int8)];
    let file = Int8File::new(rows, scores, quantized.predictor.file.thresholds.clone(), maxima);
    console.say(format!(
        "int8 {} on {rows} validation rows: {:.4} instead of {:.4} in {}; stored in {}",
        file.described_cost(),
        file.int8.f1_micro,
        file.reference.f1_micro,
        file.reference.compute,
        quantized.predictor.trained.adapter.display()
    ));
    if file.reference.f1_micro == 0.0 || rows < FEW {
        console.warn(format!(
            "{rows} validation rows with a micro-F1 of {:.4} say little about what int8 costs",
            file.reference.f1_micro
        ));
    }
    // The others read it next.
    group.from_leader(|| file.save(&quantized.predictor.trained.adapter))
}

/// Fewer rows than these say little: each is a point of F1 or so.
const FEW: usize = 100;

/// The largest magnitudes that any of the ranks has seen.
fn of_all_ranks(own: Maxima, group: &Group) -> Result<Maxima> {
    let mut all = own;
    for of_rank in group.gather(&all)? {
        for (module, maxima) in of_rank {
            let known = all.entry(module).or_default();
            known.resize(maxima.len(), 0.0);
            known.iter_mut().zip(maxima).for_each(|(known, reach)| *known = known.max(reach));
        }
    }
    Ok(all)
}

/// The number of validation rows, and their scores with the classifier's own thresholds.
fn scores(loaded: &Loaded, args: &RunArgs, group: &Group, console: Console) -> Result<(usize, Scores)> {
    let config = loaded.config.as_ref();
    let data =
        &config.context("--precision int8 is measured on a run's validation split, and this belongs to no run")?.data;
    let [_, rows] = SplitRows::of_training(data, &loaded.training_columns(true))?;
    let predictor = &loaded.predictor;
    let examples = rows.read(&loaded.training_columns(true), predictor.classifier.problem(), console)?;
    let samples = predictor.encode(&examples, &rows.path.display().to_string(), 0)?;
    let decision = predictor.decision();
    let batch_size = loaded.batch_size(args);
    let scored = score(&predictor.classifier, &samples, &predictor.file.labels, &decision, batch_size, group, console)
        .map_err(|error| NotFinite::named(error, |row| rows.location(row, &examples[row])))?;
    Ok((samples.len(), scored.scores))
}
