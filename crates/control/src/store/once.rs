//! Requests that were made under an idempotency key: what they asked, and what was answered.
//!
//! A row is taken before the act and filled after it, so that of two equal requests one acts. Answers lie here
//! without secrets, and for a day.

use super::{Store, StoreFault, read, within};

/// An earlier request of the same actor under the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Earlier {
    /// A digest of what it asked.
    pub(crate) request: Vec<u8>,
    /// Status and body that were answered, without secrets; `None`: it hasn't ended, or was cut.
    pub(crate) answer: Option<(i64, String)>,
}

impl Store {
    /// Takes an idempotency key for a request. `Some`: it was taken already. Keys from before `forget` are free.
    pub(crate) async fn take_once(
        &self,
        (actor, key): (&str, &str),
        request: &[u8],
        (now, forget): (i64, i64),
    ) -> Result<Option<Earlier>, StoreFault> {
        let mut tx = self.begin().await?;
        within!(&mut tx, c => sqlx::query("DELETE FROM once WHERE taken_at < $1")
            .bind(forget).execute(c).await.map(drop))?;
        let taken = within!(&mut tx, c => sqlx::query(
            "INSERT INTO once (actor, idempotency_key, request, taken_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (actor, idempotency_key) DO NOTHING")
            .bind(actor.to_owned()).bind(key.to_owned()).bind(request.to_vec()).bind(now)
            .execute(c).await.map(|done| done.rows_affected()))?;
        tx.commit().await?;
        if taken > 0 {
            return Ok(None);
        }
        let found: Option<(Vec<u8>, Option<i64>, Option<String>)> = read!(self, pool => sqlx::query_as(
            "SELECT request, status, answer FROM once WHERE actor = $1 AND idempotency_key = $2")
            .bind(actor.to_owned()).bind(key.to_owned()).fetch_optional(pool).await)?;
        // Given back in this moment: whoever asks again takes it.
        let (request, status, answer) = found.ok_or(StoreFault::Busy)?;
        Ok(Some(Earlier {
            request,
            answer: status.zip(answer),
        }))
    }

    /// Keeps the answer to a request that took its key.
    pub(crate) async fn answer_once(
        &self,
        (actor, key): (&str, &str),
        status: i64,
        answer: &str,
    ) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        within!(&mut tx, c => sqlx::query(
            "UPDATE once SET status = $3, answer = $4 WHERE actor = $1 AND idempotency_key = $2")
            .bind(actor.to_owned()).bind(key.to_owned()).bind(status).bind(answer.to_owned())
            .execute(c).await.map(drop))?;
        tx.commit().await
    }

    /// Gives a key back whose request did nothing.
    pub(crate) async fn free_once(&self, (actor, key): (&str, &str)) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        within!(&mut tx, c => sqlx::query(
            "DELETE FROM once WHERE actor = $1 AND idempotency_key = $2 AND answer IS NULL")
            .bind(actor.to_owned()).bind(key.to_owned()).execute(c).await.map(drop))?;
        tx.commit().await
    }
}
