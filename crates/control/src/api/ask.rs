//! The admin API without a socket: for a command that holds the data folder's lock, so that an act is one act
//! whether or not the server runs. Called by `guan`'s commands.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::{ApiState, Origin, table};

/// A request as a command writes it.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// Header names and values.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body, JSON or empty.
    pub body: Vec<u8>,
}

/// Answers one request of this user: the status and the body.
///
/// # Errors
/// A method, path or header that isn't one, or an answer that can't be made whole.
pub async fn ask(
    state: &ApiState,
    uid: u32,
    asked: Asked<'_>,
) -> Result<(u16, Bytes), axum::Error> {
    let mut request = Request::builder().method(asked.method).uri(asked.path);
    for (name, value) in asked.headers {
        request = request.header(*name, *value);
    }
    let request = request
        .extension(Origin::Local { uid })
        .body(Body::from(asked.body))
        .map_err(axum::Error::new)?;
    let routes = table::router(state);
    let answered = TowerToHyperService::new(routes).call(request).await;
    let answered: Response = match answered {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let status = answered.status().as_u16();
    let body = answered.into_body().collect().await?.to_bytes();
    Ok((status, body))
}
