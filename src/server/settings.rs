//! Settings of a server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::keys::Keys;
use crate::config::Config;
use crate::kernels::device::Device;
use crate::predictor::Precision;

/// Opens the device, on the thread that will compute.
pub type OpenDevice = Arc<dyn Fn() -> Result<Device> + Send + Sync>;

/// A server's settings.
pub struct Settings {
    /// The name or address to listen on.
    pub host: String,
    /// The port; 0 for any that is free.
    pub port: u16,
    /// Where models can be loaded and dropped, if anywhere.
    pub admin: Option<SocketAddr>,
    /// The classifiers that are loaded first, with the names they are given.
    pub runs: Vec<(Option<String>, PathBuf)>,
    /// A directory whose subdirectories are classifiers, loaded and dropped as they come and go.
    pub models: Option<PathBuf>,
    /// Settings of its classifiers.
    pub source: Source,
    /// Who may ask.
    pub access: Access,
    /// Limits of requests.
    pub limits: Limits,
    /// Lines to log.
    pub log: LogSettings,
    /// Time that requests in work may take after a signal.
    pub drain: Duration,
}

/// Settings of classifiers.
#[derive(Clone, Default)]
pub struct Source {
    /// Names base and labels of directories that peft saved.
    pub config: Option<Config>,
    /// The base, in place of the one that a run names.
    pub base: Option<String>,
    /// What products are computed in, in place of what a run recorded.
    pub precision: Option<Precision>,
    /// True if int8 may cost more than half a point of F1.
    pub accepts_loss: bool,
}

/// Who may ask.
#[derive(Default)]
pub struct Access {
    /// The keys, one of which a request must bear; none: all may ask.
    pub keys: Keys,
    /// True if the routes of health need a key, too.
    pub closes_health: bool,
    /// True if `/metrics` is open without a key.
    pub opens_metrics: bool,
    /// Host names that requests may name beside those of this machine; where the address is not of this machine
    /// alone, all may be named if there are none here.
    pub hosts: Vec<String>,
    /// Origins of web pages that may read answers.
    pub origins: Vec<String>,
}

/// Limits of requests.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Texts in a request.
    pub texts: usize,
    /// Tokens in a request.
    pub tokens: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being read.
    pub buffered_bytes: usize,
    /// Texts that wait or are in work.
    pub queue: usize,
    /// Tokens in a batch.
    pub batch_tokens: usize,
    /// Time for which a batch may wait for more texts.
    pub batch_wait: Duration,
    /// Open connections.
    pub connections: usize,
    /// Time for the head of a request, and for its body.
    pub read_timeout: Duration,
    /// True if routes that could refuse a text that is too long cut it, as the others do.
    pub cuts: bool,
}

/// Lines to log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogSettings {
    /// JSON in place of plain lines.
    pub is_json: bool,
    /// No line for a request that went well.
    pub is_quiet: bool,
    /// The texts, too.
    pub has_texts: bool,
}
