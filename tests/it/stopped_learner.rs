//! A learner that has stopped: a server that reads a data set fills its queue and then waits, in the memory that it has. A learner that
//! comes back finds all of it, at once and in order.
//!
//! `GROUPER_STOPPED_SECONDS` is how long nobody asks (4).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};

use crate::process::{ServerProcess, free_port, number};

const MAX_AHEAD: usize = 64;
const MAX_GROWTH: usize = 64 << 20;

struct Learner {
    server: ServerProcess,
    client: Client,
    url: String,
}

impl Learner {
    /// Of a server that reads the bundled model's held-out prompts.
    fn start(folder: &Path, name: &str, max_ahead: usize) -> Self {
        let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-vl-math");
        let config = folder.join("config.json");
        let body = json!({"num_generations": 8, "seed": 7, "sampling": {"max_tokens": 32}, "return": ["text", "logps", "pixel_values"],
            "rewards": [{"name": "accuracy"}, {"name": "think_format"}]});
        std::fs::write(&config, body.to_string()).unwrap();
        let (port, max_ahead) = (free_port(), max_ahead.to_string());
        let dataset = model.join("heldout.jsonl");
        let flags = ["--dataset", dataset.to_str().unwrap(), "--rollout-config", config.to_str().unwrap(), "--max-ahead", &max_ahead];
        let server = ServerProcess::serve(&model, &folder.join(name), port, &flags, &[]);
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        Learner { server, client, url: format!("http://127.0.0.1:{port}") }
    }

    async fn text(&self, path: &str) -> String {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap().text().await.unwrap()
    }

    async fn counts(&self) -> Value {
        serde_json::from_str::<Value>(&self.text("/v1/batches").await).unwrap()["queues"]["default"].take()
    }

    async fn until_ready(&self, groups: usize) {
        let began = Instant::now();
        while self.counts().await["ready"] != groups {
            assert!(began.elapsed() < Duration::from_secs(60), "{}", self.counts().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Takes groups as the tensors of a learner or as JSON, acks them, and gives their uids and how long the lease took.
    async fn take(&self, num_groups: usize, accept: &str) -> (Vec<String>, Duration) {
        let post = |path: &str, body: Value| self.client.post(format!("{}{path}", self.url)).header("accept", accept).json(&body).send();
        let began = Instant::now();
        let reply = post("/v1/batches/lease", json!({"num_groups": num_groups, "wait_ms": 10_000})).await.unwrap();
        assert_eq!(reply.status(), 200);
        let bytes = reply.bytes().await.unwrap();
        let took = began.elapsed();
        let (about, uids) = if accept == "application/json" {
            let lease: Value = serde_json::from_slice(&bytes).unwrap();
            let uids = lease["groups"].as_array().unwrap().iter().map(|group| group["uid"].as_str().unwrap().to_owned()).collect();
            (lease, uids)
        } else {
            let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let about = serde_json::from_slice::<Value>(&bytes[8..8 + len]).unwrap()["__metadata__"].take();
            let uids = serde_json::from_str(about["uids"].as_str().unwrap()).unwrap();
            (about, uids)
        };
        let path = format!("/v1/batches/{}/ack", about["lease_id"].as_str().unwrap());
        assert_eq!(post(&path, json!({"fence": about["fence"]})).await.unwrap().status(), 200);
        (uids, took)
    }

    fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_learner_costs_nothing_and_finds_everything() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let learner = Learner::start(folder.path(), "data", MAX_AHEAD);
    let at_start = learner.resident();
    learner.until_ready(MAX_AHEAD).await;
    let full = learner.resident();
    let (stopped, mut most) = (Instant::now(), full);
    while stopped.elapsed() < Duration::from_secs(number("GROUPER_STOPPED_SECONDS", 4)) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        most = most.max(learner.resident());
        let counts = learner.counts().await;
        assert_eq!((&counts["accepted"], &counts["ready"], &counts["dropped"]), (&json!(MAX_AHEAD), &json!(MAX_AHEAD), &json!({})));
    }
    let stopped = stopped.elapsed();
    let (as_tensors, first) = learner.take(MAX_AHEAD / 2, "application/vnd.safetensors").await;
    let (as_json, second) = learner.take(MAX_AHEAD / 2, "application/json").await;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "nobody asked for {stopped:.0?}: resident {:.1} MiB at the start, {:.1} with the queue full, at most {:.1} from then on; batches of \
         {} groups after {first:.1?} and {second:.1?}",
        mib(at_start),
        mib(full),
        mib(most),
        MAX_AHEAD / 2
    );
    assert!(most - full < MAX_GROWTH, "memory grew by {} bytes while nobody asked", most - full);
    assert!(first.max(second) < Duration::from_secs(1), "{first:?} {second:?}");
    // It goes on where it was.
    learner.until_ready(MAX_AHEAD).await;
    let metrics = learner.text("/metrics").await;
    let acked = format!("grouper_queue_acked_total{{queue=\"default\"}} {MAX_AHEAD}");
    for line in [&acked, "grouper_queue_missing{queue=\"default\"} 0"] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    let counts = learner.counts().await;
    assert_eq!((&counts["accepted"], &counts["dead"], &counts["dropped"]), (&json!(2 * MAX_AHEAD), &json!(0), &json!({})), "{counts}");
    // A server that is never ahead hands the rows out in the order in which it takes them.
    drop(learner);
    let one_by_one = Learner::start(folder.path(), "other", 1);
    for uid in as_tensors.iter().chain(&as_json) {
        assert_eq!(one_by_one.take(1, "application/json").await.0, std::slice::from_ref(uid));
    }
}
