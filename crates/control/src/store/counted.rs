//! All of usage, and how far each file was counted, as both stood at one moment: what the log is compared with.

use std::collections::BTreeMap;

use super::usage::{Cursor, Sums, UsageKey};
use super::{Store, StoreFault, read};

type Row = (i64, String, String, String, i64, i64, i64, i64);
type Whole = (BTreeMap<String, Cursor>, BTreeMap<UsageKey, Sums>);

impl Store {
    /// Cursors by file, and sums. One statement, so that no count falls in between.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub(crate) async fn whole_usage(&self) -> Result<Whole, StoreFault> {
        let rows: Vec<Row> = read!(self, pool => sqlx::query_as(
            "SELECT CAST(-1 AS BIGINT), chain, '', '', seq, offset_bytes, CAST(0 AS BIGINT), CAST(0 AS BIGINT) FROM cursors UNION ALL \
             SELECT day, key_id, project, model, calls, failed, input, output FROM usage")
            .fetch_all(pool).await)?;
        let (mut cursors, mut sums) = (BTreeMap::new(), BTreeMap::new());
        for (day, key, project, model, a, b, c, d) in rows {
            if day < 0 {
                cursors.insert(key, Cursor { seq: a, offset: b });
                continue;
            }
            let of = UsageKey {
                day,
                key,
                project,
                model,
            };
            let sum = Sums {
                calls: a,
                failed: b,
                input_tokens: c,
                output_tokens: d,
            };
            sums.insert(of, sum);
        }
        Ok((cursors, sums))
    }
}
