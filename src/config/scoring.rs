//! Flags about scoring: judges, and the command `score`.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::device;
use crate::engine::{Device, ServingDtype};
use crate::error::{Error, Result};
use crate::judges::JudgeConfig;
use crate::rollout::limits::Limits;
use crate::rollout::request::RewardBody;
use crate::score::{Input, ScoreConfig};

/// Who may be asked for a verdict.
#[derive(Debug, Args)]
#[command(next_help_heading = "Judges")]
pub struct JudgeArgs {
    /// URL at or below which `http` rewards may post samples, such as http://judge:9000/score (repeatable)
    #[arg(long, value_name = "URL")]
    pub allow_reward_url: Vec<String>,
    /// Folder of a reward model and the name that `model` rewards know it by (repeatable)
    #[arg(long, value_name = "NAME=FOLDER")]
    pub reward_model: Vec<String>,
    /// Prompt and completion together, for reward models
    #[arg(long, default_value_t = 8192, env = "GROUPER_REWARD_MODEL_MAX_LEN")]
    pub reward_model_max_len: usize,
}

#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// One JSON object a line, as the samples of POST /v1/rewards/score; - is standard input
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
    /// A JSON list of rewards, or names with commas between them
    #[arg(long, default_value = "think_format,accuracy")]
    pub rewards: String,
    /// A preset's name or a JSON object
    #[arg(long, default_value = "trl")]
    pub advantage: String,
    #[command(flatten)]
    pub judges: JudgeArgs,
    /// Where reward models run: auto (a GPU if there is one), cpu or cuda:N
    #[arg(long, default_value = "auto", env = "GROUPER_DEVICE", help_heading = "Judges")]
    pub device: String,
}

impl JudgeArgs {
    /// # Errors
    ///
    /// A reward model without a name or with that of another, a length of 0.
    pub fn config(&self, device: Device, dtype: ServingDtype, threads: Option<usize>) -> Result<JudgeConfig> {
        let mut models: Vec<(String, PathBuf)> = Vec::new();
        for text in &self.reward_model {
            let wrong = |why: &str| Error::Setup(format!("--reward-model {text}: {why}"));
            let (name, folder) = text.split_once('=').ok_or_else(|| wrong("NAME=FOLDER is expected"))?;
            if name.is_empty() || folder.is_empty() {
                return Err(wrong("NAME=FOLDER is expected"));
            }
            if models.iter().any(|(known, _)| known == name) {
                return Err(wrong("the name of an earlier one"));
            }
            models.push((name.to_owned(), folder.into()));
        }
        let max_model_len = super::at_least_1("--reward-model-max-len", self.reward_model_max_len)?;
        Ok(JudgeConfig { allowed_urls: self.allow_reward_url.clone(), models, max_model_len, device, dtype, threads })
    }
}

impl ScoreArgs {
    /// # Errors
    ///
    /// Rewards that are neither names nor JSON, and what [`JudgeArgs::config`] refuses.
    pub fn config(&self) -> Result<ScoreConfig> {
        let rewards: Vec<RewardBody> = match self.rewards.trim_start() {
            json if json.starts_with(['[', '{']) => {
                serde_json::from_str(json).map_err(|e| Error::Setup(format!("--rewards: not a JSON list of rewards: {e}")))?
            }
            names => names.split(',').map(|name| RewardBody { name: name.trim().to_owned(), ..RewardBody::default() }).collect(),
        };
        let advantage = match self.advantage.trim_start() {
            json if json.starts_with('{') => serde_json::from_str(json).map_err(|e| Error::Setup(format!("--advantage: not JSON: {e}")))?,
            name => Value::from(name),
        };
        let device = match self.judges.reward_model.is_empty() {
            true => Device::Cpu,
            false => device(&self.device)?,
        };
        let dtype = if device == Device::Cpu { ServingDtype::Float32 } else { ServingDtype::Bfloat16 };
        Ok(ScoreConfig {
            input: if self.input.as_os_str() == "-" { Input::Stdin } else { Input::File(self.input.clone()) },
            rewards,
            advantage,
            judges: self.judges.config(device, dtype, None)?,
            limits: Limits::default(),
        })
    }
}
