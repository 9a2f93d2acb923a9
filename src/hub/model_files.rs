//! The files of a pretrained model: in a local directory, or of a repository of the Hugging Face Hub.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::RepoType;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::cache::HubRepo;
use super::names::{check_file, parse_repository};
use crate::atomic_file::{self, hex};
use crate::console::Console;
use crate::embedded;
use crate::file_identity;
use crate::gguf::{self, GgufFile};

/// The files of a pretrained model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The name as the user gave it, without the revision.
    pub name: String,
    /// The revision asked for, if one was.
    pub revision: Option<String>,
    /// The commit of all files, if they are of the Hub.
    pub commit: Option<String>,
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
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// How sentence-transformers pools the base's hidden states.
const SENTENCE_POOLING: &str = "1_Pooling/config.json";
const VOCABULARIES: [&str; 3] = ["vocab.txt", "vocab.json", "merges.txt"];

impl ModelFiles {
    /// All files of the model, and those beside them that Python reads.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        const OTHERS: [&str; 3] = [INDEX, "generation_config.json", CHAT_TEMPLATE];
        let names = TOKENIZER_FILES.iter().chain(&VOCABULARIES).chain(&OTHERS);
        let beside = names.map(|name| self.config.with_file_name(name));
        let found = [&self.config].into_iter().chain(&self.tokenizer).chain(&self.weights).cloned();
        found.chain(beside).collect()
    }

    /// Finds the files of `name`: a directory, or `org/name[@revision]` in the Hub's cache, or else
    /// on the Hub. With `needs_weights` off, weights are neither looked for nor downloaded.
    ///
    /// # Errors
    /// If a file is missing or cannot be fetched; the error says where it was looked for.
    pub fn find(name: &str, token: Option<&str>, needs_weights: bool, console: Console) -> Result<Self> {
        let path = Path::new(name);
        if path.is_file() && gguf::is_gguf(path) {
            ensure!(needs_weights, "{name} has weights, which model.random_init=true would not use");
            return Self::of_gguf(name, path);
        }
        match Source::of(name, token, console)? {
            Source::Directory(directory) => Self::collect(name, None, needs_weights, &|file| {
                let path = directory.join(file);
                Ok(embedded::is_file(&path).then_some(path))
            })
            .with_context(|| format!("{name}: not a usable model directory")),
            Source::Hub(repo) => {
                let revision = name.split_once('@').map(|(_, revision)| revision.to_owned());
                let find = || -> Result<Self> {
                    let files = Self::collect(repo.name(), revision, needs_weights, &|file| repo.file(file))?;
                    repo.publish()?;
                    Ok(Self { commit: repo.known_commit(), ..files })
                };
                find().with_context(|| nowhere(name))
            }
        }
    }

    /// `chat_template.jinja`, if the model has one.
    ///
    /// # Errors
    /// If the Hub cannot be asked.
    pub fn chat_template(&self, token: Option<&str>, console: Console) -> Result<Option<PathBuf>> {
        self.optional(CHAT_TEMPLATE, token, console)
    }

    /// sentence-transformers' `1_Pooling/config.json`, if the model has one.
    ///
    /// # Errors
    /// If the Hub cannot be asked.
    pub fn sentence_pooling(&self, token: Option<&str>, console: Console) -> Result<Option<PathBuf>> {
        self.optional(SENTENCE_POOLING, token, console)
    }

    /// The same without asking the Hub: a file that is here.
    #[must_use]
    pub fn local_sentence_pooling(&self) -> Option<PathBuf> {
        self.beside(SENTENCE_POOLING)
    }

    fn beside(&self, file: &str) -> Option<PathBuf> {
        Some(self.config.with_file_name(file)).filter(|path| embedded::is_file(path))
    }

    fn optional(&self, file: &str, token: Option<&str>, console: Console) -> Result<Option<PathBuf>> {
        let beside = self.beside(file);
        if beside.is_some() || self.commit.is_none() {
            return Ok(beside);
        }
        let name = self.revision.as_ref().map_or_else(|| self.name.clone(), |at| format!("{}@{at}", self.name));
        match Source::of(&name, token, console)? {
            Source::Directory(_) => Ok(None),
            Source::Hub(repo) => repo.file(file).with_context(|| nowhere(&name)),
        }
    }

    /// A GGUF file: its configuration and tokenizer are written to the user's cache, under a name made of what they say.
    fn of_gguf(name: &str, path: &Path) -> Result<Self> {
        let own = path.parent().map(|directory| TOKENIZER_FILES.map(|file| directory.join(file)));
        let own: Vec<PathBuf> = own.into_iter().flatten().filter(|file| file.is_file()).collect();
        let has_tokenizer = own.first().is_some_and(|path| path.ends_with(TOKENIZER_FILES[0]));
        let made = GgufFile::open(path)?.model_files(has_tokenizer)?;
        let digest = hex(&Sha256::digest(made.iter().flat_map(|(_, text)| text.bytes()).collect::<Vec<_>>()));
        let cache = file_identity::user_cache().context("there is no directory for a cache; set XDG_CACHE_HOME")?;
        let directory = cache.join("llmcls").join("gguf").join(&digest[..32]);
        fs::create_dir_all(&directory).with_context(|| format!("{}: cannot create", directory.display()))?;
        for (file, text) in &made {
            let to = directory.join(file);
            if fs::read(&to).ok().as_deref() != Some(text.as_bytes()) {
                atomic_file::write_bytes(&to, text.as_bytes())?;
            }
        }
        let written =
            TOKENIZER_FILES.map(|file| directory.join(file)).into_iter().filter(|file| file.is_file()).collect();
        Ok(Self {
            name: name.to_owned(),
            revision: None,
            commit: None,
            config: directory.join("config.json"),
            tokenizer: if has_tokenizer { own } else { written },
            weights: vec![path.to_owned()],
        })
    }

    /// Returns true if a name means a repository on the Hub, and not a local directory.
    #[must_use]
    pub fn is_on_the_hub(name: &str) -> bool {
        !Path::new(name).exists() && parse_repository(name).is_some()
    }

    /// A file with weights that `name` has, of any format; nothing is downloaded.
    pub fn find_weights(name: &str, token: Option<&str>, console: Console) -> Result<Option<String>> {
        match Source::of(name, token, console)? {
            Source::Directory(directory) => {
                let entries =
                    std::fs::read_dir(&directory).with_context(|| format!("{}: cannot read", directory.display()))?;
                let mut names = entries
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<Result<Vec<_>>>()?;
                names.sort_unstable();
                Ok(names.into_iter().find(|name| is_weights(name)))
            }
            Source::Hub(repo) => {
                // The search for its files reports what is not a model.
                repo.has("config.json").with_context(|| nowhere(name))?;
                for file in [WEIGHTS, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json"] {
                    if repo.has(file).with_context(|| nowhere(name))? {
                        return Ok(Some(file.to_owned()));
                    }
                }
                Ok(None)
            }
        }
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
        Ok(Self { name: name.to_owned(), revision, commit: None, config, tokenizer, weights })
    }
}

