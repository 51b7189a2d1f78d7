//! Multiple choice.

use serde_json::Value;

use super::accuracy::golds;
use crate::math::answer_words;
use crate::math::extract::{Marks, after_think, extract};
use crate::math::text::{self, Choice};
use crate::{ArgError, ArgSpec, Args, BadSolution, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "choice",
    about: "1 when the answer is the solution's letter, in any dress: (B), B. 12, Option B; several letters are a set.",
    args: &[
        ArgSpec { name: "letters", kind: "string", default: "\"A-J\"", about: "The first and the last letter." },
        ArgSpec {
            name: "options",
            kind: "list of string",
            default: "[]",
            about: "The texts of the options in order, which may be answered instead of the letter.",
        },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let letters = args.string("letters").as_bytes();
        let allowed = match *letters {
            [first @ b'A'..=b'J', b'-', last @ b'A'..=b'J'] if first <= last => (first..=last).fold(0, |bits, b| bits | 1 << (b - b'A')),
            _ => return Err(args.error("letters", "must be a range such as A-D, within A-J")),
        };
        let options = args.strings("options");
        if options.len() > 10 {
            return Err(args.error("options", "may be at most 10"));
        }
        Ok(Box::new(ChoiceReward { allowed, options }))
    },
};

struct ChoiceReward {
    allowed: u32,
    options: Vec<String>,
}

const MARKS: Marks = Marks { boxed: true, answer_tag: true, final_answer: true, hash: true, bold: true, last_number: false };

impl ChoiceReward {
    fn read(&self, text: &str) -> Option<Choice> {
        let plain = answer_words(text);
        if let Some(choice) = text::choice(&plain, false).filter(|c| c.letters & !self.allowed == 0) {
            return Some(choice);
        }
        if let Some(choice) = text::choices_in_one_word(&plain, false).filter(|c| c.letters & !self.allowed == 0) {
            return Some(choice);
        }
        let at = self.options.iter().position(|option| text::same_words(option, &plain))?;
        Some(Choice { letters: 1 << at, hedged: false })
    }
}

impl Reward for ChoiceReward {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let golds = match golds(sample.solution) {
            Ok(golds) => golds,
            Err(reason) => return Verdict::none(reason),
        };
        let wanted: Vec<Choice> = golds.iter().filter_map(|gold| self.read(gold)).collect();
        if wanted.is_empty() {
            return Verdict::none(Reason::BadGold);
        }
        let Some(found) = extract(after_think(sample.completion), MARKS) else {
            return Verdict::new(0.0, Reason::NoAnswer);
        };
        let Some((text, given)) = found.readings.iter().find_map(|text| Some((text, self.read(text)?))) else {
            return Verdict::new(0.0, Reason::NoAnswer).about(&found.readings[0]);
        };
        let reason = if found.spray || given.hedged && wanted.iter().all(|w| !w.hedged) {
            Reason::Hedged
        } else if wanted.iter().any(|w| w.letters == given.letters) {
            Reason::EqualText
        } else if given.letters.count_ones() > 1 && wanted.iter().all(|w| w.letters.count_ones() == 1) {
            Reason::Hedged
        } else {
            Reason::Different
        };
        Verdict::new(if reason == Reason::EqualText { 1.0 } else { 0.0 }, reason).about(text)
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        let golds = golds(solution).map_err(|_| BadSolution::new("there is no gold answer"))?;
        if golds.iter().any(|gold| self.read(gold).is_some()) {
            return Ok(());
        }
        Err(BadSolution::new(format!("the gold answer {:?} is no choice", golds.first().map_or("", |g| g))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn letters_and_texts() {
        let args = json!({"letters": "A-D", "options": ["London", "Paris", "Rome", "Bern"]});
        let reward = crate::build("choice", args.as_object().unwrap()).unwrap();
        let value =
            |completion: &str, gold: &str| reward.score(&Sample { completion, solution: Some(&json!(gold)), ..Sample::default() }).value;
        assert_eq!(value("The answer is (B).", "B"), Some(1.0));
        assert_eq!(value("\\boxed{\\text{B. Paris}}", "B"), Some(1.0));
        assert_eq!(value("Answer: Paris", "B"), Some(1.0));
        assert_eq!(value("\\boxed{A \\text{ or } B}", "B"), Some(0.0));
        assert_eq!(value("\\boxed{C, A}", "A,C"), Some(1.0));
        assert_eq!(value("Answer: Q", "B"), Some(0.0));
        assert_eq!(value("Answer: A", "seven"), None);
    }
}
