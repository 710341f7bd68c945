//! Admin tokens: credentials of people and programs who look after this server. No key, and no way to a model.
//!
//! Decides what a token may be made with: nobody grants what he doesn't hold. Kept as keys are, as a keyed digest.
//! Called by `api`.

use std::collections::BTreeSet;
use std::fmt;

use aws_lc_rs::rand;
use rules::chain::Record;
use rules::key::{KeyId, check_admin, mint_admin};
use rules::snapshot::Roles;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Keys, KeysFault, check_name, check_role, check_times, last_letters};
use crate::actor::Actor;
use crate::audit_log;
use crate::clock;
use crate::store::{AdminRow, Right, StoreFault};

/// What a new admin token shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAdmin {
    /// Whose it is: 1 to 128 printable characters.
    pub name: String,
    /// What it may do.
    pub right: Right,
    /// The roles whose keys it may look after; `None`: all.
    pub roles: Option<Vec<String>>,
    /// From when it is no longer valid, seconds since 1970.
    pub expires_at: Option<i64>,
}

/// A token that was made. Its text is here and nowhere else.
pub struct CreatedAdmin {
    /// The token itself, to be shown once; wiped when dropped.
    pub text: Zeroizing<String>,
    /// What is kept of it.
    pub row: AdminRow,
}

impl fmt::Debug for CreatedAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedAdmin")
            .field("row", &self.row)
            .finish_non_exhaustive()
    }
}

/// Why a credential opens nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The reason, for the record only; and whose it was, if it was a token once.
    Because(&'static str, Option<KeyId>),
    /// Nobody can say.
    Unknown(StoreFault),
}

impl Keys {
    /// Makes an admin token; it ends no later than that of whoever asks.
    ///
    /// # Errors
    /// [`KeysFault`]; then none was made.
    pub async fn create_admin(
        &self,
        new: NewAdmin,
        roles: &Roles,
        actor: &Actor,
    ) -> Result<CreatedAdmin, KeysFault> {
        check_name(&new.name, "name")?;
        let now = clock::seconds((self.clock)());
        check_times(None, new.expires_at, Some(now))?;
        for role in new.roles.iter().flatten() {
            check_role(role, roles)?;
        }
        if new.roles.is_some() && new.right != Right::Operator {
            return Err(KeysFault::Own {
                what: "roles",
                why: "are for operators: a viewer makes no keys, an owner may make all".to_owned(),
            });
        }
        if let Some(until) = actor.until()
            && new.expires_at.is_none_or(|at| at > until)
        {
            return Err(KeysFault::Own {
                what: "expires_at",
                why: format!(
                    "must not be after {}, when your own token ends",
                    clock::rfc3339_seconds(until)
                ),
            });
        }
        let mut random = Zeroizing::new([0; 44]);
        rand::fill(random.as_mut()).map_err(|_unspecified| KeysFault::NoRandom)?;
        let minted = mint_admin(&random);
        let row = AdminRow {
            id: minted.id,
            name: new.name,
            right: new.right,
            roles: new.roles,
            created_at: now,
            created_by: actor.id().to_owned(),
            expires_at: new.expires_at,
            revoked_at: None,
            last_used: None,
            last4: last_letters(&minted.text),
        };
        let digest = self.pepper.digest_of_admin(&minted.text);
        let pending = self.store.add_admin(&row, &digest).await?;
        self.record_then_commit(self.admin_act("admin-create", &row, actor), pending)
            .await?;
        Ok(CreatedAdmin {
            text: minted.text,
            row,
        })
    }

