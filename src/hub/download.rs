//! Requests to the Hub, and downloads that resume.
//!
//! The token goes to the Hub's own host alone, over https or to this machine; redirects are followed
//! here, one by one, because that is where it would leak. What arrives is checked against the size and
//! the checksum that the Hub gave before it takes its name. A connection that stalls times out and is
//! tried again; requests run on a thread of their own, so that Ctrl-C works while one waits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use super::environment::{endpoint, stall_timeout};
use super::names::{is_hash, percent_encode};
use crate::atomic_file::hex;
use crate::console::ProgressMeter;
use crate::interrupt;

/// A client of one Hub.
pub(super) struct Client {
    pub(super) agent: Agent,
    /// The time without a byte after which a connection counts as stalled.
    stall: Duration,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
}

/// A file as the Hub describes it.
#[derive(Debug)]
pub(super) struct RemoteFile {
    /// Where it is asked for.
    url: String,
    /// The repository's commit.
    pub(super) commit: String,
    /// Names the contents: their SHA-256, or their hash in git.
    pub(super) etag: String,
    /// Size in bytes.
    pub(super) size: u64,
}

/// The Hub's answer about a file.
pub(super) enum Answer {
    File(RemoteFile),
    /// And the commit that lacks it.
    NoSuchFile(Option<String>),
}

/// Attempts without a new byte, and the wait before the second; the wait doubles.
pub(super) const ATTEMPTS: u32 = 5;
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(300);
const MAX_REDIRECTS: usize = 5;
const MEBIBYTE: u64 = 1 << 20;
/// Interval between two checks for Ctrl-C.
const POLL: Duration = Duration::from_millis(100);
/// The longest answer of the API: a list of a million files.
const API_BYTES: u64 = 256 * MEBIBYTE;

impl Client {
    pub(super) fn new(token: Option<String>) -> Result<Self> {
        let stall = stall_timeout();
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(stall.max(Duration::from_secs(1))))
            .timeout_per_read(Some(stall))
            .user_agent(concat!("llmcls/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent, stall, endpoint: endpoint()?, token })
    }

    /// Asks for a file's size, checksum and commit.
    pub(super) fn look_at(&self, repository: &str, revision: &str, file: &str) -> Result<Answer> {
        let at = revision.replace('/', "%2F");
        let mut url = format!("{}/{repository}/resolve/{at}/{}", self.endpoint, percent_encode(file));
        for _ in 0..=MAX_REDIRECTS {
            let response = self.with_retries(|| self.request(&url, None, true))?;
            if response.status().is_redirection() {
                // A large file lies elsewhere: the Hub describes it in headers of its own. Without them, what the
                // redirect says of size and etag is about the redirect.
                if let Some(remote) = describe(&response, &url, ["x-linked-etag", "x-linked-size"]) {
                    return Ok(Answer::File(remote));
                }
                url = self.next(&url, &response)?;
                continue;
            }
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            if response.status().as_u16() == 404 && matches!(header("x-error-code"), Some("EntryNotFound") | None) {
                let commit = header("x-repo-commit").filter(|commit| is_hash(commit)).map(str::to_owned);
                return Ok(Answer::NoSuchFile(commit));
            }
            ensure!(response.status().as_u16() < 400, "{}", refusal(&response, repository, revision));
            let found = describe(&response, &url, ["x-linked-etag", "x-linked-size"])
                .or_else(|| describe(&response, &url, ["etag", "content-length"]));
            return found
                .map(Answer::File)
                .with_context(|| format!("{url}: the answer lacks the headers of the Hub; is HF_ENDPOINT right?"));
        }
        bail!("{url}: too many redirects")
    }

    /// An answer of the Hub's API, as text.
    pub(super) fn api(&self, path: &str) -> Result<String> {
        let url = format!("{}/api/{path}", self.endpoint);
        let response = self.with_retries(|| self.request(&url, None, false))?;
        ensure!(response.status().as_u16() < 400, "{}", refusal(&response, path, ""));
        let read = move || response.into_body().into_with_config().limit(API_BYTES).read_to_string();
        in_background(read)?.with_context(|| format!("{url}: the answer did not arrive"))
    }

    /// Downloads a file to `path`, or the rest of it if there is a `path.incomplete`.
    pub(super) fn fetch(&self, remote: &RemoteFile, path: &Path, mut progress: ProgressMeter) -> Result<()> {
        let incomplete = path.with_file_name(format!("{}.incomplete", remote.etag));
        let size = || fs::metadata(&incomplete).map_or(0, |file| file.len());
        let (mut wait, mut attempts, mut before) = (FIRST_WAIT, 0, size());
        loop {
            let result = self.fetch_rest(remote, &incomplete, &mut progress);
            let Err(error) = result else { break };
            attempts += 1;
            let now = size();
            if now >= before + MEBIBYTE {
                (wait, attempts, before) = (FIRST_WAIT, 1, now);
            }
            let is_final = error.is::<interrupt::Interrupted>()
                || error.downcast_ref::<Refused>().is_some()
                || error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::StorageFull);
            if is_final {
                return Err(explain(error, path, remote.size));
            }
            if attempts == ATTEMPTS {
                return Err(
                    error.context(format!("{ATTEMPTS} attempts failed; the next run continues after {now} bytes"))
                );
            }
            pause(wait)?;
            wait *= 2;
        }
        progress.finish();
        let found = checksum(&incomplete, remote)?;
        if found != remote.etag {
            fs::remove_file(&incomplete).with_context(|| format!("{}: cannot remove", incomplete.display()))?;
            bail!("what arrived has the checksum {found}, the Hub says {}; it was deleted, try again", remote.etag);
        }
        fs::rename(&incomplete, path).with_context(|| format!("{}: cannot rename", incomplete.display()))
    }

