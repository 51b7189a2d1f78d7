//! Disks that are full, do not sync or can't be written to: callers are told, nothing is lost, nothing is acked that was not stored.
//!
//! The faults come from `faults.c`, preloaded into the server's process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};

use crate::common::user;
use crate::process::{ServerProcess, free_port};

struct Faulty {
    server: ServerProcess,
    client: Client,
    url: String,
    folder: tempfile::TempDir,
}

impl Faulty {
    fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        for name in ["data", "faults"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let port = free_port();
        let server = ServerProcess::start(&folder.path().join("data"), port, &env(folder.path()));
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        Faulty { server, client, url: format!("http://127.0.0.1:{port}"), folder }
    }

    fn restart(&mut self) {
        let port = self.url.rsplit_once(':').unwrap().1.parse().unwrap();
        self.server.kill();
        self.server = ServerProcess::start(&self.folder.path().join("data"), port, &env(self.folder.path()));
    }

    fn fault(&self, name: &str) -> PathBuf {
        self.folder.path().join("faults").join(name)
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.client.post(format!("{}{path}", self.url)).json(body).send().await.unwrap();
        (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
    }

    /// One group that takes about 100 kB.
    async fn accept(&self, n: usize) -> (u16, Value) {
        let group = json!({"messages": user("hi"), "fields": {"padding": "x".repeat(100_000)}});
        let body = json!({"groups": [group], "num_generations": 1, "sampling": {"max_tokens": 2}, "rewards": [], "mode": "queue",
            "idempotency_key": format!("k{n}")});
        self.post("/v1/rollouts", &body).await
    }

    async fn lease(&self, num_groups: usize) -> (u16, Value) {
        self.post("/v1/batches/lease", &json!({"num_groups": num_groups, "wait_ms": 5000})).await
    }

    async fn ack(&self, lease: &Value) -> (u16, Value) {
        self.post(&format!("/v1/batches/{}/ack", lease["lease_id"].as_str().unwrap()), &json!({"fence": lease["fence"]})).await
    }
}

fn env(folder: &Path) -> Vec<(&'static str, OsString)> {
    let library = folder.join("faults.so");
    if !library.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults.c");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
        assert!(compiled.unwrap().success(), "a C compiler is needed, as for the build");
    }
    vec![
        ("LD_PRELOAD", library.into()),
        ("GROUPER_FAULTS", folder.join("faults").into()),
        ("GROUPER_FAULTY_DIR", folder.join("data").into()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_work_and_takes_acks() {
    let faulty = Faulty::start();
    std::fs::write(faulty.fault("quota"), (24 << 20).to_string()).unwrap();
    let mut accepted = Vec::new();
    let refused = loop {
        match faulty.accept(accepted.len()).await {
            (202, reply) => accepted.push(reply["uids"][0].as_str().unwrap().to_owned()),
            refused => break refused,
        }
        assert!(accepted.len() < 1000, "the disk is never full");
    };
    assert_eq!((refused.0, &refused.1["error"]["code"]), (507, &json!("storage_full")), "{refused:?}");
    assert!(accepted.len() > 10);
    // What was accepted is generated and acked all the same, which makes room again.
    let (mut acked, mut waited) = (Vec::new(), Instant::now());
    while acked.len() < accepted.len() {
        let (status, lease) = faulty.lease(1).await;
        if status == 200 {
            let (status, reply) = faulty.ack(&lease).await;
            assert_eq!(status, 200, "{reply}");
            acked.push(reply["uids"][0].as_str().unwrap().to_owned());
            waited = Instant::now();
        }
        assert!(waited.elapsed() < Duration::from_secs(30), "{} of {} acked; {status} {lease}", acked.len(), accepted.len());
    }
    assert_eq!(acked, accepted, "first in, first out, each once");
    let deadline = Instant::now() + Duration::from_secs(20);
    while faulty.accept(accepted.len()).await.0 != 202 {
        assert!(Instant::now() < deadline, "no work is accepted though there is room");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(faulty.lease(1).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_sync_ends_the_store() {
    let mut faulty = Faulty::start();
    let first = faulty.accept(0).await;
    assert_eq!(first.0, 202);
    let (status, lease) = faulty.lease(1).await;
    assert_eq!(status, 200, "{lease}");
    std::fs::write(faulty.fault("fsync"), "").unwrap();
    let refused = faulty.ack(&lease).await;
    assert_eq!((refused.0, &refused.1["error"]["code"]), (503, &json!("storage_failed")), "{refused:?}");
    std::fs::remove_file(faulty.fault("fsync")).unwrap();
    // The kernel may have dropped what it could not write: nothing is promised from here on, even if the disk came back.
    assert_eq!(faulty.accept(1).await.0, 503);
    let (status, ready) = faulty.get("/ready").await;
    assert!(status == 503 && ready["reasons"][0].as_str().unwrap().starts_with("the store: "), "{ready}");
    assert_eq!(faulty.get("/health").await.0, 200);
    faulty.restart();
    assert_eq!(faulty.ack(&lease).await.0, 200, "whether or not it reached the disk before, it is acked now");
    assert_eq!(faulty.accept(1).await.0, 202);
    let (_, again) = faulty.lease(1).await;
    assert_ne!(again["groups"][0]["uid"], lease["groups"][0]["uid"]);
}

#[test]
fn a_folder_that_cannot_be_used_is_said_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for place in ["file", "file/below"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_grouper"));
        command.arg("serve").arg(crate::golden::model("tiny-vl")).args(["--port", "0", "--device", "cpu", "--data-dir"]);
        let output = command.arg(folder.path().join(place)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("--data-dir") && said.contains(place), "{said}");
    }
}
