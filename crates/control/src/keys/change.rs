//! Changing what exists: a key's or a project's particulars, member by member (JSON Merge Patch, RFC 7396).
//!
//! Decides what a change may say, that nobody overwrites what another has changed meanwhile, and what the record
//! tells: each changed member before and after. It never touches a secret. Called by `api`.

use std::fmt;

use rules::policy::Own;
use rules::snapshot::Roles;
use schemars::JsonSchema;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::{
    Keys, KeysFault, NewKey, bears_on_all, check_name, check_notes, check_own, check_role,
    check_times, clock, reaches,
};
use crate::actor::Actor;
use crate::audit_log;
use crate::store::{KeyRow, ProjectRow};

/// What shall be different in a key. What is absent stays; `null` clears.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyChange {
    /// What its owner calls it; not `null`.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "String")]
    pub name: Option<String>,
    /// The name of a role in the config file; not `null`.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "String")]
    pub role: Option<String>,
    /// Who pays; `null`: nobody is named.
    #[serde(deserialize_with = "given")]
    pub project: Option<Option<String>>,
    /// Before which it isn't valid yet, RFC 3339; `null`: from now on.
    #[serde(deserialize_with = "given")]
    #[schemars(with = "Option<clock::Stamp>")]
    pub not_before: Option<Option<String>>,
    /// From when it is no longer valid, RFC 3339; `null`: it doesn't expire.
    #[serde(deserialize_with = "given")]
    #[schemars(with = "Option<clock::Stamp>")]
    pub expires_at: Option<Option<String>>,
    /// What it narrows of its role: each member as here, `null` clears it; `null` for all: it narrows nothing.
    #[serde(deserialize_with = "given")]
    #[schemars(with = "Option<OwnPatch>")]
    pub own: Option<Option<Members>>,
    /// What its owner wants to remember; `null`: nothing.
    #[serde(deserialize_with = "given")]
    pub notes: Option<Option<String>>,
}

/// What shall be different in a project. Its name stays: keys, records and usage know it by that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectChange {
    /// What it narrows for all its keys: each member as here, `null` clears it; `null` for all: it narrows nothing.
    #[serde(deserialize_with = "given")]
    #[schemars(with = "Option<OwnPatch>")]
    pub own: Option<Option<Members>>,
    /// What its owner wants to remember; `null`: nothing.
    #[serde(deserialize_with = "given")]
    pub notes: Option<Option<String>>,
}

/// Members of an object, none of them twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Map<String, Value>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = from.next_entry::<String, Value>()? {
                    if members.contains_key(&name) {
                        return Err(A::Error::custom(format!("duplicate field `{name}`")));
                    }
                    let _none = members.insert(name, value);
                }
                Ok(members)
            }
        }
        from.deserialize_map(Once).map(Self)
    }
}

/// [`Own`], each member of which may be null too.
type OwnPatch = Own;

/// Which version of a row a change was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is now.
    Any,
    /// One of these.
    Versions(Vec<i64>),
}

impl Expected {
    fn fits(&self, version: i64) -> bool {
        match self {
            Self::Any => true,
            Self::Versions(versions) => versions.contains(&version),
        }
    }
}

impl Keys {
    /// Changes a key that is named by its id or by the first letters of it, and gives it as it is then. A change that
    /// changes nothing is no act: it leaves version and audit log alone.
    ///
    /// # Errors
    /// [`KeysFault`]; then nothing has changed. [`KeysFault::Changed`]: it isn't of the version that was expected.
    pub async fn change(
        &self,
        id_or_prefix: &str,
        expected: &Expected,
        change: KeyChange,
        roles: &Roles,
        actor: &Actor,
    ) -> Result<KeyRow, KeysFault> {
        let before = self.row(id_or_prefix).await?;
        if !expected.fits(before.version) {
            return Err(KeysFault::Changed);
        }
        if before.revoked_at.is_some() {
            return Err(KeysFault::IsRevoked(before.id));
        }
        let mut after = changed(&before, change)?;
        if after == before {
            return Ok(before);
        }
        reaches(actor, &before.role)?;
        reaches(actor, &after.role)?;
        self.judge(&before, &after, roles).await?;
        let pending = self.store.change_key(&after).await?;
        let pending = pending.ok_or(KeysFault::Changed)?;
        let mut record = audit_log::blank(&self.clock, "key-change");
        actor.sign(&mut record);
        record.act = Some(differences(
            json!({ "id": before.id, "name": before.name }),
            &serde_json::to_value(&before).unwrap_or_default(),
            &serde_json::to_value(&after).unwrap_or_default(),
        ));
        self.record_then_commit(record, pending).await?;
        after.version = after.version.saturating_add(1);
        Ok(after)
    }

