//! A base that is already a classifier: whether its head is for the same labels.

use crate::console::Console;
use crate::data::table::abridged;
use crate::model::config::BackboneConfig;
use crate::model::weights::Weights;

/// The rows of the base's own classifier from which the labels start, one a label: if it is for labels of the same
/// names, in whatever order. `console` says so of the base of this name, or warns that its head is not used.
pub fn rows(
    (config, weights): (&BackboneConfig, &Weights),
    labels: &[String],
    console: Option<(Console, &str)>,
) -> Option<Vec<usize>> {
    let shape = weights.shape(&format!("{}.weight", config.head.classifier))?;
    let theirs = &config.labels;
    let rows: Option<Vec<usize>> = labels.iter().map(|label| theirs.iter().position(|other| other == label)).collect();
    let is_same = theirs.len() == labels.len() && shape == [labels.len(), config.hidden_size];
    let rows = rows.filter(|_| is_same);
    let Some((console, base)) = console else { return rows };
    match &rows {
        Some(_) => console.say(format!("the head goes on from that of the base `{base}`, which has the same labels")),
        None if theirs.is_empty() => console.warn(format!(
            "the classification head of the base `{base}` is not used: its config.json has no id2label that names its {} \
             labels; this run's are {}",
            shape.first().unwrap_or(&0),
            abridged(labels)
        )),
        None => console.warn(format!(
            "the classification head of the base `{base}` is not used: its labels are {}, and this run's are {}",
            abridged(theirs),
            abridged(labels)
        )),
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::weights::Checkpoint;

    /// The fixture is a RoBERTa with labels x, y and z, made by `scripts/make_adapter_fixtures.py`.
    #[test]
    fn a_head_for_labels_of_the_same_names_is_gone_on_from_in_any_order() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let base = |name: &str| {
            let directory = fixtures.join(name);
            let config = BackboneConfig::from_file(&directory.join("config.json")).unwrap();
            (config, Weights::Checkpoint(Checkpoint::open(&[directory.join("model.safetensors")]).unwrap()))
        };
        let (config, weights) = base("adapters/roberta_head_of_the_base");
        let rows = |labels: &[&str]| {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            rows((&config, &weights), &labels, None)
        };
        assert_eq!(rows(&["x", "y", "z"]), Some(vec![0, 1, 2]));
        assert_eq!(rows(&["z", "x", "y"]), Some(vec![2, 0, 1]));
        assert_eq!(rows(&["x", "y"]), None);
        assert_eq!(rows(&["x", "y", "w"]), None);
        let (config, weights) = base("roberta");
        assert_eq!(super::rows((&config, &weights), &["x".to_owned()], None), None);
    }
}
