//! Every way in which Guan says no: one closed list, one answer for each.
//!
//! A new refusal doesn't compile until it is mapped to a status, an `OpenAI` error (`type`, `code`, `param`), a word
//! for audit and metrics, and what a retry may expect. The text says what to do next and never what was secret.
//! Called by `gateway::refuse`, which turns an [`Answer`] into bytes.

use std::time::Duration;

use crate::limit::Denied;

use limits::{LONGEST_WAIT, limit_head, limit_message, limit_word};

mod limits;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request line or its fields contradict the standard (RFC 9112), or each other.
    Framing(&'static str),
    /// No credential.
    NoCredential,
    /// A credential that can't be a key: wrong scheme, several of them, not the form.
    MalformedCredential,
    /// The form of a key, but its checksum doesn't fit.
    MistypedKey,
    /// Well formed, and not a key that is good here and now: the caller isn't told why.
    UnknownKey(Unfit),
    /// It was valid once.
    ExpiredKey,
    /// Too many credentials from this address weren't valid lately.
    FailedCredentials {
        /// When the next one is looked at.
        retry: Duration,
    },
    /// Keys can't be judged now.
    KeysUnavailable,
    /// A token that is not to be believed: the caller isn't told why.
    BadToken(Untrusted),
    /// A good token, too late.
    ExpiredToken,
    /// The issuer's keys aren't known, or are too old: its tokens can't be judged now.
    IssuerUnavailable,
    /// The connection's client certificate was valid when it began, and no longer is.
    ExpiredCertificate,
    /// An issuer or an authority vouches for the caller, and nothing here is given to him.
    NotAdmitted(Unadmitted),
    /// Nothing of that name is here.
    NoSuchRoute,
    /// The endpoint exists, the caller's policy doesn't have it: the text of [`Self::NoSuchRoute`].
    EndpointNotAllowed,
    /// The route exists, the method doesn't.
    MethodNotAllowed(&'static str),
    /// The body isn't declared as JSON, or is encoded.
    NotJson(&'static str),
    /// The body is larger than `[server] max_body`.
    BodyTooLarge {
        /// The limit, bytes.
        limit: u64,
    },
    /// The body didn't arrive in time.
    BodyTimeout,
    /// Memory for bodies is used up, node-wide or by this caller.
    BodyBudget,
    /// The body is JSON that breaks a rule.
    Body {
        /// What is wrong.
        message: String,
        /// Which member.
        param: Option<String>,
        /// A code where `OpenAI` has one.
        code: Option<&'static str>,
    },
    /// The model isn't in the caller's policy (`known`), or doesn't exist: one text for both.
    Model {
        /// The name that was asked for.
        name: String,
        /// It exists.
        known: bool,
    },
    /// A limit on calls, tokens or what runs at the same time is used up, or the call is larger than it.
    Limit(Denied),
    /// Limits can't be decided now, and the config says to refuse then.
    LimitsUnavailable,
    /// Too many calls of this caller were refused lately.
    TooManyRefusals {
        /// When the next one is looked at.
        retry: Duration,
    },
    /// The model's line is full of this tenant's calls.
    QueueFull {
        /// When there may be room.
        retry: Duration,
    },
    /// All places of the model are taken, and none would be free in time.
    Overloaded {
        /// When one may be.
        retry: Duration,
    },
    /// No replica of the model can take a call now.
    NoReplica,
    /// The in-flight slots are used up.
    Busy,
    /// The audit log can't be written.
    RecordsUnavailable,
    /// The server is stopping.
    Draining,
    /// The upstream couldn't be reached, or broke off before its answer began.
    UpstreamUnreachable,
    /// The upstream's answer isn't HTTP or isn't what was asked for.
    UpstreamMalformed,
    /// The upstream didn't answer in time.
    UpstreamTimeout,
    /// The upstream refused the call: its status class is kept, its text is passed on scrubbed.
    Upstream {
        /// 4xx: the caller's; anything else becomes 502.
        status: u16,
        /// What it said.
        message: String,
        /// Its `error.param`.
        param: Option<String>,
        /// Its `error.code`.
        code: Option<String>,
        /// Its `Retry-After`, seconds.
        retry: Option<Duration>,
    },
    /// Our fault.
    Internal,
}

/// Why a well-formed key isn't good: for audit only. One text for all, so that nobody learns which keys exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Not a key of ours.
    Unknown,
    /// Taken back.
    Revoked,
    /// An old secret of a key that has a new one, after the overlap.
    Rotated,
    /// Its time hasn't come.
    NotYetValid,
    /// Used from an address that isn't on its list.
    ForeignAddress,
    /// Its project is disabled.
    ProjectDisabled,
    /// Its role is no longer in the config file.
    NoRole,
}

impl Unfit {
    const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown-key",
            Self::Revoked => "revoked-key",
            Self::Rotated => "rotated-key",
            Self::NotYetValid => "key-not-yet-valid",
            Self::ForeignAddress => "key-foreign-address",
            Self::ProjectDisabled => "project-disabled",
            Self::NoRole => "key-without-role",
        }
    }
}

