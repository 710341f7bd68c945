//! `guan-engine`: one worker, one model, one Unix socket. This file decides the order of the start:
//! arguments and inherited descriptors, the fence, then weights, context, threads, and at last the
//! ready line. Nothing from outside is parsed before the fence. Started by the supervisor, or by
//! hand (`--listen`) to try a model.
#![forbid(unsafe_code)]

mod arguments;
mod journal;
mod memory;
mod weights;
mod tokenise;
mod ask;
mod refuse;
mod generate;
mod schedule;
mod serve;

use std::fs::File;
use std::hash::RandomState;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::thread;

use serde::Serialize;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use arguments::{Command, Listen, Serve};
use journal::note;
use schedule::{Counters, QUEUE, Scheduler};
use serve::Engine;
use tokenise::Tokeniser;
use weights::{Weights, Wishes};

fn main() -> ExitCode {
    match arguments::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print(arguments::USAGE),
        Ok(Command::Describe(path)) => describe(&path),
        Ok(Command::Serve(wanted)) => serve(&wanted),
        Err(fault) => {
            note(&fault.to_string());
            ExitCode::from(2)
        }
    }
}

fn describe(path: &Path) -> ExitCode {
    let described = fence().and_then(|()| weights::describe(path).map_err(|e| e.to_string()));
    match described.and_then(|found| serde_json::to_string(&found).map_err(|e| e.to_string())) {
        Ok(line) => print(&line),
        Err(fault) => {
            note(&fault);
            ExitCode::FAILURE
        }
    }
}

fn serve(wanted: &Serve) -> ExitCode {
    let mut ready = match Ready::new(wanted.ready_fd) {
        Ok(ready) => ready,
        Err(fault) => {
            note(&fault);
            return ExitCode::FAILURE;
        }
    };
    match start(wanted) {
        Ok(started) => {
            if let Err(error) = ready.tell(&json!({"ready": started.weights.loaded})) {
                note(&format!("nobody reads the ready line: {error}"));
                return ExitCode::FAILURE;
            }
            drop(ready);
            run(started)
        }
        Err(message) => {
            note(&message);
            // if nobody reads it, the exit code still tells
            drop(ready.tell(&json!({"failed": {"message": message}})));
            ExitCode::FAILURE
        }
    }
}

/// All that stands once the model can answer.
struct Started {
    runtime: Runtime,
    listener: UnixListener,
    weights: Weights,
    tokeniser: Tokeniser,
    scheduler: Scheduler,
    counters: Arc<Counters>,
    jobs: mpsc::SyncSender<schedule::Job>,
}

fn start(wanted: &Serve) -> Result<Started, String> {
    let listener = listen(&wanted.listen)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let wishes = Wishes {
        context: wanted.context,
        threads: wanted
            .threads
            .unwrap_or_else(|| u32::try_from(cores).unwrap_or(1)),
        parallel: wanted.parallel,
        memory: memory::available(),
    };
    // Made before the fence: where the build has tokio's signal support, making a runtime asks for
    // a socket pair. It starts no thread yet.
    let runtime = Builder::new_current_thread()
        .enable_io()
        .max_blocking_threads(2)
        .build()
        .map_err(|error| format!("no runtime could be made: {error}; raise the limits"))?;
    fence()?;
    journal::open();
    let mut weights =
        weights::load(&wanted.model, &wanted.name, wishes).map_err(|e| e.to_string())?;
    let context = weights.context().map_err(|e| e.to_string())?;
    let (tokeniser, fault) = Tokeniser::new(weights.model, weights.template.take());
    if let Some(fault) = fault {
        note(&format!(
            "chat is off, the model's chat template can't be used: {fault}"
        ));
    }
    if !tokeniser.trained() {
        note("this model has no chat template: it was not trained to chat and may answer oddly");
    }
    let counters = Arc::new(Counters::default());
    let (jobs, incoming) = mpsc::sync_channel(QUEUE);
    let scheduler = Scheduler::new(&weights, context, incoming, Arc::clone(&counters));
    Ok(Started {
        runtime,
        listener,
        weights,
        tokeniser,
        scheduler,
        counters,
        jobs,
    })
}

fn run(started: Started) -> ExitCode {
    let Started {
        runtime,
        listener,
        weights,
        tokeniser,
        scheduler,
        counters,
        jobs,
    } = started;
    let (ended, scheduler_ended) = oneshot::channel();
    let spawned = thread::Builder::new()
        .name("batches".to_owned())
        .spawn(move || {
            // dropped on every way out of this thread, a panic too
            let _ended = ended;
            scheduler.run();
        });
    let handle = match spawned {
        Ok(handle) => handle,
        Err(error) => {
            note(&format!(
                "no thread could be started: {error}; raise the limits"
            ));
            return ExitCode::FAILURE;
        }
    };
    let engine = Arc::new(Engine {
        tokeniser,
        loaded: weights.loaded,
        counters,
        jobs,
        wake: handle.thread().clone(),
        places: serve::places(),
        random: RandomState::new(),
        requests: AtomicU64::new(0),
    });
    let outcome = runtime.block_on(async move {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        serve::serve(engine, listener, scheduler_ended).await
    });
    match outcome {
        Ok(()) => note("the thread that computes has ended; see the lines above"),
        Err(error) => note(&format!("the socket can't be served: {error}")),
    }
    ExitCode::FAILURE
}

/// The socket to serve, bound here or inherited.
fn listen(wanted: &Listen) -> Result<UnixListener, String> {
    let listener = match wanted {
        Listen::Inherited(number) => sandbox::inherited_fd(*number).map(UnixListener::from),
        Listen::Path(path) => UnixListener::bind(path),
    };
    let listener = listener.map_err(|error| match wanted {
        Listen::Inherited(number) => format!("descriptor {number} can't be used: {error}"),
        Listen::Path(path) => {
            format!(
                "{}: {error}; remove the file or name another",
                path.display()
            )
        }
    })?;
    listener
        .set_nonblocking(true)
        .map_err(|error| format!("the socket can't be used: {error}"))?;
    Ok(listener)
}

/// Gives up all rights but computing and serving the socket that is there. Before any thread.
fn fence() -> Result<(), String> {
    sandbox::enter(sandbox::Profile::Engine)
        .map(drop)
        .map_err(|fault| format!("the sandbox can't be entered: {fault}"))
}

/// Where the ready line goes.
struct Ready(Option<File>);

impl Ready {
    fn new(descriptor: Option<i32>) -> Result<Self, String> {
        let Some(number) = descriptor else {
            return Ok(Self(None));
        };
        let inherited = sandbox::inherited_fd(number);
        let unusable = |error| format!("descriptor {number} can't be used: {error}");
        Ok(Self(Some(File::from(inherited.map_err(unusable)?))))
    }

    /// Writes one line of JSON.
    fn tell(&mut self, what: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        match &mut self.0 {
            Some(file) => file.write_all(&line),
            None => {
                let mut out = io::stdout().lock();
                out.write_all(&line)?;
                out.flush()
            }
        }
    }
}

fn print(text: &str) -> ExitCode {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
