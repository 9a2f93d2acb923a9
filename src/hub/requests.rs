//! Requests with bodies: to the Hub, with the token, and to its store, without.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use ureq::http::Uri;
use ureq::{RequestBuilder, SendBody, typestate};

use super::download::{ATTEMPTS, Client, FIRST_WAIT, host, in_background, is_private, pause};
use crate::interrupt;

/// The media type of Git's store for large files.
const STORE_TYPE: &str = "application/vnd.git-lfs+json";
/// The most bytes of an answer that are read.
const MOST_TEXT: u64 = 64 << 20;

/// The body of a request.
#[derive(Clone)]
pub(super) enum Payload {
    Text {
        media_type: &'static str,
        text: String,
    },
    /// A part of a file.
    File {
        path: PathBuf,
        range: Range<u64>,
    },
}

impl Payload {
    pub(super) fn text(media_type: &'static str, text: String) -> Self {
        Self::Text { media_type, text }
    }
}

/// An answer that has arrived.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) text: String,
    pub(super) etag: Option<String>,
    host: String,
}

impl Answered {
    /// The text of a request that was granted.
    pub(super) fn check(&self, refused: &str) -> Result<String> {
        #[derive(serde::Deserialize)]
        struct Refusal {
            error: Option<String>,
            message: Option<String>,
        }
        if (200..300).contains(&self.status) {
            return Ok(self.text.clone());
        }
        let refusal = serde_json::from_str::<Refusal>(&self.text).ok();
        let said = refusal.and_then(|refusal| refusal.error.or(refusal.message));
        let said = said.map_or_else(String::new, |said| format!(": {}", said.chars().take(500).collect::<String>()));
        let help = match self.status {
            401 | 403 => "; HF_TOKEN must be a token that may write there",
            412 => "; somebody else has changed the repository: push again",
            413 | 507 => "; there is no room",
            429 => "; try again later",
            301 | 302 | 307 | 308 => "; the repository has moved: use its new name",
            _ => "",
        };
        Err(anyhow!("{refused} ({}, status {}{said}){help}", self.host, self.status))
    }
}

impl Client {
    /// Posts JSON to a path of the Hub, or to an address that it gave. What `is_repeatable` is sent again if it does not
    /// get through.
    pub(super) fn send_json(&self, to: &str, body: &Value, is_repeatable: bool) -> Result<Answered> {
        let payload = Payload::text("application/json", body.to_string());
        match is_repeatable {
            true => self.with_attempts(|| self.post(to, payload.clone(), None)),
            false => self.post(to, payload, None),
        }
    }

    /// Posts once: what was done by a request whose answer was lost must not be done again.
    pub(super) fn send_once(&self, to: &str, payload: Payload) -> Result<Answered> {
        self.post(to, payload, None)
    }

    /// Posts JSON as Git's store for large files speaks it.
    pub(super) fn send_to_store(&self, to: &str, body: &Value) -> Result<Answered> {
        let payload = Payload::text(STORE_TYPE, body.to_string());
        self.with_attempts(|| self.post(to, payload.clone(), Some(STORE_TYPE)))
    }

    /// Puts a part of a file at an address of the store.
    pub(super) fn put(&self, to: &str, path: &Path, range: Range<u64>) -> Result<Answered> {
        let payload = Payload::File { path: path.to_owned(), range };
        self.with_attempts(|| self.perform(to, self.agent.put(to), payload.clone(), None))
    }

    fn post(&self, to: &str, payload: Payload, accept: Option<&str>) -> Result<Answered> {
        let url = if to.contains("://") { to.to_owned() } else { format!("{}/{to}", self.endpoint) };
        self.perform(&url, self.agent.post(&url), payload, accept)
    }

    fn perform(
        &self,
        url: &str,
        mut request: RequestBuilder<typestate::WithBody>,
        payload: Payload,
        accept: Option<&str>,
    ) -> Result<Answered> {
        let parsed: Uri = url.parse().map_err(|_| anyhow!("the Hub gives `{url}` as an address"))?;
        ensure!(
            is_private(&parsed) || self.endpoint.starts_with("http://"),
            "{}: is not https, so nothing is sent there",
            host(url)
        );
        if let Some(token) = self.token.as_ref().filter(|_| self.may_see_token(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let host = host(url);
        let of_host = host.clone();
        let send = move || -> Result<Answered> {
            let cannot = |error: ureq::Error| anyhow!("{of_host}: {error}; is there a network?");
            let mut response = match payload {
                Payload::Text { media_type, text } => {
                    request.header("content-type", media_type).send(&text).map_err(cannot)?
                }
                Payload::File { path, range } => {
                    let mut file = File::open(&path).with_context(|| format!("{}: cannot read", path.display()))?;
                    file.seek(SeekFrom::Start(range.start))?;
                    let size = range.end - range.start;
                    let request = request.header("content-length", size.to_string());
                    request.send(SendBody::from_owned_reader(file.take(size))).map_err(cannot)?
                }
            };
            let etag = response.headers().get("etag").and_then(|etag| etag.to_str().ok()).map(str::to_owned);
            let status = response.status().as_u16();
            let text = response.body_mut().with_config().limit(MOST_TEXT).read_to_string().map_err(cannot)?;
            Ok(Answered { status, text, etag, host })
        };
        in_background(send)?
    }

    /// Repeats a request that did not get through, or that the server could not answer just now.
    fn with_attempts(&self, request: impl Fn() -> Result<Answered>) -> Result<Answered> {
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            interrupt::check()?;
            let result = request();
            let is_final = match &result {
                Ok(answer) => answer.status != 429 && answer.status < 500,
                Err(error) => error.is::<interrupt::Interrupted>(),
            };
            if is_final || attempt == ATTEMPTS {
                return result;
            }
            pause(wait)?;
            wait *= 2;
        }
        unreachable!("the loop returns")
    }
}
