//! Acts on secrets: sealing a value for the config file, and wrapping the data key anew.
//!
//! Decides that both are recorded before they count and that neither is done while the provider is away. It never
//! keeps, logs or records a value. Called by `api` (while the server runs) and by `guan`'s commands (while none does).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use rules::chain::{Entry, PublicKey, Record};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::actor::Actor;
use crate::audit_log::{self, AuditFault};
use crate::clock::{self, Clock};
use crate::seal::file::{FILE_NAME, Kek};
use crate::seal::{Envelope, FACT, Health, Kms, KmsState, Provider, SealFault};
use crate::store::{Store, StoreFault};

/// `[kms]` of the config file as it is now.
pub type KmsNow = Arc<dyn Fn() -> Kms + Send + Sync>;

/// What acts on secrets.
#[derive(Clone)]
pub struct Secrets {
    envelope: Envelope,
    store: Store,
    audit: Sender<Entry>,
    clock: Clock,
    kms: KmsNow,
    folder: PathBuf,
    health: Health,
}

/// How secrets are kept, and whether the key service is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Status {
    /// The provider that wrapped the data key.
    pub provider: String,
    /// Its key.
    pub key_id: String,
    /// The key's version, where the provider says it.
    pub version: Option<String>,
    /// The data key's id.
    pub data_key: String,
    /// `[kms]` names another provider or key: a rewrap is due.
    pub rewrap_due: bool,
    /// As the key service was last seen.
    #[serde(flatten)]
    pub kms: KmsState,
}

/// How a data key was wrapped, and how it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Rewrapped {
    /// The provider now.
    pub provider: String,
    /// Its key.
    pub key_id: String,
    /// The key's version, where the provider says it.
    pub version: Option<String>,
    /// The provider before.
    pub old_provider: String,
    /// Its key.
    pub old_key_id: String,
    /// That key's version.
    pub old_version: Option<String>,
}

/// Why an act failed; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretsFault {
    /// Not a value that can be sealed.
    #[error(
        "a secret must be 1 to 16384 printable ASCII characters without blanks, since it becomes part of a header"
    )]
    Value,
    /// Another node has wrapped the data key anew in the same moment.
    #[error("another node has just wrapped the data key anew; look at [kms] there, then try again")]
    Changed,
    /// The provider, or what it gave.
    #[error(transparent)]
    Seal(#[from] SealFault),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditFault),
}

impl Secrets {
    /// With everything an act touches; `folder` is `secrets/`.
    #[must_use]
    pub fn new(
        envelope: Envelope,
        store: Store,
        audit: Sender<Entry>,
        clock: Clock,
        kms: KmsNow,
        folder: PathBuf,
    ) -> Self {
        // Whoever has an envelope has just had it opened.
        let health = Health::opened(clock::seconds(clock()));
        Self {
            health,
            envelope,
            store,
            audit,
            clock,
            kms,
            folder,
        }
    }

