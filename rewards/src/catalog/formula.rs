//! A formula of the sample's numbers.

use std::str::FromStr;

use meval::{ContextProvider, Expr};
use serde_json::Value;

use crate::{ArgError, ArgSpec, Args, FinishReason, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "formula",
    about: "A formula of the sample's numbers: its numeric fields, chars, tokens and truncated (1 or 0), with + - * / % ^, sqrt, abs, exp, ln, floor, ceil, min, max and more. No verdict when a name is missing or the value is not finite.",
    args: &[ArgSpec { name: "expression", kind: "string", default: "", about: "Such as \"min(1, score / 10) - 0.001 * tokens\"." }],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        // The library panics on a text of white space alone.
        let text = args.string("expression").trim();
        if text.is_empty() || text.len() > 1024 {
            return Err(args.error("expression", "is empty or longer than 1024 bytes"));
        }
        let expression = Expr::from_str(text).map_err(|e| args.error("expression", e.to_string()))?;
        Ok(Box::new(Formula { expression }))
    },
};

struct Formula {
    expression: Expr,
}

/// The names that a formula may use.
struct Names<'s, 'a>(&'s Sample<'a>);

impl ContextProvider for Names<'_, '_> {
    fn get_var(&self, name: &str) -> Option<f64> {
        let sample = self.0;
        match name {
            "chars" => Some(sample.completion.chars().count() as f64),
            "tokens" => sample.token_ids.map(|ids| ids.len() as f64),
            "truncated" => Some(f64::from(u8::from(sample.finish_reason == Some(FinishReason::Length)))),
            _ => match sample.fields?.get(name)? {
                Value::Bool(b) => Some(f64::from(u8::from(*b))),
                Value::Number(n) => n.as_f64(),
                _ => None,
            },
        }
    }
}

impl Reward for Formula {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        // The library's own context adds the constants and the functions.
        match self.expression.eval_with_context((Names(sample), meval::builtin())) {
            Ok(value) if value.is_finite() => Verdict::new(value, Reason::Computed),
            _ => Verdict::none(Reason::NoField),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_and_lengths() {
        let fields = json!({"score": 8, "text": "x"});
        let value = |expression: &str| {
            let args = json!({ "expression": expression });
            let sample = Sample { completion: "abcd", fields: fields.as_object(), ..Sample::default() };
            crate::build("formula", args.as_object().unwrap()).unwrap().score(&sample).value
        };
        assert_eq!(value("min(1, score / 10) - 0.1 * chars"), Some(0.4));
        assert_eq!(value("text + 1"), None);
        assert_eq!(value("1 / (score - 8)"), None);
        assert_eq!(value(" chars\n"), Some(4.0));
        for empty in ["", " ", "\n\t"] {
            assert!(crate::build("formula", json!({ "expression": empty }).as_object().unwrap()).is_err());
        }
    }
}