/// Why a token isn't believed: for audit only. One text for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// Not in the form of one, or of another kind.
    Malformed,
    /// Signed in a way that isn't on the issuer's list or doesn't fit its key.
    Algorithm,
    /// Of an issuer that the config file doesn't name.
    UnknownIssuer,
    /// Its issuer has no such key.
    UnknownKey,
    /// Not signed by the key that it names.
    Signature,
    /// Meant for somebody else.
    Audience,
    /// Its time hasn't come, or it was made in the future.
    NotYetValid,
    /// A claim that must be there is missing or of another type.
    Claims,
    /// Bound to a key or a certificate of its holder, which isn't checked here.
    Bound,
    /// Used from an address that isn't on its project's list.
    ForeignAddress,
}

impl Untrusted {
    const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "token-malformed",
            Self::Algorithm => "token-algorithm",
            Self::UnknownIssuer => "token-unknown-issuer",
            Self::UnknownKey => "token-unknown-key",
            Self::Signature => "token-signature",
            Self::Audience => "token-audience",
            Self::NotYetValid => "token-not-yet-valid",
            Self::Claims => "token-claims",
            Self::Bound => "token-bound",
            Self::ForeignAddress => "token-foreign-address",
        }
    }
}

/// Why nothing is given to a caller who is known: for audit only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unadmitted {
    /// No rule of the config file fits.
    NoRole,
    /// The project is missing in the token, or not in the store.
    NoProject,
    /// The project is disabled.
    ProjectDisabled,
    /// Called from an address that isn't on the project's list.
    ForeignAddress,
}

impl Unadmitted {
    const fn word(self) -> &'static str {
        match self {
            Self::NoRole => "no-role",
            Self::NoProject => "no-project",
            Self::ProjectDisabled => "no-enabled-project",
            Self::ForeignAddress => "project-foreign-address",
        }
    }
}

/// A refusal as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `error.type`.
    pub kind: &'static str,
    /// `error.code`.
    pub code: Option<String>,
    /// `error.message`.
    pub message: String,
    /// `error.param`.
    pub param: Option<String>,
    /// `retry-after-ms` and, rounded up, `retry-after`.
    pub retry: Option<Duration>,
    /// `x-should-retry`, where the status alone would mislead an SDK.
    pub should_retry: Option<bool>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const BAD_TOKEN: &str = "The token isn't accepted here. Get a new one from your sign-in service, or ask your administrator.";
const EXPIRED_CERTIFICATE: &str = "The client certificate has expired. Connect with a new one.";
const NOT_ADMITTED: &str =
    "You are known, but no role or project here is yours. Ask your administrator for one.";
const ISSUER_UNAVAILABLE: &str =
    "Tokens of this issuer can't be checked at the moment. Please try again.";
const UNAVAILABLE: &str = "service_unavailable_error";

