//! Text of a completion while it is being written.

use std::sync::Arc;

use super::tokenizer::Tokenizer;

/// Turns tokens into text as soon as it is certain. A token can end inside a character; its bytes wait until the character is whole,
/// and become U+FFFD only when no continuation could make one or at the end. The pieces joined equal [`Tokenizer::decode`].
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// Bytes of a character that has not ended, at most three.
    tail: Vec<u8>,
    text: String,
}

impl Detokenizer {
    /// `skip_special` leaves out control tokens (not `<tool_call>` and its like).
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Detokenizer { tokenizer, skip_special, tail: Vec::new(), text: String::new() }
    }

    /// The text that this token made certain, perhaps none.
    pub fn push(&mut self, token: u32) -> &str {
        self.text.clear();
        if !(self.skip_special && self.tokenizer.is_special(token)) {
            self.tail.extend_from_slice(self.tokenizer.token_bytes(token));
            let mut waiting = 0;
            let mut chunks = self.tail.utf8_chunks().peekable();
            while let Some(chunk) = chunks.next() {
                self.text.push_str(chunk.valid());
                // Only a last chunk can be the beginning of a character; others were cut short by what follows them.
                if chunks.peek().is_none() && could_continue(chunk.invalid()) {
                    waiting = chunk.invalid().len();
                } else if !chunk.invalid().is_empty() {
                    self.text.push(char::REPLACEMENT_CHARACTER);
                }
            }
            self.tail.drain(..self.tail.len() - waiting);
        }
        &self.text
    }

    /// What is left at the end: U+FFFD if a character was not finished.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.tail.is_empty() {
            self.tail.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}

/// Whether bytes that are not UTF-8 are the proper beginning of a character. The standard library tells so: an error without a
/// length means that the input ended too early.
fn could_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
