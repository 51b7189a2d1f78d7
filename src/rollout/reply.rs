//! What `POST /v1/rollouts` answers. Numbers that are not finite are written as `null` (serde_json does so) and counted.

use std::borrow::Cow;
use std::sync::Arc;

use rewards::{Reason, Verdict};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::plan::Sampling;
use super::recipe::Recipe;
use super::request::Scalar;
use crate::engine::request::{PolicyVersion, VersionSpan};
use crate::error::Error;
use crate::model::input::MediaInput;
use crate::processor::MediaInfo;

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RolloutReply {
    pub rollout_id: String,
    #[schema(value_type = u64)]
    pub policy_version: PolicyVersion,
    pub model: String,
    pub seed: u64,
    pub advantage: Recipe,
    /// In the order of the request, without those that were dropped.
    pub groups: Vec<GroupReply>,
    /// Under TRL's names, over every group that was generated, dropped ones included.
    #[schema(value_type = std::collections::BTreeMap<String, Option<f64>>)]
    pub metrics: Named<Value>,
}

/// What a stream ends with: a reply without its groups, which went before.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RolloutSummary {
    pub rollout_id: String,
    #[schema(value_type = u64)]
    pub policy_version: PolicyVersion,
    pub model: String,
    pub seed: u64,
    pub advantage: Recipe,
    /// As in [`RolloutReply`].
    #[schema(value_type = std::collections::BTreeMap<String, Option<f64>>)]
    pub metrics: Named<Value>,
}

impl From<&RolloutReply> for RolloutSummary {
    fn from(reply: &RolloutReply) -> Self {
        RolloutSummary {
            rollout_id: reply.rollout_id.clone(),
            policy_version: reply.policy_version,
            model: reply.model.clone(),
            seed: reply.seed,
            advantage: reply.advantage.clone(),
            metrics: reply.metrics.clone(),
        }
    }
}

/// An element of a stream: the groups as they end, then what they add up to.
#[derive(Clone, Debug)]
pub enum StreamItem {
    Group(GroupReply),
    Done(Box<RolloutSummary>),
}

/// A group, or what was wrong with it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum GroupReply {
    Scored(Box<ScoredGroup>),
    Bad(BadGroup),
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ScoredGroup {
    pub id: String,
    /// Unique on the server.
    pub uid: String,
    pub rollout_id: String,
    pub seed: u64,
    pub attempt: u32,
    /// In a lease: how often the group was delivered, this time included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<u32>,
    pub sampling: Sampling,
    pub advantage: Recipe,
    pub prompt_token_ids: Vec<u32>,
    pub prompt_text: String,
    #[schema(value_type = Vec<Object>)]
    pub images: Vec<MediaInfo>,
    pub reward_mean: Option<f64>,
    pub reward_std: Option<f64>,
    /// No two rewards differ: there is nothing to learn from the group.
    pub zero_std: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Scalar>)]
    pub solution: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub fields: Option<Map<String, Value>>,
    pub samples: Vec<SampleReply>,
    /// Pixels as the model saw them, as long as they are in memory: JSON never carries them.
    #[serde(skip)]
    #[schema(ignore)]
    pub media: Vec<Arc<MediaInput>>,
}

/// A group that could not be generated, such as one whose image does not decode.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BadGroup {
    pub id: String,
    pub uid: String,
    pub rollout_id: String,
    pub error: GroupError,
}

