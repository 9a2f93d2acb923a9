//! The card of a complete model: that of its adapter, with the usage and the thresholds that now hold.

use std::fmt::Write;

use super::base_facts::BaseFacts;
use super::classifier_file::ClassifierFile;
use super::markdown::escape;
use super::model_card::{is_single, some_labels, thresholds};
use crate::model::families::python::PythonNeeds;
use crate::model::weights::Precision;

/// Facts about a merge.
#[derive(Clone, Debug)]
pub struct MergeFacts {
    /// Storage of the weights.
    pub dtype: Precision,
    /// True if the base was stored in 4 bits.
    pub was_4bit: bool,
    /// What Python needs to read the model.
    pub python: PythonNeeds,
    /// The token with which Python pads batches.
    pub padding: Option<String>,
    /// Largest difference of a probability from the classifier with its adapter apart.
    pub difference: f32,
}

/// Writes the card. `card` is the adapter's, if it has one: its scores and settings stay.
#[must_use]
pub fn merged_card(card: Option<&str>, file: &ClassifierFile, facts: &MergeFacts) -> String {
    let (metadata, body) = split(card.unwrap_or_default());
    let mut text = String::from("---\n");
    let base = BaseFacts::of(file);
    let kept = metadata.lines().filter(|line| !["library_name:", "tags:"].iter().any(|key| line.starts_with(key)));
    kept.for_each(|line| {
        text.push_str(line);
        text.push('\n');
    });
    let kind = if is_single(file) { "multi-class" } else { "multi-label" };
    let _ = writeln!(text, "library_name: transformers\ntags: [\"text-classification\", \"{kind}\", \"llmcls\"]");
    if metadata.is_empty() {
        text.push_str("pipeline_tag: text-classification\n");
    }
    if base.hub_name.is_some() {
        text.push_str("base_model_relation: finetune\n");
    }
    text.push_str("---\n\n");
    let title = body.lines().find(|line| line.starts_with("# "));
    let title = title.map_or_else(|| format!("# {}, fine-tuned", escape(&base.short)), str::to_owned);
    let notice = body.lines().find(|line| line.starts_with("Built with Llama"));
    write_body(&mut text, (&title, notice), file, (facts, &base)).expect("a string takes all that is written");
    for heading in ["## Results", "## Training", "## Limits"] {
        sections(body, heading).for_each(|section| text.push_str(section));
    }
    text
}

fn write_body(
    text: &mut String,
    (title, notice): (&str, Option<&str>),
    file: &ClassifierFile,
    (facts, base): (&MergeFacts, &BaseFacts),
) -> std::fmt::Result {
    writeln!(text, "{title}\n")?;
    if let Some(notice) = notice {
        writeln!(text, "{notice}\n")?;
    }
    writeln!(
        text,
        "A complete classifier: {} with a LoRA adapter merged into its weights. It gives a text {} of {} labels: {}. \
         Trained with llmcls {}.\n",
        base.title(file),
        if is_single(file) { "exactly one" } else { "any number" },
        file.labels.len(),
        some_labels(&file.labels),
        env!("CARGO_PKG_VERSION"),
    )?;
    writeln!(
        text,
        "## Usage\n\n```python\n{}from transformers import pipeline\n\nclassify = pipeline(\"text-classification\", model=\".\", \
         top_k=None, truncation=True{})\nprint(classify(\"a text\"))\n```\n\n`top_k=None` returns the probability of every \
         label; `truncation=True` cuts texts at {} tokens, as in training.\n\n```sh\nllmcls predict --run . --text \"a \
         text\"\n```\n",
        facts.python.first_lines(),
        if facts.python.eager_attention { ", model_kwargs={\"attn_implementation\": \"eager\"}" } else { "" },
        file.max_length
    )?;
    text.push_str(&facts.python.notes());
    if facts.padding.is_none() {
        writeln!(text, "The tokenizer has no token to pad with: pass one text at a time in Python.\n")?;
    }
    thresholds(text, file)?;
    writeln!(text, "## Merging\n")?;
    if facts.was_4bit {
        writeln!(
            text,
            "The adapter was trained on a base in 4 bits (NF4), and merged into the numbers that these stand for, not into \
             the base's original weights."
        )?;
    }
    writeln!(
        text,
        "The weights are stored in {}. On a few short texts no probability differed from that of the base with its adapter \
         apart by more than {:.1e}.\n",
        facts.dtype.name(),
        facts.difference
    )
}

