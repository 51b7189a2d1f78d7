//! The chat template of a model folder, rendered as transformers does, with control tokens that only the template can write.
//!
//! A template names control tokens by their text, and so could a user. The two are told apart by where they come from, not by what
//! they look like: at load every added token in the template's source is replaced by a private code (a noncharacter and an index), and
//! the noncharacters in what a caller sends are escaped, so no string of a caller can contain a code or complete one. After rendering,
//! the codes become tokens and everything else is encoded as ordinary text.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value, json};

use super::python;
use super::tokenizer::{Piece, Tokenizer};
use crate::error::{Error, Result};

/// Begins the code of an added token; a private-use character with its index follows.
const CODE: char = '\u{FDD0}';
/// Begins an escaped noncharacter of a caller: `0` follows for [`CODE`], `1` for itself.
const ESCAPE: char = '\u{FDD1}';
const FIRST_INDEX: u32 = 0xE000;

/// Instructions of one rendering: some hundred thousand messages.
const FUEL: u64 = 5_000_000;
/// Bytes of rendered text.
const MAX_OUTPUT: usize = 64 << 20;
/// Variables that are ours to set.
const OWN_VARIABLES: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like from `tokenizer_config.json`, as codes.
    special_tokens: Vec<(String, String)>,
    /// Variables that a caller may set.
    variables: BTreeSet<String>,
    reads_tools: bool,
    reads_tool_calls: bool,
}

/// A rendered prompt: its text, and the same cut at the tokens that the template wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    pieces: Vec<RenderedPiece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RenderedPiece {
    Text(String),
    Added(u32),
}

/// What a template is given.
pub struct RenderInput<'a> {
    pub messages: &'a [Value],
    pub tools: Option<&'a Value>,
    /// Further variables, such as `add_vision_id`: only ones that the template reads.
    pub kwargs: &'a Map<String, Value>,
    pub add_generation_prompt: bool,
    /// Text after the generation prompt, which the completion continues.
    pub assistant_prefill: Option<&'a str>,
}

