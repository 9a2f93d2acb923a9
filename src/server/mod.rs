//! Classifiers over HTTP.
//!
//! ```text
//! request -> routes -> texts -> tokens (any thread) -> Job -> Queue -> compute thread, one a base: Batch -> rows
//!         <- routes <- probabilities, labels        <- reply
//! ```
//! The queue is the one way to a model, which stays on its thread. A batch has texts of all classifiers over the
//! base; the probabilities of a text are those of `predict`, whatever else is in the batch.

mod answer;
mod app;
mod body;
mod compute;
mod connections;
mod guard;
mod keys;
mod log;
mod metrics;
mod models;
mod queue;
mod routes;
mod settings;
mod source;
mod watch;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::console::Console;
use crate::interrupt;
use app::{App, Shared};
use log::Log;
use metrics::Metrics;
use models::{Models, Tools};
use queue::Room;

pub use keys::Keys;
pub use settings::{Access, Limits, LogSettings, OpenDevice, Settings, Source};
use watch::Watch;

/// How often the directory of models is looked at, and signals.
const LOOK: Duration = Duration::from_secs(1);
const LISTEN: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT, then lets requests in work finish.
///
/// # Errors
/// If the address is taken, or a classifier cannot be used.
pub fn serve(settings: Settings, open_device: OpenDevice, console: Console) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("http").build()?;
    let result = runtime.block_on(run(settings, open_device, console));
    // Connections that were not done in time are cut.
    runtime.shutdown_background();
    result
}

async fn run(settings: Settings, open_device: OpenDevice, console: Console) -> Result<()> {
    let named = models::name_runs(&settings.runs)?;
    let listener = listen(&settings).await?;
    let address = listener.local_addr()?;
    let admin = match settings.admin {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("--admin {address}: cannot listen there"))?)
        }
        None => None,
    };
    let metrics = Arc::new(Metrics::new());
    let room = Room::new(settings.limits.queue);
    let tools = Tools {
        source: settings.source,
        room: Arc::clone(&room),
        metrics: Arc::clone(&metrics),
        open_device,
        console,
        batch_tokens: settings.limits.batch_tokens,
        batch_wait: settings.limits.batch_wait,
    };
    let app = App(Arc::new(Shared {
        models: Models::new(tools),
        room,
        metrics,
        limits: settings.limits,
        access: settings.access,
        is_local: is_local(address.ip()),
        log: Log { settings: settings.log },
        buffered: AtomicUsize::new(0),
    }));
    interrupt::finish_requests()?;
    let mut servers = Vec::new();
    let drain = settings.drain;
    servers.push(tokio::spawn(connections::serve(listener, routes::router(&app), app.clone(), signal(), drain)));
    if let Some(listener) = admin {
        let address = listener.local_addr()?;
        app.0.log.say(&format!("models are loaded and dropped at http://{address}/models"));
        let admin = App(Arc::clone(&app.0));
        servers.push(tokio::spawn(connections::serve(listener, routes::admin_router(&admin), admin, signal(), drain)));
    }
    let loader = app.clone();
    let load = spawn_blocking(move || -> Result<()> {
        for (name, run) in &named {
            loader.0.models.load(name, run)?;
        }
        Ok(())
    });
    tokio::select! {
        loaded = load => loaded.context("loading has panicked")??,
        () = signal() => return Ok(()),
    }
    if let Some(directory) = settings.models {
        let watcher = app.clone();
        let mut watch = Watch::default();
        let first = directory.clone();
        let watch = spawn_blocking(move || {
            watch.look(&first, &watcher);
            watch
        });
        let mut watch = watch.await.context("loading has panicked")?;
        let watcher = app.clone();
        std::thread::Builder::new().name("models".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(LOOK);
                watch.look(&directory, &watcher);
            }
        })?;
    }
    app.0.models.set_ready(true);
    app.0.log.say(&format!("ready at http://{address}"));
    signal().await;
    app.0.log.say("finishing requests in work");
    let mut cut = 0;
    for server in servers {
        cut += server.await.unwrap_or_default();
    }
    if cut > 0 {
        app.0.log.warn(&format!("{cut} connections were not done in {} seconds", drain.as_secs()));
    } else {
        let closing = app.clone();
        let _ = spawn_blocking(move || closing.0.models.close()).await;
    }
    Ok(())
}

async fn listen(settings: &Settings) -> Result<TcpListener> {
    let Settings { host, port, .. } = settings;
    let listener = TcpListener::bind((host.trim_matches(['[', ']']), *port)).await;
    listener.with_context(|| {
        format!(
            "--host {host} --port {port}: cannot listen there; is another server running? --port 0 takes a free one"
        )
    })
}

/// Whether only this machine can reach an address.
fn is_local(address: IpAddr) -> bool {
    address.is_loopback()
}

/// Done once the user has asked the server to end.
async fn signal() {
    while interrupt::check().is_ok() {
        sleep(LISTEN).await;
    }
}
