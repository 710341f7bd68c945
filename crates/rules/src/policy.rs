//! Roles: what a key of that role may ask for. Written in the config file, reviewed like code.

use std::collections::BTreeMap;
use std::sync::Arc;

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
}
