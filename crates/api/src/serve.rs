//! Connections.
//!
//! ```text
//!   accept ─▶ serve requests ─▶ closed
//!               │ shutdown: finish the request that is running, then close
//!               └ still there after GRACE: broken off
//! ```
//!
//! Every way to hold a connection without using it has a limit: their number, the time for a
//! request's head, and the time a peer may leave our bytes unread. Bodies have theirs in
//! [`crate::body`].

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guard::Guard;
use crate::preview::{Peer, Site};
use crate::{Api, routes};

/// Time for a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// Bytes of a request's head, and of what is buffered of a body.
const BUFFER: usize = 64 << 10;
/// Time that a peer may leave our bytes unread, or not answer at all.
const UNREAD: Duration = Duration::from_secs(300);
/// Time that requests have to finish after a shutdown was asked for.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection, usually for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `api` on `listener` until `shutdown` resolves and running requests are done.
pub async fn serve(
    listener: TcpListener,
    mut api: Api,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let guard = Guard::new(address, &api.options.extra_hosts);
    api.site = Arc::new(Site::new(address, &api.options.preview_hosts));
    let slots = Arc::new(Semaphore::new(api.options.max_connections));
    let router = routes::router(api, guard);
    let (finish, abort) = (CancellationToken::new(), CancellationToken::new());
    let connections = TaskTracker::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, slot) = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = &mut shutdown => break,
        };
        let (finish, abort) = (finish.clone(), abort.clone());
        let connection = connection(stream, router.clone(), finish, slot);
        connections.spawn(async move { abort.run_until_cancelled(connection).await });
    }
    drop(listener);
    finish.cancel();
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        abort.cancel();
        connections.wait().await;
    }
    Ok(())
}

/// The next connection, once there is a slot for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let slot = slots.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    finish: CancellationToken,
    _slot: Option<OwnedSemaphorePermit>,
) {
    if let Err(error) = tune(&stream) {
        tracing::debug!(%error, "cannot tune a connection");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER);
    let peer = stream.peer_addr().ok().map(Peer);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router.call(request)
    });
    let serving = http.serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving.with_upgrades());
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = finish.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        // Mostly peers that went away.
        tracing::debug!(%error, "a connection broke");
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    // Also ends connections of peers that answer but never read.
    sockopt::set_tcp_user_timeout(stream, UNREAD.as_millis() as u32)?;
    Ok(())
}
