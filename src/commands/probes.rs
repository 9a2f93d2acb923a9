//! Texts on which two forms of one classifier are compared.

use anyhow::Result;

use crate::cluster::Group;
use crate::data::table::Example;
use crate::predictor::Predictor;

const BATCH: usize = 8;

/// The largest difference of a probability between two forms of a classifier, on texts made of its labels.
pub(super) fn largest_difference(own: &Predictor, other: &Predictor) -> Result<f32> {
    let examples = probes(&own.file.labels, own.file.max_length);
    let probabilities = |predictor: &Predictor| -> Result<Vec<Vec<f32>>> {
        let samples = predictor.encode(&examples, "texts made of the labels", 0)?;
        let evaluation = predictor.evaluate(&samples, &predictor.decision(), BATCH, &Group::alone(), |_| ())?;
        Ok(evaluation.predictions.probabilities)
    };
    let (own, other) = (probabilities(own)?, probabilities(other)?);
    let both = own.iter().flatten().zip(other.iter().flatten());
    Ok(both.map(|(own, other)| (own - other).abs()).fold(0.0, f32::max))
}

/// Each label as a text, nothing, and a text that is too long.
fn probes(labels: &[String], max_length: usize) -> Vec<Example> {
    const MOST: usize = 16;
    let all = labels.join(" ");
    let long = vec![all.as_str(); max_length / (1 + all.len() / 8).max(1) + 2].join(" ");
    let texts = labels.iter().take(MOST).cloned().chain([" ".to_owned(), all.clone(), long]);
    texts.enumerate().map(|(id, text)| Example { id: id.to_string(), text, labels: Vec::new() }).collect()
}
