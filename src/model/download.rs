//! Requests to the Hub, and downloads that go on where they stopped.
//!
//! The token goes to the Hub's own host alone, over https or to this machine; redirects are followed
//! here, one by one, because that is where it would leak. What arrives is checked against the size and
//! the checksum that the Hub gave before it takes its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use super::hub::{endpoint, is_hash};
use crate::atomic_file::hex;
use crate::console::Progress;
use crate::interrupt;

/// Requests to one Hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// A file as the Hub describes it.
#[derive(Debug)]
pub(super) struct RemoteFile {
    /// Where it is asked for.
    url: String,
    /// Of the repository.
    pub(super) commit: String,
    /// Names the contents: their SHA-256, or their hash in git.
    pub(super) etag: String,
    /// In bytes.
    pub(super) size: u64,
}

/// What the Hub says of a file.
pub(super) enum Answer {
    File(RemoteFile),
    /// And the commit that lacks it.
    NoSuchFile(Option<String>),
}

/// Attempts at a download, and the wait before the second; it doubles.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(300);
const MAX_REDIRECTS: usize = 5;
const MEBIBYTE: u64 = 1 << 20;

impl Client {
    pub(super) fn new(token: Option<String>) -> Result<Self> {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("llmcls/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent, endpoint: endpoint()?, token })
    }

    /// Asks for a file's size, checksum and commit.
    pub(super) fn look_at(&self, repository: &str, revision: &str, file: &str) -> Result<Answer> {
        let revision = revision.replace('/', "%2F");
        let mut url = format!("{}/{repository}/resolve/{revision}/{file}", self.endpoint);
        for _ in 0..MAX_REDIRECTS {
            let response = self.with_retries(|| self.request(&url, None, true))?;
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let status = response.status().as_u16();
            // A renamed repository; files that lie elsewhere are described by the redirect itself.
            let is_described =
                header("x-linked-etag").or(header("etag")).is_some() && header("x-repo-commit").is_some();
            if response.status().is_redirection() && !is_described {
                url = self.next(&url, &response)?;
                continue;
            }
            if status == 404 && matches!(header("x-error-code"), Some("EntryNotFound") | None) {
                let commit = header("x-repo-commit").filter(|commit| is_hash(commit)).map(str::to_owned);
                return Ok(Answer::NoSuchFile(commit));
            }
            ensure!(status < 400, "{}", refusal(&response, repository, &revision));
            let hash = |name: &str| {
                let text = header(name)?.trim_start_matches("W/").trim_matches('"');
                is_hash(text).then(|| text.to_owned())
            };
            let size = header("x-linked-size").or(header("content-length")).and_then(|size| size.parse().ok());
            let incomplete = || format!("{url}: the answer lacks the headers of the Hub; is HF_ENDPOINT right?");
            return Ok(Answer::File(RemoteFile {
                commit: hash("x-repo-commit").with_context(incomplete)?,
                etag: hash("x-linked-etag").or_else(|| hash("etag")).with_context(incomplete)?,
                size: size.with_context(incomplete)?,
                url,
            }));
        }
        bail!("{url}: too many redirects")
    }

    /// An answer of the Hub's API, as text.
    pub(super) fn api(&self, path: &str) -> Result<String> {
        let url = format!("{}/api/{path}", self.endpoint);
        let mut response = self.with_retries(|| self.request(&url, None, false))?;
        ensure!(response.status().as_u16() < 400, "{}", refusal(&response, path, ""));
        response.body_mut().read_to_string().with_context(|| format!("{url}: no answer"))
    }

    /// Downloads a file to `path`, going on with `path.incomplete` if there is one.
    pub(super) fn fetch(&self, remote: &RemoteFile, path: &Path, mut progress: Progress) -> Result<()> {
        let incomplete = path.with_file_name(format!("{}.incomplete", remote.etag));
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            let result = self.fetch_rest(remote, &incomplete, &mut progress);
            let Err(error) = result else { break };
            let is_final = error.is::<interrupt::Interrupted>()
                || error.downcast_ref::<Refused>().is_some()
                || error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::StorageFull);
            if is_final || attempt == ATTEMPTS {
                return Err(explain(error, path, remote.size));
            }
            thread::sleep(wait);
            wait *= 2;
        }
        progress.finish();
        let found = checksum(&incomplete, remote)?;
        if found != remote.etag {
            fs::remove_file(&incomplete).with_context(|| format!("{}: cannot remove", incomplete.display()))?;
            bail!("what arrived has the checksum {found}, the Hub says {}; it was thrown away, try again", remote.etag);
        }
        fs::rename(&incomplete, path).with_context(|| format!("{}: cannot rename", incomplete.display()))
    }

    /// Appends what is still missing.
    fn fetch_rest(&self, remote: &RemoteFile, incomplete: &Path, progress: &mut Progress) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(incomplete)?;
        let mut have = file.metadata()?.len();
        if have > remote.size {
            // Of no use, whatever it is.
            file.set_len(0)?;
            have = 0;
        }
        progress.start_at((have / MEBIBYTE) as usize);
        if have == remote.size {
            return Ok(());
        }
        let mut url = remote.url.clone();
        let mut redirects = 0;
        let response = loop {
            let response = self.request(&url, Some(have), false)?;
            if !response.status().is_redirection() {
                break response;
            }
            redirects += 1;
            ensure!(redirects <= MAX_REDIRECTS, Refused("too many redirects".into()));
            url = self.next(&url, &response)?;
        };
        match response.status().as_u16() {
            206 => {}
            // The whole file, though a part was asked for.
            200 => {
                file.set_len(0)?;
                have = 0;
            }
            status @ 400..=499 => bail!(Refused(format!("{}: status {status}", host(&url)))),
            status => bail!("{}: status {status}", host(&url)),
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        while have < remote.size {
            interrupt::check()?;
            let ended = || format!("{}: the connection ended after {have} of {} bytes", host(&url), remote.size);
            let count = body.read(&mut buffer).map_err(|error| anyhow!("{}: {error}", ended()))?;
            ensure!(count > 0, "{}", ended());
            file.write_all(&buffer[..count])?;
            let before = have / MEBIBYTE;
            have += count as u64;
            progress.advance((have / MEBIBYTE - before) as usize, String::new);
        }
        file.sync_all()?;
        Ok(())
    }

    /// One request, without following redirects. `from`: only the bytes from there on.
    fn request(&self, url: &str, from: Option<u64>, is_head: bool) -> Result<Response<Body>> {
        let mut request = if is_head { self.agent.head(url) } else { self.agent.get(url) };
        request = request.header("accept-encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| self.may_see_token(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|error| {
            anyhow!("{}: {error}; is there a network? HF_HUB_OFFLINE=1 uses the cache alone", host(url))
        })
    }

    /// Whether an address is the Hub's own, over a connection that others cannot read.
    fn may_see_token(&self, url: &str) -> bool {
        let (Ok(url), Ok(endpoint)) = (url.parse::<Uri>(), self.endpoint.parse::<Uri>()) else { return false };
        url.authority() == endpoint.authority() && url.scheme() == endpoint.scheme() && is_private(&url)
    }

    /// Where a redirect leads.
    fn next(&self, url: &str, response: &Response<Body>) -> Result<String> {
        let location = response.headers().get("location").and_then(|location| location.to_str().ok());
        let location = location.with_context(|| format!("{}: a redirect to nowhere", host(url)))?;
        if location.starts_with('/') && !location.starts_with("//") {
            let base: Uri = url.parse()?;
            let (scheme, authority) = (base.scheme_str().unwrap_or("https"), base.authority());
            return Ok(format!("{scheme}://{}{location}", authority.map_or("", |authority| authority.as_str())));
        }
        let target: Uri = location.parse().map_err(|_| anyhow!("{}: a redirect to `{location}`", host(url)))?;
        ensure!(
            is_private(&target) || self.endpoint.starts_with("http://"),
            Refused(format!("{}: a redirect to {location}, which is not https", host(url)))
        );
        Ok(location.to_owned())
    }

    /// Repeats a request that did not get through, or that the server could not answer just now.
    fn with_retries(&self, request: impl Fn() -> Result<Response<Body>>) -> Result<Response<Body>> {
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            interrupt::check()?;
            match request() {
                Ok(response) if response.status().as_u16() == 429 || response.status().is_server_error() => {
                    if attempt == ATTEMPTS {
                        return Ok(response);
                    }
                }
                Ok(response) => return Ok(response),
                // No connection: a second attempt tells a hiccup from a missing network.
                Err(error) if attempt == 2 => return Err(error),
                Err(_) => {}
            }
            thread::sleep(wait);
            wait *= 2;
        }
        unreachable!("the loop returns")
    }
}

