//! Against scikit-learn and torchmetrics; the numbers are made by `scripts/make_metric_fixtures.py`.

use llmcls::metrics::bootstrap::{Interval, Intervals};
use llmcls::metrics::{Decision, METRICS, Predictions, Scores};
use llmcls::thresholds::{Objective, Scope, reached, tune};
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
        assert!(METRICS.iter().any(|metric| metric.name == name));
        close(name, found[name].as_f64(), expected.as_f64());
    }
    for (label, expected) in scores.per_label.iter().zip(fixture["per_label"].as_array().unwrap()) {
        close("average precision", label.average_precision, expected["average_precision"].as_f64());
        close("ROC AUC", label.roc_auc, expected["roc_auc"].as_f64());
    }
    assert!(scores.per_label.iter().any(|label| label.average_precision.is_none()));
}

fn rare_labels() -> (Value, impl Fn(&str) -> Vec<Vec<bool>>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/intervals.json");
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let rows = fixture.clone();
    let flags = move |name: &str| -> Vec<Vec<bool>> {
        let numbers: Vec<Vec<u8>> = serde_json::from_value(rows[name].clone()).unwrap();
        numbers.iter().map(|row| row.iter().map(|&flag| flag == 1).collect()).collect()
    };
    (fixture, flags)
}

#[test]
fn intervals_with_rare_labels_are_those_of_numpy_and_contain_their_estimate() {
    let (fixture, flags) = rare_labels();
    let predictions =
        |name: &str| Predictions { probabilities: Vec::new(), predicted: flags(name), targets: flags("targets") };
    let (own, other) = (predictions("predicted"), predictions("other"));
    let same = |found: Intervals, expected: &Value| {
        let found: [Interval; 3] = [found.f1_micro, found.f1_macro, found.accuracy];
        for (found, expected) in found.iter().zip(expected.as_array().unwrap()) {
            let Some(expected) = expected.as_array() else {
                assert!(found[0].is_nan() && found[1].is_nan(), "{found:?}");
                continue;
            };
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected.as_f64().unwrap()).abs() < 1e-12, "{found}, not {expected}");
            }
        }
    };
    same(Intervals::new(&own, 0), &fixture["intervals"]);
    same(Intervals::of_difference(&own, &other, 0), &fixture["difference"]);
    assert!(fixture["intervals"][1].is_array());

    // A classifier that makes no mistake has nowhere to fall to.
    let perfect = Predictions { predicted: own.targets.clone(), ..own.clone() };
    let labels: Vec<String> = (0..7).map(|label| label.to_string()).collect();
    let intervals = Intervals::new(&perfect, 0);
    assert_eq!(intervals.f1_micro, [1.0, 1.0]);
    let estimate = Scores::new(&Predictions { probabilities: vec![vec![0.5; 7]; 80], ..perfect }, &labels).f1_macro;
    // One label of seven has no row: it counts 0, in the score as in every resample.
    assert!((estimate - 6.0 / 7.0).abs() < 1e-12);
    for end in intervals.f1_macro {
        assert!((end - estimate).abs() < 1e-12, "{end}");
    }
}

#[test]
fn tuned_thresholds_reach_what_a_search_by_scikit_learn_finds() {
    let (fixture, flags) = rare_labels();
    let probabilities: Vec<Vec<f32>> = serde_json::from_value(fixture["probabilities"].clone()).unwrap();
    let targets = flags("targets");
    for objective in ["f1", "precision>=0.8", "recall>=0.8"] {
        let parsed: Objective = objective.parse().unwrap();
        for (label, best) in fixture["best"].as_array().unwrap().iter().enumerate() {
            // One label at a time, so that its threshold is its own.
            let column = Predictions {
                probabilities: probabilities.iter().map(|row| vec![row[label]]).collect(),
                predicted: Vec::new(),
                targets: targets.iter().map(|row| vec![row[label]]).collect(),
            };
            let thresholds = tune(&column, 1, Scope::Global, parsed);
            let found = &reached(&column, &["x".to_owned()], &thresholds, Scope::Global)[0];
            let Some(best) = best[objective].as_f64() else {
                assert_eq!((thresholds[0], found.recall), (0.5, None));
                continue;
            };
            let (precision, recall) = (found.precision.unwrap_or(1.0), found.recall.unwrap());
            let value = match objective {
                "f1" if precision + recall == 0.0 => 0.0,
                "f1" => 2.0 * precision * recall / (precision + recall),
                "recall>=0.8" => precision,
                _ => recall,
            };
            assert!((value - best).abs() < 1e-12, "{objective} of label {label}: {value}, not {best}");
        }
    }
}
