//! Reasoning between tags, then an answer.

use crate::{ArgError, ArgSpec, Args, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "think_format",
    about: "1 when the completion opens with one reasoning block that is closed, else 0. With the defaults it equals TRL's think_format_reward.",
    args: &[
        ArgSpec { name: "open", kind: "string", default: "\"<think>\"", about: "The opening tag." },
        ArgSpec { name: "close", kind: "string", default: "\"</think>\"", about: "The closing tag." },
        ArgSpec { name: "prefilled", kind: "bool", default: "false", about: "Accept a missing opening tag when the prompt ends with it." },
        ArgSpec { name: "allow_leading_ws", kind: "bool", default: "false", about: "Accept white space before the opening tag." },
        ArgSpec {
            name: "require_answer",
            kind: "bool",
            default: "false",
            about: "Ask for text other than white space after the last closing tag.",
        },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        for name in ["open", "close"] {
            if args.string(name).is_empty() {
                return Err(args.error(name, "must not be empty"));
            }
        }
        Ok(Box::new(ThinkFormat {
            open: args.string("open").to_owned(),
            close: args.string("close").to_owned(),
            prefilled: args.bool("prefilled"),
            allow_leading_ws: args.bool("allow_leading_ws"),
            require_answer: args.bool("require_answer"),
        }))
    },
};

struct ThinkFormat {
    open: String,
    close: String,
    prefilled: bool,
    allow_leading_ws: bool,
    require_answer: bool,
}

impl ThinkFormat {
    /// TRL's pattern `^<think>(?!.*<think>)(.*?)</think>.*$`, matched at the start of the text, is exactly:
    /// one opening tag, at the start, and a closing tag somewhere after it.
    fn matches(&self, sample: &Sample<'_>) -> bool {
        let mut text = sample.completion;
        if self.allow_leading_ws {
            text = text.trim_start();
        }
        let inside = match text.strip_prefix(self.open.as_str()) {
            Some(rest) => rest,
            None if self.prefilled && sample.prompt.is_some_and(|p| p.trim_end().ends_with(&self.open)) => text,
            None => return false,
        };
        if inside.contains(&self.open) {
            return false;
        }
        match inside.rfind(&self.close) {
            Some(at) => !self.require_answer || !inside[at + self.close.len()..].trim().is_empty(),
            None => false,
        }
    }
}

impl Reward for ThinkFormat {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        Verdict::matched(self.matches(sample))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(args: serde_json::Value, prompt: Option<&str>, completion: &str) -> f64 {
        let reward = crate::build("think_format", args.as_object().unwrap()).unwrap();
        reward.score(&Sample { completion, prompt, ..Sample::default() }).value.unwrap()
    }

    #[test]
    fn options() {
        assert_eq!(check(json!({}), None, "<think>a</think>b"), 1.0);
        assert_eq!(check(json!({}), None, " <think>a</think>b"), 0.0);
        assert_eq!(check(json!({"allow_leading_ws": true}), None, "\n<think>a</think>b"), 1.0);
        assert_eq!(check(json!({"prefilled": true}), Some("Q<think>\n"), "a</think>b"), 1.0);
        assert_eq!(check(json!({"prefilled": true}), Some("Q"), "a</think>b"), 0.0);
        assert_eq!(check(json!({"require_answer": true}), None, "<think>a</think> \n"), 0.0);
        assert_eq!(check(json!({"require_answer": true}), None, "<think>a</think>b"), 1.0);
    }
}
