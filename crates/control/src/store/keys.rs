//! Rows of keys and of their secrets' digests.

use rules::key::{Digest, KeyId};
use rules::policy::Own;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Store, StoreFault, Tx, read, within};

/// The columns of [`Columns`], in its order.
macro_rules! columns {
    () => {
        "id, name, role, project, created_at, not_before, expires_at, revoked_at, rotated_at, last_used, created_by, last4, own, notes, version"
    };
}

/// A key as it is kept and shown: never its text, never its digest. Times are seconds since 1970, RFC 3339 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyRow {
    /// Its public name.
    #[schemars(with = "String")]
    pub id: KeyId,
    /// What its owner calls it.
    pub name: String,
    /// The role's name.
    pub role: String,
    /// Who pays.
    pub project: Option<String>,
    /// When it was made.
    #[serde(with = "crate::clock::text")]
    #[schemars(with = "crate::clock::Stamp")]
    pub created_at: i64,
    /// Before which it isn't valid yet.
    #[serde(with = "crate::clock::text_or_null", default)]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    pub not_before: Option<i64>,
    /// From when it is no longer valid.
    #[serde(with = "crate::clock::text_or_null")]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    pub expires_at: Option<i64>,
    /// When it was taken back.
    #[serde(with = "crate::clock::text_or_null")]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    pub revoked_at: Option<i64>,
    /// When its newest secret was made.
    #[serde(with = "crate::clock::text")]
    #[schemars(with = "crate::clock::Stamp")]
    pub rotated_at: i64,
    /// When a call of it was last settled; written in batches, so a minute late.
    #[serde(with = "crate::clock::text_or_null", default)]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    pub last_used: Option<i64>,
    /// Who made it: `local:UID` or `admin:ID`.
    pub created_by: String,
    /// The last four letters of its newest text, to tell keys apart by eye.
    pub last4: String,
    /// What it narrows of its role.
    #[serde(default)]
    pub own: Own,
    /// What its owner wants to remember.
    #[serde(default)]
    pub notes: String,
    /// Raised by each change, so that two who change it at once find out.
    #[serde(default)]
    pub version: i64,
}

/// One secret of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRow {
    /// The last four letters of its text.
    pub last4: String,
    /// When it was made.
    #[serde(with = "crate::clock::text")]
    #[schemars(with = "crate::clock::Stamp")]
    pub created_at: i64,
    /// From when it is no longer valid, before the key itself isn't.
    #[serde(with = "crate::clock::text_or_null")]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    pub valid_until: Option<i64>,
}

/// A secret and its key, as the snapshot takes them.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) digest: Digest,
    pub(crate) valid_until: Option<i64>,
    pub(crate) id: KeyId,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) project: Option<String>,
    pub(crate) not_before: Option<i64>,
    pub(crate) expires_at: Option<i64>,
    pub(crate) revoked: bool,
    /// JSON; `{}` most of the time.
    pub(crate) own: String,
}

/// Something that is written but not there yet. Dropped, it never was.
#[derive(Debug)]
pub(crate) struct Pending(Tx);

impl Pending {
    pub(super) const fn new(tx: Tx) -> Self {
        Self(tx)
    }

    /// Makes it there.
    pub(crate) async fn commit(self) -> Result<(), StoreFault> {
        self.0.commit().await
    }
}

impl Store {
    /// Writes new keys, all or none, that others see only after [`Pending::commit`].
    pub(crate) async fn add_keys(&self, new: &[(KeyRow, Digest)]) -> Result<Pending, StoreFault> {
        let mut tx = self.begin().await?;
        let revision = tx.next_revision().await?;
        for (row, digest) in new {
            tx.insert_key(row, revision).await?;
            tx.insert_digest(row.id, digest, &row.last4, row.created_at, None)
                .await?;
        }
        Ok(Pending(tx))
    }

