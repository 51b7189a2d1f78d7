//! Pairs per second, latencies and the slowest pairs of `accuracy` on one thread, gold answers parsed afresh each time.
//!
//! `cargo bench -p rewards [-- MODE [ROUNDS]]`

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::time::Instant;

use flate2::read::GzDecoder;
use rewards::{Sample, build};
use serde_json::{Value, json};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let mode = words.first().map_or("best", String::as_str);
    let rounds: usize = words.get(1).map_or(5, |r| r.parse().unwrap());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/rewards/accuracy.jsonl.gz");
    let mut text = String::new();
    GzDecoder::new(&std::fs::read(path).unwrap()[..]).read_to_string(&mut text).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let reward = build("accuracy", json!({ "mode": mode }).as_object().unwrap()).unwrap();

    let mut best = vec![f64::INFINITY; records.len()];
    let mut fastest = f64::INFINITY;
    for _ in 0..rounds {
        let start = Instant::now();
        for (record, best) in records.iter().zip(&mut best) {
            let sample =
                Sample { completion: record["completion"].as_str().unwrap(), solution: Some(&record["gold"]), ..Sample::default() };
            let start = Instant::now();
            std::hint::black_box(reward.score(&sample));
            *best = best.min(start.elapsed().as_secs_f64());
        }
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by(|a, b| best[*a].total_cmp(&best[*b]));
    let at = |share: f64| best[order[((records.len() - 1) as f64 * share) as usize]] * 1e6;
    println!(
        "mode {mode}: {:.0} pairs/s, p50 {:.1} us, p90 {:.1} us, p99 {:.1} us, max {:.1} us",
        records.len() as f64 / fastest,
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    for i in order.iter().rev().take(25) {
        println!(
            "{:10.1} us  {}  {}",
            best[*i] * 1e6,
            records[*i]["source"].as_str().unwrap_or(""),
            records[*i]["gold"].to_string().chars().take(60).collect::<String>()
        );
    }
}
