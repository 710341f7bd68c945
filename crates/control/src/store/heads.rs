//! The last signed checkpoint of each audit chain.

use rules::chain::Checkpoint;

use super::{Store, StoreFault, Tx, read, within};

type Row = (String, i64, String, String, String, String);

impl Store {
    /// Keeps a chain's checkpoint, unless a later one is there.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub(crate) async fn keep_head(&self, head: &Checkpoint) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        tx.put_head(head).await?;
        tx.commit().await
    }

    /// The last signed checkpoint of each chain, by name: at most `limit` of those after `after`.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub(crate) async fn heads_after(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreFault> {
        let rows: Vec<Row> = read!(self, pool => sqlx::query_as(
            "SELECT chain, seq, head, signed_at, signed_by, signature FROM audit_heads \
             WHERE chain > $1 ORDER BY chain LIMIT $2")
            .bind(after.to_owned())
            .bind(i64::from(limit))
            .fetch_all(pool).await)?;
        let rows = rows
            .into_iter()
            .map(|(chain, seq, head, at, key, signature)| Checkpoint {
                chain,
                seq: u64::try_from(seq).unwrap_or(0),
                head,
                at,
                key,
                signature,
            });
        Ok(rows.collect())
    }
}

impl Tx {
    /// The same inside a transaction.
    pub(crate) async fn put_head(&mut self, head: &Checkpoint) -> Result<(), StoreFault> {
        let seq = i64::try_from(head.seq).unwrap_or(i64::MAX);
        within!(self, c => sqlx::query(
            "INSERT INTO audit_heads (chain, seq, head, signed_at, signed_by, signature) \
             VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (chain) DO UPDATE SET seq = excluded.seq, head = excluded.head, \
             signed_at = excluded.signed_at, signed_by = excluded.signed_by, signature = excluded.signature \
             WHERE audit_heads.seq < excluded.seq")
            .bind(head.chain.clone())
            .bind(seq)
            .bind(head.head.clone())
            .bind(head.at.clone())
            .bind(head.key.clone())
            .bind(head.signature.clone())
            .execute(c)
            .await
            .map(drop))
    }
}
