//! What a key may ask for: its role (in the config file, reviewed like code), narrowed by its project and by itself.
//!
//! [`effective`] is the one place where the three are joined: the narrowest of each value. It widens nothing: a key
//! or a project can never give more than the role. Pure; called by `gateway::check` and by `control::keys`.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::network::Network;

/// Which models a role may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Models {
    /// All of them (`models = ["*"]`).
    All,
    /// These public names.
    Named(Arc<[String]>),
}

impl Models {
    /// Whether `model` is among them.
    #[must_use]
    pub fn allow(&self, model: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| name == model),
        }
    }

    /// Those that both allow.
    #[must_use]
    fn and(&self, own: Option<&Arc<[String]>>) -> Self {
        match (self, own) {
            (_, None) => self.clone(),
            (Self::All, Some(own)) => Self::Named(Arc::clone(own)),
            (Self::Named(names), Some(own)) => {
                let both = names.iter().filter(|name| own.contains(name));
                Self::Named(both.cloned().collect())
            }
        }
    }
}

/// What each key of a role may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: Arc<str>,
    /// Which models.
    pub models: Models,
    /// Calls a minute, at least 1: GCRA with this many at once (`limit::Rate`).
    pub requests_per_minute: u32,
    /// Calls that may run at the same time; `None`: no limit.
    pub concurrent_requests: Option<u32>,
    /// Output tokens of one answer, at least 1, whatever field the caller writes.
    pub max_output_tokens: u64,
    /// Answers that one call may ask for: choices (`n`, `best_of`) times prompts.
    pub max_choices: u64,
    /// Seconds after which a key's secret is due for a new one; `None`: never. It is told, not enforced.
    pub rotate_after: Option<u64>,
    /// Its share of a busy model against other roles' tenants, at least one.
    pub weight: u32,
}

/// What a key or a project narrows of its role. `None` leaves a value to the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Own {
    /// These models only, by public name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Arc<[String]>>,
    /// These endpoints only, by path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Arc<[String]>>,
    /// From these addresses only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub addresses: Option<Arc<[Network]>>,
    /// Calls a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Calls that may run at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
    /// Output tokens of one answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
}

impl Own {
    /// Whether it narrows nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a key may do after all: every value the narrowest of role, project and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The role's name.
    pub role: Arc<str>,
    /// Which models.
    pub models: Models,
    /// Which endpoints, by path; `None`: all.
    pub endpoints: Option<Arc<[String]>>,
    /// As [`Role::requests_per_minute`].
    pub requests_per_minute: u32,
    /// As [`Role::concurrent_requests`].
    pub concurrent_requests: Option<u32>,
    /// As [`Role::max_output_tokens`].
    pub max_output_tokens: u64,
    /// As [`Role::max_choices`].
    pub max_choices: u64,
    /// The tenant's share of a busy model, at least one.
    pub weight: u32,
}

impl Policy {
    /// Whether this path may be called.
    #[must_use]
    pub fn allows_endpoint(&self, path: &str) -> bool {
        self.endpoints
            .as_ref()
            .is_none_or(|paths| paths.iter().any(|allowed| allowed == path))
    }
}

/// The narrowest of key, project and role, value by value.
#[must_use]
pub fn effective(role: &Role, project: Option<&Own>, key: Option<&Own>) -> Policy {
    let narrow = || [project, key].into_iter().flatten();
    let mut policy = Policy {
        role: Arc::clone(&role.name),
        models: role.models.clone(),
        endpoints: None,
        requests_per_minute: role.requests_per_minute,
        concurrent_requests: role.concurrent_requests,
        max_output_tokens: role.max_output_tokens,
        max_choices: role.max_choices,
        weight: role.weight,
    };
    for own in narrow() {
        policy.models = policy.models.and(own.models.as_ref());
        policy.endpoints = match (policy.endpoints.take(), &own.endpoints) {
            (before, None) => before,
            (None, Some(own)) => Some(Arc::clone(own)),
            (Some(before), Some(own)) => {
                let both = before.iter().filter(|path| own.contains(path));
                Some(both.cloned().collect())
            }
        };
        let least = |limit: u32, own: Option<u32>| own.map_or(limit, |own| limit.min(own));
        policy.requests_per_minute = least(policy.requests_per_minute, own.requests_per_minute);
        policy.concurrent_requests = match (policy.concurrent_requests, own.concurrent_requests) {
            (Some(limit), own) => Some(least(limit, own)),
            (None, own) => own,
        };
        if let Some(own) = own.max_output_tokens {
            policy.max_output_tokens = policy.max_output_tokens.min(own);
        }
    }
    policy
}

