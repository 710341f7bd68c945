//! Projects: who pays. Made before keys name them; disabled, all their keys are refused.

use aws_lc_rs::rand;
use rules::chain::Record;
use rules::policy::Own;
use serde_json::json;

use super::{Keys, KeysFault, bears_on_all, check_name, check_notes, check_own};
use crate::actor::Actor;
use crate::audit_log;
use crate::clock;
use crate::store::ProjectRow;

/// What a new project shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewProject {
    /// What keys name it by: 1 to 128 printable characters.
    pub name: String,
    /// What it narrows for all its keys.
    pub own: Own,
    /// What its owner wants to remember.
    pub notes: String,
}

impl Keys {
    /// Makes a project.
    ///
    /// # Errors
    /// [`KeysFault`]; then none was made.
    pub async fn create_project(
        &self,
        new: NewProject,
        actor: &Actor,
    ) -> Result<ProjectRow, KeysFault> {
        bears_on_all(actor)?;
        check_name(&new.name, "name")?;
        if is_id(&new.name) {
            // Where a project is named, it is by the one or the other.
            return Err(KeysFault::Own {
                what: "name",
                why: "must not look like a project's id: 12 digits and letters a to f".to_owned(),
            });
        }
        check_own(&new.own)?;
        check_notes(&new.notes)?;
        let mut random = [0; 6];
        rand::fill(&mut random).map_err(|_unspecified| KeysFault::NoRandom)?;
        let row = ProjectRow {
            id: random.iter().map(|byte| format!("{byte:02x}")).collect(),
            name: new.name,
            enabled: true,
            own: new.own,
            notes: new.notes,
            created_at: clock::seconds((self.clock)()),
            created_by: actor.id().to_owned(),
            version: 1,
        };
        let pending = self.store.add_project(&row).await?;
        self.record_then_commit(self.project_act("project-create", &row, actor), pending)
            .await?;
        Ok(row)
    }

    /// All projects by name.
    ///
    /// # Errors
    /// [`KeysFault::Store`].
    pub async fn projects(&self) -> Result<Vec<ProjectRow>, KeysFault> {
        Ok(self.store.projects().await?)
    }

    /// At most `limit` projects by name after the project of the id `after`, and whether there are more.
    ///
    /// # Errors
    /// [`KeysFault::Store`], [`KeysFault::Project`].
    pub async fn projects_page(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<ProjectRow>, bool), KeysFault> {
        let after = match after {
            Some(id) => {
                let found = self.store.project(id).await?.filter(|row| row.id == id);
                Some(found.ok_or_else(|| unknown(id))?.name)
            }
            None => None,
        };
        let more = limit.saturating_add(1);
        let mut rows = self.store.projects_after(after.as_deref(), more).await?;
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > most;
        rows.truncate(most);
        Ok((rows, has_more))
    }

    /// The project of this name or id.
    ///
    /// # Errors
    /// [`KeysFault`].
    pub async fn project(&self, named: &str) -> Result<ProjectRow, KeysFault> {
        let found = self.store.project(named).await?;
        found.ok_or_else(|| unknown(named))
    }

    /// Enables or disables a project; `false`: it was so already. Disabling holds before it is recorded.
    ///
    /// # Errors
    /// [`KeysFault`], as with a revocation.
    pub async fn enable_project(
        &self,
        named: &str,
        enabled: bool,
        actor: &Actor,
    ) -> Result<(ProjectRow, bool), KeysFault> {
        bears_on_all(actor)?;
        let name = self.project(named).await?.name;
        let (row, changed) = self
            .store
            .enable_project(&name, enabled)
            .await?
            .ok_or(KeysFault::Project(name))?;
        let published = self.publisher.publish().await;
        let action = if enabled {
            "project-enable"
        } else {
            "project-disable"
        };
        let recorded = audit_log::record(&self.audit, self.project_act(action, &row, actor)).await;
        if let Err(fault) = published {
            tracing::error!(project = %row.name, %fault, "keys of a disabled project may still be accepted");
            return Err(KeysFault::Unpublished);
        }
        recorded.map_err(|_unwritten| KeysFault::Unrecorded)?;
        Ok((row, changed))
    }

    fn project_act(&self, action: &str, row: &ProjectRow, actor: &Actor) -> Record {
        let mut record = audit_log::blank(&self.clock, action);
        actor.sign(&mut record);
        record.act = Some(json!({ "id": row.id, "name": row.name, "own": row.own }));
        record
    }
}

fn unknown(named: &str) -> KeysFault {
    KeysFault::Project(named.chars().take(128).collect())
}

/// Whether a text has the form of a project's id.
fn is_id(text: &str) -> bool {
    text.len() == 12
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
