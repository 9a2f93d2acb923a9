//! `best/README.md`: the model card that the Hub shows, with its metadata.

use std::fmt::Write;

use serde_json::json;

use super::classifier_file::ClassifierFile;
use super::results::{EvalMetrics, SeedResult, SplitResult};
use crate::console::duration;

/// What a card says beside `classifier.json`.
#[derive(Clone, Debug)]
pub struct CardFacts<'a> {
    /// Names the data set.
    pub dataset: &'a str,
    /// Names of splits and their rows.
    pub rows: &'a [(&'a str, usize)],
    /// What it was trained with: names and values.
    pub settings: &'a [(&'a str, String)],
    /// The seed's result.
    pub result: &'a SeedResult,
    /// CPU, and threads.
    pub hardware: &'a str,
    /// The texts' language, as ISO 639 has it, if it was told.
    pub language: Option<&'a str>,
    /// The data set's name on the Hub, if it is there.
    pub hub_dataset: Option<&'a str>,
}

/// Writes the card: YAML metadata, then Markdown.
#[must_use]
pub fn model_card(file: &ClassifierFile, facts: &CardFacts<'_>) -> String {
    let mut card = String::from("---\n");
    for line in metadata(file, facts) {
        card.push_str(&line);
        card.push('\n');
    }
    card.push_str("---\n\n");
    body(&mut card, file, facts).expect("a string takes all that is written");
    card
}

