//! The files of a pretrained model: in a local directory, or of a repository of the Hugging Face Hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hf_hub::RepoType;
use serde::Deserialize;

use super::hub::HubRepo;
use crate::console::Console;

/// The files of a pretrained model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// As the user named it, without the revision.
    pub name: String,
    /// The revision asked for, if one was.
    pub revision: Option<String>,
    /// `config.json`
    pub config: PathBuf,
    /// The files of the tokenizer that exist; a vocabulary only where there is no `tokenizer.json`.
    pub tokenizer: Vec<PathBuf>,
    /// The safetensors files; none if the weights are random.
    pub weights: Vec<PathBuf>,
}

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The tokenizer's files, `tokenizer.json` first.
pub const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
const VOCABULARIES: [&str; 3] = ["vocab.txt", "vocab.json", "merges.txt"];

impl ModelFiles {
    /// Finds the files of `name`: a directory, or `org/name[@revision]` in the Hub's cache, or else
    /// on the Hub. With `needs_weights` off, weights are neither looked for nor downloaded.
    ///
    /// # Errors
    /// If a file is missing or cannot be fetched; the error says where it was looked for.
    pub fn find(name: &str, token: Option<&str>, needs_weights: bool, console: Console) -> Result<Self> {
        if Path::new(name).is_dir() {
            return Self::collect(name, None, needs_weights, &|file| {
                let path = Path::new(name).join(file);
                Ok(path.is_file().then_some(path))
            })
            .with_context(|| format!("{name}: not a usable model directory"));
        }
        let source = HubRepo::new(name, RepoType::Model, token, console)?;
        let revision = name.split_once('@').map(|(_, revision)| revision.to_owned());
        Self::collect(source.name(), revision, needs_weights, &|file| source.file(file))
            .with_context(|| format!("{name}: cannot get the model"))
    }

    fn collect(
        name: &str,
        revision: Option<String>,
        needs_weights: bool,
        file: &dyn Fn(&str) -> Result<Option<PathBuf>>,
    ) -> Result<Self> {
        let need = |wanted: &str| file(wanted)?.with_context(|| format!("`{wanted}` is missing"));
        let config = need("config.json")?;
        let mut tokenizer = Vec::new();
        for name in TOKENIZER_FILES {
            tokenizer.extend(file(name)?);
        }
        if !tokenizer.first().is_some_and(|path| path.ends_with(TOKENIZER_FILES[0])) {
            for name in VOCABULARIES {
                tokenizer.extend(file(name)?);
            }
        }
        let weights = match (needs_weights, needs_weights.then(|| file(WEIGHTS)).transpose()?.flatten()) {
            (false, _) => Vec::new(),
            (true, Some(path)) => vec![path],
            (true, None) => {
                let index = file(INDEX)?.with_context(|| {
                    format!(
                        "neither `{WEIGHTS}` nor `{INDEX}` is there; pickled weights (.bin, .pt) are not read, \
                         because loading one can run any code: convert them to safetensors"
                    )
                })?;
                shards(&index)?.iter().map(|shard| need(shard)).collect::<Result<_>>()?
            }
        };
        Ok(Self { name: name.to_owned(), revision, config, tokenizer, weights })
    }
}

/// The files that an index of shards names, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).with_context(|| format!("{}: cannot read", index.display()))?;
    let parsed: Index =
        serde_json::from_str(&text).with_context(|| format!("{}: not an index of shards", index.display()))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        let is_plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        ensure!(is_plain, "{}: shard `{name}` is not a plain file name", index.display());
    }
    Ok(names)
}
