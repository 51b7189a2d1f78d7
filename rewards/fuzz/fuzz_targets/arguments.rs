//! Arguments as a request sends them, patterns, schemas and nested rewards included, then one sample.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rewards::{REWARDS, Sample, build};
use serde_json::{Map, Value};

fuzz_target!(|input: (u8, &str, &str, &str)| {
    let (which, args, gold, completion) = input;
    let spec = &REWARDS[usize::from(which) % REWARDS.len()];
    // Either whole arguments, or the text as the value of each argument in turn.
    let whole: Option<Map<String, Value>> = serde_json::from_str(args).ok();
    let single = spec.args.iter().map(|arg| Map::from_iter([(arg.name.to_owned(), Value::from(args))]));
    let gold = Value::from(gold);
    for args in whole.into_iter().chain(single) {
        if let Ok(reward) = build(spec.name, &args) {
            let _ = reward.score(&Sample { completion, solution: Some(&gold), ..Sample::default() });
        }
    }
});