    /// Writes a new secret of a key; the ones before end at `until` if they don't end earlier. `None`: no such key,
    /// or a revoked one.
    pub(crate) async fn add_secret(
        &self,
        id: KeyId,
        digest: &Digest,
        last4: &str,
        now: i64,
        until: i64,
    ) -> Result<Option<(KeyRow, Pending)>, StoreFault> {
        let mut tx = self.begin().await?;
        let revision = tx.next_revision().await?;
        let text = id.as_str().to_owned();
        let changed = within!(&mut tx, c => sqlx::query(
            "UPDATE keys SET rotated_at = $2, last4 = $3, revision = $4, version = version + 1 \
             WHERE id = $1 AND revoked_at IS NULL")
            .bind(text.clone()).bind(now).bind(last4.to_owned()).bind(revision)
            .execute(c).await.map(|done| done.rows_affected()))?;
        if changed == 0 {
            return Ok(None);
        }
        let _ended = within!(&mut tx, c => sqlx::query(
            "UPDATE digests SET valid_until = $2 WHERE key_id = $1 AND (valid_until IS NULL OR valid_until > $2)")
            .bind(text).bind(until).execute(c).await.map(|done| done.rows_affected()))?;
        tx.insert_digest(id, digest, last4, now, None).await?;
        let row = tx.key(id).await?;
        Ok(row.map(|row| (row, Pending(tx))))
    }

    /// Writes what may be different in a key, if it is still of `row`'s version: others see it, and the version after
    /// it, only after [`Pending::commit`]. `None`: it was changed or revoked meanwhile, or there is no such key.
    pub(crate) async fn change_key(&self, row: &KeyRow) -> Result<Option<Pending>, StoreFault> {
        let mut tx = self.begin().await?;
        let revision = tx.next_revision().await?;
        let own = json(&row.own)?;
        let changed = within!(&mut tx, c => sqlx::query(
            "UPDATE keys SET name = $3, role = $4, project = $5, not_before = $6, expires_at = $7, own = $8, \
             notes = $9, revision = $10, version = version + 1 \
             WHERE id = $1 AND version = $2 AND revoked_at IS NULL")
            .bind(row.id.as_str().to_owned())
            .bind(row.version)
            .bind(row.name.clone())
            .bind(row.role.clone())
            .bind(row.project.clone())
            .bind(row.not_before)
            .bind(row.expires_at)
            .bind(own)
            .bind(row.notes.clone())
            .bind(revision)
            .execute(c).await.map(|done| done.rows_affected()))?;
        Ok((changed > 0).then_some(Pending(tx)))
    }