/// Lines of YAML; scalars and lists as JSON, which YAML contains.
fn metadata(file: &ClassifierFile, facts: &CardFacts<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    // A directory is no name on the Hub.
    if is_hub_name(&file.base.name) {
        lines.push(format!("base_model: {}", json!(file.base.name)));
    }
    if let Some(license) = license(&file.base.name) {
        lines.push(format!("license: {license}"));
    }
    lines.extend(facts.language.map(|language| format!("language: {}", json!(language))));
    lines.extend(facts.hub_dataset.map(|name| format!("datasets: {}", json!([name]))));
    lines.push("library_name: peft".to_owned());
    lines.push("pipeline_tag: text-classification".to_owned());
    lines.push(r#"tags: ["lora", "text-classification", "multi-label", "llmcls"]"#.to_owned());
    let f1 = |name: &str, value: f64| json!({"type": "f1", "name": name, "value": value});
    let test = facts.result.test.as_ref().map(|test| &test.metrics.scores);
    let metrics = test.map(|scores| [f1("f1_micro", scores.f1_micro), f1("f1_macro", scores.f1_macro)]);
    if let Some(metrics) = metrics {
        let results = json!([{
            "name": format!("{} on {}", short(&file.base.name), facts.dataset),
            "results": [{
                "task": {"type": "text-classification"},
                "dataset": {"name": facts.dataset, "type": facts.hub_dataset.unwrap_or(facts.dataset), "split": "test"},
                "metrics": metrics,
            }],
        }]);
        lines.push(format!("model-index: {results}"));
    }
    lines
}

fn body(card: &mut String, file: &ClassifierFile, facts: &CardFacts<'_>) -> std::fmt::Result {
    writeln!(card, "# {} on {}\n", short(&file.base.name), facts.dataset)?;
    if license(&file.base.name).is_some_and(|license| license.starts_with("llama")) {
        writeln!(
            card,
            "Built with Llama. A model that is given to others must have a name that starts with \"Llama\".\n"
        )?;
    }
    writeln!(
        card,
        "A LoRA adapter and a classification head for `{}`, trained by llmcls {} to tell {} labels of a text: {}.\n",
        file.base_title(),
        env!("CARGO_PKG_VERSION"),
        file.labels.len(),
        file.labels.join(", ")
    )?;
    let rows: Vec<String> = facts.rows.iter().map(|(name, count)| format!("{count} {name}")).collect();
    writeln!(card, "## Training\n\nRows: {}. Hardware: {}.", rows.join(", "), facts.hardware)?;
    let time = duration(facts.result.train_runtime);
    writeln!(card, "Time, evaluation included: {time}.\n\n| setting | value |\n|---|---|")?;
    for (name, value) in facts.settings {
        writeln!(card, "| {name} | {value} |")?;
    }
    for (split, result) in facts.result.splits() {
        results(card, split, result)?;
    }
    writeln!(
        card,
        "## Use\n\nMeant for texts like those of the data set above, in the same language, and for nothing that needs more \
         certainty than the scores here give. `llmcls predict --run DIR --input_csv FILE`{}",
        if file.random_init {
            ". The base was made from a seed, not loaded: only llmcls can rebuild it.\n".to_owned()
        } else {
            format!(", or in Python:\n\n```python\n{}```\n", snippet(file))
        }
    )?;
    writeln!(
        card,
        "Thresholds of the labels: {}.\n\n## Limits\n\nScores hold for texts like those of the data set above; the model \
         has the biases of its base and of these labels, and texts are cut at {} tokens.",
        file.thresholds.iter().map(|threshold| format!("{threshold:.3}")).collect::<Vec<_>>().join(", "),
        file.max_length
    )
}

fn results(card: &mut String, split: &str, result: &SplitResult) -> std::fmt::Result {
    let number = |value: f64| if value.is_finite() { format!("{value:.3}") } else { "–".to_owned() };
    let EvalMetrics { loss, scores, .. } = &result.metrics;
    writeln!(
        card,
        "\n## Results on {split}\n\nmicro-F1 {}, macro-F1 {}, loss {}, all labels right {}\n",
        number(scores.f1_micro),
        number(scores.f1_macro),
        number(*loss),
        number(scores.accuracy)
    )?;
    writeln!(card, "| label | precision | recall | F1 | average precision | support |\n|---|---|---|---|---|---|")?;
    for row in &result.per_label {
        writeln!(
            card,
            "| {} | {} | {} | {} | {} | {} |",
            row.label.replace('|', "\\|"),
            number(row.precision),
            number(row.recall),
            number(row.f1),
            number(row.average_precision.unwrap_or(f64::NAN)),
            row.support
        )?;
    }
    writeln!(card)
}

fn snippet(file: &ClassifierFile) -> String {
    let is_single = file.problem_type.starts_with("single");
    let revision =
        file.base.revision.as_ref().map_or_else(String::new, |revision| format!(", revision={}", json!(revision)));
    format!(
        "from peft import PeftModel\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
         labels = {}\n\
         base = AutoModelForSequenceClassification.from_pretrained({}{revision}, num_labels=len(labels))\n\
         model = PeftModel.from_pretrained(base, \".\").eval()  # this directory\n\
         tokenizer = AutoTokenizer.from_pretrained(\".\")\n\
         ids = tokenizer(\"a text\", truncation=True, max_length={}, return_tensors=\"pt\")[\"input_ids\"]\n\
         probabilities = model(input_ids=ids).logits[0].{}\n\
         print(dict(zip(labels, probabilities.tolist())))\n",
        json!(file.labels),
        json!(file.base.name),
        file.max_length,
        if is_single { "softmax(-1)" } else { "sigmoid()" }
    )
}

fn short(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or(name)
}

fn is_hub_name(name: &str) -> bool {
    name.split('/').count() == 2 && !std::path::Path::new(name).exists()
}

/// The licence of a base, where its name tells.
fn license(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    [
        ("llama-3.3", "llama3.3"),
        ("llama-3.2", "llama3.2"),
        ("llama-3.1", "llama3.1"),
        ("meta-llama-3", "llama3"),
        ("llama-2", "llama2"),
        ("smollm", "apache-2.0"),
        ("tinyllama", "apache-2.0"),
    ]
    .into_iter()
    .find(|(part, _)| name.contains(part))
    .map(|(_, license)| license)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Evaluation;
    use crate::metrics::{LabelScores, Predictions, Scores};
    use crate::run::classifier_file::{Base, RecordedFingerprint};

    #[test]
    fn a_card_has_metadata_results_and_the_notice_of_its_base() {
        let file = ClassifierFile {
            format_version: ClassifierFile::VERSION,
            labels: vec!["a|b".into(), "c".into()],
            thresholds: vec![0.5, 0.25],
            problem_type: "multi_label_classification".into(),
            text_fields: None,
            target_text_column: "text".into(),
            id_column: None,
            labels_column: None,
            label_separator: None,
            max_length: 64,
            base: Base {
                name: "meta-llama/Llama-3.2-1B".into(),
                revision: Some("v1".into()),
                commit: None,
                fingerprint: RecordedFingerprint::Sampled(String::new()),
            },
            random_init: false,
            init_seed: 0,
            torch_dtype: "bfloat16".into(),
            compute: "float32".into(),
            use_4bit: true,
        };
        let row = LabelScores {
            label: "a|b".into(),
            precision: 1.0,
            recall: 0.5,
            f1: 0.667,
            support: 4,
            predicted: 2,
            average_precision: None,
            roc_auc: None,
        };
        let scores = Scores { f1_micro: 0.75, f1_macro: 0.5, ..Scores::default() };
        let evaluation = Evaluation { predictions: Predictions::default(), loss: 0.25 };
        let metrics = EvalMetrics::new(&evaluation, &scores, 1.0, 1);
        let split = SplitResult { metrics, per_label: vec![row], untuned: None };
        let result = SeedResult {
            seed: 1,
            train_loss: 0.5,
            train_runtime: 7200.0,
            train_samples_per_second: 1.0,
            train_steps_per_second: 1.0,
            train_tokens_per_second: 1.0,
            steps: 10,
            epoch: 2.0,
            best_epoch: 1.0,
            optimizer_bytes: 8,
            thresholds: vec![0.5, 0.25],
            validation: split.clone(),
            test: Some(split),
        };
        let facts = CardFacts {
            dataset: "d",
            rows: &[("train", 20)],
            settings: &[("learning rate", "0.0002".into())],
            result: &result,
            hardware: "2 threads",
            language: Some("en"),
            hub_dataset: Some("o/d"),
        };
        let card = model_card(&file, &facts);
        for part in [
            "---\nbase_model: \"meta-llama/Llama-3.2-1B\"\nlicense: llama3.2\nlanguage: \"en\"\ndatasets: [\"o/d\"]\n\
             library_name: peft\n",
            "\"value\":0.75",
            "Built with Llama",
            "| a\\|b | 1.000 | 0.500 | 0.667 | – | 4 |",
            "2.0 h",
            "labels = [\"a|b\",\"c\"]",
            "from_pretrained(\"meta-llama/Llama-3.2-1B\", revision=\"v1\", num_labels=len(labels))",
        ] {
            assert!(card.contains(part), "{part} is not in:\n{card}");
        }
    }
}
