//! A repository of the Hugging Face Hub, in its standard cache, and downloaded into it.
//!
//! The cache's layout is that of Python's `huggingface_hub`, which shares it: `refs/REVISION` holds a
//! commit, `snapshots/COMMIT/FILE` links to `blobs/ETAG`, and `.no_exist/COMMIT/FILE` notes what a
//! commit lacks. A file in the cache is used without asking the Hub again.
//!
//! hf-hub knows the layout, but its own downloads send the token to whatever host the Hub redirects
//! to, and check no checksum: requests are made here.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;

use super::download::{Answer, Client, RemoteFile};
use super::environment::{cache_directory, is_offline, token};
use super::names::{check_file, is_commit, is_hash, parse_repository};
use crate::atomic_file;
use crate::console::Console;
use crate::interrupt;

/// A repository at a revision. All of its files are of one commit.
pub struct HubRepo {
    name: String,
    repo: Repo,
    cached: CacheRepo,
    /// The cache's directory of this repository.
    directory: PathBuf,
    /// `None` if HF_HUB_OFFLINE is set.
    client: Option<Client>,
    /// The commit that the revision stands for, once it is known.
    commit: RefCell<Option<String>>,
    console: Console,
}

impl HubRepo {
    /// `org/name[@revision]`, of models or of data sets. Nothing is looked for yet.
    pub fn new(name: &str, kind: RepoType, given_token: Option<&str>, console: Console) -> Result<Self> {
        let (repository, revision) = parse_repository(name)
            .with_context(|| format!("`{name}` is not a name on the Hub of the form org/name[@revision]"))?;
        let cache = Cache::new(cache_directory()?);
        let repo = Repo::with_revision(repository.to_owned(), kind, revision.unwrap_or("main").to_owned());
        let client =
            if is_offline() { None } else { Some(Client::new(given_token.map(str::to_owned).or_else(token))?) };
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

    /// Returns true if the cache holds any file of this revision.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        self.known_commit().is_some_and(|commit| self.cached.pointer_path(&commit).is_dir())
    }

    /// The commit that all files are of: the one in use, else the one that the cache has of this revision.
    #[must_use]
    pub fn known_commit(&self) -> Option<String> {
        self.commit.borrow().clone().or_else(|| self.cached_commit())
    }

    /// The file from the cache, else downloaded; `None` if the repository has no such file.
    ///
    /// # Errors
    /// If the name leads out of the repository, the repository cannot be reached or used, or the file cannot be stored.
    pub fn file(&self, file: &str) -> Result<Option<PathBuf>> {
        match self.find(file)? {
            Found::Here(path) => Ok(Some(path)),
            Found::OnTheHub(client, remote) => self.store(client, file, &remote).map(Some),
            Found::Nowhere => Ok(None),
        }
    }

    /// Returns true if the repository has a file, without downloading it.
    pub fn has(&self, file: &str) -> Result<bool> {
        Ok(!matches!(self.find(file)?, Found::Nowhere))
    }