    /// At most `limit` keys, oldest first, those after the key `after`; none if there is no such key.
    pub(crate) async fn keys_after(
        &self,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<KeyRow>, StoreFault> {
        let rows: Vec<Columns> = match after {
            None => read!(self, pool => sqlx::query_as(concat!("SELECT ", columns!(),
                " FROM keys ORDER BY created_at, id LIMIT $1"))
                .bind(i64::from(limit)).fetch_all(pool).await)?,
            Some(id) => read!(self, pool => sqlx::query_as(concat!("SELECT ", columns!(),
                " FROM keys WHERE (created_at, id) > (SELECT created_at, id FROM keys WHERE id = $1) ",
                "ORDER BY created_at, id LIMIT $2"))
                .bind(id.as_str().to_owned()).bind(i64::from(limit)).fetch_all(pool).await)?,
        };
        rows.into_iter().map(row).collect()
    }

    /// At most `limit` keys whose id begins so, letter for letter.
    pub(crate) async fn keys_named(
        &self,
        prefix: &str,
        limit: u32,
    ) -> Result<Vec<KeyRow>, StoreFault> {
        let rows: Vec<Columns> = read!(self, pool => sqlx::query_as(concat!("SELECT ", columns!(),
            " FROM keys WHERE substr(id, 1, length($1)) = $1 ORDER BY created_at, id LIMIT $2"))
            .bind(prefix.to_owned()).bind(i64::from(limit)).fetch_all(pool).await)?;
        rows.into_iter().map(row).collect()
    }

    /// The secrets of a key, newest first.
    pub(crate) async fn secrets_of(&self, id: KeyId) -> Result<Vec<SecretRow>, StoreFault> {
        let rows: Vec<(String, i64, Option<i64>)> = read!(self, pool => sqlx::query_as(
            "SELECT last4, created_at, valid_until FROM digests WHERE key_id = $1 \
             ORDER BY valid_until IS NOT NULL, created_at DESC, valid_until DESC")
            .bind(id.as_str().to_owned()).fetch_all(pool).await)?;
        let secrets = rows
            .into_iter()
            .map(|(last4, created_at, valid_until)| SecretRow {
                last4,
                created_at,
                valid_until,
            });
        Ok(secrets.collect())
    }

    /// Takes a key back at `now` unless it was; with `role`: only while it is of that one. `true`: by this call.
    /// `None`: no such key.
    pub(crate) async fn revoke(
        &self,
        id: KeyId,
        role: Option<&str>,
        now: i64,
    ) -> Result<Option<(KeyRow, bool)>, StoreFault> {
        let mut tx = self.begin().await?;
        let revision = tx.next_revision().await?;
        let changed = within!(&mut tx, c => sqlx::query(
            "UPDATE keys SET revoked_at = $2, revision = $3, version = version + 1 WHERE id = $1 AND revoked_at IS NULL")
            .bind(id.as_str().to_owned()).bind(now).bind(revision)
            .execute(c).await.map(|done| done.rows_affected()))?;
        let key = tx.key(id).await?;
        let key = key.filter(|key| role.is_none_or(|role| key.role == role));
        if key.is_some() {
            tx.commit().await?;
        }
        Ok(key.map(|key| (key, changed > 0)))
    }

    /// How many keys there are, revoked ones too.
    pub(crate) async fn count_keys(&self) -> Result<i64, StoreFault> {
        read!(self, pool => sqlx::query_scalar("SELECT count(*) FROM keys").fetch_one(pool).await)
    }

    /// Keys of a role that are neither revoked nor over at `now`, and whose newest secret was made by `made_by`.
    pub(crate) async fn count_older(
        &self,
        role: &str,
        made_by: i64,
        now: i64,
    ) -> Result<i64, StoreFault> {
        read!(self, pool => sqlx::query_scalar(
            "SELECT count(*) FROM keys WHERE role = $1 AND rotated_at <= $2 AND revoked_at IS NULL \
             AND (expires_at IS NULL OR expires_at > $3)")
            .bind(role).bind(made_by).bind(now).fetch_one(pool).await)
    }

    /// Secrets of keys that were changed after `revision`.
    pub(crate) async fn seen_since(&self, revision: i64) -> Result<Vec<Seen>, StoreFault> {
        let rows: Vec<SeenColumns> = read!(self, pool => sqlx::query_as(
            "SELECT d.digest, d.valid_until, k.id, k.name, k.role, k.project, k.not_before, k.expires_at, \
             k.revoked_at IS NOT NULL, k.own \
             FROM keys k JOIN digests d ON d.key_id = k.id WHERE k.revision > $1")
            .bind(revision).fetch_all(pool).await)?;
        rows.into_iter().map(seen).collect()
    }
}

impl Tx {
    pub(super) async fn insert_key(
        &mut self,
        row: &KeyRow,
        revision: i64,
    ) -> Result<(), StoreFault> {
        let own = json(&row.own)?;
        within!(self, c => sqlx::query(
            "INSERT INTO keys (id, name, role, project, created_at, not_before, expires_at, revoked_at, rotated_at, \
             last_used, created_by, last4, own, notes, revision, version) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)")
            .bind(row.id.as_str().to_owned())
            .bind(row.name.clone())
            .bind(row.role.clone())
            .bind(row.project.clone())
            .bind(row.created_at)
            .bind(row.not_before)
            .bind(row.expires_at)
            .bind(row.revoked_at)
            .bind(row.rotated_at)
            .bind(row.last_used)
            .bind(row.created_by.clone())
            .bind(row.last4.clone())
            .bind(own)
            .bind(row.notes.clone())
            .bind(revision)
            .bind(row.version)
            .execute(c)
            .await
            .map(drop))
    }

