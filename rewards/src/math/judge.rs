//! One gold answer against one completion.

use std::borrow::Cow;
use std::cell::RefCell;

use super::answer::{Answer, read};
use super::ast::Arena;
use super::budget::{Budget, COMPARISON_STEPS};
use super::compare::{Comparison, Outcome, Policy};
use super::decode::decode;
use super::extract::{Found, Marks, after_think, extract, gold};
use super::lex::Reading;
use super::text;
use super::wrappers::unwrap;
use crate::Reason;

/// Which part of a completion is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    AfterThink,
}

/// How to read a gold answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GoldForm {
    /// A solution or an answer, in whatever form it is written.
    Auto,
    /// All of it is the answer, in LaTeX or program notation.
    Whole,
    /// Words.
    Text,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    pub marks: Marks,
    pub scope: Scope,
    pub form: GoldForm,
    pub policy: Policy,
    /// A gold answer that cannot be read is compared as text instead of giving no verdict.
    pub bad_gold_as_text: bool,
}

/// What was found: the reason, and the text that was judged.
pub(crate) struct Judgement {
    pub reason: Reason,
    pub extracted: Option<String>,
}

thread_local! {
    /// Expressions of one comparison; kept for its capacity only.
    static ARENA: RefCell<Arena> = RefCell::new(Arena::default());
}

