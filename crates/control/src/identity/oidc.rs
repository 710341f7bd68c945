//! An issuer's documents: its configuration (`OpenID` Connect Discovery 1.0) and its keys (a JWK set).
//!
//! Decides where they are and whether they may be believed: over TLS, from the address that the config file or the
//! issuer's own configuration names, whose `issuer` must be the configured one letter by letter. No redirect is
//! followed, every document has a limit. Nothing is sent that is secret. Called by `identity` and by `guan::config`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::CACHE_CONTROL;
use http::uri::PathAndQuery;
use rules::token::key_set::{self, KeySet, KeySetFault};
use rules::token::object;
use serde_json::Value;

use crate::seal::client::Endpoint;

/// Where an issuer's keys are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    issuer: String,
    configuration: Place,
    /// `None`: where the configuration says.
    keys: Option<Place>,
    /// For how long what was fetched may be believed.
    max_stale: Duration,
}

/// A document's address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    endpoint: Endpoint,
    path: String,
}

/// What came.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) keys: KeySet,
    /// After which they are fetched again.
    pub(super) good_for: Duration,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum IssuerFault {
    /// A fault of this program.
    #[error("the look at it failed inside guan")]
    Ours,
    /// No answer.
    #[error(
        "{url} doesn't answer ({cause}); check the address, the network and the authority (ca)"
    )]
    Away {
        /// Which document.
        url: String,
        /// What the system or TLS said.
        cause: std::io::Error,
    },
    /// An answer without a document.
    #[error(
        "{url} answers {status}; write the address of the document itself, redirects aren't followed"
    )]
    Status {
        /// Which document.
        url: String,
        /// HTTP's word for it.
        status: u16,
    },
    /// A configuration that can't be used.
    #[error("{url} {why}")]
    Configuration {
        /// Which document.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Keys that can't be used.
    #[error("{url} {fault}")]
    Keys {
        /// Which document.
        url: String,
        /// What is wrong with it.
        fault: KeySetFault,
    },
}

impl Source {
    /// From an issuer's name, the address of its keys if that isn't to be asked for, and whom to trust instead of the
    /// system's authorities.
    ///
    /// # Errors
    /// The key that is wrong, and why, as the rest of a sentence that begins with the key's name.
    pub fn parse(
        issuer: &str,
        keys: Option<&str>,
        ca: Option<&Path>,
    ) -> Result<Self, (&'static str, String)> {
        if issuer.contains(['?', '#']) {
            let why = "must be a URL without query and fragment, exactly as tokens carry it in iss";
            return Err(("issuer", why.to_owned()));
        }
        let base = Place::parse(issuer, ca).map_err(|why| ("issuer", why))?;
        let keys = keys
            .map(|url| Place::parse(url, ca).map_err(|why| ("jwks_url", why)))
            .transpose()?;
        Ok(Self {
            issuer: issuer.to_owned(),
            configuration: Place {
                path: format!("{}{CONFIGURATION}", base.path.trim_end_matches('/')),
                ..base
            },
            keys,
            max_stale: Duration::MAX,
        })
    }

    /// The same, of which what was fetched is believed for so long.
    #[must_use]
    pub const fn good_for(mut self, max_stale: Duration) -> Self {
        self.max_stale = max_stale;
        self
    }

    pub(super) const fn max_stale(&self) -> Duration {
        self.max_stale
    }

    /// Its name, exactly as tokens carry it.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Where its keys are, if the config file says so.
    #[must_use]
    pub fn jwks_url(&self) -> Option<String> {
        self.keys.as_ref().map(ToString::to_string)
    }

    /// The authorities' file.
    #[must_use]
    pub fn ca(&self) -> Option<&Path> {
        self.configuration.endpoint.ca()
    }

    /// Fetches its keys.
    pub(super) async fn fetch(&self) -> Result<Fetched, IssuerFault> {
        let place = match &self.keys {
            Some(place) => place.clone(),
            None => self.discover().await?,
        };
        let (head, body) = place.get(key_set::MOST_BYTES).await?;
        let keys = KeySet::read(&body).map_err(|fault| IssuerFault::Keys {
            url: place.to_string(),
            fault,
        })?;
        let said = head
            .headers
            .get(CACHE_CONTROL)
            .and_then(|value| max_age(value.to_str().ok()?));
        Ok(Fetched {
            keys,
            good_for: said.unwrap_or(USUAL).clamp(SHORTEST, LONGEST),
        })
    }

