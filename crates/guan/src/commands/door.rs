//! Where a command acts: in this process when nobody serves from the data folder, else through the server.
//!
//! The data folder's lock decides which (so both write audit records, in one order). Both doors end in the same
//! routes: in this process they are called as functions, else over the admin socket; so an act looks the same to a
//! command. Called by `admin`, `key`, `project`, `secret` and `usage`.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use control::actor::Actor;
use control::api::{ApiState, Asked};
use control::audit_log::{self, AuditSpec, Fsync};
use control::bootstrap;
use control::keys::{
    Foreign, KeyRow, Keys, KeysFault, NewKey, NewProject, ProjectRow, count_due, is_due, read_list,
};
use control::publish::Publisher;
use control::secrets::{Secrets, SecretsFault};
use control::store::{Store, UsageBy, UsageRow};
use rules::snapshot::Roles;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::key::Made;
use super::{Failure, Places, config, http, remark};
use crate::folder::{Folder, Held};

/// Where a command acts.
pub(super) enum Door {
    /// In this process, under the lock.
    Here(Box<Here>),
    /// Through the server that holds the lock.
    Server(Server),
}

/// In this process, under the lock.
pub(super) struct Here {
    _lock: crate::folder::Lock,
    store: Store,
    keys: Keys,
    secrets: Secrets,
    log: audit_log::Log,
    roles: Roles,
    clock: control::clock::Clock,
}

/// Through the server that holds the lock.
pub(super) struct Server {
    folder: Folder,
}

impl Door {
    /// Finds out which.
    ///
    /// # Errors
    /// When there is no data folder, or it can't be opened.
    pub(super) fn open(
        runtime: &tokio::runtime::Runtime,
        places: &Places,
    ) -> Result<Self, Failure> {
        Self::open_from(runtime, places, None)
    }

    /// The same, with the store opened by what another config file's `[kms]` names.
    ///
    /// # Errors
    /// When there is no data folder, or it can't be opened.
    pub(super) fn open_from(
        runtime: &tokio::runtime::Runtime,
        places: &Places,
        from: Option<&Path>,
    ) -> Result<Self, Failure> {
        if !places.data.is_dir() {
            return Err(Failure::new(format!(
                "there is no data folder {}; name the server's with --data DIR, or make one with `guan init`",
                places.data.display()
            )));
        }
        let folder = Folder::open(&places.data)?;
        Ok(match folder.lock()? {
            Ok(lock) => Self::Here(Box::new(
                runtime.block_on(Here::open(&folder, lock, places, from))?,
            )),
            Err(Held { .. }) => {
                if from.is_some() {
                    remark("guan: the server runs and has the data key; --from isn't needed");
                }
                Self::Server(Server { folder })
            }
        })
    }

    pub(super) async fn create(&self, new: NewKey) -> Result<Made, Failure> {
        match self {
            Self::Here(here) => {
                let created = here
                    .keys
                    .create(new, &here.roles, &actor())
                    .await
                    .map_err(words)?;
                Ok(Made {
                    row: created.row,
                    key: created.text,
                })
            }
            Self::Server(server) => {
                made(server.call("POST", "/admin/v1/keys", Some(&body_of(&new)))?)
            }
        }
    }

    pub(super) async fn rotate(&self, id: &str, overlap: u32) -> Result<Made, Failure> {
        match self {
            Self::Here(here) => {
                let rotated = here
                    .keys
                    .rotate(id, overlap, &actor())
                    .await
                    .map_err(words)?;
                Ok(Made {
                    row: rotated.row,
                    key: rotated.text,
                })
            }
            Self::Server(server) => {
                let path = format!("/admin/v1/keys/{}/rotate", checked(id)?);
                made(server.call("POST", &path, Some(&json!({ "overlap_seconds": overlap })))?)
            }
        }
    }

    pub(super) async fn import(
        &self,
        form: Foreign,
        list: Zeroizing<String>,
        like: NewKey,
    ) -> Result<Vec<KeyRow>, Failure> {
        match self {
            Self::Here(here) => {
                let list = read_list(&list, form).map_err(words)?;
                let done = here.keys.import(list, like, &here.roles, &actor()).await;
                Ok(done.map_err(words)?.rows)
            }
            Self::Server(server) => {
                let form = match form {
                    Foreign::Plain => "plain",
                    Foreign::Sha256 => "sha256",
                };
                let body = json!({ "form": form, "list": list.as_str(), "like": body_of(&like) });
                read(data(server.call(
                    "POST",
                    "/admin/v1/keys/import",
                    Some(&body),
                )?))
            }
        }
    }

