//! The closed list: what isn't in this table doesn't exist.
//!
//! One row a path: its method, whether it is open, and what it is. `check::authenticate`, `way`, records and
//! metrics all read the same row.

use http::Method;

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its number, for a slot on disk; never reused for another path.
    pub(crate) number: u8,
    /// The exact path; one that ends in `/` takes one more segment.
    pub(crate) path: &'static str,
    /// The one method (`GET` stands for `HEAD` too).
    pub(crate) method: Method,
    /// What it does.
    pub(crate) what: What,
}

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A file of the chat page: open.
    Page(usize),
    /// Whether the process lives: open.
    Live,
    /// Whether it can answer: open.
    Ready,
    /// The caller's models.
    Models,
    /// One of the caller's models.
    Model,
    /// A call to a model.
    Call(wire::openai::Endpoint),
}

impl What {
    /// Needs no credential.
    pub(crate) const fn is_open(self) -> bool {
        match self {
            Self::Page(_) | Self::Live | Self::Ready => true,
            Self::Models | Self::Model | Self::Call(_) => false,
        }
    }
}

const fn row(number: u8, path: &'static str, method: Method, what: What) -> Endpoint {
    Endpoint {
        number,
        path,
        method,
        what,
    }
}

/// All of them.
pub(crate) static ENDPOINTS: [Endpoint; 10] = [
    row(
        1,
        "/v1/chat/completions",
        Method::POST,
        What::Call(wire::openai::Endpoint::ChatCompletions),
    ),
    row(
        2,
        "/v1/completions",
        Method::POST,
        What::Call(wire::openai::Endpoint::Completions),
    ),
    row(3, "/v1/models", Method::GET, What::Models),
    row(4, "/v1/models/", Method::GET, What::Model),
    row(5, "/livez", Method::GET, What::Live),
    row(6, "/readyz", Method::GET, What::Ready),
    row(7, "/", Method::GET, What::Page(0)),
    row(8, "/assets/chat.css", Method::GET, What::Page(1)),
    row(9, "/assets/chat.js", Method::GET, What::Page(2)),
    row(10, "/assets/icon.svg", Method::GET, What::Page(3)),
];

/// Finds the row of a path, byte for byte: no normalisation, so guard and router can't differ.
pub(crate) fn find(path: &str) -> Option<(&'static Endpoint, &str)> {
    ENDPOINTS.iter().find_map(|row| {
        if row.what == What::Model {
            path.strip_prefix(row.path)
                .filter(|rest| !rest.is_empty())
                .map(|rest| (row, rest))
        } else {
            (row.path == path).then_some((row, ""))
        }
    })
}

/// The path with this number, for records of calls found in slots.
pub(crate) fn path_of(number: u8) -> &'static str {
    ENDPOINTS
        .iter()
        .find(|row| row.number == number)
        .map_or("", |row| row.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_list_is_exactly_this() {
        let open: Vec<_> = ENDPOINTS
            .iter()
            .filter(|e| e.what.is_open())
            .map(|e| e.path)
            .collect();
        assert_eq!(
            open,
            [
                "/livez",
                "/readyz",
                "/",
                "/assets/chat.css",
                "/assets/chat.js",
                "/assets/icon.svg"
            ]
        );
    }

    #[test]
    fn a28_a_path_that_is_only_nearly_right_is_not_there() {
        for path in [
            "//v1/models",
            "/v1//models",
            "/V1/Models",
            "/v1/%6dodels",
            "/livez/../v1/models",
            "/livez/%2e%2e/v1/models",
            "/v1/models%00",
            "/v1/chat/completions/",
            "/livez/",
            "",
            "*",
            "/assets/",
            "/assets/../livez",
            "/v1/models/",
        ] {
            assert!(find(path).is_none(), "{path}");
        }
        assert_eq!(find("/v1/models/a/b").unwrap().1, "a/b");
    }
}
