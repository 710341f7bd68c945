//! The table of routes: path, method, right, what it does, what goes in and what comes out.
//!
//! The router, the rights and the `OpenAPI` description are made from this table and from nothing else: a route that
//! isn't here doesn't exist, and one without a right can't be written.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::guard::{self, Rule};
use super::pages::{ListQuery, Page};
use super::{
    ApiState, MOST_BODY_BYTES, MOST_IMPORT_BYTES, admins, audit, keys, limits, projects, secrets,
};
use super::{no_method, no_route, openapi, usage};
use crate::store::Right;

/// Where a type's schema comes from.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One route.
pub(super) struct Route {
    pub(super) rule: Rule,
    pub(super) summary: &'static str,
    pub(super) status: u16,
    pub(super) query: Option<SchemaOf>,
    pub(super) body: Option<SchemaOf>,
    pub(super) answer: SchemaOf,
    handler: MethodRouter<ApiState>,
}

impl Route {
    fn new<H, T, A>(
        (filter, method): (MethodFilter, &'static str),
        path: &'static str,
        right: Right,
        summary: &'static str,
        handler: H,
        _answer: Answers<A>,
    ) -> Self
    where
        H: Handler<T, ApiState>,
        T: 'static,
        A: JsonSchema,
    {
        Self {
            rule: Rule {
                method,
                path,
                right,
                once: false,
                versioned: method == "PATCH",
                most_bytes: MOST_BODY_BYTES,
            },
            summary,
            status: 200,
            query: None,
            body: None,
            answer: SchemaGenerator::subschema_for::<A>,
            handler: on(filter, handler),
        }
    }

    fn takes<B: JsonSchema>(mut self) -> Self {
        self.body = Some(SchemaGenerator::subschema_for::<B>);
        self
    }

    fn asks<Q: JsonSchema>(mut self) -> Self {
        self.query = Some(SchemaGenerator::subschema_for::<Q>);
        self
    }

    /// It makes something: 201, and a request that is sent twice under one idempotency key makes it once.
    const fn makes(mut self) -> Self {
        self.status = 201;
        self.once()
    }

    const fn once(mut self) -> Self {
        self.rule.once = true;
        self
    }

    const fn up_to(mut self, bytes: usize) -> Self {
        self.rule.most_bytes = bytes;
        self
    }
}

/// What a route answers with.
struct Answers<A>(std::marker::PhantomData<A>);

const fn gives<A>() -> Answers<A> {
    Answers(std::marker::PhantomData)
}

const GET: (MethodFilter, &str) = (MethodFilter::GET, "GET");
const POST: (MethodFilter, &str) = (MethodFilter::POST, "POST");
const PATCH: (MethodFilter, &str) = (MethodFilter::PATCH, "PATCH");
const DELETE: (MethodFilter, &str) = (MethodFilter::DELETE, "DELETE");

/// All routes.
pub(super) fn table() -> Vec<Route> {
    let mut routes = of_keys();
    routes.extend(of_projects());
    routes.extend(of_the_rest());
    routes
}

#[rustfmt::skip]
fn of_keys() -> Vec<Route> {
    use Right::{Operator, Owner, Viewer};
    vec![
        Route::new(GET, "/admin/v1/keys", Viewer, "List keys, oldest first",
            keys::list, gives::<Page<keys::Listed>>()).asks::<ListQuery>(),
        Route::new(POST, "/admin/v1/keys", Operator, "Make a key; its text is in this answer and nowhere else",
            keys::create, gives::<keys::Once>()).takes::<keys::CreateBody>().makes(),
        Route::new(POST, "/admin/v1/keys/import", Operator, "Take over keys of another gateway, all or none",
            keys::import, gives::<Page<crate::store::KeyRow>>()).takes::<keys::ImportBody>().makes().up_to(MOST_IMPORT_BYTES),
        Route::new(GET, "/admin/v1/keys/{id}", Viewer, "Show a key, what it may do and who says so",
            keys::show, gives::<keys::Shown>()),
        Route::new(PATCH, "/admin/v1/keys/{id}", Operator, "Change a key (JSON Merge Patch, with If-Match)",
            keys::change, gives::<crate::store::KeyRow>()).takes::<crate::keys::KeyChange>(),
        Route::new(DELETE, "/admin/v1/keys/{id}", Operator, "Take a key back",
            keys::revoke, gives::<keys::Revoked>()),
        Route::new(POST, "/admin/v1/keys/{id}/rotate", Operator, "Give a key a new secret; it is in this answer and nowhere else",
            keys::rotate, gives::<keys::Once>()).takes::<keys::RotateBody>().once(),
        Route::new(GET, "/admin/v1/keys/{id}/limits", Viewer, "Show what is left of each limit that holds for a key",
            limits::show, gives::<limits::Shown>()),
        Route::new(POST, "/admin/v1/keys/{id}/limits/reset", Owner, "Forget what a key used of its own limits and budgets",
            limits::reset, gives::<limits::Shown>()),
    ]
}

#[rustfmt::skip]
fn of_projects() -> Vec<Route> {
    use Right::{Operator, Viewer};
    use crate::store::ProjectRow;
    vec![
        Route::new(GET, "/admin/v1/projects", Viewer, "List projects by name",
            projects::list, gives::<Page<ProjectRow>>()).asks::<ListQuery>(),
        Route::new(POST, "/admin/v1/projects", Operator, "Make a project",
            projects::create, gives::<ProjectRow>()).takes::<projects::CreateBody>().makes(),
        Route::new(GET, "/admin/v1/projects/{id}", Viewer, "Show a project, by its id or name",
            projects::show, gives::<ProjectRow>()),
        Route::new(PATCH, "/admin/v1/projects/{id}", Operator, "Change a project (JSON Merge Patch, with If-Match)",
            projects::change, gives::<ProjectRow>()).takes::<crate::keys::ProjectChange>(),
        Route::new(POST, "/admin/v1/projects/{id}/enable", Operator, "Take a project's keys again",
            projects::enable, gives::<projects::Switched>()),
        Route::new(POST, "/admin/v1/projects/{id}/disable", Operator, "Refuse all keys of a project",
            projects::disable, gives::<projects::Switched>()),
    ]
}

#[rustfmt::skip]
fn of_the_rest() -> Vec<Route> {
    use Right::{Owner, Viewer};
    use crate::store::{AdminRow, NodeRow, UsageRow};
    vec![
        Route::new(GET, "/admin/v1/usage", Viewer, "What keys, projects or models used since a day",
            usage::usage, gives::<Page<UsageRow>>()).asks::<usage::UsageQuery>(),
        Route::new(GET, "/admin/v1/nodes", Viewer, "List the nodes that share the store",
            usage::nodes, gives::<Page<NodeRow>>()).asks::<ListQuery>(),
        Route::new(GET, "/admin/v1/audit/key", Viewer, "Show the public key that the audit log is judged by",
            audit::key, gives::<audit::Shown>()),
        Route::new(GET, "/admin/v1/audit/heads", Viewer, "List the last signed head of each audit chain",
            audit::heads, gives::<Page<rules::chain::Checkpoint>>()).asks::<ListQuery>(),
        Route::new(GET, "/admin/v1/me", Viewer, "Say who asks, and what he may do",
            admins::me, gives::<admins::Me>()),
        Route::new(GET, "/admin/v1/openapi.json", Viewer, "This description",
            openapi::show, gives::<serde_json::Value>()),
        Route::new(GET, "/admin/v1/admins", Viewer, "List admin tokens, oldest first; never their text",
            admins::list, gives::<Page<AdminRow>>()).asks::<ListQuery>(),
        Route::new(POST, "/admin/v1/admins", Owner, "Make an admin token; its text is in this answer and nowhere else",
            admins::create, gives::<admins::Once>()).takes::<admins::CreateBody>().makes(),
        Route::new(DELETE, "/admin/v1/admins/{id}", Owner, "Take an admin token back",
            admins::revoke, gives::<admins::Revoked>()).asks::<admins::RevokeQuery>(),
        Route::new(GET, "/admin/v1/secrets", Viewer, "Say what wraps the data key, and how the key service was last seen",
            secrets::status, gives::<secrets::Kept>()),
        Route::new(POST, "/admin/v1/secrets/seal", Owner, "Seal a secret for the config file",
            secrets::seal, gives::<secrets::Sealed>()).takes::<secrets::SealBody>(),
        Route::new(POST, "/admin/v1/secrets/rewrap", Owner, "Wrap the data key with what [kms] names now",
            secrets::rewrap, gives::<crate::secrets::Rewrapped>()),
    ]
}

/// The routes of the table, each behind its right, all behind a credential.
pub(super) fn router(state: &ApiState) -> Router {
    let mut router = Router::new();
    for route in table() {
        let guarded = route
            .handler
            .route_layer(from_fn_with_state(
                (state.clone(), route.rule),
                guard::guard,
            ))
            .layer(DefaultBodyLimit::max(route.rule.most_bytes));
        router = router.route(route.rule.path, guarded);
    }
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(state.clone(), guard::authenticate))
        .with_state(state.clone())
}
