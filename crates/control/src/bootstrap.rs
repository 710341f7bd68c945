//! The data folder: made whole on the first start, opened at each.
//!
//! It decides in which order things are made so that a cut leaves either nothing of worth or a whole folder.
//! `state/unfinished` stands from before the first file until after `state/ready`; only what lies beside an
//! `unfinished` mark and a database without a key is ever removed again. Called by `guan init` and at each start.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::rand;
use rules::chain::Signer;
use rules::key::{KeyId, Pepper};
use rules::policy::Role;
use zeroize::Zeroizing;

use crate::actor::Actor;
use crate::audit_log::{self, AuditFault, AuditSpec, Fsync};
use crate::certificates::{self, CertificateFault, self_signed};
use crate::clock::{self, Clock};
use crate::folder;
use crate::keys::{Keys, KeysFault, NewKey};
use crate::publish::Publisher;
use crate::seal::file::{self, Kek};
use crate::seal::{self, Envelope, FACT, Kms, Made, Name, PEPPER, SealFault};
use crate::store::{Store, StoreFault, Target};

/// What the first start made. The key is shown once and kept nowhere.
pub struct FirstStart {
    /// The first key's text: role `admin`.
    pub key: Zeroizing<String>,
    /// Its public name.
    pub key_id: KeyId,
    /// The certificate's SHA-256, `AB:CD:…`.
    pub fingerprint: String,
    /// This node's id.
    pub node: String,
}

impl std::fmt::Debug for FirstStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FirstStart")
            .field("key_id", &self.key_id)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// What a data folder gives when it is opened.
#[derive(Debug)]
pub struct Opened {
    /// The database.
    pub store: Store,
    /// What secrets are sealed with.
    pub envelope: Envelope,
    /// What keys are hashed under.
    pub pepper: Pepper,
    /// This node's id.
    pub node: String,
    /// What signs the audit log.
    pub signer: Arc<Signer>,
}

