//! Sealed things by name: what a node made for itself and must find again. Only blobs; what opens them is `seal`'s.

use super::keys::Pending;
use super::{Store, StoreFault, read, within};

impl Store {
    /// What is kept under a name.
    pub(crate) async fn sealed(&self, name: &str) -> Result<Option<Vec<u8>>, StoreFault> {
        read!(self, pool => sqlx::query_scalar("SELECT value FROM secrets WHERE name = $1")
            .bind(name)
            .fetch_optional(pool)
            .await)
    }

    /// Keeps a value under a name where `old` stands now (`None`: nothing), at `at`, seconds since 1970; others see it
    /// only after [`Pending::commit`].
    ///
    /// # Errors
    /// [`StoreFault::Taken`] when something else stands there.
    pub(crate) async fn keep_sealed(
        &self,
        name: &str,
        old: Option<&[u8]>,
        new: &[u8],
        at: i64,
    ) -> Result<Pending, StoreFault> {
        let mut tx = self.begin().await?;
        let done = match old {
            None => within!(&mut tx, c => sqlx::query(
                "INSERT INTO secrets (name, value, changed_at) VALUES ($1, $2, $3)")
                .bind(name.to_owned()).bind(new.to_vec()).bind(at)
                .execute(c).await.map(|done| done.rows_affected()))?,
            Some(old) => within!(&mut tx, c => sqlx::query(
                "UPDATE secrets SET value = $3, changed_at = $4 WHERE name = $1 AND value = $2")
                .bind(name.to_owned()).bind(old.to_vec()).bind(new.to_vec()).bind(at)
                .execute(c).await.map(|done| done.rows_affected()))?,
        };
        if done == 1 {
            Ok(Pending::new(tx))
        } else {
            Err(StoreFault::Taken)
        }
    }
}
