//! Recipes: which of the published advantage formulas a request asks for.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// What is taken off a reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of the group.
    Mean,
    /// The mean of the other samples of the group.
    LeaveOneOut,
    None,
}

/// What the difference is divided by, `eps` added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The standard deviation of the group.
    Group,
    /// The standard deviation of all samples of the request.
    Batch,
    /// The standard deviation of the other samples of the group; no division where it is 0.
    LeaveOneOut,
    /// The mean of the group, without `eps`; all advantages are 0 where it is not positive.
    Mean,
    None,
}

/// In which order several rewards are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// The weighted sum of the rewards is normalised.
    SumThenNormalize,
    /// Each reward is normalised in its group, then their weighted sum over the request (GDPO).
    NormalizeThenSum,
}

/// What a reward without a verdict counts as in the advantage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Nulls {
    /// Left out of mean and standard deviation, advantage 0.
    LeaveOut,
    /// 0, as TRL before 1.6 has it.
    Zero,
}

/// The advantage of a group with one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Singleton {
    Zero,
    /// Mean 0 and standard deviation 1 are assumed, as verl does.
    Raw,
}

/// A resolved advantage formula, as replies state it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Recipe {
    /// The preset it is or starts from.
    #[schema(example = "trl")]
    pub preset: Option<&'static str>,
    pub baseline: Baseline,
    pub scale: Scale,
    /// 1 divides squared differences by n − 1, 0 by n.
    pub ddof: u8,
    /// Added to the divisor.
    pub eps: f64,
    pub aggregate: Aggregate,
    #[serde(skip_serializing_if = "Nulls::is_default")]
    pub nulls: Nulls,
    #[serde(skip_serializing_if = "Singleton::is_default")]
    pub singleton: Singleton,
}

impl Nulls {
    fn is_default(&self) -> bool {
        *self == Nulls::LeaveOut
    }
}

impl Singleton {
    fn is_default(&self) -> bool {
        *self == Singleton::Zero
    }
}

/// A recipe as a request gives it: a preset's name, or any of the fields over a preset (`trl` unless named).
// This type documents the two forms; `Recipe::from_json` reads them, so that errors name the field.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum RecipeSpec {
    Preset(String),
    Fields {
        preset: Option<String>,
        baseline: Option<Baseline>,
        scale: Option<Scale>,
        ddof: Option<u8>,
        eps: Option<f64>,
        aggregate: Option<Aggregate>,
        nulls: Option<Nulls>,
        singleton: Option<Singleton>,
    },
}

/// TRL 1.6 and later, the row that the others differ from.
const TRL: Recipe = Recipe {
    preset: Some("trl"),
    baseline: Baseline::Mean,
    scale: Scale::Group,
    ddof: 1,
    eps: 1e-4,
    aggregate: Aggregate::SumThenNormalize,
    nulls: Nulls::LeaveOut,
    singleton: Singleton::Zero,
};

/// Every preset. The number is that of the library whose source the formula was read in.
pub const PRESETS: &[Recipe] = &[
    TRL,
    // TRL 0.22.0 and 0.22.1 have their branches swapped: `scale_rewards="group"`, the default, does not scale at all …
    Recipe { preset: Some("trl-0.22.1"), scale: Scale::None, nulls: Nulls::Zero, ..TRL },
    // … while "batch" and "none" both divide by the group's standard deviation.
    Recipe { preset: Some("trl-0.22.1-batch"), nulls: Nulls::Zero, ..TRL },
    Recipe { preset: Some("trl-0.22.1-none"), nulls: Nulls::Zero, ..TRL },
    // 0.20, 0.21 and 0.22.2 to 1.5.
    Recipe { preset: Some("trl-0.22.2"), nulls: Nulls::Zero, ..TRL },
    Recipe { preset: Some("trl-batch"), scale: Scale::Batch, ..TRL },
    Recipe { preset: Some("trl-async"), ddof: 0, eps: 1e-8, ..TRL },
    Recipe { preset: Some("gdpo"), aggregate: Aggregate::NormalizeThenSum, ..TRL },
    Recipe { preset: Some("rloo"), baseline: Baseline::LeaveOneOut, scale: Scale::None, ..TRL },
    Recipe { preset: Some("dr_grpo"), scale: Scale::None, ..TRL },
    Recipe { preset: Some("verl"), eps: 1e-6, singleton: Singleton::Raw, ..TRL },
    Recipe { preset: Some("verl-rloo"), baseline: Baseline::LeaveOneOut, scale: Scale::None, eps: 1e-6, ..TRL },
    Recipe { preset: Some("openrlhf"), eps: 1e-9, ..TRL },
    Recipe { preset: Some("prime-rl"), scale: Scale::None, ..TRL },
    Recipe { preset: Some("prime-rl-max_rl"), scale: Scale::Mean, ..TRL },
    Recipe { preset: Some("nemo-rl"), baseline: Baseline::LeaveOneOut, scale: Scale::LeaveOneOut, eps: 1e-6, ..TRL },
    Recipe { preset: Some("slime"), eps: 1e-6, ..TRL },
    Recipe { preset: Some("pipeline-rl"), baseline: Baseline::LeaveOneOut, ..TRL },
];

