//! Text to token ids and back.
//!
//! The byte-pair encoding is the `tokenizers` crate's. Added tokens (`<|im_end|>` and its like) are kept out of it and split off here,
//! so that one place decides which text may become a control token: [`Tokenizer::encode`] reads them, [`Tokenizer::encode_ordinary`]
//! never does. Sampling defaults that a folder ships in `generation_config.json` (temperature, repetition penalty, top-k, …) are
//! deliberately not read: a rollout under a hidden repetition penalty of 1.05 has logps that no learner can reproduce.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

pub struct Tokenizer {
    /// Without added tokens.
    bpe: tokenizers::Tokenizer,
    added: Vec<AddedToken>,
    /// The bytes of all tokens, one after the other; token `id` has those from `starts[id]` to `starts[id + 1]`.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    eos_token_ids: Vec<u32>,
    pad_token_id: Option<u32>,
}

/// A token outside of the byte-pair vocabulary, made by its exact text only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub text: String,
    /// Control tokens, which decoding can skip. The others (`<tool_call>`, …) count as text that happens to be one token.
    pub special: bool,
}

/// A stretch of text between added tokens, or one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    Added(u32),
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, for the end and pad tokens, `generation_config.json`, `config.json` and `tokenizer_config.json`.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let file = std::fs::read(&path).map_err(|e| Error::file(&path, e))?;
        let optional = |name: &str| match std::fs::read(folder.join(name)) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::file(folder.join(name), e)),
            Err(_) => Ok(Value::Null),
        };
        let tokenizer = Self::from_json(&file).map_err(|e| Error::file(&path, e))?;
        let [generation, config, names] =
            [optional("generation_config.json")?, optional("config.json")?, optional("tokenizer_config.json")?];
        let ids = |value: &Value| -> Vec<u32> {
            let list = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
            list.iter().filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
        };
        let named = |key: &str| -> Vec<u32> {
            let text = names[key].as_str().or_else(|| names[key]["content"].as_str());
            text.and_then(|text| tokenizer.id_of(text)).into_iter().collect()
        };
        let first_found = |key: &str, name: &str| {
            let candidates = [ids(&generation[key]), ids(&config[key]), ids(&config["text_config"][key]), named(name)];
            candidates.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default()
        };
        let eos_token_ids = first_found("eos_token_id", "eos_token");
        let pad_token_id = first_found("pad_token_id", "pad_token").first().copied();
        if eos_token_ids.is_empty() {
            return Err(Error::Model(format!("{}: no file names an eos_token_id", folder.display())));
        }
        Ok(Tokenizer { eos_token_ids, pad_token_id, ..tokenizer })
    }

    /// A tokenizer from the text of a `tokenizer.json`, without end and pad tokens.
    pub fn from_json(file: &[u8]) -> Result<Self> {
        let not_a_tokenizer = |e: &dyn std::fmt::Display| Error::Model(format!("not a tokenizer: {e}"));
        let mut json: Value = serde_json::from_slice(file).map_err(|e| not_a_tokenizer(&e))?;
        if json["decoder"]["type"] != "ByteLevel" {
            return Err(Error::Model("only byte-level tokenizers are served".into()));
        }
        let added = json["added_tokens"].take();
        json["added_tokens"] = Value::Array(Vec::new());
        let added: Vec<AddedToken> = added.as_array().into_iter().flatten().map(AddedToken::from_json).collect::<Result<_>>()?;
        let text = serde_json::to_vec(&json).map_err(|e| not_a_tokenizer(&e))?;
        drop(json);
        let bpe = tokenizers::Tokenizer::from_bytes(text).map_err(|e| not_a_tokenizer(&e))?;
        let mut table: Vec<Vec<u8>> = Vec::new();
        let mut put = |id: u32, bytes: Vec<u8>| {
            table.resize_with(table.len().max(id as usize + 1), Vec::new);
            table[id as usize] = bytes;
        };
        for (token, id) in bpe.get_vocab(false) {
            put(id, bytes_of(&token));
        }
        for token in &added {
            put(token.id, token.text.clone().into_bytes());
        }
        let starts = std::iter::once(0).chain(table.iter().scan(0, |end, bytes| {
            *end += bytes.len() as u32;
            Some(*end)
        }));
        Ok(Tokenizer { bpe, added, starts: starts.collect(), bytes: table.concat(), eos_token_ids: Vec::new(), pad_token_id: None })
    }

    /// Ids of a text in which added tokens are read as such.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for piece in self.split(text, |_| true) {
            match piece {
                Piece::Text(text) => self.push_ordinary(text, &mut ids),
                Piece::Added(id) => ids.push(id),
            }
        }
        ids
    }

    /// Ids of a text in which nothing becomes an added token.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.push_ordinary(text, &mut ids);
        ids
    }

    fn push_ordinary(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        // Byte-level encoding covers every string, so failing means that the vocabulary was checked wrongly at load.
        let encoding = self.bpe.encode_fast(text, false).unwrap_or_else(|e| panic!("{} bytes did not encode: {e}", text.len()));
        ids.extend_from_slice(encoding.get_ids());
    }

    /// The text in pieces, cut at those added tokens that `read` accepts: leftmost first, then longest.
    pub fn split<'a>(&self, text: &'a str, read: impl Fn(&AddedToken) -> bool) -> Vec<Piece<'a>> {
        let candidates: Vec<&AddedToken> = self.added.iter().filter(|token| read(token)).collect();
        let mut firsts = [false; 256];
        candidates.iter().for_each(|token| firsts[usize::from(token.text.as_bytes()[0])] = true);
        let (mut pieces, mut from, mut at) = (Vec::new(), 0, 0);
        while let Some(skip) = text.as_bytes()[at..].iter().position(|byte| firsts[usize::from(*byte)]) {
            at += skip;
            let rest = &text.as_bytes()[at..];
            let longest = candidates.iter().filter(|token| rest.starts_with(token.text.as_bytes())).max_by_key(|token| token.text.len());
            let Some(token) = longest else {
                at += 1;
                continue;
            };
            if at > from {
                pieces.push(Piece::Text(&text[from..at]));
            }
            pieces.push(Piece::Added(token.id));
            at += token.text.len();
            from = at;
        }
        if from < text.len() {
            pieces.push(Piece::Text(&text[from..]));
        }
        pieces
    }

    /// The text of some tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let bytes: Vec<u8> =
            ids.iter().filter(|id| !(skip_special && self.is_special(**id))).flat_map(|id| self.token_bytes(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that a token stands for: not always whole characters, and none for ids above the vocabulary, which exist because
    /// models pad their logits to a round number.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        match self.starts.get(id as usize..) {
            Some([start, end, ..]) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.added.iter().any(|token| token.id == id && token.special)
    }

    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }

    /// The id of the token with exactly this text.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.added.iter().find(|token| token.text == text).map(|token| token.id).or_else(|| match self.encode_ordinary(text).as_slice() {
            [id] => Some(*id),
            _ => None,
        })
    }

    /// One above the highest id with a text.
    pub fn num_tokens(&self) -> usize {
        self.starts.len() - 1
    }

    /// Ids that end a completion; the first one is the tokenizer's own end token in the Qwen families.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    pub fn pad_token_id(&self) -> Option<u32> {
        self.pad_token_id
    }
}

impl AddedToken {
    fn from_json(json: &Value) -> Result<Self> {
        let flag = |key: &str| json[key].as_bool().unwrap_or(false);
        let (id, text) = (json["id"].as_u64().and_then(|id| u32::try_from(id).ok()), json["content"].as_str().unwrap_or_default());
        let Some(id) = id.filter(|_| !text.is_empty()) else {
            return Err(Error::Model(format!("the added token {json} has no id or no content")));
        };
        if let Some(flag) = ["single_word", "lstrip", "rstrip"].into_iter().find(|key| flag(key)) {
            return Err(Error::Model(format!("the added token {text:?} has {flag}, which is not served")));
        }
        Ok(AddedToken { id, text: text.to_owned(), special: flag("special") })
    }
}

/// The bytes behind the printable stand-ins of a byte-level vocabulary (GPT-2's table). A token with other characters stands for its
/// own text.
fn bytes_of(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Printable Latin-1 characters stand for themselves; the other 68 bytes have U+0100 onwards, in ascending order.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}
