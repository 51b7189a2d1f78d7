//! The verdict that TRL's `accuracy_reward` gives with Math-Verify 0.9, its mistakes included.
//!
//! Extraction and normalization follow Math-Verify's patterns; expressions are read by this crate's parser with
//! Math-Verify's conventions (`i` is a symbol, degrees and bases are ignored, `(a, b)` is an interval or a tuple), and
//! compared by this crate's comparison, where Math-Verify asks sympy. What sympy's `simplify` and `solve` would say about
//! hard cases is therefore not reproduced exactly.

mod normalize;
mod parse;
mod pattern;
mod verify;

use super::ast::Arena;
use super::budget::{Budget, COMPARISON_STEPS};

/// What TRL says: no verdict for a gold answer that does not parse, else 1 or 0, and the text that was judged.
pub(crate) struct TrlVerdict {
    pub value: Option<bool>,
    pub extracted: Option<String>,
}

pub(crate) fn judge(gold: &str, completion: &str) -> TrlVerdict {
    let mut arena = Arena::default();
    let mut budget = Budget::new(COMPARISON_STEPS);
    let gold = pattern::gold(gold).into_iter().find_map(|found| parse::gold(&found, &mut arena, &mut budget));
    let Some(gold) = gold else { return TrlVerdict { value: None, extracted: None } };
    let Some(found) = pattern::completion(completion) else { return TrlVerdict { value: Some(false), extracted: None } };
    let extracted = Some(found.text.clone());
    let Some(answer) = parse::completion(&found, &mut arena, &mut budget) else { return TrlVerdict { value: Some(false), extracted } };
    let value = verify::verify(&gold, &answer, &mut arena, &mut budget);
    TrlVerdict { value: Some(value), extracted }
}

/// Whether TRL would have a verdict for this gold answer.
pub(crate) fn accepts(gold: &str) -> bool {
    let mut arena = Arena::default();
    let mut budget = Budget::new(COMPARISON_STEPS);
    pattern::gold(gold).into_iter().any(|found| parse::gold(&found, &mut arena, &mut budget).is_some())
}
