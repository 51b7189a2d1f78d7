//! One integration binary: golden vectors stage by stage, the engine under load, the server over HTTP, and the shape of the source.
#![allow(clippy::unwrap_used)]

mod api_access;
mod api_bad_input;
mod api_hub;
mod api_lifecycle;
mod api_openai;
mod checkpoint;
mod common;
mod cuda;
mod engine;
mod formula;
mod golden;
mod golden_model;
mod golden_processor;
mod judges;
mod rollout_advantage;
mod rollout_plan;
mod rollout_service;
mod tidy;
