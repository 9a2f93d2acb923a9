//! A repository of the Hugging Face Hub, in its standard cache, and downloaded into it.
//!
//! The cache's layout is that of Python's `huggingface_hub`, which shares it: `refs/REVISION` holds a
//! commit, `snapshots/COMMIT/FILE` links to `blobs/ETAG`, and `.no_exist/COMMIT/FILE` notes what a
//! commit lacks. A file in the cache is used without asking the Hub again.
//!
//! hf-hub knows the layout, but its own downloads send the token to whatever host the Hub redirects
//! to, and check no checksum: requests are made here.

use std::cell::RefCell;
use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;

use super::download::{Answer, Client, RemoteFile};
use crate::console::Console;

/// A repository at a revision.
pub struct HubRepo {
    name: String,
    repo: Repo,
    cached: CacheRepo,
    /// The cache's directory of this repository.
    directory: PathBuf,
    /// None: HF_HUB_OFFLINE is set.
    client: Option<Client>,
    /// The commit that the revision stands for, once it is known: all files are of one commit.
    commit: RefCell<Option<String>>,
    console: Console,
}

impl HubRepo {
    /// `org/name[@revision]`, of models or of data sets. Nothing is looked for yet.
    ///
    /// # Errors
    /// If the name is not of that form.
    pub fn new(name: &str, kind: RepoType, token: Option<&str>, console: Console) -> Result<Self> {
        let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
        let is_plain = |part: &str| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_allowed)
        };
        ensure!(
            repository.split('/').count() == 2
                && repository.split('/').all(is_plain)
                && revision.split('/').all(is_plain),
            "{name}: no such directory, and not a Hub name of the form org/name[@revision]"
        );
        let cache = Cache::new(cache_directory()?);
        let repo = Repo::with_revision(repository.to_owned(), kind, revision.to_owned());
        let token = token.map(str::to_owned).or_else(|| set("HF_TOKEN")).or_else(stored_token);
        let client = if is_offline() { None } else { Some(Client::new(token)?) };
        Ok(Self {
            name: repository.to_owned(),
            directory: cache.path().join(repo.folder_name()),
            cached: cache.repo(repo.clone()),
            repo,
            client,
            commit: RefCell::default(),
            console,
        })
    }

    /// The repository's name, without the revision.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file from the cache, else downloaded; `None` if the repository has no such file.
    ///
    /// # Errors
    /// If the repository cannot be reached or used, or the file cannot be stored.
    pub fn file(&self, file: &str) -> Result<Option<PathBuf>> {
        let revision = self.repo.revision();
        let commit = self.commit.borrow().clone().or_else(|| self.cached_commit());
        if let Some(commit) = &commit {
            let path = self.cached.pointer_path(commit).join(file);
            if path.exists() {
                return Ok(Some(path));
            }
            if self.missing_note(commit, file).exists() {
                return Ok(None);
            }
        }
        let Some(client) = &self.client else {
            let is_known = commit.is_some_and(|commit| self.cached.pointer_path(&commit).exists());
            ensure!(
                is_known,
                "`{file}` of `{}` is not in the cache ({}), and HF_HUB_OFFLINE is set",
                self.name,
                self.directory.display()
            );
            return Ok(None);
        };
        let at = self.commit.borrow().clone().unwrap_or_else(|| revision.to_owned());
        match client.look_at(&self.repo.url(), &at, file)? {
            Answer::File(remote) => {
                self.pin(&remote.commit)?;
                self.store(client, file, &remote).map(Some)
            }
            Answer::NoSuchFile(commit) => {
                if let Some(commit) = commit {
                    self.pin(&commit)?;
                    // A note that cannot be written costs a request the next time, no more.
                    let note = self.missing_note(&commit, file);
                    let _ =
                        fs::create_dir_all(note.parent().unwrap_or(&self.directory)).and_then(|()| File::create(note));
                }
                Ok(None)
            }
        }
    }

    /// Names of all files.
    ///
    /// # Errors
    /// If HF_HUB_OFFLINE is set and nothing is in the cache, or the Hub does not answer.
    pub fn list(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Info {
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let Some(client) = &self.client else {
            let commit = self.cached_commit().with_context(|| {
                format!("`{}` is not in the cache ({}), and HF_HUB_OFFLINE is set", self.name, self.directory.display())
            })?;
            let root = self.cached.pointer_path(&commit);
            let mut files = Vec::new();
            list_files(&root, &root, &mut files)?;
            return Ok(files);
        };
        let text = client.api(&self.repo.api_url())?;
        let info: Info = serde_json::from_str(&text).context("the Hub's list of files is not valid")?;
        Ok(info.siblings.into_iter().map(|sibling| sibling.rfilename).collect())
    }

    fn cached_commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        let is_commit = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_commit {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.directory.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_hash(commit))
    }

    fn missing_note(&self, commit: &str, file: &str) -> PathBuf {
        self.directory.join(".no_exist").join(commit).join(file)
    }

    /// Holds on to the commit of the first answer, and notes it in the cache.
    fn pin(&self, commit: &str) -> Result<()> {
        if self.commit.borrow().is_none() {
            self.cached.create_ref(commit).with_context(|| self.cannot_write())?;
            self.commit.replace(Some(commit.to_owned()));
        }
        Ok(())
    }

    /// Downloads a blob if it is not there, and links it into its commit's snapshot.
    fn store(&self, client: &Client, file: &str, remote: &RemoteFile) -> Result<PathBuf> {
        let blob = self.cached.blob_path(&remote.etag);
        let blobs = blob.parent().expect("a blob lies in a directory");
        fs::create_dir_all(blobs).with_context(|| self.cannot_write())?;
        let locks = self.directory.parent().unwrap_or(&self.directory).join(".locks").join(self.repo.folder_name());
        fs::create_dir_all(&locks).with_context(|| self.cannot_write())?;
        let lock = File::create(locks.join(format!("{}.lock", remote.etag))).with_context(|| self.cannot_write())?;
        if lock.try_lock().is_err() {
            self.console.say(format!("waiting for another process that downloads {file} of {}", self.name));
            lock.lock().with_context(|| self.cannot_write())?;
        }
        if !blob.exists() {
            let title = format!("downloading {file}");
            let progress = self.console.progress(title, (remote.size >> 20) as usize, "MiB");
            client
                .fetch(remote, &blob, progress)
                .with_context(|| format!("`{file}` of `{}` cannot be downloaded", self.name))?;
        }
        let pointer = self.cached.pointer_path(&remote.commit).join(file);
        link(&blob, &pointer).with_context(|| format!("{}: cannot write", pointer.display()))?;
        Ok(pointer)
    }

    fn cannot_write(&self) -> String {
        format!("{}: cannot write to the cache; HF_HOME names another place", self.directory.display())
    }
}

