//! The base in a model card: its name and licence, without paths of this machine.

use std::path::Path;

use super::classifier_file::ClassifierFile;

/// Facts about the base that are true on any machine.
pub(super) struct BaseFacts {
    /// On the Hub.
    pub(super) hub_name: Option<String>,
    /// Without the directories above it.
    pub(super) short: String,
    /// Licence by its name in the Hub's metadata.
    pub(super) license: Option<String>,
}

impl BaseFacts {
    pub(super) fn of(file: &ClassifierFile) -> Self {
        let name = file.base.name.as_str();
        let directory = Path::new(name);
        let is_here = directory.exists() || directory.is_absolute() || name.starts_with(['.', '~']);
        let hub_name = match (is_here, repository_of_cache(directory)) {
            (true, of_cache) => of_cache,
            (false, _) => (name.split('/').count() == 2).then(|| name.to_owned()),
        };
        let named = hub_name.as_deref().unwrap_or(name);
        let short = named.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(named);
        let short = if matches!(short, "" | "." | "..") { "base" } else { short }.to_owned();
        if file.random_init {
            // Only its shape is of the model that has this name.
            return Self { hub_name: None, short, license: None };
        }
        let license = license_of_card(directory).or_else(|| known_license(&short).map(str::to_owned));
        Self { hub_name, short, license }
    }

    /// For text: code.
    pub(super) fn title(&self, file: &ClassifierFile) -> String {
        let name = self.hub_name.as_ref().unwrap_or(&self.short).replace(|c: char| c == '`' || c.is_control(), " ");
        if file.random_init { format!("`{name} (random weights)`") } else { format!("`{name}`") }
    }
}

/// `models--OWNER--NAME/snapshots/COMMIT` in the Hub's cache stands for `OWNER/NAME`.
fn repository_of_cache(directory: &Path) -> Option<String> {
    let snapshots = directory.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let repository = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    repository.split_once("--").map(|(owner, name)| format!("{owner}/{name}"))
}

/// The licence in the metadata of the base's own card, if it lies beside the weights.
fn license_of_card(directory: &Path) -> Option<String> {
    let card = std::fs::read_to_string(directory.join("README.md")).ok()?;
    let (metadata, _) = card.trim_start_matches('\u{feff}').strip_prefix("---")?.split_once("\n---")?;
    let license = metadata.lines().find_map(|line| line.strip_prefix("license:"))?.trim().trim_matches(['"', '\'']);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    (!license.is_empty() && license.chars().all(is_plain)).then(|| license.to_lowercase())
}

/// The licence of a base, where its name tells.
fn known_license(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    [
        ("llama-3.3", "llama3.3"),
        ("llama-3.2", "llama3.2"),
        ("llama-3.1", "llama3.1"),
        ("meta-llama-3", "llama3"),
        ("llama-2", "llama2"),
        ("smollm", "apache-2.0"),
        ("tinyllama", "apache-2.0"),
        ("all-minilm", "apache-2.0"),
        ("modernbert", "apache-2.0"),
    ]
    .into_iter()
    .find(|(part, _)| name.contains(part))
    .map(|(_, license)| license)
}
