//! Where the rooms meet: the gateway process, from the supervisor's first message to its last answer.
//!
//! Reads the config, opens what `control` owns, replays what a dead generation left, starts the cores of `gateway`,
//! and then does what the supervisor asks. Decides nothing about a request. Called by the hidden command
//! `guan gateway`, which only the supervisor starts.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use control::api::ApiState;
use control::audit_log::{self, AuditSpec, Log};
use control::bootstrap::Opened;
use control::identity::oidc::Source;
use control::keys::Keys;
use control::publish::{self, Publisher};
use control::seal::{Envelope, Kms};
use control::secrets::Secrets;
use control::store::{NodeRow, Store};
use gateway::check::fresh::Freshness;
use gateway::check::token::Issuers;
use gateway::record::replay::node_died;
use gateway::record::slot::Slots;
use gateway::record::trail::Trail;
use gateway::serve::{self, Cores};
use gateway::state::{Clock, Gateway, Parts};
use rules::chain::Signer;
use rules::key::KeyId;
use rules::snapshot::Key;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, LocalSet};
use wire::control::{Decoder, Door, Start, ToGateway, ToSupervisor, WorkerState, encode};

use crate::config::reference::Opener;
use crate::config::{self, Config};

mod figures;
mod identity;
mod limits;
mod reload;
mod tls;

use reload::{Asking, read_config};

/// The descriptor of the supervisor's socket.
const CONTROL: i32 = 3;

/// How far back a limiter is rebuilt, nanoseconds: longer than the longest window in use (a minute).
const REBUILD: u64 = 3_600_000_000_000;

/// How long a gateway that ends waits for the store to take its chain's head.
const LAST_HEAD: Duration = Duration::from_secs(2);

/// How often a draining gateway looks whether its last call has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Why the gateway can't start or go on, in a sentence for the supervisor.
type Reason = Box<dyn std::error::Error + Send + Sync>;

/// The gateway process.
pub(crate) fn run() -> ExitCode {
    let mut supervisor = match sandbox::inherited_fd(CONTROL) {
        Ok(socket) => UnixStream::from(socket),
        Err(_) => return ExitCode::from(2),
    };
    if let Err(fault) = sandbox::enter(sandbox::Profile::Gateway) {
        say(
            &mut supervisor,
            &ToSupervisor::Refused {
                text: fault.to_string(),
            },
        );
        return ExitCode::FAILURE;
    }
    match live(&mut supervisor) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            say(
                &mut supervisor,
                &ToSupervisor::Refused {
                    text: reason.to_string(),
                },
            );
            ExitCode::FAILURE
        }
    }
}

fn live(supervisor: &mut UnixStream) -> Result<(), Reason> {
    let mut decoder = Decoder::default();
    let ToGateway::Start(start) = first(supervisor, &mut decoder)? else {
        return Err("the supervisor's first message isn't a start".into());
    };
    let clock = Clock::system();
    // Sealed values are opened once the store is.
    let config = read_config(&start, &start.config, clock, Opener::Nobody)?;
    let inherited = |door| {
        let fds = start.fds(door).map(sandbox::inherited_fd);
        fds.collect::<Result<Vec<OwnedFd>, _>>()
    };
    let listeners = inherited(Door::Data)?.into_iter().map(TcpListener::from);
    let listeners = listeners.collect();
    let (admin, admin_socket) = (inherited(Door::Admin)?, inherited(Door::AdminSocket)?);
    let metrics = inherited(Door::Metrics)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    let (log, slots, store) = local.block_on(&runtime, async {
        let (house, config) = Box::pin(House::build(&start, config, clock, supervisor)).await?;
        let cores = serve::start(&house.gateway, listeners)?;
        let mut doors = house.serve_admin(&cores, admin, admin_socket)?;
        doors.extend(house.serve_metrics(&cores, metrics)?);
        say(supervisor, &ToSupervisor::Ready);
        let running = Running { cores, doors };
        Box::pin(house.obey(supervisor, decoder, &start, config, running)).await
    })?;
    // The admin API's senders go with the set; the chain ends when the last sender does.
    drop(local);
    let heads = log.heads();
    if !log.join() {
        tracing::error!("the last audit records can't be written");
    }
    let head = heads.borrow().clone();
    let keeping = audit_log::heads::keep_one(&store, head);
    if runtime
        .block_on(async { tokio::time::timeout(LAST_HEAD, keeping).await })
        .is_err()
    {
        tracing::warn!("the store doesn't answer: it hasn't the last head of the audit chain");
    }
    drop((store, runtime));
    if slots.are_free() {
        // Every call has its record: nothing to replay.
        std::fs::remove_file(slots_of(Path::new(&start.data), start.generation))?;
    }
    say(supervisor, &ToSupervisor::Drained);
    Ok(())
}

