//! Credentials that weren't valid, by address: who guesses keys is slowed, and the store is left in peace.
//!
//! Decides whether one more failure is looked at. Keyed by what outsiders choose, so the table is bounded: when a
//! shard is full, addresses that have recovered are forgotten, and newcomers share one bucket. Only callers whose
//! credential isn't valid ever come here. Called by `check::authenticate`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rules::limit::{Cell, Limit};

use crate::record::trail::network;

const SHARDS: usize = 16;

/// Addresses of one shard that have a bucket of their own.
const ADDRESSES: usize = 4096;

/// Between two walks over a full shard, nanoseconds.
const SWEEP_EVERY: u64 = 1_000_000_000;

/// Failures of all addresses.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    addresses: HashMap<IpAddr, Cell>,
    /// For those that find no place.
    others: Option<Cell>,
    swept: u64,
}

impl Failures {
    /// Whether an address (IPv6: its /64) may fail once more at `now` (nanoseconds since 1970).
    ///
    /// # Errors
    /// When it may again.
    pub(crate) fn look(&self, address: IpAddr, rate: u32, now: u64) -> Result<(), Duration> {
        let limit = Limit::per_minute(rate.into());
        // Taken from a copy: only failures count.
        self.with(address, now, &limit, false, |cell| {
            cell.clone().take(now / 1000, &limit, 1)
        })
        .map_err(Duration::from_micros)
    }

    /// Counts a failure.
    pub(crate) fn count(&self, address: IpAddr, rate: u32, now: u64) {
        let limit = Limit::per_minute(rate.into());
        self.with(address, now, &limit, true, |cell| {
            // Whether it fits was asked in `look`; here it is only counted.
            cell.take(now / 1000, &limit, 1).ok();
        });
    }

    fn with<T>(
        &self,
        address: IpAddr,
        now: u64,
        limit: &Limit,
        insert: bool,
        act: impl FnOnce(&mut Cell) -> T,
    ) -> T {
        let address = network(address);
        let [first, ..] = &self.shards;
        let shard = self.shards.get(shard_of(address)).unwrap_or(first);
        // A panic elsewhere can't leave a bucket half changed.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let full = shard.addresses.len() >= ADDRESSES;
        let Shard {
            addresses,
            others,
            swept,
        } = &mut *shard;
        if let Some(cell) = addresses.get_mut(&address) {
            return act(cell);
        }
        if full && now.saturating_sub(*swept) >= SWEEP_EVERY {
            *swept = now;
            addresses.retain(|_, cell| !cell.is_idle(now / 1000, limit));
        }
        if addresses.len() >= ADDRESSES {
            act(others.get_or_insert_with(|| Cell::new(limit)))
        } else if insert {
            act(addresses.entry(address).or_insert_with(|| Cell::new(limit)))
        } else {
            act(&mut Cell::new(limit))
        }
    }
}

/// Neighbours lie apart; who fills one shard on purpose shares a bucket with himself.
fn shard_of(address: IpAddr) -> usize {
    let bits = match address {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        // `network` has cleared the lower half.
        IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 64).unwrap_or_default(),
    };
    usize::try_from(bits.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn an_address_fails_so_often_and_recovers_and_its_neighbour_is_another() {
        let (failures, rate) = (Failures::default(), 60_u32);
        let (one, two) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        for _ in 0..60 {
            failures.look(one, rate, S).unwrap();
            failures.count(one, rate, S);
        }
        assert_eq!(failures.look(one, rate, S), Err(Duration::from_secs(1)));
        assert_eq!(failures.look(two, rate, S), Ok(()));
        assert_eq!(failures.look(one, rate, 2 * S), Ok(()));
        // A /64 is one caller.
        let in_64 = |low: u128| IpAddr::V6((0x2001_0db8_u128 << 96 | low).into());
        for low in 0..60 {
            failures.count(in_64(low), rate, S);
        }
        assert!(failures.look(in_64(1 << 63), rate, S).is_err());
    }

    #[test]
    fn a_million_addresses_make_a_table_that_stays_small_and_end_in_a_penalty() {
        let (failures, rate) = (Failures::default(), 60_u32);
        for n in 0..1_000_000_u32 {
            failures.count(IpAddr::V4(n.into()), rate, S);
        }
        let size = |failures: &Failures| -> usize {
            let shards = failures.shards.iter();
            shards.map(|s| s.lock().unwrap().addresses.len()).sum()
        };
        assert_eq!(size(&failures), SHARDS * ADDRESSES);
        assert!(failures.look([200, 0, 0, 1].into(), rate, S).is_err());
        // A minute later all have recovered, and newcomers have places of their own.
        failures.count([200, 0, 0, 1].into(), rate, 61 * S);
        assert!(size(&failures) < SHARDS * ADDRESSES);
        failures.look([200, 0, 0, 1].into(), rate, 62 * S).unwrap();
    }
}
