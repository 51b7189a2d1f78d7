//! A number of the data set's row, passed through.

use serde_json::Value;

use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "field",
    about: "Passes a number of the sample's fields through; anything else there gives no verdict.",
    args: &[ArgSpec { name: "field", kind: "string", default: "", about: "The field's name." }],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> { Ok(Box::new(Field { field: args.string("field").to_owned() })) },
};

struct Field {
    field: String,
}

impl Reward for Field {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        match sample.fields.and_then(|fields| fields.get(&self.field)) {
            Some(Value::Bool(b)) => Verdict::new(f64::from(u8::from(*b)), Reason::Computed),
            Some(Value::Number(n)) => match n.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Verdict::new(x, Reason::Computed),
                None => Verdict::none(Reason::NoField),
            },
            _ => Verdict::none(Reason::NoField),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_numbers_pass() {
        let reward = Field { field: "score".to_owned() };
        let value = |fields: Value| reward.score(&Sample { fields: Some(fields.as_object().unwrap()), ..Sample::default() }).value;
        assert_eq!(value(json!({"score": -2.5})), Some(-2.5));
        assert_eq!(value(json!({"score": true})), Some(1.0));
        assert_eq!(value(json!({"score": "1"})), None);
        assert_eq!(value(json!({})), None);
    }
}
