//! Uploads files to a repository of the Hub in one commit, by the protocol of Python's `huggingface_hub`: the Hub says
//! which files go to its store for large ones, they are sent there, and one commit names all of them.
//!
//! Nothing is visible before the commit, so an upload that breaks leaves the repository as it was. Downloads'
//! `Client` makes the requests: the token goes to the Hub's own host alone, and never to the store.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::download::Client;
use super::environment::{is_offline, token};
use super::names::{check_file, parse_repository};
use super::requests::Payload;
use crate::atomic_file::{hex, sha256};
use crate::console::{Console, bytes};

/// A file that is to be uploaded.
#[derive(Clone, Debug)]
pub struct LocalFile {
    /// In the repository.
    pub name: String,
    /// Here.
    pub path: PathBuf,
    /// In bytes.
    pub size: u64,
}

impl LocalFile {
    /// A file that lies here under the name that it has in the repository.
    ///
    /// # Errors
    /// If it cannot be read, or its name is no plain path.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        check_file(name)?;
        let path = directory.join(name);
        let size = fs::metadata(&path).with_context(|| format!("{}: cannot read", path.display()))?.len();
        Ok(Self { name: name.to_owned(), path, size })
    }

    /// The first bytes, by which the Hub tells text from binary.
    fn sample(&self) -> Result<Vec<u8>> {
        const SAMPLE: u64 = 512;
        let mut sample = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(SAMPLE).read_to_end(&mut sample));
        read.with_context(|| format!("{}: cannot read", self.path.display()))?;
        Ok(sample)
    }

    fn contents(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).with_context(|| format!("{}: cannot read", self.path.display()))
    }
}

/// A repository of models to upload to.
pub struct ModelRepo {
    name: String,
    client: Client,
    console: Console,
}

/// The Hub's answer about a repository.
#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    #[serde(default)]
    private: bool,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The way in which the Hub wants a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UploadMode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
    /// Hash of the file that is there, if there is one.
    oid: Option<String>,
}

/// Where a large file goes.
#[derive(Deserialize)]
struct StoreObject {
    oid: String,
    /// None: the store has it.
    actions: Option<Actions>,
    error: Option<StoreError>,
}

#[derive(Deserialize)]
struct StoreError {
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Action,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

/// A file, and what is known of it.
struct Planned<'a> {
    file: &'a LocalFile,
    /// SHA-256, if it goes to the store.
    large: Option<String>,
}

impl ModelRepo {
    /// `OWNER/NAME`. Nothing is asked yet.
    ///
    /// # Errors
    /// If the name is not of that form, there is no token, or HF_HUB_OFFLINE is set.
    pub fn new(name: &str, given_token: Option<&str>, console: Console) -> Result<Self> {
        check_name(name)?;
        ensure!(!is_offline(), "HF_HUB_OFFLINE is set, so nothing can be uploaded");
        let token = given_token.map(str::to_owned).or_else(token).context(
            "no token for the Hub: set HF_TOKEN to one that may write (https://huggingface.co/settings/tokens), or store \
             one with `hf auth login`",
        )?;
        Ok(Self { name: name.to_owned(), client: Client::new(Some(token))?, console })
    }

    /// Makes the repository if it is not there, and makes one commit that adds `files` and deletes those of `outdated`
    /// that it has. Returns the commit's address; none if nothing has changed.
    ///
    /// # Errors
    /// If the Hub refuses, or a file does not arrive; then there is no commit.
    pub fn push(
        &self,
        files: &[LocalFile],
        is_private: bool,
        outdated: impl Fn(&str) -> bool,
        message: &str,
    ) -> Result<Option<String>> {
        self.create(is_private)?;
        let info = self.info()?;
        ensure!(
            info.private || !is_private,
            "`{}` is there already and is public: --private cannot make it private; change that in its settings, or name \
             another repository",
            self.name
        );
        self.check_card(files)?;
        let planned = self.plan(files)?;
        self.upload(&planned)?;
        let is_kept = |name: &str| files.iter().any(|file| file.name == name);
        let deleted: Vec<&str> = info
            .siblings
            .iter()
            .map(|sibling| sibling.rfilename.as_str())
            .filter(|name| !is_kept(name) && outdated(name))
            .collect();
        if planned.is_empty() && deleted.is_empty() {
            return Ok(None);
        }
        if !deleted.is_empty() {
            self.console.say(format!("deletes {}, which belong to another form of the model", deleted.join(", ")));
        }
        self.commit(&planned, &deleted, info.sha.as_deref(), message).map(Some)
    }

