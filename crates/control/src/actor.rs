//! Who acts: a user of this machine, or an admin token and where it came from; and whose keys he may look after.
//!
//! Decides how a record names him. Made by `api` and by `guan`'s commands, demanded by every act.

use std::net::IpAddr;
use std::sync::Arc;

use rules::chain::Record;
use rules::key::KeyId;

use crate::store::AdminRow;

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    id: String,
    address: Option<IpAddr>,
    /// The roles whose keys he may look after; `None`: all.
    roles: Option<Arc<[String]>>,
    /// When his credential ends, seconds since 1970.
    until: Option<i64>,
}

impl Actor {
    /// A user of this machine, of whom the kernel says so.
    #[must_use]
    pub fn local(uid: u32) -> Self {
        Self {
            id: format!("local:{uid}"),
            address: None,
            roles: None,
            until: None,
        }
    }

    /// Whoever holds an admin token, and where he connects from.
    pub(crate) fn token(row: &AdminRow, address: IpAddr) -> Self {
        Self {
            id: Self::id_of_token(row.id),
            address: Some(address.to_canonical()),
            roles: row.roles.clone().map(Into::into),
            until: row.expires_at,
        }
    }

    /// The name of whoever holds the token of this id.
    pub(crate) fn id_of_token(id: KeyId) -> String {
        format!("admin:{id}")
    }

    /// His name: `local:UID` or `admin:ID`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether he may look after keys of this role.
    pub(crate) fn may_give(&self, role: &str) -> bool {
        self.roles
            .as_ref()
            .is_none_or(|roles| roles.iter().any(|given| given == role))
    }

    /// The roles whose keys he may look after; `None`: all.
    pub(crate) fn roles(&self) -> Option<&[String]> {
        self.roles.as_deref()
    }

    /// Where he connects from.
    pub(crate) const fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// When his credential ends.
    pub(crate) const fn until(&self) -> Option<i64> {
        self.until
    }

    /// Puts him into a record.
    pub(crate) fn sign(&self, record: &mut Record) {
        record.user_id = Some(self.id.clone());
        record.source_ip = self.address.map(|address| address.to_string());
    }
}
