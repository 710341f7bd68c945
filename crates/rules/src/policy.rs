//! What a key may ask for: its role (in the config file, reviewed like code), narrowed by its project and by itself.
//!
//! [`effective`] is the one place where the three are joined: the narrowest of each value. It widens nothing: a key
//! or a project can never give more than the role. Pure; called by `gateway::check` and by `control::keys`.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limit::{CallerId, Class, Limit, Plan, Scope, Shape, Span, budgets, rates};
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
    /// `requests_per_minute` counts a sliding window instead of GCRA.
    pub sliding: bool,
    /// Calls at once under `requests_per_minute`; `None`: all of them.
    pub burst: Option<u32>,
    /// More limits and budgets of each key.
    pub limits: Arc<[Limit]>,
    /// What all keys of the role share.
    pub shared: Pool,
    /// Most of what else a body may ask for.
    pub caps: Caps,
    /// A call that asks for longer answers than it may have is refused instead of lowered.
    pub refuse_long: bool,
}

/// Limits that many share: of a role, a model, a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Calls that may run at the same time.
    pub concurrent_requests: Option<u32>,
    /// Limits over windows, and budgets.
    pub limits: Arc<[Limit]>,
}

impl Pool {
    /// All of them.
    pub fn each(&self) -> impl Iterator<Item = Limit> + '_ {
        let running = self.concurrent_requests.map(|n| Limit::running(n.into()));
        running.into_iter().chain(self.limits.iter().copied())
    }
}

/// Most of what multiplies work in a body. `None` leaves it to the built-in cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Prompts of one completion.
    pub prompts: Option<u64>,
    /// Messages of a chat.
    pub messages: Option<u64>,
    /// Tools and functions.
    pub tools: Option<u64>,
    /// Images.
    pub images: Option<u64>,
    /// Alternatives reported for each token.
    pub logprobs: Option<u64>,
    /// Tokens of prompt and answer together.
    pub context: Option<u64>,
}

impl Caps {
    /// The narrower of two, value by value.
    #[must_use]
    pub fn narrowest(self, other: Self) -> Self {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            prompts: least(self.prompts, other.prompts),
            messages: least(self.messages, other.messages),
            tools: least(self.tools, other.tools),
            images: least(self.images, other.images),
            logprobs: least(self.logprobs, other.logprobs),
            context: least(self.context, other.context),
        }
    }
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
    /// Limits over windows: of the key, or of all keys of the project together.
    #[serde(with = "rates", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub limits: Option<Arc<[Limit]>>,
    /// Budgets, likewise.
    #[serde(with = "budgets", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub budget: Option<Arc<[Limit]>>,
}

impl Own {
    /// Whether it narrows nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn limits(&self) -> Owned {
        Owned {
            requests_per_minute: self.requests_per_minute,
            concurrent_requests: self.concurrent_requests,
            lists: [self.limits.clone(), self.budget.clone()],
        }
    }
}

/// The limits of a key or a project of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    requests_per_minute: Option<u32>,
    concurrent_requests: Option<u32>,
    lists: [Option<Arc<[Limit]>>; 2],
}

impl Owned {
    fn each(&self) -> impl Iterator<Item = Limit> + '_ {
        let rate = self
            .requests_per_minute
            .map(|n| Limit::per_minute(n.into()));
        let running = self.concurrent_requests.map(|n| Limit::running(n.into()));
        let lists = self.lists.iter().flatten();
        rate.into_iter()
            .chain(running)
            .chain(lists.flat_map(|list| list.iter().copied()))
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
    /// As [`Role::sliding`].
    pub sliding: bool,
    /// As [`Role::burst`].
    pub burst: Option<u32>,
    /// As [`Role::caps`].
    pub caps: Caps,
    /// As [`Role::refuse_long`].
    pub refuse_long: bool,
    limits: Arc<[Limit]>,
    shared: Pool,
    project: Owned,
    key: Owned,
}

impl Policy {
    /// The rate of each key's calls.
    #[must_use]
    pub fn rate(&self) -> Limit {
        let size = u64::from(self.requests_per_minute);
        let burst = self.burst.map_or(size, |n| size.min(n.into()));
        Limit {
            shape: if self.sliding {
                Shape::Sliding
            } else {
                Shape::Gcra
            },
            span: Span::Minute,
            burst: if self.sliding { size } else { burst },
            ..Limit::per_minute(size)
        }
    }

    /// The limits that hold for a call of this caller: his own, his project's, those that his role shares. Those of
    /// the model and of the node are for whoever knows them to add.
    #[must_use]
    pub fn plan(&self, caller: CallerId, project: Option<&str>) -> Plan {
        let mut plan = Plan::new();
        let key = Scope::caller(caller);
        plan.add(key, [self.rate()]);
        let running = self.concurrent_requests;
        plan.add(key, running.map(|n| Limit::running(n.into())));
        plan.add(key, self.limits.iter().copied());
        // A rate of its own is in `rate` already, in the role's way of counting.
        let lists = self.key.lists.iter().flatten();
        plan.add(key, lists.flat_map(|list| list.iter().copied()));
        if let Some(project) = project {
            plan.add(Scope::named(Class::Project, project), self.project.each());
        }
        plan.add(Scope::named(Class::Role, &self.role), self.shared.each());
        plan
    }

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
        sliding: role.sliding,
        burst: role.burst,
        caps: role.caps,
        refuse_long: role.refuse_long,
        limits: Arc::clone(&role.limits),
        shared: role.shared.clone(),
        project: project.map(Own::limits).unwrap_or_default(),
        key: key.map(Own::limits).unwrap_or_default(),
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
    .into_iter()
    .chain(windows(&policy))
    .collect()
}

/// Limits beyond the rate and the concurrent calls, whoever holds them.
fn windows(policy: &Policy) -> impl Iterator<Item = Said> {
    let listed = |from: &'static str, limits: Vec<Limit>| {
        limits
            .into_iter()
            .map(move |limit| said("limit", limit.to_string(), from.to_owned()))
    };
    let of = |lists: &[Option<Arc<[Limit]>>; 2]| {
        let lists = lists.iter().flatten();
        lists.flat_map(|list| list.iter().copied()).collect()
    };
    listed("role", policy.limits.to_vec())
        .chain(listed("role, shared", policy.shared.each().collect()))
        .chain(listed("project, shared", of(&policy.project.lists)))
        .chain(listed("key", of(&policy.key.lists)))
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
    /// A role for all models without other limits.
    #[must_use]
    pub fn new(name: &str, requests_per_minute: u32, max_output_tokens: u64) -> Self {
        Self {
            name: Arc::from(name),
            models: Models::All,
            requests_per_minute,
            concurrent_requests: None,
            max_output_tokens,
            max_choices: DEFAULT_MAX_CHOICES,
            rotate_after: None,
            weight: 1,
            sliding: false,
            burst: None,
            limits: Arc::default(),
            shared: Pool::default(),
            caps: Caps::default(),
            refuse_long: false,
        }
    }

    /// The handbook's two roles, which stand until the config file says otherwise.
    #[must_use]
    pub fn defaults() -> BTreeMap<String, Self> {
        let role = |name: &str, per_minute, output, concurrent| Self {
            concurrent_requests: concurrent,
            ..Self::new(name, per_minute, output)
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
        let widened = effective(&role, Some(&wide), Some(&wide));
        assert_eq!(widened.rate(), alone.rate());
        assert_eq!(widened.concurrent_requests, alone.concurrent_requests);
        assert_eq!(widened.max_output_tokens, alone.max_output_tokens);

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
