//! The HTTP face on the Unix socket: routes, reads bodies within a bound, has them parsed and
//! tokenised off the runtime's thread, queues the sequences and relays what comes. Decides which
//! status a request gets; it never touches llama.cpp's context. Dropping an answer cancels its
//! sequences. Called by `main`.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::Thread;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use llama_cpp_2::token::LlamaToken;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};

use crate::ask::{self, Ask, Conversation, Input, Kind, Prompt};
use crate::generate::Event;
use crate::journal::note;
use crate::refuse::Refusal;
use crate::schedule::{Counters, Job, QUEUE, READER_LAG};
use crate::tokenise::{Tokeniser, Unrendered};
use crate::weights::Loaded;

mod answer;
mod choices;
mod stream;

use answer::Shape;
use choices::Choices;

/// Larger than any prompt that fits a context; what is longer is refused unread.
const LARGEST_BODY: usize = 16 << 20;
/// Connections at once; the gateway keeps one for each call in flight.
const MOST_CONNECTIONS: usize = 1024;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What every request needs.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) tokeniser: Tokeniser,
    pub(crate) loaded: Loaded,
    pub(crate) counters: Arc<Counters>,
    pub(crate) jobs: SyncSender<Job>,
    /// The scheduler's thread, to be woken.
    pub(crate) wake: Thread,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) random: RandomState,
    pub(crate) requests: AtomicU64,
}

