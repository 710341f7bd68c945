//! AWS Signature Version 4, as far as KMS needs it: one canonical form, one chain of HMACs. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use time::OffsetDateTime;

use super::super::cipher::hex;

/// What is signed. Names of headers in small letters and in the order of the alphabet; path and query encoded.
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: &'a [u8],
}

/// For what the signature holds.
pub(super) struct Scope<'a> {
    pub(super) stamp: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

/// A time as signatures have it: `20150830T123600Z`.
pub(super) fn stamp(at: SystemTime) -> String {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let at = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// The `authorization` header.
pub(super) fn authorization(
    request: &Request<'_>,
    scope: &Scope<'_>,
    access_key_id: &str,
    secret: &str,
) -> String {
    let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = request
        .headers
        .iter()
        .map(|(name, value)| {
            format!(
                "{name}:{}\n",
                value.split_whitespace().collect::<Vec<_>>().join(" ")
            )
        })
        .collect();
    let canonical = format!(
        "{}\n{}\n{}\n{lines}\n{names}\n{}",
        request.method,
        request.path,
        request.query,
        sha256(request.body)
    );
    let day = scope.stamp.get(..8).unwrap_or_default();
    let within = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{within}\n{}",
        scope.stamp,
        sha256(canonical.as_bytes())
    );
    let first = zeroize::Zeroizing::new(format!("AWS4{secret}"));
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, first.as_bytes());
    for part in [day, scope.region, scope.service, "aws4_request"] {
        key = hmac::Key::new(
            hmac::HMAC_SHA256,
            hmac::sign(&key, part.as_bytes()).as_ref(),
        );
    }
    let signature = hex(hmac::sign(&key, to_sign.as_bytes()).as_ref());
    format!(
        "AWS4-HMAC-SHA256 Credential={access_key_id}/{within}, SignedHeaders={names}, Signature={signature}"
    )
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ID: &str = "AKIDEXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn signature(method: &str, query: &str, headers: &[(&str, &str)], body: &str) -> String {
        let said = authorization(
            &Request {
                method,
                path: "/",
                query,
                headers,
                body: body.as_bytes(),
            },
            &Scope {
                stamp: "20150830T123600Z",
                region: "us-east-1",
                service: "service",
            },
            ID,
            SECRET,
        );
        assert!(said.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="));
        said.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// From AWS's published suite of test vectors for Signature Version 4 (names of the suite).
    #[test]
    fn signatures_are_those_of_the_published_vectors() {
        let plain = [
            ("host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        let form = [
            ("content-type", "application/x-www-form-urlencoded"),
            ("host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        for (name, got, published) in [
            (
                "get-vanilla",
                signature("GET", "", &plain, ""),
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "post-vanilla",
                signature("POST", "", &plain, ""),
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "get-vanilla-query-order-key-case",
                signature("GET", "Param1=value1&Param2=value2", &plain, ""),
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "post-x-www-form-urlencoded",
                signature("POST", "", &form, "Param1=value1"),
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
        ] {
            assert_eq!(got, published, "{name}");
        }
    }

    #[test]
    fn a_time_is_written_as_signatures_have_it() {
        assert_eq!(
            stamp(UNIX_EPOCH + Duration::from_secs(1_440_938_160)),
            "20150830T123600Z"
        );
    }
}
