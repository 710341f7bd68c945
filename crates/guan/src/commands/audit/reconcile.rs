//! `guan audit reconcile`: adds the log up again and holds the store's usage against it. Takes no lock: both are read
//! as they stand.

use std::path::PathBuf;

use clap::Args;
use control::reconcile::{Reconciled, reconcile};
use control::store::Store;

use super::super::key::{columns, runtime};
use super::super::{Failure, Places, config, remark, say};
use super::verify::gathered;

/// Options of `guan audit reconcile`.
#[derive(Debug, Args)]
pub(super) struct ReconcileArgs {
    /// Chain files, or folders with them, of all nodes that share the store [default: state/audit of the data folder]
    files: Vec<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) fn run(args: &ReconcileArgs, places: &Places) -> Result<(), Failure> {
    let target = config::glance(places)?
        .store(&places.data)
        .map_err(Failure::new)?;
    let audit = places.data.join("state/audit");
    let asked = if args.files.is_empty() {
        std::slice::from_ref(&audit)
    } else {
        &args.files
    };
    let files = gathered(asked)?;
    let done = runtime()?.block_on(async {
        let store = Store::open(&target).await.map_err(|e| e.to_string())?;
        let done = reconcile(&store, &files).await.map_err(|e| e.to_string());
        store.close().await;
        done
    });
    let done = done.map_err(Failure::new)?;
    if args.json {
        say(&serde_json::to_string(&done).unwrap_or_default())?;
    } else {
        show(&done)?;
    }
    if done.differ.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(
            "log and store differ; judge the log first (`guan audit verify`)",
        ))
    }
}

fn show(done: &Reconciled) -> Result<(), Failure> {
    say(&format!(
        "{} files, {} counted records: {} rows of usage agree, {} differ",
        done.files,
        done.counted,
        done.agree,
        done.differ.len()
    ))?;
    if done.uncounted > 0 {
        say(&format!("{} records aren't counted yet", done.uncounted))?;
    }
    if !done.differ.is_empty() {
        let head = [
            "DAY", "KEY", "PROJECT", "MODEL", "CALLS", "FAILED", "INPUT", "OUTPUT",
        ];
        let mut table = vec![head.map(str::to_owned)];
        table.extend(done.differ.iter().map(|it| {
            let (log, store) = (it.log, it.store);
            let both = |log: i64, store: i64| format!("{log} / {store}");
            [
                it.day.clone(),
                it.key.clone(),
                it.project.clone(),
                it.model.clone(),
                both(log.calls, store.calls),
                both(log.failed, store.failed),
                both(log.input_tokens, store.input_tokens),
                both(log.output_tokens, store.output_tokens),
            ]
        }));
        say(&columns(&table))?;
        remark("guan: log / store");
    }
    if !done.absent.is_empty() {
        remark(&format!(
            "guan: {} files that were counted aren't here ({}, …): where the store has more than the log, that is taken to be why. Name the folders of all nodes to judge by all of it",
            done.absent.len(),
            done.absent.first().map_or("", String::as_str)
        ));
    }
    Ok(())
}
