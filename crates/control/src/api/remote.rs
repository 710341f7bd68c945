//! The admin API for the TLS listener: the wiring lends it the door, this answers what comes through.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Request, StatusCode};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::time::timeout;

use super::{ApiFault, ApiState, Origin, table};

/// What answers. Clones are cheap.
#[derive(Clone)]
pub struct Remote(Router);

impl Remote {
    /// On this state.
    #[must_use]
    pub fn new(state: &ApiState) -> Self {
        Self(table::router(state))
    }

    /// Answers one request from `address`, within half a minute: longer than an act waits for a held database and for
    /// the audit log.
    pub async fn answer<B>(self, address: IpAddr, request: Request<B>) -> Response
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut request = request.map(Body::new);
        let _none = request.extensions_mut().insert(Origin::Remote { address });
        let answering = TowerToHyperService::new(self.0).call(request);
        match timeout(LONGEST, answering).await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_elapsed) => {
                let text =
                    "the request didn't arrive, or wasn't done, in time; look whether it has acted";
                ApiFault::new(StatusCode::REQUEST_TIMEOUT, text.to_owned()).into_response()
            }
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

const LONGEST: Duration = Duration::from_secs(30);
