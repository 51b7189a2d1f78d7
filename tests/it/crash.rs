//! `kill -9` of the server at random moments under load, with the oracle outside: everything that was promised over HTTP is checked here.
//!
//! `GROUPER_CRASHES` is the number of kills (30), `GROUPER_SEED` chooses their moments; every sixth falls into a push of weights. An actor
//! is a task with a [`World`]; adding one to [`ACTORS`] puts it under the same kills.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::common::user;
use crate::crash_labels::{self, Labels};
use crate::crash_learner::{Checkpoint, Push, may_cross_to, train};
use crate::process::{ServerProcess, free_port, number};

/// Queues: of learners that only take and ack, and of the one that learns.
const PLAIN: &str = "default";
pub const TRAINED: &str = "trained";
const PLAIN_LEARNERS: usize = 3;
/// Of so many kills one falls into a push of weights.
const KILLS_A_SWAP: u64 = 6;

type Actor = fn(Arc<World>) -> BoxFuture<'static, ()>;

const ACTORS: &[Actor] = &[
    |world| Box::pin(produce(world, PLAIN)),
    |world| Box::pin(produce(world, TRAINED)),
    |world| Box::pin(ask_with_keys(world)),
    |world| Box::pin(train(world)),
];

/// The server under test and what it promised.
pub struct World {
    pub client: Client,
    pub url: String,
    pub folder: PathBuf,
    choices: AtomicU64,
    /// The life of the learner, and what it waits for the server to take.
    pub learner: Mutex<Option<AbortHandle>>,
    pub pushing: Mutex<Option<Push>>,
    pub pushes: AtomicU64,
    pub answered_push: AtomicU64,
    pub usual_push_us: AtomicU64,
    pub last_weights: AtomicU64,
    /// No more kills and no more work: what is there is drained.
    draining: AtomicBool,
    drained: AtomicBool,
    promises: Mutex<Promises>,
}

#[derive(Default)]
pub struct Promises {
    /// Uids of confirmed acceptances, by queue.
    accepted: HashMap<&'static str, Vec<String>>,
    acked: HashSet<String>,
    /// What each uid was delivered with.
    groups: HashMap<String, Value>,
    deliveries: usize,
    after_ack: usize,
    other_tokens: usize,
    stale_acks: usize,
    stale_acks_taken: usize,
    pub learner_kills: usize,
    pub learner_kills_in_swaps: usize,
    /// Kills of the server before a push was answered, by how its weights were to be taken, and whether their version was on disk.
    kills_in_swaps: BTreeMap<(&'static str, &'static str, bool), usize>,
    kills_of_both: usize,
    /// Pushes that were confirmed, that broke off, and that found another under way.
    pub pushes: usize,
    pub cut_pushes: usize,
    pub busy: usize,
    /// Newest version that was confirmed.
    pub newest: u64,
    /// Digests of versions by what replies, `GET /v1/policy` and the record said, and numbers of weights by their digests.
    pub versions: BTreeMap<u64, String>,
    pub versions_reused: usize,
    versions_back: usize,
    pub numbers: HashMap<String, u16>,
}

impl World {
    pub fn below(&self, n: u64) -> u64 {
        let mut x = self.choices.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.choices.store(x, Ordering::Relaxed);
        (x >> 11) % n
    }