impl ChatTemplate {
    /// The template of a folder, `None` if it has none. `chat_template.jinja` goes before `chat_template.json`, and both before the
    /// `chat_template` of `tokenizer_config.json`, which in vision-language folders is the text model's.
    pub fn load(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let read = |name: &str| match std::fs::read_to_string(folder.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file(folder.join(name), e)),
        };
        let read_json = |name: &str| -> Result<Value> {
            let text = read(name)?.unwrap_or_else(|| "null".into());
            serde_json::from_str(&text).map_err(|e| Error::file(folder.join(name), e))
        };
        let names = read_json("tokenizer_config.json")?;
        let source = match read("chat_template.jinja")? {
            Some(source) => Some(source),
            None => {
                default_template(&read_json("chat_template.json")?["chat_template"]).or_else(|| default_template(&names["chat_template"]))
            }
        };
        source.map(|source| Self::new(&source, &names, tokenizer).map_err(|e| Error::file(folder.join("chat template"), e))).transpose()
    }

    /// A template from a file of its own, in the place of the folder's.
    pub fn load_file(path: &Path, folder: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let source = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        let names = std::fs::read(folder.join("tokenizer_config.json")).ok();
        let names = names.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null);
        Self::new(&source, &names, tokenizer).map_err(|e| Error::file(path, e))
    }

    /// A template from its source; `tokenizer_config` gives the variables `bos_token`, `eos_token` and so on.
    pub fn new(source: &str, tokenizer_config: &Value, tokenizer: &Tokenizer) -> Result<Self> {
        if source.contains([CODE, ESCAPE]) {
            return Err(Error::Model("the template contains the noncharacter U+FDD0 or U+FDD1".into()));
        }
        let mut environment = environment().map_err(|e| Error::Model(e.to_string()))?;
        environment
            .add_template_owned("chat", with_codes(source, tokenizer, |_| true))
            .map_err(|e| Error::Model(format!("the template does not parse: {e}")))?;
        let special_tokens: Vec<(String, String)> = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .into_iter()
            .filter_map(|name| {
                let text = tokenizer_config[name].as_str().or_else(|| tokenizer_config[name]["content"].as_str())?;
                Some((name.to_owned(), with_codes(text, tokenizer, |_| true)))
            })
            .collect();
        let globals: BTreeSet<String> = environment.globals().map(|(name, _)| name.to_owned()).collect();
        let read = environment.get_template("chat").map(|t| t.undeclared_variables(false)).unwrap_or_default();
        let is_free = |name: &String| {
            !globals.contains(name) && !OWN_VARIABLES.contains(&name.as_str()) && special_tokens.iter().all(|(taken, _)| taken != name)
        };
        let template = ChatTemplate {
            reads_tools: read.contains("tools"),
            reads_tool_calls: source.contains("tool_calls"),
            variables: read.into_iter().filter(is_free).collect(),
            special_tokens,
            environment,
        };
        template.check_tokens(tokenizer)?;
        Ok(template)
    }

    pub fn reads_tools(&self) -> bool {
        self.reads_tools
    }

    pub fn reads_tool_calls(&self) -> bool {
        self.reads_tool_calls
    }

    /// Renders messages. Their strings, keys included, are data: whatever they contain is encoded as ordinary text. The one exception
    /// are added tokens that are not control tokens (`<tool_call>`) in what an assistant said, since that is how it said them.
    pub fn render(&self, input: &RenderInput, tokenizer: &Tokenizer) -> Result<Rendered> {
        if input.tools.is_some() && !self.reads_tools {
            return Err(Error::invalid("tools", "the chat template of this model does not support tools"));
        }
        let messages: Vec<Value> = input.messages.iter().map(|message| guard_message(message, tokenizer)).collect();
        let mut context = Map::new();
        for (name, value) in input.kwargs {
            if !self.variables.contains(name) {
                let known: Vec<&str> = self.variables.iter().map(String::as_str).collect();
                let message = format!("the chat template reads no such variable; a caller may set: [{}]", known.join(", "));
                return Err(Error::invalid_code(format!("chat_template_kwargs.{name}"), "unknown_field", message));
            }
            context.insert(name.clone(), guard(value, &escape));
        }
        context.extend(self.special_tokens.iter().map(|(name, text)| (name.clone(), json!(text))));
        context.insert("messages".into(), Value::Array(messages));
        context.insert("add_generation_prompt".into(), json!(input.add_generation_prompt));
        if let Some(tools) = input.tools {
            context.insert("tools".into(), guard(tools, &escape));
        }
        let mut output = Capped(Vec::new());
        let template = self.environment.get_template("chat").map_err(|_| Error::Model("the chat template is gone".into()))?;
        template.render_captured_to(Jinja::from(Serde(&context)), &mut output).map_err(|e| refusal(&e))?;
        let mut coded = String::from_utf8(output.0).map_err(|_| Error::invalid("messages", "the chat template cut a character"))?;
        coded.extend(input.assistant_prefill.map(|text| with_codes(text, tokenizer, |token| !token.special)));
        Ok(Rendered::new(&coded, tokenizer))
    }

    /// Refuses a template that puts the text of a control token together from parts: it would be encoded as ordinary text.
    fn check_tokens(&self, tokenizer: &Tokenizer) -> Result<()> {
        let user = json!({"role": "user", "content": "question"});
        let short = vec![user.clone()];
        let long = vec![json!({"role": "system", "content": "rule"}), user, json!({"role": "assistant", "content": "answer"})];
        let rendered: Vec<Result<Rendered>> = [short, long]
            .iter()
            .map(|messages| {
                let kwargs = Map::new();
                let input = RenderInput { messages, tools: None, kwargs: &kwargs, add_generation_prompt: true, assistant_prefill: None };
                self.render(&input, tokenizer)
            })
            .collect();
        // A template may refuse a system turn, but not the plainest conversation.
        if let Some(Err(e)) = rendered.first() {
            return Err(Error::Model(format!("the template does not render one user message: {e}")));
        }
        for piece in rendered.iter().flatten().flat_map(|rendered| &rendered.pieces) {
            if let RenderedPiece::Text(text) = piece
                && let Some(Piece::Added(id)) =
                    tokenizer.split(text, |token| token.special).into_iter().find(|p| matches!(p, Piece::Added(_)))
            {
                let token = tokenizer.decode(&[id], false);
                return Err(Error::Model(format!("the template assembles {token} from parts, which can't be told from a user's text")));
            }
        }
        Ok(())
    }
}

