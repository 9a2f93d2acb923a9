//! Names that a server sends and that become paths or addresses: the one place where they are checked.

use anyhow::{Result, ensure};

/// Checks that a file's name stays inside the directory that it is joined to: plain components with `/` between them.
///
/// # Errors
/// If the name is absolute, names a drive, or has a component that leads elsewhere.
pub(super) fn check_file(name: &str) -> Result<()> {
    let is_plain = |part: &str| {
        // Windows drops dots and spaces at the end of a component: `.. ` is `..` there.
        let trimmed = part.trim_end_matches(['.', ' ']);
        !trimmed.is_empty()
            && !part.chars().any(|c| c == '\\' || c.is_control() || cfg!(windows) && ":*?\"<>|".contains(c))
    };
    let has_drive = matches!(name.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    ensure!(
        !has_drive && name.split('/').all(is_plain),
        "the file name `{}` is not a plain path inside the repository; it is refused",
        name.escape_debug()
    );
    Ok(())
}

/// Returns true if a commit or a hash is safe as a file's name: letters, digits and hyphens only.
pub(super) fn is_hash(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Returns true if a revision is a commit's full hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `org/name[@revision]` as a repository and a revision.
pub(super) fn parse_repository(name: &str) -> Option<(&str, Option<&str>)> {
    let (repository, revision) = match name.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (name, None),
    };
    let is_plain = |part: &str| {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(is_allowed)
    };
    let is_repository = repository.split('/').count() == 2 && repository.split('/').all(is_plain);
    (is_repository && revision.is_none_or(|revision| revision.split('/').all(is_plain)))
        .then_some((repository, revision))
}

/// A file's name in an address.
pub(super) fn percent_encode(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_a_directory_are_refused() {
        for name in ["config.json", "onnx/model.onnx", "data/train-00000-of-00001.parquet", "a b/..c", "%2e%2e/x"] {
            check_file(name).unwrap();
        }
        for name in [
            "",
            "/etc/passwd",
            "../a",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a/.",
            "..\\a",
            "a\\b",
            "C:/a",
            "c:a",
            "a\0b",
            "a/.. /b",
            "...",
            "a\nb",
            "//host/share",
        ] {
            assert!(check_file(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_repository_has_two_parts_and_perhaps_a_revision() {
        assert_eq!(parse_repository("org/name"), Some(("org/name", None)));
        assert_eq!(parse_repository("org/name@refs/pr/1"), Some(("org/name", Some("refs/pr/1"))));
        for name in ["name", "a/b/c", "../b", "org/name@", "org/na me", "~/b", "org/name@../x"] {
            assert_eq!(parse_repository(name), None, "{name}");
        }
    }

    #[test]
    fn names_are_encoded_for_an_address() {
        assert_eq!(percent_encode("a b/c?d#é%.json"), "a%20b/c%3Fd%23%C3%A9%25.json");
    }
}
