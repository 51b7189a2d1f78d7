//! The learner of the crash test: it learns, saves, pushes weights and acks, and may be killed at any of these. Every push has weights of
//! its own, by number, so that afterwards every token can be asked which ones made it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Tensors, tensors};
use crate::crash::{TRAINED, World};
use crate::policy::{SAFETENSORS, serialize, weights};

/// Number of the weights that the server starts with.
const OF_START: u16 = 0;

/// Weights by number. Under those that samples may cross to, keys and values of old weights count for nothing, so that each token
/// shows which weights drew it, whatever came before.
pub fn weights_of(number: u16) -> Tensors {
    let mut all = if number == OF_START { tensors() } else { weights(number) };
    if may_cross_to(number) {
        all.iter_mut().filter(|(name, _)| name.contains("self_attn.o_proj")).for_each(|(_, (_, _, bytes))| bytes.fill(0));
    }
    all
}

pub fn may_cross_to(number: u16) -> bool {
    number % 2 == 1
}

/// As `GET /v1/policy` defines it.
pub fn sha256_of(tensors: &Tensors) -> String {
    let mut hash = Sha256::new();
    for (name, (dtype, shape, bytes)) in tensors {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        hash.update(format!("{name}\0{dtype:?}\0{}\0", shape.join(",")));
        let pieces: Vec<u8> = bytes.chunks(4 << 20).flat_map(Sha256::digest).collect();
        hash.update(Sha256::digest(pieces));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a learner keeps over its own end: the uids in its weights, the weights, and the lease that it was at.
#[derive(Default, serde::Serialize, serde::Deserialize)]
pub struct Checkpoint {
    pub learned: Vec<String>,
    weights: u16,
    lease: Option<Value>,
}

impl Checkpoint {
    pub fn load(path: &Path) -> Checkpoint {
        std::fs::read(path).map(|bytes| serde_json::from_slice(&bytes).unwrap()).unwrap_or_default()
    }

    fn save(&self, path: &Path) {
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self).unwrap()).unwrap();
        std::fs::rename(new, path).unwrap();
    }
}

/// A push whose reply is awaited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Push {
    pub id: u64,
    pub weights: u16,
}

/// Ends with its request, or with its learner.
struct UnderWay<'a>(&'a World);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.pushing.lock().unwrap() = None;
    }
}

impl World {
    fn begin_push(&self, weights: u16) -> (u64, UnderWay<'_>) {
        let id = self.pushes.fetch_add(1, Ordering::Relaxed) + 1;
        *self.pushing.lock().unwrap() = Some(Push { id, weights });
        (id, UnderWay(self))
    }

    pub fn push_under_way(&self) -> Option<Push> {
        *self.pushing.lock().unwrap()
    }

