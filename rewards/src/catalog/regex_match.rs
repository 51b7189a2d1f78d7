//! A regular expression.

use regex::{Regex, RegexBuilder};

use super::parts::answer_text;
use crate::math::extract::after_think;
use crate::{ArgError, ArgSpec, Args, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "regex_match",
    about: "1 when a regular expression matches; matching takes time linear in the text, so look-around and back-references do not exist.",
    args: &[
        ArgSpec { name: "pattern", kind: "string", default: "", about: "The expression, in the syntax of Rust's regex crate." },
        ArgSpec { name: "scope", kind: "one of all|after_think|answer", default: "\"all\"", about: "What is searched." },
        ArgSpec { name: "full", kind: "bool", default: "false", about: "The match must be all of the text." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let pattern = args.string("pattern");
        let pattern = if args.bool("full") { format!("^(?:{pattern})$") } else { pattern.to_owned() };
        let regex = compile(&pattern).map_err(|e| args.error("pattern", e))?;
        Ok(Box::new(RegexMatch { regex, scope: args.string("scope").to_owned() }))
    },
};

/// Compiles a pattern of bounded size.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).size_limit(1 << 20).dfa_size_limit(1 << 20).build().map_err(|e| e.to_string())
}

struct RegexMatch {
    regex: Regex,
    scope: String,
}

impl Reward for RegexMatch {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let answer;
        let text = match self.scope.as_str() {
            "all" => sample.completion,
            "after_think" => after_think(sample.completion),
            _ => {
                answer = answer_text(sample);
                &answer
            }
        };
        match self.regex.find(text) {
            Some(found) => Verdict::matched(true).about(found.as_str()),
            None => Verdict::matched(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn look_around_is_refused_with_a_reason() {
        let args = json!({"pattern": "(?!x)y"});
        let error = crate::build("regex_match", args.as_object().unwrap()).err().unwrap();
        assert_eq!(error.path, "pattern");
        assert!(error.message.contains("look-around"), "{error}");
    }
}
