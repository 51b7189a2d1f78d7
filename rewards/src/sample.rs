//! What a reward sees and what it answers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Answer, Ask};

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    Stop,
    Length,
    Abort,
    Repetition,
    Error,
}

/// What a reward may look at. Everything but the completion may be missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample<'a> {
    /// The prefill, if any, and the completion.
    pub completion: &'a str,
    /// The rendered prompt.
    pub prompt: Option<&'a str>,
    /// The gold answer: a string, a number, or a list of them of which any will do.
    pub solution: Option<&'a Value>,
    pub token_ids: Option<&'a [u32]>,
    pub finish_reason: Option<FinishReason>,
    /// The other columns of the data set's row.
    pub fields: Option<&'a Map<String, Value>>,
    /// What was answered to the questions of [`Reward::asks`].
    pub answers: &'a [Answer],
}

/// Why a verdict is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The answers are the same text.
    EqualText,
    /// Equal by exact arithmetic.
    EqualExact,
    /// Equal as polynomials or rational functions, tested modulo a prime.
    EqualSymbolic,
    /// Equal at every point to about 25 digits.
    EqualNumeric,
    /// Equal within the tolerance asked for.
    EqualWithinTolerance,
    /// An answer was read and it is another one.
    Different,
    /// The numbers agree and the units do not.
    WrongUnit,
    /// Nothing that could be an answer was found.
    NoAnswer,
    /// Several answers were offered where one is wanted.
    Hedged,
    /// The comparison ran out of its budget, which counts as not equal.
    LimitHit,
    /// There is no gold answer.
    NoGold,
    /// The gold answer cannot be judged against.
    BadGold,
    /// The required form is there.
    Matched,
    /// The required form is not there.
    NotMatched,
    /// A value worked out by a formula.
    Computed,
    /// The completion was cut off.
    Truncated,
    /// A column that the reward needs is missing or is no number.
    NoField,
    /// The reward needs token ids and the sample has none.
    NoTokenIds,
    /// The reward needs the whole group and saw one sample.
    NoGroup,
    /// A reward that this one is made of gave no verdict.
    NoOperand,
    /// The reward does not apply to this sample.
    NotApplicable,
    /// A judge elsewhere gave the value.
    Judged,
    /// A judge elsewhere was asked and gave none.
    Abstained,
    /// There was nobody to ask a judge.
    NotAsked,
    /// The judge did not answer in time.
    TimedOut,
    /// The judge could not be reached, or the connection to it broke.
    Unreachable,
    /// The judge answered something that is no verdict.
    BadReply,
    /// Prompt and completion are longer than the judge's context.
    TooLong,
    /// A bug: the reward panicked.
    Internal,
}

impl Reason {
    /// The name used in replies.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::EqualText => "equal_text",
            Reason::EqualExact => "equal_exact",
            Reason::EqualSymbolic => "equal_symbolic",
            Reason::EqualNumeric => "equal_numeric",
            Reason::EqualWithinTolerance => "equal_within_tolerance",
            Reason::Different => "different",
            Reason::WrongUnit => "wrong_unit",
            Reason::NoAnswer => "no_answer",
            Reason::Hedged => "hedged",
            Reason::LimitHit => "limit_hit",
            Reason::NoGold => "no_gold",
            Reason::BadGold => "bad_gold",
            Reason::Matched => "matched",
            Reason::NotMatched => "not_matched",
            Reason::Computed => "computed",
            Reason::Truncated => "truncated",
            Reason::NoField => "no_field",
            Reason::NoTokenIds => "no_token_ids",
            Reason::NoGroup => "no_group",
            Reason::NoOperand => "no_operand",
            Reason::NotApplicable => "not_applicable",
            Reason::Judged => "judged",
            Reason::Abstained => "abstained",
            Reason::NotAsked => "not_asked",
            Reason::TimedOut => "timed_out",
            Reason::Unreachable => "unreachable",
            Reason::BadReply => "bad_reply",
            Reason::TooLong => "too_long",
            Reason::Internal => "internal",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reward's answer for one sample.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// `None` is "no verdict": the sample is left out, it is not worth 0.
    pub value: Option<f64>,
    /// The part of the completion that was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extracted: Option<String>,
    pub reason: Reason,
}

/// The longest text that [`Verdict::extracted`] carries, in bytes.
const EXTRACTED_MAX_BYTES: usize = 1024;

impl Verdict {
    /// A value and why.
    #[must_use]
    pub fn new(value: f64, reason: Reason) -> Self {
        Verdict { value: Some(value), extracted: None, reason }
    }

    /// No verdict and why.
    #[must_use]
    pub fn none(reason: Reason) -> Self {
        Verdict { value: None, extracted: None, reason }
    }

    /// 1 or 0 for a form that is there or not.
    #[must_use]
    pub fn matched(matched: bool) -> Self {
        if matched { Verdict::new(1.0, Reason::Matched) } else { Verdict::new(0.0, Reason::NotMatched) }
    }

    /// The same verdict with the text it is about, cut to a bounded length.
    #[must_use]
    pub fn about(mut self, text: &str) -> Self {
        let mut end = text.len().min(EXTRACTED_MAX_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.extracted = Some(text[..end].to_owned());
        self
    }
}

/// A gold answer that can never give a verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadSolution {
    pub message: String,
}

impl BadSolution {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        BadSolution { message: message.into() }
    }
}

/// A reward, made by [`crate::build`].
pub trait Reward: Send + Sync {
    /// One sample; `None` in the verdict is "no verdict" and never 0.
    fn score(&self, sample: &Sample<'_>) -> Verdict;

    /// A whole group of samples of one prompt, one verdict each, in order.
    fn score_group(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        samples.iter().map(|sample| self.score(sample)).collect()
    }

    /// True when `score_group` must see the whole group.
    fn needs_group(&self) -> bool {
        false
    }

    /// Questions whose answers [`Sample::answers`] must hold, those of rewards within included.
    fn asks(&self) -> Vec<Arc<Ask>> {
        Vec::new()
    }

    /// Reports a gold answer that can never give a verdict, before anything is generated.
    ///
    /// # Errors
    ///
    /// The solution is missing or cannot be read.
    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        let _ = solution;
        Ok(())
    }
}
