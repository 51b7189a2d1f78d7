//! `kill -9` of the server at random moments under load, with the oracle outside: everything that was promised over HTTP is checked here.
//!
//! `GROUPER_CRASHES` is the number of kills (30), `GROUPER_SEED` chooses their moments. An actor is a task with a [`World`]; adding one
//! to [`ACTORS`] puts it under the same kills.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use reqwest::Client;
use serde_json::{Value, json};

use crate::common::user;
use crate::golden;

/// Queues: of learners that only take and ack, and of the one that learns.
const PLAIN: &str = "default";
const TRAINED: &str = "trained";
const PLAIN_LEARNERS: usize = 3;

type Actor = fn(Arc<World>) -> BoxFuture<'static, ()>;

const ACTORS: &[Actor] = &[
    |world| Box::pin(produce(world, PLAIN)),
    |world| Box::pin(produce(world, TRAINED)),
    |world| Box::pin(ask_with_keys(world)),
    |world| Box::pin(train(world)),
];

/// The server under test and what it promised.
struct World {
    client: Client,
    url: String,
    folder: PathBuf,
    choices: AtomicU64,
    /// No more kills and no more work: what is there is drained.
    draining: AtomicBool,
    drained: AtomicBool,
    promises: Mutex<Promises>,
}

#[derive(Default)]
struct Promises {
    /// Uids of confirmed acceptances, by queue.
    accepted: HashMap<&'static str, Vec<String>>,
    acked: HashSet<String>,
    /// The tokens that each uid was delivered with.
    tokens: HashMap<String, Value>,
    deliveries: usize,
    after_ack: usize,
    other_tokens: usize,
    stale_acks: usize,
    stale_acks_taken: usize,
    learner_kills: usize,
}

impl World {
    fn below(&self, n: u64) -> u64 {
        let mut x = self.choices.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.choices.store(x, Ordering::Relaxed);
        (x >> 11) % n
    }

