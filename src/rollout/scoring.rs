//! `GET /v1/rewards` and `POST /v1/rewards/score`: rewards by themselves.

use std::sync::Arc;

use futures::future::join_all;
use rewards::{Answer, FinishReason, REWARDS, Sample, Verdict};
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
use crate::judges::{Context, Judges, Question};

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
    /// The prompt as chat messages, for reward models.
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Vec<Value>>,
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
    /// # Errors
    ///
    /// A solution or a group that is no scalar.
    pub fn check(&self) -> Result<()> {
        let scalar = |value: &Value| value.is_string() || value.is_number() || value.is_null();
        for (name, value) in [("solution", &self.solution), ("group", &self.group)] {
            if value.as_ref().is_some_and(|value| !scalar(value)) {
                return Err(Error::invalid(name, "neither a string nor a number"));
            }
        }
        Ok(())
    }

    pub fn has_group(&self) -> bool {
        self.group.as_ref().is_some_and(|group| !group.is_null())
    }

    fn solution(&self) -> Option<&Value> {
        self.solution.as_ref().filter(|solution| !solution.is_null())
    }

    fn seen<'a>(&'a self, answers: &'a [Answer]) -> Sample<'a> {
        Sample {
            completion: &self.completion,
            prompt: self.prompt.as_deref(),
            solution: self.solution(),
            token_ids: self.token_ids.as_deref(),
            finish_reason: self.finish_reason,
            fields: self.fields.as_ref(),
            answers,
        }
    }

    fn question(&self) -> Question {
        let context = Context {
            prompt: self.prompt.clone(),
            messages: self.messages.clone(),
            has_media: false,
            solution: self.solution().cloned(),
            fields: self.fields.clone(),
        };
        Question { context: Arc::new(context), completion: self.completion.as_str().into(), finish_reason: self.finish_reason }
    }
}

/// Rewards and a recipe for lists of samples: one call's, or a file's piece by piece.
pub struct Scorer {
    rewarder: Rewarder,
    recipe: Recipe,
    pool: Arc<ScorePool>,
}

impl Scorer {
    /// # Errors
    ///
    /// An unknown reward, argument, judge or recipe.
    pub fn new(
        rewards: Option<Vec<RewardBody>>,
        advantage: Option<Value>,
        limits: &Limits,
        judges: &Judges,
        pool: Arc<ScorePool>,
    ) -> Result<Self> {
        let rewarder = Rewarder::new(rewards, limits, judges)?;
        let recipe = Recipe::from_json(&advantage.unwrap_or_default()).map_err(|e| e.within("advantage"))?;
        Ok(Scorer { rewarder, recipe, pool })
    }

    /// The keys of the rewards.
    pub fn keys(&self) -> &[Arc<str>] {
        self.rewarder.keys()
    }

    /// Scores samples, in order; those of a group must be in one list.
    pub async fn score(&self, samples: Vec<ScoreSample>) -> Vec<ScoredReply> {
        let samples = Arc::new(samples);
        let each = (0..samples.len()).map(|i| {
            let (samples, rewarder) = (samples.clone(), self.rewarder.clone());
            async move {
                let answers = if rewarder.asks_judges() { rewarder.answers(&samples[i].question(), None).await } else { Vec::new() };
                self.pool.run(move || (rewarder.score(&samples[i].seen(&answers)), answers)).await
            }
        });
        let (verdicts, answers): (Vec<_>, Vec<_>) = join_all(each).await.into_iter().unzip();
        let groups = groups(&samples);
        let verdicts = {
            let (groups, rewarder) = (groups.clone(), self.rewarder.clone());
            self.pool.run(move || score_groups(&samples, &answers, &groups, &rewarder, verdicts)).await
        };
        self.replies(&groups, verdicts)
    }
}

/// Scores a request's samples on the pool.
///
/// # Errors
///
/// As [`Scorer::new`] and [`ScoreSample::check`]; too many samples.
pub(super) async fn score(request: ScoreRequest, limits: &Limits, judges: &Judges, pool: &Arc<ScorePool>) -> Result<ScoreReply> {
    in_range("samples", request.samples.len(), 1, limits.max_score_samples)?;
    for (i, sample) in request.samples.iter().enumerate() {
        sample.check().map_err(|e| e.within(&format!("samples[{i}]")))?;
    }
    let scorer = Scorer::new(request.rewards, request.advantage, limits, judges, pool.clone())?;
    let samples = scorer.score(request.samples).await;
    Ok(ScoreReply { advantage: scorer.recipe, samples })
}

/// Positions of the samples of each group, in order of appearance.
fn groups(samples: &[ScoreSample]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for (i, sample) in samples.iter().enumerate() {
        if let Some(name) = sample.group.as_ref().filter(|_| sample.has_group()) {
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

fn score_groups(
    samples: &[ScoreSample],
    answers: &[Vec<Answer>],
    groups: &[Vec<usize>],
    rewarder: &Rewarder,
    mut verdicts: Vec<Vec<Verdict>>,
) -> Vec<Vec<Verdict>> {
    if rewarder.needs_group() {
        for group in groups {
            let seen: Vec<Sample<'_>> = group.iter().map(|i| samples[*i].seen(&answers[*i])).collect();
            let mut own: Vec<Vec<Verdict>> = group.iter().map(|i| std::mem::take(&mut verdicts[*i])).collect();
            rewarder.score_group(&seen, &mut own.iter_mut().collect::<Vec<_>>());
            for (i, own) in group.iter().zip(own) {
                verdicts[*i] = own;
            }
        }
    }
    verdicts
}

impl Scorer {
    fn replies(&self, groups: &[Vec<usize>], verdicts: Vec<Vec<Verdict>>) -> Vec<ScoredReply> {
        let Scorer { rewarder, recipe, .. } = self;
        let rewards: Vec<SampleRewards> = (verdicts.iter())
            .map(|verdicts| SampleRewards { values: verdicts.iter().map(|verdict| verdict.value).collect(), excluded: false })
            .collect();
        let mut of_sample: Vec<Option<f64>> = vec![None; rewards.len()];
        let of_groups: Vec<Vec<SampleRewards>> = groups.iter().map(|group| group.iter().map(|i| rewards[*i].clone()).collect()).collect();
        for (group, found) in groups.iter().zip(advantages(recipe, rewarder.weights(), &of_groups)) {
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
        samples.collect()
    }
}
