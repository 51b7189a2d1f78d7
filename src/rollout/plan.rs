//! What a rollout request means: every value checked once, at the edge.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::limits::Limits;
use super::recipe::Recipe;
use super::request::{GroupBody, Mode, Policy, Return, RolloutRequest, SamplingBody, StopBody};
use super::rewarder::Rewarder;
use crate::engine::request::SamplingParams;
use crate::error::{Error, Result};
use crate::judges::Judges;
use crate::processor::{PromptRequest, PromptSource};

/// The queue of requests and leases that name none.
pub const DEFAULT_QUEUE: &str = "default";
/// Bytes of a queue's name, which is a label of the metrics.
pub(super) const MAX_QUEUE_NAME: usize = 64;

/// What requests are checked against besides the limits.
#[derive(Clone, Debug)]
pub struct Served {
    pub model: String,
    pub vocab_size: usize,
    /// Prompt and completion together.
    pub max_model_len: usize,
    /// Whether there are reference weights.
    pub reference: bool,
}

/// A request that can run.
pub struct Plan {
    pub groups: Vec<GroupPlan>,
    pub settings: Settings,
    pub deadline: Option<Duration>,
    pub mode: Mode,
    pub idempotency_key: Option<String>,
}

/// What the groups of a request have in common.
pub struct Settings {
    pub num_generations: usize,
    /// `None` is drawn when the request is run.
    pub seed: Option<u64>,
    pub sampling: Sampling,
    pub rewarder: Rewarder,
    pub recipe: Recipe,
    pub zero_std: Policy,
    pub failed: Policy,
    pub max_refills: u32,
    pub mask_truncated: bool,
    pub returns: Returns,
}

pub struct GroupPlan {
    /// What the caller calls it; the position unless given.
    pub id: String,
    pub prompt: PromptRequest,
    pub facts: GroupFacts,
}

/// What a group carries besides its prompt.
#[derive(Clone, Debug, Default)]
pub struct GroupFacts {
    pub prefill: String,
    pub solution: Option<Value>,
    pub fields: Option<Map<String, Value>>,
}

/// Resolved sampling, as replies state it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sampling {
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: u32,
    pub min_p: f64,
    pub repetition_penalty: f64,
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    /// Whether `max_tokens` was asked for. Otherwise it gives way to a long prompt.
    #[serde(skip)]
    pub fixed_length: bool,
}

/// Which optional parts of a sample are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Returns {
    pub text: bool,
    pub logps: bool,
    pub logps_raw: bool,
    pub logps_sampled: bool,
    pub entropy: bool,
    pub ref_logps: bool,
    pub timing: bool,
    pub pixel_values: bool,
}

