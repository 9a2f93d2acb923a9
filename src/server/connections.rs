//! Connections: so many at a time, heads in time, and an end that lets requests in work finish.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::app::App;

/// Serves `router` until `stop` is done; then connections have `drain` to finish. Returns how many did not.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    app: App,
    stop: impl Future<Output = ()>,
    drain: Duration,
) -> usize {
    let connections = Arc::new(Semaphore::new(app.0.limits.connections));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(app.0.limits.read_timeout)
        .max_headers(100)
        .max_buf_size(64 << 10);
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                // No file descriptors are left, for one: there may be some later.
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let app = app.clone();
        tokio::spawn(async move {
            app.0.metrics.connections.inc();
            // An error is the client's: it has gone, was too slow, or speaks no HTTP.
            let _ = connection.await;
            app.0.metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    let left = app.0.limits.connections;
    match timeout(drain, graceful.shutdown()).await {
        Ok(()) => 0,
        Err(_) => left - connections.available_permits(),
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}
