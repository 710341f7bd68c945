//! A config file that was read again: judged whole, asked about at the key service, taken up or refused.
//!
//! It decides what a running gateway can take up. The key service is asked beside the gateway's conversation with its
//! supervisor, never in it, and for a bounded time. Called by the wiring.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use control::seal::{Envelope, Kms, SealFault};
use control::store::Store;
use gateway::state::Clock;
use wire::control::{Start, ToSupervisor};

use super::{House, InForce};
use crate::config::reference::Opener;
use crate::config::{self, Config};

/// A file that is good, but for the key service's word on it.
pub(super) struct Asking {
    next: Config,
    digest: String,
    said: Pin<Box<dyn Future<Output = Result<(), String>>>>,
}

/// What the key service says; never, when nobody asks it.
pub(super) async fn said(asking: &mut Option<Asking>) -> Result<(), String> {
    match asking {
        Some(asking) => asking.said.as_mut().await,
        None => std::future::pending().await,
    }
}

impl House {
    /// Judges a file.
    ///
    /// # Errors
    /// The answer that refuses it.
    pub(super) fn judge(
        &self,
        start: &Start,
        text: &str,
        old: &Config,
    ) -> Result<Asking, ToSupervisor> {
        let opener = Opener::Envelope(&self.envelope);
        let next = read_config(start, text, self.clock, opener).map_err(|fault| {
            self.not_taken(ToSupervisor::Refused {
                text: fault.to_string(),
            })
        })?;
        if let Some(why) = only_at_start(old, &next) {
            return Err(self.not_taken(ToSupervisor::NeedsGeneration {
                why: why.to_owned(),
            }));
        }
        let is_new = !next.sealed.is_subset(&old.sealed);
        let question = Question {
            envelope: self.envelope.clone(),
            store: self.store.clone(),
            kms: [old.kms.clone(), next.kms.clone()],
            secrets: Path::new(&start.data).join("secrets"),
        };
        Ok(Asking {
            next,
            digest: super::digest_of(text),
            said: Box::pin(async move { if is_new { question.ask().await } else { Ok(()) } }),
        })
    }

    /// Puts a file in force that the key service has said yes to.
    pub(super) fn take_up(
        &self,
        asked: Asking,
        said: Result<(), String>,
        config: &mut Config,
    ) -> ToSupervisor {
        if let Err(text) = said {
            return self.not_taken(ToSupervisor::Refused { text });
        }
        let next = asked.next;
        self.gateway.take_up(next.settings.clone());
        self.gateway.metrics.tell_config(asked.digest);
        self.in_force.store(Arc::new(InForce::of(&next)));
        self.issuers.send_replace(next.sources.clone());
        *config = next;
        self.gateway.config_stale.store(false, Ordering::Relaxed);
        ToSupervisor::Applied
    }

    /// From now on the file is newer than what runs.
    fn not_taken(&self, answer: ToSupervisor) -> ToSupervisor {
        self.gateway.config_stale.store(true, Ordering::Relaxed);
        answer
    }
}

/// New sealed values are taken only while the key service still opens this store's data key: a node that it would
/// refuse at its next start must not go on to learn new secrets.
struct Question {
    envelope: Envelope,
    store: Store,
    /// Of the config in force, and of the new one.
    kms: [Kms; 2],
    secrets: std::path::PathBuf,
}

impl Question {
    async fn ask(self) -> Result<(), String> {
        let [old, new] = &self.kms;
        let asked = async {
            let mut checked = self.check(new).await;
            if checked.is_err() && new != old {
                // `[kms]` was changed and the data key isn't rewrapped yet.
                checked = self.check(old).await;
            }
            checked
        };
        match tokio::time::timeout(LONGEST_ASKED, asked).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) => Err(format!("the file has new sealed values, and {fault}")),
            Err(_elapsed) => Err(format!(
                "the file has new sealed values, and the key service of [kms] (\"{}\") doesn't answer within {} ms; see `guan secret status`, and try again when it is back",
                new.name(),
                LONGEST_ASKED.as_millis()
            )),
        }
    }

    async fn check(&self, kms: &Kms) -> Result<(), SealFault> {
        self.envelope.check(&self.store, kms, &self.secrets).await
    }
}

/// What a running gateway can't take up.
fn only_at_start(old: &Config, new: &Config) -> Option<&'static str> {
    if old.listen != new.listen {
        return Some("[server] listen has changed: restart `guan serve` to use it");
    }
    if old.admin != new.admin {
        return Some("[admin] listen has changed: restart `guan serve` to use it");
    }
    if old.metrics != new.metrics {
        return Some(
            "[metrics] listen has changed, or what it opens to was given or taken away: restart `guan serve` to use it",
        );
    }
    if old.engines != new.engines {
        return Some("the engines of [[models]] have changed: restart `guan serve` to run them");
    }
    if old.store != new.store {
        return Some("[store] has changed: restart `guan serve` to use it");
    }
    if old.shared != new.shared {
        return Some(
            "[limits] backend, or how it is reached, has changed: restart `guan serve` to use it",
        );
    }
    if old.client_auth != new.client_auth {
        return Some("[tls] client_ca or client_auth has changed: restart `guan serve` to use it");
    }
    if old.audit != new.audit {
        return Some("[audit] has changed: restart `guan serve` to use it");
    }
    None
}

/// Reads and judges a file's text whole.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn read_config(
    start: &Start,
    text: &str,
    clock: Clock,
    opener: Opener<'_>,
) -> Result<Config, config::Faults> {
    let place = config::Place {
        file: Path::new(&start.config_path),
        data: Path::new(&start.data),
        env: &config::environment,
        opener,
        now: clock.unix_seconds(),
    };
    config::check(text, &place)
}

/// How long the key service is asked about a file.
const LONGEST_ASKED: Duration = Duration::from_millis(2500);