impl<'de> Deserialize<'de> for Recipe {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Recipe::from_json(&Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Default for Recipe {
    fn default() -> Self {
        TRL
    }
}

impl Recipe {
    /// The preset of that name.
    pub fn preset(name: &str) -> Option<&'static Recipe> {
        PRESETS.iter().find(|recipe| recipe.preset == Some(name))
    }

    /// Reads a preset's name or an object with any of the fields.
    ///
    /// # Errors
    ///
    /// An unknown preset, field or value; the path is relative to `advantage`.
    pub fn from_json(value: &Value) -> Result<Recipe> {
        let fields = match value {
            Value::Null => return Ok(TRL),
            Value::String(name) => return named(name, ""),
            Value::Object(fields) => fields,
            _ => return Err(Error::invalid("", format!("{value} is neither a preset's name nor an object"))),
        };
        let mut recipe = match fields.get("preset") {
            None | Some(Value::Null) => Recipe { preset: None, ..TRL },
            Some(Value::String(name)) => named(name, "preset")?,
            Some(other) => return Err(Error::invalid("preset", format!("{other} is not a preset's name"))),
        };
        let preset = recipe.clone();
        for (name, value) in fields.iter().filter(|(name, value)| *name != "preset" && !value.is_null()) {
            match name.as_str() {
                "baseline" => recipe.baseline = choice(name, value, "mean, leave_one_out, none")?,
                "scale" => recipe.scale = choice(name, value, "group, batch, leave_one_out, mean, none")?,
                "aggregate" => recipe.aggregate = choice(name, value, "sum_then_normalize, normalize_then_sum")?,
                "nulls" => recipe.nulls = choice(name, value, "leave_out, zero")?,
                "singleton" => recipe.singleton = choice(name, value, "zero, raw")?,
                "ddof" => match value.as_u64() {
                    Some(ddof @ (0 | 1)) => recipe.ddof = ddof as u8,
                    _ => return Err(Error::invalid(name, format!("{value} is neither 0 nor 1"))),
                },
                "eps" => match value.as_f64() {
                    Some(eps) if (0.0..=1.0).contains(&eps) => recipe.eps = eps,
                    _ => return Err(Error::invalid(name, format!("{value} is not a number from 0 to 1"))),
                },
                _ => {
                    let known = "preset, baseline, scale, ddof, eps, aggregate, nulls, singleton";
                    return Err(Error::invalid_code(name, "unknown_field", format!("unknown field; a recipe has {known}")));
                }
            }
        }
        // A preset that was changed is no longer that preset, and a reply must not call it so.
        if recipe != preset {
            recipe.preset = None;
        }
        Ok(recipe)
    }

    /// Whether an advantage depends on groups other than its own.
    pub fn spans_groups(&self) -> bool {
        self.scale == Scale::Batch || self.aggregate == Aggregate::NormalizeThenSum
    }
}

fn named(name: &str, path: &str) -> Result<Recipe> {
    Recipe::preset(name).cloned().ok_or_else(|| {
        let known: Vec<_> = PRESETS.iter().filter_map(|recipe| recipe.preset).collect();
        Error::invalid(path, format!("there is no preset {name:?}; there are {}", known.join(", ")))
    })
}

fn choice<T: serde::de::DeserializeOwned>(name: &str, value: &Value, known: &str) -> Result<T> {
    T::deserialize(value).map_err(|_| Error::invalid(name, format!("{value} is not one of {known}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: Value, expected: Value) {
        match Recipe::from_json(&spec) {
            Ok(recipe) => {
                let shown = serde_json::to_value(&recipe).unwrap();
                assert_eq!(shown, expected, "{spec}");
                assert_eq!(Recipe::from_json(&shown).unwrap(), recipe, "what a reply states can be asked for: {spec}");
            }
            Err(error) => assert_eq!(Value::from(error.to_string()), expected, "{spec}"),
        }
    }

    #[test]
    fn a_reply_states_the_resolved_recipe() {
        let trl = json!({"preset": "trl", "baseline": "mean", "scale": "group", "ddof": 1, "eps": 1e-4, "aggregate": "sum_then_normalize"});
        check(json!(null), trl.clone());
        check(json!("trl"), trl.clone());
        check(trl.clone(), trl);
        let own = json!({"preset": null, "baseline": "mean", "scale": "none", "ddof": 1, "eps": 1e-4, "aggregate": "sum_then_normalize"});
        check(json!({"scale": "none"}), own.clone());
        check(json!({"preset": "trl", "scale": "none"}), own);
        for preset in PRESETS {
            check(serde_json::to_value(preset).unwrap(), serde_json::to_value(preset).unwrap());
        }
    }

    #[test]
    fn what_is_unknown_is_refused_with_its_path() {
        check(json!({"scale": "std"}), json!("scale: \"std\" is not one of group, batch, leave_one_out, mean, none"));
        check(json!({"ddof": 2}), json!("ddof: 2 is neither 0 nor 1"));
        check(json!({"eps": -1e-4}), json!("eps: -0.0001 is not a number from 0 to 1"));
        check(json!({"epsilon": 1e-4}).clone(), {
            json!("epsilon: unknown field; a recipe has preset, baseline, scale, ddof, eps, aggregate, nulls, singleton")
        });
        assert!(Recipe::from_json(&json!("grpo")).unwrap_err().to_string().contains("trl-0.22.1"));
        assert!(Recipe::from_json(&json!(7)).is_err());
    }
}
