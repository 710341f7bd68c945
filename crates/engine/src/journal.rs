//! Where llama.cpp's own lines go: errors to stderr, one plain line each, the rest nowhere (its
//! warnings are about files, not about what an operator can change). Keeps the first error, so
//! that a failed load can say why. It never sees a request's text. Set up by `main`.

use std::fmt::Debug;
use std::io::{self, Write as _};
use std::sync::Mutex;

use llama_cpp_2::{LogOptions, send_logs_to_tracing};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static FIRST_ERROR: Mutex<Option<String>> = Mutex::new(None);

/// Sends llama.cpp's log here.
pub(crate) fn open() {
    // a second call would find it set already, which is as good
    drop(tracing::subscriber::set_global_default(Journal));
    send_logs_to_tracing(LogOptions::default());
}

/// Writes one line to stderr.
pub(crate) fn note(line: &str) {
    // nobody is left to tell if stderr is gone
    drop(writeln!(io::stderr().lock(), "guan-engine: {line}"));
}

/// The first error llama.cpp reported since the last call.
pub(crate) fn first_error() -> Option<String> {
    FIRST_ERROR.lock().ok().and_then(|mut first| first.take())
}

#[derive(Debug)]
struct Journal;

impl Subscriber for Journal {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        *about.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        // the crate asks nobody before it sends
        if !self.enabled(event.metadata()) {
            return;
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        let text = line.0.trim();
        if text.is_empty() {
            return;
        }
        note(text);
        if let Ok(mut first) = FIRST_ERROR.lock() {
            // the first of a chain names the cause, the later ones only that it failed
            first.get_or_insert_with(|| without_origin(text).to_owned());
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// `llama_model_load: error loading model: x` → `x`.
fn without_origin(text: &str) -> &str {
    text.rsplit_once("error loading model: ")
        .map_or(text, |(_, cause)| cause)
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0.push_str(&format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0.push_str(value);
        }
    }
}
