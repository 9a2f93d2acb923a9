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

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::console::Console;
use crate::interrupt;
use crate::kernels::cpu::memory;
use app::{App, Shared};
use guard::Door;
use log::Log;
use metrics::Metrics;
use models::{Models, Tools};
use queue::Room;

pub use keys::Keys;
pub use settings::{Access, Limits, LogSettings, OpenDevice, Settings, Source};
use watch::Watch;

/// Interval between two looks at the directory of models, and at signals.
const LOOK: Duration = Duration::from_secs(1);
const LISTEN: Duration = Duration::from_millis(50);
/// How often memory that is free is given back: seldom enough that batches find theirs warm.
const RELEASE: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT, then lets requests in work finish.
///
/// # Errors
/// If the address is taken, or a classifier cannot be used.
pub fn serve(settings: Settings, open_device: OpenDevice, console: Console) -> Result<()> {
    memory::share_pools();
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
        Some(address) => Some(listen_for_admin(address, !settings.access.keys.is_empty()).await?),
        None => None,
    };
    let (drain, directory) = (settings.drain, settings.models.clone());
    let app = app(settings, open_device, console);
    interrupt::finish_requests()?;
    let door = |address: SocketAddr| Door { app: app.clone(), is_local: address.ip().is_loopback() };
    let router = routes::router(door(address));
    let mut servers = vec![tokio::spawn(connections::serve(listener, router, app.clone(), signal(), drain))];
    if let Some(listener) = admin {
        let address = listener.local_addr()?;
        app.0.log.say(&format!("models are loaded and dropped at http://{address}/models"));
        let router = routes::admin_router(door(address));
        servers.push(tokio::spawn(connections::serve(listener, router, app.clone(), signal(), drain)));
    }
    tokio::select! {
        loaded = load(app.clone(), named, directory) => loaded?,
        () = signal() => return Ok(()),
    }
    thread::Builder::new().name("memory".to_owned()).spawn(|| {
        loop {
            thread::sleep(RELEASE);
            memory::release_free_blocks();
        }
    })?;
    app.0.models.set_ready(true);
    if !address.ip().is_loopback() && app.0.access.keys.is_empty() {
        app.0.log.warn("everyone who can reach this address can ask; --api_key_file FILE asks for a key");
    }
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
        let _ = spawn_blocking(move || app.0.models.close()).await;
    }
    Ok(())
}

fn app(settings: Settings, open_device: OpenDevice, console: Console) -> App {
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
    App(Arc::new(Shared {
        models: Models::new(tools),
        room,
        metrics,
        limits: settings.limits,
        access: settings.access,
        log: Log { settings: settings.log },
        buffered: AtomicUsize::new(0),
        turns: Semaphore::new(thread::available_parallelism().map_or(1, usize::from)),
    }))
}

/// Loads the classifiers of the command line and of the directory, and goes on to watch the directory.
async fn load(app: App, named: Vec<(String, PathBuf)>, directory: Option<PathBuf>) -> Result<()> {
    let work = move || -> Result<()> {
        for (name, run) in &named {
            app.0.models.load(name, run)?;
        }
        let Some(directory) = directory else { return Ok(()) };
        let mut watch = Watch::default();
        watch.look(&directory, &app);
        thread::Builder::new().name("models".to_owned()).spawn(move || {
            loop {
                thread::sleep(LOOK);
                watch.look(&directory, &app);
            }
        })?;
        Ok(())
    };
    spawn_blocking(work).await.context("loading has panicked")?
}

/// Listens where models are loaded and dropped.
///
/// # Errors
/// If the address is taken, or others can reach it without a key.
async fn listen_for_admin(address: SocketAddr, has_keys: bool) -> Result<TcpListener> {
    ensure!(
        address.ip().is_loopback() || has_keys,
        "--admin {address}: others can reach this address, and load any directory: set a key with --api_key_file, or \
         listen on 127.0.0.1"
    );
    TcpListener::bind(address).await.with_context(|| format!("--admin {address}: cannot listen there"))
}

async fn listen(settings: &Settings) -> Result<TcpListener> {
    let Settings { host, port, .. } = settings;
    let listener = TcpListener::bind((host.trim_matches(['[', ']']), *port)).await;
    listener.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            io::ErrorKind::AddrInUse => "another server listens there; --port 0 takes a free one",
            _ => "--port 0 takes a free one",
        };
        anyhow!("--host {host} --port {port}: cannot listen there: {error}; {why}")
    })
}

/// Done once the user has asked the server to end.
async fn signal() {
    while interrupt::check().is_ok() {
        sleep(LISTEN).await;
    }
}
