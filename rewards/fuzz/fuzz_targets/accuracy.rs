//! Every parser of mathematics: gold and completion from one input, in both modes. A panic that the reward catches ends the run all
//! the same, since the fuzzer's hook aborts.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rewards::{Reward, Sample, build};
use serde_json::{Value, json};

static MODES: LazyLock<[Box<dyn Reward>; 2]> = LazyLock::new(|| {
    ["best", "trl"].map(|mode| build("accuracy", json!({"mode": mode}).as_object().expect("an object")).expect("known arguments"))
});

fuzz_target!(|input: (bool, &str, &str)| {
    let (boxed, gold, completion) = input;
    let gold = Value::from(gold);
    // Most random text has no answer to extract: a box leads straight to the parsers.
    let text = if boxed { format!("\\boxed{{{completion}}}") } else { completion.to_owned() };
    let sample = Sample { completion: &text, solution: Some(&gold), ..Sample::default() };
    for reward in MODES.iter() {
        let verdict = reward.score(&sample);
        assert!(verdict.value.is_none_or(|v| v == 0.0 || v == 1.0));
        let _ = reward.check_solution(Some(&gold));
    }
});
