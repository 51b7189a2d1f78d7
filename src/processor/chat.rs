//! Chat messages as callers send them, checked and brought into the one form that chat templates read.
//!
//! Accepted are OpenAI's parts (`{"type": "image_url", "image_url": {"url": …}}`), Hugging Face's (`{"type": "image", "image": …}`)
//! and plain strings. What is not understood is refused with its path; nothing is dropped in silence.

use serde_json::{Map, Value, json};

use super::template::ChatTemplate;
use crate::error::{Error, Result};

/// Messages in the form that templates read, and the images that they name, in order of appearance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Value>,
    pub images: Vec<ImageReference>,
}

/// Where an image part stands, and its data URL, path or URL. `None` for a bare `{"type": "image"}`, which takes the next of the images
/// given beside the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    pub path: String,
    pub source: Option<String>,
}

const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];
const MESSAGE_KEYS: [&str; 5] = ["role", "content", "name", "tool_calls", "tool_call_id"];
const VIDEO: &str = "video is not decoded yet";

impl Conversation {
    /// Reads messages for a template. `keep_parts` says whether it takes content as a list of parts, as those of vision-language
    /// models do; text templates get the text parts joined.
    pub fn parse(messages: Vec<Value>, template: &ChatTemplate, keep_parts: bool) -> Result<Self> {
        if messages.is_empty() {
            return Err(Error::invalid("messages", "there are no messages"));
        }
        let mut conversation = Conversation::default();
        for (i, message) in messages.into_iter().enumerate() {
            let path = format!("messages[{i}]");
            let message = conversation.message(message, template, keep_parts, &path).map_err(|e| e.within(&path))?;
            conversation.messages.push(message);
        }
        Ok(conversation)
    }

    fn message(&mut self, message: Value, template: &ChatTemplate, keep_parts: bool, path: &str) -> Result<Value> {
        let Value::Object(mut message) = message else {
            return Err(Error::invalid("", "a message is an object with role and content"));
        };
        // Clients that dump their own types send nulls for what they leave out.
        message.retain(|_, value| !value.is_null());
        refuse_unknown(&message, &MESSAGE_KEYS)?;
        let role = message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !ROLES.contains(&role.as_str()) {
            let got = message.get("role").unwrap_or(&Value::Null);
            return Err(Error::invalid("role", format!("{got} is not a role: {} are", ROLES.join(", "))));
        }
        let mut out = Map::new();
        let content = match message.remove("content") {
            Some(Value::String(text)) => json!(text),
            Some(Value::Array(parts)) => self.parts(parts, keep_parts, &format!("{path}.content")).map_err(|e| e.within("content"))?,
            None if role == "assistant" && message.contains_key("tool_calls") => json!(""),
            None => return Err(Error::invalid("content", "a message needs content")),
            Some(_) => return Err(Error::invalid("content", "content is a string or a list of parts")),
        };
        out.insert("role".into(), json!(role));
        out.insert("content".into(), content);
        if let Some(calls) = message.remove("tool_calls") {
            if role != "assistant" {
                return Err(Error::invalid("tool_calls", "only an assistant calls tools"));
            }
            if !template.reads_tool_calls() {
                return Err(Error::invalid("tool_calls", "the chat template of this model does not support tool calls"));
            }
            out.insert("tool_calls".into(), tool_calls(calls).map_err(|e| e.within("tool_calls"))?);
        }
        for key in ["name", "tool_call_id"] {
            match message.remove(key) {
                Some(Value::String(text)) => _ = out.insert(key.into(), json!(text)),
                Some(_) => return Err(Error::invalid(key, "a string is expected")),
                None => {}
            }
        }
        Ok(Value::Object(out))
    }

    fn parts(&mut self, parts: Vec<Value>, keep_parts: bool, path: &str) -> Result<Value> {
        let parts = parts.into_iter().enumerate().map(|(i, part)| {
            let at = format!("[{i}]");
            self.part(part, &format!("{path}{at}")).map_err(|e| e.within(&at))
        });
        let parts: Vec<Value> = parts.collect::<Result<_>>()?;
        if keep_parts {
            return Ok(Value::Array(parts));
        }
        match parts.iter().position(|part| part["type"] != "text") {
            Some(i) => Err(Error::invalid(format!("[{i}]"), "this model takes no images")),
            None => Ok(json!(parts.iter().filter_map(|part| part["text"].as_str()).collect::<String>())),
        }
    }

