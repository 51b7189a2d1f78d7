//! The answer of a completion against the gold answer.

use std::borrow::Cow;

use serde_json::Value;

use crate::math::compare::{Policy, Tolerance, UnitPolicy};
use crate::math::extract::Marks;
use crate::math::judge::{GoldForm, Judge, Scope, is_right};
use crate::math::trl;
use crate::{ArgError, ArgSpec, Args, BadSolution, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "accuracy",
    about: "1 when the completion's answer is the gold answer, mathematically, 0 when it is not, no verdict without a usable gold answer.",
    args: ARGS,
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        match args.string("mode") {
            "trl" => Ok(Box::new(TrlAccuracy)),
            _ => Ok(Box::new(Accuracy::new(args)?)),
        }
    },
};

pub(super) const ARGS: &[ArgSpec] = &[
    ArgSpec {
        name: "mode",
        kind: "one of best|trl",
        default: "\"best\"",
        about: "\"best\" judges as a careful mathematician would; \"trl\" as TRL's accuracy_reward with Math-Verify 0.9, its mistakes included, and ignores the other arguments.",
    },
    ArgSpec {
        name: "extract",
        kind: "list of one of boxed|answer_tag|final_answer|hash|bold|last_number",
        default: "[\"boxed\", \"answer_tag\", \"final_answer\", \"hash\", \"bold\", \"last_number\"]",
        about: "Where an answer may be found; the last committed one counts, and the unmarked ones (bold, last_number) only when there is no other.",
    },
    ArgSpec {
        name: "scope",
        kind: "one of all|after_think",
        default: "\"after_think\"",
        about: "Judge all of the text, or what follows the last closing think tag when there is one.",
    },
    ArgSpec {
        name: "gold",
        kind: "one of auto|latex|expr|text",
        default: "\"auto\"",
        about: "How to read the solution: \"auto\" finds the answer in it, \"latex\" and \"expr\" take all of it, \"text\" compares words.",
    },
    ArgSpec {
        name: "tolerance",
        kind: "any",
        default: "null",
        about: "An object with abs, rel or places: how near a number must come; null asks for equality.",
    },
    ArgSpec { name: "percent", kind: "one of either|exact", default: "\"either\"", about: "\"either\" lets 28 stand for 28%." },
    ArgSpec {
        name: "units",
        kind: "one of ignore|same|convert",
        default: "\"convert\"",
        about: "\"convert\" accepts a missing unit and converts others, \"same\" asks for the very unit, \"ignore\" looks at numbers only.",
    },
    ArgSpec {
        name: "hedging",
        kind: "one of reject|allow",
        default: "\"reject\"",
        about: "\"reject\" gives 0 to several answers where one is wanted.",
    },
    ArgSpec {
        name: "on_bad_gold",
        kind: "one of none|text|error",
        default: "\"none\"",
        about: "What a solution that is neither mathematics nor words gives: no verdict, a comparison of texts, or no verdict and an error when solutions are checked.",
    },
];

pub(super) struct Accuracy {
    judge: Judge,
    refuse_bad_gold: bool,
}

impl Accuracy {
    pub fn new(args: &Args) -> Result<Self, ArgError> {
        let extract = args.strings("extract");
        if extract.is_empty() {
            return Err(args.error("extract", "needs at least one place"));
        }
        let has = |name: &str| extract.iter().any(|e| e == name);
        let marks = Marks {
            boxed: has("boxed"),
            answer_tag: has("answer_tag"),
            final_answer: has("final_answer"),
            hash: has("hash"),
            bold: has("bold"),
            last_number: has("last_number"),
        };
        let policy = Policy {
            tolerance: tolerance(args)?,
            percent_either: args.string("percent") == "either",
            units: match args.string("units") {
                "ignore" => UnitPolicy::Ignore,
                "same" => UnitPolicy::Same,
                _ => UnitPolicy::Convert,
            },
            hedging: args.string("hedging") == "allow",
        };
        Ok(Accuracy {
            refuse_bad_gold: args.string("on_bad_gold") == "error",
            judge: Judge {
                marks,
                scope: if args.string("scope") == "all" { Scope::All } else { Scope::AfterThink },
                form: match args.string("gold") {
                    "text" => GoldForm::Text,
                    "latex" | "expr" => GoldForm::Whole,
                    _ => GoldForm::Auto,
                },
                policy,
                bad_gold_as_text: args.string("on_bad_gold") == "text",
            },
        })
    }
}

