//! `best/README.md`: the model card that the Hub shows, with its metadata.

use std::fmt::Write;

use serde_json::{Value, json};

use super::classifier_file::ClassifierFile;
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
    /// The seed's record: `validation` and `test` with their metrics and `per_label`.
    pub record: &'a Value,
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
    let metrics: Vec<Value> = ["f1_micro", "f1_macro"]
        .iter()
        .filter_map(|name| {
            let value = facts.record["test"][format!("eval_{name}")].as_f64()?;
            Some(json!({"type": "f1", "name": name, "value": value}))
        })
        .collect();
    if !metrics.is_empty() {
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
        without_path(&file.base_title(), &file.base.name),
        env!("CARGO_PKG_VERSION"),
        file.labels.len(),
        file.labels.iter().map(|label| markdown(label)).collect::<Vec<_>>().join(", ")
    )?;
    let rows: Vec<String> = facts.rows.iter().map(|(name, count)| format!("{count} {name}")).collect();
    writeln!(card, "## Training\n\nRows: {}. Hardware: {}.", rows.join(", "), facts.hardware)?;
    let time = duration(facts.record["train_runtime"].as_f64().unwrap_or(0.0));
    writeln!(card, "Time, evaluation included: {time}.\n\n| setting | value |\n|---|---|")?;
    for (name, value) in facts.settings {
        writeln!(card, "| {name} | {} |", markdown(value))?;
    }
    for split in ["test", "validation"] {
        results(card, split, &facts.record[split])?;
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

fn results(card: &mut String, split: &str, metrics: &Value) -> std::fmt::Result {
    let Some(labels) = metrics["per_label"].as_array() else { return Ok(()) };
    let number = |value: &Value| value.as_f64().map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
    writeln!(
        card,
        "\n## Results on {split}\n\nmicro-F1 {}, macro-F1 {}, loss {}, all labels right {}\n",
        number(&metrics["eval_f1_micro"]),
        number(&metrics["eval_f1_macro"]),
        number(&metrics["eval_loss"]),
        number(&metrics["eval_accuracy"])
    )?;
    writeln!(card, "| label | precision | recall | F1 | average precision | support |\n|---|---|---|---|---|---|")?;
    for row in labels {
        writeln!(
            card,
            "| {} | {} | {} | {} | {} | {} |",
            markdown(row["label"].as_str().unwrap_or_default()),
            number(&row["precision"]),
            number(&row["recall"]),
            number(&row["f1"]),
            number(&row["average_precision"]),
            row["support"]
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
        json!(without_path(&file.base.name, &file.base.name)),
        file.max_length,
        if is_single { "softmax(-1)" } else { "sigmoid()" }
    )
}

/// Text that Markdown and HTML show as it is, on one line.
fn markdown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => shown.push_str("&amp;"),
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '~' | '#' | '$' => shown.extend(['\\', character]),
            _ if character.is_control() => shown.push(' '),
            _ => shown.push(character),
        }
    }
    shown
}

/// The base without the directories that lead to it here: they are nobody else's.
fn without_path(text: &str, name: &str) -> String {
    let is_path = std::path::Path::new(name).is_absolute() || name.starts_with('.') || name.split('/').count() > 2;
    if is_path { text.replace(name, short(name)) } else { text.to_owned() }
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
        let record = json!({"train_runtime": 7200.0, "test": {"eval_f1_micro": 0.75, "eval_f1_macro": 0.5, "per_label": [
            {"label": "a|b", "precision": 1.0, "recall": 0.5, "f1": 0.667, "average_precision": null, "support": 4},
        ]}});
        let facts = CardFacts {
            dataset: "d",
            rows: &[("train", 20)],
            settings: &[("learning rate", "0.0002".into())],
            record: &record,
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
            "tell 2 labels of a text: a\\|b, c.",
            "labels = [\"a|b\",\"c\"]",
            "from_pretrained(\"meta-llama/Llama-3.2-1B\", revision=\"v1\", num_labels=len(labels))",
        ] {
            assert!(card.contains(part), "{part} is not in:\n{card}");
        }
    }
    #[test]
    fn labels_and_paths_of_any_kind_are_shown_as_text() {
        assert_eq!(markdown("<b>a|*b*</b>\nc_d & e"), "&lt;b&gt;a\\|\\*b\\*&lt;/b&gt; c\\_d &amp; e");
        assert_eq!(without_path("/home/me/models/tiny (random)", "/home/me/models/tiny"), "tiny (random)");
        assert_eq!(without_path("../tiny", "../tiny"), "tiny");
        assert_eq!(without_path("org/name@v1", "org/name"), "org/name@v1");
    }
}