/// An error that another attempt would not change.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Https, or this machine.
fn is_private(url: &Uri) -> bool {
    let is_loopback = matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    url.scheme_str() == Some("https") || is_loopback
}

fn host(url: &str) -> String {
    url.parse::<Uri>().ok().and_then(|url| url.authority().map(ToString::to_string)).unwrap_or_else(|| url.to_owned())
}

/// What a status of the Hub means, and what to do about it.
fn refusal(response: &Response<Body>, repository: &str, revision: &str) -> String {
    let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
    let status = response.status().as_u16();
    match (status, code) {
        (_, "GatedRepo") => format!(
            "`{repository}` is gated: accept its licence on its page on the Hub, and set model.hf_token or HF_TOKEN to \
             a token of that account"
        ),
        (_, "RevisionNotFound") => format!("`{repository}` has no revision `{revision}`"),
        (401 | 403, _) => format!(
            "the Hub refuses `{repository}` (status {status}): it does not exist, or is private or gated; check the name, \
             and set model.hf_token or HF_TOKEN to a token of an account that may read it"
        ),
        (404, _) => format!("the Hub has no `{repository}`; check the name"),
        (429, _) => "the Hub refuses further requests for now (status 429); try again later".to_owned(),
        _ => format!("the Hub answers with status {status}; try again later"),
    }
}

fn explain(error: anyhow::Error, path: &Path, size: u64) -> anyhow::Error {
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::StorageFull) {
        return error.context(format!(
            "{}: the disk is full, the file has {size} bytes; HF_HOME or HF_HUB_CACHE name another place",
            path.display()
        ));
    }
    error
}

/// The checksum of a file of the kind that its etag is: SHA-256 of the contents for large files, git's
/// SHA-1 of a blob for others.
fn checksum(path: &Path, remote: &RemoteFile) -> Result<String> {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        if remote.etag.len() == 64 {
            return digest(&mut file, Sha256::new());
        }
        digest(&mut file, Sha1::new_with_prefix(format!("blob {}\0", remote.size)))
    };
    ensure!(
        matches!(remote.etag.len(), 40 | 64),
        "the Hub gives `{}` as the checksum, which is neither SHA-256 nor git's",
        remote.etag
    );
    read().with_context(|| format!("{}: cannot read", path.display()))
}

fn digest(file: &mut File, mut hash: impl Digest) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}
