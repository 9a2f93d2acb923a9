//! `best/README.md`: the model card that the Hub shows, with its metadata.

use std::fmt::Write;

use serde_json::json;

use super::base_facts::BaseFacts;
use super::classifier_file::ClassifierFile;
use super::markdown::escape;
use super::results::{EvalMetrics, SeedResult, SplitResult};
use crate::config::data::{LongText, WindowPooling};
use crate::console::duration;
use crate::model::families::python::PythonNeeds;

/// The file's name.
pub const NAME: &str = "README.md";

const PROBE: &str = "A classification head, trained alone on the unchanged outputs of its base (a probe), for";

/// Facts for a card in addition to `classifier.json`.
#[derive(Clone, Debug)]
pub struct CardFacts<'a> {
    /// Names the data set.
    pub dataset: &'a str,
    /// Names of splits and their rows.
    pub rows: &'a [(&'a str, usize)],
    /// Settings of the training: names and values.
    pub settings: &'a [(&'a str, String)],
    pub result: &'a SeedResult,
    /// CPU, and threads.
    pub hardware: &'a str,
    /// The texts' language, as ISO 639 has it, if it was told.
    pub language: Option<&'a str>,
    /// The data set's name on the Hub, if it is there.
    pub hub_dataset: Option<&'a str>,
    /// Whether only the head was trained.
    pub is_probe: bool,
    /// What Python needs to read the base.
    pub python: PythonNeeds,
}

/// Writes the card: YAML metadata, then Markdown.
#[must_use]
pub fn model_card(file: &ClassifierFile, facts: &CardFacts<'_>) -> String {
    let base = BaseFacts::of(file);
    let mut card = String::from("---\n");
    for line in metadata(file, &base, facts) {
        card.push_str(&line);
        card.push('\n');
    }
    card.push_str("---\n\n");
    body(&mut card, file, &base, facts).expect("a string takes all that is written");
    card
}

