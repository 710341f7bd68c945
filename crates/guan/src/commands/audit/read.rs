//! `guan audit tail` and `guan audit export`: records for people and for programs. They take no lock and judge
//! nothing; what stands in a record is made harmless for a terminal and a spreadsheet before it is shown.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use control::audit_log::files::list;
use control::audit_log::tail::last;
use control::clock::rfc3339_nanos;
use rules::chain::Record;

use super::super::key::{runtime, span};
use super::super::usage::quoted;
use super::super::{Failure, Places};

/// Which records.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only those of this key, token or local user (its id)
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Only those of this action, such as model-request or key-create
    #[arg(long, value_name = "WORD")]
    action: Option<String>,
    /// Only failures and refusals
    #[arg(long)]
    failed: bool,
    /// Only those since then
    #[arg(long, value_name = "TIME", value_parser = span)]
    since: Option<Duration>,
}

/// Options of `guan audit tail`.
#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// How many of the last records
    #[arg(short = 'n', long, default_value_t = 20)]
    lines: usize,
    /// Go on with what is written from now on, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    of: Filter,
    /// Print records as they stand in the log
    #[arg(long)]
    json: bool,
}

/// Options of `guan audit export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    of: Filter,
    /// In which form
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Comma-separated values, a row a record
    Csv,
    /// Lines as they stand in the log
    Jsonl,
}

/// A filter at one time.
struct Wanted<'a> {
    of: &'a Filter,
    since: Option<String>,
}

impl Filter {
    fn now(&self) -> Wanted<'_> {
        let now = i128::from(crate::supervisor::unix_seconds()).saturating_mul(1_000_000_000);
        let since = self.since.map(|since| {
            let since = i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
            rfc3339_nanos(now.saturating_sub(since))
        });
        Wanted { of: self, since }
    }
}

impl Wanted<'_> {
    /// The record, if it is one of those.
    fn take(&self, line: &[u8]) -> Option<Record> {
        let record: Record = serde_json::from_slice(line).ok()?;
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let good = is(&self.of.key, record.user_id.as_deref())
            && is(&self.of.action, Some(&record.action))
            && !(self.of.failed && record.outcome == "success")
            // Texts of one form sort as times do.
            && self.since.as_ref().is_none_or(|since| record.timestamp >= *since);
        good.then_some(record)
    }
}

/// Prints the last records.
pub(super) fn tail(args: &TailArgs, places: &Places) -> Result<(), Failure> {
    let dir = places.data.join("state/audit");
    let unreadable = |cause: io::Error| Failure::new(format!("{}: {cause}", dir.display()));
    let wanted = args.of.now();
    let (found, mut follow) =
        last(&dir, args.lines, |line| wanted.take(line).is_some()).map_err(unreadable)?;
    let mut out = io::stdout().lock();
    let mut show = |line: &[u8]| -> io::Result<()> {
        let Some(record) = wanted.take(line) else {
            return Ok(());
        };
        if args.json {
            out.write_all(line)?;
            return writeln!(out);
        }
        writeln!(out, "{}", words(&record))
    };
    for line in &found {
        show(line)?;
    }
    if !args.follow {
        return Ok(());
    }
    let runtime = runtime()?;
    loop {
        runtime.block_on(tokio::time::sleep(LOOK));
        let mut written = Ok(());
        follow
            .more(|line| {
                if written.is_ok() {
                    written = show(line);
                }
            })
            .map_err(unreadable)?;
        // Whoever read this is gone: that is no failure.
        if written.is_err() {
            return Ok(());
        }
    }
}