    /// Keys, and whether each is due for a new secret.
    pub(super) async fn list(&self) -> Result<Vec<(KeyRow, bool)>, Failure> {
        match self {
            Self::Here(here) => {
                let now = crate::supervisor::unix_seconds();
                let rows = here.keys.list().await.map_err(words)?;
                let judged = rows.into_iter().map(|row| {
                    let due = is_due(&row, &here.roles, now);
                    (row, due)
                });
                Ok(judged.collect())
            }
            Self::Server(_) => {
                let rows = self.pages("/admin/v1/keys?limit=100", "id").await?;
                let judged = rows.into_iter().map(|row| {
                    let due = row.get("rotation_due") == Some(&Value::Bool(true));
                    Ok((read(row)?, due))
                });
                judged.collect()
            }
        }
    }

    /// A key as the API shows it.
    pub(super) async fn show(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Self::Here(here) => {
                let key = here.keys.show(id, &here.roles).await.map_err(words)?;
                let due = is_due(&key.row, &here.roles, crate::supervisor::unix_seconds());
                let mut shown = serde_json::to_value(&key.row).unwrap_or_default();
                if let Value::Object(members) = &mut shown {
                    members.extend([
                        (
                            "secrets".to_owned(),
                            serde_json::to_value(&key.secrets).unwrap_or_default(),
                        ),
                        (
                            "policy".to_owned(),
                            serde_json::to_value(&key.policy).unwrap_or_default(),
                        ),
                        ("project_disabled".to_owned(), key.project_disabled.into()),
                        ("rotation_due".to_owned(), due.into()),
                    ]);
                }
                Ok(shown)
            }
            Self::Server(server) => {
                server.call("GET", &format!("/admin/v1/keys/{}", checked(id)?), None)
            }
        }
    }

    pub(super) async fn revoke(&self, id: &str) -> Result<(KeyRow, bool), Failure> {
        match self {
            Self::Here(here) => {
                let revoked = here.keys.revoke(id, &actor()).await.map_err(words)?;
                Ok((revoked.row, revoked.already))
            }
            Self::Server(server) => {
                let answer =
                    server.call("DELETE", &format!("/admin/v1/keys/{}", checked(id)?), None)?;
                let already = answer.get("already_revoked") == Some(&Value::Bool(true));
                Ok((read(answer)?, already))
            }
        }
    }

    pub(super) async fn create_project(&self, new: NewProject) -> Result<ProjectRow, Failure> {
        match self {
            Self::Here(here) => here.keys.create_project(new, &actor()).await.map_err(words),
            Self::Server(server) => {
                let body = json!({ "name": new.name, "own": new.own, "notes": new.notes });
                read(server.call("POST", "/admin/v1/projects", Some(&body))?)
            }
        }
    }

    pub(super) async fn projects(&self) -> Result<Vec<ProjectRow>, Failure> {
        match self {
            Self::Here(here) => here.keys.projects().await.map_err(words),
            Self::Server(_) => {
                let rows = self.pages("/admin/v1/projects?limit=100", "id").await?;
                rows.into_iter().map(read).collect()
            }
        }
    }

    pub(super) async fn project(&self, named: &str) -> Result<ProjectRow, Failure> {
        match self {
            Self::Here(here) => here.keys.project(named).await.map_err(words),
            Self::Server(server) => read(server.call(
                "GET",
                &format!("/admin/v1/projects/{}", escaped(named)),
                None,
            )?),
        }
    }

    pub(super) async fn enable_project(
        &self,
        named: &str,
        enabled: bool,
    ) -> Result<ProjectRow, Failure> {
        match self {
            Self::Here(here) => {
                let done = here.keys.enable_project(named, enabled, &actor()).await;
                Ok(done.map_err(words)?.0)
            }
            Self::Server(server) => {
                let act = if enabled { "enable" } else { "disable" };
                let path = format!("/admin/v1/projects/{}/{act}", escaped(named));
                read(server.call("POST", &path, None)?)
            }
        }
    }

    pub(super) async fn usage(
        &self,
        by: UsageBy,
        since_day: i64,
    ) -> Result<Vec<UsageRow>, Failure> {
        match self {
            Self::Here(here) => {
                let rows = here.store.usage(by, since_day).await;
                rows.map_err(|fault| Failure::new(fault.to_string()))
            }
            Self::Server(_) => {
                let by = match by {
                    UsageBy::Key => "key",
                    UsageBy::Project => "project",
                    UsageBy::Model => "model",
                };
                let path = format!("/admin/v1/usage?by={by}&since_day={since_day}&limit=1000");
                let rows = self.pages(&path, "of").await?.into_iter().map(read);
                let mut rows = rows.collect::<Result<Vec<UsageRow>, Failure>>()?;
                // The largest first, as in this process.
                rows.sort_by_key(|row| {
                    let tokens = row.sums.input_tokens.saturating_add(row.sums.output_tokens);
                    std::cmp::Reverse((tokens, row.sums.calls))
                });
                Ok(rows)
            }
        }
    }

    pub(super) async fn seal(&self, secret: &str) -> Result<String, Failure> {
        match self {
            Self::Here(here) => here.secrets.seal(secret, &actor()).await.map_err(said),
            Self::Server(server) => {
                let body = json!({ "secret": secret });
                let answer = server.call("POST", "/admin/v1/secrets/seal", Some(&body))?;
                let sealed = answer.get("sealed").and_then(Value::as_str);
                let sealed = sealed.map(str::to_owned);
                sealed.ok_or_else(|| Failure::new("the server's answer has no value; see its log"))
            }
        }
    }

    /// How secrets are kept. Without a server the key service is asked now.
    pub(super) async fn secret_status(&self) -> Result<Value, Failure> {
        match self {
            Self::Here(here) => {
                // What it says is in the status.
                drop(here.secrets.look().await);
                let status = here.secrets.status().await.map_err(said)?;
                let now = crate::supervisor::unix_seconds();
                let due = count_due(&here.store, &here.roles, now).await;
                let due = due.map_err(|fault| Failure::new(fault.to_string()))?;
                let mut shown = serde_json::to_value(status).unwrap_or_default();
                if let Value::Object(members) = &mut shown {
                    drop(members.insert("keys_due".to_owned(), due.into()));
                }
                Ok(shown)
            }
            Self::Server(server) => server.call("GET", "/admin/v1/secrets", None),
        }
    }

    pub(super) async fn rewrap(&self) -> Result<Value, Failure> {
        match self {
            Self::Here(here) => {
                let done = here.secrets.rewrap(&actor()).await.map_err(said)?;
                Ok(serde_json::to_value(done).unwrap_or_default())
            }
            Self::Server(server) => server.call("POST", "/admin/v1/secrets/rewrap", None),
        }
    }

    /// One request of the admin API: in this process, or over the server's socket.
    pub(super) async fn call(
        &self,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        match self {
            Self::Here(here) => here.call(method, path, more, body).await,
            Self::Server(server) => server.call_with(method, path, more, body),
        }
    }

    /// A list of the admin API, all pages of it; `cursor` is the member that the next page is asked by.
    pub(super) async fn pages(&self, path: &str, cursor: &str) -> Result<Vec<Value>, Failure> {
        let mut rows: Vec<Value> = Vec::new();
        loop {
            let last = rows.last().and_then(|row| row.get(cursor)).cloned();
            let after = last.as_ref().and_then(Value::as_str).map(escaped);
            let after = after.map(|text| format!("&after={text}"));
            let path = format!("{path}{}", after.unwrap_or_default());
            let page = self.call("GET", &path, &[], None).await?;
            let has_more = page.get("has_more") == Some(&Value::Bool(true));
            let page: Vec<Value> = read(data(page))?;
            // A cursor that comes back leads nowhere.
            let stays =
                last.is_some() && page.last().and_then(|row| row.get(cursor)) == last.as_ref();
            let is_last = page.is_empty() || !has_more || stays;
            rows.extend(page);
            if is_last {
                return Ok(rows);
            }
        }
    }

    /// Changes what is at `path`, as it is now.
    pub(super) async fn change(&self, path: &str, patch: &Value) -> Result<Value, Failure> {
        let before = self.call("GET", path, &[], None).await?;
        let version = before.get("version").and_then(Value::as_i64);
        let tag = format!("\"{}\"", version.unwrap_or_default());
        self.call("PATCH", path, &[("if-match", &tag)], Some(patch))
            .await
    }

    /// Waits until what was recorded is on disk.
    pub(super) fn close(self, runtime: &tokio::runtime::Runtime) {
        if let Self::Here(here) = self {
            let Here {
                store,
                keys,
                secrets,
                log,
                ..
            } = *here;
            drop((keys, secrets));
            let heads = log.heads();
            if !log.join() {
                remark(
                    "guan: the last audit records may not be on disk; make room on the disk of state/audit",
                );
            }
            let head = heads.borrow().clone();
            runtime.block_on(async {
                audit_log::heads::keep_one(&store, head).await;
                store.close().await;
            });
        }
    }
}

