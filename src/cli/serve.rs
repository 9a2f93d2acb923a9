//! Arguments of `llmcls serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, value_parser};

use super::shared::{ACCESS, CLASSIFIER, ConfigArgs, LIMITS, LOGS, PrecisionArgs, positive};

/// `llmcls serve`
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// A run, one of its seed directories, or a directory that peft saved, and the name that requests give it; may be
    /// given several times, and the first answers requests that name none
    /// [default: the newest finished run, unless --models is given]
    #[arg(long, value_name = "[NAME=]RUN", help_heading = CLASSIFIER)]
    pub run: Vec<String>,
    /// Serve every run in this directory under the name of its subdirectory, as they come and go
    #[arg(long, value_name = "DIR", help_heading = CLASSIFIER)]
    pub models: Option<PathBuf>,
    /// Selects the newest run of its model and data set; names base and labels of a peft directory. `--set` takes
    /// model.model_name.
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Listen on this name or address; 0.0.0.0 takes requests from other machines
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub host: String,
    /// Listen on this port; 0 takes a free one
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    pub port: u16,
    /// Load and drop models by requests to this address, such as 127.0.0.1:8081
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin: Option<std::net::SocketAddr>,
    /// Ask requests for a key of this file, one a line, or of the environment variable LLMCLS_API_KEY
    #[arg(long = "api_key_file", alias = "api-key-file", value_name = "FILE", help_heading = ACCESS)]
    pub api_key_file: Option<PathBuf>,
    /// Ask for a key at /health, /ping and /v2/health, too
    #[arg(long = "protect_health", alias = "protect-health", help_heading = ACCESS)]
    pub protect_health: bool,
    /// Ask for no key at /metrics
    #[arg(long = "open_metrics", alias = "open-metrics", help_heading = ACCESS)]
    pub open_metrics: bool,
    /// Take requests for this host name, beside localhost; may be given several times
    #[arg(long = "allow_host", alias = "allow-host", value_name = "NAME", help_heading = ACCESS)]
    pub allow_host: Vec<String>,
    /// Let web pages of this origin read answers (CORS), such as `https://example.org`; may be given several times
    #[arg(long = "allow_origin", alias = "allow-origin", value_name = "ORIGIN", help_heading = ACCESS)]
    pub allow_origin: Vec<String>,
    /// Texts in a request; more are refused with 413
    #[arg(long = "max_texts", alias = "max-texts", value_name = "N", default_value_t = 256, value_parser = positive, help_heading = LIMITS)]
    pub max_texts: usize,
    /// Tokens in a request; more are refused with 413
    #[arg(long = "max_tokens", alias = "max-tokens", value_name = "N", default_value_t = 131_072, value_parser = positive, help_heading = LIMITS)]
    pub max_tokens: usize,
    /// Kibibytes of a request; more are refused with 413
    #[arg(long = "max_kib", alias = "max-kib", value_name = "N", default_value_t = 2048, value_parser = positive, help_heading = LIMITS)]
    pub max_kib: usize,
    /// Texts that wait or are in work; further requests are refused with 429
    #[arg(long = "max_queue", alias = "max-queue", value_name = "N", default_value_t = 1024, value_parser = positive, help_heading = LIMITS)]
    pub max_queue: usize,
    /// Open connections; further ones wait
    #[arg(long = "max_connections", alias = "max-connections", value_name = "N", default_value_t = 512, value_parser = positive, help_heading = LIMITS)]
    pub max_connections: usize,
    /// Seconds in which the head of a request must come, and then its body
    #[arg(long = "read_timeout", alias = "read-timeout", value_name = "SECONDS", default_value_t = 20, value_parser = value_parser!(u16).range(1..=600), help_heading = LIMITS)]
    pub read_timeout: u16,
    /// Seconds that requests in work have after SIGTERM
    #[arg(long = "drain", value_name = "SECONDS", default_value_t = 25, value_parser = value_parser!(u16).range(0..=3600), help_heading = LIMITS)]
    pub drain: u16,
    /// Tokens in a batch
    #[arg(long = "batch_tokens", alias = "batch-tokens", value_name = "N", default_value_t = 1024, value_parser = positive, help_heading = LIMITS)]
    pub batch_tokens: usize,
    /// Milliseconds that a batch waits for more texts; without it, a batch has what came during the last one
    #[arg(long = "batch_wait", alias = "batch-wait", value_name = "MS", default_value_t = 0, value_parser = value_parser!(u16).range(0..=1000), help_heading = LIMITS)]
    pub batch_wait: u16,
    /// Cut texts that are too long at every route; without it, /predict and /classify refuse them unless the request
    /// asks for it
    #[arg(long = "auto_truncate", alias = "auto-truncate", help_heading = LIMITS)]
    pub auto_truncate: bool,
    /// Log lines for people, or JSON
    #[arg(long = "log_format", alias = "log-format", value_enum, default_value = "lines", value_name = "FORMAT", help_heading = LOGS)]
    pub log_format: LogFormat,
    /// Write the texts of requests into the log
    #[arg(long = "log_texts", alias = "log-texts", help_heading = LOGS)]
    pub log_texts: bool,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Plain lines
    Lines,
    /// An object a line
    Json,
}
