//! Client certificates: which of their names gives which role.
//!
//! A name has a word in front that says its kind (`dns:`, `uri:`, `email:`), in certificates and in rules alike, so
//! one kind never passes for another. Pure; called by `gateway::check`.

use std::fmt;
use std::sync::Arc;

/// What a name gives: one `[[client_certificates]]` of the config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The names that it is for.
    pub san: Pattern,
    /// The role.
    pub role: Arc<str>,
    /// Who pays.
    pub project: Option<Arc<str>>,
}

/// A name, or all host names one label below another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// With its kind in front.
    text: String,
}

impl Pattern {
    /// Reads `dns:app.example`, `dns:*.example`, `uri:spiffe://cluster/app`, `email:bot@example`.
    ///
    /// # Errors
    /// Why not, as the rest of a sentence that begins with the key's name.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (kind, name) = text.split_once(':').ok_or(FORM)?;
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()) && !name.contains('*')
        };
        let text = match kind {
            "dns" => {
                let below = name.strip_prefix("*.").unwrap_or(name);
                // One label would be a whole top-level domain.
                let wide = below.len() < name.len() && !below.contains('.');
                let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
                let labels = below.split('.').all(|label| !label.is_empty());
                if wide || !labels || !below.bytes().all(letters) {
                    return Err(DNS);
                }
                format!("dns:{}", name.to_ascii_lowercase())
            }
            "uri" if plain(name) && name.contains(':') => format!("uri:{name}"),
            "uri" => return Err(URI),
            "email" => match name.rsplit_once('@') {
                Some((person, host)) if plain(person) && plain(host) => {
                    format!("email:{person}@{}", host.to_ascii_lowercase())
                }
                Some(_) | None => return Err(EMAIL),
            },
            _ => return Err(FORM),
        };
        Ok(Self { text })
    }

    /// Whether a certificate's name is meant. A name with a star in it is nobody's.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        if name.contains('*') {
            return false;
        }
        match self.text.strip_prefix("dns:*.") {
            None => self.text == name,
            Some(below) => name
                .strip_prefix("dns:")
                .and_then(|name| name.split_once('.'))
                .is_some_and(|(label, rest)| !label.is_empty() && rest == below),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The first rule that fits one of a certificate's names, and which name.
#[must_use]
pub fn first<'a>(rules: &'a [Rule], names: &'a [String]) -> Option<(&'a Rule, &'a str)> {
    rules.iter().find_map(|rule| {
        let name = names.iter().find(|name| rule.san.fits(name))?;
        Some((rule, name.as_str()))
    })
}

const FORM: &str = "must begin with the kind of name: \"dns:app.example.com\", \"dns:*.example.com\", \"uri:spiffe://cluster/app\" or \"email:bot@example.com\"";
const DNS: &str =
    "must be a host name after dns:, with at most one star, as its first label above two others";
const URI: &str =
    "must be a whole URI after uri:, such as \"uri:spiffe://cluster/app\", without a star";
const EMAIL: &str =
    "must be an address after email:, such as \"email:bot@example.com\", without a star";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_exact_or_stands_for_one_label() {
        for (pattern, name, fits) in [
            ("dns:App.Example.com", "dns:app.example.com", true),
            ("dns:app.example.com", "dns:xapp.example.com", false),
            ("dns:app.example.com", "uri:app.example.com", false),
            ("dns:*.example.com", "dns:app.example.com", true),
            ("dns:*.example.com", "dns:a.b.example.com", false),
            ("dns:*.example.com", "dns:example.com", false),
            ("dns:*.example.com", "dns:.example.com", false),
            ("dns:*.example.com", "dns:*.example.com", false),
            ("dns:*.example.com", "dns:app.example.com.evil.net", false),
            ("dns:*.example.com", "email:a.example.com", false),
            ("uri:spiffe://c/ns/a", "uri:spiffe://c/ns/a", true),
            ("uri:spiffe://c/ns/a", "uri:spiffe://c/ns/a/b", false),
            ("uri:spiffe://c/ns/a", "uri:spiffe://c/ns/A", false),
            ("uri:spiffe://c/ns/a", "dns:uri:spiffe://c/ns/a", false),
            ("email:Bot@Example.com", "email:Bot@example.com", true),
            ("email:bot@example.com", "email:Bot@example.com", false),
        ] {
            assert_eq!(
                Pattern::parse(pattern).unwrap().fits(name),
                fits,
                "{pattern} {name}"
            );
        }
        for bad in [
            "",
            "app.example.com",
            "cn:app",
            "dns:",
            "dns:*",
            "dns:*.com",
            "dns:a.*.com",
            "dns:*.*.example.com",
            "dns:a..b",
            "dns:a b",
            "uri:",
            "uri:*",
            "uri:nothing",
            "uri:spiffe://c/*",
            "email:bot",
            "email:*@example.com",
            "email:@example.com",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_rule_counts_whatever_the_order_of_names() {
        let rule = |san: &str, role: &str| Rule {
            san: Pattern::parse(san).unwrap(),
            role: role.into(),
            project: None,
        };
        let rules = [
            rule("uri:spiffe://c/a", "admin"),
            rule("dns:*.example.com", "user"),
        ];
        let names = ["dns:a.example.com", "uri:spiffe://c/a"].map(str::to_owned);
        let (rule, name) = first(&rules, &names).unwrap();
        assert_eq!((&*rule.role, name), ("admin", "uri:spiffe://c/a"));
        let (rule, name) = first(&rules, &names[..1]).unwrap();
        assert_eq!((&*rule.role, name), ("user", "dns:a.example.com"));
        assert!(first(&rules, &[]).is_none());
    }
}
