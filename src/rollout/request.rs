//! The body of `POST /v1/rollouts` as it is sent. [`super::plan`] turns it into what it means.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::recipe::RecipeSpec;

/// Groups to generate, score and normalise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// One prompt each.
    pub groups: Vec<GroupBody>,
    /// Completions per prompt, 1 to 256; 8 unless given.
    #[schema(minimum = 1, maximum = 256, example = 8)]
    pub num_generations: Option<usize>,
    /// Drawn and echoed when absent. The same seed, ids and weights give the same tokens.
    #[schema(example = 1234)]
    pub seed: Option<u64>,
    pub sampling: Option<SamplingBody>,
    /// `think_format` and `accuracy` with weight 1 unless given. An empty list generates without scoring.
    pub rewards: Option<Vec<RewardBody>>,
    /// A preset's name or an object; `trl` unless given.
    #[schema(value_type = Option<RecipeSpec>, example = "trl")]
    pub advantage: Option<Value>,
    /// What becomes of groups whose rewards are all equal; `keep` unless given.
    pub zero_std: Option<Policy>,
    /// What becomes of groups with a sample that did not complete; `keep` unless given.
    pub failed: Option<Policy>,
    /// How often `refill` draws a group again before it is dropped; 3 unless given.
    #[schema(maximum = 100)]
    pub max_refills: Option<u32>,
    /// What is unfinished this long after the request came is aborted and labelled; queued groups that have not begun by then are dropped,
    /// with the reason `deadline`. For rows of a data set, the time begins with their generation.
    #[schema(minimum = 1)]
    pub deadline_ms: Option<u64>,
    /// `completion_mask` 0 for samples that hit `max_tokens`. Their rewards still count in the group.
    pub mask_truncated: Option<bool>,
    /// `text` and `logps` unless given.
    pub r#return: Option<Vec<Return>>,
    /// The served model's name, checked when given.
    pub model: Option<String>,
    /// With `mode: "queue"`: where the groups go; `default` unless given.
    pub queue: Option<String>,
    /// `wait` unless given.
    pub mode: Option<Mode>,
    /// The same key and body again get the same reply, generated once; another body is a conflict.
    pub idempotency_key: Option<String>,
}

/// One prompt: exactly one of `messages`, `prompt` and `prompt_token_ids`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupBody {
    /// Its position unless given; distinct within a request.
    #[schema(example = "q17")]
    pub id: Option<String>,
    /// OpenAI chat messages; content parts `text`, `image_url`, `video_url`, `image` and `video`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Vec<Value>>,
    /// Text that is already templated.
    pub prompt: Option<String>,
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Beside `prompt` and `prompt_token_ids`: one per pad token or expanded run, under the rules of `image_url`.
    pub images: Option<Vec<String>>,
    /// The prompt ends with it; rewards see it before the completion. Beside `messages` only.
    #[schema(example = "<think>")]
    pub assistant_prefill: Option<String>,
    /// The gold answer, a string or a number.
    #[schema(value_type = Option<Scalar>, example = "4")]
    pub solution: Option<Value>,
    /// Other columns of the data set: given to rewards and echoed.
    #[schema(value_type = Option<Object>)]
    pub fields: Option<Map<String, Value>>,
}

/// A string or a number.
// Documents values that stay JSON.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Scalar {
    Text(String),
    Number(f64),
}

/// How tokens are drawn and when a completion ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplingBody {
    /// 0 is greedy.
    #[schema(minimum = 0.0, maximum = 100.0, default = 1.0)]
    pub temperature: Option<f64>,
    #[schema(exclusive_minimum = 0.0, maximum = 1.0, default = 1.0)]
    pub top_p: Option<f64>,
    /// 0 or −1 is off.
    #[schema(minimum = -1, default = 0)]
    pub top_k: Option<i64>,
    #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.0)]
    pub min_p: Option<f64>,
    #[schema(exclusive_minimum = 0.0, maximum = 100.0, default = 1.0)]
    pub repetition_penalty: Option<f64>,
    /// 512 unless given, or less where the context leaves less.
    #[schema(minimum = 1, default = 512)]
    pub max_tokens: Option<usize>,
    /// No stop token or stop string ends a completion before it has this many tokens.
    #[schema(default = 0)]
    pub min_tokens: Option<usize>,
    /// At most 16 strings; the text ends before the one that was met.
    pub stop: Option<StopBody>,
    /// Ends a completion as the end-of-sequence tokens do.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Generate on after the model's end-of-sequence tokens.
    #[schema(default = false)]
    pub ignore_eos: Option<bool>,
}

/// One stop string or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub enum StopBody {
    One(String),
    Many(Vec<String>),
}

impl StopBody {
    pub fn into_vec(self) -> Vec<String> {
        match self {
            StopBody::One(stop) => vec![stop],
            StopBody::Many(stops) => stops,
        }
    }
}

/// A reward by name; its own arguments stand beside the name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RewardBody {
    #[schema(example = "accuracy")]
    pub name: String,
    /// In the sum of the rewards; 1 unless given.
    #[schema(default = 1.0)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// The key in `rewards`, needed when two rewards have the same name.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub args: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    #[default]
    Keep,
    /// Leave the group out of the reply; metrics count it all the same.
    Drop,
    /// Draw the group again with `attempt` + 1 in the key of the generator, at most `max_refills` times, then drop it.
    Refill,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One reply when all groups are done.
    #[default]
    Wait,
    /// Server-sent events, one `group` each.
    Stream,
    /// A reply at once; learners lease the groups as they are done.
    Queue,
}

/// Optional parts of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Return {
    Text,
    Logps,
    LogpsRaw,
    LogpsSampled,
    Entropy,
    Timing,
    /// Under the reference weights; needs a server started with --reference.
    RefLogps,
    /// In safetensors only.
    PixelValues,
}