/// Whether a commit or a blob's name is plain: it becomes a file's name.
pub(super) fn is_hash(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn list_files(root: &Path, directory: &Path, out: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("{}: cannot read", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            list_files(root, &path, out)?;
        } else if let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str) {
            out.push(name.to_owned());
        }
    }
    out.sort_unstable();
    Ok(())
}

/// A relative link, so that the cache can be moved; a copy where there are no links.
fn link(blob: &Path, pointer: &Path) -> std::io::Result<()> {
    let parent = pointer.parent().expect("a pointer lies in a snapshot");
    fs::create_dir_all(parent)?;
    #[cfg(unix)]
    {
        let snapshots = blob.parent().and_then(Path::parent).map(|root| root.join("snapshots"));
        let depth = snapshots.and_then(|root| parent.strip_prefix(root).ok().map(|rest| rest.components().count()));
        let mut target = PathBuf::new();
        for _ in 0..=depth.unwrap_or(1) {
            target.push("..");
        }
        target.push("blobs");
        target.push(blob.file_name().expect("a blob has a name"));
        match std::os::unix::fs::symlink(target, pointer) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = ErrorKind::AlreadyExists;
        fs::copy(blob, pointer).map(drop)
    }
}

fn set(key: &str) -> Option<String> {
    env::var(key).ok().filter(|value| !value.is_empty())
}

fn is_offline() -> bool {
    set("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.to_lowercase().as_str(), "0" | "off" | "false" | "no"))
}

/// Where the Hub's tools keep their files.
fn home() -> Option<PathBuf> {
    let base = || {
        let home = || env::home_dir().map(|home| home.join(".cache"));
        set("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).map(|cache| cache.join("huggingface"))
    };
    set("HF_HOME").map(PathBuf::from).or_else(base)
}

fn cache_directory() -> Result<PathBuf> {
    let default = || home().map(|home| home.join("hub"));
    set("HF_HUB_CACHE").map(PathBuf::from).or_else(default).context("no home directory; set HF_HOME")
}

/// The token that the `hf` command stored.
fn stored_token() -> Option<String> {
    let path = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home().map(|home| home.join("token")))?;
    let token = fs::read_to_string(path).ok()?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// The Hub's address.
pub(super) fn endpoint() -> Result<String> {
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
        bail!("HF_ENDPOINT is `{endpoint}`, expected an address such as https://huggingface.co");
    }
    Ok(endpoint)
}
