//! Measures the rewards against recorded verdicts.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use rewards::{Reward, Sample, build};
use serde_json::{Map, Value, json};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/rewards").join(name)
}

fn records(name: &str) -> Vec<Value> {
    let bytes = std::fs::read(golden(name)).unwrap();
    let mut text = String::new();
    if name.ends_with(".gz") {
        GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
    } else {
        text = String::from_utf8(bytes).unwrap();
    }
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn make(name: &str, args: Value) -> Box<dyn Reward> {
    build(name, args.as_object().unwrap_or(&Map::new())).unwrap()
}

/// A line about each disagreement when asked for by the environment variable `SHOW`.
fn show(record: &Value, verdict: &rewards::Verdict) {
    let Ok(what) = std::env::var("SHOW") else { return };
    let field = |name: &str| record[name].as_str().unwrap_or("");
    if !field("category").contains(&what) && !field("source").contains(&what) && what != "all" {
        return;
    }
    let cut = |text: &str, max: usize| text.chars().take(max).collect::<String>();
    println!(
        "{} {}/{} truth {} trl {} got {:?} {}: gold {:?} extracted {:?}",
        field("id"),
        field("category"),
        field("source"),
        record["truth"],
        record["trl_accuracy"],
        verdict.value,
        verdict.reason,
        cut(field("gold"), 150),
        verdict.extracted.as_deref().map(|e| cut(e, 150)),
    );
}

#[test]
fn accuracy_best_agrees_with_the_truth() {
    let reward = make("accuracy", json!({}));
    let (mut judged, mut right, mut false_positives) = (0, 0, 0);
    for record in records("accuracy.jsonl.gz") {
        let Some(truth) = record["truth"].as_bool() else { continue };
        let verdict = reward.score(&Sample {
            completion: record["completion"].as_str().unwrap(),
            solution: Some(&record["gold"]),
            ..Sample::default()
        });
        judged += 1;
        if verdict.value == Some(f64::from(u8::from(truth))) {
            right += 1;
        } else {
            false_positives += usize::from(verdict.value == Some(1.0));
            show(&record, &verdict);
        }
    }
    let share = f64::from(right) / f64::from(judged);
    println!("right {right} of {judged} ({share:.4}), false positives {false_positives}");
    assert!(share >= 0.97, "{right} of {judged} right");
    assert!(false_positives as f64 <= 0.003 * f64::from(judged), "{false_positives} false positives");
}

#[test]
fn think_format_equals_trl() {
    let reward = make("think_format", json!({}));
    for record in records("think_format.jsonl") {
        let completion = record["completion"].as_str().unwrap();
        let verdict = reward.score(&Sample { completion, ..Sample::default() });
        assert_eq!(verdict.value, record["trl_think_format"].as_f64(), "{completion:?}");
    }
}

/// The reward and its arguments that equal a recorded one.
fn equivalent(kind: &str, params: &Value) -> (&'static str, Value) {
    match kind {
        "repetition_penalty_words" => {
            ("repetition", json!({"n": params["ngram_size"], "max_penalty": params["max_penalty"], "unit": "words"}))
        }
        "repetition_penalty_ids" => ("repetition", json!({"n": params["ngram_size"], "max_penalty": params["max_penalty"]})),
        "soft_overlong_punishment" => {
            ("soft_overlong", json!({"max_len": params["max_completion_len"], "cache": params["soft_punish_cache"]}))
        }
        "cosine_scaled_tokens" => ("cosine", params.clone()),
        "tag_count" => ("tag_count", json!({})),
        "reasoning_steps" => ("reasoning_steps", json!({})),
        "code_format" => ("code_format", params.clone()),
        "format_answer_tags" => ("tag_format", json!({})),
        "length_group" => ("length_group", json!({})),
        other => panic!("no reward for {other}"),
    }
}

#[test]
fn shaping_rewards_equal_the_recorded_ones() {
    for record in records("other.jsonl") {
        let (name, args) = equivalent(record["reward"].as_str().unwrap(), &record["params"]);
        let reward = make(name, args);
        let inputs = &record["inputs"];
        let ids: Vec<Vec<u32>> = match (&inputs["completion_ids"], &inputs["completion_lengths"]) {
            (Value::Array(rows), _) => {
                rows.iter().map(|row| row.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()).collect()
            }
            (_, Value::Array(lengths)) => lengths.iter().map(|n| vec![7; n.as_u64().unwrap() as usize]).collect(),
            _ => Vec::new(),
        };
        let expect = record["expect"].as_array().unwrap();
        let samples: Vec<Sample<'_>> = (0..expect.len())
            .map(|i| Sample {
                completion: inputs["completions"][i].as_str().unwrap_or(""),
                solution: inputs["solution"].get(i),
                token_ids: ids.get(i).map(Vec::as_slice),
                ..Sample::default()
            })
            .collect();
        let verdicts = reward.score_group(&samples);
        for (verdict, expect) in verdicts.iter().zip(expect) {
            let close = match (verdict.value, expect.as_f64()) {
                (Some(a), Some(b)) => (a - b).abs() <= 1e-12,
                (None, None) => expect.is_null(),
                _ => false,
            };
            assert!(close, "{}: {verdict:?} is not {expect}", record["id"]);
        }
    }
}

#[test]
fn accuracy_trl_agrees_with_trl() {
    let reward = make("accuracy", json!({"mode": "trl"}));
    let (mut compared, mut equal) = (0, 0);
    for record in records("accuracy.jsonl.gz") {
        // Records that took TRL seconds depend on its time limits.
        if record["trl_ms"].as_f64().is_some_and(|ms| ms > 3000.0) {
            continue;
        }
        let verdict = reward.score(&Sample {
            completion: record["completion"].as_str().unwrap(),
            solution: Some(&record["gold"]),
            ..Sample::default()
        });
        compared += 1;
        if verdict.value == record["trl_accuracy"].as_f64() {
            equal += 1;
        } else {
            show(&record, &verdict);
        }
    }
    let share = f64::from(equal) / f64::from(compared);
    println!("equal {equal} of {compared} ({share:.4})");
    assert!(share >= 0.97, "{equal} of {compared} equal");
}
