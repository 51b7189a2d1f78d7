//! Accuracy of what follows the reasoning.

use serde_json::Value;

use crate::{ArgError, ArgSpec, Args, BadSolution, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "reasoning_accuracy",
    about: "As accuracy, of what follows the reasoning; 0 when the reasoning never ends. With the defaults it equals TRL's reasoning_accuracy_reward.",
    args: &[
        ArgSpec { name: "delimiters", kind: "list of string", default: "[\"</think>\"]", about: "What ends the reasoning." },
        ArgSpec {
            name: "pick",
            kind: "one of list_order|last_in_text",
            default: "\"list_order\"",
            about: "Take the first delimiter of the list that occurs, or the one that occurs last in the text.",
        },
        super::parts::MODE,
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let delimiters = args.strings("delimiters");
        if delimiters.is_empty() || delimiters.iter().any(String::is_empty) {
            return Err(args.error("delimiters", "needs at least one delimiter, and none that is empty"));
        }
        Ok(Box::new(ReasoningAccuracy {
            delimiters,
            last_in_text: args.string("pick") == "last_in_text",
            accuracy: super::parts::accuracy(args)?,
        }))
    },
};

struct ReasoningAccuracy {
    delimiters: Vec<String>,
    last_in_text: bool,
    accuracy: Box<dyn Reward>,
}

impl ReasoningAccuracy {
    /// Where the answer begins: after the last occurrence of the delimiter that counts.
    fn answer_start(&self, text: &str) -> Option<usize> {
        let mut ends = self.delimiters.iter().filter_map(|delimiter| text.rfind(delimiter.as_str()).map(|at| at + delimiter.len()));
        if self.last_in_text { ends.max() } else { ends.next() }
    }
}

impl Reward for ReasoningAccuracy {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        match self.answer_start(sample.completion) {
            Some(start) => self.accuracy.score(&Sample { completion: &sample.completion[start..], ..*sample }),
            None => Verdict::new(0.0, Reason::NoAnswer),
        }
    }

    fn check_solution(&self, solution: Option<&Value>) -> Result<(), BadSolution> {
        self.accuracy.check_solution(solution)
    }
}