/// Metadata and body of a card.
fn split(card: &str) -> (&str, &str) {
    let inside = card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n"));
    inside.unwrap_or(("", card))
}

/// The sections of a body whose heading begins with `heading`.
fn sections<'a>(body: &'a str, heading: &'a str) -> impl Iterator<Item = &'a str> {
    let starts: Vec<usize> = body.match_indices("\n## ").map(|(at, _)| at + 1).collect();
    let ends = starts.iter().skip(1).copied().chain([body.len()]).collect::<Vec<_>>();
    starts.into_iter().zip(ends).map(|(start, end)| &body[start..end]).filter(move |text| text.starts_with(heading))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_and_licence_of_the_adapter_stay_and_its_usage_goes() {
        let file: ClassifierFile = serde_json::from_str(
            r#"{"format_version": 2, "labels": ["a", "b"], "thresholds": [0.5, 0.25],
                "problem_type": "multi_label_classification", "text_fields": null, "target_text_column": "text",
                "id_column": null, "max_length": 40, "base": {"name": "o/m", "revision": null, "fingerprint": ""},
                "random_init": false, "init_seed": 0, "torch_dtype": "float32", "use_4bit": true}"#,
        )
        .unwrap();
        let card = "---\nbase_model: \"o/m\"\nlicense: mit\nlibrary_name: peft\ntags: [\"lora\"]\n---\n\n# m on d\n\nA LoRA \
                    adapter.\n\n## Usage\n\npeft\n\n## Thresholds\n\nold\n\n## Results on the test split\n\n0.75\n\n## \
                    Training\n\nrows\n\n## Limits\n\nlimits\n";
        let facts = MergeFacts {
            dtype: Precision::Bfloat16,
            was_4bit: true,
            python: PythonNeeds { eager_attention: true, ..PythonNeeds::default() },
            padding: Some("x".into()),
            difference: 0.002,
        };
        let merged = merged_card(Some(card), &file, &facts);
        for part in [
            "---\nbase_model: \"o/m\"\nlicense: mit\nlibrary_name: transformers\n",
            "base_model_relation: finetune\n---\n\n# m on d\n",
            "cuts texts at 40 tokens",
            "| b | 0.250 |",
            "in 4 bits (NF4)",
            "stored in bfloat16. On a few short texts no probability differed from that of the base with its adapter apart \
             by more than 2.0e-3",
            "## Results on the test split\n\n0.75\n\n## Training\n\nrows\n\n## Limits\n\nlimits\n",
        ] {
            assert!(merged.contains(part), "{part} is not in:\n{merged}");
        }
        assert!(merged.contains("```python\nfrom transformers import pipeline\n"), "{merged}");
        let python = PythonNeeds { making_of_class: Some("class X:\n    pass\n".into()), ..PythonNeeds::default() };
        let made = MergeFacts { python, ..facts.clone() };
        let made = merged_card(Some(card), &file, &made);
        assert!(made.contains("```python\nclass X:\n    pass\n\n\nfrom transformers import pipeline\n"), "{made}");
        let python = PythonNeeds { version_5: true, ..PythonNeeds::default() };
        let newer = merged_card(Some(card), &file, &MergeFacts { python, ..facts.clone() });
        assert!(newer.contains("needs transformers 5") && !merged.contains("transformers 5"), "{newer}");
        assert!(!merged.contains("peft") && !merged.contains("lora\""), "{merged}");
        assert!(merged_card(None, &file, &facts).contains("# m, fine-tuned"));
    }
}