impl Rendered {
    fn new(coded: &str, tokenizer: &Tokenizer) -> Self {
        let mut rendered = Rendered::default();
        let mut run = String::new();
        let mut chars = coded.chars();
        while let Some(c) = chars.next() {
            match c {
                // A code or an escape that the template cut in two (by slicing a string) is dropped.
                CODE => {
                    let index = chars.next().and_then(|c| u32::from(c).checked_sub(FIRST_INDEX));
                    if let Some(token) = index.and_then(|index| tokenizer.added_tokens().get(index as usize)) {
                        rendered.push_run(&mut run);
                        rendered.text.push_str(&token.text);
                        rendered.pieces.push(RenderedPiece::Added(token.id));
                    }
                }
                ESCAPE => match chars.next() {
                    Some('0') => run.push(CODE),
                    Some('1') => run.push(ESCAPE),
                    _ => {}
                },
                other => run.push(other),
            }
        }
        rendered.push_run(&mut run);
        rendered
    }

    fn push_run(&mut self, run: &mut String) {
        if !run.is_empty() {
            self.text.push_str(run);
            self.pieces.push(RenderedPiece::Text(std::mem::take(run)));
        }
    }

    pub fn encode(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids = Vec::new();
        for piece in &self.pieces {
            match piece {
                RenderedPiece::Text(text) => ids.extend(tokenizer.encode_ordinary(text)),
                RenderedPiece::Added(id) => ids.push(*id),
            }
        }
        ids
    }
}

/// The settings of transformers: block tags take their line with them, undefined variables are falsy, Python's string methods work.
fn environment() -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    environment.add_function("strftime_now", |format: String| python::strftime_utc(&format, std::time::SystemTime::now()));
    Ok(environment)
}

/// Marks the errors that a template raised itself, whose text is meant for the caller.
const RAISED: &str = "raised: ";

fn refusal(error: &minijinja::Error) -> Error {
    let message = match (error.detail().and_then(|detail| detail.strip_prefix(RAISED)), error.kind()) {
        (Some(message), _) => format!("the chat template refuses the conversation: {message}"),
        (_, ErrorKind::OutOfFuel) => "rendering the chat template takes too long".to_owned(),
        (_, ErrorKind::WriteFailure) => format!("the rendered prompt is longer than {MAX_OUTPUT} bytes"),
        _ => "the chat template can't render this conversation".to_owned(),
    };
    Error::invalid("messages", message)
}

/// `json.dumps(value, ensure_ascii=False)`, as transformers defines this filter: unlike Jinja's own it escapes nothing for HTML.
fn to_json(value: Serde<Value>, kwargs: Kwargs) -> std::result::Result<Jinja, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let style = python::JsonStyle { indent, ensure_ascii: ensure_ascii.unwrap_or(false), sort_keys: sort_keys.unwrap_or(false) };
    Ok(Jinja::from(python::json_dumps(&value.0, style)))
}

/// Newer folders may hold several named templates; the unnamed conversation takes `default`.
fn default_template(value: &Value) -> Option<String> {
    let named = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(named).map(str::to_owned)
}

fn escape(text: &str) -> String {
    if !text.contains([CODE, ESCAPE]) {
        return text.to_owned();
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            CODE => escaped.extend([ESCAPE, '0']),
            ESCAPE => escaped.extend([ESCAPE, '1']),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A text with codes in the place of the added tokens that `read` accepts, and the rest escaped.
fn with_codes(text: &str, tokenizer: &Tokenizer, read: impl Fn(&super::tokenizer::AddedToken) -> bool) -> String {
    let mut coded = String::with_capacity(text.len());
    for piece in tokenizer.split(text, read) {
        match piece {
            Piece::Text(text) => coded.push_str(&escape(text)),
            Piece::Added(id) => {
                let index = tokenizer.added_tokens().iter().position(|token| token.id == id).unwrap_or_default();
                // Folders have some dozens of added tokens, the private use area 6,400 characters.
                coded.extend(char::from_u32(FIRST_INDEX + index as u32).map(|index| [CODE, index]).into_iter().flatten());
            }
        }
    }
    coded
}

fn guard_message(message: &Value, tokenizer: &Tokenizer) -> Value {
    if message["role"] == "assistant" {
        guard(message, &|text| with_codes(text, tokenizer, |token| !token.special))
    } else {
        guard(message, &escape)
    }
}

/// The value with `change` applied to all its strings, keys included.
fn guard(value: &Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(items) => items.iter().map(|item| guard(item, change)).collect(),
        Value::Object(entries) => entries.iter().map(|(key, value)| (change(key), guard(value, change))).collect(),
        other => other.clone(),
    }
}

/// Output with an end: a template must not fill the memory.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