    /// At most `limit` tokens after the token `after`, and whether there are more.
    ///
    /// # Errors
    /// [`KeysFault::Store`], [`KeysFault::NoAdmin`].
    pub async fn admins(
        &self,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<(Vec<AdminRow>, bool), KeysFault> {
        if let Some(after) = after
            && self.store.admin(after).await?.is_none()
        {
            return Err(KeysFault::NoAdmin(after.to_string()));
        }
        let mut rows = self
            .store
            .admins_after(after, limit.saturating_add(1))
            .await?;
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > most;
        rows.truncate(most);
        Ok((rows, has_more))
    }

    /// Takes a token back, and with `with_made` all that were made with it, and with those. Gives its row, whether it
    /// was taken back already, and the tokens made with it that were good until now (and still are without
    /// `with_made`). It holds before it is recorded.
    ///
    /// # Errors
    /// [`KeysFault`], as with a key.
    pub async fn revoke_admin(
        &self,
        id: &str,
        with_made: bool,
        actor: &Actor,
    ) -> Result<(AdminRow, bool, Vec<AdminRow>), KeysFault> {
        let unknown = || KeysFault::NoAdmin(id.chars().take(12).collect());
        let id = KeyId::parse(id).map_err(|_shape| unknown())?;
        // The root first: from then on it makes no more.
        let (row, already) = self.revoke_one(id, actor).await?;
        let mut made = self.made_with(id).await?;
        if with_made {
            for one in &mut made {
                *one = self.revoke_one(one.id, actor).await?.0;
            }
        }
        Ok((row, already, made))
    }

    /// Good tokens that were made with this one, or with one that was.
    async fn made_with(&self, id: KeyId) -> Result<Vec<AdminRow>, KeysFault> {
        let rows = self.store.admins_after(None, u32::MAX).await?;
        let now = clock::seconds((self.clock)());
        let mut makers = BTreeSet::from([Actor::id_of_token(id)]);
        // Of one second, a maker may stand after what he made.
        loop {
            let before = makers.len();
            let made = rows.iter().filter(|row| makers.contains(&row.created_by));
            let made: Vec<String> = made.map(|row| Actor::id_of_token(row.id)).collect();
            makers.extend(made);
            if makers.len() == before {
                break;
            }
        }
        let good =
            |row: &AdminRow| row.revoked_at.is_none() && row.expires_at.is_none_or(|at| at > now);
        let made = rows
            .into_iter()
            .filter(|row| makers.contains(&row.created_by) && good(row));
        Ok(made.collect())
    }

    async fn revoke_one(&self, id: KeyId, actor: &Actor) -> Result<(AdminRow, bool), KeysFault> {
        let unknown = || KeysFault::NoAdmin(id.to_string());
        let now = clock::seconds((self.clock)());
        let (row, first) = self
            .store
            .revoke_admin(id, now)
            .await?
            .ok_or_else(unknown)?;
        let mut record = self.admin_act("admin-revoke", &row, actor);
        if !first {
            record.reason = Some("already-revoked".to_owned());
        }
        let recorded = audit_log::record(&self.audit, record).await;
        recorded.map_err(|_unwritten| KeysFault::Unrecorded)?;
        Ok((row, !first))
    }

    /// The token of this text, if it is valid now. Each look is at the store: a revoked one is refused everywhere at
    /// once.
    pub(crate) async fn admin_by(&self, text: &str) -> Result<AdminRow, Refused> {
        if check_admin(text).is_err() {
            return Err(Refused::Because("not-an-admin-token", None));
        }
        let digest = self.pepper.digest_of_admin(text);
        let row = self.store.admin_of(&digest).await;
        let row = row.map_err(Refused::Unknown)?;
        let row = row.ok_or(Refused::Because("unknown-admin-token", None))?;
        let now = clock::seconds((self.clock)());
        if row.revoked_at.is_some() {
            return Err(Refused::Because("revoked-admin-token", Some(row.id)));
        }
        if row.expires_at.is_some_and(|at| at <= now) {
            return Err(Refused::Because("expired-admin-token", Some(row.id)));
        }
        if row
            .last_used
            .is_none_or(|at| at <= now.saturating_sub(crate::store::USED_EVERY))
            && let Err(fault) = self.store.admin_used(row.id, now).await
        {
            tracing::debug!(%fault, "an admin token's last use isn't noted");
        }
        Ok(row)
    }

    fn admin_act(&self, action: &str, row: &AdminRow, actor: &Actor) -> Record {
        let mut record = audit_log::blank(&self.clock, action);
        actor.sign(&mut record);
        record.act = Some(json!({
            "id": row.id,
            "name": row.name,
            "right": row.right,
            "roles": row.roles,
            "expires_at": row.expires_at.map(clock::rfc3339_seconds),
        }));
        record
    }
}