    /// Appends what is still missing.
    fn fetch_rest(&self, remote: &RemoteFile, incomplete: &Path, progress: &mut ProgressMeter) -> Result<()> {
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
        let (response, host) = self.open_at(&remote.url, have)?;
        match response.status().as_u16() {
            206 => ensure!(
                starts_at(&response, have),
                Refused(format!("{host}: asked for bytes from {have} on, got others"))
            ),
            // The whole file, though a part was asked for.
            200 => {
                file.set_len(0)?;
                have = 0;
            }
            status @ (408 | 429 | 500..) => bail!("{host}: status {status}"),
            status => bail!(Refused(format!("{host}: status {status}"))),
        }
        let body = self.receive(response)?;
        while have < remote.size {
            let ended = || format!("{host}: the connection ended after {have} of {} bytes", remote.size);
            let Some(piece) = wait_for(&body)? else { bail!("{}", ended()) };
            let piece = piece.map_err(|error| match has_timed_out(&error) {
                true => {
                    let seconds = self.stall.as_secs();
                    anyhow!("{host}: nothing arrived for {seconds} s after {have} of {} bytes", remote.size)
                }
                false => anyhow!("{}: {error}", ended()),
            })?;
            // More than was announced is cut; the checksum tells whether the rest is right.
            let count = (piece.len() as u64).min(remote.size - have);
            file.write_all(&piece[..count as usize])?;
            let before = have / MEBIBYTE;
            have += count;
            progress.advance((have / MEBIBYTE - before) as usize, String::new);
        }
        file.sync_all()?;
        Ok(())
    }

