//! Finding a model's files: a local directory, or a repository of the Hugging Face Hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;

/// The files of a pretrained model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// As the user named it, without the revision.
    pub name: String,
    /// The revision asked for, if one was.
    pub revision: Option<String>,
    /// `config.json`
    pub config: PathBuf,
    /// Those of `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` that exist, in this
    /// order.
    pub tokenizer: Vec<PathBuf>,
    /// The safetensors files; none if the weights are random.
    pub weights: Vec<PathBuf>,
}

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

impl ModelFiles {
    /// Finds the files of `name`: a directory, or `org/name[@revision]` in the Hub's cache, or else
    /// on the Hub. With `needs_weights` off, weights are neither looked for nor downloaded.
    ///
    /// # Errors
    /// If a file is missing or cannot be fetched; the error says where it was looked for.
    pub fn find(name: &str, token: Option<&str>, needs_weights: bool) -> Result<Self> {
        if Path::new(name).is_dir() {
            return Self::collect(name, None, needs_weights, &|file| {
                let path = Path::new(name).join(file);
                Ok(path.is_file().then_some(path))
            })
            .with_context(|| format!("{name}: not a usable model directory"));
        }
        let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
        let is_hub_name = repository.split('/').count() == 2
            && !repository.starts_with(['/', '.', '~'])
            && repository.split('/').all(|part| !part.is_empty());
        ensure!(is_hub_name, "{name}: no such directory, and not a Hub name of the form org/name[@revision]");
        let source = Hub::new(repository, revision, token)?;
        let asked = name.contains('@').then(|| revision.to_owned());
        Self::collect(repository, asked, needs_weights, &|file| source.file(file))
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

/// One repository, in the cache and on the Hub.
struct Hub {
    cached: CacheRepo,
    remote: Option<ApiRepo>,
    directory: PathBuf,
}

impl Hub {
    fn new(repository: &str, revision: &str, token: Option<&str>) -> Result<Self> {
        let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
        let set = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
        let cache = set("HF_HUB_CACHE").map_or_else(Cache::from_env, |path| Cache::new(path.into()));
        let offline = set("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "no"));
        let remote = if offline {
            None
        } else {
            let token = token.map(str::to_owned).or_else(|| set("HF_TOKEN")).or_else(|| Cache::from_env().token());
            let mut builder = ApiBuilder::from_cache(cache.clone()).with_token(token).with_progress(true);
            if let Some(endpoint) = set("HF_ENDPOINT") {
                builder = builder.with_endpoint(endpoint);
            }
            Some(builder.build().context("cannot set up the Hub's client")?.repo(repo.clone()))
        };
        Ok(Self { directory: cache.path().join(repo.folder_name()), cached: cache.repo(repo), remote })
    }

    /// The file from the cache, else downloaded; `None` if the Hub has no such file.
    fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        if let Some(path) = self.cached.get(name) {
            return Ok(Some(path));
        }
        let Some(remote) = &self.remote else { return Ok(None) };
        remote.download(name).map(Some).or_else(|error| match http_status(&error) {
            Some(404) => Ok(None),
            Some(401 | 403) => bail!(
                "the Hub refuses `{name}`: the repository is gated, private or does not exist; accept its licence \
                 on the Hub and set `model.hf_token` or HF_TOKEN"
            ),
            _ => Err(error).with_context(|| self.unreachable(name)),
        })
    }

    fn unreachable(&self, name: &str) -> String {
        format!("`{name}` is not in the cache ({}) and cannot be downloaded", self.directory.display())
    }
}

/// The status of a refused request. hf-hub does not export its client's error type, only its text.
fn http_status(error: &ApiError) -> Option<u16> {
    error.to_string().rsplit_once("http status: ")?.1.parse().ok()
}
