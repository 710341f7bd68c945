//! Connections of the admin socket: who may have one, how many, and for how long.
//!
//! The peer's uid comes from the kernel (`SO_PEERCRED`), never from what the peer says. One request a connection.

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::denials::Denied;
use super::{ApiFault, ApiState, Origin, table};

/// Answers connections until it is dropped. Peers whose uid isn't in `allowed_uids` get a 403 and nothing else.
///
/// # Errors
/// None: a failing `accept` is logged and tried again.
pub async fn serve(listener: UnixListener, state: ApiState, allowed_uids: Vec<u32>) {
    let allowed = table::router(&state);
    let foreign = Router::new().fallback(refuse);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    // Dropped with this future, so nothing outlives it but acts that have begun.
    let mut open = JoinSet::new();
    let mut minute = tokio::time::interval(FLUSH_EVERY);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        while open.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = minute.tick() => {
                state.flush_denials();
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(cause) => {
                tracing::warn!(%cause, "the admin socket can't accept a connection");
                sleep(AFTER_FAULT).await;
                continue;
            }
        };
        let uid = match stream.peer_cred() {
            Ok(peer) => peer.uid(),
            Err(cause) => {
                tracing::warn!(%cause, "connection on the admin socket closed: the kernel doesn't say whose it is");
                continue;
            }
        };
        let routes = if allowed_uids.contains(&uid) {
            allowed.clone().layer(Extension(Origin::Local { uid }))
        } else {
            tracing::warn!(uid, "connection on the admin socket refused");
            state.denied(Denied::foreign_user(uid));
            foreign.clone()
        };
        let _task = open.spawn(async move {
            answer(stream, routes).await;
            drop(place);
        });
    }
}

async fn answer(stream: UnixStream, routes: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_headers(32)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    match timeout(WHOLE_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => tracing::debug!(%cause, "connection on the admin socket ended early"),
        Err(_elapsed) => tracing::debug!("connection on the admin socket took too long"),
    }
}

async fn refuse() -> ApiFault {
    ApiFault::new(
        StatusCode::FORBIDDEN,
        "this user may not act here. Run the command as root or as the user that runs guan"
            .to_owned(),
    )
}

/// Between two looks at what was refused again and again.
const FLUSH_EVERY: Duration = Duration::from_secs(60);
const MOST_CONNECTIONS: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than an act waits for a held database and for the audit log.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(30);
const AFTER_FAULT: Duration = Duration::from_millis(100);
