//! The `[[issuers]]` part of the conversion: whose tokens are taken, where their keys are, what their claims give.
//!
//! Algorithms by which whoever checks a token could make one, or anybody could, are refused here and known nowhere
//! else. Called by `meant::convert`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use control::identity::oidc::Source;
use rules::snapshot::Roles;
use rules::token::{Algorithm, Issuer, Rule};

use super::super::{Seat, nearest, written};
use super::Judge;

/// The issuers by name, and where their keys are.
pub(super) type Issuers = (BTreeMap<String, Arc<Issuer>>, Vec<Source>);

/// Converts them; `data` is where relative paths start.
pub(super) fn convert(
    judge: &mut Judge,
    written: Vec<written::Issuer>,
    roles: &Roles,
    data: &Path,
) -> Issuers {
    let (mut issuers, mut sources) = (BTreeMap::new(), Vec::new());
    for (n, one) in written.into_iter().enumerate() {
        let seat = Seat::default().key("issuers").index(n);
        let Some(url) = one.issuer.clone() else {
            judge.fault(
                &seat,
                "issuer",
                "is missing; write the URL that tokens carry in iss",
            );
            continue;
        };
        if issuers.contains_key(&url) {
            judge.fault(&seat, "issuer", "is written twice; join the two");
        }
        let ca = one.ca.as_ref().map(|ca| data.join(ca));
        if let Some(missing) = ca.as_ref().filter(|ca| !ca.is_file()) {
            let why = format!("names {}, which isn't there", missing.display());
            judge.fault(&seat, "ca", &why);
        }
        if ca.is_some() && !url.starts_with("https://") {
            judge.fault(&seat, "ca", "is for an https address; leave it out");
        }
        let source = Source::parse(&url, one.jwks_url.as_deref(), ca.as_deref());
        let meant = judge.issuer(&seat, &url, one, roles);
        match source {
            Ok(source) => {
                sources.push(source.good_for(Duration::from_nanos(meant.keys_max_stale)));
            }
            Err((key, why)) => judge.fault(&seat, key, &why),
        }
        let _none = issuers.insert(url, Arc::new(meant));
    }
    (issuers, sources)
}

impl Judge {
    fn issuer(&mut self, seat: &Seat, url: &str, one: written::Issuer, roles: &Roles) -> Issuer {
        if one.audience.is_empty() {
            let why = "is missing; write what tokens for this server carry in aud, or those for others would be good here";
            self.fault(seat, "audience", why);
        }
        if one.audience.iter().any(|name| !is_text(name)) {
            self.fault(
                seat,
                "audience",
                "holds a text that is blank or longer than 255 bytes",
            );
        }
        let none = Duration::ZERO;
        let leeway = self.span(
            seat,
            "leeway",
            one.leeway,
            LEEWAY,
            none..=Duration::from_mins(5),
        );
        let max_age = one.max_age.map(|written| {
            let range = Duration::from_mins(1)..=MONTH;
            self.span(seat, "max_age", Some(written), MONTH, range)
        });
        let range = Duration::from_secs(10)..=MONTH;
        let stale = self.span(seat, "jwks_max_stale", one.jwks_max_stale, STALE, range);
        let subject_claim = one.subject_claim.unwrap_or_else(|| "sub".to_owned());
        for (key, claim) in [
            ("subject_claim", Some(&subject_claim)),
            ("project_claim", one.project_claim.as_ref()),
        ] {
            if claim.is_some_and(|claim| !is_text(claim)) {
                self.fault(seat, key, "must be a claim's name");
            }
        }
        if one.map.is_empty() {
            self.problem(
                seat,
                "[[issuers]] without [[issuers.map]] lets nobody in; say which claim gives which role".to_owned(),
            );
        }
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        Issuer {
            url: url.into(),
            audience: one.audience,
            algorithms: self.algorithms(seat, one.algorithms),
            subject_claim,
            project_claim: one.project_claim,
            leeway: seconds(leeway),
            max_age: max_age.map(seconds),
            keys_max_stale: u64::try_from(stale.as_nanos()).unwrap_or(u64::MAX),
            map: one
                .map
                .into_iter()
                .enumerate()
                .map(|(n, rule)| self.issuer_rule(&seat.key("map").index(n), rule, roles))
                .collect(),
        }
    }

