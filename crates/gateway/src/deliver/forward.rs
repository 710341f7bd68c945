//! The rebuilt request goes to the first replica that takes it. Nothing of the caller's headers passes but two for
//! tracing; another replica is tried only while it is certain that the one before did nothing.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use rules::ident::RequestId;
use rules::refusal::Refusal;
use wire::openai::Endpoint;

use crate::check::admit::Seat;
use crate::door::accept::Core;
use crate::settings::{Model, Replica, Target};
use crate::upstream::client::{Fault, Reply, post};

/// The largest error body of an upstream that is read, bytes.
const ERROR_BODY: usize = 64 << 10;

/// What goes to an upstream.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Which endpoint.
    pub(crate) endpoint: Endpoint,
    /// The rebuilt body.
    pub(crate) body: Bytes,
    /// A stream is wanted.
    pub(crate) stream: bool,
    /// The request's id.
    pub(crate) id: RequestId,
    /// `traceparent` and `tracestate`, if the caller sent them.
    pub(crate) trace: Vec<(String, String)>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Delivered {
    /// The answer, or why there is none.
    pub(crate) reply: Result<Reply, Refusal>,
    /// The replica that had it last.
    pub(crate) replica: Option<Replica>,
    /// Attempts made.
    pub(crate) attempts: u32,
    /// At least one upstream may have had the call.
    pub(crate) forwarded: bool,
    /// Its place among the model's calls.
    pub(crate) seat: Option<Seat>,
}

impl Delivered {
    /// Nobody was asked.
    pub(crate) fn not(refusal: Refusal) -> Self {
        Self {
            reply: Err(refusal),
            replica: None,
            attempts: 0,
            forwarded: false,
            seat: None,
        }
    }
}

/// The caller's headers that pass.
pub(crate) fn trace_of(headers: &HeaderMap) -> Vec<(String, String)> {
    let passes = |name: &str| wire::headers::forwards_request(name);
    headers
        .iter()
        .filter(|(name, _)| passes(name.as_str()))
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .collect()
}

/// Tries the replicas in order.
pub(crate) async fn forward(
    core: Rc<Core>,
    model: std::sync::Arc<Model>,
    order: Vec<Replica>,
    outgoing: Outgoing,
    tokens: u64,
) -> Delivered {
    let mut delivered = Delivered::not(Refusal::NoReplica);
    for replica in order {
        delivered.attempts = delivered.attempts.saturating_add(1);
        delivered.replica = Some(replica.clone());
        let limits = model.timeouts;
        let load = core.gateway.replicas.take(&model.name, &replica, tokens);
        let tried = attempt(
            &core,
            &replica,
            &outgoing,
            limits.connect,
            limits.first_byte,
        )
        .await;
        delivered.forwarded |= !matches!(tried, Err(Fault::Connect(_)));
        match tried {
            Ok(mut reply) => {
                reply.body.carry(load);
                delivered.reply = judge(reply, &replica).await;
                return delivered;
            }
            Err(fault) => {
                tracing::warn!(replica = replica.name, %fault, "a replica gave no answer");
                delivered.reply = Err(refusal(&fault));
                if !matches!(fault, Fault::Connect(_)) {
                    return delivered;
                }
            }
        }
    }
    delivered
}

async fn attempt(
    core: &Core,
    replica: &Replica,
    outgoing: &Outgoing,
    connect: Duration,
    first_byte: Duration,
) -> Result<Reply, Fault> {
    let head = head(replica, outgoing);
    let posted = post(&core.pool, replica, &head, &outgoing.body, connect);
    tokio::time::timeout(connect.saturating_add(first_byte), posted)
        .await
        .map_err(|_elapsed| Fault::Timeout)?
}

