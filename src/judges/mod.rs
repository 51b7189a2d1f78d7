//! Judges answer what the rewards' arithmetic can't: scorers behind a URL, and reward models.
//!
//! A request opens a [`Line`] to each judge that its rewards ask and puts one [`Question`] a sample; the answer is a verdict, and every
//! failure is "no verdict" with a reason. Nothing here runs on the threads that score or on the engine's.

mod cache;
mod http;
mod model;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use metrics::{counter, histogram};
use rewards::{Ask, FinishReason, Reason, Verdict};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::engine::{Device, ServingDtype};
use crate::error::{Error, Result};

/// Which judges there are.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgeConfig {
    /// URLs at or below which `http` rewards may post.
    pub allowed_urls: Vec<String>,
    /// Reward models by the name that requests use.
    pub models: Vec<(String, PathBuf)>,
    /// Prompt and completion together, for reward models.
    pub max_model_len: usize,
    pub device: Device,
    pub dtype: ServingDtype,
    pub threads: Option<usize>,
}

/// What all samples of a prompt have in common, as a judge sees it.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The rendered prompt, or text that nobody rendered.
    pub prompt: Option<String>,
    /// The prompt's chat messages, where it came as such.
    pub messages: Option<Vec<Value>>,
    /// Whether the prompt shows images or videos.
    pub has_media: bool,
    pub solution: Option<Value>,
    pub fields: Option<Map<String, Value>>,
}

/// One sample for a judge.
#[derive(Clone, Debug)]
pub struct Question {
    pub context: Arc<Context>,
    /// The prefill, if any, and the completion.
    pub completion: Arc<str>,
    pub finish_reason: Option<FinishReason>,
}

#[derive(Default)]
pub struct Judges {
    http: Option<http::Caller>,
    models: BTreeMap<String, Arc<model::RewardModel>>,
}

/// A judge that a request may ask.
#[derive(Clone)]
pub enum Line {
    Http(http::HttpLine),
    Model(Arc<model::RewardModel>),
}

impl Judges {
    /// Loads the reward models, each with a device and a thread of its own; `progress` is told what begins.
    ///
    /// # Errors
    ///
    /// A URL that is none, and a folder that is no reward model.
    pub fn load(config: &JudgeConfig, progress: &dyn Fn(&str)) -> Result<Self> {
        let mut models = BTreeMap::new();
        for (name, folder) in &config.models {
            progress(&format!("loading the reward model {name}"));
            let model = model::RewardModel::load(name, folder, config);
            let model = model.map_err(|e| Error::Setup(format!("--reward-model {name}: {e}")))?;
            models.insert(name.clone(), Arc::new(model));
        }
        Ok(Judges { http: http::Caller::new(&config.allowed_urls)?, models })
    }

    /// Call it within a tokio runtime; what the line holds goes with its last clone.
    ///
    /// # Errors
    ///
    /// A judge that this server does not have or does not allow.
    pub fn open(&self, ask: &Ask) -> Result<Line> {
        match ask {
            Ask::Http(ask) => match &self.http {
                Some(caller) => Ok(Line::Http(caller.open(ask)?)),
                None => Err(Error::invalid("", "url: no scorer is allowed; start the server with --allow-reward-url")),
            },
            Ask::Model(ask) => self.models.get(&ask.model).cloned().map(Line::Model).ok_or_else(|| {
                let known: Vec<&str> = self.models.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none (--reward-model NAME=FOLDER)".to_owned() } else { known.join(", ") };
                Error::invalid("", format!("model: there is no reward model {:?}; there are: {known}", ask.model))
            }),
        }
    }
}

impl Line {
    /// The judge's verdict, or none with a reason.
    pub async fn ask(&self, question: Question) -> Verdict {
        let start = Instant::now();
        let (judge, verdict) = match self {
            Line::Http(line) => ("http", line.ask(question).await),
            Line::Model(model) => ("model", model.ask(&question).await),
        };
        let outcome = if verdict.value.is_some() { "verdict" } else { verdict.reason.as_str() };
        counter!("grouper_judge_answers_total", "judge" => judge, "outcome" => outcome).increment(1);
        histogram!("grouper_judge_seconds", "judge" => judge).record(start.elapsed().as_secs_f64());
        verdict
    }
}

/// What became of a question whose judge is gone: a bug, told by its own message.
fn gone() -> Verdict {
    Verdict::none(Reason::Internal)
}