impl Judge {
    pub fn judge(&self, golds: &[Cow<'_, str>], completion: &str) -> Judgement {
        let scope = match self.scope {
            Scope::All => completion,
            Scope::AfterThink => after_think(completion),
        };
        let Some(found) = extract(scope, self.marks) else {
            return Judgement { reason: Reason::NoAnswer, extracted: None };
        };
        let mut worst: Option<Judgement> = None;
        for gold in golds {
            let judgement = self.one(gold, &found);
            if is_right(judgement.reason) {
                return judgement;
            }
            worst.get_or_insert(judgement);
        }
        worst.unwrap_or(Judgement { reason: Reason::NoGold, extracted: None })
    }

    fn one(&self, gold_text: &str, found: &Found<'_>) -> Judgement {
        ARENA.with_borrow_mut(|arena| {
            arena.clear();
            let mut budget = Budget::new(COMPARISON_STEPS);
            self.compare(gold_text, found, arena, &mut budget)
        })
    }

    fn compare(&self, gold_text: &str, found: &Found<'_>, arena: &mut Arena, budget: &mut Budget) -> Judgement {
        let whole = Reading { thousands: true };
        // The same text is the same answer, whatever it means: most right answers need no parsing at all.
        if self.form != GoldForm::Text
            && (!found.spray || self.policy.hedging)
            && let Some(wanted) = self.gold_readings(gold_text).first()
            && let Some(given) = found.readings.first()
        {
            let (wanted, given) = (text::normal(unwrap(wanted).0), text::normal(unwrap(given).0));
            if wanted == given && !wanted.is_empty() {
                return Judgement { reason: Reason::EqualText, extracted: Some(found.readings[0].trim().to_owned()) };
            }
        }
        let Some((gold_text, gold)) = self.read_gold(gold_text, whole, arena, budget) else {
            return Judgement { reason: Reason::BadGold, extracted: None };
        };
        let mut chosen: Option<(Cow<'_, str>, Answer)> = None;
        for (i, reading) in found.readings.iter().enumerate() {
            let text = decode(reading);
            let answer = read(&text, whole, arena, budget);
            // All of a short unmarked text is the answer only if nothing in it is prose.
            let prose = i == 0 && found.whole && found.readings.len() > 1 && has_prose(&text);
            let is_answer = (answer.root.is_some() || answer.choice.is_some() || answer.words) && !prose || answer.normal == gold.normal;
            if is_answer || chosen.is_none() && (found.marked || i + 1 == found.readings.len()) {
                chosen = Some((text, answer));
            }
            if is_answer {
                break;
            }
        }
        let Some((text, answer)) = chosen else {
            return Judgement { reason: Reason::NoAnswer, extracted: None };
        };
        let extracted = Some(text.trim().to_owned());
        if found.spray && !self.policy.hedging {
            return Judgement { reason: Reason::Hedged, extracted };
        }
        let mut outcome = Comparison::new(arena, budget, self.policy).answers(&gold, &answer);
        // A comma may separate thousands or items: the other readings, when this one fails.
        if !outcome.is_same() && (gold.merged_commas || answer.merged_commas) {
            let items = Reading { thousands: false };
            let gold_items = gold.merged_commas.then(|| read(&gold_text, items, arena, budget));
            let answer_items = answer.merged_commas.then(|| read(&text, items, arena, budget));
            let pairs =
                [(Some(&gold), answer_items.as_ref()), (gold_items.as_ref(), Some(&answer)), (gold_items.as_ref(), answer_items.as_ref())];
            for (gold, answer) in pairs {
                if let (Some(gold), Some(answer)) = (gold, answer) {
                    let again = Comparison::new(arena, budget, self.policy).answers(gold, answer);
                    if again.is_same() {
                        outcome = again;
                        break;
                    }
                }
            }
        }
        let reason = match outcome {
            Outcome::Same(reason) => reason,
            Outcome::Different => Reason::Different,
            Outcome::Hedged => Reason::Hedged,
            Outcome::WrongUnit => Reason::WrongUnit,
            Outcome::Limit => Reason::LimitHit,
        };
        Judgement { reason, extracted }
    }

    /// The gold answer's text and what it is; `None` when it is empty.
    fn read_gold<'g>(&self, text: &'g str, reading: Reading, arena: &mut Arena, budget: &mut Budget) -> Option<(Cow<'g, str>, Answer)> {
        let readings = self.gold_readings(text);
        let mut first = None;
        for reading_text in readings {
            let text = match reading_text {
                Cow::Borrowed(text) => decode(text),
                Cow::Owned(text) => Cow::Owned(decode(&text).into_owned()),
            };
            if text.trim().is_empty() {
                continue;
            }
            let mut answer = read(&text, reading, arena, budget);
            if self.form == GoldForm::Text {
                answer.root = None;
            }
            if answer.root.is_some() || answer.choice.is_some() || answer.words {
                return Some((text, answer));
            }
            first.get_or_insert((text, answer));
        }
        first.filter(|(_, answer)| {
            !answer.normal.is_empty() && (self.bad_gold_as_text || self.form == GoldForm::Text || is_prose(&answer.plain))
        })
    }

    /// Whether a gold answer is a number.
    pub fn is_number(&self, gold_text: &str) -> bool {
        ARENA.with_borrow_mut(|arena| {
            arena.clear();
            let mut budget = Budget::new(COMPARISON_STEPS);
            let gold = self.read_gold(gold_text, Reading { thousands: true }, arena, &mut budget);
            gold.and_then(|(_, gold)| gold.root).is_some_and(|root| Comparison::new(arena, &mut budget, self.policy).is_number(root))
        })
    }

    fn gold_readings<'g>(&self, text: &'g str) -> Vec<Cow<'g, str>> {
        match self.form {
            GoldForm::Auto => gold(text),
            GoldForm::Whole | GoldForm::Text => vec![Cow::Borrowed(text)],
        }
    }

    /// Whether a gold answer can be judged against at all.
    pub fn accepts(&self, gold_text: &str) -> bool {
        ARENA.with_borrow_mut(|arena| {
            arena.clear();
            self.read_gold(gold_text, Reading { thousands: true }, arena, &mut Budget::new(COMPARISON_STEPS)).is_some()
        })
    }
}

/// Whether some of the text is words of a sentence, and not LaTeX or products of letters.
fn has_prose(text: &str) -> bool {
    // A language without spaces has one word of many letters.
    text.chars().filter(|c| ('\u{3040}'..='\u{9fff}').contains(c)).nth(2).is_some()
        || text.split_whitespace().any(|word| {
            let letters = word.trim_matches(|c: char| c.is_ascii_punctuation() && c != '\\');
            letters.chars().nth(1).is_some() && letters.chars().all(char::is_alphabetic) && super::words::bare_word(letters).is_none()
        })
}

/// Whether words that are no mathematics can still be compared: they are words, and not broken LaTeX.
fn is_prose(plain: &str) -> bool {
    !plain.contains(['\\', '^', '_', '=']) && plain.chars().any(char::is_alphabetic)
}

pub(crate) fn is_right(reason: Reason) -> bool {
    matches!(reason, Reason::EqualText | Reason::EqualExact | Reason::EqualSymbolic | Reason::EqualNumeric | Reason::EqualWithinTolerance)
}