impl Plan {
    /// Checks a request against what is served.
    ///
    /// # Errors
    ///
    /// The first value that is out of range, with its JSON path, the value and the limit; another model's name.
    pub fn new(request: RolloutRequest, limits: &Limits, served: &Served, judges: &Judges) -> Result<Plan> {
        let mode = request.mode.unwrap_or_default();
        check_served(&request, served)?;
        let num_generations = request.num_generations.unwrap_or(8);
        in_range("num_generations", num_generations, 1, limits.max_group_size)?;
        // Counted before anything is made of the groups.
        in_range("groups", request.groups.len(), 1, limits.max_groups_per_request)?;
        let num_samples = request.groups.len() * num_generations;
        if num_samples > limits.max_samples_per_request {
            let message = format!("{num_samples} samples in all; one request may have {}", limits.max_samples_per_request);
            return Err(Error::invalid("num_generations", message));
        }
        let sampling = Sampling::new(request.sampling.unwrap_or_default(), limits, served).map_err(|e| e.within("sampling"))?;
        let rewarder = Rewarder::new(request.rewards, limits, judges)?;
        let recipe = Recipe::from_json(&request.advantage.unwrap_or_default()).map_err(|e| e.within("advantage"))?;
        if mode == Mode::Stream && recipe.spans_groups() {
            let message = "this recipe reckons over all groups of a request, which a stream does not wait for; use mode \"wait\"";
            return Err(Error::invalid("advantage", message));
        }
        let max_refills = request.max_refills.unwrap_or(3);
        in_range("max_refills", max_refills, 0, limits.max_refills)?;
        if let Some(deadline) = request.deadline_ms {
            in_range("deadline_ms", deadline, 1, limits.max_deadline_ms)?;
        }
        if let Some(key) = &request.idempotency_key {
            check_label("idempotency_key", key, limits.max_id_bytes)?;
        }
        let settings = Settings {
            num_generations,
            seed: request.seed,
            sampling,
            rewarder,
            recipe,
            zero_std: request.zero_std.unwrap_or_default(),
            failed: request.failed.unwrap_or_default(),
            max_refills,
            mask_truncated: request.mask_truncated.unwrap_or(false),
            returns: Returns::new(request.r#return.as_deref().unwrap_or(&[Return::Text, Return::Logps]), served)?,
        };
        Ok(Plan {
            groups: groups(request.groups, limits, served)?,
            settings,
            deadline: request.deadline_ms.map(Duration::from_millis),
            mode,
            idempotency_key: request.idempotency_key,
        })
    }
}

fn check_served(request: &RolloutRequest, served: &Served) -> Result<()> {
    if let Some(queue) = request.queue.as_deref() {
        check_label("queue", queue, MAX_QUEUE_NAME)?;
        if request.mode != Some(Mode::Queue) && queue != DEFAULT_QUEUE {
            return Err(Error::invalid("queue", "groups go to a queue with mode \"queue\" only"));
        }
    }
    match &request.model {
        Some(model) if *model != served.model => {
            Err(Error::NotFound(format!("model: this server has no model {model:?}; it serves {}", served.model)))
        }
        _ => Ok(()),
    }
}

fn groups(bodies: Vec<GroupBody>, limits: &Limits, served: &Served) -> Result<Vec<GroupPlan>> {
    let plans = bodies
        .into_iter()
        .enumerate()
        .map(|(i, body)| GroupPlan::new(i, body, limits, served).map_err(|e| e.within(&format!("groups[{i}]"))));
    let plans: Vec<GroupPlan> = plans.collect::<Result<_>>()?;
    let mut seen = HashSet::new();
    for (i, plan) in plans.iter().enumerate() {
        if !seen.insert(plan.id.as_str()) {
            let message = format!("{:?} is the id of an earlier group (an absent id is the group's position)", plan.id);
            return Err(Error::invalid(format!("groups[{i}].id"), message));
        }
    }
    Ok(plans)
}

/// The prompt of a group or of a given sequence.
pub(super) fn prompt(body: &GroupBody, served: &Served) -> Result<PromptRequest> {
    let prefill = body.assistant_prefill.clone().filter(|prefill| !prefill.is_empty());
    let source = match (&body.messages, &body.prompt, &body.prompt_token_ids) {
        (Some(messages), None, None) if messages.is_empty() => {
            return Err(Error::invalid("messages", "the list is empty; a prompt needs at least one message"));
        }
        (Some(messages), None, None) => PromptSource::Messages { messages: messages.clone(), assistant_prefill: prefill },
        (None, Some(text), None) if text.is_empty() => return Err(Error::invalid("prompt", "the prompt is empty")),
        (None, Some(text), None) => PromptSource::Text(text.clone()),
        (None, None, Some(ids)) if ids.is_empty() => return Err(Error::invalid("prompt_token_ids", "the prompt is empty")),
        (None, None, Some(ids)) => {
            check_ids("prompt_token_ids", ids, served)?;
            PromptSource::TokenIds(ids.clone())
        }
        _ => return Err(Error::invalid("", "there must be exactly one of messages, prompt and prompt_token_ids")),
    };
    if body.messages.is_none() && body.assistant_prefill.is_some() {
        let message = "a prefill stands beside messages; a prompt that is already templated ends with it by itself";
        return Err(Error::invalid("assistant_prefill", message));
    }
    let images = body.images.clone().unwrap_or_default();
    Ok(PromptRequest { source, images, tools: None, template_kwargs: Map::new(), add_generation_prompt: true })
}

impl GroupPlan {
    fn new(position: usize, body: GroupBody, limits: &Limits, served: &Served) -> Result<GroupPlan> {
        let id = body.id.clone().filter(|id| !id.is_empty()).unwrap_or_else(|| position.to_string());
        check_label("id", &id, limits.max_id_bytes)?;
        if let Some(other) = body.solution.as_ref().filter(|s| !(s.is_string() || s.is_number() || s.is_null())) {
            return Err(Error::invalid("solution", format!("{} is neither a string nor a number", short(other))));
        }
        let prompt = prompt(&body, served)?;
        let facts = GroupFacts {
            prefill: body.assistant_prefill.unwrap_or_default(),
            solution: body.solution.filter(|solution| !solution.is_null()),
            fields: body.fields,
        };
        Ok(GroupPlan { id, prompt, facts })
    }
}

impl Sampling {
    /// # Errors
    ///
    /// The first field that is out of range; its path is relative to the sampling fields.
    pub fn new(body: SamplingBody, limits: &Limits, served: &Served) -> Result<Sampling> {
        let limit = served.max_model_len.saturating_sub(1);
        let max_tokens = body.max_tokens.unwrap_or(512.min(limit));
        in_range("max_tokens", max_tokens, 1, limit)?;
        let min_tokens = body.min_tokens.unwrap_or(0);
        in_range("min_tokens", min_tokens, 0, max_tokens)?;
        let stop = body.stop.map(StopBody::into_vec).unwrap_or_default();
        check_stops(&stop, limits)?;
        let stop_token_ids = body.stop_token_ids.unwrap_or_default();
        at_most("stop_token_ids", stop_token_ids.len(), limits.max_stop_token_ids)?;
        check_ids("stop_token_ids", &stop_token_ids, served)?;
        // Logits are divided by it in f32, which smaller values would push to infinity.
        let temperature =
            number("temperature", body.temperature, 1.0, "0 or from 1e-5 to 100", |t| t == 0.0 || (1e-5..=100.0).contains(&t))?;
        Ok(Sampling {
            // Minus zero is zero.
            temperature: temperature + 0.0,
            top_p: number("top_p", body.top_p, 1.0, "above 0 and at most 1", |p| p as f32 > 0.0 && p <= 1.0)?,
            top_k: match body.top_k.unwrap_or(0) {
                -1 | 0 => 0,
                // As many as there are leave nothing out.
                k if k > 0 && k as u64 >= served.vocab_size as u64 => 0,
                k if k > 0 => k as u32,
                k => return Err(Error::invalid("top_k", format!("{k} is neither positive nor 0 or -1 for off"))),
            },
            min_p: number("min_p", body.min_p, 0.0, "at least 0 and below 1", |p| (0.0..1.0).contains(&p) && (p as f32) < 1.0)?,
            repetition_penalty: number("repetition_penalty", body.repetition_penalty, 1.0, "from 0.01 to 100", |p| {
                (0.01..=100.0).contains(&p)
            })?,
            max_tokens,
            min_tokens,
            stop,
            stop_token_ids,
            ignore_eos: body.ignore_eos.unwrap_or(false),
            fixed_length: body.max_tokens.is_some(),
        })
    }