    fn promises(&self) -> std::sync::MutexGuard<'_, Promises> {
        self.promises.lock().unwrap()
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Asks until there is an answer: a server that was killed comes back.
    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        loop {
            let sent = self.client.post(format!("{}{path}", self.url)).json(body).send().await;
            if let Ok(response) = sent {
                let status = response.status().as_u16();
                // Killed while it answered: no answer.
                if let Ok(text) = response.text().await
                    && status != 503
                {
                    return (status, serde_json::from_str(&text).unwrap_or_default());
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn lease(&self, queue: &str, num_groups: usize, lease_ms: u64) -> Option<Value> {
        let wish = json!({"num_groups": num_groups, "wait_ms": 200, "lease_ms": lease_ms, "queue": queue});
        let (status, lease) = self.post("/v1/batches/lease", &wish).await;
        assert!(status == 200 || status == 204, "{status} {lease}");
        if status == 204 {
            return None;
        }
        let mut promises = self.promises();
        for group in lease["groups"].as_array().unwrap() {
            let uid = group["uid"].as_str().unwrap().to_owned();
            promises.deliveries += 1;
            promises.after_ack += usize::from(promises.acked.contains(&uid));
            let tokens = json!(group["samples"].as_array().unwrap().iter().map(|s| (&s["token_ids"], &s["logps"])).collect::<Vec<_>>());
            let first = promises.tokens.entry(uid).or_insert_with(|| tokens.clone());
            let differs = *first != tokens;
            promises.other_tokens += usize::from(differs);
        }
        Some(lease)
    }

    /// Whether the ack was taken; a refusal is a 409.
    async fn ack(&self, lease: &Value) -> bool {
        let path = format!("/v1/batches/{}/ack", lease["lease_id"].as_str().unwrap());
        let (status, reply) = self.post(&path, &json!({"fence": lease["fence"]})).await;
        assert!(status == 200 || status == 409, "{status} {reply}");
        if status == 200 {
            let uids = reply["uids"].as_array().unwrap().iter().map(|uid| uid.as_str().unwrap().to_owned());
            self.promises().acked.extend(uids);
        }
        status == 200
    }
}

/// The server as a process of its own.
pub struct ServerProcess {
    child: Child,
}

impl ServerProcess {
    /// Starts a server on a data folder and waits until it is ready.
    pub fn start(folder: &Path, port: u16, env: &[(&str, PathBuf)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_grouper"));
        command.arg("serve").arg(golden::model("tiny-vl")).args(["--port", &port.to_string(), "--device", "cpu", "--threads", "1"]);
        command.args(["--max-model-len", "512", "--kv-cache-memory", "16M", "--max-deliveries", "100000", "--max-generations", "100000"]);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command.arg("--data-dir").arg(folder).stdout(Stdio::null()).stderr(Stdio::piped()).env("RUST_LOG", "warn");
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        // Errors of the start are shown; then somebody has to read on.
        loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended: {said}");
            said.push_str(&line);
            if line.contains("ready in") {
                break;
            }
        }
        std::thread::spawn(move || {
            log.lines().map_while(Result::ok).filter(|line| line.contains("ERROR")).for_each(|line| eprintln!("{line}"))
        });
        ServerProcess { child }
    }

    pub fn kill(&mut self) {
        // SIGKILL.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(seed: u64, groups: usize, fields: Value) -> Value {
    let groups: Vec<Value> = (0..groups).map(|i| json!({"messages": user(&format!("{i} + {seed}")), "solution": "4"})).collect();
    let mut body = json!({"groups": groups, "num_generations": 2, "sampling": {"max_tokens": 8}, "rewards": [{"name": "accuracy"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

async fn produce(world: Arc<World>, queue: &'static str) {
    for n in 0.. {
        if world.is_draining() {
            return;
        }
        let body =
            request(n, 1 + world.below(3) as usize, json!({"mode": "queue", "queue": queue, "idempotency_key": format!("{queue}-{n}")}));
        let (status, reply) = world.post("/v1/rollouts", &body).await;
        match status {
            202 => {
                let uids = reply["uids"].as_array().unwrap().iter().map(|uid| uid.as_str().unwrap().to_owned());
                world.promises().accepted.entry(queue).or_default().extend(uids);
            }
            429 => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => panic!("{status} {reply}"),
        }
        tokio::time::sleep(Duration::from_millis(world.below(60))).await;
    }
}

/// Keyed requests that are waited for: a repetition gives what was given, also after a kill.
async fn ask_with_keys(world: Arc<World>) {
    let mut last: Option<(Value, Value)> = None;
    for n in 0.. {
        if world.is_draining() {
            return;
        }
        let body = request(n, 2, json!({"mode": "wait", "idempotency_key": format!("wait-{n}")}));
        let (status, reply) = world.post("/v1/rollouts", &body).await;
        assert_eq!(status, 200, "{reply}");
        if let Some((body, reply)) = &last {
            assert_eq!(world.post("/v1/rollouts", body).await, (200, reply.clone()), "a repeated request has another reply");
        }
        last = Some((body, reply));
        tokio::time::sleep(Duration::from_millis(world.below(150))).await;
    }
}

/// Takes and acks; sometimes too late, sometimes with the fence of an older lease.
async fn take(world: Arc<World>) {
    while !world.is_drained() {
        let lease_ms = if world.is_draining() { 10_000 } else { 100 + world.below(1500) };
        let num_groups = if world.is_draining() { 1 } else { 1 + world.below(2) as usize };
        let Some(lease) = world.lease(PLAIN, num_groups, lease_ms).await else { continue };
        let too_late = !world.is_draining() && world.below(6) == 0;
        if too_late {
            let expires_at = lease["expires_at"].as_u64().unwrap();
            let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
            // Once the server says that it holds no such lease, an ack must be refused.
            while now() < expires_at + 50 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            world.post("/v1/batches/lease", &json!({"num_groups": 1, "queue": "nobody"})).await;
            let taken = world.ack(&lease).await;
            let mut promises = world.promises();
            promises.stale_acks += 1;
            promises.stale_acks_taken += usize::from(taken);
        } else {
            tokio::time::sleep(Duration::from_millis(world.below(30))).await;
            world.ack(&lease).await;
        }
    }
}

/// What a learner keeps over its own end: the uids in its weights, and the lease that it was at.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Checkpoint {
    learned: Vec<String>,
    lease: Option<Value>,
}

impl Checkpoint {
    fn load(path: &Path) -> Checkpoint {
        std::fs::read(path).map(|bytes| serde_json::from_slice(&bytes).unwrap()).unwrap_or_default()
    }

    fn save(&self, path: &Path) {
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self).unwrap()).unwrap();
        std::fs::rename(new, path).unwrap();
    }
}

/// A learner that is killed, too: all it knows when it begins is its checkpoint.
async fn train(world: Arc<World>) {
    while !world.is_drained() {
        let life = tokio::spawn(learn(world.clone()));
        if world.is_draining() {
            life.await.unwrap();
            return;
        }
        tokio::time::sleep(Duration::from_millis(world.below(400))).await;
        life.abort();
        match life.await {
            Err(ended) if ended.is_cancelled() => world.promises().learner_kills += 1,
            other => other.unwrap(),
        }
    }
}

async fn learn(world: Arc<World>) {
    let path = world.folder.join("checkpoint.json");
    let mut checkpoint = Checkpoint::load(&path);
    if let Some(lease) = &checkpoint.lease {
        // The ack may have been lost with the last life. Refused, its groups come again, and are known.
        world.ack(lease).await;
    }
    while !world.is_drained() {
        let Some(lease) = world.lease(TRAINED, 1, 2000).await else { continue };
        for group in lease["groups"].as_array().unwrap() {
            let uid = group["uid"].as_str().unwrap().to_owned();
            if !checkpoint.learned.contains(&uid) {
                checkpoint.learned.push(uid);
            }
        }
        tokio::time::sleep(Duration::from_millis(world.below(20))).await;
        checkpoint.lease = Some(json!({"lease_id": lease["lease_id"], "fence": lease["fence"]}));
        checkpoint.save(&path);
        tokio::time::sleep(Duration::from_millis(world.below(20))).await;
        world.ack(&lease).await;
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_servers_keep_their_promises() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (kills, seed) = (number("GROUPER_CRASHES", 30), number("GROUPER_SEED", 20_251_124));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = ServerProcess::start(&data, port, &[]);
    let world = Arc::new(World {
        client: Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap(),
        url: format!("http://127.0.0.1:{port}"),
        folder: folder.path().to_owned(),
        choices: AtomicU64::new(seed | 1),
        draining: AtomicBool::new(false),
        drained: AtomicBool::new(false),
        promises: Mutex::default(),
    });
    let takers = (0..PLAIN_LEARNERS).map(|_| tokio::spawn(take(world.clone())));
    let actors: Vec<_> =
        takers.collect::<Vec<_>>().into_iter().chain(ACTORS.iter().map(|actor| tokio::spawn(actor(world.clone())))).collect();

    let mut restarts: Vec<Duration> = Vec::new();
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(1 + world.below(500))).await;
        let restarted = Instant::now();
        let path = data.clone();
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            ServerProcess::start(&path, port, &[])
        })
        .await
        .unwrap();
        restarts.push(restarted.elapsed());
    }
    world.draining.store(true, Ordering::Relaxed);
    let counts = drain(&world).await;
    world.drained.store(true, Ordering::Relaxed);
    for actor in actors {
        actor.await.unwrap();
    }
    drop(server);
    restarts.sort_unstable();
    audit(&world, &counts, &restarts);
}

/// Waits until nothing is in flight.
async fn drain(world: &World) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let reply = world.client.get(format!("{}/v1/batches", world.url)).send().await.unwrap();
        let counts = serde_json::from_str::<Value>(&reply.text().await.unwrap()).unwrap()["queues"].take();
        let in_flight = |queue: &Value| ["pending", "ready", "leased"].iter().map(|name| queue[*name].as_u64().unwrap()).sum::<u64>();
        if counts.as_object().unwrap().values().map(in_flight).sum::<u64>() == 0 {
            return counts;
        }
        assert!(Instant::now() < deadline, "not drained: {counts}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn audit(world: &World, counts: &Value, restarts: &[Duration]) {
    let promises = world.promises();
    let accepted: Vec<&String> = promises.accepted.values().flatten().collect();
    let lost: Vec<&&String> = accepted.iter().filter(|uid| !promises.acked.contains(**uid)).collect();
    let learned = Checkpoint::load(&world.folder.join("checkpoint.json")).learned;
    let twice = learned.len() - learned.iter().collect::<HashSet<_>>().len();
    let unlearned = promises.accepted[TRAINED].iter().filter(|uid| !learned.contains(uid)).count();
    println!(
        "{} kills of the server, {} of the learner: {} groups accepted, {} deliveries",
        restarts.len(),
        promises.learner_kills,
        accepted.len(),
        promises.deliveries
    );
    println!(
        "lost {}, delivered after a confirmed ack {}, redelivered with other tokens {}, stale acks {} of which taken {}, \
         learned twice {twice}, never learned {unlearned}; restart to ready p50 {:?} max {:?}",
        lost.len(),
        promises.after_ack,
        promises.other_tokens,
        promises.stale_acks,
        promises.stale_acks_taken,
        restarts[restarts.len() / 2],
        restarts[restarts.len() - 1]
    );
    for (queue, counts) in counts.as_object().unwrap() {
        assert_eq!((&counts["dead"], &counts["dropped"]), (&json!(0), &json!({})), "{queue}: {counts}");
        assert_eq!(counts["accepted"], counts["acked"], "{queue}: {counts}");
    }
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert_eq!((promises.after_ack, promises.other_tokens, promises.stale_acks_taken, twice, unlearned), (0, 0, 0, 0, 0));
    assert!(accepted.len() > restarts.len() && promises.stale_acks > 0 && promises.learner_kills > 0, "too little happened to tell");
}