/// Accepts and serves until the scheduler ends, which it does only by failing.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    listener: UnixListener,
    mut scheduler: oneshot::Receiver<()>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut scheduler => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => {
                match accepted {
                    Ok((socket, _)) => {
                        let engine = Arc::clone(&engine);
                        connections.spawn(connection(engine, TokioIo::new(socket)));
                    }
                    // out of descriptors: a connection that ends gives one back
                    Err(error) if !connections.is_empty() => {
                        note(&format!("a connection was not accepted: {error}"));
                        connections.join_next().await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

async fn connection(engine: Arc<Engine>, socket: TokioIo<tokio::net::UnixStream>) {
    let service = service_fn(move |request| {
        let engine = Arc::clone(&engine);
        async move { Ok::<_, Infallible>(engine.respond(request).await) }
    });
    // a connection that breaks ends its own answers; there is nobody to tell
    drop(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(socket, service)
            .await,
    );
}

impl Engine {
    async fn respond(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let outcome = match (request.method(), request.uri().path()) {
            (&Method::GET, "/health") => Ok(json_response(StatusCode::OK, &self.health())),
            (&Method::GET, "/v1/models") => Ok(json_response(StatusCode::OK, &self.models())),
            (&Method::POST, "/tokenize") => self.tokenise(request).await,
            (&Method::POST, "/v1/chat/completions") => self.generate(Kind::Chat, request).await,
            (&Method::POST, "/v1/completions") => self.generate(Kind::Completion, request).await,
            (_, "/health" | "/v1/models") => Err((Some("GET"), wrong_method("GET"))),
            (_, "/tokenize" | "/v1/chat/completions" | "/v1/completions") => {
                Err((Some("POST"), wrong_method("POST")))
            }
            _ => Err((None, no_such_path())),
        };
        outcome.unwrap_or_else(|(allow, refusal)| {
            let mut response = refused(&refusal);
            if let Some(method) = allow {
                response
                    .headers_mut()
                    .insert(ALLOW, HeaderValue::from_static(method));
            }
            response
        })
    }

    fn health(&self) -> Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "status": "ok",
            "steps": read(&self.counters.steps),
            "active": read(&self.counters.active),
            "waiting": read(&self.counters.waiting),
        })
    }

    fn models(&self) -> Value {
        json!({"object": "list", "data": [{
            "id": self.loaded.name(),
            "object": "model",
            "created": self.loaded.since(),
            "owned_by": "guan",
            "max_model_len": self.loaded.context_tokens,
        }]})
    }

    async fn tokenise(self: Arc<Self>, request: Request<Incoming>) -> Outcome {
        let body = read(request).await?;
        let tokens = off_thread(move || {
            let input = ask::parse_tokenise(&body)?;
            self.tokens(input)
        })
        .await?;
        let tokens: Vec<i32> = tokens
            .iter()
            .flat_map(|prompt| prompt.iter())
            .map(|t| t.0)
            .collect();
        let answer = json!({"count": tokens.len(), "tokens": tokens});
        Ok(json_response(StatusCode::OK, &answer))
    }

    async fn generate(self: Arc<Self>, kind: Kind, request: Request<Incoming>) -> Outcome {
        let body = read(request).await?;
        let engine = Arc::clone(&self);
        let (ask, prompts) = off_thread(move || {
            let mut ask = ask::parse(kind, &body)?;
            if kind == Kind::Chat {
                ask.stops.extend(engine.tokeniser.chat_stop());
            }
            let nothing = Input::Prompts(Vec::new());
            let prompts = engine.tokens(std::mem::replace(&mut ask.input, nothing))?;
            engine.check_lengths(kind, &prompts)?;
            Ok((ask, prompts))
        })
        .await?;
        let shape = self.shape(&ask);
        let prompt_tokens = prompts.iter().map(|prompt| prompt.len()).sum();
        let mut choices = self.enqueue(&ask, prompts)?;
        if !ask.stream {
            let whole = choices.collect(&shape, prompt_tokens).await?;
            return Ok(json_response(StatusCode::OK, &whole));
        }
        // the head waits for the first event: until then a failure still gets a real status
        let first = choices.next().await;
        if let Some((_, Event::Failed { message })) = first {
            return Err((None, Refusal::failed(message)));
        }
        let body = stream::Events::new(shape, choices, first, prompt_tokens);
        let mut response = Response::new(body.boxed_unsync());
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        headers.insert(CONTENT_TYPE, kind);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(response)
    }

    /// The tokens of each prompt. Slow for long ones: not for the runtime's thread.
    fn tokens(&self, input: Input) -> Result<Vec<Arc<[LlamaToken]>>, Refusal> {
        match input {
            Input::Chat(Conversation {
                messages,
                tools,
                settings,
            }) => {
                let tokens = self
                    .tokeniser
                    .chat(&messages, tools.as_ref(), settings.as_ref());
                let tokens = tokens.map_err(
                    |fault @ (Unrendered::NoTemplate | Unrendered::Refused(_))| {
                        Refusal::invalid("messages".to_owned(), fault.to_string())
                    },
                )?;
                Ok(vec![tokens.into()])
            }
            Input::Prompts(prompts) => prompts
                .into_iter()
                .map(|prompt| self.prompt_tokens(prompt))
                .collect(),
        }
    }

    fn prompt_tokens(&self, prompt: Prompt) -> Result<Arc<[LlamaToken]>, Refusal> {
        match prompt {
            Prompt::Text(text) => Ok(self.tokeniser.plain(&text).into()),
            Prompt::Tokens(ids) => {
                let known = self.tokeniser.size();
                let token = |id: u32| {
                    let place = usize::try_from(id).ok().filter(|place| *place < known);
                    place.map(crate::tokenise::to_token)
                };
                let tokens = ids.into_iter().map(token).collect::<Option<Vec<_>>>();
                tokens.map(Into::into).ok_or_else(|| {
                    let message = format!("prompt: token ids must be below {known}");
                    Refusal::invalid("prompt".to_owned(), message)
                })
            }
        }
    }

    fn check_lengths(&self, kind: Kind, prompts: &[Arc<[LlamaToken]>]) -> Result<(), Refusal> {
        let param = if kind == Kind::Chat {
            "messages"
        } else {
            "prompt"
        };
        let context = self.loaded.context_tokens;
        for prompt in prompts {
            if prompt.is_empty() {
                let message = format!("{param}: is empty; send some text");
                return Err(Refusal::invalid(param.to_owned(), message));
            }
            if u32::try_from(prompt.len()).unwrap_or(u32::MAX) >= context {
                return Err(Refusal::too_long(param, prompt.len(), context));
            }
        }
        Ok(())
    }

    /// Queues a sequence for every choice, or none of them.
    fn enqueue(
        &self,
        ask: &Ask,
        prompts: Vec<Arc<[LlamaToken]>>,
    ) -> Result<Choices, (Option<&'static str>, Refusal)> {
        let overloaded = || (None, Refusal::overloaded());
        let count = prompts.len().saturating_mul(ask.n);
        let many = u32::try_from(count).map_err(|_huge| overloaded())?;
        let mut places = Arc::clone(&self.places)
            .try_acquire_many_owned(many)
            .map_err(|_full| overloaded())?;
        let seed = ask.seed.unwrap_or_else(|| self.random());
        let mut receivers = Vec::with_capacity(count);
        let choices = prompts
            .iter()
            .flat_map(|prompt| std::iter::repeat_n(prompt, ask.n));
        for (index, prompt) in choices.enumerate() {
            let (sink, receiver) = mpsc::channel(READER_LAG);
            receivers.push(receiver);
            let mut sampling = ask.sampling.clone();
            sampling.seed = seed.wrapping_add(index as u64);
            let used = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
            let room = self.loaded.context_tokens.saturating_sub(used);
            let job = Job {
                prompt: Arc::clone(prompt),
                // the address is the same for the choices of one prompt, and for no other alive
                family: Arc::as_ptr(prompt).cast::<u8>().addr() as u64,
                sampling,
                stops: ask.stops.clone(),
                max_tokens: ask.max_tokens.unwrap_or(room).min(room),
                sink,
                place: places.split(1).ok_or_else(overloaded)?,
            };
            self.jobs.try_send(job).map_err(|error| match error {
                TrySendError::Full(_) => overloaded(),
                TrySendError::Disconnected(_) => {
                    (None, Refusal::failed("the engine is stopping; try again"))
                }
            })?;
        }
        self.wake.unpark();
        Ok(Choices::new(receivers, self.wake.clone()))
    }

    fn shape(&self, ask: &Ask) -> Shape {
        let prefix = if ask.kind == Kind::Chat {
            "chatcmpl"
        } else {
            "cmpl"
        };
        Shape {
            kind: ask.kind,
            id: format!("{prefix}-{:016x}{:016x}", self.random(), self.random()),
            created: unix_time(),
            model: ask
                .model
                .clone()
                .unwrap_or_else(|| self.loaded.name().to_owned()),
            fingerprint: self.loaded.fingerprint(),
            include_usage: ask.include_usage,
        }
    }

    /// A number nobody can guess who hasn't seen the others: the standard library's keyed hash.
    fn random(&self) -> u64 {
        self.random
            .hash_one(self.requests.fetch_add(1, Ordering::Relaxed))
    }
}

/// A response, or the method to allow and a refusal.
type Outcome = Result<Response<Body>, (Option<&'static str>, Refusal)>;

impl From<Refusal> for (Option<&'static str>, Refusal) {
    fn from(refusal: Refusal) -> Self {
        (None, refusal)
    }
}

async fn read(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    match Limited::new(request.into_body(), LARGEST_BODY)
        .collect()
        .await
    {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::too_large(LARGEST_BODY)),
        Err(_) => Err(Refusal::invalid(
            None,
            "the body could not be read; send it again",
        )),
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|_panic| Err(Refusal::failed("the engine failed to read this request")))
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = json_response(refusal.status, &refusal.body());
    if let Some(seconds) = refusal.retry_after {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::from(body.to_string()).boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn wrong_method(right: &str) -> Refusal {
    let message = format!("this path is served by {right} only");
    Refusal::no_route(StatusCode::METHOD_NOT_ALLOWED, &message)
}

fn no_such_path() -> Refusal {
    let message = "no such path; /v1/chat/completions, /v1/completions and /v1/models are served";
    Refusal::no_route(StatusCode::NOT_FOUND, message)
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// As many places as the queue has.
pub(crate) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(QUEUE))
}