    fn algorithms(&mut self, seat: &Seat, written: Option<Vec<String>>) -> Vec<Algorithm> {
        let Some(names) = written else {
            return Algorithm::DEFAULT.to_vec();
        };
        if names.is_empty() {
            self.fault(seat, "algorithms", "is empty; leave it out for the default");
        }
        let mut meant = Vec::new();
        for name in names {
            if let Some(algorithm) = Algorithm::parse(&name) {
                meant.push(algorithm);
                continue;
            }
            let known = Algorithm::ALL.map(Algorithm::name);
            let why = if name.eq_ignore_ascii_case("none") {
                "can't hold \"none\": such a token is signed by nobody".to_owned()
            } else if name.to_ascii_uppercase().starts_with("HS") {
                format!(
                    "can't hold {name:?}: whoever can check such a token can make one; let the issuer sign by RS256 or ES256"
                )
            } else {
                let hint = match nearest(&name, known.into_iter()) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("known are {}", known.join(", ")),
                };
                format!("holds {name:?}, which is no algorithm here; {hint}")
            };
            self.fault(seat, "algorithms", &why);
        }
        meant
    }

    fn issuer_rule(&mut self, seat: &Seat, rule: written::IssuerMap, roles: &Roles) -> Rule {
        let when = match (rule.claim, rule.has) {
            (Some(claim), Some(has)) => {
                if !is_text(&claim) {
                    self.fault(seat, "claim", "must be a claim's name");
                }
                // Words are told apart by blanks: none holds one, and none is empty.
                let words = claim == "scope" || claim == "scp";
                if !is_text(&has) || (words && has.contains(' ')) {
                    self.fault(
                        seat,
                        "has",
                        "must be one value, not blank and at most 255 bytes",
                    );
                }
                Some((claim, has))
            }
            (None, None) => None,
            (Some(_), None) => {
                self.fault(
                    seat,
                    "has",
                    "is missing; say what the claim must be or hold",
                );
                None
            }
            (None, Some(_)) => {
                self.fault(seat, "claim", "is missing; say which claim has that value");
                None
            }
        };
        Rule {
            when,
            role: self.known_role(seat, rule.role, roles),
            project: self.project_name(seat, rule.project),
        }
    }

    /// A role that somebody who is vouched for gets.
    pub(super) fn known_role(
        &mut self,
        seat: &Seat,
        role: Option<String>,
        roles: &Roles,
    ) -> Arc<str> {
        let Some(role) = role else {
            self.fault(seat, "role", "is missing; say what such a caller may do");
            return "".into();
        };
        if !roles.contains_key(&role) {
            let hint = match nearest(&role, roles.keys().map(String::as_str)) {
                Some(near) => format!("; did you mean \"{near}\"?"),
                None => format!("; write [roles.{role}]"),
            };
            self.fault(
                seat,
                "role",
                &format!("names {role:?}, which is no role{hint}"),
            );
        }
        role.into()
    }

    /// A project of the store: whether it is there is seen at each call.
    pub(super) fn project_name(
        &mut self,
        seat: &Seat,
        project: Option<String>,
    ) -> Option<Arc<str>> {
        let project = project?;
        if !is_text(&project) {
            self.fault(seat, "project", "must be a project's name");
        }
        Some(project.into())
    }
}

fn is_text(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= 255 && !text.chars().any(char::is_control)
}

const LEEWAY: Duration = Duration::from_mins(1);
const STALE: Duration = Duration::from_hours(24);
const MONTH: Duration = Duration::from_hours(24 * 30);

#[cfg(test)]
mod tests {
    use super::super::super::tests::read;