/// What answers until it is drained.
struct Running {
    cores: Cores,
    /// The doors that are lent to the admin API and to whoever collects figures.
    doors: Vec<JoinHandle<()>>,
}

/// The joined rooms.
struct House {
    gateway: Arc<Gateway>,
    keys: Keys,
    store: Store,
    secrets: Secrets,
    envelope: Envelope,
    in_force: Arc<ArcSwap<InForce>>,
    /// Certificates that were made while this gateway runs.
    renewals: mpsc::Receiver<String>,
    /// Whose tokens are taken, for whoever fetches their keys.
    issuers: watch::Sender<Vec<Source>>,
    log: Log,
    clock: Clock,
}

/// What goes on beside the requests reads of the config in force.
struct InForce {
    kms: Kms,
    /// How often that one is asked whether it is there.
    kms_check_every: Duration,
    /// Names for the next certificate.
    names: Vec<String>,
}

impl InForce {
    fn of(config: &Config) -> Self {
        Self {
            kms: config.kms.clone(),
            kms_check_every: config.kms_check_every,
            names: config.names.clone(),
        }
    }
}

/// How other nodes see this one.
fn row_of(node: String, clock: Clock, start: &Start) -> NodeRow {
    NodeRow {
        id: node,
        started_at: clock.unix_seconds(),
        seen_at: clock.unix_seconds(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: digest_of(&start.config),
    }
}

impl House {
    async fn build(
        start: &Start,
        config: Config,
        clock: Clock,
        supervisor: &mut UnixStream,
    ) -> Result<(Self, Config), Reason> {
        let data = Path::new(&start.data);
        let (opened, config) = Box::pin(opened(start, config, clock)).await?;
        let (store, pepper, node) = (opened.store, opened.pepper, opened.node);
        let audit = data.join("state/audit");
        let now = clock.unix_ns();
        let mut past = audit_log::past_calls(&audit, now.saturating_sub(REBUILD));
        let (entries, log) = open_log(start, &config, (&node, opened.signer), (&store, &audit))?;
        let trail = Trail::new(entries.clone(), log.healthy(), |ns| {
            control::clock::rfc3339_nanos(i128::from(ns))
        });
        let known = publish::load(&store).await?;
        let mut by_id = known.by_id();
        identity::recall(&past, &mut by_id);
        past.extend(replay(start, &audit, &trail, &by_id, clock).await?);
        let from = (&store, audit.as_path(), node.as_str());
        let limits = limits::open(&node, start, clock, &config)?;
        limits::rebuild(&limits, &mut past, (&known, &by_id), (&config, clock), from).await?;
        drop(by_id);
        let (ask, questions) = mpsc::channel(publish::MOST_ASKED);
        let (ask_issuers, asked_issuers) = mpsc::channel(control::identity::MOST_ASKED);
        let in_force = Arc::new(ArcSwap::from_pointee(InForce::of(&config)));
        let secrets = secrets(&opened.envelope, &store, entries.clone(), &in_force, data);
        let keeper = tls::keeper(&secrets, &entries, &node, data);
        let clients = identity::clients(config.client_auth.as_ref())?;
        let pair = keeper.open(&config.names).await?;
        let tls = tls::taken_up(pair, clients.as_ref())?;
        if let Some(chain) = tls.published {
            say(supervisor, &ToSupervisor::Certificate { chain });
        }
        let gateway = Arc::new(Gateway::new(Parts {
            settings: config.settings.clone(),
            keys: known,
            tls: tls.config,
            pepper: pepper.clone(),
            limits,
            slots: Slots::create(&slots_of(data, start.generation))?,
            trail,
            freshness: Arc::new(Freshness::new(ask)),
            issuers: Arc::new(Issuers::new(ask_issuers)),
            clock,
        }));
        figures::follow(&gateway, &store, tls.ends, digest_of(&start.config));
        let issuers = identity::follow(&gateway, config.sources.clone(), asked_issuers);
        let swap = Arc::clone(&gateway);
        let publisher = Publisher::new(store.clone(), Arc::new(move |keys| swap.publish(keys)));
        // The view that the acts of this node go on from, read once more: nothing is between the two.
        publisher.publish().await?;
        attend(
            &gateway,
            (&publisher, questions),
            (&store, audit),
            row_of(node, clock, start),
        );
        let keys = Keys::new(
            store.clone(),
            pepper,
            publisher,
            entries,
            control::clock::system(),
        );
        let renewals = tls::look_after(&secrets, (keeper, clients), &gateway, &in_force);
        let house = Self {
            gateway,
            keys,
            store,
            secrets,
            envelope: opened.envelope,
            in_force,
            renewals,
            issuers,
            log,
            clock,
        };
        Ok((house, config))
    }

    /// The admin API on the listeners that the supervisor holds; what is given back ends with the cores.
    fn serve_admin(
        &self,
        cores: &Cores,
        listeners: Vec<OwnedFd>,
        sockets: Vec<OwnedFd>,
    ) -> Result<Vec<JoinHandle<()>>, Reason> {
        let gateway = Arc::clone(&self.gateway);
        let state = ApiState::new(
            self.keys.clone(),
            Arc::new(move || gateway.settings.load().roles.clone()),
            control::clock::system(),
            self.store.clone(),
            self.secrets.clone(),
        )
        .with_limits(limits::now(&self.gateway));
        let api = control::api::Remote::new(&state);
        let mut doors = Vec::new();
        for listener in listeners {
            let api = api.clone();
            let door = cores.lend(&self.gateway, listener.into(), move |peer, request| {
                api.clone().answer(peer.ip(), request)
            })?;
            doors.push(tokio::task::spawn_local(door));
        }
        let own = rustix::process::geteuid().as_raw();
        for socket in sockets {
            let socket = std::os::unix::net::UnixListener::from(socket);
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UnixListener::from_std(socket)?;
            // It ends with this process's local set.
            drop(tokio::task::spawn_local(control::api::serve(
                socket,
                state.clone(),
                vec![0, own],
            )));
        }
        Ok(doors)
    }

    /// Does what the supervisor asks, until it asks for the end.
    async fn obey(
        mut self,
        supervisor: &mut UnixStream,
        mut decoder: Decoder,
        start: &Start,
        mut config: Config,
        running: Running,
    ) -> Result<(Log, Arc<Slots>, Store), Reason> {
        let reading = supervisor.try_clone()?;
        reading.set_nonblocking(true)?;
        let mut reading = tokio::net::UnixStream::from_std(reading)?;
        let mut bytes = [0_u8; 16 << 10];
        let mut asking: Option<Asking> = None;
        loop {
            while let Some(message) = decoder.take::<ToGateway>()? {
                match message {
                    ToGateway::Start(_) => return Err("the supervisor sent a second start".into()),
                    ToGateway::Worker { name, state } => self.worker(name, &state),
                    ToGateway::Reload { config: text } => match self.judge(start, &text, &config) {
                        Ok(good) => asking = Some(good),
                        Err(refusal) => say(supervisor, &refusal),
                    },
                    ToGateway::Drain { grace_ms } => {
                        self.drain(running, Duration::from_millis(grace_ms), &mut reading)
                            .await;
                        return Ok((self.log, Arc::clone(&self.gateway.slots), self.store));
                    }
                }
            }
            tokio::select! {
                read = reading.read(&mut bytes) => {
                    let read = read?;
                    if read == 0 {
                        return Err("the supervisor is gone".into());
                    }
                    decoder.push(bytes.get(..read).unwrap_or_default());
                }
                Some(chain) = self.renewals.recv() => {
                    say(supervisor, &ToSupervisor::Certificate { chain });
                }
                said = reload::said(&mut asking) => {
                    if let Some(good) = asking.take() {
                        say(supervisor, &self.take_up(good, said, &mut config));
                    }
                }
            }
        }
    }

    fn worker(&self, name: String, state: &WorkerState) {
        let mut workers: HashMap<_, _> = self.gateway.workers.load().as_ref().clone();
        if matches!(state, WorkerState::Ready(_)) {
            workers.insert(name, ());
        } else {
            workers.remove(&name);
        }
        self.gateway.workers.store(Arc::new(workers));
    }

    /// Finishes the answers in hand; a second order, or the supervisor's end, cuts them.
    async fn drain(&self, running: Running, grace: Duration, reading: &mut tokio::net::UnixStream) {
        let Running { cores, doors } = running;
        self.gateway.draining.store(true, Ordering::Relaxed);
        cores.drain();
        let all_ended = async {
            while !(cores.are_done() && doors.iter().all(JoinHandle::is_finished)) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let told_again = async {
            let (mut decoder, mut bytes) = (Decoder::default(), [0_u8; 4 << 10]);
            loop {
                // Other news no longer matters; a broken or ended channel means stop.
                match decoder.take() {
                    Ok(Some(ToGateway::Drain { .. })) | Err(_) => return,
                    Ok(Some(_)) => continue,
                    Ok(None) => {}
                }
                match reading.read(&mut bytes).await {
                    Ok(read) if read > 0 => decoder.push(bytes.get(..read).unwrap_or_default()),
                    Ok(_) | Err(_) => return,
                }
            }
        };
        tokio::select! {
            () = all_ended => {}
            () = tokio::time::sleep(grace) => {
                tracing::warn!("the grace is over: what still runs is cut");
            }
            () = told_again => tracing::warn!("told again to stop: what still runs is cut"),
        }
        cores.stop();
        cores.join();
        self.gateway.limits.close();
    }
}

/// The data folder's store, and the config with its sealed values opened: until the store is open nothing is.
async fn opened(start: &Start, config: Config, clock: Clock) -> Result<(Opened, Config), Reason> {
    let data = Path::new(&start.data);
    let opened = control::bootstrap::open(data, &config.store, &config.kms).await?;
    if config.sealed.is_empty() {
        return Ok((opened, config));
    }
    let opener = Opener::Envelope(&opened.envelope);
    let config = read_config(start, &start.config, clock, opener)?;
    Ok((opened, config))
}

/// Opens the audit log, and starts what keeps its heads and its old files. Both end with this process's local set.
fn open_log(
    start: &Start,
    config: &Config,
    (node, signer): (&str, Arc<Signer>),
    (store, audit): (&Store, &Path),
) -> Result<(mpsc::Sender<rules::chain::Entry>, Log), Reason> {
    let (entries, log) = audit_log::open(chain_of(start, config, (node, signer), audit))?;
    let heads = audit_log::heads::keep(store.clone(), log.heads());
    drop(tokio::task::spawn_local(heads));
    let keeping = config.audit.keeping;
    let keeper = audit_log::keep::Keeper {
        dir: audit.to_path_buf(),
        node: node.to_owned(),
        store: store.clone(),
        audit: entries.clone(),
        clock: control::clock::system(),
    };
    drop(tokio::task::spawn_local(async move {
        keeper.keep(move || keeping).await;
    }));
    Ok((entries, log))
}

/// This generation's audit chain.
fn chain_of(
    start: &Start,
    config: &Config,
    (node, signer): (&str, Arc<Signer>),
    audit: &Path,
) -> AuditSpec {
    AuditSpec {
        dir: audit.to_path_buf(),
        node: node.to_owned(),
        generation: start.generation,
        clock: control::clock::system(),
        fsync: match config.audit.fsync {
            config::Fsync::Interval => audit_log::Fsync::Interval,
            config::Fsync::Each => audit_log::Fsync::Each,
        },
        signer,
        checkpoint_every: config.audit.checkpoint_every,
        rotate: config.audit.rotate,
    }
}

/// What acts on secrets, by `[kms]` as it is then.
fn secrets(
    envelope: &Envelope,
    store: &Store,
    entries: mpsc::Sender<rules::chain::Entry>,
    in_force: &Arc<ArcSwap<InForce>>,
    data: &Path,
) -> Secrets {
    let now = Arc::clone(in_force);
    Secrets::new(
        envelope.clone(),
        store.clone(),
        entries,
        control::clock::system(),
        Arc::new(move || now.load().kms.clone()),
        data.join("secrets"),
    )
}

/// Starts what goes on beside the requests: the view of the keys is kept young, and usage is counted. Both end with
/// this process's local set.
fn attend(
    gateway: &Arc<Gateway>,
    (publisher, questions): (&Publisher, mpsc::Receiver<publish::Question>),
    (store, audit): (&Store, PathBuf),
    node: NodeRow,
) {
    let freshness = Arc::clone(&gateway.freshness);
    let following = publish::follow(publisher.clone(), questions, move || freshness.heard());
    drop(tokio::task::spawn_local(following));
    let clock = gateway.clock;
    let counting = control::usage::count(store.clone(), audit, node, move || clock.unix_seconds());
    drop(tokio::task::spawn_local(async move {
        counting.await;
    }));
}

/// Calls that dead generations left: recorded now, their files removed; and counted by the limiter.
async fn replay(
    start: &Start,
    audit: &Path,
    trail: &Trail,
    keys: &HashMap<KeyId, Arc<Key>>,
    clock: Clock,
) -> Result<Vec<rules::chain::PastCall>, Reason> {
    let mut past = Vec::new();
    for &generation in &start.dead {
        let path = slots_of(Path::new(&start.data), generation);
        let left = Slots::left_over(&path)?;
        let ids: Vec<String> = left.iter().map(|call| call.id.to_string()).collect();
        let recorded = audit_log::recorded(audit, generation, &ids)?;
        for call in left
            .iter()
            .filter(|call| !recorded.contains(&call.id.to_string()))
        {
            let key = keys.get(&call.key).map(AsRef::as_ref);
            let stamp = control::clock::rfc3339_nanos(i128::from(clock.unix_ns()));
            let record = node_died(stamp, call, key);
            let charged = record.call.as_ref().map(|call| call.charged);
            trail.write(record).await?;
            past.push(rules::chain::PastCall {
                key: call.key.to_string(),
                role: key.map(|key| key.role.to_string()),
                project: key.and_then(|key| key.project.as_deref().map(str::to_owned)),
                model: Some(call.model.clone()),
                taken_ns: call.started_ns,
                charged: charged.unwrap_or_default(),
                cut: Some((call.id, call.reserved)),
            });
        }
        tracing::info!(
            generation,
            calls = left.len(),
            "a dead generation's calls are recorded"
        );
        std::fs::remove_file(&path)?;
    }
    Ok(past)
}

fn slots_of(data: &Path, generation: u64) -> PathBuf {
    data.join("state/inflight").join(generation.to_string())
}

/// A short name for a config's bytes: nodes that differ in it judge differently.
fn digest_of(text: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    hash.as_ref()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Blocks until the first message is whole.
fn first(supervisor: &mut UnixStream, decoder: &mut Decoder) -> Result<ToGateway, Reason> {
    let mut bytes = [0_u8; 16 << 10];
    loop {
        if let Some(message) = decoder.take()? {
            return Ok(message);
        }
        let read = supervisor.read(&mut bytes)?;
        if read == 0 {
            return Err("the supervisor is gone".into());
        }
        decoder.push(bytes.get(..read).unwrap_or_default());
    }
}

/// Answers the supervisor. If it is gone, this process is about to be as well.
fn say(supervisor: &mut UnixStream, message: &ToSupervisor) {
    let sent = encode(message)
        .map_err(|e| e.to_string())
        .and_then(|frame| supervisor.write_all(&frame).map_err(|e| e.to_string()));
    if let Err(fault) = sent {
        tracing::error!(fault, "the supervisor can't be answered");
    }
}