    fn create(&self, is_private: bool) -> Result<()> {
        let (owner, name) = self.name.split_once('/').expect("the name was checked");
        let body = json!({"name": name, "organization": owner, "type": "model", "private": is_private});
        let answer = self.client.send_json("api/repos/create", &body, true)?;
        match answer.status {
            // There already.
            409 => Ok(()),
            _ => answer.check(&format!("the Hub does not make `{}`", self.name)).map(drop),
        }
    }

    fn info(&self) -> Result<Info> {
        let text = self.client.api(&format!("models/{}", self.name))?;
        serde_json::from_str(&text).context("the Hub's description of the repository is not valid")
    }

    /// The Hub refuses a commit whose card has metadata that it does not understand: better now than after the upload.
    fn check_card(&self, files: &[LocalFile]) -> Result<()> {
        let Some(card) = files.iter().find(|file| file.name == "README.md") else { return Ok(()) };
        let content = String::from_utf8(card.contents()?).context("README.md is not text")?;
        let answer =
            self.client.send_json("api/validate-yaml", &json!({"content": content, "repoType": "model"}), true)?;
        // Hubs of one's own may lack this.
        if matches!(answer.status, 404 | 405) {
            return Ok(());
        }
        let found: Value = serde_json::from_str(&answer.text).unwrap_or_default();
        let messages = |key: &str| -> Vec<String> {
            let list = found[key].as_array().into_iter().flatten();
            list.filter_map(|entry| Some(entry.get("message")?.as_str()?.to_owned())).collect()
        };
        let errors = messages("errors");
        ensure!(errors.is_empty(), "the Hub refuses the metadata of README.md: {}", errors.join("; "));
        for warning in messages("warnings") {
            self.console.warn(format!("README.md: {warning}"));
        }
        Ok(())
    }

