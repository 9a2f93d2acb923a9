//! Tokens, kept out of every message and record.

use std::sync::{LazyLock, Mutex};

use regex::Regex;

/// Secrets of this process, longest first.
static KNOWN: Mutex<Vec<String>> = Mutex::new(Vec::new());

const MASK: &str = "***";

/// From here on, [`masked`] hides this text. One of fewer than four characters is no token, and would
/// hide parts of words.
pub fn remember(secret: &str) {
    let secret = secret.trim();
    if secret.len() < 4 {
        return;
    }
    if let Ok(mut known) = KNOWN.lock()
        && !known.iter().any(|other| other == secret)
    {
        known.push(secret.to_owned());
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }
}

/// Remembers what the command line and the environment hold.
pub fn remember_surroundings() {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN"] {
        if let Ok(token) = std::env::var(name) {
            remember(&token);
        }
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    in_arguments(&arguments).into_iter().for_each(|secret| remember(&secret));
}

/// The text without what is, or looks like, a token, and without the password of a URL.
#[must_use]
pub fn masked(text: &str) -> String {
    static TOKEN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\bhf_[A-Za-z0-9]{6,}\b|\bhf_[A-Z][A-Za-z0-9]*\b").expect("the pattern is valid"));
    static USER_INFO: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"://[^/@\s]+@").expect("the pattern is valid"));
    let mut text = text.to_owned();
    if let Ok(known) = KNOWN.lock() {
        for secret in known.iter().filter(|secret| text.contains(secret.as_str())).collect::<Vec<_>>() {
            text = text.replace(secret.as_str(), MASK);
        }
    }
    let text = TOKEN.replace_all(&text, MASK);
    USER_INFO.replace_all(&text, "://***@").into_owned()
}

/// `key=value` for a message or record, without the value of what is, or may be meant as, a token.
#[must_use]
pub fn setting(key: &str, value: &str) -> String {
    format!("{}={}", key.trim(), if is_sensitive(key) || is_sensitive(value) { MASK } else { value })
}

/// Returns true if a text names a secret or looks like one: misspelt keys, mappings and any case included.
fn is_sensitive(text: &str) -> bool {
    let text = text.to_lowercase();
    ["tok", "hf_", "secret", "passw", "api_key", "apikey", "auth"].iter().any(|part| text.contains(part))
}

/// The values of secret keys in the forms that people type: `key=value`, `key:value`, `key value`, `{key: value}`, or
/// the value as the next argument.
fn in_arguments(arguments: &[String]) -> Vec<String> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?i)[\w.]*tok[\w.]*").expect("the pattern is valid"));
    let mut found = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        let Some(key) = NAMED.find(argument).filter(|_| argument.contains("model") || argument.contains("hf_")) else {
            continue;
        };
        let around = |c: char| c.is_whitespace() || "=:{}[]\"',".contains(c);
        let mut values: Vec<&str> = argument[key.end()..].split(around).filter(|part| !part.is_empty()).collect();
        if values.is_empty() {
            let next = arguments[index + 1..].iter().find(|next| next.trim_matches(around).len() > 1);
            values.extend(next.filter(|next| !next.starts_with('-')).map(|next| next.trim_matches(around)));
        }
        found.extend(values.into_iter().map(str::to_owned));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_however_its_key_is_spelled() {
        for arguments in [
            &["--set", "model.hf_token=S3cretT0ken"][..],
            &["--set", "model.hf_token:S3cretT0ken"],
            &["--set", "model.hf_token S3cretT0ken"],
            &["--set=model.hf_tokn=S3cretT0ken"],
            &["--set", "model={hf_token: S3cretT0ken}"],
            &["--set", "model={'hf_token': 'S3cretT0ken'}"],
            &["--set", "model.HF_TOKEN", "=", "S3cretT0ken"],
            &["--set", "model.hf_token=", "S3cretT0ken"],
            &["--set", "model.hf_token=[S3cretT0ken"],
        ] {
            let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
            assert!(in_arguments(&arguments).contains(&"S3cretT0ken".to_owned()), "{arguments:?}");
        }
        let plain = ["--set", "data.text_fields=[token]", "--config", "model/tokens.yaml"].map(String::from);
        assert_eq!(in_arguments(&plain[..2]), Vec::<String>::new());
    }

    #[test]
    fn messages_and_records_hide_tokens_and_passwords() {
        remember("pr1vate-thing");
        let text =
            masked("x pr1vate-thing hf_abcDEF123456 hf_SECRET https://me:pw@host/a model.hf_token HF_HOME hf_hub");
        assert_eq!(text, "x *** *** *** https://***@host/a model.hf_token HF_HOME hf_hub");
        for (key, value) in [("model.hf_token", "a"), ("model", "{hf_token: S}"), ("x", "hf_a"), ("MODEL.TOKEN", "b")] {
            assert!(setting(key, value).ends_with("=***"), "{key}={value}");
        }
        assert_eq!(setting(" train.lr", "1"), "train.lr=1");
    }
}
