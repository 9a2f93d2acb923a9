//! `llmcls serve`: classifiers over HTTP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::loaded::{newest_run, selecting_config};
use crate::cli::{LogFormat, ServeArgs};
use crate::config::overrides::Overrides;
use crate::console::Console;
use crate::embedded;
use crate::exit::Usage;
use crate::predictor::CLASSIFIER;
use crate::server::{self, Access, Keys, Limits, LogSettings, OpenDevice, Settings, Source};

/// The environment variable with a key.
const KEY: &str = "LLMCLS_API_KEY";

/// Serves until a signal.
///
/// # Errors
/// If a classifier cannot be used, or the address is taken.
pub fn run(args: &ServeArgs, open_device: OpenDevice, console: Console, is_quiet: bool) -> Result<()> {
    let given = selecting_config(&args.config)?;
    let overrides = Overrides::read(&args.config.set)?;
    let allowed = Overrides { model_name: overrides.model_name.clone(), ..Overrides::default() };
    if overrides != allowed {
        return Err(Usage("--set: serve takes model.model_name alone; texts have no columns".to_owned()).into());
    }
    let mut runs = args.run.iter().map(|run| named(run)).collect::<Result<Vec<_>>>()?;
    if runs.is_empty() && args.models.is_none() {
        // A program that carries a classifier is for that one.
        runs.push(match embedded::root() {
            Some(root) => (Some(CLASSIFIER.to_owned()), root.join(CLASSIFIER)),
            None => (None, newest_run(&args.config, given.as_ref())?),
        });
    }
    if let Some(models) = &args.models {
        ensure!(models.is_dir(), "--models {}: no such directory", models.display());
    }
    server::serve(
        Settings {
            host: args.host.clone(),
            port: args.port,
            admin: args.admin,
            runs,
            models: args.models.clone(),
            source: Source {
                config: given,
                base: overrides.model_name,
                precision: args.precision.precision,
                accepts_loss: args.precision.accept_loss,
            },
            access: access(args)?,
            limits: limits(args),
            log: LogSettings { is_json: args.log_format == LogFormat::Json, is_quiet, has_texts: args.log_texts },
            drain: Duration::from_secs(args.drain.into()),
        },
        open_device,
        console,
    )
}

/// `NAME=RUN`, or the path of a run. A path that exists is one, whatever its name.
fn named(text: &str) -> Result<(Option<String>, PathBuf)> {
    match text.split_once('=') {
        Some((name, run)) if !Path::new(text).exists() => {
            if name.is_empty() || run.is_empty() {
                bail!(Usage(format!("--run {text}: expected NAME=RUN")));
            }
            Ok((Some(name.to_owned()), PathBuf::from(run)))
        }
        _ => Ok((None, PathBuf::from(text))),
    }
}

fn access(args: &ServeArgs) -> Result<Access> {
    let mut keys = Keys::default();
    if let Some(path) = &args.api_key_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        let of_file = Keys::read(&text);
        ensure!(!of_file.is_empty(), "--api_key_file {}: holds no key", path.display());
        keys.extend(of_file);
    }
    if let Some(key) = std::env::var_os(KEY) {
        let of_environment = Keys::read(&key.to_string_lossy());
        ensure!(!of_environment.is_empty(), "{KEY}: is set and empty; unset it to serve without a key");
        keys.extend(of_environment);
    }
    Ok(Access {
        keys,
        closes_health: args.protect_health,
        opens_metrics: args.open_metrics,
        hosts: args.allow_host.clone(),
        origins: args.allow_origin.clone(),
    })
}

fn limits(args: &ServeArgs) -> Limits {
    let body_bytes = args.max_kib << 10;
    Limits {
        texts: args.max_texts,
        tokens: args.max_tokens,
        body_bytes,
        // Of 32 of the largest bodies at once; the others are asked to come again.
        buffered_bytes: body_bytes.saturating_mul(32),
        queue: args.max_queue.max(args.max_texts),
        batch_tokens: args.batch_tokens,
        batch_wait: Duration::from_millis(args.batch_wait.into()),
        connections: args.max_connections,
        read_timeout: Duration::from_secs(args.read_timeout.into()),
        cuts: args.auto_truncate,
    }
}