    /// The engine's words for it.
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature as f32,
            top_p: self.top_p as f32,
            top_k: self.top_k,
            min_p: self.min_p as f32,
            repetition_penalty: self.repetition_penalty as f32,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            ..SamplingParams::default()
        }
    }

    /// The same for a prompt of this length: a `max_tokens` that nobody asked for is what the context leaves, if that is less.
    pub fn for_prompt(&self, prompt_len: usize, max_model_len: usize) -> Sampling {
        let room = max_model_len.saturating_sub(prompt_len).max(1);
        let max_tokens = if self.fixed_length { self.max_tokens } else { self.max_tokens.min(room) };
        Sampling { max_tokens, min_tokens: self.min_tokens.min(max_tokens), ..self.clone() }
    }
}

impl Returns {
    fn new(names: &[Return], served: &Served) -> Result<Returns> {
        let mut returns = Returns::default();
        for (i, name) in names.iter().enumerate() {
            match name {
                Return::Text => returns.text = true,
                Return::Logps => returns.logps = true,
                Return::LogpsRaw => returns.logps_raw = true,
                Return::LogpsSampled => returns.logps_sampled = true,
                Return::Entropy => returns.entropy = true,
                Return::Timing => returns.timing = true,
                Return::RefLogps if served.reference => returns.ref_logps = true,
                Return::RefLogps => {
                    return Err(unsupported(format!("return[{i}]"), "this server keeps no reference weights (start it with --reference)"));
                }
                Return::PixelValues => returns.pixel_values = true,
            }
        }
        Ok(returns)
    }
}

pub(super) fn in_range<T: PartialOrd + std::fmt::Display>(name: &str, value: T, low: T, high: T) -> Result<()> {
    if low <= value && value <= high { Ok(()) } else { Err(Error::invalid(name, format!("{value} is not between {low} and {high}"))) }
}

pub(super) fn at_most(name: &str, count: usize, limit: usize) -> Result<()> {
    if count <= limit { Ok(()) } else { Err(Error::invalid(name, format!("{count} elements; at most {limit} are allowed"))) }
}

/// A name that the caller chose: echoed, so short and printable.
pub(super) fn check_label(name: &str, label: &str, max_bytes: usize) -> Result<()> {
    if label.is_empty() || label.len() > max_bytes {
        return Err(Error::invalid(name, format!("{} bytes; 1 to {max_bytes} are allowed", label.len())));
    }
    match label.chars().find(|c| c.is_control()) {
        Some(c) => Err(Error::invalid(name, format!("the control character {:?} is not allowed", c))),
        None => Ok(()),
    }
}

fn number(name: &str, value: Option<f64>, default: f64, range: &str, fits: impl Fn(f64) -> bool) -> Result<f64> {
    let value = value.unwrap_or(default);
    if value.is_finite() && fits(value) { Ok(value) } else { Err(Error::invalid(name, format!("{value} is not {range}"))) }
}

fn check_stops(stops: &[String], limits: &Limits) -> Result<()> {
    at_most("stop", stops.len(), limits.max_stop_strings)?;
    for (i, stop) in stops.iter().enumerate() {
        if stop.is_empty() || stop.len() > limits.max_stop_bytes {
            let message = format!("{} bytes; 1 to {} are allowed", stop.len(), limits.max_stop_bytes);
            return Err(Error::invalid(format!("stop[{i}]"), message));
        }
    }
    Ok(())
}

pub(super) fn check_ids(name: &str, ids: &[u32], served: &Served) -> Result<()> {
    match ids.iter().position(|id| *id as usize >= served.vocab_size) {
        Some(i) => Err(Error::invalid(
            format!("{name}[{i}]"),
            format!("token id {} is not below the vocabulary size {}", ids[i], served.vocab_size),
        )),
        None => Ok(()),
    }
}

fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Error {
    Error::invalid_code(param, "unsupported_parameter", message)
}

/// The beginning of a value, for a message.
fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}