fn tolerance(args: &Args) -> Result<Tolerance, ArgError> {
    let value = args.value("tolerance");
    if value.is_null() {
        return Ok(Tolerance::default());
    }
    let Some(map) = value.as_object() else {
        return Err(args.error("tolerance", "must be null or an object with abs, rel or places"));
    };
    let mut tolerance = Tolerance::default();
    for (name, value) in map {
        let number = value.as_f64().filter(|x| *x >= 0.0 && x.is_finite());
        let Some(number) = number else {
            return Err(args.error(&format!("tolerance.{name}"), "must be a number of at least 0"));
        };
        match name.as_str() {
            "abs" => tolerance.abs = number,
            "rel" => tolerance.rel = number,
            // Equal when rounded to this many places.
            "places" => tolerance.abs = 0.5 * 10f64.powf(-number),
            _ => return Err(args.error(&format!("tolerance.{name}"), "is not one of abs, rel, places")),
        }
    }
    Ok(tolerance)
}

/// The gold answers of a solution: a string, a number, or a list of them.
pub(super) fn golds(solution: Option<&Value>) -> Result<Vec<Cow<'_, str>>, Reason> {
    let one = |value: &'_ Value| match value {
        Value::String(s) => Some(Cow::Owned(s.clone())),
        Value::Number(n) => Some(Cow::Owned(n.to_string())),
        Value::Bool(b) => Some(Cow::Borrowed(if *b { "True" } else { "False" })),
        _ => None,
    };
    match solution {
        None | Some(Value::Null) => Err(Reason::NoGold),
        Some(Value::String(s)) => Ok(vec![Cow::Borrowed(s)]),
        Some(Value::Array(items)) => {
            let golds: Vec<_> = items.iter().filter_map(one).collect();
            if golds.is_empty() { Err(Reason::NoGold) } else { Ok(golds) }
        }
        Some(value) => one(value).map(|gold| vec![gold]).ok_or(Reason::BadGold),
    }
}

impl Reward for Accuracy {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let golds = match golds(sample.solution) {
            Ok(golds) => golds,
            Err(reason) => return Verdict::none(reason),
        };
        let judgement = self.judge.judge(&golds, sample.completion);
        let verdict = match judgement.reason {
            reason @ (Reason::BadGold | Reason::NoGold) => Verdict::none(reason),
            reason => Verdict::new(if is_right(reason) { 1.0 } else { 0.0 }, reason),
        };
        match judgement.extracted {
            Some(text) => verdict.about(&text),
            None => verdict,
        }
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        let golds = golds(solution).map_err(|_| BadSolution::new("there is no gold answer"))?;
        // One that cannot be read in a list of several is an error only when asked for.
        let accepted = golds.iter().filter(|gold| self.judge.accepts(gold)).count();
        if accepted == golds.len() || accepted > 0 && !self.refuse_bad_gold {
            return Ok(());
        }
        let bad = golds.iter().find(|gold| !self.judge.accepts(gold));
        Err(BadSolution::new(format!("the gold answer {:?} cannot be read", bad.map_or("", |g| g))))
    }
}

/// As TRL, with Math-Verify: strings only, and several gold answers by the best verdict.
struct TrlAccuracy;

impl Reward for TrlAccuracy {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let golds = match golds(sample.solution) {
            Ok(golds) => golds,
            Err(reason) => return Verdict::none(reason),
        };
        let mut best = Verdict::none(Reason::BadGold);
        for gold in golds {
            let verdict = trl::judge(&gold, sample.completion);
            let Some(right) = verdict.value else { continue };
            let reason = match (right, &verdict.extracted) {
                (true, _) => Reason::EqualSymbolic,
                (false, Some(_)) => Reason::Different,
                (false, None) => Reason::NoAnswer,
            };
            let value = Verdict::new(f64::from(u8::from(right)), reason);
            best = match verdict.extracted {
                Some(text) => value.about(&text),
                None => value,
            };
            if right {
                break;
            }
        }
        best
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        let golds = golds(solution).map_err(|_| BadSolution::new("there is no gold answer"))?;
        if golds.iter().any(|gold| trl::accepts(gold)) {
            return Ok(());
        }
        Err(BadSolution::new(format!(
            "Math-Verify finds nothing in the gold answer {:?}; \\boxed{{…}} around it would help",
            golds.first().map_or("", |g| g)
        )))
    }
}