    /// Asks for the bytes from `from` on, through redirects; and says which host answered.
    fn open_at(&self, url: &str, from: u64) -> Result<(Response<Body>, String)> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&url, Some(from), false)?;
            if !response.status().is_redirection() {
                return Ok((response, host(&url)));
            }
            url = self.next(&url, &response)?;
        }
        bail!(Refused("too many redirects".into()))
    }

    /// Reads a body on a thread of its own, a few pieces ahead.
    fn receive(&self, response: Response<Body>) -> Result<Receiver<io::Result<Vec<u8>>>> {
        let (sender, receiver) = sync_channel(4);
        let read = move || {
            let mut body = response.into_body().into_reader();
            loop {
                let mut piece = vec![0; 1 << 18];
                let result = body.read(&mut piece).map(|count| {
                    piece.truncate(count);
                    piece
                });
                let is_last = result.as_ref().map_or(true, Vec::is_empty);
                // Nobody listens any more, or the body has ended: an empty piece is not sent.
                if result.as_ref().is_ok_and(Vec::is_empty) || sender.send(result).is_err() || is_last {
                    return;
                }
            }
        };
        thread::Builder::new().spawn(read).context("cannot start a thread")?;
        Ok(receiver)
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
        in_background(move || request.call())?.map_err(|error| {
            anyhow!("{}: {error}; is there a network? HF_HUB_OFFLINE=1 uses the cache alone", host(url))
        })
    }

    /// Returns true if an address is the Hub's own, over a connection that others cannot read.
    pub(super) fn may_see_token(&self, url: &str) -> bool {
        let (Ok(url), Ok(endpoint)) = (url.parse::<Uri>(), self.endpoint.parse::<Uri>()) else { return false };
        url.authority() == endpoint.authority() && url.scheme() == endpoint.scheme() && is_private(&url)
    }

    /// The target of a redirect.
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
                Err(error) if attempt == 2 || error.is::<interrupt::Interrupted>() => return Err(error),
                Err(_) => {}
            }
            pause(wait)?;
            wait *= 2;
        }
        unreachable!("the loop returns")
    }
}

/// A file by the headers that hold its etag and its size; `None` if one is missing or not plain.
fn describe(response: &Response<Body>, url: &str, [etag, size]: [&str; 2]) -> Option<RemoteFile> {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let hash = |name: &str| {
        let text = header(name)?.trim_start_matches("W/").trim_matches('"');
        is_hash(text).then(|| text.to_owned())
    };
    Some(RemoteFile {
        commit: hash("x-repo-commit")?,
        etag: hash(etag)?,
        size: header(size)?.parse().ok()?,
        url: url.to_owned(),
    })
}

/// Returns true if a read ended because nothing arrived.
fn has_timed_out(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    error.kind() == ErrorKind::TimedOut || matches!(inner, Some(ureq::Error::Timeout(_)))
}

/// Returns true if a partial answer begins at the requested byte.
fn starts_at(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    // A server that does not say is believed: the checksum tells.
    range.is_none_or(|range| range.trim_start_matches("bytes ").split('-').next() == Some(&from.to_string()))
}

/// Runs a blocking call on a thread of its own and waits for it; Ctrl-C ends the wait.
pub(super) fn in_background<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, receiver) = sync_channel(1);
    // The receiver may be gone after Ctrl-C.
    let run = move || drop(sender.send(call()));
    thread::Builder::new().spawn(run).context("cannot start a thread")?;
    wait_for(&receiver)?.context("a request ended without an answer")
}

/// The next of what a thread sends; `None` if it has ended.
fn wait_for<T>(receiver: &Receiver<T>) -> Result<Option<T>> {
    loop {
        interrupt::check()?;
        match receiver.recv_timeout(POLL) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// Sleeps, unless Ctrl-C comes.
pub(super) fn pause(time: Duration) -> Result<()> {
    let mut left = time;
    while !left.is_zero() {
        interrupt::check()?;
        let part = left.min(POLL);
        thread::sleep(part);
        left -= part;
    }
    Ok(())
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

/// Returns true for HTTPS, and for this machine.
pub(super) fn is_private(url: &Uri) -> bool {
    let is_loopback = matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    url.scheme_str() == Some("https") || is_loopback
}

pub(super) fn host(url: &str) -> String {
    url.parse::<Uri>().ok().and_then(|url| url.authority().map(ToString::to_string)).unwrap_or_else(|| url.to_owned())
}

/// Explains a status of the Hub, and says what to do about it.
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
