//! Everything of one store into another that is empty: how a node moves from SQLite to a server.
//!
//! All in one transaction of the target, so that it is whole or empty whatever ends in between. Sealed values stay
//! sealed as they are: the key-encryption key doesn't move.

use rules::key::Digest;

use super::keys::key_id;
use super::{Store, StoreFault, read, within};

/// How much was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Keys, revoked ones too.
    pub keys: usize,
    /// Projects.
    pub projects: usize,
    /// Days of usage, for each key, project and model one.
    pub usage: usize,
}

type Fact = (String, Vec<u8>);
type SecretOf = (Vec<u8>, String, String, i64, Option<i64>);
type UsageOf = (i64, String, String, String, i64, i64, i64, i64);

impl Store {
    /// Copies everything into `to`. Nobody may write to this store meanwhile: the caller holds its lock.
    ///
    /// # Errors
    /// [`StoreFault::Taken`] when `to` isn't empty.
    pub async fn copy_to(&self, to: &Self) -> Result<Copied, StoreFault> {
        if to.fact("pepper").await?.is_some() || to.count_keys().await? > 0 {
            return Err(StoreFault::Taken);
        }
        let facts: Vec<Fact> = read!(self, pool => sqlx::query_as(
            "SELECT name, value FROM meta WHERE name <> 'node'").fetch_all(pool).await)?;
        let projects = self.projects().await?;
        let keys = self.keys_after(None, u32::MAX).await?;
        let admins = self.admins_whole().await?;
        let secrets: Vec<SecretOf> = read!(self, pool => sqlx::query_as(
            "SELECT digest, key_id, last4, created_at, valid_until FROM digests").fetch_all(pool).await)?;
        let usage: Vec<UsageOf> = read!(self, pool => sqlx::query_as(
            "SELECT day, key_id, project, model, calls, failed, input, output FROM usage")
            .fetch_all(pool).await)?;
        let cursors: Vec<(String, i64, i64)> = read!(self, pool => sqlx::query_as(
            "SELECT chain, seq, offset_bytes FROM cursors").fetch_all(pool).await)?;
        let sealed: Vec<(String, Vec<u8>, i64)> = read!(self, pool => sqlx::query_as(
            "SELECT name, value, changed_at FROM secrets").fetch_all(pool).await)?;
        let heads = self.heads_after("", u32::MAX).await?;
        let copied = Copied {
            keys: keys.len(),
            projects: projects.len(),
            usage: usage.len(),
        };

        let mut tx = to.begin().await?;
        let revision = tx.next_revision().await?;
        for (name, value) in facts {
            within!(&mut tx, c => sqlx::query("INSERT INTO meta (name, value) VALUES ($1, $2)")
                .bind(name).bind(value).execute(c).await.map(drop))?;
        }
        for project in &projects {
            tx.insert_project(project).await?;
        }
        for key in &keys {
            tx.insert_key(key, revision).await?;
        }
        for (admin, digest) in &admins {
            tx.insert_admin(admin, digest).await?;
        }
        for (digest, id, last4, created_at, until) in secrets {
            let id = key_id(&id)?;
            let digest: [u8; 32] = digest
                .try_into()
                .map_err(|_length| StoreFault::Broken(format!("digest of key {id}")))?;
            tx.insert_digest(id, &Digest::from_bytes(digest), &last4, created_at, until)
                .await?;
        }
        for (day, key, project, model, calls, failed, input, output) in usage {
            within!(&mut tx, c => sqlx::query(
                "INSERT INTO usage (day, key_id, project, model, calls, failed, input, output) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
                .bind(day).bind(key).bind(project).bind(model).bind(calls).bind(failed).bind(input).bind(output)
                .execute(c).await.map(drop))?;
        }
        for (chain, seq, offset) in cursors {
            within!(&mut tx, c => sqlx::query(
                "INSERT INTO cursors (chain, seq, offset_bytes) VALUES ($1, $2, $3)")
                .bind(chain).bind(seq).bind(offset).execute(c).await.map(drop))?;
        }
        for head in &heads {
            tx.put_head(head).await?;
        }
        for (name, value, at) in sealed {
            within!(&mut tx, c => sqlx::query(
                "INSERT INTO secrets (name, value, changed_at) VALUES ($1, $2, $3)")
                .bind(name).bind(value).bind(at).execute(c).await.map(drop))?;
        }
        tx.commit().await?;
        Ok(copied)
    }
}
