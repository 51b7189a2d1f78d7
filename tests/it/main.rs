//! One integration binary: golden vectors stage by stage, the engine under load, the server over HTTP, and the shape of the source.
#![allow(clippy::unwrap_used)]

mod api_access;
mod api_bad_input;
mod api_hub;
mod api_lifecycle;
mod api_openai;
mod api_queue;
mod api_safetensors;
mod checkpoint;
mod common;
mod crash;
mod crash_labels;
mod crash_learner;
mod cuda;
mod dataset;
mod engine;
mod faults;
mod formula;
mod golden;
mod golden_model;
mod golden_processor;
mod judges;
mod logps;
mod policy;
mod policy_damage;
mod policy_ipc;
mod policy_stages;
mod process;
mod rollout_advantage;
mod rollout_plan;
mod rollout_service;
mod stopped_learner;
mod store;
mod store_model;
mod tidy;