    pub fn promises(&self) -> std::sync::MutexGuard<'_, Promises> {
        self.promises.lock().unwrap()
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub fn is_drained(&self) -> bool {
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

    /// As [`World::post`].
    pub async fn get(&self, path: &str) -> Value {
        loop {
            if let Ok(response) = self.client.get(format!("{}{path}", self.url)).send().await
                && let Ok(text) = response.text().await
            {
                return serde_json::from_str(&text).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The folder that weights may come from.
    pub fn root(&self) -> PathBuf {
        self.folder.join("weights")
    }

    pub async fn lease(&self, queue: &str, num_groups: usize, lease_ms: u64) -> Option<Value> {
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
            let made = made(group);
            let first = promises.groups.entry(uid).or_insert_with(|| made.clone());
            let differs = *first != made;
            promises.other_tokens += usize::from(differs);
        }
        Some(lease)
    }

    /// Whether the ack was taken; a refusal is a 409.
    pub async fn ack(&self, lease: &Value) -> bool {
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

/// What of a group is the same whenever it is delivered.
fn made(group: &Value) -> Value {
    let sample = |s: &Value| json!({"token_ids": s["token_ids"], "logps": s["logps"], "policy_versions": s["policy_versions"]});
    let samples: Vec<Value> = group["samples"].as_array().unwrap().iter().map(sample).collect();
    json!({"prompt_token_ids": group["prompt_token_ids"], "samples": samples})
}

/// Never gives a group up: kills are nobody's fault here.
fn patient(root: &Path) -> Vec<(&'static str, OsString)> {
    let patience = ["GROUPER_MAX_DELIVERIES", "GROUPER_MAX_GENERATIONS"].map(|name| (name, "100000".into()));
    patience.into_iter().chain([("GROUPER_POLICY_ROOT", root.into())]).collect()
}

fn request(seed: u64, groups: usize, fields: Value) -> Value {
    let groups: Vec<Value> = (0..groups).map(|i| json!({"messages": user(&format!("{i} + {seed}")), "solution": "4"})).collect();
    let mut body =
        json!({"groups": groups, "num_generations": 2, "sampling": {"max_tokens": 8 + seed % 4 * 12}, "rewards": [{"name": "accuracy"}]});
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
        for group in reply["groups"].as_array().unwrap() {
            world.promises().groups.insert(group["uid"].as_str().unwrap().to_owned(), made(group));
        }
        last = Some((body, reply));
        tokio::time::sleep(Duration::from_millis(world.below(150))).await;
    }
}

/// Takes and acks; sometimes too late, sometimes with the fence of an older lease.
async fn take(world: Arc<World>) {
    while !world.is_drained() {
        // Most groups come when no server is killed any more.
        let too_late = world.below(if world.is_draining() { 20 } else { 3 }) == 0;
        let lease_ms = match (world.is_draining(), too_late) {
            (_, true) => 100 + world.below(100),
            (true, false) => 10_000,
            (false, false) => 100 + world.below(1500),
        };
        let num_groups = if world.is_draining() { 1 } else { 1 + world.below(2) as usize };
        let Some(lease) = world.lease(PLAIN, num_groups, lease_ms).await else { continue };
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

#[tokio::test(flavor = "multi_thread")]
async fn killed_servers_keep_their_promises() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (kills, seed) = (number("GROUPER_CRASHES", 30), number("GROUPER_SEED", 20_251_124));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let port = free_port();
    let world = Arc::new(World {
        client: Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap(),
        url: format!("http://127.0.0.1:{port}"),
        folder: folder.path().to_owned(),
        choices: AtomicU64::new(seed | 1),
        learner: Mutex::default(),
        pushing: Mutex::default(),
        pushes: AtomicU64::default(),
        answered_push: AtomicU64::default(),
        usual_push_us: AtomicU64::new(10_000),
        last_weights: AtomicU64::default(),
        draining: AtomicBool::new(false),
        drained: AtomicBool::new(false),
        promises: Mutex::default(),
    });
    std::fs::create_dir(world.root()).unwrap();
    let env = patient(&world.root());
    let mut server = ServerProcess::start(&data, port, &env);
    let takers = (0..PLAIN_LEARNERS).map(|_| tokio::spawn(take(world.clone())));
    let actors: Vec<_> =
        takers.collect::<Vec<_>>().into_iter().chain(ACTORS.iter().map(|actor| tokio::spawn(actor(world.clone())))).collect();

    let mut restarts = Restarts::default();
    for kill in 0..kills {
        let in_swaps: usize = world.promises().kills_in_swaps.values().sum();
        let push = match (kill + 1) / KILLS_A_SWAP > in_swaps as u64 {
            true => Some(world.amid_a_push().await.expect("nobody pushes weights")),
            false => {
                tokio::time::sleep(Duration::from_millis(1 + world.below(500))).await;
                None
            }
        };
        let killed = Instant::now();
        server.kill();
        after_a_kill(&world, &data, push).await;
        let (path, env) = (data.clone(), env.clone());
        server = tokio::task::spawn_blocking(move || ServerProcess::start(&path, port, &env)).await.unwrap();
        restarts.serving.push(killed.elapsed());
        restarts.watch(&world, killed);
    }
    world.draining.store(true, Ordering::Relaxed);
    let counts = drain(&world).await;
    world.drained.store(true, Ordering::Relaxed);
    for actor in actors {
        actor.await.unwrap();
    }
    drop(server);
    let pushed: Vec<u16> = (0..=world.last_weights.load(Ordering::Relaxed) as u16).collect();
    let (groups, numbers) = {
        let promises = world.promises();
        let numbers = promises.versions.iter().filter_map(|(version, sha256)| Some((*version, *promises.numbers.get(sha256)?)));
        (promises.groups.clone(), numbers.chain([(0, 0)]).collect())
    };
    let labels = crash_labels::check(groups.values(), &numbers, &pushed).await;
    audit(&world, &counts, restarts, &labels);
}

/// How long kills kept the server away.
#[derive(Default)]
struct Restarts {
    /// Until it answered, and took groups and acks.
    serving: Vec<Duration>,
    /// Until it also generated, which may need a learner's weights. Without those during which it was killed again.
    ready: Arc<Mutex<Vec<Duration>>>,
}

impl Restarts {
    fn watch(&self, world: &World, killed: Instant) {
        let (client, url, ready) = (world.client.clone(), format!("{}/ready", world.url), self.ready.clone());
        tokio::spawn(async move {
            while let Ok(reply) = client.get(&url).send().await {
                if reply.status() == 200 {
                    return ready.lock().unwrap().push(killed.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
}

/// Reads what the server that was killed has left of its weights, and may kill the learner as well.
async fn after_a_kill(world: &World, data: &Path, aimed_at: Option<Push>) {
    // What had been answered has arrived by now.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let hit = aimed_at.filter(|push| world.answered_push.load(Ordering::Relaxed) < push.id);
    let record = std::fs::read(data.join("policy.json")).ok().map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap());
    let recorded = record.as_ref().map_or(0, |record| record["version"].as_u64().unwrap());
    if let Some(record) = &record {
        world.note_version(recorded, record["sha256"].as_str().unwrap());
    }
    let mut promises = world.promises();
    promises.versions_back += usize::from(recorded < promises.newest);
    if let Some(push) = hit {
        let (from, apply) =
            (if push.weights % 4 < 2 { "path" } else { "body" }, if may_cross_to(push.weights) { "continue" } else { "finish" });
        let is_recorded = record.is_some_and(|record| promises.numbers.get(record["sha256"].as_str().unwrap()) == Some(&push.weights));
        *promises.kills_in_swaps.entry((from, apply, is_recorded)).or_default() += 1;
    }
    drop(promises);
    if aimed_at.is_some() && world.below(2) == 0 {
        world.learner.lock().unwrap().as_ref().inspect(|learner| learner.abort());
        world.promises().kills_of_both += usize::from(hit.is_some());
    }
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

fn audit(world: &World, counts: &Value, restarts: Restarts, labels: &Labels) {
    let promises = world.promises();
    let accepted: Vec<&String> = promises.accepted.values().flatten().collect();
    let lost: Vec<&&String> = accepted.iter().filter(|uid| !promises.acked.contains(**uid)).collect();
    let learned = Checkpoint::load(&world.folder.join("checkpoint.json")).learned;
    let twice = learned.len() - learned.iter().collect::<HashSet<_>>().len();
    let unlearned = promises.accepted[TRAINED].iter().filter(|uid| !learned.contains(uid)).count();
    let in_swaps: usize = promises.kills_in_swaps.values().sum();
    let kills = restarts.serving.len();
    println!(
        "{kills} kills of the server, {} of the learner: {} groups accepted, {} deliveries",
        promises.learner_kills,
        accepted.len(),
        promises.deliveries
    );
    println!(
        "{in_swaps} kills of the server amid a push of weights, {} of them with the learner; {} of the learner alone; by source, apply and \
         whether the version was on disk: {:?}",
        promises.kills_of_both, promises.learner_kills_in_swaps, promises.kills_in_swaps
    );
    println!("{} pushes confirmed, {} cut off, {} found another under way", promises.pushes, promises.cut_pushes, promises.busy);
    println!(
        "lost {}, delivered after a confirmed ack {}, redelivered with other tokens {}, stale acks {} of which taken {}, \
         learned twice {twice}, never learned {unlearned}, versions reused {}, gone back {}",
        lost.len(),
        promises.after_ack,
        promises.other_tokens,
        promises.stale_acks,
        promises.stale_acks_taken,
        promises.versions_reused,
        promises.versions_back
    );
    println!("{labels:?}");
    let figures = |mut times: Vec<Duration>| {
        times.sort_unstable();
        format!("p50 {:?} max {:?} of {}", times[times.len() / 2], times[times.len() - 1], times.len())
    };
    let ready = restarts.ready.lock().unwrap().clone();
    println!("kill to serving {}; kill to generating {}", figures(restarts.serving), figures(ready));
    for (queue, counts) in counts.as_object().unwrap() {
        assert_eq!((&counts["dead"], &counts["dropped"]), (&json!(0), &json!({})), "{queue}: {counts}");
        assert_eq!(counts["accepted"], counts["acked"], "{queue}: {counts}");
    }
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert_eq!((promises.after_ack, promises.other_tokens, promises.stale_acks_taken, twice, unlearned), (0, 0, 0, 0, 0));
    assert_eq!((labels.wrong, labels.unknown, promises.versions_reused, promises.versions_back), (0, 0, 0, 0));
    assert!(labels.control > 0 && labels.control_alike * 100 < labels.control, "labels can't be told apart: {labels:?}");
    assert!(accepted.len() > kills && promises.stale_acks > 0 && promises.learner_kills > 0, "too little happened to tell");
    assert!(in_swaps as u64 * (KILLS_A_SWAP + 2) >= kills as u64 && labels.crossing_samples > 0, "too few kills amid pushes to tell");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_ends_the_server_is_given_up() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let env = [("GROUPER_MAX_GENERATIONS", OsString::from("3"))];
    let start = || ServerProcess::start(folder.path(), port, &env);
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
    let get = async |path: String| -> Value {
        let reply = client.get(format!("http://127.0.0.1:{port}{path}")).send().await.unwrap();
        serde_json::from_str(&reply.text().await.unwrap()).unwrap()
    };
    let mut server = start();
    // Long enough to be killed in the middle.
    let long = json!({"mode": "queue", "num_generations": 128, "sampling": {"max_tokens": 450, "ignore_eos": true}});
    let sent = client.post(format!("http://127.0.0.1:{port}/v1/rollouts")).json(&request(1, 1, long)).send().await.unwrap();
    let rollout: Value = serde_json::from_str(&sent.text().await.unwrap()).unwrap();
    let progress = format!("/v1/rollouts/{}", rollout["rollout_id"].as_str().unwrap());
    for _ in 0..3 {
        while get(progress.clone()).await["states"]["generating"] != 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        server.kill();
        server = start();
    }
    let dead = get("/v1/batches/dead".into()).await;
    assert_eq!((&dead["groups"][0]["uid"], &dead["groups"][0]["generations"]), (&rollout["uids"][0], &json!(3)), "{dead}");
    assert!(dead["groups"][0]["reason"].as_str().unwrap().contains("ended 3 times"), "{dead}");
    assert_eq!(get(progress).await["states"]["dead"], 1);
}
