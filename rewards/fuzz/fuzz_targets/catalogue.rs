//! Every reward that needs no argument, on any text, ids and group.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rewards::{REWARDS, Reward, Sample, build};
use serde_json::{Map, Value};

static ALL: LazyLock<Vec<Box<dyn Reward>>> = LazyLock::new(|| REWARDS.iter().filter_map(|spec| build(spec.name, &Map::new()).ok()).collect());

fuzz_target!(|input: (&str, &str, &str, Vec<u32>)| {
    let (gold, first, second, token_ids) = input;
    let gold = Value::from(gold);
    let sample = |completion| Sample { completion, solution: Some(&gold), token_ids: Some(&token_ids), ..Sample::default() };
    let group = [sample(first), sample(second)];
    for reward in ALL.iter() {
        for verdict in reward.score_group(&group) {
            assert!(verdict.value.is_none_or(f64::is_finite));
        }
    }
});