    const GOOD: &str =
        "[[issuers]]\nissuer = \"https://login.example/realms/x\"\naudience = [\"guan\"]\n";
    const MAP: &str = "[[issuers.map]]\nclaim = \"groups\"\nhas = \"llm\"\nrole = \"user\"\n";

    #[test]
    fn an_issuer_has_defaults_and_says_what_its_claims_give() {
        let config = read(&format!(
            "{GOOD}{MAP}project = \"p\"\n[[issuers.map]]\nrole = \"admin\"\n"
        ))
        .unwrap();
        let issuer = &config.settings.issuers["https://login.example/realms/x"];
        let names: Vec<_> = issuer.algorithms.iter().map(|a| a.name()).collect();
        assert_eq!(names, ["RS256", "PS256", "ES256", "EdDSA"]);
        assert_eq!(
            (issuer.leeway, issuer.max_age, &*issuer.subject_claim),
            (60, None, "sub")
        );
        let rules: Vec<_> = issuer
            .map
            .iter()
            .map(|r| (r.when.is_some(), &*r.role, r.project.as_deref()))
            .collect();
        assert_eq!(rules, [(true, "user", Some("p")), (false, "admin", None)]);
        assert_eq!(config.sources[0].issuer(), "https://login.example/realms/x");
    }

    #[test]
    fn what_would_let_the_wrong_ones_in_is_refused() {
        for (text, word) in [
            (
                format!("[[issuers]]\naudience = [\"guan\"]\n{MAP}"),
                "issuer in [[issuers]] is missing",
            ),
            (
                format!("[[issuers]]\nissuer = \"https://h\"\n{MAP}"),
                "audience in [[issuers]] is missing",
            ),
            (
                format!("[[issuers]]\nissuer = \"http://h\"\naudience = [\"g\"]\n{MAP}"),
                "plain HTTP",
            ),
            (GOOD.to_owned(), "lets nobody in"),
            (
                format!("{GOOD}algorithms = [\"none\"]\n{MAP}"),
                "signed by nobody",
            ),
            (
                format!("{GOOD}algorithms = [\"HS256\"]\n{MAP}"),
                "can make one",
            ),
            (
                format!("{GOOD}algorithms = [\"RS265\"]\n{MAP}"),
                "did you mean \"RS256\"?",
            ),
            (format!("{GOOD}algorithms = []\n{MAP}"), "is empty"),
            (
                format!("{GOOD}jwks_url = \"http://h/keys\"\n{MAP}"),
                "jwks_url in [[issuers]]",
            ),
            (
                format!("{GOOD}ca = \"gone.pem\"\n{MAP}"),
                "which isn't there",
            ),
            (
                format!("{GOOD}leeway = \"6m\"\n{MAP}"),
                "leeway in [[issuers]]",
            ),
            (
                format!("{GOOD}max_age = \"1s\"\n{MAP}"),
                "max_age in [[issuers]]",
            ),
            (
                format!("{GOOD}audiences = [\"x\"]\n{MAP}"),
                "did you mean \"audience\"?",
            ),
            (format!("{GOOD}{MAP}{GOOD}{MAP}"), "written twice"),
            (
                format!("{GOOD}[[issuers.map]]\nclaim = \"x\"\nrole = \"user\"\n"),
                "has in [[issuers.map]] is missing",
            ),
            (
                format!("{GOOD}[[issuers.map]]\nhas = \"x\"\nrole = \"user\"\n"),
                "claim in [[issuers.map]] is missing",
            ),
            (
                format!("{GOOD}[[issuers.map]]\nclaim = \"x\"\nhas = \"y\"\n"),
                "role in [[issuers.map]] is missing",
            ),
            (
                format!("{GOOD}[[issuers.map]]\nrole = \"usr\"\n"),
                "did you mean \"user\"?",
            ),
        ] {
            let said = read(&text).unwrap_err();
            assert!(said.contains(word), "{text}\n{said}");
        }
    }
}