/// Why a data folder can't be made or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapFault {
    /// It is there already.
    #[error(
        "{0} is a finished data folder already; nothing was changed. Start it with `guan serve`, or give another folder"
    )]
    AlreadyMade(PathBuf),
    /// Something of a data folder is there, but nothing says that it was a first start that was cut.
    #[error(
        "{0} is there, but its folder isn't a finished data folder. If you are restoring a backup, restore state/ and secrets/ whole; if you want a new folder, move it away first. Nothing was changed"
    )]
    NotEmpty(PathBuf),
    /// A first start was cut after its key was made and before it was shown.
    #[error(
        "the first start was cut just before it could show its key. The data folder is whole now: type `guan key create --name NAME --role admin` for a key, and `guan key list` and `guan key revoke` for the one that was never shown"
    )]
    KeyNeverShown,
    /// Not a fault: the store had keys of other nodes already, and this folder is whole now.
    #[error(
        "node {0} joins the nodes that share this store; their keys work here, and no new one was made"
    )]
    Joined(String),
    /// The store is another node's and its key-encryption key isn't here.
    #[error(
        "{store} holds the keys of other nodes, and {path} isn't here to open its secrets. Copy secrets/kek from a node that serves (mode 400), then try again. Nothing was changed"
    )]
    NoKek {
        /// Which store.
        store: String,
        /// Where the key belongs.
        path: PathBuf,
    },
    /// There is no data folder yet.
    #[error(
        "{0} isn't a data folder yet. Type `guan init`, or `guan serve`, which does that first"
    )]
    NotMade(PathBuf),
    /// A first start was cut.
    #[error(
        "{0} was left half-made by a first start that was cut. Type `guan init`, or `guan serve`, which makes it anew"
    )]
    HalfMade(PathBuf),
    /// A file or folder can't be made, read or written.
    #[error(
        "{path}: {cause}. Check that this user owns the data folder and that its disk isn't full"
    )]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// A place where a folder belongs is something else, or somebody else's.
    #[error("{path}: {what}. Move it away or give it to the user that runs guan")]
    Place {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A fact that the first start wrote is missing.
    #[error(
        "the database has no {0}: it isn't the one that belongs to this data folder. Restore state/ and secrets/ from the same backup"
    )]
    NoFact(&'static str),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// The key that secrets are sealed with, or what it opens.
    #[error(transparent)]
    Seal(#[from] SealFault),
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditFault),
    /// The first key.
    #[error(transparent)]
    Key(#[from] KeysFault),
}

/// Makes a data folder: folders, data key, certificate, database, first admin key. Refuses one that is there; makes
/// anew one that was cut. `names` go into the certificate. Whoever calls holds the data folder's lock.
///
/// # Errors
/// [`BootstrapFault`].
pub async fn init(
    data: &Path,
    names: &[String],
    target: &Target,
    kms: &Kms,
    clock: &Clock,
) -> Result<FirstStart, BootstrapFault> {
    let place = Place::new(data);
    if is_ready(data) {
        return Err(BootstrapFault::AlreadyMade(data.to_path_buf()));
    }
    // Before anything is written: a wrong name must not leave a half-made folder.
    let certificate = self_signed::make(names, clock::seconds(clock()))?;
    if exists(&place.unfinished)? {
        place.clear().await?;
    } else if let Some(there) = place.found(target)? {
        return Err(BootstrapFault::NotEmpty(there));
    }
    let joins = match target {
        Target::Sqlite(_) => false,
        Target::Postgres(server) => place.joins(&server.url, target, kms).await?,
    };
    // A key service that doesn't answer must not leave a half-made folder either.
    let mut made = match kms {
        Kms::File(_) => None,
        Kms::Vault(_) | Kms::Aws(_) | Kms::Aliyun(_) | Kms::Pkcs11(_) => {
            if joins {
                None
            } else {
                Some(Envelope::make(&*kms.provider()?).await?)
            }
        }
    };
    place.make_folders(data)?;
    if let Kms::File(secrets) = kms
        && !joins
    {
        let kek = if exists(&secrets.join(file::FILE_NAME))? {
            Kek::read(secrets)?
        } else {
            Kek::create(secrets)?
        };
        made = Some(Envelope::make(&kek).await?);
    }
    write(
        &place.secrets.join(certificates::CHAIN),
        0o400,
        certificate.chain.as_bytes(),
    )?;
    let (node, created) = Box::pin(make_database(
        &place,
        (target, kms),
        made,
        &certificate,
        clock,
    ))
    .await?;
    place.finish()?;
    let Some(created) = created else {
        return Err(BootstrapFault::Joined(node));
    };
    Ok(FirstStart {
        key: created.text,
        key_id: created.id,
        fingerprint: certificates::fingerprint_sha256(&certificate.der),
        node,
    })
}

/// Whether `data` is a finished data folder.
#[must_use]
pub fn is_ready(data: &Path) -> bool {
    Place::new(data).ready.is_file()
}

/// Opens a finished data folder.
///
/// # Errors
/// [`BootstrapFault`].
pub async fn open(data: &Path, target: &Target, kms: &Kms) -> Result<Opened, BootstrapFault> {
    let place = Place::new(data);
    if !is_ready(data) {
        let half_made = exists(&place.unfinished)?;
        let data = data.to_path_buf();
        return Err(if half_made {
            BootstrapFault::HalfMade(data)
        } else {
            BootstrapFault::NotMade(data)
        });
    }
    if let Target::Sqlite(file) = target
        && !exists(file)?
    {
        // SQLite would make an empty one, in which no key is valid.
        return Err(BootstrapFault::NoFact("file"));
    }
    let store = Box::pin(Store::open(target)).await?;
    let (envelope, plain) = Box::pin(Envelope::open(&store, kms, &place.secrets))
        .await?
        .ok_or(BootstrapFault::NoFact("pepper"))?;
    let pepper = <&[u8; 32]>::try_from(plain.as_slice())
        .map(Pepper::new)
        .map_err(|_length| SealFault::Tampered)?;
    let node = match place.node()? {
        Some(node) => node,
        None => store
            .fact(NODE)
            .await?
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or(BootstrapFault::NoFact("node id"))?,
    };
    let now = clock::seconds((clock::system())());
    let signer = Box::pin(audit_log::key::signer(&store, &envelope, now));
    let signer = Arc::new(signer.await?);
    Ok(Opened {
        store,
        envelope,
        pepper,
        node,
        signer,
    })
}

/// Keeps this node's id in the data folder: a store of many nodes can't say which of them this is.
///
/// # Errors
/// [`BootstrapFault::File`].
pub fn remember_node(data: &Path, node: &str) -> Result<(), BootstrapFault> {
    let place = Place::new(data);
    match place.node()? {
        Some(_) => Ok(()),
        None => write(&place.state.join(NODE), 0o600, node.as_bytes()),
    }
}

/// Writes the first key to `secrets/first-key` (mode 0400), for a start without a terminal. Gives the path.
///
/// # Errors
/// [`BootstrapFault::File`], also when there is one already.
pub fn write_first_key(secrets: &Path, text: &str) -> Result<PathBuf, BootstrapFault> {
    let path = secrets.join(FIRST_KEY);
    let line = Zeroizing::new(format!("{text}\n"));
    write(&path, 0o400, line.as_bytes())?;
    Ok(path)
}

/// `None`: the store has keys of other nodes already.
async fn make_database(
    place: &Place,
    (target, kms): (&Target, &Kms),
    made: Option<Made>,
    certificate: &self_signed::Pem,
    clock: &Clock,
) -> Result<(String, Option<crate::keys::Created>), BootstrapFault> {
    let store = Store::open(target).await?;
    let mut pepper = Zeroizing::new([0; 32]);
    let mut letters = [0; 12];
    rand::fill(pepper.as_mut())
        .and_then(|()| rand::fill(&mut letters))
        .map_err(|_unspecified| SealFault::NoRandom)?;
    // A name, not a secret: the small bias does no harm.
    let node: String = letters
        .iter()
        .filter_map(|byte| BASE62.get(usize::from(*byte % 62)))
        .map(|&letter| char::from(letter))
        .collect();
    let made_at = clock::rfc3339_nanos(clock());
    if store.is_shared() {
        // A store of many nodes can't say which of them this is.
        write(&place.state.join(NODE), 0o600, node.as_bytes())?;
        if let Some((envelope, _pepper)) = Envelope::open(&store, kms, &place.secrets).await? {
            keep_pair(&store, &envelope, &node, certificate, clock).await?;
            store.close().await;
            return Ok((node, None));
        }
    }
    let Made { envelope, fact } = made.ok_or(BootstrapFault::NoFact("pepper"))?;
    let sealed = envelope.seal(PEPPER, pepper.as_ref())?;
    let mut facts: Vec<(&str, &[u8])> = vec![
        (FACT, &fact),
        (PEPPER, &sealed),
        ("made_at", made_at.as_bytes()),
    ];
    if !store.is_shared() {
        facts.push((NODE, node.as_bytes()));
    }
    // All or none: of two nodes that begin at the same time one makes the secrets, the other is refused and joins
    // when it is started again.
    store.add_facts(&facts).await?;
    // Before the first key: from then on the folder counts as whole.
    keep_pair(&store, &envelope, &node, certificate, clock).await?;

    let now = clock::seconds(clock());
    let signer = Box::pin(audit_log::key::signer(&store, &envelope, now)).await?;
    let (to, log) = audit_log::open(AuditSpec {
        dir: place.audit.clone(),
        node: node.clone(),
        generation: 0,
        clock: Arc::clone(clock),
        fsync: Fsync::Each,
        signer: Arc::new(signer),
        checkpoint_every: audit_log::CHECKPOINT_EVERY,
        rotate: audit_log::Rotate::default(),
    })?;
    let heads = log.heads();
    let keys = Keys::new(
        store.clone(),
        Pepper::new(&pepper),
        Publisher::nobody(store.clone()),
        to,
        Arc::clone(clock),
    );
    let first = NewKey {
        name: "first key".to_owned(),
        role: ADMIN.to_owned(),
        ..NewKey::default()
    };
    let actor = Actor::local(rustix::process::geteuid().as_raw());
    let created = keys.create(first, &Role::defaults(), &actor).await;
    // The last sender: the chain ends.
    drop(keys);
    let closed = log.join();
    audit_log::heads::keep_one(&store, heads.borrow().clone()).await;
    store.close().await;
    let created = created?;
    if !closed {
        return Err(AuditFault::Unwritten.into());
    }
    Ok((node, Some(created)))
}

/// The node's private key lies in no file: sealed, in the store, with its certificate.
async fn keep_pair(
    store: &Store,
    envelope: &Envelope,
    node: &str,
    certificate: &self_signed::Pem,
    clock: &Clock,
) -> Result<(), BootstrapFault> {
    let name = Name::TlsPair {
        node: node.to_owned(),
    };
    let pem = Zeroizing::new(format!("{}{}", certificate.chain, *certificate.key));
    let now = clock::seconds(clock());
    let kept = envelope
        .keep(store, &name, None, pem.as_bytes(), now)
        .await?;
    Ok(kept.commit().await?)
}

/// Where everything lies in a data folder.
struct Place {
    state: PathBuf,
    audit: PathBuf,
    secrets: PathBuf,
    database: PathBuf,
    ready: PathBuf,
    unfinished: PathBuf,
}

impl Place {
    fn new(data: &Path) -> Self {
        let state = data.join("state");
        Self {
            audit: state.join("audit"),
            secrets: data.join("secrets"),
            database: state.join("guan.db"),
            ready: state.join("ready"),
            unfinished: state.join("unfinished"),
            state,
        }
    }

    fn kek(&self) -> PathBuf {
        self.secrets.join(file::FILE_NAME)
    }

    /// This node's id, where the store can't say it.
    fn node(&self) -> Result<Option<String>, BootstrapFault> {
        let path = self.state.join(NODE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(none) if none.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(at(&path, &cause)),
        }
    }

    /// Whether the store has keys of other nodes already; then `kms` must open it.
    async fn joins(&self, url: &str, target: &Target, kms: &Kms) -> Result<bool, BootstrapFault> {
        let store = Store::open(target).await?;
        let found = async {
            if store.fact(PEPPER).await?.is_none() {
                return Ok(false);
            }
            let kept = store.fact(FACT).await?;
            let kept = kept.map(|bytes| seal::read(&bytes)).transpose()?;
            let by_file = kept.is_none_or(|wrapped| wrapped.provider == kms.name());
            if matches!(kms, Kms::File(_)) && by_file && !exists(&self.kek())? {
                return Err(BootstrapFault::NoKek {
                    store: url.to_owned(),
                    path: self.kek(),
                });
            }
            let opened = Envelope::open(&store, kms, &self.secrets).await?;
            Ok(opened.is_some())
        };
        let found = found.await;
        store.close().await;
        found
    }

    fn finish(&self) -> Result<(), BootstrapFault> {
        write(&self.ready, 0o600, READY)?;
        fs::remove_file(&self.unfinished)
            .and_then(|()| folder::sync(&self.state))
            .map_err(|cause| at(&self.unfinished, &cause))
    }

    /// Files that a first start makes, in the order in which they may be removed again.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = vec![
            self.state.join("guan.db-wal"),
            self.state.join("guan.db-shm"),
            self.database.clone(),
            self.state.join(NODE),
        ];
        match fs::read_dir(&self.audit) {
            Ok(entries) => {
                for entry in entries {
                    files.push(entry?.path());
                }
            }
            Err(none) if none.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
        for name in [
            FIRST_KEY,
            certificates::KEY,
            certificates::CHAIN,
            file::FILE_NAME,
        ] {
            files.push(self.secrets.join(name));
        }
        Ok(files)
    }

    /// The first file of a data folder that is there.
    fn found(&self, target: &Target) -> Result<Option<PathBuf>, BootstrapFault> {
        // Whoever joins other nodes brings their key-encryption key.
        let may_be_there = matches!(target, Target::Postgres(_)).then(|| self.kek());
        for path in self.files().map_err(|cause| at(&self.audit, &cause))? {
            if may_be_there.as_ref() != Some(&path) && exists(&path)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Removes what a cut first start left, unless its database has a key: then the folder is whole.
    async fn clear(&self) -> Result<(), BootstrapFault> {
        if exists(&self.database)? {
            let store = Store::open(&Target::Sqlite(self.database.clone())).await?;
            let keys = store.count_keys().await;
            store.close().await;
            if keys? > 0 {
                write(&self.ready, 0o600, READY)?;
                fs::remove_file(&self.unfinished).map_err(|cause| at(&self.unfinished, &cause))?;
                return Err(BootstrapFault::KeyNeverShown);
            }
        }
        for path in self.files().map_err(|cause| at(&self.audit, &cause))? {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(none) if none.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => return Err(at(&path, &cause)),
            }
        }
        Ok(())
    }

    fn make_folders(&self, data: &Path) -> Result<(), BootstrapFault> {
        fs::create_dir_all(data).map_err(|cause| at(data, &cause))?;
        make_folder(&self.state, 0o700)?;
        if !exists(&self.unfinished)? {
            write(&self.unfinished, 0o600, UNFINISHED)?;
        }
        make_folder(&self.audit, 0o700)?;
        make_folder(&self.state.join("inflight"), 0o700)?;
        make_folder(&self.state.join("run"), 0o700)?;
        make_folder(&self.secrets, 0o700)?;
        make_folder(&data.join("models"), 0o755)?;
        folder::sync(data).map_err(|cause| at(data, &cause))
    }
}

/// Makes a folder; one that is there already must be ours and gets the mode, except a wider `models/`.
fn make_folder(path: &Path, mode: u32) -> Result<(), BootstrapFault> {
    match folder::make(path, mode) {
        Ok(()) => return Ok(()),
        Err(there) if there.kind() == io::ErrorKind::AlreadyExists => {}
        Err(cause) => return Err(at(path, &cause)),
    }
    let there = fs::symlink_metadata(path).map_err(|cause| at(path, &cause))?;
    let wrong = |what| BootstrapFault::Place {
        path: path.to_path_buf(),
        what,
    };
    let private = mode == 0o700;
    if private && !there.is_dir() {
        return Err(wrong(
            "a folder of the data folder must be there, not a file or a link",
        ));
    }
    if private && there.uid() != rustix::process::geteuid().as_raw() {
        return Err(wrong("this folder belongs to another user"));
    }
    if private && there.mode() & 0o7777 != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(|cause| at(path, &cause))?;
    }
    Ok(())
}

fn exists(path: &Path) -> Result<bool, BootstrapFault> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(none) if none.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(at(path, &cause)),
    }
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), BootstrapFault> {
    folder::write_new(path, mode, bytes).map_err(|cause| at(path, &cause))
}

fn at(path: &Path, cause: &io::Error) -> BootstrapFault {
    BootstrapFault::File {
        path: path.to_path_buf(),
        cause: cause.to_string(),
    }
}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ADMIN: &str = "admin";
const NODE: &str = "node";
const FIRST_KEY: &str = "first-key";
const READY: &[u8] = b"This data folder was made whole. Without this file guan doesn't use it.\n";
const UNFINISHED: &[u8] =
    b"A first start is making this data folder, or was cut. It is made anew at the next.\n";

#[cfg(test)]
mod tests;
