//! Rewards for reinforcement learning from verifiable answers.
//!
//! A reward looks at one [`Sample`] (or at a whole group of them) and gives a [`Verdict`]: a number,
//! or *no verdict*, which is never the same as 0. Every reward is a row of one table, [`REWARDS`],
//! with typed arguments, and is made by [`build`] from its name and a JSON object.
//!
//! ```
//! use rewards::{Sample, build};
//! use serde_json::{Map, json};
//!
//! let accuracy = build("accuracy", &Map::new())?;
//! let gold = json!("$\\frac{1}{2}$");
//! let sample = Sample { completion: "So it is \\boxed{0.5}.", solution: Some(&gold), ..Sample::default() };
//! assert_eq!(accuracy.score(&sample).value, Some(1.0));
//! # Ok::<(), rewards::ArgError>(())
//! ```
//!
//! Model output is hostile input. No reward recurses on it without a depth limit, every comparison
//! spends from a fixed budget of work and not from a clock, so a verdict is the same on every machine,
//! and a panic inside a reward becomes "no verdict" with the reason `internal`.
//!
//! No reward opens a connection or runs a model: what only the world can answer is an [`Ask`], which whoever scores puts to it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod ask;
mod catalog;
mod guard;
mod math;
mod sample;

pub use args::{ArgError, ArgSpec, Args};
pub use ask::{Answer, Ask, HttpAsk, ModelAsk};
pub use catalog::REWARDS;
pub use sample::{BadSolution, FinishReason, Reason, Reward, Sample, Verdict};

use serde_json::{Map, Value};

/// One row of [`REWARDS`].
#[derive(Debug)]
pub struct RewardSpec {
    pub name: &'static str,
    /// One sentence: what the value means.
    pub about: &'static str,
    pub args: &'static [ArgSpec],
    /// Makes the reward from arguments that [`build`] has checked against `args` and completed with the defaults.
    pub build: fn(&Args) -> Result<Box<dyn Reward>, ArgError>,
}

/// Makes a reward by name.
///
/// # Errors
///
/// An unknown name or argument, an argument of the wrong kind or out of range, a required argument left out.
pub fn build(name: &str, args: &Map<String, Value>) -> Result<Box<dyn Reward>, ArgError> {
    args::build_at(name, args, "", 0)
}
