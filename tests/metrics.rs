//! Against scikit-learn and torchmetrics; the numbers are made by `scripts/make_metric_fixtures.py`.

use llmcls::metrics::{Decision, METRICS, Predictions, Scores};
use serde_json::Value;

#[test]
fn scores_are_those_of_scikit_learn_and_torchmetrics() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/metrics.json");
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let rows = |name: &str| -> Vec<Vec<f32>> { serde_json::from_value(fixture[name].clone()).unwrap() };
    let predictions = Predictions {
        probabilities: rows("probabilities"),
        predicted: Vec::new(),
        targets: rows("targets").iter().map(|row| row.iter().map(|&target| target > 0.5).collect()).collect(),
    };
    let labels: Vec<String> = (0..6).map(|label| label.to_string()).collect();
    let scores = Scores::new(&predictions.decided(&Decision::above(&[0.5; 6])), &labels);
    let found = serde_json::to_value(&scores).unwrap();
    let close = |name: &str, found: Option<f64>, expected: Option<f64>| match (found, expected) {
        (None, None) => {}
        // torchmetrics bins in f32.
        (Some(found), Some(expected)) => assert!((found - expected).abs() < 1e-6, "{name}: {found}, not {expected}"),
        _ => panic!("{name}: {found:?}, not {expected:?}"),
    };
    let expected = fixture["expected"].as_object().unwrap();
    assert_eq!(expected.len(), 11);
    for (name, expected) in expected {
        assert!(METRICS.contains(&name.as_str()));
        close(name, found[name].as_f64(), expected.as_f64());
    }
    for (label, expected) in scores.per_label.iter().zip(fixture["per_label"].as_array().unwrap()) {
        close("average precision", label.average_precision, expected["average_precision"].as_f64());
        close("ROC AUC", label.roc_auc, expected["roc_auc"].as_f64());
    }
    assert!(scores.per_label.iter().any(|label| label.average_precision.is_none()));
}
