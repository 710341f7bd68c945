//! The way of a request, from the accepted connection to the audit record: arrive, check, deliver, record.
//!
//! The order of the modules is the order of the way; `way.rs` shows it on one screen. Reads `rules` and `wire`;
//! never opens the store, never decides who a key is: `control` publishes that, and `guan::wiring` joins the two.
//! One current-thread runtime a core; nothing on the hot path takes a lock that another core holds for long.
#![forbid(unsafe_code)]

pub mod settings;
pub mod state;
pub mod serve;
mod way;
mod endpoints;
mod pages;
mod refuse;
mod body;

pub mod door {
    //! Arrive: connections become requests that have one meaning.
    pub(crate) mod accept;
    pub mod handshake;
    pub(crate) mod framing;
    pub(crate) mod cors;
    pub(crate) mod lend;
}

pub mod check {
    //! Check: who calls, what he may ask for, whether his limits hold.
    pub mod fresh;
    pub mod token;
    pub(crate) mod authenticate;
    pub(crate) mod authorise;
    pub(crate) mod reserve;
    pub(crate) mod admit;
}

mod deliver {
    //! Deliver: a replica, the rebuilt request, the answer event by event.
    pub(crate) mod balance;
    pub(crate) mod forward;
    pub(crate) mod relay;
}

mod upstream {
    //! The client half of HTTP/1.1, towards model servers only; and how they stand.
    pub(crate) mod client;
    pub(crate) mod connect;
    pub(crate) mod framing;
    pub(crate) mod replicas;
}

pub mod limits {
    //! What callers have used up.
    pub(crate) mod addresses;
    pub mod backend;
    pub mod memory;
    pub(crate) mod meter;
    pub mod shared;
}

pub mod record {
    //! Record: the slot while a call runs, the settlement, and the audit record.
    pub mod metrics;
    pub mod scrape;
    pub(crate) mod settle;
    pub mod slot;
    pub mod trail;
    pub mod replay;
}
