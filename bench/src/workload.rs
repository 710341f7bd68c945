//! The workloads: what a client sends, what the model server says, how the load comes, and what it may cost.

use std::time::Duration;

/// What the model server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// An answer of 50 tokens in one piece, at once.
    Whole,
    /// 50 events, each in a write of its own, as fast as they go.
    Burst,
    /// 50 events, one each 20 ms; each says when it was sent.
    Paced,
    /// An event each second, until the client leaves.
    Forever,
}

/// How the load comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// So many connections, each with its next request as soon as the answer is there. `spread`: they begin evenly
    /// over that time.
    Closed { connections: u32, spread: Duration },
    /// A new connection for each request.
    Fresh { connections: u32 },
    /// Requests at half the rate that the slower of the two can serve, whether answers come or not.
    HalfLoad { connections: u32 },
    /// So many streams at the same time, held until their memory was looked at.
    Live { connections: u32 },
}

/// What is compared with nginx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// CPU time a request.
    Cpu,
    /// Memory of all processes, at its highest.
    Memory,
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Workload {
    /// How it is asked for; a first letter asks for all that begin with it.
    pub(crate) name: &'static str,
    /// What it is, for the table.
    pub(crate) what: &'static str,
    /// The model server's part.
    pub(crate) script: Script,
    /// Bytes of the prompt.
    pub(crate) prompt: usize,
    /// The client's part.
    pub(crate) pattern: Pattern,
    /// Requests a round.
    pub(crate) requests: u32,
    /// Hybrid post-quantum key exchange, where the server has it; both use X25519 otherwise.
    pub(crate) hybrid: bool,
    /// Figures that have a goal: what, at most, and better.
    pub(crate) goals: &'static [(Figure, f64, f64)],
}

const SECOND: Duration = Duration::from_secs(1);
/// 64 words.
const SHORT: usize = 64 * 6;

/// All of them.
pub(crate) const WORKLOADS: [Workload; 9] = [
    Workload {
        name: "A",
        what: "50-token answer, 64-word prompt, 32 connections",
        script: Script::Whole,
        prompt: SHORT,
        pattern: Pattern::Closed {
            connections: 32,
            spread: Duration::ZERO,
        },
        requests: 30_000,
        hybrid: false,
        goals: &[(Figure::Cpu, 1.0, 0.85)],
    },
    Workload {
        name: "B",
        what: "50 events as fast as possible, 32 connections",
        script: Script::Burst,
        prompt: SHORT,
        pattern: Pattern::Closed {
            connections: 32,
            spread: Duration::ZERO,
        },
        requests: 6_000,
        hybrid: false,
        goals: &[(Figure::Cpu, 0.85, 0.70)],
    },
    Workload {
        name: "C",
        what: "500 streams, 50 events, one each 20 ms",
        script: Script::Paced,
        prompt: SHORT,
        pattern: Pattern::Closed {
            connections: 500,
            spread: SECOND,
        },
        requests: 2_500,
        hybrid: false,
        goals: &[(Figure::Cpu, 0.85, 0.75), (Figure::Memory, 0.55, 0.40)],
    },
    Workload {
        name: "D",
        what: "a new TLS connection a request, X25519",
        script: Script::Whole,
        prompt: SHORT,
        pattern: Pattern::Fresh { connections: 16 },
        requests: 3_000,
        hybrid: false,
        goals: &[(Figure::Cpu, 0.55, 0.45)],
    },
    Workload {
        name: "D-hybrid",
        what: "the same, X25519MLKEM768 (nginx has X25519 only)",
        script: Script::Whole,
        prompt: SHORT,
        pattern: Pattern::Fresh { connections: 16 },
        requests: 3_000,
        hybrid: true,
        goals: &[],
    },
    Workload {
        name: "E16",
        what: "prompt of 16 KiB, 32 connections",
        script: Script::Whole,
        prompt: 16 << 10,
        pattern: Pattern::Closed {
            connections: 32,
            spread: Duration::ZERO,
        },
        requests: 15_000,
        hybrid: false,
        goals: &[(Figure::Cpu, 1.0, 0.85)],
    },
    Workload {
        name: "E256",
        what: "prompt of 256 KiB, 32 connections",
        script: Script::Whole,
        prompt: 256 << 10,
        pattern: Pattern::Closed {
            connections: 32,
            spread: Duration::ZERO,
        },
        requests: 2_000,
        hybrid: false,
        goals: &[(Figure::Cpu, 0.75, 0.60)],
    },
    Workload {
        name: "F",
        what: "2,000 live streams, an event a second",
        script: Script::Forever,
        prompt: SHORT,
        pattern: Pattern::Live { connections: 2_000 },
        requests: 2_000,
        hybrid: false,
        goals: &[(Figure::Memory, 1.0, 1.0)],
    },
    Workload {
        name: "L",
        what: "50 events as fast as possible, at half load: time to the first",
        script: Script::Burst,
        prompt: SHORT,
        pattern: Pattern::HalfLoad { connections: 64 },
        requests: 6_000,
        hybrid: false,
        goals: &[],
    },
];

impl Workload {
    /// Whether the client asks for a stream.
    pub(crate) const fn is_stream(&self) -> bool {
        !matches!(self.script, Script::Whole)
    }

    /// Whether an unmediated path to the model server is measured too.
    pub(crate) const fn has_direct(&self) -> bool {
        matches!(self.script, Script::Paced) || matches!(self.pattern, Pattern::HalfLoad { .. })
    }

    /// The JSON that a client sends.
    pub(crate) fn body(&self) -> String {
        let words = "guard meter relay words the model reads before it answers ";
        let prompt: String = words.chars().cycle().take(self.prompt).collect();
        format!(
            r#"{{"model":"{}","stream":{},"max_tokens":256,"temperature":0.7,"messages":[{{"role":"system","content":"You are terse."}},{{"role":"user","content":"{prompt}"}}]}}"#,
            self.name,
            self.is_stream(),
        )
    }
}
