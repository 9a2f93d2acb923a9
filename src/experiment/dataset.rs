//! The rows of an experiment: their columns, the splits as texts and as tokens, and the weights of the loss.

use anyhow::{Context, Result, ensure};

use super::base_model::BaseModel;
use super::split_rows::explain_missing;
use crate::cluster::Group;
use crate::config::Config;
use crate::config::data::DataConfig;
use crate::config::model::ProblemType;
use crate::config::train::{ClassWeights, Loss};
use crate::console::Console;
use crate::data::table::{Columns, Example, LabelList, abridged, find_labels};
use crate::data::tokenize::{Encoded, TextEncoder};
use crate::evaluation::Sample;
use crate::interrupt;
use crate::ops::loss::{Balance, BceWeights, Terms};

/// A split's rows, and the same as tokens.
pub struct Dataset {
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// One sample a row.
    pub samples: Vec<Sample>,
}

/// The columns that a configuration's `data` section names; labels are found if it names none.
pub fn columns(data: &DataConfig, console: Console) -> Result<Columns> {
    let list = data.labels_column.as_ref().map(|column| LabelList {
        column: column.clone(),
        separator: data.label_separator.clone(),
        order: None,
    });
    let mut columns = Columns {
        id: data.id_column.clone(),
        text_fields: data.text_fields.clone(),
        text: data.target_text_column.clone(),
        labels: data.label_columns.clone().unwrap_or_default(),
        label_list: list,
        quoting: data.quoting,
        ..Columns::default()
    };
    if columns.labels.is_empty() {
        let found = find_labels(&data.train_csv, &columns).map_err(explain_missing)?;
        columns.labels_were_found = columns.label_list.is_none();
        columns.labels = found.labels;
        let what = match &mut columns.label_list {
            Some(list) => {
                // The other splits are read as the training rows are.
                list.separator.clone_from(&found.listing.separator);
                format!("that `{}` names, {}", list.column, found.listing.describe())
            }
            None => "columns that hold only 0 and 1".to_owned(),
        };
        console.say(format!("labels: {} {what}: {}", columns.labels.len(), abridged(&columns.labels)));
        found.doubts.into_iter().for_each(|doubt| console.warn(doubt));
    }
    Ok(columns)
}

/// Tokens after which texts are cut: `data.max_length`, or without it 1,024, and no more than the base can take.
#[must_use]
pub fn max_length(data: &DataConfig, base: &BaseModel, console: Console) -> usize {
    let usual = DataConfig::MAX_LENGTH;
    match (data.max_length, base.config.max_tokens) {
        (Some(given), _) => given,
        (None, Some(longest)) if longest < usual => {
            console.say(format!("data.max_length is not set: {longest}, the most that `{}` can take", base.files.name));
            longest
        }
        (None, _) => usual,
    }
}

/// Rows, and where they come from.
pub struct Rows<'a> {
    pub examples: &'a [Example],
    /// The split or the file.
    pub source: &'a str,
    /// The number of rows of the source before these.
    pub before: usize,
}

/// Tokenizes rows for a model with an embedding of `vocab_size` tokens.
///
/// # Errors
/// If the tokenizer fails or gives a token that the model does not have, or the user wants to stop.
pub fn encode(encoder: &TextEncoder, vocab_size: usize, rows: &Rows<'_>) -> Result<Vec<Sample>> {
    /// Examples between two looks at Ctrl-C.
    const PART: usize = 4096;
    let Rows { examples, source, before } = *rows;
    let mut encoded = Vec::with_capacity(examples.len());
    for part in examples.chunks(PART) {
        interrupt::check()?;
        encoded.extend(encoder.encode(part.iter().map(|example| example.text.as_str()).collect())?);
    }
    encoder.check_vocabulary(&encoded, vocab_size, source, before, |row| &examples[row].id)?;
    let sample = |(tokens, example): (_, &Example)| Sample { tokens, labels: example.labels.clone(), frozen: None };
    Ok(encoded.into_iter().zip(examples).map(sample).collect())
}

/// As [`encode`]; each rank of `group` tokenizes its share, and all of them get all samples.
///
/// # Errors
/// As [`encode`].
pub fn encode_together(
    group: &Group,
    encoder: &TextEncoder,
    vocab_size: usize,
    rows: &Rows<'_>,
) -> Result<Vec<Sample>> {
    if group.size() == 1 {
        return encode(encoder, vocab_size, rows);
    }
    let share = group.share(rows.examples.len());
    let own = Rows { before: rows.before + share.start, examples: &rows.examples[share], ..*rows };
    let own: Vec<Encoded> = encode(encoder, vocab_size, &own)?.into_iter().map(|sample| sample.tokens).collect();
    let all = group.gather(&own)?.into_iter().flatten();
    let sample = |(tokens, example): (_, &Example)| Sample { tokens, labels: example.labels.clone(), frozen: None };
    Ok(all.zip(rows.examples).map(sample).collect())
}

/// A positive counts for at most this much, if weights are balanced.
const MAX_BALANCED_WEIGHT: f32 = 10.0;

/// The weights of the training loss, for labels as they stand in the training rows.
///
/// # Errors
/// If a weight is given for a label that is not there, or for a problem that has none.
pub fn loss_weights(config: &Config, labels: &[String], train: &[Example]) -> Result<BceWeights> {
    let settings = &config.train;
    let is_plain = settings.class_weights == ClassWeights::None && settings.loss == Loss::Bce;
    ensure!(
        is_plain || config.model.problem_type == ProblemType::MultiLabel,
        "train.class_weights and train.loss do not apply to single_label_classification"
    );
    ensure!(
        settings.loss != Loss::DistributionBalanced || settings.class_weights == ClassWeights::None,
        "train.class_weights: train.loss distribution_balanced has weights of its own; leave one of them out"
    );
    let positives = |label: usize| train.iter().filter(|example| example.labels[label] > 0.5).count();
    let positive = match &settings.class_weights {
        ClassWeights::None => None,
        ClassWeights::Balanced => Some(
            (0..labels.len())
                .map(|label| {
                    let positives = positives(label);
                    // A label without positives has no term that a weight could change.
                    let ratio = (train.len() - positives) as f32 / positives.max(1) as f32;
                    if positives == 0 { 1.0 } else { ratio.min(MAX_BALANCED_WEIGHT) }
                })
                .collect(),
        ),
        ClassWeights::Given(weights) => {
            let mut positive = vec![1.0; labels.len()];
            for (name, weight) in weights {
                let label = labels.iter().position(|label| label == name);
                let label = label.with_context(|| {
                    format!("train.class_weights: no label `{name}`; there are {}", labels.join(", "))
                })?;
                positive[label] = *weight as f32;
            }
            Some(positive)
        }
    };
    let terms = match settings.loss {
        Loss::Bce => Terms::Plain,
        Loss::Focal => Terms::Focal { gamma: settings.focal_gamma as f32 },
        Loss::Asymmetric => Terms::Asymmetric {
            positive: settings.asymmetric_gamma_positive as f32,
            negative: settings.asymmetric_gamma_negative as f32,
            margin: settings.asymmetric_margin as f32,
        },
        Loss::DistributionBalanced => {
            let counts: Vec<usize> = (0..labels.len()).map(positives).collect();
            Terms::Balanced(Balance::new(&counts, train.len(), settings.focal_gamma as f32))
        }
    };
    Ok(BceWeights { positive, terms, smoothing: settings.label_smoothing as f32 })
}