    fn part(&mut self, part: Value, path: &str) -> Result<Value> {
        let mut part = match part {
            Value::String(text) => return Ok(json!({"type": "text", "text": text})),
            Value::Object(part) => part,
            _ => return Err(Error::invalid("", "a part is an object with a type, or a string")),
        };
        part.retain(|_, value| !value.is_null());
        let kind = part.get("type").and_then(Value::as_str).map(str::to_owned);
        // Older data sets leave the type out.
        let kind =
            kind.or_else(|| ["text", "image", "image_url", "video"].into_iter().find(|key| part.contains_key(*key)).map(str::to_owned));
        match kind.as_deref() {
            Some("text") => {
                refuse_unknown(&part, &["type", "text"])?;
                match part.remove("text") {
                    Some(Value::String(text)) => Ok(json!({"type": "text", "text": text})),
                    _ => Err(Error::invalid("text", "a text part needs a string text")),
                }
            }
            Some("image_url" | "image") => {
                refuse_unknown(&part, &["type", "image_url", "image", "url", "path"])?;
                self.images.push(image_reference(part, path)?);
                Ok(json!({"type": "image"}))
            }
            Some("video" | "video_url") => Err(Error::invalid("type", VIDEO)),
            Some(other) => Err(Error::invalid("type", format!("{other:?} is not a type of part: text, image_url and image are"))),
            None => Err(Error::invalid("type", "a part needs a type: text, image_url or image")),
        }
    }
}

fn image_reference(mut part: Map<String, Value>, path: &str) -> Result<ImageReference> {
    let mut sources = ["image_url", "image", "url", "path"].into_iter().filter_map(|key| Some((key, part.remove(key)?)));
    let Some((key, value)) = sources.next() else {
        return Ok(ImageReference { path: path.to_owned(), source: None });
    };
    if let Some((second, _)) = sources.next() {
        return Err(Error::invalid(second, format!("one image has both {key} and {second}")));
    }
    let source = match value {
        Value::String(source) => source,
        Value::Object(mut object) if key == "image_url" => {
            // The detail level chooses between resolutions of another model; every image is taken whole here.
            refuse_unknown(&object, &["url", "detail"]).map_err(|e| e.within(key))?;
            match object.remove("url") {
                Some(Value::String(source)) => source,
                _ => return Err(Error::invalid("image_url.url", "a string is expected")),
            }
        }
        _ => return Err(Error::invalid(key, "a data URL, a path or a URL is expected")),
    };
    Ok(ImageReference { path: format!("{path}.{key}"), source: Some(source) })
}

/// Tool calls with their arguments as an object: OpenAI sends the text of one, and templates would quote it once more.
fn tool_calls(calls: Value) -> Result<Value> {
    let Value::Array(mut calls) = calls else { return Err(Error::invalid("", "a list is expected")) };
    for (i, call) in calls.iter_mut().enumerate() {
        let path = format!("[{i}]");
        let (function, path) = match call.get("function") {
            Some(_) => (&mut call["function"], format!("{path}.function")),
            None => (call, path),
        };
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(Error::invalid(format!("{path}.name"), "a string is expected"));
        }
        let arguments = function.get_mut("arguments");
        if let Some(text) = arguments.as_deref().and_then(Value::as_str) {
            let parsed: Option<Map<String, Value>> = serde_json::from_str(text).ok();
            let parsed = parsed.ok_or_else(|| Error::invalid(format!("{path}.arguments"), "the text of a JSON object is expected"))?;
            function["arguments"] = Value::Object(parsed);
        }
    }
    Ok(Value::Array(calls))
}

fn refuse_unknown(object: &Map<String, Value>, known: &[&str]) -> Result<()> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(Error::invalid_code(key.as_str(), "unknown_field", format!("unknown field; known are {}", known.join(", ")))),
        None => Ok(()),
    }
}
