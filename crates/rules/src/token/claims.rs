//! What a signed token's claims say: whom it is for, from when until when, whose it is, and what he may do.
//!
//! Every claim that is judged must be there and of its type; a wrong type is refused, never read as absent.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Issuer, Rule};
use crate::ident;
use crate::refusal::{Refusal, Unadmitted, Untrusted};

/// The longest subject and project, bytes.
const LONGEST_NAME: usize = 255;

/// Claims that hold several words with blanks between them (RFC 8693 section 4.2).
const WORDS: [&str; 2] = ["scope", "scp"];

/// A caller whom an issuer vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Who he is to his issuer.
    pub subject: String,
    /// What he may do.
    pub role: Arc<str>,
    /// Who pays.
    pub project: Option<Arc<str>>,
    /// Seconds since 1970 from which all this no longer holds.
    pub until: i64,
}

pub(super) fn admit(
    claims: &Map<String, Value>,
    issuer: &Issuer,
    now: i64,
) -> Result<Admitted, Refusal> {
    let untrusted = |why| Err(Refusal::BadToken(why));
    if claims.get("iss").and_then(Value::as_str) != Some(&*issuer.url) {
        return untrusted(Untrusted::UnknownIssuer);
    }
    if !is_for_us(claims.get("aud"), &issuer.audience) {
        return untrusted(Untrusted::Audience);
    }
    // Bound to a key or a certificate of its holder (RFC 9449, RFC 8705): taken from anybody else it would be stolen.
    if claims.contains_key("cnf") {
        return untrusted(Untrusted::Bound);
    }
    let subject = claims.get(&issuer.subject_claim).and_then(name);
    let time = |claim: &str| {
        claims
            .get(claim)
            .map(|at| seconds(at).ok_or(()))
            .transpose()
    };
    let (Some(subject), Ok(Some(expires)), Ok(not_before), Ok(issued)) =
        (subject, time("exp"), time("nbf"), time("iat"))
    else {
        return untrusted(Untrusted::Claims);
    };
    if issuer.max_age.is_some() && issued.is_none() {
        return untrusted(Untrusted::Claims);
    }
    let soonest = now.saturating_add(issuer.leeway);
    if not_before.is_some_and(|at| at > soonest) || issued.is_some_and(|at| at > soonest) {
        return untrusted(Untrusted::NotYetValid);
    }
    let too_old = match (issuer.max_age, issued) {
        (Some(age), Some(issued)) => issued.saturating_add(age),
        _ => i64::MAX,
    };
    let until = expires.min(too_old).saturating_add(issuer.leeway);
    if until <= now {
        return Err(Refusal::ExpiredToken);
    }
    let rule = issuer.map.iter().find(|rule| fits(rule, claims));
    let rule = rule.ok_or(Refusal::NotAdmitted(Unadmitted::NoRole))?;
    let project = match (&rule.project, &issuer.project_claim) {
        (Some(project), _) => Some(Arc::clone(project)),
        (None, None) => None,
        (None, Some(named)) => {
            let project = find(claims, named).and_then(name);
            let project = project.ok_or(Refusal::NotAdmitted(Unadmitted::NoProject))?;
            Some(project.into())
        }
    };
    Ok(Admitted {
        subject: subject.to_owned(),
        role: Arc::clone(&rule.role),
        project,
        until,
    })
}

/// One text or a list of texts (RFC 7519 section 4.1.3).
fn is_for_us(audience: Option<&Value>, ours: &[String]) -> bool {
    let is_ours = |value: &Value| {
        value
            .as_str()
            .is_some_and(|text| ours.iter().any(|o| o == text))
    };
    match audience {
        Some(Value::Array(list)) => list.iter().all(Value::is_string) && list.iter().any(is_ours),
        Some(one) => is_ours(one),
        None => false,
    }
}

/// A name that can stand in a record.
fn name(value: &Value) -> Option<&str> {
    let text = value.as_str()?;
    let good = !text.is_empty() && text.len() <= LONGEST_NAME && !ident::hides(text);
    good.then_some(text)
}

/// A `NumericDate`: seconds since 1970, perhaps with a fraction, which is dropped.
fn seconds(value: &Value) -> Option<i64> {
    if let Some(whole) = value.as_i64() {
        return Some(whole);
    }
    if value.is_u64() {
        return Some(i64::MAX);
    }
    let number = value.as_f64().filter(|number| number.abs() < 1e15)?;
    format!("{:.0}", number.floor()).parse().ok()
}

fn fits(rule: &Rule, claims: &Map<String, Value>) -> bool {
    let Some((claim, wanted)) = &rule.when else {
        return true;
    };
    match find(claims, claim) {
        Some(Value::String(text)) if WORDS.contains(&claim.as_str()) => {
            text.split(' ').any(|word| word == wanted)
        }
        Some(Value::String(text)) => text == wanted,
        Some(Value::Array(list)) => list.iter().any(|item| item == wanted.as_str()),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => false,
    }
}

/// A claim by its name; else by the names of objects on the way to it, with dots between them.
fn find<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    if let Some(claim) = claims.get(name) {
        return Some(claim);
    }
    let mut path = name.split('.');
    let first = claims.get(path.next()?)?;
    path.try_fold(first, |at, next| at.as_object()?.get(next))
}
