//! The messages of a chat as a template wants them: known roles, content as one text, tool
//! arguments as an object. What a template may read besides (tool calls, names) passes as it is.
//! Pure. Called by `ask`.

use serde_json::{Map, Value};

use crate::refuse::Refusal;

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// Checks and normalises the list under `messages`.
///
/// # Errors
/// A [`Refusal`] that names the message, such as `messages[2].content`.
pub(crate) fn normalise(messages: &Value) -> Result<Vec<Value>, Refusal> {
    let list = messages
        .as_array()
        .filter(|list| !list.is_empty())
        .ok_or_else(|| refuse("messages", "must be a list with at least one message"))?;
    list.iter()
        .enumerate()
        .map(|(at, message)| one(at, message))
        .collect()
}

fn one(at: usize, message: &Value) -> Result<Value, Refusal> {
    let place = format!("messages[{at}]");
    let members = message
        .as_object()
        .ok_or_else(|| refuse(&place, "must be an object"))?;
    let role = members
        .get("role")
        .and_then(Value::as_str)
        .filter(|role| ROLES.contains(role))
        .ok_or_else(|| {
            refuse(
                &format!("{place}.role"),
                "must be system, developer, user, assistant or tool",
            )
        })?;
    let calls = members.get("tool_calls").filter(|calls| !calls.is_null());
    let content = match members.get("content") {
        Some(content) if !content.is_null() => text(&place, content)?,
        _ if role == "assistant" => String::new(),
        _ => return Err(refuse(&format!("{place}.content"), "is required")),
    };
    let mut out = Map::new();
    // templates know the older name only
    let role = if role == "developer" { "system" } else { role };
    out.insert("role".to_owned(), role.into());
    out.insert("content".to_owned(), content.into());
    for (name, value) in members {
        if !matches!(name.as_str(), "role" | "content" | "tool_calls") && !value.is_null() {
            out.insert(name.clone(), value.clone());
        }
    }
    if let Some(calls) = calls {
        out.insert("tool_calls".to_owned(), tool_calls(&place, calls)?);
    }
    Ok(Value::Object(out))
}

/// A text, or text parts joined by line breaks.
fn text(place: &str, content: &Value) -> Result<String, Refusal> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().enumerate().map(|(at, part)| {
                let place = format!("{place}.content[{at}]");
                match part.get("type").and_then(Value::as_str) {
                    Some("text") => part
                        .get("text")
                        .and_then(Value::as_str)
                        .ok_or_else(|| refuse(&format!("{place}.text"), "must be a text")),
                    Some(_) => Err(refuse(
                        &place,
                        "this model reads text only; send text parts",
                    )),
                    None => Err(refuse(&format!("{place}.type"), "is required")),
                }
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => Err(refuse(
            &format!("{place}.content"),
            "must be a text or a list of text parts",
        )),
    }
}

/// Calls with their arguments as an object: clients send them as a text of JSON, templates write
/// them out as JSON and would quote that text a second time.
fn tool_calls(place: &str, calls: &Value) -> Result<Value, Refusal> {
    let mut calls = calls.clone();
    let list = calls
        .as_array_mut()
        .ok_or_else(|| refuse(&format!("{place}.tool_calls"), "must be a list"))?;
    for call in list {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        if let Some(parsed) = arguments
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = parsed;
        }
    }
    Ok(calls)
}

fn refuse(place: &str, what: &str) -> Refusal {
    Refusal::invalid(place.to_owned(), format!("{place}: {what}"))
}
