//! The load: closed loops (the next request when the answer is there), an open loop (requests come at their time,
//! whether answers do or not), and live streams that are only held.
//!
//! One thread, so that the load itself is the same in each round. Any answer that isn't whole ends the bench.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Fault;
use crate::client::{Connection, Door, Heard};

/// Connections that are opened at the same time before a load begins.
const OPENING: usize = 32;

/// What one load showed.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Requests answered.
    pub(crate) requests: u32,
    /// How long all of it took.
    pub(crate) wall: Duration,
    /// From a request (in an open loop: from its time) to the last byte.
    pub(crate) latency: Histogram<u64>,
    /// To the first byte of the body.
    pub(crate) first: Histogram<u64>,
    /// From where an event was sent to here.
    pub(crate) delay: Histogram<u64>,
}

impl Measured {
    /// Nothing yet.
    pub(crate) fn new() -> Result<Self, Fault> {
        // Nanoseconds, from one to a minute, to three digits.
        let histogram = || Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Ok(Self {
            requests: 0,
            wall: Duration::ZERO,
            latency: histogram()?,
            first: histogram()?,
            delay: histogram()?,
        })
    }

    fn note(&mut self, from: Instant, heard: &Heard) {
        self.requests = self.requests.saturating_add(1);
        self.latency.saturating_record(nanoseconds(from.elapsed()));
        if let Some(first) = heard.first {
            self.first
                .saturating_record(nanoseconds(first.saturating_duration_since(from)));
        }
        for delay in &heard.delays {
            self.delay.saturating_record(nanoseconds(*delay));
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One kind of request, to one place.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    /// Where.
    pub(crate) door: Door,
    /// Head and body.
    pub(crate) request: Bytes,
    /// Events that a whole answer has.
    pub(crate) events: u32,
}

impl Calls {
    async fn call(&self, connection: &mut Connection) -> Result<Heard, Fault> {
        let heard = connection.call(&self.request).await?;
        if heard.events != self.events {
            return Err(format!("an answer has {} events of {}", heard.events, self.events).into());
        }
        Ok(heard)
    }

    async fn open(&self, connections: u32) -> Result<Vec<Connection>, Fault> {
        let gate = Rc::new(Semaphore::new(OPENING));
        let mut opening = JoinSet::new();
        for _ in 0..connections {
            let (door, gate) = (self.door.clone(), Rc::clone(&gate));
            opening.spawn_local(async move {
                let _one_of_few = gate.acquire().await?;
                Ok::<_, Fault>(Connection::open(&door).await?)
            });
        }
        opening.join_all().await.into_iter().collect()
    }

    /// The next request as soon as the answer is there.
    pub(crate) async fn closed(
        &self,
        connections: u32,
        requests: u32,
        spread: Duration,
    ) -> Result<Measured, Fault> {
        let open = self.open(connections).await?;
        let (left, begun) = (Rc::new(Cell::new(requests)), Instant::now());
        self.gather(
            open.into_iter()
                .enumerate()
                .map(|(number, mut connection)| {
                    let (calls, left) = (self.clone(), Rc::clone(&left));
                    let number = u32::try_from(number).unwrap_or(0);
                    let wait = spread.saturating_mul(number) / connections.max(1);
                    move |measured: Rc<RefCell<Measured>>| async move {
                        tokio::time::sleep(wait).await;
                        while take(&left) {
                            let from = Instant::now();
                            let heard = calls.call(&mut connection).await?;
                            measured.borrow_mut().note(from, &heard);
                        }
                        Ok(())
                    }
                }),
            begun,
        )
        .await
    }

    /// A new connection for each request; connecting counts.
    pub(crate) async fn fresh(&self, connections: u32, requests: u32) -> Result<Measured, Fault> {
        let (left, begun) = (Rc::new(Cell::new(requests)), Instant::now());
        self.gather(
            (0..connections).map(|_| {
                let (calls, left) = (self.clone(), Rc::clone(&left));
                move |measured: Rc<RefCell<Measured>>| async move {
                    while take(&left) {
                        let from = Instant::now();
                        let mut connection = Connection::open(&calls.door).await?;
                        let heard = calls.call(&mut connection).await?;
                        measured.borrow_mut().note(from, &heard);
                    }
                    Ok(())
                }
            }),
            begun,
        )
        .await
    }

    /// `rate` requests a second, each at its time; one that finds no free connection waits, and its wait counts.
    pub(crate) async fn at_rate(
        &self,
        connections: u32,
        requests: u32,
        rate: f64,
    ) -> Result<Measured, Fault> {
        let open = self.open(connections).await?;
        let (next, begun) = (Rc::new(Cell::new(0_u32)), Instant::now());
        self.gather(
            open.into_iter().map(|mut connection| {
                let (calls, next) = (self.clone(), Rc::clone(&next));
                move |measured: Rc<RefCell<Measured>>| async move {
                    loop {
                        let number = next.replace(next.get().saturating_add(1));
                        if number >= requests {
                            return Ok(());
                        }
                        let due = begun + Duration::from_secs_f64(f64::from(number) / rate);
                        let mut from = due;
                        if due > Instant::now() {
                            tokio::time::sleep_until(due.into()).await;
                            // The timer's own grain isn't the server's.
                            from = Instant::now();
                        }
                        let heard = calls.call(&mut connection).await?;
                        measured.borrow_mut().note(from, &heard);
                    }
                }
            }),
            begun,
        )
        .await
    }

    /// So many streams at the same time, each with its first event there; they end when the result is dropped.
    pub(crate) async fn live(&self, connections: u32) -> Result<Vec<Connection>, Fault> {
        let gate = Rc::new(Semaphore::new(OPENING));
        let mut opening = JoinSet::new();
        for _ in 0..connections {
            let (calls, gate) = (self.clone(), Rc::clone(&gate));
            opening.spawn_local(async move {
                let _one_of_few = gate.acquire().await?;
                let mut connection = Connection::open(&calls.door).await?;
                connection.first_event(&calls.request).await?;
                Ok::<_, Fault>(connection)
            });
        }
        opening.join_all().await.into_iter().collect()
    }

    async fn gather<W, F>(
        &self,
        workers: impl Iterator<Item = W>,
        begun: Instant,
    ) -> Result<Measured, Fault>
    where
        W: FnOnce(Rc<RefCell<Measured>>) -> F,
        F: Future<Output = Result<(), Fault>> + 'static,
    {
        let measured = Rc::new(RefCell::new(Measured::new()?));
        let mut running = JoinSet::new();
        for worker in workers {
            running.spawn_local(worker(Rc::clone(&measured)));
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        let mut measured = Rc::into_inner(measured)
            .ok_or("a worker still runs")?
            .into_inner();
        measured.wall = begun.elapsed();
        Ok(measured)
    }
}

/// One of what is left.
fn take(left: &Cell<u32>) -> bool {
    let one = left.get().checked_sub(1);
    left.set(one.unwrap_or(0));
    one.is_some()
}
