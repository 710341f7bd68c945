//! `[tls] client_ca` and `[[client_certificates]]`: whose clients may show a certificate, and what its names give.
//!
//! Called by `meant::convert`.

use std::path::{Path, PathBuf};

use rules::certificate::{Pattern, Rule};
use rules::snapshot::Roles;

use super::super::{Seat, written};
use super::Judge;

/// Whose clients may show a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientAuth {
    /// The file with the authorities, PEM.
    pub(crate) authorities: PathBuf,
    /// Whether a connection without a certificate is refused.
    pub(crate) required: bool,
}

/// Both.
pub(super) struct Clients {
    pub(super) auth: Option<ClientAuth>,
    pub(super) rules: Vec<Rule>,
}

impl Judge {
    pub(super) fn clients(
        &mut self,
        tls: &written::Tls,
        written: Vec<written::ClientCertificate>,
        roles: &Roles,
        data: &Path,
    ) -> Clients {
        let seat = Seat::default().key("tls");
        let word = tls.client_auth.as_deref().unwrap_or("optional");
        self.word(&seat, "client_auth", word, &["optional", "required"]);
        let auth = tls.client_ca.as_ref().map(|file| ClientAuth {
            authorities: data.join(file),
            required: word == "required",
        });
        match &auth {
            Some(auth) if !auth.authorities.is_file() => {
                let why = format!("names {}, which isn't there", auth.authorities.display());
                self.fault(&seat, "client_ca", &why);
            }
            None if tls.client_auth.is_some() => {
                self.fault(
                    &seat,
                    "client_auth",
                    "needs client_ca: whose clients are they?",
                );
            }
            Some(_) | None => {}
        }
        let mut rules = Vec::new();
        for (n, one) in written.into_iter().enumerate() {
            let seat = Seat::default().key("client_certificates").index(n);
            if auth.is_none() {
                self.problem(
                    &seat,
                    "[[client_certificates]] needs [tls] client_ca: without it nobody is asked for a certificate".to_owned(),
                );
            }
            let role = self.known_role(&seat, one.role, roles);
            let project = self.project_name(&seat, one.project);
            match one.san.as_deref().map(Pattern::parse) {
                Some(Ok(san)) => rules.push(Rule { san, role, project }),
                Some(Err(why)) => self.fault(&seat, "san", why),
                None => self.fault(&seat, "san", "is missing; say whose certificates are meant"),
            }
        }
        Clients { auth, rules }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{read, read_with};

    const RULE: &str = "[[client_certificates]]\nsan = \"dns:*.example.com\"\nrole = \"user\"\n";

    #[test]
    fn names_give_roles_where_an_authority_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        testkit::server::write_file(&file, "");
        let read_there = |text: &str| read_with(text, folder.path(), &|_| None);
        let tls = "[tls]\nclient_ca = \"ca.pem\"\n";
        let config = read_there(&format!("{tls}{RULE}project = \"p\"\n")).unwrap();
        let auth = config.client_auth.unwrap();
        assert_eq!((auth.authorities, auth.required), (file, false));
        let rule = &config.settings.client_certificates[0];
        assert_eq!(
            (rule.san.to_string().as_str(), &*rule.role),
            ("dns:*.example.com", "user")
        );
        let required = format!("{tls}client_auth = \"required\"\n");
        assert!(read_there(&required).unwrap().client_auth.unwrap().required);
        assert!(read("").unwrap().client_auth.is_none());
        for (text, word) in [
            (
                format!("{tls}client_auth = \"require\"\n"),
                "did you mean \"required\"?",
            ),
            (
                "[tls]\nclient_auth = \"required\"\n".to_owned(),
                "needs client_ca",
            ),
            (
                "[tls]\nclient_ca = \"gone.pem\"\n".to_owned(),
                "isn't there",
            ),
            (RULE.to_owned(), "needs [tls] client_ca"),
            (
                format!("{tls}{}", RULE.replace("dns:*", "*")),
                "must begin with the kind",
            ),
            (
                format!("{tls}{}", RULE.replace("user", "users")),
                "did you mean \"user\"?",
            ),
            (
                format!("{tls}[[client_certificates]]\nrole = \"user\"\n"),
                "san in [[client_certificates]] is missing",
            ),
            (
                format!("{tls}[[client_certificates]]\nname = \"user\"\n"),
                "unknown key \"name\"",
            ),
        ] {
            let said = read_there(&text).unwrap_err();
            assert!(said.contains(word), "{text}\n{said}");
        }
    }
}