/// One value of an effective policy, and who says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Said {
    /// The value's name, as it is written in the config file.
    pub name: String,
    /// The value, for people.
    pub value: String,
    /// `role`, `project`, `key`, two of them joined by ` and ` where lists were cut with each other, or `default`.
    pub from: String,
}

type Owns<'a> = [(&'static str, Option<&'a Own>); 2];

/// The effective policy with where each value comes from: what `guan key show` prints.
#[must_use]
pub fn explain(role: &Role, project: Option<&Own>, key: Option<&Own>) -> Vec<Said> {
    let policy = effective(role, project, key);
    let owns: Owns<'_> = [("project", project), ("key", key)];
    let per_minute = policy.requests_per_minute;
    let (concurrent, output) = (policy.concurrent_requests, policy.max_output_tokens);
    let all_models = matches!(role.models, Models::All);
    let models = match &policy.models {
        Models::All => "all".to_owned(),
        Models::Named(names) => listed(names),
    };
    let endpoints = policy.endpoints.as_deref();
    vec![
        said(
            "models",
            models,
            cut(!all_models, &owns, |o| o.models.is_some()),
        ),
        said(
            "endpoints",
            endpoints.map_or_else(|| "all".to_owned(), listed),
            cut(false, &owns, |o| o.endpoints.is_some()),
        ),
        said(
            "addresses",
            ranges(&owns),
            cut(false, &owns, |o| o.addresses.is_some()),
        ),
        said(
            "requests_per_minute",
            per_minute.to_string(),
            least(role.requests_per_minute == per_minute, &owns, |o| {
                o.requests_per_minute == Some(per_minute)
            }),
        ),
        said(
            "concurrent_requests",
            concurrent.map_or_else(|| "no limit".to_owned(), |n| n.to_string()),
            least(role.concurrent_requests == concurrent, &owns, |o| {
                o.concurrent_requests == concurrent
            }),
        ),
        said(
            "max_output_tokens",
            output.to_string(),
            least(role.max_output_tokens == output, &owns, |o| {
                o.max_output_tokens == Some(output)
            }),
        ),
        said(
            "max_choices",
            policy.max_choices.to_string(),
            "role".to_owned(),
        ),
    ]
}