impl Refusal {
    /// One word for audit records, logs and metrics: a closed set.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Framing(_) => "framing",
            Self::NoCredential => "no-credential",
            Self::MalformedCredential => "malformed-credential",
            Self::MistypedKey => "mistyped-key",
            Self::UnknownKey(unfit) => unfit.word(),
            Self::ExpiredKey => "expired-key",
            Self::FailedCredentials { .. } => "failed-credentials",
            Self::KeysUnavailable => "keys-unavailable",
            Self::BadToken(untrusted) => untrusted.word(),
            Self::ExpiredToken => "expired-token",
            Self::IssuerUnavailable => "issuer-unavailable",
            Self::ExpiredCertificate => "expired-certificate",
            Self::NotAdmitted(unadmitted) => unadmitted.word(),
            Self::NoSuchRoute => "no-such-route",
            Self::EndpointNotAllowed => "endpoint-not-allowed",
            Self::MethodNotAllowed(_) => "method-not-allowed",
            Self::NotJson(_) => "not-json",
            Self::BodyTooLarge { .. } => "body-too-large",
            Self::BodyTimeout => "body-timeout",
            Self::BodyBudget => "body-budget",
            Self::Body { .. } => "body",
            Self::Model { known: true, .. } => "model-not-allowed",
            Self::Model { known: false, .. } => "model-unknown",
            Self::Limit(denied) => limit_word(denied),
            Self::LimitsUnavailable => "limits-unavailable",
            Self::TooManyRefusals { .. } => "refusal-rate",
            Self::QueueFull { .. } => "queue-full",
            Self::Overloaded { .. } => "overloaded",
            Self::NoReplica => "no-replica",
            Self::Busy => "busy",
            Self::RecordsUnavailable => "records-unavailable",
            Self::Draining => "draining",
            Self::UpstreamUnreachable => "upstream-unreachable",
            Self::UpstreamMalformed => "upstream-malformed",
            Self::UpstreamTimeout => "upstream-timeout",
            Self::Upstream { .. } => "upstream",
            Self::Internal => "internal",
        }
    }

    /// What the caller is told.
    #[must_use]
    pub fn answer(&self) -> Answer {
        if let Self::Upstream {
            status,
            message,
            param,
            code,
            retry,
        } = self
        {
            return upstream(*status, message, param.as_ref(), code.as_ref(), *retry);
        }
        let (status, kind, code) = self.head();
        Answer {
            status,
            kind,
            code: code.map(str::to_owned),
            message: self.message(),
            param: self.param(),
            retry: self.retry(),
            should_retry: self.should_retry(),
        }
    }

    /// What the status alone would mislead an SDK about: a retry now or soon can't help.
    fn should_retry(&self) -> Option<bool> {
        let Self::Limit(denied) = self else {
            return None;
        };
        let waits_long = denied.retry > LONGEST_WAIT;
        (denied.never() || waits_long).then_some(false)
    }

    /// Status, `type` and `code`.
    const fn head(&self) -> (u16, &'static str, Option<&'static str>) {
        match self {
            Self::Framing(_) => (400, INVALID, None),
            Self::NoCredential
            | Self::MalformedCredential
            | Self::MistypedKey
            | Self::UnknownKey(_)
            | Self::ExpiredKey
            | Self::BadToken(_)
            | Self::ExpiredToken
            | Self::ExpiredCertificate => (401, INVALID, Some("invalid_api_key")),
            Self::NotAdmitted(_) => (403, INVALID, Some("not_admitted")),
            Self::NoSuchRoute => (404, INVALID, Some("unknown_url")),
            Self::EndpointNotAllowed => (403, INVALID, Some("unknown_url")),
            Self::MethodNotAllowed(_) => (405, INVALID, Some("method_not_allowed")),
            Self::NotJson(_) => (415, INVALID, Some("unsupported_media_type")),
            Self::BodyTooLarge { .. } => (413, INVALID, Some("request_too_large")),
            Self::BodyTimeout => (408, INVALID, Some("request_timeout")),
            Self::Body { code, .. } => (400, INVALID, *code),
            Self::Model { known: true, .. } => (403, INVALID, Some("model_not_found")),
            Self::Model { known: false, .. } => (404, INVALID, Some("model_not_found")),
            Self::QueueFull { .. } => (429, "requests", Some("queue_full")),
            Self::Limit(denied) => limit_head(denied),
            Self::FailedCredentials { .. } | Self::TooManyRefusals { .. } => {
                (429, "requests", Some("rate_limit_exceeded"))
            }
            Self::KeysUnavailable
            | Self::IssuerUnavailable
            | Self::RecordsUnavailable
            | Self::LimitsUnavailable => (503, UNAVAILABLE, None),
            Self::BodyBudget | Self::NoReplica | Self::Busy | Self::Overloaded { .. } => {
                (503, UNAVAILABLE, Some("server_is_overloaded"))
            }
            Self::Draining => (503, UNAVAILABLE, Some("slow_down")),
            Self::UpstreamUnreachable | Self::UpstreamMalformed | Self::Upstream { .. } => {
                (502, SERVER, None)
            }
            Self::UpstreamTimeout => (504, SERVER, None),
            Self::Internal => (500, SERVER, None),
        }
    }

    fn message(&self) -> String {
        let fixed = match self {
            Self::Framing(why) | Self::NotJson(why) => why,
            Self::NoCredential => {
                "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`."
            }
            Self::MalformedCredential => {
                "The API key can't be read. Send exactly one, as `Authorization: Bearer YOUR_KEY`."
            }
            Self::MistypedKey => "The API key is mistyped or cut: its checksum doesn't fit.",
            Self::UnknownKey(_) => {
                "Incorrect API key provided. Check the key, or ask your administrator for one."
            }
            Self::ExpiredKey => "The API key has expired. Ask your administrator for a new one.",
            Self::BadToken(_) => BAD_TOKEN,
            Self::ExpiredToken => "The token has expired. Get a new one from your sign-in service.",
            Self::ExpiredCertificate => EXPIRED_CERTIFICATE,
            Self::NotAdmitted(_) => NOT_ADMITTED,
            Self::NoSuchRoute | Self::EndpointNotAllowed => {
                "No such endpoint here. This server speaks the OpenAI API below /v1."
            }
            Self::MethodNotAllowed(allowed) => {
                return format!("This endpoint takes {allowed} only.");
            }
            Self::BodyTooLarge { limit } => {
                return format!("The request body is larger than {limit} bytes.");
            }
            Self::BodyTimeout => "The request body didn't arrive in time.",
            Self::Body { message, .. } => message,
            Self::Model { name, .. } => {
                let name = shown(name);
                return format!(
                    "The model `{name}` does not exist or you do not have access to it."
                );
            }
            Self::Limit(denied) => return limit_message(denied),
            Self::LimitsUnavailable => "Limits can't be checked at the moment. Please try again.",
            Self::FailedCredentials { retry } => {
                return again(
                    "Too many API keys from your address were not valid.",
                    *retry,
                );
            }
            Self::TooManyRefusals { retry } => {
                return again("Too many of your requests were refused.", *retry);
            }
            Self::QueueFull { retry } => {
                return again("Too many of your requests wait for this model.", *retry);
            }
            Self::Overloaded { retry } => {
                return again("The model is busy.", *retry);
            }
            Self::KeysUnavailable => "Keys can't be checked at the moment. Please try again.",
            Self::IssuerUnavailable => ISSUER_UNAVAILABLE,
            Self::BodyBudget => "Too many large requests at once. Please try again.",
            Self::NoReplica => "The model isn't available at the moment. Please try again.",
            Self::Busy => "The server is busy. Please try again.",
            Self::RecordsUnavailable => {
                "The server can't record calls at the moment. Please try again."
            }
            Self::Draining => "The server is stopping. Please try again.",
            Self::UpstreamUnreachable => {
                "The model server can't be reached or broke off. Please try again."
            }
            Self::UpstreamMalformed => "The model server's answer can't be understood.",
            Self::UpstreamTimeout => "The model server didn't answer in time.",
            Self::Upstream { .. } => "The model server failed. Please try again.",
            Self::Internal => "Something went wrong here. The request id helps to find it.",
        };
        fixed.to_owned()
    }

    fn param(&self) -> Option<String> {
        if let Self::Body { param, .. } = self {
            return param.clone();
        }
        if let Self::Limit(denied) = self {
            return denied.never().then(|| "max_tokens".to_owned());
        }
        matches!(self, Self::Model { .. }).then(|| "model".to_owned())
    }

    /// When a retry may help; `None` where the status alone says what to do.
    fn retry(&self) -> Option<Duration> {
        if let Self::TooManyRefusals { retry }
        | Self::FailedCredentials { retry }
        | Self::QueueFull { retry }
        | Self::Overloaded { retry } = self
        {
            return Some(*retry);
        }
        if let Self::Limit(denied) = self {
            return (!denied.never()).then_some(denied.retry);
        }
        let seconds = match self.head().0 {
            429 => 1,
            503 if matches!(self, Self::Busy | Self::BodyBudget | Self::Draining) => 1,
            503 => 5,
            _ => return None,
        };
        Some(Duration::from_secs(seconds))
    }
}

