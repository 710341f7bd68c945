//! Who asks, and whether he may: a credential for every path, a right for every route, a trace of every refusal.
//!
//! Without a valid credential every path answers 401, whether it exists or not. A model key is no credential here.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, IF_MATCH};
use http::{HeaderMap, StatusCode};

use super::denials::Denied;
use super::{ApiFault, ApiState, Origin, once};
use crate::actor::Actor;
use crate::keys::{KeysFault, Refused};
use crate::store::Right;

/// What a route demands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) right: Right,
    /// Idempotency keys are kept for it.
    pub(super) once: bool,
    /// It wants `If-Match`.
    pub(super) versioned: bool,
    /// The largest body, bytes.
    pub(super) most_bytes: usize,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) actor: Actor,
    pub(super) right: Right,
}

/// In front of everything, what doesn't exist included.
pub(super) async fn authenticate(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiFault> {
    let Some(origin) = request.extensions().get::<Origin>().copied() else {
        tracing::error!("a request to the admin API has no origin");
        return Err(ApiFault::ours());
    };
    let who = match origin {
        Origin::Local { uid } => Who {
            actor: Actor::local(uid),
            right: Right::Owner,
        },
        Origin::Remote { address } => match token(&state, request.headers()).await {
            Ok(row) => Who {
                actor: Actor::token(&row, address),
                right: row.right,
            },
            Err(Refused::Unknown(fault)) => return Err(KeysFault::Store(fault).into()),
            Err(Refused::Because(reason, id)) => {
                state.denied(Denied::stranger(address, reason, id));
                return Err(ApiFault::unauthenticated());
            }
        },
    };
    let _before = request.extensions_mut().insert(who);
    Ok(next.run(request).await)
}

async fn token(state: &ApiState, headers: &HeaderMap) -> Result<crate::store::AdminRow, Refused> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let line = lines
        .next()
        .ok_or(Refused::Because("no-credential", None))?;
    let text = line
        .as_bytes()
        .split_at_checked(7)
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .and_then(|(_, token)| std::str::from_utf8(token.trim_ascii()).ok())
        .filter(|_| lines.next().is_none())
        .ok_or(Refused::Because("malformed-credential", None))?;
    state.keys.admin_by(text).await
}

/// In front of each route.
pub(super) async fn guard(
    State((state, rule)): State<(ApiState, Rule)>,
    request: Request,
    next: Next,
) -> Result<Response, ApiFault> {
    let Some(who) = request.extensions().get::<Who>().cloned() else {
        tracing::error!("a route of the admin API was reached without a credential");
        return Err(ApiFault::ours());
    };
    if who.right < rule.right {
        state.denied(Denied::without_right(&who.actor, rule));
        return Err(ApiFault::forbidden(format!(
            "this needs the right {}; yours is {}",
            rule.right.as_str(),
            who.right.as_str()
        )));
    }
    if !rule.versioned && request.headers().contains_key(IF_MATCH) {
        let text = "If-Match is for PATCH; leave it out here".to_owned();
        return Err(ApiFault::bad(text, Some("If-Match")));
    }
    let response = if rule.once {
        once::run(&state, &who.actor, rule.most_bytes, request, next).await?
    } else {
        next.run(request).await
    };
    if response.status() == StatusCode::FORBIDDEN {
        // A field that he may not write: the handler has said which.
        state.denied(Denied::beyond(&who.actor, rule));
    }
    Ok(response)
}
