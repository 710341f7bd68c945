//! One thread and one runtime a core, each with a listener of its own; and the orders that end them.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::door::accept::{Phase, accept};
use crate::door::lend::lend;
use crate::state::Gateway;

/// Between two lines on callers without a credential.
const STRANGERS_EVERY: Duration = Duration::from_secs(60);

/// The running cores.
#[derive(Debug)]
pub struct Cores {
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts one core for each listener.
///
/// # Errors
/// When a thread, a runtime or a listener can't be set up.
pub fn start(gateway: &Arc<Gateway>, listeners: Vec<TcpListener>) -> std::io::Result<Cores> {
    let (phase, watched) = watch::channel(Phase::Serving);
    let mut threads = Vec::with_capacity(listeners.len());
    for (number, listener) in listeners.into_iter().enumerate() {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (gateway, watched) = (Arc::clone(gateway), watched.clone());
        let name = format!("core-{number}");
        threads.push(std::thread::Builder::new().name(name).spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, run(gateway, listener, watched, number == 0));
        })?);
    }
    Ok(Cores { phase, threads })
}

async fn run(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    phase: watch::Receiver<Phase>,
    first: bool,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(fault) => return tracing::error!(%fault, "a listener can't be used"),
    };
    let accepting = accept(Arc::clone(&gateway), listener, phase);
    if !first {
        return accepting.await;
    }
    // Both are polled: a line a stranger must not hold up the door.
    let flushing = async {
        let mut minute = tokio::time::interval(STRANGERS_EVERY);
        loop {
            minute.tick().await;
            gateway
                .strangers
                .flush(&gateway.trail, gateway.clock.unix_ns())
                .await;
        }
    };
    tokio::select! {
        () = accepting => {}
        () = flushing => {}
    }
    gateway
        .strangers
        .flush(&gateway.trail, gateway.clock.unix_ns())
        .await;
}

impl Cores {
    /// A door of the same kind for somebody else's answers, on the runtime of whoever polls it: it ends as the cores
    /// do.
    ///
    /// # Errors
    /// When the listener can't be used.
    pub fn lend<A, F, B>(
        &self,
        gateway: &Arc<Gateway>,
        listener: TcpListener,
        answer: A,
    ) -> std::io::Result<impl Future<Output = ()> + use<A, F, B>>
    where
        A: Fn(SocketAddr, Request<Incoming>) -> F + 'static,
        F: Future<Output = Response<B>> + 'static,
        B: http_body::Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let gateway = Arc::clone(gateway);
        Ok(lend(gateway, listener, self.phase.subscribe(), answer))
    }

    /// Accept nothing new; answers in hand are finished.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// End what still runs.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stopped);
    }

    /// Whether all cores have ended.
    #[must_use]
    pub fn are_done(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits for all cores.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a core ended with a panic");
            }
        }
    }
}
