//! What the engine answers when it doesn't do what was asked: one type, one body in the shape
//! clients of OpenAI's API read. Every message says what to do. Used by `ask` and `serve`.

use http::StatusCode;
use serde_json::{Value, json};

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) code: Option<&'static str>,
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    /// Seconds after which another try makes sense.
    pub(crate) retry_after: Option<u32>,
}

impl Refusal {
    /// 400: the member `param` is wrong.
    pub(crate) fn invalid(param: impl Into<Option<String>>, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            code: None,
            param: param.into(),
            message: message.into(),
            retry_after: None,
        }
    }

    /// 400: prompt and answer don't fit into the context.
    pub(crate) fn too_long(param: &str, tokens: usize, context: u32) -> Self {
        let message = format!(
            "this model's context is {context} tokens and the prompt has {tokens}, which leaves \
             none for the answer; shorten the prompt"
        );
        let code = Some("context_length_exceeded");
        Self {
            code,
            ..Self::invalid(param.to_owned(), message)
        }
    }

    /// 404 or 405: no such path, or not by this method.
    pub(crate) fn no_route(status: StatusCode, message: &str) -> Self {
        Self {
            status,
            ..Self::invalid(None, message)
        }
    }

    /// 413: the body is larger than any prompt that fits.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes; send less");
        let code = Some("request_too_large");
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code,
            ..Self::invalid(None, message)
        }
    }

    /// 503: the queue is full.
    pub(crate) fn overloaded() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "service_unavailable_error",
            code: Some("server_is_overloaded"),
            param: None,
            message: "too many requests wait for this model; try again in a few seconds".to_owned(),
            retry_after: Some(2),
        }
    }

    /// 500: the engine failed at it.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "server_error",
            ..Self::invalid(None, message)
        }
    }

    /// The body.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}