    /// A value for the config file: `sealed:…`.
    ///
    /// # Errors
    /// [`SecretsFault`].
    pub async fn seal(&self, plain: &str, actor: &Actor) -> Result<String, SecretsFault> {
        if !(1..=LONGEST).contains(&plain.len()) || !plain.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(SecretsFault::Value);
        }
        self.look().await?;
        let sealed = self.envelope.seal_value(plain)?;
        let said = json!({ "data_key": self.envelope.id() });
        audit_log::record(&self.audit, self.act("secret-seal", actor, said)).await?;
        Ok(sealed)
    }

    /// What seals, and where it lies.
    pub(crate) const fn parts(&self) -> (&Envelope, &Store) {
        (&self.envelope, &self.store)
    }

    /// The public key that the audit log is judged by.
    ///
    /// # Errors
    /// [`SecretsFault`].
    pub async fn audit_key(&self) -> Result<PublicKey, SecretsFault> {
        let now = clock::seconds((self.clock)());
        let signer = audit_log::key::signer(&self.store, &self.envelope, now).await?;
        Ok(signer.public())
    }

    /// What is known of the key service.
    #[must_use]
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// Asks the key service whether it still opens the data key, and notes what it says.
    ///
    /// # Errors
    /// [`SealFault`].
    pub async fn look(&self) -> Result<(), SealFault> {
        let (kms, at) = ((self.kms)(), clock::seconds((self.clock)()));
        let seen = self.envelope.check(&self.store, &kms, &self.folder).await;
        self.health.note(&seen, at);
        seen
    }

    /// Looks again and again, each time a while (`every`, more often while it is away) and up to a tenth more after
    /// the look before: nodes that started together don't ask together.
    pub async fn watch(self, every: impl Fn() -> Duration) -> ! {
        loop {
            let (looked, share) = (Instant::now(), share());
            // In short steps: what the config file says meanwhile holds at once.
            loop {
                let pause = if self.health.state().reachable {
                    every()
                } else {
                    every().min(WHILE_AWAY)
                };
                let left = with_jitter(pause, share).saturating_sub(looked.elapsed());
                if left.is_zero() {
                    break;
                }
                tokio::time::sleep(left.min(STEP)).await;
            }
            // What it gives is noted, which is the point.
            drop(self.look().await);
        }
    }

    /// How secrets are kept now.
    ///
    /// # Errors
    /// [`SecretsFault`].
    pub async fn status(&self) -> Result<Status, SecretsFault> {
        let kept = self.store.fact(FACT).await?.ok_or(SealFault::NoDataKey)?;
        let kept = crate::seal::read(&kept)?;
        let kms = (self.kms)();
        let rewrap_due = kms.name() != kept.provider
            || kms
                .provider()
                .is_ok_and(|provider| provider.key_id() != kept.key_id);
        Ok(Status {
            provider: kept.provider,
            key_id: kept.key_id,
            version: kept.version,
            data_key: self.envelope.id(),
            rewrap_due,
            kms: self.health.state(),
        })
    }

    /// Wraps the data key with what `[kms]` names now: another provider, another key, or a newer version of it. What
    /// is sealed under the data key stays as it is, and the servers that have it go on.
    ///
    /// # Errors
    /// [`SecretsFault`]; then the old wrapping holds.
    pub async fn rewrap(&self, actor: &Actor) -> Result<Rewrapped, SecretsFault> {
        let old = self.store.fact(FACT).await?.ok_or(SealFault::NoDataKey)?;
        let before = crate::seal::read(&old)?;
        let kms = (self.kms)();
        let provider: Box<dyn Provider> = match &kms {
            // Back to a key file: it is made. One that is lost is not: that would hide the loss.
            Kms::File(folder)
                if before.provider != kms.name() && !folder.join(FILE_NAME).exists() =>
            {
                Box::new(Kek::create(folder)?)
            }
            Kms::File(_) | Kms::Vault(_) | Kms::Aws(_) | Kms::Aliyun(_) | Kms::Pkcs11(_) => {
                kms.provider()?
            }
        };
        let wrapped = self.envelope.wrapped_by(&*provider).await;
        let seen = wrapped.as_ref().map(drop).map_err(Clone::clone);
        self.health.note(&seen, clock::seconds((self.clock)()));
        let wrapped = wrapped?;
        let new = crate::seal::written(&wrapped);
        let pending = self.store.change_facts(&[], &[(FACT, &old, &new)]).await;
        let pending = pending.map_err(|fault| match fault {
            StoreFault::Taken => SecretsFault::Changed,
            other => other.into(),
        })?;
        let done = Rewrapped {
            provider: wrapped.provider,
            key_id: wrapped.key_id,
            version: wrapped.version,
            old_provider: before.provider,
            old_key_id: before.key_id,
            old_version: before.version,
        };
        let said = serde_json::to_value(&done).unwrap_or_default();
        let record = self.act("secret-rewrap", actor, said);
        // Recorded first: what has no record can't be; a record of what never came to be gets a second one.
        audit_log::record(&self.audit, record.clone()).await?;
        if let Err(fault) = pending.commit().await {
            let mut failed = record;
            "failure".clone_into(&mut failed.outcome);
            failed.reason = Some("not-stored".to_owned());
            let told = audit_log::record(&self.audit, failed).await;
            tracing::warn!(
                told = told.is_ok(),
                "a rewrap was recorded and then not stored"
            );
            return Err(fault.into());
        }
        tracing::info!(provider = %done.provider, key = %done.key_id, "the data key is wrapped anew");
        Ok(done)
    }

    fn act(&self, action: &str, actor: &Actor, said: Value) -> Record {
        let mut record = audit_log::blank(&self.clock, action);
        actor.sign(&mut record);
        record.act = Some(said);
        record
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("envelope", &self.envelope)
            .finish_non_exhaustive()
    }
}

/// A random byte. Without randomness all nodes ask at the same time, which does no harm.
fn share() -> u8 {
    let mut byte = [0_u8];
    let _drawn = rand::fill(&mut byte);
    let [byte] = byte;
    byte
}

/// A pause and up to a tenth of it more.
fn with_jitter(pause: Duration, share: u8) -> Duration {
    let tenth = u64::try_from(pause.as_millis() / 10).unwrap_or(u64::MAX);
    pause.saturating_add(Duration::from_millis(
        tenth.saturating_mul(u64::from(share)) / 256,
    ))
}

/// How late a change of the pause may be seen.
const STEP: Duration = Duration::from_secs(1);
/// How often a key service that is away is asked, at least.
const WHILE_AWAY: Duration = Duration::from_secs(10);
/// No header carries more, bytes.
const LONGEST: usize = 16 << 10;

#[cfg(test)]
mod tests;
