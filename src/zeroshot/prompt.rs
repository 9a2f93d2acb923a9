//! The text that the model reads: the labels, examples, the row's text, and the question.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value as Json;

use super::chat_template::{ChatTemplate, Message};

/// A training row as an example: its text and its labels.
#[derive(Clone, Debug)]
pub struct Shot {
    /// The text, cut as the rows are.
    pub text: String,
    /// True for each label that the row has.
    pub labels: Vec<bool>,
}

/// Writes prompts for the rows of an experiment.
pub struct Prompts {
    /// The prompt before and behind the row's text.
    parts: [String; 2],
    /// Each label in quotes, and its description in brackets.
    labels: Vec<String>,
    is_single: bool,
    chat: Option<ChatTemplate>,
}

impl Prompts {
    /// Fills in what all rows share. `prompt` is `zeroshot.prompt`.
    ///
    /// # Errors
    /// If the prompt has no place for the examples that are given, or a description is of no label.
    pub fn new(
        prompt: &str,
        labels: &[String],
        descriptions: &BTreeMap<String, String>,
        shots: &[Shot],
        is_single: bool,
        chat: Option<ChatTemplate>,
    ) -> Result<Self> {
        if let Some(name) = descriptions.keys().find(|name| !labels.contains(name)) {
            bail!("data.label_descriptions: there is no label `{name}`; the labels are {}", labels.join(", "));
        }
        if !shots.is_empty() && !prompt.contains("{examples}") {
            bail!("zeroshot.prompt has no {{examples}}, where the training rows of --shots go");
        }
        let described = |label: &String| match descriptions.get(label) {
            Some(description) => format!("{} ({description})", quoted(label)),
            None => quoted(label),
        };
        let listed = |label: &String| match descriptions.get(label) {
            Some(description) => format!("- {label}: {description}\n"),
            None => format!("- {label}\n"),
        };
        let listing: String = labels.iter().map(listed).collect();
        let example = |shot: &Shot| format!("Text: {}\nLabels: {}\n\n", shot.text, list(labels, &shot.labels));
        let examples: String = shots.iter().map(example).collect();
        // A label or an example may hold what looks like a placeholder.
        let fill = |part: &str| {
            let filled: Vec<String> =
                part.split("{labels}").map(|part| part.replace("{examples}", &examples)).collect();
            filled.join(listing.trim_end())
        };
        let (before, behind) = prompt.split_once("{text}").unwrap_or((prompt, ""));
        Ok(Self {
            parts: [fill(before), fill(behind)],
            labels: labels.iter().map(described).collect(),
            is_single,
            chat,
        })
    }

    /// Whether the model's chat template writes the prompt.
    #[must_use]
    pub fn is_chat(&self) -> bool {
        self.chat.is_some()
    }

    /// Asks for a JSON list of a text's labels. The answer begins at once, or after a space without a chat template.
    ///
    /// # Errors
    /// If the chat template refuses it.
    pub fn list(&self, text: &str) -> Result<String> {
        let wanted = match self.is_single {
            true => "that holds the one label that applies",
            false => "of the labels that apply",
        };
        self.ask(text, &format!("Answer with a JSON list {wanted}, and with nothing else."), "Labels:")
    }

    /// Asks whether a label applies to a text, yes or no.
    ///
    /// # Errors
    /// If the chat template refuses it.
    pub fn question(&self, text: &str, label: usize) -> Result<String> {
        let question = format!("Does the label {} apply to the text? Answer yes or no.", self.labels[label]);
        self.ask(text, &question, "Answer:")
    }

    fn ask(&self, text: &str, question: &str, cue: &str) -> Result<String> {
        let [before, behind] = &self.parts;
        let asked = format!("{before}{}{behind}\n\n{question}", text.trim());
        match &self.chat {
            Some(chat) => chat.render(&[Message { role: "user".to_owned(), content: asked }]),
            None => Ok(format!("{asked}\n{cue}")),
        }
    }
}

/// A label as JSON writes it.
#[must_use]
pub fn quoted(label: &str) -> String {
    Json::from(label).to_string()
}

/// Labels as a JSON list, such as the model is to answer with.
#[must_use]
pub fn list(labels: &[String], is_set: &[bool]) -> String {
    let names: Vec<String> =
        labels.iter().zip(is_set).filter(|(_, is_set)| **is_set).map(|(label, _)| quoted(label)).collect();
    format!("[{}]", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: &str = "Labels:\n{labels}\n\n{examples}Text: {text}!";

    fn prompts(chat: Option<ChatTemplate>) -> Prompts {
        let labels = ["a {text}".to_owned(), "b\"".to_owned()];
        let descriptions = BTreeMap::from([("b\"".to_owned(), "the {labels}".to_owned())]);
        let shot = Shot { text: "x {text}".to_owned(), labels: vec![false, true] };
        Prompts::new(PROMPT, &labels, &descriptions, &[shot], false, chat).unwrap()
    }

    #[test]
    fn placeholders_are_those_of_the_prompt_alone() {
        let expected = "Labels:\n- a {text}\n- b\": the {labels}\n\nText: x {text}\nLabels: [\"b\\\"\"]\n\nText: row\n\n\
                        {labels}!\n\nAnswer with a JSON list of the labels that apply, and with nothing else.\nLabels:";
        assert_eq!(prompts(None).list(" row\n\n{labels} ").unwrap(), expected);
    }

    #[test]
    fn the_question_names_the_label_and_stands_in_the_chat_template() {
        let chat = ChatTemplate::new("<{{ messages[0].role }}>{{ messages[0].content }}</>", "", "").unwrap();
        let question = prompts(Some(chat)).question("row", 1).unwrap();
        let end = "Text: row!\n\nDoes the label \"b\\\"\" (the {labels}) apply to the text? Answer yes or no.</>";
        assert!(question.starts_with("<user>Labels:") && question.ends_with(end), "{question}");
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let labels = ["a".to_owned()];
        let new = |prompt: &str, names: &[&str], shots: &[Shot]| {
            let descriptions = names.iter().map(|name| ((*name).to_owned(), String::new())).collect();
            Prompts::new(prompt, &labels, &descriptions, shots, true, None).map(|_| ()).map_err(|e| e.to_string())
        };
        assert!(new(PROMPT, &["a", "c"], &[]).unwrap_err().contains("data.label_descriptions: there is no label `c`"));
        let shot = Shot { text: String::new(), labels: vec![true] };
        assert!(new("{labels} {text}", &[], &[shot]).unwrap_err().contains("zeroshot.prompt has no {examples}"));
        assert!(new("{labels} {text}", &[], &[]).is_ok());
    }
}
