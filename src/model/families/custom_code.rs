//! `auto_map`: the Python classes in a repository. Some are built into transformers by now.

use anyhow::{Result, bail};
use serde_json::Value;

/// Endings of the names of transformers' own classes.
const CLASSES: [&str; 14] = [
    "Config",
    "Model",
    "PreTrainedModel",
    "ForCausalLM",
    "ForMaskedLM",
    "ForPreTraining",
    "LMHeadModel",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "Tokenizer",
    "TokenizerFast",
];

/// Accepts an `auto_map` whose entries are all classes of the family in transformers, in each form that transformers
/// writes: `module.Class`, `owner/name--module.Class`, a list of a slow and a fast one, null.
pub(super) fn check(auto_map: &Value, model_type: &str, class_prefix: &str) -> Result<()> {
    let module = model_type.replace('-', "_");
    let is_own = |class: &str| {
        let class = class.rsplit_once("--").map_or(class, |(_, class)| class);
        let Some((file, class)) = class.split_once('.') else { return false };
        let kind = file.strip_suffix(&format!("_{module}")).or(file.strip_suffix(&format!("_{module}_fast")));
        // NomicBERT's files have a name for transformers.
        let kind = kind.map(|kind| kind.strip_suffix("_hf").unwrap_or(kind));
        kind.is_some_and(|kind| ["configuration", "modeling", "tokenization"].contains(&kind))
            && class.strip_prefix(class_prefix).is_some_and(|ending| CLASSES.contains(&ending))
    };
    let is_fine = |value: &Value| match value {
        Value::Null => true,
        Value::String(class) => is_own(class),
        _ => false,
    };
    let bad = match auto_map {
        Value::Object(entries) => entries.values().find(|value| match value {
            Value::Array(list) => !list.iter().all(is_fine),
            other => !is_fine(other),
        }),
        other => Some(other),
    };
    match bad {
        None => Ok(()),
        Some(bad) => bail!(
            "`auto_map` asks for custom code, {bad}, which llmcls does not run; if the model computes what transformers' \
             own {class_prefix} classes do, remove `auto_map`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_accepted(entry: &str) -> bool {
        let auto_map: Value = serde_json::from_str(&format!(r#"{{"AutoModel": {entry}}}"#)).unwrap();
        check(&auto_map, "phi3", "Phi3").is_ok()
    }

    /// The forms in microsoft/Phi-3-mini-4k-instruct and models fine-tuned from it.
    #[test]
    fn classes_that_transformers_has_built_in_are_accepted_in_every_form() {
        for entry in [
            r#""modeling_phi3.Phi3ForCausalLM""#,
            r#""configuration_phi3.Phi3Config""#,
            r#""microsoft/Phi-3-mini-4k-instruct--configuration_phi3.Phi3Config""#,
            r#"["tokenization_phi3.Phi3Tokenizer", null]"#,
            r#"[null, "owner/name--tokenization_phi3_fast.Phi3TokenizerFast"]"#,
            "null",
        ] {
            assert!(is_accepted(entry), "{entry}");
        }
    }

    #[test]
    fn other_code_is_refused() {
        for entry in [
            r#""modeling_other.Phi3ForCausalLM""#,
            r#""modeling_phi3.Phi3Evil""#,
            r#""modeling_phi3.LlamaModel""#,
            r#""phi3.Phi3Config""#,
            r#""microsoft/configuration_phi3.Phi3Config--x.Y""#,
            r#"["tokenization_phi3.Phi3Tokenizer", "x.Y"]"#,
            "7",
        ] {
            assert!(!is_accepted(entry), "{entry}");
        }
    }
}