/// An answer that isn't a success is the upstream's refusal; redirects aren't followed.
async fn judge(mut reply: Reply, replica: &Replica) -> Result<Reply, Refusal> {
    let status = reply.head.status;
    if status == 200 {
        return Ok(reply);
    }
    if (200..400).contains(&status) {
        return Err(Refusal::UpstreamMalformed);
    }
    let retry = reply.head.retry_after.as_deref().and_then(wait);
    let body = tokio::time::timeout(Duration::from_secs(10), reply.body.collect(ERROR_BODY)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    let error = wire::openai::read_answer(&body).and_then(|answer| answer.error);
    Err(said(
        error.unwrap_or_default(),
        status,
        retry,
        Some(replica),
    ))
}

/// An upstream's error as a refusal, without what is ours alone. Of its troubles (429, 5xx) only the kind passes.
pub(crate) fn said(
    error: wire::openai::UpstreamError,
    status: u16,
    retry: Option<Duration>,
    replica: Option<&Replica>,
) -> Refusal {
    let scrub = |text: String| replica.map(|replica| replica.scrub(&text)).unwrap_or(text);
    let message = match status {
        429 => "The model server is at its own limit. Please try again.".to_owned(),
        500.. => "The model server can't answer at the moment. Please try again.".to_owned(),
        _ => scrub(error.message),
    };
    Refusal::Upstream {
        status,
        message,
        param: error.param.map(scrub),
        code: error.code.map(scrub),
        retry,
    }
}

/// Seconds of a `Retry-After`, within reason: the rest takes the default.
fn wait(text: &str) -> Option<Duration> {
    let seconds: f64 = text
        .parse()
        .ok()
        .filter(|s: &f64| s.is_finite() && *s > 0.0)?;
    Duration::try_from_secs_f64(seconds.ceil().min(3600.0)).ok()
}

/// What the client is told of a fault.
pub(crate) fn refusal(fault: &Fault) -> Refusal {
    match fault {
        Fault::Connect(_) | Fault::Broken(_) => Refusal::UpstreamUnreachable,
        Fault::Malformed(_) => Refusal::UpstreamMalformed,
        Fault::Timeout => Refusal::UpstreamTimeout,
    }
}

/// The request's head, written from nothing.
fn head(replica: &Replica, outgoing: &Outgoing) -> Vec<u8> {
    let path = match outgoing.endpoint {
        Endpoint::ChatCompletions => "/v1/chat/completions",
        Endpoint::Completions => "/v1/completions",
    };
    let host = match &replica.target {
        // An IPv6 address stands in brackets before a port (RFC 3986 section 3.2.2).
        Target::Http { host, port } | Target::Https { host, port, .. } if host.contains(':') => {
            format!("[{host}]:{port}")
        }
        Target::Http { host, port } | Target::Https { host, port, .. } => format!("{host}:{port}"),
        Target::Unix(_) => "localhost".to_owned(),
    };
    let accept = if outgoing.stream {
        "text/event-stream"
    } else {
        "application/json"
    };
    let mut head = format!(
        "POST {}{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         accept: {accept}\r\naccept-encoding: identity\r\nuser-agent: guan\r\n\
         content-length: {}\r\nx-request-id: {}\r\n",
        replica.base_path,
        outgoing.body.len(),
        outgoing.id,
    );
    for (name, value) in &outgoing.trace {
        for part in [name.as_str(), ": ", value.as_str(), "\r\n"] {
            head.push_str(part);
        }
    }
    if let Some(key) = &replica.key {
        for part in ["authorization: Bearer ", key.expose(), "\r\n"] {
            head.push_str(part);
        }
    }
    head.push_str("\r\n");
    head.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a20_an_upstreams_retry_after_is_taken_within_reason() {
        for (text, seconds) in [
            ("30", Some(30)),
            ("1.5", Some(2)),
            ("999999999", Some(3600)),
        ] {
            assert_eq!(wait(text), seconds.map(Duration::from_secs), "{text}");
        }
        for text in ["0", "-5", "", "soon", "NaN", "inf"] {
            assert_eq!(wait(text), None, "{text}");
        }
    }
}