    /// Where its configuration says that its keys are.
    async fn discover(&self) -> Result<Place, IssuerFault> {
        let (_head, body) = self.configuration.get(MOST_BYTES).await?;
        let fault = |why: String| IssuerFault::Configuration {
            url: self.configuration.to_string(),
            why,
        };
        let document =
            object(&body).ok_or_else(|| fault("isn't an OpenID configuration".to_owned()))?;
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        if text("issuer") != Some(&*self.issuer) {
            let said = shown(text("issuer").unwrap_or("nobody"));
            return Err(fault(format!(
                "is of the issuer {said:?}; write exactly that one in the config file if it is the one you mean"
            )));
        }
        let url = text("jwks_uri").ok_or_else(|| fault("names no jwks_uri".to_owned()))?;
        let place = Place::parse(url, self.ca())
            .map_err(|why| fault(format!("names a jwks_uri that {why}")))?;
        if self.configuration.endpoint.is_tls() && !place.endpoint.is_tls() {
            // What comes over TLS must not lead to what doesn't, this machine included.
            return Err(fault("names a jwks_uri without TLS".to_owned()));
        }
        Ok(place)
    }
}

impl Place {
    fn parse(url: &str, ca: Option<&Path>) -> Result<Self, String> {
        let wrong = || {
            "must be a URL such as \"https://login.example/realms/company\", without user and fragment"
                .to_owned()
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(at).ok_or_else(wrong)?;
        let readable = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if !readable || authority.contains('@') || url.len() > MOST_URL {
            return Err(wrong());
        }
        let path = match path {
            "" => "/".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_owned(),
        };
        let _legal = PathAndQuery::try_from(path.as_str()).map_err(|_not| wrong())?;
        let ca = ca.filter(|_| scheme == "https").map(PathBuf::from);
        let endpoint = Endpoint::parse(&format!("{scheme}://{authority}"), ca).map_err(|why| {
            if why.contains("plain HTTP") {
                why
            } else {
                wrong()
            }
        })?;
        Ok(Self { endpoint, path })
    }

    async fn get(&self, most: usize) -> Result<(http::response::Parts, bytes::Bytes), IssuerFault> {
        let away = |cause| IssuerFault::Away {
            url: self.to_string(),
            cause,
        };
        let (head, body) = self.endpoint.get(&self.path, most).await.map_err(away)?;
        match head.status.as_u16() {
            200 => Ok((head, body)),
            status => Err(IssuerFault::Status {
                url: self.to_string(),
                status,
            }),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.endpoint.url(), self.path)
    }
}

/// `max-age` of a `Cache-Control` (RFC 9111 section 5.2).
fn max_age(value: &str) -> Option<Duration> {
    let directive = value.split(',').map(str::trim).find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then_some(value)
    });
    Some(Duration::from_secs(directive?.parse().ok()?))
}

/// A text from outside, short and on one line.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

const CONFIGURATION: &str = "/.well-known/openid-configuration";
/// The largest configuration, bytes.
const MOST_BYTES: usize = 64 << 10;
const MOST_URL: usize = 1024;
/// After which keys are fetched again when nobody says.
const USUAL: Duration = Duration::from_mins(15);
const SHORTEST: Duration = Duration::from_mins(5);
const LONGEST: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers_read_as_their_tokens_carry_them() {
        for (issuer, configuration) in [
            (
                "https://accounts.example",
                "https://accounts.example/.well-known/openid-configuration",
            ),
            (
                "https://tenant.example/",
                "https://tenant.example/.well-known/openid-configuration",
            ),
            (
                "https://login.example:8443/realms/company",
                "https://login.example:8443/realms/company/.well-known/openid-configuration",
            ),
            (
                "http://127.0.0.1:9/x",
                "http://127.0.0.1:9/x/.well-known/openid-configuration",
            ),
        ] {
            let source = Source::parse(issuer, None, None).unwrap();
            assert_eq!(source.issuer(), issuer);
            assert_eq!(source.configuration.to_string(), configuration);
        }
        for issuer in [
            "",
            "login.example",
            "ftp://login.example",
            "http://login.example",
            "https://login.example?x=1",
            "https://login.example/#x",
            "https://ana:hunter2@login.example",
            "https://login.example/a b",
            "https:///x",
        ] {
            let (key, why) = Source::parse(issuer, None, None).unwrap_err();
            assert!(
                key == "issuer" && !why.contains("hunter2"),
                "{issuer}: {why}"
            );
        }
        let with = |keys| Source::parse("https://login.example", Some(keys), None);
        assert_eq!(
            with("https://login.example?p=x")
                .unwrap()
                .jwks_url()
                .as_deref(),
            Some("https://login.example/?p=x")
        );
        assert_eq!(with("http://login.example/keys").unwrap_err().0, "jwks_url");
    }

    #[test]
    fn a_max_age_is_read_among_other_words() {
        assert_eq!(
            max_age("public, Max-Age=300, immutable"),
            Some(Duration::from_secs(300))
        );
        assert_eq!(max_age("no-store"), None);
        assert_eq!(max_age("max-age=soon"), None);
    }
}
