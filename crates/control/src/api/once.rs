//! Idempotency keys: a request that is sent again because its answer was lost acts once.
//!
//! Decides what the second one gets: the first one's answer without the secret in it, which is shown exactly once.
//! Another request under the same key is 422, one whose first sending hasn't ended 409. Kept for a day.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::Value;

use super::{ApiFault, ApiState, answer};
use crate::actor::Actor;
use crate::clock;
use crate::keys::KeysFault;
use crate::store::{Earlier, Store};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Runs a request that makes something.
pub(super) async fn run(
    state: &ApiState,
    actor: &Actor,
    most_bytes: usize,
    request: Request,
    next: Next,
) -> Result<Response, ApiFault> {
    let Some(key) = key_of(&request)? else {
        return Ok(next.run(request).await);
    };
    let (head, body) = request.into_parts();
    let body = to_bytes(body, most_bytes).await.map_err(|_cut| {
        let text = format!("the body didn't arrive whole, or is larger than {most_bytes} bytes");
        ApiFault::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    })?;
    let digest = state.keys.digest_of_request(&[
        head.method.as_str().as_bytes(),
        b" ",
        head.uri.path().as_bytes(),
        b"\n",
        &body,
    ]);
    let now = clock::seconds((state.clock)());
    let place = (actor.id(), key.as_str());
    let earlier = state
        .store
        .take_once(place, &digest, (now, now.saturating_sub(KEPT)))
        .await
        .map_err(KeysFault::from)?;
    if let Some(earlier) = earlier {
        return again(&earlier, &digest);
    }
    let request = Request::from_parts(head, Body::from(body));
    let (store, actor) = (state.store.clone(), actor.id().to_owned());
    // In a task of its own: what has begun ends, and its end is kept, whether or not the asker waits.
    let done = tokio::spawn(async move {
        let response = next.run(request).await;
        settle(&store, (&actor, &key), response).await
    });
    done.await.map_err(|_panic| ApiFault::ours())
}

fn key_of(request: &Request) -> Result<Option<String>, ApiFault> {
    let mut lines = request.headers().get_all(KEY).iter();
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    let good = |text: &&str| {
        (1..=LONGEST).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    let text = line.to_str().ok().filter(good);
    match (text, lines.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => {
            let text = format!(
                "Idempotency-Key must be one text of 1 to {LONGEST} letters, digits and signs"
            );
            Err(ApiFault::bad(text, Some("Idempotency-Key")))
        }
    }
}

/// What the second sending gets.
fn again(earlier: &Earlier, digest: &[u8]) -> Result<Response, ApiFault> {
    if earlier.request != digest {
        let mut fault = ApiFault::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "this Idempotency-Key was used for another request within a day; take a new one"
                .to_owned(),
        );
        fault.param = Some("Idempotency-Key");
        fault.code = Some("idempotency_key_reused");
        return Err(fault);
    }
    let Some((status, body)) = &earlier.answer else {
        let mut fault = ApiFault::new(
            StatusCode::CONFLICT,
            "the first request under this Idempotency-Key hasn't ended, or was cut; look whether it has acted, then take a new key".to_owned(),
        );
        fault.param = Some("Idempotency-Key");
        fault.code = Some("idempotency_key_in_use");
        return Err(fault);
    };
    let status = u16::try_from(*status).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let mut response = answer(status.unwrap_or(StatusCode::OK), &body);
    let _none = response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

/// Keeps what was answered, without the secret; a request that did nothing gives its key back. One that failed on our
/// side may have acted (the database's word was lost on its way): its key stays taken.
async fn settle(store: &Store, place: (&str, &str), response: Response) -> Response {
    let (head, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let kept = if head.status.is_success() {
        let shown = without_secret(&bytes).to_string();
        store
            .answer_once(place, i64::from(head.status.as_u16()), &shown)
            .await
    } else if head.status.is_server_error() {
        return Response::from_parts(head, Body::from(bytes));
    } else {
        store.free_once(place).await
    };
    if let Err(fault) = kept {
        tracing::warn!(%fault, "the end of a request under an idempotency key isn't kept: sent again, it gets 409");
    }
    Response::from_parts(head, Body::from(bytes))
}

fn without_secret(bytes: &Bytes) -> Value {
    let mut body: Value = serde_json::from_slice(bytes).unwrap_or_default();
    if let Value::Object(members) = &mut body {
        for name in SECRET {
            if let Some(member) = members.get_mut(name) {
                *member = Value::Null;
            }
        }
    }
    body
}

/// Members of answers that are shown once.
const SECRET: [&str; 2] = ["key", "token"];
const LONGEST: usize = 128;
/// A day, seconds.
const KEPT: i64 = 86_400;
