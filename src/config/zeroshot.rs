//! `zeroshot:` what `llmcls zeroshot` asks the model.

use super::keys::{or, section};

/// Asks for labels by name and description, then shows the text.
const PROMPT: &str = "Decide which labels apply to a text. There are these labels:\n{labels}\n\n{examples}Text: {text}";

section! {
    /// The section's keys.
    pub struct ZeroshotConfig in "zeroshot" {
        /// The prompt of `llmcls zeroshot`, which appends its question. `{labels}` stands for the labels with their
        /// `data.label_descriptions`, `{examples}` for the training rows of `--shots`, `{text}` for the row's text. The
        /// part before `{text}` is computed once for all rows.
        prompt: String = or(PROMPT.to_owned())
            .check(|prompt| prompt.matches("{text}").count() == 1, "has no {text}, or more than one")
            .check(|prompt| prompt.contains("{labels}"), "has no {labels}");
    }
}