/// An error in OpenAI's form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupError {
    pub r#type: Cow<'static, str>,
    pub code: Cow<'static, str>,
    /// JSON path of the value at fault, where there is one.
    pub param: Option<String>,
    pub message: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SampleReply {
    pub index: usize,
    pub status: Status,
    pub finish_reason: Finish,
    /// The token that ended it, the last of `token_ids`; null after a stop string.
    pub stop_token_id: Option<u32>,
    pub token_ids: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Log-probabilities over the full vocabulary at the sampling temperature (1 when greedy).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "with_nulls")]
    pub logps: Option<Vec<f32>>,
    /// At temperature 1.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "with_nulls")]
    pub logps_raw: Option<Vec<f32>>,
    /// Renormalised over what top-k, top-p, min-p and penalties left.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "with_nulls")]
    pub logps_sampled: Option<Vec<f32>>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "with_nulls")]
    pub entropy: Option<Vec<f32>>,
    /// As `logps`, under the reference weights.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "with_nulls")]
    pub ref_logps: Option<Vec<f32>>,
    /// 0 where the learner must not learn from the sample: it failed, was aborted, or was cut and `mask_truncated` is set.
    pub completion_mask: u8,
    #[schema(value_type = Vec<Object>)]
    pub policy_versions: Vec<VersionSpan>,
    #[schema(value_type = std::collections::BTreeMap<String, Option<f64>>)]
    pub rewards: Named<Option<f64>>,
    /// The weighted sum of the rewards that gave a verdict.
    pub reward: Option<f64>,
    pub advantage: f64,
    #[schema(value_type = std::collections::BTreeMap<String, Detail>)]
    pub details: Named<Detail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing_ms: Option<TimingReply>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Completed,
    /// It hit `max_tokens`.
    Truncated,
    /// Cut by the deadline.
    Aborted,
    Failed,
}

impl Status {
    /// Whether the sample is all that the model had to say within `max_tokens`; only then it is scored.
    pub fn is_whole(self) -> bool {
        matches!(self, Status::Completed | Status::Truncated)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Completed => "completed",
            Status::Truncated => "truncated",
            Status::Aborted => "aborted",
            Status::Failed => "failed",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    Stop,
    Length,
    Abort,
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimingReply {
    pub queue: f64,
    pub prefill: f64,
    pub decode: f64,
    pub score: f64,
}

/// What a reward looked at and why it said what it said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Detail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extracted: Option<String>,
    #[schema(value_type = String, example = "equal_exact")]
    pub reason: Reason,
}

impl From<Verdict> for Detail {
    fn from(verdict: Verdict) -> Self {
        Detail { extracted: verdict.extracted, reason: verdict.reason }
    }
}

/// A JSON object with few keys, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Named<T>(pub Vec<(Arc<str>, T)>);

impl<T> Named<T> {
    pub fn new(keys: &[Arc<str>], values: impl IntoIterator<Item = T>) -> Self {
        Named(keys.iter().cloned().zip(values).collect())
    }

    pub fn get(&self, key: &str) -> Option<&T> {
        self.0.iter().find(|(k, _)| &**k == key).map(|(_, value)| value)
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (&**key, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Entries<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut named = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    named.push((key.into(), value));
                }
                Ok(Named(named))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

/// What was not finite was written as null.
fn with_nulls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<f32>>, D::Error> {
    let numbers: Option<Vec<Option<f32>>> = Option::deserialize(deserializer)?;
    Ok(numbers.map(|numbers| numbers.into_iter().map(|number| number.unwrap_or(f32::NAN)).collect()))
}

impl From<&Error> for GroupError {
    fn from(error: &Error) -> Self {
        let (r#type, code) = match error {
            Error::Invalid { code, .. } => ("invalid_request_error", *code),
            Error::TooLarge { .. } => ("invalid_request_error", "too_large"),
            Error::NotFound(_) => ("invalid_request_error", "not_found"),
            Error::Conflict(_) => ("invalid_request_error", "conflict"),
            Error::UpdateUnderWay(_) => ("invalid_request_error", "update_under_way"),
            Error::Overloaded { .. } => ("rate_limit_error", "overloaded"),
            Error::NotReady(_) => ("server_error", "not_ready"),
            Error::Gone { code, .. } => ("invalid_request_error", *code),
            Error::Storage { .. } => ("server_error", "storage_failed"),
            Error::Model(_) | Error::Setup(_) | Error::File { .. } => {
                // Paths and library texts are for the log.
                let message = "the server failed while answering; its log says why".to_owned();
                return GroupError { r#type: "server_error".into(), code: "internal_error".into(), param: None, message };
            }
        };
        let param = match error {
            Error::Invalid { param, .. } | Error::TooLarge { param, .. } => Some(param.clone()),
            _ => None,
        };
        GroupError { r#type: r#type.into(), code: code.into(), param, message: error.to_string() }
    }
}