/// What happened, and when another try may help.
fn again(what: &str, retry: Duration) -> String {
    format!("{what} Please try again in {}.", spoken(retry))
}

/// The upstream's refusal in our words. Its 401, 403 and 404 speak of *our* credential or *our* configuration, so
/// the caller sees 502; its 429 and 503 keep their meaning.
fn upstream(
    status: u16,
    message: &str,
    param: Option<&String>,
    code: Option<&String>,
    retry: Option<Duration>,
) -> Answer {
    let (status, kind) = match status {
        400 | 413 | 415 | 422 => (400, INVALID),
        429 => (429, "requests"),
        503 => (503, UNAVAILABLE),
        504 => (504, SERVER),
        _ => return Answer::new(502, SERVER, "The model server failed. Please try again."),
    };
    let code = match status {
        429 => Some("upstream_rate_limit_exceeded".to_owned()),
        503 => Some("server_is_overloaded".to_owned()),
        _ => code.cloned(),
    };
    let retry = matches!(status, 429 | 503).then(|| retry.unwrap_or(Duration::from_secs(1)));
    Answer {
        code,
        param: param.cloned(),
        retry,
        ..Answer::new(status, kind, message)
    }
}

impl Answer {
    fn new(status: u16, kind: &'static str, message: &str) -> Self {
        Self {
            status,
            kind,
            code: None,
            message: message.to_owned(),
            param: None,
            retry: None,
            should_retry: None,
        }
    }
}

