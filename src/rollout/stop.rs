//! Stop strings: while tokens are drawn, in what is streamed, and in the final text.

use std::sync::Arc;

use crate::engine::request::{StopWatch, Watch};
use crate::processor::detokenizer::Detokenizer;
use crate::processor::tokenizer::Tokenizer;

/// Finds the first stop string in text that arrives in pieces.
///
/// What could be the beginning of a stop string is held back until the next piece decides, so pieces passed on never have to be
/// taken back.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Arc<[String]>,
    /// The longest end of the text so far that a stop string begins with.
    held: String,
}

/// The text that a piece made certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    Text(String),
    /// The text ends here, before a stop string.
    Stopped(String),
}

impl StopMatcher {
    pub fn new(stops: Arc<[String]>) -> Self {
        StopMatcher { stops, held: String::new() }
    }

    /// Takes the next piece. Without `armed` a whole stop string in the text is no stop; one that ends in a later, armed piece is.
    pub fn push(&mut self, piece: &str, armed: bool) -> Passed {
        if self.stops.is_empty() {
            return Passed::Text(piece.to_owned());
        }
        let mut text = std::mem::take(&mut self.held);
        let old = text.len();
        text.push_str(piece);
        // The one that is complete first, as if the text came letter by letter; of those that end together the longest.
        let found = self.stops.iter().filter_map(|stop| find_ending_after(&text, old, stop).map(|at| (at + stop.len(), at))).min();
        if let Some((_, at)) = found.filter(|_| armed) {
            text.truncate(at);
            return Passed::Stopped(text);
        }
        let held = self.stops.iter().map(|stop| overlap(&text, stop)).max().unwrap_or(0);
        self.held = text.split_off(text.len() - held);
        Passed::Text(text)
    }

    /// What was held back, once no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The first occurrence that ends in the new part of the text.
fn find_ending_after(text: &str, old: usize, stop: &str) -> Option<usize> {
    let from = (old + 1).saturating_sub(stop.len());
    let from = (from..=text.len()).find(|&at| text.is_char_boundary(at))?;
    text[from..].find(stop).map(|at| from + at)
}

/// Bytes at the end of `text` that `stop` begins with, short of all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
}

/// Text of one sample from its tokens, up to a stop string. The engine's watch, the streamed text and the final text are all made
/// of this, so that they agree on where a completion ends.
pub struct StoppingText {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    min_tokens: usize,
    num_tokens: usize,
}

impl StoppingText {
    /// Stop strings count from the token after `min_tokens`. `skip_special` leaves control tokens out of the text.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Arc<[String]>, min_tokens: usize, skip_special: bool) -> Self {
        let detokenizer = Detokenizer::new(tokenizer, skip_special);
        StoppingText { detokenizer, matcher: StopMatcher::new(stops), min_tokens, num_tokens: 0 }
    }

    pub fn push(&mut self, token: u32) -> Passed {
        self.num_tokens += 1;
        self.matcher.push(self.detokenizer.push(token), self.num_tokens > self.min_tokens)
    }

    /// The rest of the text when no stop string was met.
    pub fn finish(&mut self) -> String {
        let armed = self.num_tokens > self.min_tokens;
        match self.matcher.push(self.detokenizer.finish(), armed) {
            Passed::Text(text) => text + &self.matcher.finish(),
            Passed::Stopped(text) => text,
        }
    }
}

/// Ends a sample on a stop string.
pub struct StopStrings(StoppingText);

impl StopStrings {
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Arc<[String]>, min_tokens: usize) -> Self {
        StopStrings(StoppingText::new(tokenizer, stops, min_tokens, true))
    }
}

impl StopWatch for StopStrings {
    fn push(&mut self, token: u32) -> Watch {
        match self.0.push(token) {
            Passed::Text(_) => Watch::Continue,
            Passed::Stopped(_) => Watch::Stop,
        }
    }
}

/// The text of a finished sample: control tokens left out, cut before the stop string that ended it.
pub fn final_text(tokenizer: &Arc<Tokenizer>, token_ids: &[u32], stops: &Arc<[String]>, min_tokens: usize) -> String {
    if stops.is_empty() {
        return tokenizer.decode(token_ids, true);
    }
    let mut text = StoppingText::new(tokenizer.clone(), stops.clone(), min_tokens, true);
    let mut passed = String::new();
    for token in token_ids {
        match text.push(*token) {
            Passed::Text(piece) => passed.push_str(&piece),
            Passed::Stopped(piece) => return passed + &piece,
        }
    }
    passed + &text.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces are separated by `|` and begin with `-` where the matcher is not armed.
    fn check(stops: &[&str], pieces: &str, expected: &str) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut passed = Vec::new();
        for piece in pieces.split('|') {
            let armed = !piece.starts_with('-');
            match matcher.push(piece.trim_start_matches('-'), armed) {
                Passed::Text(text) => passed.push(text),
                Passed::Stopped(text) => {
                    passed.push(text + "#");
                    break;
                }
            }
        }
        if !passed.last().is_some_and(|last| last.ends_with('#')) {
            passed.push(matcher.finish());
        }
        assert_eq!(passed.join("|"), expected, "{stops:?} in {pieces}");
    }

    #[test]
    fn text_ends_before_a_stop_string_and_beginnings_are_held_back() {
        check(&[], "ab|c", "ab|c|");
        check(&["X"], "ab|cXd|e", "ab|c#");
        check(&["</s>"], "a<|/|s|b", "a|||</sb|");
        check(&["</s>"], "a<|/|s>b", "a||#");
        check(&["aab"], "aa|ab", "|a#");
        check(&["abab"], "xaba|b", "x|#");
        check(&["END"], "the E", "the |E");
        check(&["bcd", "c"], "ab|cd", "a|b#");
        check(&["cd", "bcde"], "abcde", "ab#");
        check(&["cd", "bcd"], "abcde", "a#");
        check(&["é"], "caf|é", "caf|#");
        check(&["éa", "日本"], "日|é|本", "|日|é本|");
    }

    #[test]
    fn an_early_stop_string_is_text_but_one_that_ends_late_is_not() {
        check(&["ab"], "-abc|d", "abc|d|");
        check(&["ab"], "-xa|b", "x|#");
        check(&["ab"], "-ab|ab", "ab|#");
        check(&["ab", "abcd"], "-ab|x", "|abx|");
        check(&["ab", "abcd"], "-ab|cdx", "|#");
    }

    /// What is passed on in pieces that end where a bit is set, and whether it stopped.
    fn in_pieces(text: &str, stops: &[String], ends: u16) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.into());
        let (mut passed, mut piece) = (String::new(), String::new());
        for (i, c) in text.chars().enumerate() {
            piece.push(c);
            if ends >> i & 1 == 1 || i + 1 == text.chars().count() {
                match matcher.push(&std::mem::take(&mut piece), true) {
                    Passed::Text(text) => passed += &text,
                    Passed::Stopped(text) => return (passed + &text, true),
                }
            }
        }
        (passed + &matcher.finish(), false)
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,12}", stops in prop::collection::vec("[abé]{1,3}", 1..3), ends in any::<u16>()) {
            let (passed, stopped) = in_pieces(&text, &stops, ends);
            prop_assert_eq!(stopped, stops.iter().any(|stop| text.contains(stop)));
            prop_assert!(stops.iter().all(|stop| !passed.contains(stop)));
            prop_assert!(text.starts_with(&passed) && (stopped || text == passed));
            prop_assert_eq!((passed, stopped), in_pieces(&text, &stops, u16::MAX));
        }
    }
}