    /// Changes a project of this name or id, and gives it as it is then.
    ///
    /// # Errors
    /// [`KeysFault`], as with a key.
    pub async fn change_project(
        &self,
        named: &str,
        expected: &Expected,
        change: ProjectChange,
        actor: &Actor,
    ) -> Result<ProjectRow, KeysFault> {
        bears_on_all(actor)?;
        let before = self.project(named).await?;
        if !expected.fits(before.version) {
            return Err(KeysFault::Changed);
        }
        let mut after = before.clone();
        if let Some(patch) = change.own {
            after.own = merged(&before.own, patch)?;
            check_own(&after.own)?;
        }
        if let Some(notes) = change.notes {
            after.notes = notes.unwrap_or_default();
            check_notes(&after.notes)?;
        }
        if after == before {
            return Ok(before);
        }
        let pending = self.store.change_project(&after).await?;
        let pending = pending.ok_or(KeysFault::Changed)?;
        let mut record = audit_log::blank(&self.clock, "project-change");
        actor.sign(&mut record);
        record.act = Some(differences(
            json!({ "id": before.id, "name": before.name }),
            &serde_json::to_value(&before).unwrap_or_default(),
            &serde_json::to_value(&after).unwrap_or_default(),
        ));
        self.record_then_commit(record, pending).await?;
        after.version = after.version.saturating_add(1);
        Ok(after)
    }

    /// Only what is different must hold now: a key of a role that is gone can still be given a note.
    async fn judge(&self, before: &KeyRow, after: &KeyRow, roles: &Roles) -> Result<(), KeysFault> {
        check_name(&after.name, "name")?;
        check_notes(&after.notes)?;
        if after.own != before.own {
            check_own(&after.own)?;
        }
        if after.role != before.role {
            check_role(&after.role, roles)?;
        }
        if after.project != before.project {
            let named = NewKey {
                project: after.project.clone(),
                ..NewKey::default()
            };
            self.check_project(&named).await?;
        }
        let now = clock::seconds((self.clock)());
        let is_new = after.expires_at != before.expires_at;
        check_times(after.not_before, after.expires_at, is_new.then_some(now))
    }
}

fn changed(before: &KeyRow, change: KeyChange) -> Result<KeyRow, KeysFault> {
    let mut after = before.clone();
    if let Some(name) = change.name {
        after.name = name;
    }
    if let Some(role) = change.role {
        after.role = role;
    }
    if let Some(project) = change.project {
        after.project = project;
    }
    if let Some(at) = change.not_before {
        after.not_before = at.map(|text| time(&text, "not_before")).transpose()?;
    }
    if let Some(at) = change.expires_at {
        after.expires_at = at.map(|text| time(&text, "expires_at")).transpose()?;
    }
    if let Some(patch) = change.own {
        after.own = merged(&before.own, patch)?;
    }
    if let Some(notes) = change.notes {
        after.notes = notes.unwrap_or_default();
    }
    Ok(after)
}

/// A time as it is written in a request.
pub(crate) fn time(text: &str, what: &'static str) -> Result<i64, KeysFault> {
    clock::parse_rfc3339(text).ok_or_else(|| KeysFault::Own {
        what,
        why: "must be a time like 2030-12-31T23:59:59Z".to_owned(),
    })
}

/// What is narrowed, patched. It knows no member by name, so that it is right for members that come later.
fn merged(own: &Own, patch: Option<Members>) -> Result<Own, KeysFault> {
    let Some(Members(patch)) = patch else {
        return Ok(Own::default());
    };
    let read = |value: Value| {
        serde_json::from_value::<Own>(value).map_err(|cause| KeysFault::Own {
            what: "own",
            why: format!("isn't what was expected: {cause}"),
        })
    };
    // Alone it must read too: to clear what nobody knows is a typing error.
    let _known = read(Value::Object(patch.clone()))?;
    let mut whole = serde_json::to_value(own).unwrap_or_default();
    merge(&mut whole, Value::Object(patch));
    read(whole)
}

/// RFC 7396, section 2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            let _old = target.remove(&name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// What names it, with the members that differ, before and after.
fn differences(mut act: Value, before: &Value, after: &Value) -> Value {
    let (mut old, mut new) = (Map::new(), Map::new());
    for (name, value) in after.as_object().into_iter().flatten() {
        let was = before.get(name).unwrap_or(&Value::Null);
        if was != value {
            let _none = old.insert(name.clone(), was.clone());
            let _none = new.insert(name.clone(), value.clone());
        }
    }
    if let Value::Object(members) = &mut act {
        let _none = members.insert("before".to_owned(), old.into());
        let _none = members.insert("after".to_owned(), new.into());
    }
    act
}

/// A member that may be absent but not `null`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// Tells a member that is `null` from one that is absent.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(value: Value) -> Own {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_patch_sets_clears_and_leaves_alone_and_refuses_what_nobody_knows() {
        let before = own(json!({ "models": ["a"], "requests_per_minute": 5 }));
        let patch = |value: Value| merged(&before, value.as_object().cloned().map(Members));
        let after = patch(json!({ "models": null, "max_output_tokens": 7 })).unwrap();
        assert_eq!(
            after,
            own(json!({ "requests_per_minute": 5, "max_output_tokens": 7 }))
        );
        assert_eq!(patch(json!({})).unwrap(), before);
        assert_eq!(merged(&before, None).unwrap(), Own::default());
        for wrong in [
            json!({ "modles": null }),
            json!({ "models": "a" }),
            json!({ "addresses": ["x"] }),
        ] {
            assert!(patch(wrong).is_err());
        }
    }

    #[test]
    fn the_record_has_the_changed_members_only() {
        let act = differences(
            json!({ "id": "i" }),
            &json!({ "name": "a", "notes": "n", "project": "p" }),
            &json!({ "name": "b", "notes": "n", "project": null }),
        );
        assert_eq!(
            act,
            json!({
                "id": "i",
                "before": { "name": "a", "project": "p" },
                "after": { "name": "b", "project": null },
            })
        );
    }
}
