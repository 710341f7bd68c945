//! What `guan config show` prints of issuers and client certificates.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use rules::token::{Algorithm, Issuer};

use super::{list, text};
use crate::config::Config;
use crate::config::units::write_duration;

/// `client_ca` and `client_auth`, for the table `[tls]`.
pub(super) fn render_client_auth(out: &mut String, config: &Config) {
    if let Some(auth) = &config.client_auth {
        let word = if auth.required {
            "required"
        } else {
            "optional"
        };
        let file = text(&auth.authorities.to_string_lossy());
        write!(out, "client_ca = {file}\nclient_auth = \"{word}\"\n").ok();
    }
}

/// `[[issuers]]` and `[[client_certificates]]`.
pub(super) fn render_identity(out: &mut String, config: &Config) {
    for source in &config.sources {
        let Some(issuer) = config.settings.issuers.get(source.issuer()) else {
            continue;
        };
        render_issuer(out, issuer);
        if let Some(url) = source.jwks_url() {
            writeln!(out, "jwks_url = {}", text(&url)).ok();
        }
        if let Some(ca) = source.ca() {
            writeln!(out, "ca = {}", path(ca)).ok();
        }
        for rule in &issuer.map {
            out.push_str("[[issuers.map]]\n");
            if let Some((claim, has)) = &rule.when {
                write!(out, "claim = {}\nhas = {}\n", text(claim), text(has)).ok();
            }
            given(out, &rule.role, rule.project.as_deref());
        }
    }
    for rule in &config.settings.client_certificates {
        write!(
            out,
            "\n[[client_certificates]]\nsan = {}\n",
            text(&rule.san.to_string())
        )
        .ok();
        given(out, &rule.role, rule.project.as_deref());
    }
}

fn render_issuer(out: &mut String, issuer: &Issuer) {
    let seconds = |n: i64| write_duration(Duration::from_secs(u64::try_from(n).unwrap_or(0)));
    write!(
        out,
        "\n[[issuers]]\nissuer = {}\naudience = {}\nalgorithms = {}\nsubject_claim = {}\nleeway = {}\njwks_max_stale = {}\n",
        text(&issuer.url),
        list(issuer.audience.iter().map(String::as_str)),
        list(issuer.algorithms.iter().copied().map(Algorithm::name)),
        text(&issuer.subject_claim),
        text(&seconds(issuer.leeway)),
        text(&write_duration(Duration::from_nanos(issuer.keys_max_stale))),
    )
    .ok();
    if let Some(claim) = &issuer.project_claim {
        writeln!(out, "project_claim = {}", text(claim)).ok();
    }
    if let Some(age) = issuer.max_age {
        writeln!(out, "max_age = {}", text(&seconds(age))).ok();
    }
}

fn given(out: &mut String, role: &str, project: Option<&str>) {
    writeln!(out, "role = {}", text(role)).ok();
    if let Some(project) = project {
        writeln!(out, "project = {}", text(project)).ok();
    }
}

fn path(path: &Path) -> String {
    text(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::super::render;
    use crate::config::reference::Opener;
    use crate::config::{self, Place};

    #[test]
    fn issuers_and_certificates_are_shown_so_that_they_mean_the_same() {
        let folder = tempfile::tempdir().unwrap();
        testkit::server::write_file(&folder.path().join("ca.pem"), "");
        let written = "[tls]\nclient_ca = \"ca.pem\"\nclient_auth = \"required\"\n\
            [[issuers]]\nissuer = \"https://login.example/x\"\naudience = [\"a\", \"b\"]\nalgorithms = [\"ES384\"]\n\
            jwks_url = \"https://keys.example/?p=1\"\nca = \"ca.pem\"\nmax_age = \"2h\"\nproject_claim = \"team\"\n\
            [[issuers.map]]\nclaim = \"groups\"\nhas = \"x\\\"y\"\nrole = \"user\"\nproject = \"p\"\n[[issuers.map]]\nrole = \"admin\"\n\
            [[client_certificates]]\nsan = \"dns:*.example.com\"\nrole = \"user\"\nproject = \"p\"\n";
        let place = Place {
            file: std::path::Path::new("guan.toml"),
            data: folder.path(),
            env: &|_| None,
            opener: Opener::Nobody,
            now: 0,
        };
        let first = config::check(written, &place).unwrap();
        let shown = render(&first);
        let second = config::check(&shown, &place).unwrap_or_else(|e| panic!("{e}\n{shown}"));
        assert_eq!(second.settings.issuers, first.settings.issuers);
        assert_eq!(second.sources, first.sources);
        assert_eq!(second.client_auth, first.client_auth);
        assert_eq!(
            second.settings.client_certificates,
            first.settings.client_certificates
        );
    }
}