    fn find(&self, file: &str) -> Result<Found<'_>> {
        check_file(file)?;
        let commit = self.known_commit();
        if let Some(commit) = &commit {
            let path = self.cached.pointer_path(commit).join(file);
            if path.exists() {
                self.commit.replace(Some(commit.clone()));
                return Ok(Found::Here(path));
            }
            if self.missing_note(commit, file).exists() {
                return Ok(Found::Nowhere);
            }
        }
        let Some(client) = &self.client else {
            ensure!(
                self.is_cached(),
                "`{file}` of `{}` is not in the cache ({}), and HF_HUB_OFFLINE is set",
                self.name,
                self.directory.display()
            );
            return Ok(Found::Nowhere);
        };
        // Not the revision: it may stand for a newer commit by now, and the files would not fit together.
        let at = commit.as_deref().unwrap_or(self.repo.revision());
        let answer = client.look_at(&self.repo.url(), at, file).with_context(|| match &commit {
            Some(commit) if commit != self.repo.revision() => format!(
                "the cache has files of commit {commit}; if the Hub no longer has it, remove {}",
                self.directory.join("refs").join(self.repo.revision()).display()
            ),
            _ => format!("cannot ask the Hub for `{file}` of `{}`", self.name),
        })?;
        match answer {
            Answer::File(remote) => {
                self.pin(&remote.commit)?;
                let path = self.cached.pointer_path(&remote.commit).join(file);
                Ok(if path.exists() { Found::Here(path) } else { Found::OnTheHub(client, remote) })
            }
            Answer::NoSuchFile(commit) => {
                if let Some(commit) = commit {
                    self.pin(&commit)?;
                    // A note that cannot be written costs a request the next time, no more.
                    let note = self.missing_note(&commit, file);
                    let _ =
                        fs::create_dir_all(note.parent().unwrap_or(&self.directory)).and_then(|()| File::create(note));
                }
                Ok(Found::Nowhere)
            }
        }
    }

    /// Names of all files, as the server or the cache has them.
    ///
    /// # Errors
    /// If HF_HUB_OFFLINE is set and nothing is in the cache, or the Hub does not answer.
    pub fn list(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Info {
            sha: Option<String>,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let commit = self.known_commit();
        let Some(client) = &self.client else {
            let commit = commit.with_context(|| {
                format!("`{}` is not in the cache ({}), and HF_HUB_OFFLINE is set", self.name, self.directory.display())
            })?;
            let root = self.cached.pointer_path(&commit);
            let mut files = Vec::new();
            list_files(&root, &root, &mut files)?;
            return Ok(files);
        };
        let at = commit.unwrap_or_else(|| self.repo.revision().to_owned());
        let text = client.api(&Repo::with_revision(self.name.clone(), self.repo_type(), at).api_url())?;
        let info: Info = serde_json::from_str(&text).context("the Hub's list of files is not valid")?;
        if let Some(commit) = info.sha.filter(|commit| is_hash(commit)) {
            self.pin(&commit)?;
        }
        Ok(info.siblings.into_iter().map(|sibling| sibling.rfilename).collect())
    }

    /// Notes in the cache which commit the revision stands for. To be called when all files are there, so that the
    /// Python tools, which read the same note, never find a snapshot with half of a model.
    pub fn publish(&self) -> Result<()> {
        let revision = self.repo.revision();
        let Some(commit) = self.commit.borrow().clone().filter(|_| !is_commit(revision)) else { return Ok(()) };
        let note = self.directory.join("refs").join(revision);
        if fs::read_to_string(&note).is_ok_and(|text| text.trim() == commit) {
            return Ok(());
        }
        let created = fs::create_dir_all(note.parent().unwrap_or(&self.directory)).map_err(anyhow::Error::from);
        created.and_then(|()| atomic_file::write_bytes(&note, commit.as_bytes())).with_context(|| self.cannot_write())
    }

    fn repo_type(&self) -> RepoType {
        if self.repo.url().starts_with("datasets/") { RepoType::Dataset } else { RepoType::Model }
    }

    fn cached_commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.directory.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_hash(commit))
    }

    fn missing_note(&self, commit: &str, file: &str) -> PathBuf {
        self.directory.join(".no_exist").join(commit).join(file)
    }

    /// Holds on to the commit of the first answer.
    fn pin(&self, commit: &str) -> Result<()> {
        let before = self.known_commit();
        match before {
            Some(before) if before != commit => bail!(
                "the Hub answers with commit {commit} where {before} was asked for: its files would not fit those in the cache"
            ),
            _ => self.commit.replace(Some(commit.to_owned())),
        };
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
        self.wait_for(&lock, file)?;
        if !blob.exists() {
            let title = format!("downloading {file}");
            let progress = self.console.progress(title, (remote.size >> 20) as usize, "MiB");
            client
                .fetch(remote, &blob, progress)
                .with_context(|| format!("`{file}` of `{}` cannot be downloaded", self.name))?;
        }
        let snapshot = self.cached.pointer_path(&remote.commit);
        let pointer = snapshot.join(file);
        link(&blob, &snapshot, &pointer).with_context(|| format!("{}: cannot write", pointer.display()))?;
        Ok(pointer)
    }

    /// Waits until no other process downloads the same blob.
    fn wait_for(&self, lock: &File, file: &str) -> Result<()> {
        let mut is_first = true;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(()),
                Err(fs::TryLockError::WouldBlock) => interrupt::check()?,
                Err(fs::TryLockError::Error(error)) => return Err(error).with_context(|| self.cannot_write()),
            }
            if is_first {
                self.console.say(format!("waiting for another process that downloads {file} of {}", self.name));
                is_first = false;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn cannot_write(&self) -> String {
        format!("{}: cannot write to the cache; HF_HOME names another place", self.directory.display())
    }
}

/// The place of a file: in the cache, or on the Hub.
enum Found<'a> {
    Here(PathBuf),
    OnTheHub(&'a Client, RemoteFile),
    Nowhere,
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
fn link(blob: &Path, snapshot: &Path, pointer: &Path) -> std::io::Result<()> {
    let parent = pointer.parent().expect("a pointer lies in a snapshot");
    fs::create_dir_all(parent)?;
    // A link to a directory inside the snapshot would lead elsewhere.
    if !fs::canonicalize(parent)?.starts_with(fs::canonicalize(snapshot)?) {
        return Err(std::io::Error::new(
            ErrorKind::InvalidInput,
            "its directory is a link that leads out of the cache",
        ));
    }
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
