//! Calls that a killed process left in its slots: each becomes one `node-died` record at the next start.
//!
//! Called by `guan::wiring` for generations that the supervisor reports dead, before the first request.

use rules::chain;
use rules::measure::{self, Ending, Seen, Tokens};
use rules::snapshot::Key;

use crate::endpoints;
use crate::record::slot::Call;
use crate::record::trail::blank;

/// The record of a call whose process died in the middle of it.
///
/// It is charged by `rules::measure`: what the slot says and 64 tokens, never above the reservation. `key` is who
/// called, if the key is still known.
#[must_use]
pub fn node_died(timestamp: String, call: &Call, key: Option<&Key>) -> chain::Record {
    let seen = Seen {
        forwarded: true,
        reported: None,
        text_events: call.output,
    };
    let reserved = Tokens {
        input: if call.prompt > 0 {
            call.prompt
        } else {
            call.reserved.input
        },
        output: call.reserved.output,
    };
    let charge = measure::settle(Ending::NodeDied, reserved, seen);
    chain::Record {
        reason: Some("node-died".to_owned()),
        user_id: Some(call.key.to_string()),
        role: key.map(|key| key.role.to_string()),
        path: Some(endpoints::path_of(call.endpoint).to_owned()),
        request_id: Some(call.id.to_string()),
        call: Some(chain::Call {
            project: key.and_then(|key| key.project.as_deref().map(str::to_owned)),
            model: Some(call.model.clone()),
            ending: Ending::NodeDied,
            stream: call.stream,
            charged: charge.tokens,
            source: charge.source,
            reserved: call.reserved,
            taken_ns: Some(call.started_ns),
            replica: None,
            attempts: 1,
            first_byte_ns: None,
            request_bytes: 0,
            dropped: Vec::new(),
        }),
        ..blank(timestamp, "model-request", "failure")
    }
}