/// Where a model's files are.
#[expect(clippy::large_enum_variant, reason = "one of it is made for a model")]
enum Source {
    Directory(PathBuf),
    Hub(HubRepo),
}

impl Source {
    /// A directory if there is one of this name, else the Hub, unless the name can only be meant as a path.
    fn of(name: &str, token: Option<&str>, console: Console) -> Result<Self> {
        let path = Path::new(name);
        if embedded::is_dir(path) {
            return Ok(Self::Directory(path.to_owned()));
        }
        if path.exists() {
            bail!(
                "{name}: is a file; model.model_name names a directory with config.json, tokenizer and weights, or a file that ends with .gguf"
            );
        }
        let Some((_, revision)) = parse_repository(name) else {
            let hint = if name.starts_with('~') { "; `~` is not expanded, write the path in full" } else { "" };
            bail!(
                "there is no directory `{name}` here, and it is not a name on the Hub of the form org/name[@revision]{hint}"
            );
        };
        let repo = HubRepo::new(name, RepoType::Model, token, console)?;
        // `data/nope` beside a directory `data` is a mistyped path, unless the cache knows better.
        let first = name.split('/').next().unwrap_or_default();
        if revision.is_none() && Path::new(first).is_dir() && !repo.is_cached() {
            bail!(
                "there is no directory `{name}` here, though there is `{first}`, so it is not asked of the Hub; if you mean \
                 the Hub's, write {name}@main"
            );
        }
        Ok(Self::Hub(repo))
    }
}

/// Hints for the case that the Hub does not have a model.
fn nowhere(name: &str) -> String {
    format!(
        "{name}: there is no directory of this name here, and the Hub's model of this name cannot be used \
         (a directory with its files does as well: model.model_name=DIR)"
    )
}

/// Returns true if a file of a model's directory holds weights, or says which files do.
fn is_weights(name: &str) -> bool {
    let is_named = ["model", "pytorch_model", "tf_model", "flax_model", "consolidated", "ggml"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let name = name.strip_suffix(".index.json").unwrap_or(name);
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    is_named && ["safetensors", "bin", "pt", "pth", "h5", "msgpack"].contains(&ending) || ending == "gguf"
}

/// The files that an index of shards names, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = embedded::read_to_string(index).with_context(|| format!("{}: cannot read", index.display()))?;
    let parsed: Index =
        serde_json::from_str(&text).with_context(|| format!("{}: not an index of shards", index.display()))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    names.iter().try_for_each(|name| check_file(name)).with_context(|| format!("{}", index.display()))?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_told_by_their_names() {
        for name in ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin.index.json", "a.gguf"]
        {
            assert!(is_weights(name), "{name}");
        }
        for name in ["config.json", "tokenizer.json", "training_args.bin", "optimizer.pt", "adapter_model.safetensors"]
        {
            assert!(!is_weights(name), "{name}");
        }
    }
}
