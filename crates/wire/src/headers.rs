//! Which header names may pass between a caller and an upstream. It decides by closed lists: what isn't named
//! here is dropped, so no credential, cookie or hop-by-hop header crosses. The gateway writes all other headers
//! itself; it asks here for each name in both directions.

/// Request headers that go on to the upstream as they are. Sorted.
const REQUEST: &[&str] = &["traceparent", "tracestate"];

/// Response headers that go back to the caller as they are. Sorted.
const RESPONSE: &[&str] = &["openai-processing-ms", "openai-version"];

/// Whether a caller's header of this lower-case name goes on to the upstream.
#[must_use]
pub fn forwards_request(name: &str) -> bool {
    REQUEST.binary_search(&name).is_ok()
}

/// Whether an upstream's header of this lower-case name goes back to the caller.
#[must_use]
pub fn forwards_response(name: &str) -> bool {
    RESPONSE.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_lower_case() {
        for list in [REQUEST, RESPONSE] {
            assert!(list.is_sorted());
            assert!(list.iter().all(|name| *name == name.to_ascii_lowercase()));
        }
    }

    #[test]
    fn credentials_and_hops_never_pass() {
        for name in [
            "authorization",
            "api-key",
            "x-api-key",
            "cookie",
            "set-cookie",
            "connection",
            "transfer-encoding",
            "content-length",
            "host",
            "user-agent",
            "x-forwarded-for",
            "x-stainless-timeout",
            "proxy-authorization",
            "server",
            "location",
            "",
        ] {
            assert!(!forwards_request(name), "{name}");
            assert!(!forwards_response(name), "{name}");
        }
    }

    #[test]
    fn named_headers_pass_one_way() {
        assert!(forwards_request("traceparent") && forwards_request("tracestate"));
        assert!(!forwards_response("traceparent"));
        assert!(forwards_response("openai-processing-ms") && forwards_response("openai-version"));
        assert!(!forwards_request("openai-version"));
    }
}
