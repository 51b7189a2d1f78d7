//! What GRPO adds to inference: groups of completions of one prompt, scored against each other.
//!
//! A request is read by [`request`], checked once by [`plan`], run by [`service`], which runs each group through
//! [`generator`], the one way to the engine, and scores its samples while others are still being drawn. Queued requests wait in the
//! store ([`queue`]), from which [`feeder`] generates and [`delivery`] serves learners.

pub mod advantage;
pub mod batch;
pub mod dataset;
pub mod delivery;
pub mod feeder;
mod figures;
pub mod generator;
mod group;
mod idempotency;
pub mod limits;
pub mod plan;
pub mod queue;
pub mod recipe;
pub mod reply;
pub mod request;
pub mod rewarder;
mod sample;
pub mod scoring;
pub mod service;
pub mod stop;
