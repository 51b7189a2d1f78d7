#![doc = include_str!("ARCHITECTURE.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod backends;
pub mod bench;
pub mod config;
pub mod demo;
pub mod engine;
pub mod error;
pub mod hub;
pub mod judges;
pub mod load;
pub mod model;
pub mod policy;
pub mod processor;
pub mod rng;
pub mod rollout;
pub mod score;
pub mod selftest;
pub mod serve;
pub mod store;