impl Here {
    async fn open(
        folder: &Folder,
        lock: crate::folder::Lock,
        places: &Places,
        from: Option<&Path>,
    ) -> Result<Self, Failure> {
        let glance = config::glance(places)?;
        let target = glance.store(folder.path()).map_err(Failure::new)?;
        let kms = glance.kms(folder.path()).map_err(Failure::new)?;
        let opens = match from {
            None => kms.clone(),
            Some(file) => config::glance_at(file)?
                .kms(folder.path())
                .map_err(Failure::new)?,
        };
        let opened = bootstrap::open(folder.path(), &target, &opens)
            .await
            .map_err(|e| Failure::new(e.to_string()))?;
        let clock = control::clock::system();
        let (entries, log) = audit_log::open(AuditSpec {
            dir: folder.audit(),
            node: opened.node,
            generation: folder.next_generation()?,
            clock: Arc::clone(&clock),
            fsync: Fsync::Each,
            signer: opened.signer,
            checkpoint_every: audit_log::CHECKPOINT_EVERY,
            rotate: audit_log::Rotate::default(),
        })
        .map_err(|e| Failure::new(e.to_string()))?;
        let publisher = Publisher::nobody(opened.store.clone());
        let keys = Keys::new(
            opened.store.clone(),
            opened.pepper,
            publisher,
            entries.clone(),
            Arc::clone(&clock),
        );
        let secrets = Secrets::new(
            opened.envelope,
            opened.store.clone(),
            entries,
            Arc::clone(&clock),
            Arc::new(move || kms.clone()),
            folder.path().join("secrets"),
        );
        Ok(Self {
            _lock: lock,
            store: opened.store,
            keys,
            secrets,
            log,
            roles: glance.roles,
            clock,
        })
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let roles = self.roles.clone();
        let state = ApiState::new(
            self.keys.clone(),
            Arc::new(move || roles.clone()),
            Arc::clone(&self.clock),
            self.store.clone(),
            self.secrets.clone(),
        );
        let uid = rustix::process::geteuid().as_raw();
        let asked = Asked {
            method,
            path,
            headers: more,
            body: body.map(Value::to_string).unwrap_or_default().into_bytes(),
        };
        let (status, body) = control::api::ask(&state, uid, asked)
            .await
            .map_err(|e| Failure::new(e.to_string()))?;
        judged(status, &body)
    }
}

