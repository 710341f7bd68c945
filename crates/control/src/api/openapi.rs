//! The `OpenAPI` 3.1 description, made from the table of routes and from the types that requests and answers are.

use std::collections::BTreeSet;

use axum::response::Response;
use http::StatusCode;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::answer;
use super::table::{Route, table};

/// An error, whatever refused.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "a form for the description; `ApiFault` writes it")]
struct Error {
    error: ErrorObject,
}

/// What went wrong, in the form of `OpenAI`'s errors.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "a form for the description; `ApiFault` writes it")]
struct ErrorObject {
    /// What went wrong and what to do.
    message: String,
    /// Its kind.
    #[schemars(rename = "type")]
    kind: String,
    /// The member or header at fault.
    param: Option<String>,
    /// A word for programs.
    code: Option<String>,
}

pub(super) async fn show() -> Response {
    answer(StatusCode::OK, &description())
}

/// The description.
#[must_use]
pub fn description() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        "/components/schemas".clone_into(settings.definitions_path.to_mut());
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let error = generator.subschema_for::<Error>();
    let mut paths = Map::new();
    for route in table() {
        let operation = operation(&route, &mut generator, &error);
        let path = paths.entry(route.rule.path).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            let _none = path.insert(route.rule.method.to_ascii_lowercase(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Guan admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Keys, projects, usage and admin tokens of a Guan server. Every path wants an admin token.",
        },
        "security": [{ "admin_token": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {
                "admin_token": { "type": "http", "scheme": "bearer", "description": "sk-guan-admin-…, made by `guan admin create`" },
            },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator, error: &Schema) -> Value {
    let rule = route.rule;
    let mut parameters = Vec::new();
    if rule.path.contains("{id}") {
        parameters.push(parameter("id", "path", true, &json!({ "type": "string" })));
    }
    if rule.versioned {
        parameters.push(header("If-Match", true, "The ETag of what was seen, or *."));
    }
    if rule.once {
        let text = "The same text with the same request acts once within a day; the secret is shown the first time only.";
        parameters.push(header("Idempotency-Key", false, text));
    }
    if let Some(query) = route.query {
        parameters.extend(members_of(&query(generator), generator));
    }
    let mut responses = Map::new();
    let good = content((route.answer)(generator).as_value());
    let _none = responses.insert(route.status.to_string(), described("Done.", good));
    let mut codes: Vec<(u16, &str)> = vec![
        (401, "No valid admin token."),
        (
            403,
            "The token's right, or what it may give, doesn't reach so far.",
        ),
        (
            503,
            "The store, the audit log or the key service doesn't answer; try again.",
        ),
    ];
    if route.body.is_some() || route.query.is_some() {
        codes.push((
            400,
            "The request isn't what was expected; param names the member.",
        ));
    }
    if rule.path.contains("{id}") {
        codes.push((404, "There is none of that name."));
    }
    if rule.method != "GET" {
        codes.push((409, "It contradicts what is there."));
    }
    if rule.versioned {
        codes.push((412, "It was changed meanwhile."));
        codes.push((428, "If-Match is missing."));
    }
    if rule.once {
        codes.push((422, "The idempotency key was used for another request."));
    }
    for (code, text) in codes {
        let _none = responses.insert(code.to_string(), described(text, content(error.as_value())));
    }
    let mut operation = json!({
        "operationId": name_of(rule.method, rule.path),
        "summary": route.summary,
        "description": format!("Needs the right `{}`.", rule.right.as_str()),
        "x-guan-right": rule.right,
        "parameters": parameters,
        "responses": responses,
    });
    if let (Some(body), Value::Object(members)) = (route.body, &mut operation) {
        let schema = body(generator);
        let kind = if rule.versioned {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let _none = members.insert(
            "requestBody".to_owned(),
            json!({ "required": true, "content": { kind: { "schema": schema } } }),
        );
    }
    operation
}

fn content(schema: &Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

fn described(text: &str, content: Value) -> Value {
    json!({ "description": text, "content": content })
}

fn parameter(name: &str, place: &str, required: bool, schema: &Value) -> Value {
    json!({ "name": name, "in": place, "required": required, "schema": schema })
}

fn header(name: &str, required: bool, text: &str) -> Value {
    let mut it = parameter(name, "header", required, &json!({ "type": "string" }));
    if let Value::Object(members) = &mut it {
        let _none = members.insert("description".to_owned(), text.into());
    }
    it
}

/// The members of a query's type, as parameters; the type itself is no component.
fn members_of(schema: &Schema, generator: &mut SchemaGenerator) -> Vec<Value> {
    let name = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|place| place.rsplit('/').next())
        .unwrap_or_default();
    let definition = generator
        .definitions()
        .get(name)
        .cloned()
        .unwrap_or_default();
    let required: BTreeSet<&str> = definition
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let members = definition.get("properties").and_then(Value::as_object);
    members
        .into_iter()
        .flatten()
        .map(|(name, schema)| parameter(name, "query", required.contains(name.as_str()), schema))
        .collect()
}

/// `post_keys_id_rotate`.
fn name_of(method: &str, path: &str) -> String {
    let path = path.trim_start_matches("/admin/v1/");
    let words = path
        .split(['/', '.', '{', '}'])
        .filter(|word| !word.is_empty());
    let words: Vec<&str> = words.collect();
    format!("{}_{}", method.to_ascii_lowercase(), words.join("_"))
}
