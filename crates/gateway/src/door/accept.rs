//! Connections of one core: accepted, secured, then served until they end or the server stops.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::body::Body;
use crate::deliver::relay::Relay;
use crate::door::handshake::{ClientCertificate, Secured, shake};
use crate::door::{cors, framing};
use crate::settings::OnRevoke;
use crate::state::Gateway;
use crate::upstream::client::Pool;
use crate::way;

/// Until the head of a request is there.
pub(crate) const HEAD_DEADLINE: Duration = Duration::from_secs(15);

/// The largest request head of HTTP/1.1, bytes: above it hyper answers 431.
pub(crate) const HEAD_BYTES: usize = 64 << 10;

/// After a failed `accept`: descriptors may be used up, and trying at once would spin.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at streams whose clients may have stopped reading, and at places that were kept.
const LOOK: Duration = Duration::from_secs(1);

/// What one core's requests share: all of it stays on the core.
#[derive(Debug)]
pub(crate) struct Core {
    /// What all cores share.
    pub(crate) gateway: Arc<Gateway>,
    /// Idle connections to model servers.
    pub(crate) pool: Pool,
    /// Streams that run.
    pub(crate) streams: RefCell<Vec<Weak<RefCell<Relay>>>>,
}

impl Core {
    /// Ends streams whose key was taken back, if the config says so.
    fn look_after_keys(&self) {
        if self.gateway.settings.load().on_revoke == OnRevoke::Finish {
            return;
        }
        // A stream that ends takes nothing out of this list.
        let streams: Vec<_> = self.streams.borrow().clone();
        for stream in streams.iter().filter_map(Weak::upgrade) {
            stream.borrow_mut().cut_if_taken_back();
        }
    }

    /// Lets go of streams whose clients stopped reading, forgets those that ended, and offers places whose time is over.
    fn look_after_streams(&self) {
        self.gateway.lines.tick();
        let now = tokio::time::Instant::now();
        self.streams.borrow_mut().retain(|stream| {
            let stream = stream.upgrade();
            if let Some(stream) = &stream {
                stream.borrow_mut().expire(now);
            }
            stream.is_some()
        });
    }
}

/// Who is on the other side of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where from.
    pub(crate) address: SocketAddr,
    /// What he showed in the handshake.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

/// Whether the server goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It does.
    Serving,
    /// Answers in hand are finished, nothing new begins.
    Draining,
    /// Now.
    Stopped,
}

/// Accepts until the phase changes, then waits for what runs.
pub(crate) async fn accept(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    mut phase: watch::Receiver<Phase>,
) {
    let core = Rc::new(Core {
        gateway,
        pool: Pool::default(),
        streams: RefCell::default(),
    });
    let mut connections = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut news = core.gateway.news.subscribe();
    while *phase.borrow_and_update() == Phase::Serving {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn_local(serve(Rc::clone(&core), stream, peer, phase.clone()));
                }
                Err(fault) => {
                    tracing::warn!(%fault, "a connection can't be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = phase.changed() => {}
            _ = look.tick() => core.look_after_streams(),
            _ = news.changed() => core.look_after_keys(),
        }
    }
    drop(listener);
    loop {
        tokio::select! {
            _ = news.changed() => core.look_after_keys(),
            _ = look.tick() => core.look_after_streams(),
            ended = connections.join_next() => if ended.is_none() { return },
            gone = phase.wait_for(|now| *now == Phase::Stopped) => {
                drop(gone);
                connections.shutdown().await;
                return;
            }
        }
    }
}

async fn serve(core: Rc<Core>, stream: TcpStream, peer: SocketAddr, phase: watch::Receiver<Phase>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let tls = Arc::clone(&core.gateway.tls.load().callers);
    let Some(secured) = shake(stream, tls).await else {
        return;
    };
    let peer = Peer {
        address: peer,
        certificate: secured.client.clone(),
    };
    if secured.h2 {
        serve_h2(core, secured, peer, phase).await;
    } else {
        serve_h1(core, secured, peer, phase).await;
    }
}

/// Answers one request, and tells a browser whether the page that sent it may read that.
async fn answer(core: &Rc<Core>, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
    let origin = {
        let settings = core.gateway.settings.load();
        cors::allowed(&settings.cors_origins, request.headers())
    };
    let Some(origin) = origin else {
        return way::walk(core, peer, request).await;
    };
    let (head, body) = request.into_parts();
    // What two readers could read in two ways is left to the way, which refuses it.
    let judged = framing::judge(&head).is_ok();
    if let Some(preflight) = cors::preflight(&head, &origin).filter(|_| judged) {
        return preflight;
    }
    let mut response = way::walk(core, peer, Request::from_parts(head, body)).await;
    cors::mark(&mut response, &origin);
    response
}

async fn serve_h1(core: Rc<Core>, secured: Secured, peer: Peer, mut phase: watch::Receiver<Phase>) {
    let service = service_fn(move |request| {
        let (core, peer) = (Rc::clone(&core), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(&core, &peer, request).await) }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(secured.stream), service)
    );
    tokio::select! {
        // A connection's own faults (reset, malformed head) concern its client only.
        ended = connection.as_mut() => drop(ended),
        _ = phase.wait_for(|now| *now != Phase::Serving) => {
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }
}

async fn serve_h2(core: Rc<Core>, secured: Secured, peer: Peer, mut phase: watch::Receiver<Phase>) {
    let service = service_fn(move |request| {
        let (core, peer) = (Rc::clone(&core), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(&core, &peer, request).await) }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .max_concurrent_streams(128)
            .max_header_list_size(32 << 10)
            .max_pending_accept_reset_streams(20)
            .keep_alive_interval(Duration::from_secs(20))
            .serve_connection(TokioIo::new(secured.stream), service)
    );
    tokio::select! {
        ended = connection.as_mut() => drop(ended),
        _ = phase.wait_for(|now| *now != Phase::Serving) => {
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }
}

/// Streams of an HTTP/2 connection stay on its core.
#[derive(Clone, Copy, Debug)]
struct Local;

impl<F> hyper::rt::Executor<F> for Local
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, stream: F) {
        // Its connection waits for it: hyper ends a connection after its streams.
        drop(tokio::task::spawn_local(stream));
    }
}
