//! `GET /v1/rewards` and `POST /v1/rewards/score`: rewards by themselves.

use std::sync::Arc;

use rewards::{FinishReason, REWARDS, Sample, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::advantage::{SampleRewards, advantages};
use super::limits::Limits;
use super::plan::in_range;
use super::recipe::{PRESETS, Recipe, RecipeSpec};
use super::reply::{Detail, Named};
use super::request::{RewardBody, Scalar};
use super::rewarder::{Rewarder, ScorePool};
use crate::error::{Error, Result};

/// The catalogue of rewards and advantage presets.
#[derive(Debug, Serialize, ToSchema)]
pub struct CatalogueReply {
    pub rewards: Vec<CatalogueReward>,
    pub advantages: &'static [Recipe],
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CatalogueReward {
    pub name: &'static str,
    pub about: &'static str,
    pub args: Vec<CatalogueArg>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CatalogueArg {
    pub name: &'static str,
    /// `string`, `number`, `integer`, `bool`, `one of a|b`, `list of KIND`, `reward`, `object` or `any`; a trailing `?` allows null.
    pub kind: &'static str,
    pub required: bool,
    #[schema(value_type = Object)]
    pub default: Value,
    pub about: &'static str,
}

/// Every reward with its arguments, and every advantage preset.
pub fn catalogue() -> CatalogueReply {
    let rewards = REWARDS.iter().map(|spec| CatalogueReward {
        name: spec.name,
        about: spec.about,
        args: (spec.args.iter())
            .map(|arg| CatalogueArg {
                name: arg.name,
                kind: arg.kind,
                required: arg.default.is_empty(),
                default: serde_json::from_str(arg.default).unwrap_or_default(),
                about: arg.about,
            })
            .collect(),
    });
    CatalogueReply { rewards: rewards.collect(), advantages: PRESETS }
}

/// Completions to be scored.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreRequest {
    /// `think_format` and `accuracy` with weight 1 unless given.
    pub rewards: Option<Vec<RewardBody>>,
    pub samples: Vec<ScoreSample>,
    /// A preset's name or an object; `trl` unless given.
    #[schema(value_type = Option<RecipeSpec>, example = "trl")]
    pub advantage: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreSample {
    pub completion: String,
    /// The gold answer, a string or a number.
    #[schema(value_type = Option<Scalar>, example = "4")]
    pub solution: Option<Value>,
    pub prompt: Option<String>,
    pub token_ids: Option<Vec<u32>>,
    #[schema(value_type = Option<Object>)]
    pub fields: Option<Map<String, Value>>,
    /// Samples with the same group, a string or a number, are one prompt's and have advantages.
    #[schema(value_type = Option<Scalar>, example = "q17")]
    pub group: Option<Value>,
    /// Why the completion ended: `stop`, `length`, `abort`, `repetition` or `error`.
    #[schema(value_type = Option<String>)]
    pub finish_reason: Option<FinishReason>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ScoreReply {
    pub advantage: Recipe,
    pub samples: Vec<ScoredReply>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ScoredReply {
    #[schema(value_type = std::collections::BTreeMap<String, Option<f64>>)]
    pub rewards: Named<Option<f64>>,
    /// The weighted sum of the rewards that gave a verdict.
    pub reward: Option<f64>,
    /// For samples with a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage: Option<f64>,
    #[schema(value_type = std::collections::BTreeMap<String, Detail>)]
    pub details: Named<Detail>,
}

impl ScoreSample {
    fn check(&self) -> Result<()> {
        let scalar = |value: &Value| value.is_string() || value.is_number() || value.is_null();
        for (name, value) in [("solution", &self.solution), ("group", &self.group)] {
            if value.as_ref().is_some_and(|value| !scalar(value)) {
                return Err(Error::invalid(name, "neither a string nor a number"));
            }
        }
        Ok(())
    }

    fn seen(&self) -> Sample<'_> {
        Sample {
            completion: &self.completion,
            prompt: self.prompt.as_deref(),
            solution: self.solution.as_ref().filter(|solution| !solution.is_null()),
            token_ids: self.token_ids.as_deref(),
            finish_reason: self.finish_reason,
            fields: self.fields.as_ref(),
        }
    }
}

/// Scores a request's samples on the pool.
///
/// # Errors
///
/// An unknown reward, argument or recipe; a sample whose solution or group is no scalar; too many samples.
pub(super) async fn score(request: ScoreRequest, limits: &Limits, pool: &Arc<ScorePool>) -> Result<ScoreReply> {
    in_range("samples", request.samples.len(), 1, limits.max_score_samples)?;
    for (i, sample) in request.samples.iter().enumerate() {
        sample.check().map_err(|e| e.within(&format!("samples[{i}]")))?;
    }
    let rewarder = Rewarder::new(request.rewards, limits)?;
    let recipe = Recipe::from_json(&request.advantage.unwrap_or_default()).map_err(|e| e.within("advantage"))?;

    let samples = Arc::new(request.samples);
    let jobs: Vec<_> = (0..samples.len())
        .map(|i| {
            let (samples, rewarder) = (samples.clone(), rewarder.clone());
            pool.start(move || rewarder.score(&samples[i].seen()))
        })
        .collect();
    let mut verdicts = Vec::with_capacity(jobs.len());
    for job in jobs {
        verdicts.push(job.await.unwrap_or_else(|_| panic!("scoring failed: its own message stands above")));
    }
    let groups = groups(&samples);
    let verdicts = {
        let (groups, rewarder) = (groups.clone(), rewarder.clone());
        pool.run(move || score_groups(&samples, &groups, &rewarder, verdicts)).await
    };
    Ok(reply(recipe, &rewarder, &groups, verdicts))
}

/// Positions of the samples of each group, in order of appearance.
fn groups(samples: &[ScoreSample]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for (i, sample) in samples.iter().enumerate() {
        if let Some(name) = sample.group.as_ref().filter(|name| !name.is_null()) {
            // A number and a string of its digits are different names.
            let place = *places.entry(name.to_string()).or_insert(groups.len());
            if place == groups.len() {
                groups.push(Vec::new());
            }
            groups[place].push(i);
        }
    }
    groups
}

fn score_groups(samples: &[ScoreSample], groups: &[Vec<usize>], rewarder: &Rewarder, mut verdicts: Vec<Vec<Verdict>>) -> Vec<Vec<Verdict>> {
    if rewarder.needs_group() {
        for group in groups {
            let seen: Vec<Sample<'_>> = group.iter().map(|i| samples[*i].seen()).collect();
            let mut own: Vec<Vec<Verdict>> = group.iter().map(|i| std::mem::take(&mut verdicts[*i])).collect();
            rewarder.score_group(&seen, &mut own.iter_mut().collect::<Vec<_>>());
            for (i, own) in group.iter().zip(own) {
                verdicts[*i] = own;
            }
        }
    }
    verdicts
}

fn reply(recipe: Recipe, rewarder: &Rewarder, groups: &[Vec<usize>], verdicts: Vec<Vec<Verdict>>) -> ScoreReply {
    let rewards: Vec<SampleRewards> = (verdicts.iter())
        .map(|verdicts| SampleRewards { values: verdicts.iter().map(|verdict| verdict.value).collect(), excluded: false })
        .collect();
    let mut of_sample: Vec<Option<f64>> = vec![None; rewards.len()];
    let of_groups: Vec<Vec<SampleRewards>> = groups.iter().map(|group| group.iter().map(|i| rewards[*i].clone()).collect()).collect();
    for (group, found) in groups.iter().zip(advantages(&recipe, rewarder.weights(), &of_groups)) {
        for (i, advantage) in group.iter().zip(found.advantages) {
            of_sample[*i] = Some(advantage);
        }
    }
    let samples = verdicts.into_iter().zip(rewards).zip(of_sample).map(|((verdicts, rewards), advantage)| ScoredReply {
        reward: rewards.total(rewarder.weights()),
        rewards: Named::new(rewarder.keys(), rewards.values),
        advantage,
        details: Named::new(rewarder.keys(), verdicts.into_iter().map(Detail::from)),
    });
    ScoreReply { advantage: recipe, samples: samples.collect() }
}
