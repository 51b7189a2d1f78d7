//! One row of a data set as a group: columns by the names that data sets for reasoning use.

use base64::Engine;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::rollout::request::GroupBody;

/// A row that any configuration could generate.
pub(super) fn probe() -> GroupBody {
    GroupBody { messages: Some(vec![json!({"role": "user", "content": "?"})]), ..GroupBody::default() }
}

/// `messages`, a list of messages in `prompt`, templated text in `prompt`, or a question in `problem`; `image` or `images`; `solution`;
/// everything else becomes `fields`.
///
/// # Errors
///
/// A row without a prompt or with several, images that are none, a column of another type.
pub(super) fn group(row: Value, id: String) -> Result<GroupBody> {
    let Value::Object(mut columns) = row else { return Err(Error::invalid("", "not a JSON object")) };
    columns.retain(|_, value| !value.is_null());
    let mut images = Vec::new();
    for name in ["image", "images"] {
        match columns.shift_remove(name) {
            None => {}
            Some(Value::Array(items)) => {
                for (i, item) in items.iter().enumerate() {
                    images.push(image(item).ok_or_else(|| Error::invalid(format!("{name}[{i}]"), NO_IMAGE))?);
                }
            }
            Some(item) => images.push(image(&item).ok_or_else(|| Error::invalid(name, NO_IMAGE))?),
        }
    }
    let solution = match columns.shift_remove("solution") {
        Some(Value::Bool(answer)) => Some(json!(answer.to_string())),
        other => other,
    };
    let prompts: Vec<(&str, Value)> =
        ["messages", "prompt", "problem"].into_iter().filter_map(|name| Some((name, columns.shift_remove(name)?))).collect();
    let fields = (!columns.is_empty()).then_some(columns);
    let body = GroupBody { id: Some(id), solution, fields, ..GroupBody::default() };
    let [(name, prompt)] = <[(&str, Value); 1]>::try_from(prompts).map_err(|found| {
        let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
        Error::invalid("", format!("a row has exactly one of messages, prompt and problem; this one has [{}]", names.join(", ")))
    })?;
    match (name, prompt) {
        ("prompt", Value::String(text)) => Ok(GroupBody { prompt: Some(text), images: (!images.is_empty()).then_some(images), ..body }),
        ("problem", Value::String(text)) => {
            Ok(GroupBody { messages: Some(placed(vec![json!({"role": "user", "content": text})], images)), ..body })
        }
        ("messages" | "prompt", Value::Array(messages)) => {
            let has_parts = messages.iter().any(|message| parts(message).any(|part| part["type"].as_str().is_some_and(|t| t != "text")));
            Ok(match has_parts {
                true => GroupBody { messages: Some(messages), images: (!images.is_empty()).then_some(images), ..body },
                false => GroupBody { messages: Some(placed(messages, images)), ..body },
            })
        }
        (name, _) => Err(Error::invalid(name, "neither a text nor a list of messages")),
    }
}

const NO_IMAGE: &str = "neither a path, a URL, a data URL nor {\"bytes\": base64}";

fn parts(message: &Value) -> impl Iterator<Item = &Value> {
    message["content"].as_array().into_iter().flatten()
}

/// As `datasets` writes images: a text, or `{bytes, path}`.
fn image(item: &Value) -> Option<String> {
    match item {
        Value::String(source) => Some(source.clone()),
        Value::Object(fields) => match (&fields.get("bytes"), &fields.get("path").or(fields.get("url"))) {
            (Some(Value::String(bytes)), _) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).ok()?;
                // The decoder looks at the bytes, not at what they are called.
                Some(format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes)))
            }
            (_, Some(Value::String(path))) => Some(path.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// Messages with the images before the first user's text, as TRL places them.
fn placed(mut messages: Vec<Value>, images: Vec<String>) -> Vec<Value> {
    if images.is_empty() {
        return messages;
    }
    let image = |source: String| json!({"type": "image_url", "image_url": {"url": source}});
    if let Some(message) = messages.iter_mut().find(|message| message["role"] == "user") {
        let text = match message["content"].take() {
            Value::Array(parts) => parts,
            Value::String(text) => vec![json!({"type": "text", "text": text})],
            other => vec![other],
        };
        let content: Vec<Value> = images.into_iter().map(image).chain(text).collect();
        if let Value::Object(fields) = message {
            fields.insert("content".into(), content.into());
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: Value, expected: Value) {
        let found = match group(row.clone(), "0:1".into()) {
            Ok(body) => {
                let body = serde_json::to_value(body).unwrap();
                Value::Object(body.as_object().unwrap().iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect())
            }
            Err(error) => json!(error.to_string()),
        };
        assert_eq!(found, expected, "{row}");
    }

    #[test]
    fn columns_mean_what_data_sets_mean() {
        let url = |text: &str| json!({"type": "image_url", "image_url": {"url": text}});
        let text = |text: &str| json!({"type": "text", "text": text});
        check(
            json!({"problem": "1 + 1?", "solution": 2, "level": "easy", "image": null}),
            json!({"id": "0:1", "messages": [{"role": "user", "content": "1 + 1?"}], "solution": 2, "fields": {"level": "easy"}}),
        );
        check(
            json!({"problem": "How many?", "image": {"bytes": "AAEC", "path": null}, "solution": true}),
            json!({"id": "0:1", "solution": "true",
                "messages": [{"role": "user", "content": [url("data:image/png;base64,AAEC"), text("How many?")]}]}),
        );
        let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]);
        check(json!({"messages": messages}), json!({"id": "0:1", "messages": messages}));
        check(
            json!({"prompt": messages, "images": ["a.png", {"path": "b.png"}]}),
            json!({"id": "0:1", "messages": [{"role": "system", "content": "s"},
                {"role": "user", "content": [url("a.png"), url("b.png"), text("u")]}]}),
        );
        let bare = json!([{"role": "user", "content": [{"type": "image"}, text("u")]}]);
        check(json!({"prompt": bare, "image": "a.png"}), json!({"id": "0:1", "messages": bare, "images": ["a.png"]}));
        check(json!({"prompt": "<|im_start|>", "images": []}), json!({"id": "0:1", "prompt": "<|im_start|>"}));
        check(json!([1]), json!(": not a JSON object"));
        check(json!({"solution": "4"}), json!(": a row has exactly one of messages, prompt and problem; this one has []"));
        check(
            json!({"prompt": "a", "problem": "b"}),
            json!(": a row has exactly one of messages, prompt and problem; this one has [prompt, problem]"),
        );
        check(json!({"problem": 3}), json!("problem: neither a text nor a list of messages"));
        check(json!({"problem": "x", "images": [3]}), json!(format!("images[0]: {NO_IMAGE}")));
    }
}