/// Lines of YAML; scalars and lists as JSON, which YAML contains.
fn metadata(file: &ClassifierFile, base: &BaseFacts, facts: &CardFacts<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(base.hub_name.as_ref().map(|name| format!("base_model: {}", json!(name))));
    lines.extend(base.license.as_ref().map(|license| format!("license: {license}")));
    lines.extend(facts.language.map(|language| format!("language: {}", json!(language))));
    lines.extend(facts.hub_dataset.map(|name| format!("datasets: {}", json!([name]))));
    lines.push(r#"metrics: ["f1", "precision", "recall"]"#.to_owned());
    let library = if file.is_whole_model { "transformers" } else { "peft" };
    lines.extend((!facts.is_probe && file.form.is_usual()).then(|| format!("library_name: {library}")));
    lines.push("pipeline_tag: text-classification".to_owned());
    let kind = if is_single(file) { "multi-class" } else { "multi-label" };
    let mut tags = vec![if facts.is_probe { "linear-probe" } else { "lora" }, "text-classification", kind, "llmcls"];
    tags.retain(|tag| !file.is_whole_model || *tag != "lora");
    lines.push(format!("tags: {}", json!(tags)));
    let f1 = |name: &str, value: f64| json!({"type": "f1", "name": name, "value": value});
    let test = facts.result.test.as_ref().map(|test| &test.metrics.scores);
    if let Some(scores) = test {
        let metrics = [f1("f1_micro", scores.f1_micro), f1("f1_macro", scores.f1_macro)];
        let results = json!([{
            "name": format!("{} on {}", base.short, facts.dataset),
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

fn body(card: &mut String, file: &ClassifierFile, base: &BaseFacts, facts: &CardFacts<'_>) -> std::fmt::Result {
    writeln!(card, "# {} on {}\n", escape(&base.short), escape(facts.dataset))?;
    if base.license.as_ref().is_some_and(|license| license.starts_with("llama")) {
        writeln!(
            card,
            "Built with Llama. A model that is given to others must have a name that starts with \"Llama\".\n"
        )?;
    }
    writeln!(
        card,
        "{} {}. It gives a text {} of {} labels: {}. Trained with llmcls {}.\n",
        match file.is_whole_model {
            true => "A text classifier, fine-tuned in full from",
            false if facts.is_probe => PROBE,
            false => "A LoRA adapter and a classification head for",
        },
        base.title(file),
        if is_single(file) { "exactly one" } else { "any number" },
        file.labels.len(),
        some_labels(&file.labels),
        env!("CARGO_PKG_VERSION"),
    )?;
    usage(card, file, base, facts)?;
    thresholds(card, file)?;
    scores(card, file, facts)?;
    training(card, facts)?;
    writeln!(
        card,
        "## Limits\n\nIntended for texts like the training texts, in the same language: expect lower scores on others. The \
         model has the biases of its base and of its labels. {}",
        long_texts(file)
    )
}

/// What is read of a text.
fn long_texts(file: &ClassifierFile) -> String {
    let length = file.max_length;
    let only = "llmcls does so; the Python code above reads the beginning alone.";
    match (file.limit().long_text, file.window_pooling()) {
        (LongText::Cut, _) => format!("Texts are cut at {length} tokens."),
        (LongText::HeadTail, _) => {
            format!("Of a text of more than {length} tokens the beginning and the end are read: {only}")
        }
        (LongText::Windows, pooling) => format!(
            "A text of more than {length} tokens is read in up to {} windows, and a label's logit is the {} of theirs: {only}",
            file.limit().max_windows,
            if pooling == WindowPooling::Mean { "mean" } else { "largest" },
        ),
    }
}

/// The labels' names: as many as a reader takes in at once.
pub(super) fn some_labels(labels: &[String]) -> String {
    const SHOWN: usize = 20;
    let names: Vec<String> = labels.iter().take(SHOWN).map(|label| escape(label)).collect();
    match labels.len() > SHOWN {
        true => format!("{} and {} more", names.join(", "), labels.len() - SHOWN),
        false => names.join(", "),
    }
}

fn usage(card: &mut String, file: &ClassifierFile, base: &BaseFacts, facts: &CardFacts<'_>) -> std::fmt::Result {
    writeln!(card, "## Usage\n\n```sh\nllmcls predict --run . --text \"a text\"\n```\n")?;
    if !file.form.is_usual() {
        return writeln!(
            card,
            "Only llmcls computes this classifier as it was trained ({}). peft and transformers would load its weights and \
             predict something else.\n",
            file.form
        );
    }
    let notes = facts.python.notes();
    if file.is_whole_model {
        return writeln!(
            card,
            "In Python, with transformers:\n\n```python\n{}```\n\n{notes}",
            snippet(file, base, facts)
        );
    }
    if file.random_init {
        return writeln!(card, "The base has random weights made from a seed, so only llmcls can rebuild it.\n");
    }
    if facts.is_probe {
        return writeln!(
            card,
            "peft cannot load an adapter without modules. For Python, write a complete model, which transformers reads: \
             `llmcls export --run . --out DIR`.\n"
        );
    }
    writeln!(
        card,
        "In Python, with peft and transformers:\n\n```python\n{}```\n\n{notes}",
        snippet(file, base, facts)
    )?;
    writeln!(
        card,
        "transformers warns that weights of the head are \"newly initialized\" while it loads the base. This is expected: \
         the next line loads the trained head.\n"
    )
}

/// Describes the thresholds of independent labels.
pub(super) fn thresholds(card: &mut String, file: &ClassifierFile) -> std::fmt::Result {
    if is_single(file) {
        return writeln!(card, "The predicted label is the one with the highest probability.\n");
    }
    writeln!(card, "## Thresholds\n\nA label is predicted if its probability is above its threshold")?;
    writeln!(card, "(`thresholds` in `classifier.json`).\n\n| label | threshold |\n|---|---|")?;
    for (label, threshold) in file.labels.iter().zip(&file.thresholds) {
        writeln!(card, "| {} | {threshold:.3} |", escape(label))?;
    }
    writeln!(card)
}

fn scores(card: &mut String, file: &ClassifierFile, facts: &CardFacts<'_>) -> std::fmt::Result {
    for (split, result) in facts.result.splits() {
        writeln!(card, "## Results on the {split} split\n")?;
        if let Some(untuned) = &result.untuned {
            writeln!(
                card,
                "These scores use the thresholds above, which were tuned on the validation split. With 0.5 for every label: \
                 micro-F1 {}, macro-F1 {}.",
                number(untuned.f1_micro),
                number(untuned.f1_macro)
            )?;
        } else if !is_single(file) {
            writeln!(card, "These scores use the threshold 0.5 for every label.")?;
        }
        if split == "validation" {
            writeln!(card, "The validation split also chose the checkpoint, so its scores are optimistic.")?;
        }
        results(card, result)?;
    }
    Ok(())
}

fn results(card: &mut String, result: &SplitResult) -> std::fmt::Result {
    let EvalMetrics { loss, scores, .. } = &result.metrics;
    writeln!(
        card,
        "\nmicro-F1 {}, macro-F1 {}, loss {}, exact match {}\n",
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
            escape(&row.label),
            number(row.precision),
            number(row.recall),
            number(row.f1),
            number(row.average_precision.unwrap_or(f64::NAN)),
            row.support
        )?;
    }
    writeln!(card)
}

fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "–".to_owned() }
}

fn training(card: &mut String, facts: &CardFacts<'_>) -> std::fmt::Result {
    writeln!(card, "## Training\n\n| setting | value |\n|---|---|")?;
    for (name, count) in facts.rows {
        writeln!(card, "| {name} rows | {count} |")?;
    }
    for (name, value) in facts.settings {
        writeln!(card, "| {name} | {} |", escape(value))?;
    }
    writeln!(card, "| hardware | {} |", escape(facts.hardware))?;
    let time = duration(facts.result.train_runtime);
    writeln!(card, "| time, with evaluation | {time} |\n")
}

/// Labels and thresholds come from `classifier.json`, which `eval --tune_thresholds` may replace after this.
fn snippet(file: &ClassifierFile, base: &BaseFacts, facts: &CardFacts<'_>) -> String {
    let revision =
        file.base.revision.as_ref().map_or_else(String::new, |revision| format!(", revision={}", json!(revision)));
    let (local, name) = match &base.hub_name {
        Some(name) => (String::new(), json!(name).to_string()),
        None => (
            format!("base_directory = {}  # change this: where the base model is\n", json!(base.short)),
            "base_directory".to_owned(),
        ),
    };
    let attention = if facts.python.eager_attention { ", attn_implementation=\"eager\"" } else { "" };
    let (local, import, load) = match file.is_whole_model {
        true => (
            String::new(),
            "",
            format!("model = AutoModelForSequenceClassification.from_pretrained(directory{attention}).eval()\n"),
        ),
        false => (
            local,
            "from peft import PeftModel\n",
            format!(
                "base = AutoModelForSequenceClassification.from_pretrained({name}{revision}, num_labels=len(labels)\
                 {attention})\n\
                 model = PeftModel.from_pretrained(base, directory).eval()\n"
            ),
        ),
    };
    let logits = match file.temperature == 1.0 {
        true => "model(input_ids=ids).logits[0]",
        false => "(model(input_ids=ids).logits[0] / classifier[\"temperature\"])",
    };
    let (activation, decision) = if is_single(file) {
        ("softmax(-1)", "print([labels[int(probabilities.argmax())]])")
    } else {
        (
            "sigmoid()",
            "print([label for label, p, t in zip(labels, probabilities.tolist(), classifier[\"thresholds\"]) if p > t])",
        )
    };
    format!(
        "{}import json\n\nimport torch\n{import}\
         from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
         directory = \".\"  # the directory of this file\n{local}\
         with open(f\"{{directory}}/classifier.json\", encoding=\"utf-8\") as file:\n    classifier = json.load(file)\n\
         labels = classifier[\"labels\"]\n\
         {load}\
         tokenizer = AutoTokenizer.from_pretrained(directory)\n\
         ids = tokenizer(\"a text\", truncation=True, max_length={}, return_tensors=\"pt\")[\"input_ids\"]\n\
         with torch.no_grad():\n    probabilities = {logits}.{activation}\n\
         print(dict(zip(labels, probabilities.tolist())))\n{decision}\n",
        facts.python.first_lines(),
        file.max_length,
    )
}

pub(super) fn is_single(file: &ClassifierFile) -> bool {
    file.problem_type.starts_with("single")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Form;
    use crate::evaluation::Evaluation;
    use crate::metrics::{LabelScores, Predictions, Scores};
    use crate::run::classifier_file::{Base, RecordedFingerprint};

    fn file() -> ClassifierFile {
        ClassifierFile {
            format_version: ClassifierFile::VERSION,
            labels: vec!["a|b".into(), "c".into()],
            thresholds: vec![0.5, 0.25],
            problem_type: "multi_label_classification".into(),
            text_fields: None,
            target_text_column: "text".into(),
            id_column: None,
            temperature: 1.0,
            is_whole_model: false,
            labels_column: None,
            label_separator: None,
            quoting: None,
            max_length: 64,
            long_text: None,
            window_pooling: None,
            max_windows: None,
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
            form: Form::default(),
        }
    }

    fn result() -> SeedResult {
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
        let scores = |f1_micro, f1_macro| Scores { f1_micro, f1_macro, ..Scores::default() };
        let evaluation = Evaluation { predictions: Predictions::default(), loss: 0.25 };
        let metrics = EvalMetrics::new(&evaluation, &scores(0.75, 0.5), 1.0, 1);
        let split = SplitResult { metrics, per_label: vec![row], untuned: Some(scores(0.7, 0.4)) };
        SeedResult {
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
            tuned: None,
            calibration: None,
            validation: split.clone(),
            test: Some(split),
        }
    }

    #[test]
    fn a_card_has_metadata_results_and_the_notice_of_its_base() {
        let file = file();
        let result = result();
        let facts = CardFacts {
            dataset: "d",
            rows: &[("train", 20)],
            settings: &[("learning rate", "0.0002".into())],
            result: &result,
            hardware: "2 threads",
            language: Some("en"),
            hub_dataset: Some("o/d"),
            is_probe: false,
            python: PythonNeeds::default(),
        };
        let card = model_card(&file, &facts);
        for part in [
            "---\nbase_model: \"meta-llama/Llama-3.2-1B\"\nlicense: llama3.2\nlanguage: \"en\"\ndatasets: [\"o/d\"]\n\
             metrics: [\"f1\", \"precision\", \"recall\"]\nlibrary_name: peft\n",
            "\"value\":0.75",
            "Built with Llama",
            "| a\\|b | 1.000 | 0.500 | 0.667 | – | 4 |",
            "2.0 h",
            "| a\\|b | 0.500 |\n| c | 0.250 |",
            "classifier[\"thresholds\"]) if p > t]",
            "tuned on the validation split. With 0.5 for every label: micro-F1 0.700, macro-F1 0.400.",
            "from_pretrained(\"meta-llama/Llama-3.2-1B\", revision=\"v1\", num_labels=len(labels))",
        ] {
            assert!(card.contains(part), "{part} is not in:\n{card}");
        }
        let python = PythonNeeds {
            making_of_class: Some("class X:\n    pass\n".into()),
            version_5: true,
            eager_attention: true,
        };
        let needy = model_card(&file, &CardFacts { python, ..facts.clone() });
        for part in [
            "```python\nclass X:\n    pass\n\n\nimport json\n",
            "num_labels=len(labels), attn_implementation=\"eager\")",
            "needs transformers 5: version 4 has no code",
        ] {
            assert!(needy.contains(part) && !card.contains(part), "{part}:\n{needy}");
        }
        let probe = model_card(&file, &CardFacts { is_probe: true, ..facts });
        assert!(!probe.contains("library_name: peft") && !probe.contains("LoRA adapter"), "{probe}");
        assert!(probe.contains("linear-probe") && probe.contains("llmcls export --run . --out DIR"), "{probe}");
    }

    #[test]
    fn a_local_base_is_named_without_its_path_and_has_the_licence_of_its_own_card() {
        let place = tempfile::tempdir().unwrap();
        let named = |directory: &str| {
            let path = place.path().join(directory);
            std::fs::create_dir_all(&path).unwrap();
            let mut file = file();
            file.base.name = path.display().to_string();
            file.base.revision = None;
            (path, file)
        };
        let result = result();
        let facts = CardFacts {
            dataset: "<i>d</i>\nx",
            rows: &[],
            settings: &[],
            result: &result,
            hardware: "",
            language: None,
            hub_dataset: None,
            is_probe: false,
            python: PythonNeeds::default(),
        };
        let (path, file) = named("llama-2-work/my-model");
        std::fs::write(path.join("README.md"), "---\nlanguage: en\nlicense: MIT\n---\n# My model\n").unwrap();
        let card = model_card(&file, &facts);
        assert!(!card.contains(place.path().to_str().unwrap()) && !card.contains("base_model"), "{card}");
        for part in ["license: mit\n", "base_directory = \"my-model\"", "from_pretrained(base_directory, num_labels"] {
            assert!(card.contains(part), "{part} is not in:\n{card}");
        }
        assert!(card.contains("\n# my-model on &lt;i&gt;d&lt;/i&gt; x\n"), "{card}");
        let (_, file) = named("models--org--base/snapshots/0123");
        let card = model_card(&file, &facts);
        assert!(
            card.contains("base_model: \"org/base\"\n") && card.contains("from_pretrained(\"org/base\", "),
            "{card}"
        );
    }
}