impl Server {
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        self.call_with(method, path, &[], body)
    }

    /// One exchange on the admin socket.
    fn call_with(
        &self,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let socket = self.folder.admin_socket();
        let at = |e: std::io::Error| {
            Failure::new(format!(
                "the data folder is in use, but the server doesn't answer on {}: {e}; if it is starting, try again in a moment",
                socket.display()
            ))
        };
        let stream = UnixStream::connect(&socket).map_err(at)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(at)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(at)?;
        let bytes = body.map(|value| Zeroizing::new(value.to_string().into_bytes()));
        let answer = http::exchange(
            stream,
            method,
            "guan",
            path,
            None,
            more,
            bytes.as_ref().map(|b| b.as_slice()),
        )
        .map_err(at)?;
        judged(answer.status, &answer.body)
    }
}

fn judged(status: u16, body: &[u8]) -> Result<Value, Failure> {
    let value: Value = serde_json::from_slice(body).map_err(|e| unreadable(&e))?;
    if (200..300).contains(&status) {
        return Ok(value);
    }
    let message = value.pointer("/error/message").and_then(Value::as_str);
    Err(Failure::new(match message {
        Some(message) => message.to_owned(),
        None => format!("the server answered {status}; see its log"),
    }))
}

fn body_of(new: &NewKey) -> Value {
    json!({
        "name": new.name,
        "role": new.role,
        "project": new.project,
        "not_before": new.not_before.map(control::clock::rfc3339_seconds),
        "expires_at": new.expires_at.map(control::clock::rfc3339_seconds),
        "own": new.own,
        "notes": new.notes,
    })
}

fn made(mut answer: Value) -> Result<Made, Failure> {
    match answer.get_mut("key").map(Value::take) {
        Some(Value::String(text)) => Ok(Made {
            key: Zeroizing::new(text),
            row: read(answer)?,
        }),
        _ => Err(Failure::new("the server's answer has no key; see its log")),
    }
}

fn data(mut answer: Value) -> Value {
    answer.get_mut("data").map(Value::take).unwrap_or_default()
}

/// From an answer that may say more than is asked.
fn read<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|e| unreadable(&e))
}

/// What isn't an id must not become a path.
pub(super) fn checked(id: &str) -> Result<&str, Failure> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if !id.is_empty() && id.bytes().all(good) {
        Ok(id)
    } else {
        Err(words(KeysFault::NotAnId))
    }
}

/// A name as one segment of a path.
pub(super) fn escaped(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Who acts, for the audit record.
fn actor() -> Actor {
    Actor::local(rustix::process::geteuid().as_raw())
}

fn words(fault: KeysFault) -> Failure {
    Failure::new(fault.to_string())
}

fn said(fault: SecretsFault) -> Failure {
    Failure::new(fault.to_string())
}

fn unreadable(e: &serde_json::Error) -> Failure {
    Failure::new(format!(
        "the server's answer can't be read: {e}; is it of another version?"
    ))
}

/// For each step of an exchange with the server.
const PATIENCE: Duration = Duration::from_secs(10);