    /// Asks how each file is to be sent; leaves out those that the repository has as they are.
    fn plan<'a>(&self, files: &'a [LocalFile]) -> Result<Vec<Planned<'a>>> {
        #[derive(Deserialize)]
        struct Modes {
            files: Vec<UploadMode>,
        }
        let described = files
            .iter()
            .map(|file| Ok(json!({"path": file.name, "size": file.size, "sample": STANDARD.encode(file.sample()?)})));
        let body = json!({"files": described.collect::<Result<Vec<_>>>()?});
        let answer = self.client.send_json(&format!("api/models/{}/preupload/main", self.name), &body, true)?;
        let text = answer.check(&format!("the Hub does not take files for `{}`", self.name))?;
        let modes: Modes = serde_json::from_str(&text).context("the Hub's answer to preupload is not valid")?;
        let mut planned = Vec::new();
        for file in files {
            let mode = modes.files.iter().find(|mode| mode.path == file.name);
            let mode = mode.with_context(|| format!("the Hub does not say how `{}` is to be sent", file.name))?;
            ensure!(
                !mode.should_ignore,
                "`{}` is ignored by the .gitignore of `{}`; remove it there",
                file.name,
                self.name
            );
            // The store takes no empty files.
            let large = match mode.upload_mode.as_str() {
                "lfs" if file.size > 0 => Some(sha256(&file.path)?),
                "lfs" | "regular" => None,
                other => bail!("the Hub wants `{}` sent as `{other}`, which llmcls does not know", file.name),
            };
            let own = match &large {
                Some(hash) => hash.clone(),
                None => git_hash(&file.contents()?),
            };
            if mode.oid.as_deref() != Some(own.as_str()) {
                planned.push(Planned { file, large });
            }
        }
        Ok(planned)
    }

    /// Sends large files to the store.
    fn upload(&self, planned: &[Planned<'_>]) -> Result<()> {
        #[derive(Deserialize)]
        struct Batch {
            objects: Vec<StoreObject>,
        }
        let large: BTreeMap<&str, &LocalFile> =
            planned.iter().filter_map(|planned| Some((planned.large.as_deref()?, planned.file))).collect();
        if large.is_empty() {
            return Ok(());
        }
        let objects: Vec<Value> = large.iter().map(|(oid, file)| json!({"oid": oid, "size": file.size})).collect();
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": {"name": "main"},
        });
        let path = format!("{}.git/info/lfs/objects/batch", self.name);
        let answer = self.client.send_to_store(&path, &body)?;
        let text = answer.check("the Hub's store does not take the files")?;
        let batch: Batch = serde_json::from_str(&text).context("the answer of the Hub's store is not valid")?;
        for object in &batch.objects {
            let file = large.get(object.oid.as_str()).context("the Hub's store names a file that was not announced")?;
            if let Some(error) = &object.error {
                bail!("the Hub's store refuses `{}`: {}", file.name, error.message);
            }
            if let Some(actions) = &object.actions {
                self.console.say(format!("uploading {} ({})", file.name, bytes(file.size)));
                self.send(file, &object.oid, actions).with_context(|| format!("cannot upload {}", file.name))?;
            }
        }
        let missing = large.keys().find(|oid| !batch.objects.iter().any(|object| object.oid == **oid));
        ensure!(missing.is_none(), "the Hub's store does not say where a file is to go");
        Ok(())
    }

    fn send(&self, file: &LocalFile, oid: &str, actions: &Actions) -> Result<()> {
        let Action { href, header } = &actions.upload;
        match header.get("chunk_size") {
            None => {
                let answer = self.client.put(href, &file.path, 0..file.size)?;
                answer.check("the store does not take it")?;
            }
            Some(size) => self.send_in_parts(file, oid, (href, header), size)?,
        }
        if let Some(verify) = &actions.verify {
            let answer = self.client.send_json(&verify.href, &json!({"oid": oid, "size": file.size}), true)?;
            answer.check("the store does not find it whole")?;
        }
        Ok(())
    }

    /// Parts of a size that the store chose, each to an address of its own, and then their list.
    fn send_in_parts(
        &self,
        file: &LocalFile,
        oid: &str,
        (href, header): (&str, &BTreeMap<String, Value>),
        size: &Value,
    ) -> Result<()> {
        let size = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|size| *size > 0);
        let size = size.context("the store's `chunk_size` is not a number of bytes")?;
        let mut addresses: Vec<(u64, &str)> =
            header.iter().filter_map(|(number, address)| Some((number.parse().ok()?, address.as_str()?))).collect();
        addresses.sort_unstable();
        let count = file.size.div_ceil(size);
        ensure!(addresses.len() as u64 == count, "the store gives {} addresses for {count} parts", addresses.len());
        let mut parts = Vec::new();
        for (index, (number, address)) in (0..).zip(addresses) {
            let range = index * size..((index + 1) * size).min(file.size);
            let answer = self.client.put(address, &file.path, range)?;
            answer.check(&format!("the store does not take part {number} of {count}"))?;
            let etag = answer.etag.with_context(|| format!("the store gives no etag for part {number}"))?;
            parts.push(json!({"partNumber": number, "etag": etag}));
        }
        let answer = self.client.send_to_store(href, &json!({"oid": oid, "parts": parts}))?;
        answer.check("the store does not put the parts together").map(drop)
    }

    /// The commit, and its address.
    fn commit(&self, planned: &[Planned<'_>], deleted: &[&str], parent: Option<&str>, message: &str) -> Result<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Commit {
            commit_url: Option<String>,
        }
        let mut header = json!({"summary": message, "description": ""});
        if let Some(parent) = parent {
            header["parentCommit"] = parent.into();
        }
        let mut lines = vec![json!({"key": "header", "value": header})];
        for Planned { file, large } in planned {
            lines.push(match large {
                Some(oid) => json!({
                    "key": "lfsFile",
                    "value": {"path": file.name, "algo": "sha256", "oid": oid, "size": file.size},
                }),
                None => json!({
                    "key": "file",
                    "value": {"path": file.name, "encoding": "base64", "content": STANDARD.encode(file.contents()?)},
                }),
            });
        }
        lines.extend(deleted.iter().map(|name| json!({"key": "deletedFile", "value": {"path": name}})));
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let answer = self
            .client
            .send_once(&format!("api/models/{}/commit/main", self.name), Payload::text("application/x-ndjson", body))
            .map_err(|error| anyhow!("{error:#}; whether the commit was made is not known: look at `{}`", self.name))?;
        let text = answer.check("the Hub does not make the commit")?;
        let commit: Commit = serde_json::from_str(&text).context("the Hub's answer to the commit is not valid")?;
        Ok(commit.commit_url.unwrap_or_else(|| self.name.clone()))
    }
}

/// Checks that a name is `OWNER/NAME`.
///
/// # Errors
/// If it is not, or has a revision.
pub fn check_name(name: &str) -> Result<()> {
    match parse_repository(name) {
        Some((_, None)) => Ok(()),
        _ => bail!("--repo `{name}`: expected OWNER/NAME, with letters, digits, `-`, `_` and `.`"),
    }
}

/// Git's hash of a file.
fn git_hash(contents: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", contents.len())).chain_update(contents).finalize())
}
