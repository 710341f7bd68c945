//! The `[store]` part of the conversion: a file in the data folder, or a PostgreSQL server.
//!
//! A password stands in a reference, never in the URL. Called by `meant::convert`, and by commands that act on the
//! store while no server runs.

use std::path::Path;

use control::store::{Server, Target};

use super::super::{reference, written};

/// The database that `[store]` names. The variable whose name comes with it must be in the gateway's environment.
///
/// # Errors
/// The key that is wrong, and what is wrong with it.
pub(crate) fn target(
    store: &written::Store,
    data: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Target, Option<String>), (&'static str, String)> {
    let Some(url) = store.url.as_deref().filter(|url| *url != DATABASE) else {
        if store.password.is_some() {
            return Err(("password", "is for PostgreSQL; SQLite has none".to_owned()));
        }
        return Ok((Target::in_folder(data), None));
    };
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"));
    let Some(rest) = rest else {
        return Err((
            "url",
            format!("must be \"{DATABASE}\" or \"postgres://USER@HOST:PORT/DATABASE\""),
        ));
    };
    let (authority, after) = rest.split_once('/').unwrap_or((rest, ""));
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    // Not repeated: it may hold the password.
    if user.is_some_and(|user| user.contains(':'))
        || after.to_ascii_lowercase().contains("password=")
    {
        return Err((
            "url",
            "holds a password; take it out and say password = \"file:secrets/store-password\""
                .to_owned(),
        ));
    }
    if user.is_none_or(str::is_empty) || after.split('?').next().is_none_or(str::is_empty) {
        return Err((
            "url",
            "must name user and database: \"postgres://USER@HOST:PORT/DATABASE\"".to_owned(),
        ));
    }
    let mut variable = None;
    let mut password = None;
    if let Some(text) = &store.password {
        let at = |why| ("password", why);
        let read = reference::parse(text).map_err(at)?;
        if let reference::Reference::Env(name) = &read {
            variable = Some((*name).to_owned());
        }
        password = Some(reference::resolve_plain(&read, data, env).map_err(at)?);
    }
    let server = Server {
        url: url.to_owned(),
        password,
    };
    Ok((Target::Postgres(server), variable))
}

/// The store of a config that says nothing else.
const DATABASE: &str = "sqlite:state/guan.db";
