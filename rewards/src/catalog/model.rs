//! A reward model.

use std::sync::Arc;

use crate::ask::{Ask, Asked, ModelAsk};
use crate::{ArgError, ArgSpec, Args, Reward, RewardSpec};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "model",
    about: "The score of a reward model (a sequence classifier with one label) for prompt and completion: chat messages under the model's own template, a prompt that is text as it stands. No verdict on prompts with media, without a prompt, and beyond the model's context.",
    args: &[ArgSpec {
        name: "model",
        kind: "string",
        default: "",
        about: "A name that the server was started with (--reward-model NAME=FOLDER).",
    }],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        Ok(Box::new(Asked(Arc::new(Ask::Model(ModelAsk { model: args.string("model").to_owned() })))))
    },
};