    /// Some moment of some push; `None` if none comes.
    pub async fn amid_a_push(&self) -> Option<Push> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(push) = self.push_under_way() {
                let usual = self.usual_push_us.load(Ordering::Relaxed);
                tokio::time::sleep(Duration::from_micros(self.below(usual.max(1)))).await;
                if self.push_under_way() == Some(push) {
                    return Some(push);
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        None
    }

    /// Somebody said that a version is these weights.
    pub fn note_version(&self, version: u64, sha256: &str) {
        let mut promises = self.promises();
        let known = promises.versions.entry(version).or_insert_with(|| sha256.to_owned());
        let differs = known != sha256;
        promises.versions_reused += usize::from(differs);
    }

    /// The version that is held, if it is the one that is expected.
    async fn held(&self) -> Option<u64> {
        let policy = self.get("/v1/policy").await;
        let held = &policy["held"];
        self.note_version(held["version"].as_u64().unwrap(), held["sha256"].as_str().unwrap());
        (held["version"] == policy["expected"]).then(|| held["version"].as_u64().unwrap())
    }

    /// Puts weights on the server, by a path or in the body, under a version of the learner's or the server's choice. A server that
    /// goes is tried again, and so is one that is still at an update: it may be that of this learner's last life.
    async fn push(&self, number: u16) {
        let tensors = weights_of(number);
        let sha256 = sha256_of(&tensors);
        self.promises().numbers.insert(sha256.clone(), number);
        let body = serialize(&tensors);
        let apply = if may_cross_to(number) { "continue" } else { "finish" };
        let mut version = number.is_multiple_of(3).then(|| self.promises().newest + 1);
        let name = format!("{number}.safetensors");
        let from_path = number % 4 < 2;
        if from_path {
            std::fs::write(self.root().join(&name), &body).unwrap();
        }
        loop {
            let request = match from_path {
                true => {
                    self.client.post(format!("{}/v1/policy", self.url)).json(&json!({"path": name, "apply": apply, "version": version}))
                }
                false => {
                    let version = version.map(|version| format!("&version={version}")).unwrap_or_default();
                    let request = self.client.put(format!("{}/v1/policy?apply={apply}{version}", self.url));
                    request.header("content-type", SAFETENSORS).body(body.clone())
                }
            };
            let began = Instant::now();
            let (id, under_way) = self.begin_push(number);
            let answer = async { Some(request.send().await.ok()?).map(|r| (r.status().as_u16(), r.text())) };
            let answer = match answer.await {
                Some((status, text)) => text.await.ok().map(|text| (status, serde_json::from_str::<Value>(&text).unwrap_or_default())),
                None => None,
            };
            if answer.is_some() {
                self.answered_push.store(id, Ordering::Relaxed);
            }
            drop(under_way);
            match answer {
                None => self.promises().cut_pushes += 1,
                Some((200, reply)) => {
                    let version = reply["version"].as_u64().unwrap();
                    self.note_version(version, &sha256);
                    assert_eq!(reply["sha256"], sha256, "{reply}");
                    let mut promises = self.promises();
                    promises.newest = promises.newest.max(version);
                    promises.pushes += 1;
                    self.usual_push_us.store(began.elapsed().as_micros() as u64, Ordering::Relaxed);
                    break;
                }
                Some((409, reply)) if reply["error"]["code"] == "update_under_way" => self.promises().busy += 1,
                // The server was told of this version before it was killed: that number is spent.
                Some((400, reply)) if reply["error"]["param"] == "version" => version = None,
                Some((status, reply)) => panic!("{status} {reply}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The newest file stays: the server reads it again after a restart.
        if from_path {
            for entry in std::fs::read_dir(self.root()).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != *name) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// A learner that is killed, too, every other time amid a push: all it knows when it begins is its checkpoint.
pub async fn train(world: Arc<World>) {
    while !world.is_drained() {
        let mut life = tokio::spawn(learn(world.clone()));
        *world.learner.lock().unwrap() = Some(life.abort_handle());
        if world.is_draining() {
            life.await.unwrap();
            return;
        }
        let (amid_a_push, some_time) = (world.below(2) == 0, Duration::from_millis(world.below(1500)));
        let its_time = async {
            tokio::time::sleep(some_time).await;
            if amid_a_push {
                world.amid_a_push().await;
            }
        };
        let ended = tokio::select! {
            ended = &mut life => ended,
            () = its_time => {
                let pushing = world.push_under_way().is_some();
                life.abort();
                world.promises().learner_kills_in_swaps += usize::from(pushing);
                life.await
            }
        };
        match ended {
            Err(ended) if ended.is_cancelled() => world.promises().learner_kills += 1,
            other => other.unwrap(),
        }
    }
}

async fn learn(world: Arc<World>) {
    let path = world.folder.join("checkpoint.json");
    let mut checkpoint = Checkpoint::load(&path);
    world.held().await;
    // The server has weights that are as old as they like.
    if checkpoint.weights != OF_START {
        world.push(checkpoint.weights).await;
    }
    if let Some(lease) = &checkpoint.lease {
        // The ack may have been lost with the last life. Refused, its groups come again, and are known.
        world.ack(lease).await;
    }
    while !world.is_drained() {
        let many = if world.is_draining() { world.lease(TRAINED, 16, 10_000).await } else { None };
        let Some(lease) = (if many.is_some() { many } else { world.lease(TRAINED, 1, 2000).await }) else {
            // Nothing comes from a server that waits for weights.
            if world.held().await.is_none() {
                world.push(checkpoint.weights).await;
            }
            continue;
        };
        for group in lease["groups"].as_array().unwrap() {
            let uid = group["uid"].as_str().unwrap().to_owned();
            if !checkpoint.learned.contains(&uid) {
                checkpoint.learned.push(uid);
            }
        }
        tokio::time::sleep(Duration::from_millis(world.below(20))).await;
        checkpoint.lease = Some(json!({"lease_id": lease["lease_id"], "fence": lease["fence"]}));
        checkpoint.weights = world.last_weights.fetch_add(1, Ordering::Relaxed) as u16 + 1;
        checkpoint.save(&path);
        world.push(checkpoint.weights).await;
        tokio::time::sleep(Duration::from_millis(world.below(20))).await;
        world.ack(&lease).await;
    }
}
