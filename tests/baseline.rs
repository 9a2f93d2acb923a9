//! The linear baseline reaches the F1 of scikit-learn's.

use llmcls::baseline::Baseline;

use std::path::Path;

/// Micro- and macro-F1 above 0.5.
fn f1(probabilities: &[Vec<f32>], targets: &[Vec<f32>]) -> (f64, f64) {
    let labels = targets[0].len();
    let mut counts = vec![[0.0; 3]; labels];
    for (probabilities, targets) in probabilities.iter().zip(targets) {
        for label in 0..labels {
            match (probabilities[label] > 0.5, targets[label] > 0.5) {
                (true, true) => counts[label][0] += 1.0,
                (true, false) => counts[label][1] += 1.0,
                (false, true) => counts[label][2] += 1.0,
                (false, false) => {}
            }
        }
    }
    let of = |[hit, false_positive, false_negative]: [f64; 3]| {
        let all = 2.0 * hit + false_positive + false_negative;
        if all > 0.0 { 2.0 * hit / all } else { 0.0 }
    };
    let total = counts.iter().fold([0.0; 3], |sum, count| [0, 1, 2].map(|i| sum[i] + count[i]));
    (of(total), counts.iter().map(|&count| of(count)).sum::<f64>() / labels as f64)
}

fn read(split: &str) -> (Vec<String>, Vec<Vec<f32>>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/debtags").join(split);
    let mut texts = Vec::new();
    let mut labels = Vec::new();
    for record in csv::Reader::from_path(path).unwrap().records() {
        let record = record.unwrap();
        texts.push(record[1].to_owned());
        labels.push(record.iter().skip(2).map(|cell| cell.parse().unwrap()).collect());
    }
    (texts, labels)
}

/// The generator of scripts/make_baseline_fixtures.py.
fn generate(labels: u64, rows: usize) -> (Vec<String>, Vec<Vec<f32>>) {
    let mut state = 42u64;
    let mut draw = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut texts = Vec::new();
    let mut targets = Vec::new();
    for _ in 0..rows {
        let mut words = Vec::new();
        let mut row = vec![0.0; labels as usize];
        for _ in 0..1 + draw(3) {
            let end = 1 + draw(labels);
            let label = draw(end);
            row[label as usize] = 1.0;
            words.extend((0..2).map(|_| format!("w{label}x{}", draw(4))));
        }
        words.extend((0..10).map(|_| format!("common{}", draw(300))));
        texts.push(words.join(" "));
        targets.push(row);
    }
    (texts, targets)
}

fn assert_f1(trained: &Baseline, texts: &[String], targets: &[Vec<f32>], expected: (f64, f64)) {
    let (micro, macro_mean) = f1(&trained.predict(texts), targets);
    assert!((micro - expected.0).abs() < 0.005 && (macro_mean - expected.1).abs() < 0.005, "{micro} {macro_mean}");
}

#[test]
fn f1_on_debtags_is_that_of_scikit_learn() {
    let (texts, labels) = read("train.csv");
    let (test_texts, test_labels) = read("test.csv");
    let trained = Baseline::fit(&texts, &labels).unwrap();
    assert_f1(&trained, &test_texts, &test_labels, (0.776_52, 0.724_94));
}

#[test]
fn f1_on_a_thousand_labels_is_that_of_scikit_learn() {
    let (texts, labels) = generate(1000, 4000);
    let trained = Baseline::fit(&texts[..3000], &labels[..3000]).unwrap();
    assert_f1(&trained, &texts[3000..], &labels[3000..], (0.718_10, 0.279_11));
}