/// A caller's text, short and on one line, for an error message.
fn shown(text: &str) -> String {
    text.chars()
        .take(80)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// `1.2s`, `350ms`, `1m30s`: a wait as Go writes it, which is what clients of the API parse.
#[must_use]
pub fn spoken(wait: Duration) -> String {
    let (seconds, ms) = (wait.as_secs(), wait.subsec_millis());
    match (seconds, ms) {
        (0, 0) if !wait.is_zero() => "1ms".to_owned(),
        (0, ms) => format!("{ms}ms"),
        (1..60, 0) => format!("{seconds}s"),
        (1..60, ms) => {
            let text = format!("{seconds}.{ms:03}");
            format!("{}s", text.trim_end_matches('0'))
        }
        _ => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_written_as_a_go_duration() {
        for (ms, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1000, "1s"),
            (1200, "1.2s"),
            (1250, "1.25s"),
            (1001, "1.001s"),
            (60_000, "1m0s"),
            (360_500, "6m0s"),
        ] {
            assert_eq!(spoken(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn unknown_and_revoked_keys_get_one_text_and_a_model_one_text_for_403_and_404() {
        let unfit = [
            Unfit::Unknown,
            Unfit::Revoked,
            Unfit::Rotated,
            Unfit::NotYetValid,
            Unfit::ForeignAddress,
            Unfit::ProjectDisabled,
            Unfit::NoRole,
        ];
        let words: std::collections::BTreeSet<_> = unfit.iter().map(|u| u.word()).collect();
        assert_eq!(words.len(), unfit.len());
        for unfit in unfit {
            let answer = Refusal::UnknownKey(unfit).answer();
            assert_eq!(answer, Refusal::UnknownKey(Unfit::Unknown).answer());
        }
        let (allowed, known) = (
            Refusal::EndpointNotAllowed.answer(),
            Refusal::NoSuchRoute.answer(),
        );
        assert_eq!((allowed.status, &allowed.message), (403, &known.message));
        let known = Refusal::Model {
            name: "x".into(),
            known: true,
        }
        .answer();
        let unknown = Refusal::Model {
            name: "x".into(),
            known: false,
        }
        .answer();
        assert_eq!((known.status, unknown.status), (403, 404));
        assert_eq!(known.message, unknown.message);
    }

    #[test]
    fn an_upstreams_401_is_not_the_callers() {
        for status in [401, 403, 404, 500, 302, 200] {
            let refusal = Refusal::Upstream {
                status,
                message: "sk-secret".into(),
                param: None,
                code: None,
                retry: None,
            };
            let answer = refusal.answer();
            assert_eq!(answer.status, 502);
            assert!(!answer.message.contains("sk-secret"));
        }
    }

    #[test]
    fn a_models_name_can_not_forge_a_line() {
        let refusal = Refusal::Model {
            name: format!("a\nb\u{1b}[0m{}", "x".repeat(300)),
            known: false,
        };
        let message = refusal.answer().message;
        assert!(!message.contains('\n') && !message.contains('\u{1b}') && message.len() < 200);
    }
}
