//! What rewards share: lengths, answers as text, rewards made of rewards.

use std::sync::Arc;

use serde_json::Value;

use crate::math::extract::{Marks, after_think, extract};
use crate::{ArgError, ArgSpec, Args, Ask, BadSolution, Reason, Reward, Sample, Verdict};

/// What a length counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Tokens,
    Chars,
}

impl Unit {
    pub fn of(args: &Args) -> Self {
        if args.string("unit") == "chars" { Unit::Chars } else { Unit::Tokens }
    }

    /// The length of the completion; `None` when it has no token ids to count.
    pub fn length(self, sample: &Sample<'_>) -> Option<usize> {
        match self {
            Unit::Tokens => sample.token_ids.map(<[u32]>::len),
            Unit::Chars => Some(sample.completion.chars().count()),
        }
    }
}

pub(super) const UNIT_TOKENS: ArgSpec =
    ArgSpec { name: "unit", kind: "one of tokens|chars", default: "\"tokens\"", about: "What a length counts." };

/// The marks that answers in words may have.
const WORD_MARKS: Marks = Marks { boxed: true, answer_tag: true, final_answer: true, hash: true, bold: false, last_number: false };

/// The answer as text: what is marked as one, else all that follows the reasoning.
pub(super) fn answer_text<'a>(sample: &Sample<'a>) -> std::borrow::Cow<'a, str> {
    let scope = after_think(sample.completion);
    match extract(scope, WORD_MARKS) {
        Some(found) if found.marked => found.readings.into_iter().next().unwrap_or_default(),
        _ => scope.trim().into(),
    }
}

/// A reward that judges correctness, as other rewards use it.
pub(super) const MODE: ArgSpec =
    ArgSpec { name: "mode", kind: "one of best|trl", default: "\"trl\"", about: "How correctness is judged: see accuracy." };

/// The accuracy reward in the mode that `args` name.
pub(super) fn accuracy(args: &Args) -> Result<Box<dyn Reward>, ArgError> {
    let mut inner = serde_json::Map::new();
    inner.insert("mode".to_owned(), args.value("mode").clone());
    crate::build("accuracy", &inner)
}

/// How the verdicts of several rewards become one.
pub(super) trait Combine: Send + Sync {
    fn rewards(&self) -> &[Box<dyn Reward>];

    /// One verdict of the verdicts on one sample, in the order of `rewards`.
    fn combine(&self, verdicts: &[Verdict]) -> Verdict;

    fn check(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        self.rewards().iter().try_for_each(|reward| reward.check_solution(solution))
    }
}

/// A reward made of rewards.
pub(super) struct Combined<C>(pub C);

impl<C: Combine> Reward for Combined<C> {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let verdicts: Vec<Verdict> = self.0.rewards().iter().map(|reward| reward.score(sample)).collect();
        self.0.combine(&verdicts)
    }

    fn score_group(&self, samples: &[Sample<'_>]) -> Vec<Verdict> {
        let mut columns: Vec<_> = self.0.rewards().iter().map(|reward| reward.score_group(samples).into_iter()).collect();
        samples
            .iter()
            .map(|_| {
                let verdicts: Vec<Verdict> =
                    columns.iter_mut().map(|column| column.next().unwrap_or(Verdict::none(Reason::Internal))).collect();
                self.0.combine(&verdicts)
            })
            .collect()
    }

    fn needs_group(&self) -> bool {
        self.0.rewards().iter().any(|reward| reward.needs_group())
    }

    fn asks(&self) -> Vec<Arc<Ask>> {
        self.0.rewards().iter().flat_map(|reward| reward.asks()).collect()
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        self.0.check(solution)
    }
}

/// The values of all verdicts, or the verdict to give because one has none.
pub(super) fn values(verdicts: &[Verdict]) -> Result<Vec<f64>, Verdict> {
    verdicts.iter().map(|verdict| verdict.value.ok_or(Verdict::none(Reason::NoOperand))).collect()
}

pub(super) const REWARD: ArgSpec =
    ArgSpec { name: "reward", kind: "reward", default: "", about: "The reward: an object with its name and arguments, or its name alone." };

pub(super) const REWARDS: ArgSpec = ArgSpec {
    name: "rewards",
    kind: "list of reward",
    default: "",
    about: "The rewards: objects with their names and arguments, or names alone.",
};
