//! A door lent to others: the same TLS, deadlines and framing as the data door, and somebody else's answers.
//!
//! The wiring fills it with the admin API, which this crate never sees. HTTP/1.1 only; a bounded number of
//! connections, each of which has one request and ends by its deadlines. Called by `serve::Cores::lend`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::door::accept::{HEAD_BYTES, HEAD_DEADLINE, PAUSE, Phase};
use crate::door::framing;
use crate::door::handshake::shake;
use crate::refuse;
use crate::state::Gateway;

/// Connections at the same time: whoever comes later waits until one ends, by its deadlines at the latest.
const CONNECTIONS: usize = 64;

/// From the end of the handshake to the last byte of the one answer: a head, and what an answer may take.
const WHOLE_DEADLINE: Duration = Duration::from_secs(60);

/// Accepts until the phase changes, then lets the answers in hand end.
pub(crate) async fn lend<A, F, B>(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    mut phase: watch::Receiver<Phase>,
    answer: A,
) where
    A: Fn(SocketAddr, Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<B>> + 'static,
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let answer = Rc::new(answer);
    let mut connections = JoinSet::new();
    while *phase.borrow_and_update() == Phase::Serving {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, peer)) => {
                    // Anew for each: the certificate may have been swapped.
                    let tls = Arc::clone(&gateway.tls.load().lent);
                    let answer = Rc::clone(&answer);
                    connections.spawn_local(serve(stream, peer, tls, phase.clone(), answer));
                }
                Err(fault) => {
                    tracing::warn!(%fault, "a connection can't be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = phase.changed() => {}
        }
    }
    drop(listener);
    loop {
        tokio::select! {
            ended = connections.join_next() => if ended.is_none() { return },
            gone = phase.wait_for(|now| *now == Phase::Stopped) => {
                drop(gone);
                connections.shutdown().await;
                return;
            }
        }
    }
}

async fn serve<A, F, B>(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Arc<ServerConfig>,
    mut phase: watch::Receiver<Phase>,
    answer: Rc<A>,
) where
    A: Fn(SocketAddr, Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<B>> + 'static,
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Some(secured) = shake(stream, tls).await else {
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = Rc::clone(&answer);
        async move {
            let (head, body) = request.into_parts();
            let judged = framing::judge(&head).map_err(|refusal| refusal.answer());
            Ok::<_, std::convert::Infallible>(match judged {
                Ok(()) => answer(peer, Request::from_parts(head, body))
                    .await
                    .map(Either::Right),
                Err(refused) => refuse::plain(&refused).map(|bytes| Either::Left(Full::new(bytes))),
            })
        }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .keep_alive(false)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(secured.stream), service)
    );
    let whole = async {
        tokio::select! {
            // A connection's own faults (reset, malformed head) concern its client only.
            ended = connection.as_mut() => drop(ended),
            _ = phase.wait_for(|now| *now != Phase::Serving) => {
                connection.as_mut().graceful_shutdown();
                drop(connection.as_mut().await);
            }
        }
    };
    // Who doesn't read his answer doesn't keep his place.
    drop(tokio::time::timeout(WHOLE_DEADLINE, whole).await);
}