/// Writes records to standard output.
pub(super) fn export(args: &ExportArgs, places: &Places) -> Result<(), Failure> {
    let dir = places.data.join("state/audit");
    let unreadable = |cause: io::Error| Failure::new(format!("{}: {cause}", dir.display()));
    let wanted = args.of.now();
    let mut out = BufWriter::new(io::stdout().lock());
    if args.format == Format::Csv {
        write!(out, "{}\r\n", COLUMNS.join(","))?;
    }
    for file in list(&dir).map_err(unreadable)? {
        let mut lines = file.lines().map_err(unreadable)?;
        while let Some((line, whole)) = lines.next_line().map_err(unreadable)? {
            let Some(record) = wanted.take(line).filter(|_| whole) else {
                continue;
            };
            match args.format {
                Format::Jsonl => {
                    out.write_all(line)?;
                    writeln!(out)?;
                }
                Format::Csv => {
                    let cells = row(record).map(|cell| quoted(&cell));
                    write!(out, "{}\r\n", cells.join(","))?;
                }
            }
        }
    }
    Ok(out.flush()?)
}

const COLUMNS: [&str; 21] = [
    "time",
    "action",
    "outcome",
    "reason",
    "status",
    "key",
    "role",
    "project",
    "address",
    "path",
    "model",
    "stream",
    "ending",
    "input_tokens",
    "output_tokens",
    "figures",
    "duration_ms",
    "first_byte_ms",
    "replica",
    "attempts",
    "request_id",
];

fn row(record: Record) -> [String; 21] {
    let call = record.call;
    let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let of_call =
        |get: &dyn Fn(&rules::chain::Call) -> String| call.as_ref().map(get).unwrap_or_default();
    [
        record.timestamp,
        record.action,
        record.outcome,
        record.reason.unwrap_or_default(),
        number(record.status.map(u64::from)),
        record.user_id.unwrap_or_default(),
        record.role.unwrap_or_default(),
        of_call(&|call| call.project.clone().unwrap_or_default()),
        record.source_ip.unwrap_or_default(),
        record.path.unwrap_or_default(),
        of_call(&|call| call.model.clone().unwrap_or_default()),
        of_call(&|call| call.stream.to_string()),
        of_call(&|call| word(&call.ending)),
        of_call(&|call| call.charged.input.to_string()),
        of_call(&|call| call.charged.output.to_string()),
        of_call(&|call| word(&call.source)),
        number(record.duration_ns.map(|ns| ns / 1_000_000)),
        of_call(&|call| number(call.first_byte_ns.map(|ns| ns / 1_000_000))),
        of_call(&|call| call.replica.clone().unwrap_or_default()),
        of_call(&|call| call.attempts.to_string()),
        record.request_id.unwrap_or_default(),
    ]
}

/// A closed word as records carry it.
fn word(of: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(of).unwrap_or_default();
    value.as_str().map(str::to_owned).unwrap_or_default()
}

/// One record on one line, for a terminal.
fn words(record: &Record) -> String {
    let mut line = format!("{} {} {}", record.timestamp, record.action, record.outcome);
    let mut add = |label: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            line.push_str(label);
            line.push_str(value);
        }
    };
    add(" ", record.reason.as_deref());
    add(" by ", record.user_id.as_deref());
    add(" role ", record.role.as_deref());
    add(" from ", record.source_ip.as_deref());
    let status = record.status.map(|status| status.to_string());
    add(" status ", status.as_deref());
    if let Some(call) = &record.call {
        add(" project ", call.project.as_deref());
        add(" model ", call.model.as_deref());
        add(" ", Some(&word(&call.ending)));
        let tokens = format!("{}+{}", call.charged.input, call.charged.output);
        add(" tokens ", Some(&tokens));
    }
    let took = record
        .duration_ns
        .map(|ns| format!("{} ms", ns / 1_000_000));
    add(" in ", took.as_deref());
    add(" ", record.request_id.as_deref());
    let act = record.act.as_ref().map(ToString::to_string);
    add(" ", act.as_deref());
    harmless(&line)
}

/// A text that moves no cursor and turns no line around.
fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if letter.is_control() || turns {
            out.extend(letter.escape_unicode());
        } else {
            out.push(letter);
        }
    }
    out
}

/// How late a record is shown.
const LOOK: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_record_reaches_a_terminal_as_an_order() {
        let shown = harmless("a\n\u{1b}[31mb\u{202e}c\0\r\u{9b}ü");
        assert_eq!(shown, "a\\u{a}\\u{1b}[31mb\\u{202e}c\\u{0}\\u{d}\\u{9b}ü");
    }
}