    pub(super) async fn insert_digest(
        &mut self,
        id: KeyId,
        digest: &Digest,
        last4: &str,
        now: i64,
        until: Option<i64>,
    ) -> Result<(), StoreFault> {
        within!(self, c => sqlx::query(
            "INSERT INTO digests (digest, key_id, last4, created_at, valid_until) VALUES ($1, $2, $3, $4, $5)")
            .bind(digest.bytes().to_vec())
            .bind(id.as_str().to_owned())
            .bind(last4.to_owned())
            .bind(now)
            .bind(until)
            .execute(c)
            .await
            .map(drop))
    }

    async fn key(&mut self, id: KeyId) -> Result<Option<KeyRow>, StoreFault> {
        let found: Option<Columns> = within!(self, c => sqlx::query_as(concat!("SELECT ", columns!(),
            " FROM keys WHERE id = $1"))
            .bind(id.as_str().to_owned()).fetch_optional(c).await)?;
        found.map(row).transpose()
    }

    pub(super) async fn note_uses(&mut self, uses: &[(KeyId, i64)]) -> Result<(), StoreFault> {
        for (id, at) in uses {
            // No new revision: requests don't read it.
            within!(self, c => sqlx::query(
                "UPDATE keys SET last_used = $2 WHERE id = $1 AND (last_used IS NULL OR last_used < $2)")
                .bind(id.as_str().to_owned()).bind(*at).execute(c).await.map(drop))?;
        }
        Ok(())
    }
}

type Columns = (
    String,
    String,
    String,
    Option<String>,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    i64,
    Option<i64>,
    String,
    String,
    String,
    String,
    i64,
);

type SeenColumns = (
    Vec<u8>,
    Option<i64>,
    String,
    String,
    String,
    Option<String>,
    Option<i64>,
    Option<i64>,
    bool,
    String,
);

fn row(columns: Columns) -> Result<KeyRow, StoreFault> {
    let (
        id,
        name,
        role,
        project,
        created_at,
        not_before,
        expires_at,
        revoked_at,
        rotated_at,
        last_used,
        created_by,
        last4,
        own,
        notes,
        version,
    ) = columns;
    let id = key_id(&id)?;
    Ok(KeyRow {
        id,
        name,
        role,
        project,
        created_at,
        not_before,
        expires_at,
        revoked_at,
        rotated_at,
        last_used,
        created_by,
        last4,
        own: read_own(&own)?,
        notes,
        version,
    })
}

fn seen(columns: SeenColumns) -> Result<Seen, StoreFault> {
    let (digest, valid_until, id, name, role, project, not_before, expires_at, revoked, own) =
        columns;
    let id = key_id(&id)?;
    let digest: [u8; 32] = digest
        .try_into()
        .map_err(|_length| StoreFault::Broken(format!("digest of key {id}")))?;
    Ok(Seen {
        digest: Digest::from_bytes(digest),
        valid_until,
        id,
        name,
        role,
        project,
        not_before,
        expires_at,
        revoked,
        own,
    })
}

pub(super) fn key_id(text: &str) -> Result<KeyId, StoreFault> {
    KeyId::parse(text).map_err(|_shape| StoreFault::Broken("a key's id".to_owned()))
}

/// What a key or project narrows, as it is kept.
pub(super) fn json(own: &Own) -> Result<String, StoreFault> {
    serde_json::to_string(own).map_err(|fault| StoreFault::Failed(fault.to_string()))
}

/// The same, read back.
pub(crate) fn read_own(text: &str) -> Result<Own, StoreFault> {
    serde_json::from_str(text).map_err(|fault| StoreFault::Broken(format!("own limits: {fault}")))
}
