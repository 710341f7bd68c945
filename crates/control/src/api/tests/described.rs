//! The description, held against the table and against real answers.

use std::collections::HashSet;

use super::remote::{Door, Said};
use super::*;
use crate::api::table::table;
use crate::keys::Right;

/// Whether a value is as a schema says; members that the schema doesn't name are faults too.
fn fault_of(schema: &Value, value: &Value, all: &Value) -> Option<String> {
    if let Some(place) = schema["$ref"].as_str() {
        let found = all.pointer(place.trim_start_matches('#')).unwrap();
        return fault_of(found, value, all);
    }
    if let Some(either) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        let faults: Vec<_> = either.iter().map(|one| fault_of(one, value, all)).collect();
        return faults
            .iter()
            .all(Option::is_some)
            .then(|| format!("none fits {value}: {faults:?}"));
    }
    if let Some(only) = schema.get("const").filter(|only| *only != value) {
        return Some(format!("{value} isn't {only}"));
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|words| !words.contains(value))
    {
        return Some(format!("{value} isn't one of {schema}"));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !kinds.is_empty() && !kinds.contains(&kind) {
        return Some(format!("{value} isn't {kinds:?}"));
    }
    if let (Some("date-time"), Some(text)) = (schema["format"].as_str(), value.as_str())
        && clock::parse_rfc3339(text).is_none()
    {
        return Some(format!("{text} is no time"));
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
        return list.iter().find_map(|item| fault_of(items, item, all));
    }
    let known = schema["properties"].as_object()?;
    let members = value.as_object()?;
    let missing = schema["required"].as_array().into_iter().flatten();
    let missing = missing
        .filter_map(Value::as_str)
        .find(|name| !members.contains_key(*name));
    if let Some(name) = missing {
        return Some(format!("{name} is missing in {value}"));
    }
    members
        .iter()
        .find_map(|(name, value)| match known.get(name) {
            Some(schema) => fault_of(schema, value, all),
            None => Some(format!("{name} isn't described")),
        })
}

#[tokio::test]
async fn the_description_has_every_route_with_its_right() {
    let all = description();
    let mut names = HashSet::new();
    for route in table() {
        let method = route.rule.method.to_ascii_lowercase();
        let operation = &all["paths"][route.rule.path][&method];
        assert_eq!(operation["x-guan-right"], route.rule.right.as_str());
        let name = operation["operationId"].as_str().unwrap().to_owned();
        assert!(names.insert(name), "{operation}");
    }
    let paths = all["paths"].as_object().unwrap().values();
    let count: usize = paths.map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(count, table().len());
}

/// A request to each route that it can be answered well; `{id}` is what was made before.
const GOOD: &[(&str, &str)] = &[
    (
        "POST /admin/v1/projects",
        r#"{"name":"p","own":{"models":["m"]},"notes":"n"}"#,
    ),
    (
        "POST /admin/v1/keys",
        r#"{"name":"k","role":"user","project":"p","expires_at":"2099-01-01T00:00:00Z","own":{"addresses":["10.0.0.0/8"],"max_output_tokens":5}}"#,
    ),
    (
        "POST /admin/v1/admins",
        r#"{"name":"a","right":"operator","roles":["user"]}"#,
    ),
    ("GET /admin/v1/keys", ""),
    ("GET /admin/v1/keys/{id}", ""),
    ("PATCH /admin/v1/keys/{id}", r#"{"notes":"x"}"#),
    (
        "POST /admin/v1/keys/{id}/rotate",
        r#"{"overlap_seconds":5}"#,
    ),
    ("GET /admin/v1/keys/{id}/limits", ""),
    ("POST /admin/v1/keys/{id}/limits/reset", ""),
    (
        "POST /admin/v1/keys/import",
        r#"{"form":"plain","list":"sk-litellm-1","like":{"name":"l","role":"user"}}"#,
    ),
    ("DELETE /admin/v1/keys/{id}", ""),
    ("GET /admin/v1/projects", ""),
    ("GET /admin/v1/projects/{id}", ""),
    ("PATCH /admin/v1/projects/{id}", r#"{"own":null}"#),
    ("POST /admin/v1/projects/{id}/disable", ""),
    ("POST /admin/v1/projects/{id}/enable", ""),
    ("GET /admin/v1/usage", ""),
    ("GET /admin/v1/nodes", ""),
    ("GET /admin/v1/audit/key", ""),
    ("GET /admin/v1/audit/heads", ""),
    ("GET /admin/v1/me", ""),
    ("GET /admin/v1/openapi.json", ""),
    ("GET /admin/v1/admins", ""),
    ("DELETE /admin/v1/admins/{id}", ""),
    ("GET /admin/v1/secrets", ""),
    ("POST /admin/v1/secrets/seal", r#"{"secret":"s"}"#),
    ("POST /admin/v1/secrets/rewrap", ""),
];

/// That an answer is as the description says.
fn check(all: &Value, line: &str, said: &Said) {
    let (method, path) = line.split_once(' ').unwrap();
    let operation = &all["paths"][path][method.to_ascii_lowercase()];
    let response = &operation["responses"][said.status.to_string()];
    let schema = &response["content"]["application/json"]["schema"];
    assert!(!schema.is_null(), "{line}: {} isn't described", said.status);
    assert_eq!(fault_of(schema, &said.body, all), None, "{line}");
}

#[tokio::test]
async fn real_answers_are_as_the_description_says() {
    let door = Door::open().await;
    let token = door.token(Right::Owner, None).await;
    let all = door
        .ask(&token, "GET /admin/v1/openapi.json", &[], "")
        .await
        .body;
    assert_eq!(all, description());
    let (mut key_id, mut admin_id) = (String::new(), String::new());
    let mut seen = HashSet::new();
    for (line, body) in GOOD {
        let id = match *line {
            line if line.contains("/keys/") => &key_id,
            line if line.contains("/admins/") => &admin_id,
            _ => "p",
        };
        let mut asked = line.replace("{id}", id);
        if *line == "GET /admin/v1/usage" {
            asked += "?by=key&since_day=0";
        }
        let any = [("if-match", "*")];
        let more = if line.starts_with("PATCH") {
            &any[..]
        } else {
            &[]
        };
        let said = door.ask(&token, &asked, more, body).await;
        assert!(said.status < 300, "{line}: {}", said.body);
        check(&all, line, &said);
        let made = || said.body["id"].as_str().unwrap().to_owned();
        match *line {
            "POST /admin/v1/keys" => key_id = made(),
            "POST /admin/v1/admins" => admin_id = made(),
            _ => {}
        }
        // Refusals are described too.
        check(&all, line, &door.ask("", &asked, more, body).await);
        let _new = seen.insert(*line);
    }
    assert_eq!(seen.len(), table().len());
}