fn said(name: &str, value: String, from: String) -> Said {
    Said {
        name: name.to_owned(),
        value,
        from,
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn ranges(owns: &Owns<'_>) -> String {
    let lists = owns
        .iter()
        .filter_map(|(_, own)| own.and_then(|o| o.addresses.as_ref()));
    let lists: Vec<String> = lists
        .map(|list| {
            list.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        })
        .collect();
    if lists.is_empty() {
        "all".to_owned()
    } else {
        lists.join("; and of those ")
    }
}

/// Whose number it is. A tie goes to the wider circle: its word would hold without the others.
fn least(role_says: bool, owns: &Owns<'_>, says: impl Fn(&Own) -> bool) -> String {
    let found = owns.iter().find(|(_, own)| own.is_some_and(&says));
    match found {
        Some((name, _)) if !role_says => (*name).to_owned(),
        _ => "role".to_owned(),
    }
}

/// Whose lists were cut with each other.
fn cut(role_says: bool, owns: &Owns<'_>, says: impl Fn(&Own) -> bool) -> String {
    let role = role_says.then_some("role");
    let others = owns
        .iter()
        .filter(|(_, own)| own.is_some_and(&says))
        .map(|(name, _)| *name);
    let from: Vec<&str> = role.into_iter().chain(others).collect();
    if from.is_empty() {
        "default".to_owned()
    } else {
        from.join(" and ")
    }
}

impl Role {
    /// The handbook's two roles, which stand until the config file says otherwise.
    #[must_use]
    pub fn defaults() -> BTreeMap<String, Self> {
        let role = |name: &str, per_minute, output, concurrent| Self {
            name: Arc::from(name),
            models: Models::All,
            requests_per_minute: per_minute,
            concurrent_requests: concurrent,
            max_output_tokens: output,
            max_choices: DEFAULT_MAX_CHOICES,
            rotate_after: None,
            weight: 1,
        };
        [
            role("admin", 100, 8192, None),
            role("user", 10, 2048, Some(4)),
        ]
        .into_iter()
        .map(|role| (role.name.to_string(), role))
        .collect()
    }
}

/// Answers that one call may ask for when the role doesn't say.
pub const DEFAULT_MAX_CHOICES: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_handbooks_two_roles() {
        let roles = Role::defaults();
        let figures: Vec<_> = roles
            .values()
            .map(|r| (&*r.name, r.requests_per_minute, r.max_output_tokens))
            .collect();
        assert_eq!(figures, [("admin", 100, 8192), ("user", 10, 2048)]);
    }

    #[test]
    fn a_role_without_models_allows_none() {
        assert!(!Models::Named(Arc::new([])).allow("m"));
        assert!(Models::Named(Arc::new(["m".into()])).allow("m"));
        assert!(!Models::Named(Arc::new(["m".into()])).allow("M"));
    }

    fn own(per_minute: Option<u32>, models: Option<&[&str]>) -> Own {
        Own {
            requests_per_minute: per_minute,
            models: models.map(|names| names.iter().map(|n| (*n).to_owned()).collect()),
            ..Own::default()
        }
    }

    #[test]
    fn every_value_is_the_narrowest_of_the_three_and_nothing_widens() {
        let role = Role::defaults().remove("user").unwrap();
        let alone = effective(&role, None, None);
        assert_eq!(
            (alone.requests_per_minute, alone.concurrent_requests),
            (10, Some(4))
        );
        assert_eq!(alone.models, Models::All);
        let wide = Own {
            max_output_tokens: Some(1_000_000),
            concurrent_requests: Some(100),
            ..own(Some(1000), None)
        };
        assert_eq!(effective(&role, Some(&wide), Some(&wide)), alone);

        let project = own(Some(7), Some(&["a", "b"]));
        let key = Own {
            endpoints: Some(Arc::new(["/v1/completions".to_owned()])),
            ..own(Some(9), Some(&["b", "c"]))
        };
        let policy = effective(&role, Some(&project), Some(&key));
        assert_eq!(policy.requests_per_minute, 7);
        assert!(policy.models.allow("b") && !policy.models.allow("a") && !policy.models.allow("c"));
        assert!(policy.allows_endpoint("/v1/completions"));
        assert!(!policy.allows_endpoint("/v1/chat/completions"));
        let none = own(None, Some(&[]));
        assert!(!effective(&role, Some(&none), Some(&key)).models.allow("b"));
        // Whoever has no limit of the role's can still be given one.
        let admin = Role::defaults().remove("admin").unwrap();
        let narrowed = Own {
            concurrent_requests: Some(2),
            ..Own::default()
        };
        assert_eq!(
            effective(&admin, None, Some(&narrowed)).concurrent_requests,
            Some(2)
        );
    }

    #[test]
    fn each_value_says_where_it_comes_from() {
        let role = Role::defaults().remove("user").unwrap();
        let project = own(Some(7), Some(&["a", "b"]));
        let key = Own {
            max_output_tokens: Some(5),
            ..own(Some(9), Some(&["b"]))
        };
        let from = |name: &str| {
            let said = explain(&role, Some(&project), Some(&key));
            let found = said.into_iter().find(|said| said.name == name).unwrap();
            (found.value, found.from)
        };
        assert_eq!(from("requests_per_minute"), ("7".into(), "project".into()));
        assert_eq!(from("max_output_tokens"), ("5".into(), "key".into()));
        assert_eq!(from("concurrent_requests"), ("4".into(), "role".into()));
        assert_eq!(from("models"), ("b".into(), "project and key".into()));
        assert_eq!(from("addresses"), ("all".into(), "default".into()));
    }
}
