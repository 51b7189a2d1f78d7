//! New weights over HTTP: every way in, what becomes of groups that run, and what a restart finds.

use std::path::Path;
use std::time::Duration;

use grouper::engine::policy::Apply;
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoint::{Tensors, cast, tensors, trainer_spelling};
use crate::common::{Reply, Server, user};
use crate::golden;

const POLICY: &str = "/v1/policy";
const ROLLOUTS: &str = "/v1/rollouts";
pub const SAFETENSORS: &str = "application/vnd.safetensors";

/// tiny-vl's weights with every bf16 number of the matrices changed a little, differently for each `salt`.
pub fn weights(salt: u16) -> Tensors {
    let mut all = tensors();
    for (name, (_, shape, bytes)) in &mut all {
        if shape.len() < 2 {
            continue;
        }
        let turn = salt as usize + name.len();
        for (i, pair) in bytes.chunks_exact_mut(2).enumerate() {
            let x = bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
            pair.copy_from_slice(&bf16::from_f32(x * (1.0 + 0.3 * ((i + turn) as f32).sin())).to_le_bytes());
        }
    }
    all
}

pub fn serialize(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A model folder with these weights.
fn model_folder(tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden::model("tiny-vl")).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().contains("safetensors") {
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(folder.path().join("model.safetensors"), serialize(tensors)).unwrap();
    folder
}

pub async fn put(server: &Server, query: &str, body: Vec<u8>) -> Reply {
    Reply::of(server.request("PUT", &format!("{POLICY}{query}")).header("content-type", SAFETENSORS).body(body)).await
}

fn rollout(prompts: &[&str], max_tokens: usize, samples: usize) -> Value {
    let groups: Vec<Value> = prompts.iter().map(|prompt| json!({"messages": user(prompt)})).collect();
    json!({"groups": groups, "num_generations": samples, "seed": 3, "return": ["logps"],
        "sampling": {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": true}})
}

/// Token ids and logps of all samples, group by group.
fn drawn(reply: &Value) -> Vec<Vec<(Value, Value)>> {
    let samples =
        |group: &Value| group["samples"].as_array().unwrap().iter().map(|s| (s["token_ids"].clone(), s["logps"].clone())).collect();
    reply["groups"].as_array().unwrap().iter().map(samples).collect()
}

/// (version, start, end) of a sample's spans.
fn spans(sample: &Value) -> Vec<(u64, u64, u64)> {
    let number = |span: &Value, key: &str| span[key].as_u64().unwrap();
    sample["policy_versions"].as_array().unwrap().iter().map(|s| (number(s, "version"), number(s, "start"), number(s, "end"))).collect()
}

/// What greedy drawing says of the weights that are served: text with and without an image.
pub async fn greedy(server: &Server) -> Vec<Vec<(Value, Value)>> {
    let mut body = rollout(&["What is 2 + 2?", "Name a colour."], 24, 1);
    let image = crate::common::user_with_image(&crate::common::data_url(&crate::common::png(56, 84)), "How many?");
    body["groups"].as_array_mut().unwrap().push(json!({"messages": image}));
    drawn(&server.post(ROLLOUTS, &body).await.ok())
}

async fn greedy_of_fresh(tensors: &Tensors) -> Vec<Vec<(Value, Value)>> {
    let folder = model_folder(tensors);
    let server = Server::serve(folder.path(), "");
    let drawn = greedy(&server).await;
    server.stop().await;
    drawn
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what} did not come");
}

fn generated(server: &Server) -> u64 {
    server.running().loaded.engine.stats().generated_tokens.load(std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_weights_equal_loaded_ones() {
    let (first, second) = (weights(1), weights(2));
    let (of_first, of_second) = (greedy_of_fresh(&first).await, greedy_of_fresh(&second).await);
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(&format!("--policy-root {}", root.path().display()));
    let start = server.get(POLICY).await.ok();
    assert_eq!((&start["held"]["version"], &start["expected"], &start["held"]["dtype"]), (&json!(0), &json!(0), &json!("float32")));
    let of_start = greedy(&server).await;
    assert_ne!(of_start, of_first);

    // A whole body, in the spelling of trainers, with the tied head written out.
    let mut spelled: Tensors = first.iter().map(|(name, tensor)| (trainer_spelling(name), tensor.clone())).collect();
    spelled.insert("lm_head.weight".into(), first["model.embed_tokens.weight"].clone());
    let reply = put(&server, "", serialize(&spelled)).await.ok();
    assert_eq!((&reply["version"], &reply["changed"], &reply["rounded"]), (&json!(1), &json!(true), &json!({})));
    let ms = |name: &str| reply[name].as_f64().unwrap();
    assert!(0.0 < ms("read_ms") && ms("read_ms") < ms("check_ms") && 0.0 < ms("stall_ms"), "{reply}");
    assert_eq!(greedy(&server).await, of_first);
    let held = server.get(POLICY).await.ok()["held"].clone();
    assert_eq!((&held["version"], &held["sha256"], &held["source"]), (&json!(1), &reply["sha256"], &json!("body")));

    // The same again under its version changes nothing; other weights under it are a conflict.
    let again = put(&server, "?version=1", serialize(&first)).await.ok();
    assert_eq!((&again["changed"], &again["sha256"]), (&json!(false), &reply["sha256"]), "spelling and tie are no part of the digest");
    put(&server, "?version=1", serialize(&second)).await.error(409);
    assert_eq!(put(&server, "?version=0", serialize(&second)).await.error(400)["param"], "version");

    // A file and a folder below the root; a version of one's own.
    std::fs::write(root.path().join("second.safetensors"), serialize(&second)).unwrap();
    let reply = server.post(POLICY, &json!({"path": "second.safetensors", "version": 7})).await.ok();
    assert_eq!((&reply["version"], &reply["source"]), (&json!(7), &json!("path:second.safetensors")));
    assert_eq!(greedy(&server).await, of_second);
    let folder = root.path().join("step-8");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("model.safetensors"), serialize(&first)).unwrap();
    assert_eq!(server.post(POLICY, &json!({"path": folder})).await.ok()["version"], 8);
    assert_eq!(greedy(&server).await, of_first);

    // A part by itself: half of a fused projection and a norm; then all the rest.
    let is_part = |name: &str| name.contains("k_proj") || name.contains("gate_proj") || name.contains("norm") || name.contains("visual");
    let (part, rest): (Tensors, Tensors) = second.clone().into_iter().partition(|(name, _)| is_part(name));
    assert_eq!(put(&server, "?partial=true", serialize(&part)).await.ok()["num_tensors"], part.len());
    let between = greedy(&server).await;
    assert!(between != of_first && between != of_second);
    put(&server, "?partial=true", serialize(&rest)).await.ok();
    assert_eq!(greedy(&server).await, of_second);

    // In stages; they are used up.
    let (one, two): (Tensors, Tensors) = first.clone().into_iter().partition(|(name, _)| name.contains("layers.0"));
    for (part, size) in [(&one, one.len()), (&two, first.len())] {
        let staged = put(&server, "?stage=s", serialize(part)).await;
        assert_eq!((staged.status.as_u16(), &staged.json()["num_tensors"]), (201, &json!(size)), "{}", staged.text);
    }
    assert_eq!(server.get(POLICY).await.ok()["staged"][0]["stage"], "s");
    assert_eq!(greedy(&server).await, of_second, "staged weights are not served");
    server.post(POLICY, &json!({"stage": "s"})).await.ok();
    assert_eq!(greedy(&server).await, of_first);
    server.post(POLICY, &json!({"stage": "s"})).await.error(404);
    let metrics = server.get("/metrics").await.text;
    assert!(metrics.contains("grouper_policy_version 11") && metrics.contains("grouper_policy_stall_seconds"), "{metrics}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_types_are_rounded_to_the_serving_type_and_the_reply_says_so() {
    let pushed = cast(&weights(1), Dtype::F32);
    let mut fine = pushed.clone();
    // Numbers that bf16 does not hold exactly.
    for (_, (_, shape, bytes)) in fine.iter_mut().filter(|(_, (_, shape, _))| shape.len() == 2) {
        let _ = shape;
        for word in bytes.chunks_exact_mut(4) {
            let x = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            word.copy_from_slice(&(x * 1.001).to_le_bytes());
        }
    }
    for (flags, rounds) in [("--dtype float32", false), ("--dtype bfloat16", true)] {
        let folder = model_folder(&fine);
        let fresh = Server::serve(folder.path(), flags);
        let expected = greedy(&fresh).await;
        fresh.stop().await;
        let server = Server::start(flags);
        let reply = put(&server, "", serialize(&fine)).await.ok();
        assert_eq!(greedy(&server).await, expected, "{flags}");
        assert_eq!(reply["rounded"]["F32"].is_u64(), rounds, "{reply}");
        // Back to bf16 numbers, which f32 panels hold as well.
        put(&server, "", serialize(&pushed)).await.ok();
        server.stop().await;
    }
    assert_eq!(Apply::default(), Apply::Finish);
}

#[tokio::test(flavor = "multi_thread")]
async fn started_groups_finish_on_the_old_weights() {
    let new = serialize(&weights(1));
    let server = Server::start("--max-num-seqs 2");
    let (url, client) = (server.url.clone(), server.client.clone());
    let post = move |body: Value| {
        let request = client.post(format!("{url}{ROLLOUTS}")).json(&body);
        tokio::spawn(async move { Reply::of(request).await.ok() })
    };
    let long = post(rollout(&["one", "two", "three"], 400, 2));
    until("a token", || generated(&server) > 4).await;
    let reply = put(&server, "?apply=finish", new).await.ok();
    let later = server.post(ROLLOUTS, &rollout(&["four"], 4, 1)).await.ok();
    assert_eq!(spans(&later["groups"][0]["samples"][0]), [(1, 0, 4)]);
    let long = long.await.unwrap();
    let versions: Vec<u64> = (0..3).map(|g| spans(&long["groups"][g]["samples"][0])[0].0).collect();
    for sample in long["groups"].as_array().unwrap().iter().flat_map(|group| group["samples"].as_array().unwrap()) {
        assert_eq!(spans(sample).len(), 1, "{sample}");
    }
    // Groups end in order; the third waited for room when the change came, if it came in time.
    assert_eq!((versions[0], versions[2]), (0, 1), "{versions:?} {reply}");
    assert!(reply["wait_ms"].as_f64().unwrap() > 0.0);
    server.assert_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_cross_a_change_and_later_ones_begin_anew() {
    // Long enough that a busy machine does not miss them.
    const LEN: u64 = 400;
    let of_one = |n| rollout(&["one"], LEN as usize, n);
    let new = weights(1);
    let folder = model_folder(&new);
    let fresh = Server::serve(folder.path(), "");
    let expected = drawn(&fresh.post(ROLLOUTS, &of_one(1)).await.ok());
    fresh.stop().await;
    // Two of four samples run when the change comes; the others start on a prompt of the new weights.
    let server = Server::start("--max-num-seqs 2");
    let old = drawn(&server.post(ROLLOUTS, &of_one(1)).await.ok());
    assert_ne!(old, expected);
    let (url, client, before) = (server.url.clone(), server.client.clone(), generated(&server));
    let request = client.post(format!("{url}{ROLLOUTS}")).json(&of_one(4));
    let running = tokio::spawn(async move { Reply::of(request).await.ok() });
    until("a few tokens", || generated(&server) > before + 10).await;
    assert_eq!(server.post("/v1/engine/pause?mode=keep", &json!({})).await.ok()["state"], "paused");
    let at = generated(&server);
    assert!(at < before + 2 * LEN, "the samples ended before the pause");
    put(&server, "", serialize(&new)).await.error(409);
    put(&server, "?apply=continue", serialize(&new)).await.ok();
    assert_eq!(generated(&server), at, "a paused engine drew");
    assert!(server.get("/ready").await.error_text(503).contains("paused"));
    assert_eq!(server.post("/v1/engine/resume", &json!({})).await.ok()["state"], "running");
    let reply = running.await.unwrap();
    let samples = reply["groups"][0]["samples"].as_array().unwrap();
    for (index, sample) in samples.iter().enumerate() {
        let spans = spans(sample);
        match index < 2 {
            true => {
                let [(0, 0, middle), (1, start, LEN)] = spans[..] else { panic!("{index}: {spans:?}") };
                assert!(middle == start && (1..LEN).contains(&middle), "{spans:?}");
                let ids = |value: &Value| value.as_array().unwrap()[..middle as usize].to_vec();
                assert_eq!(ids(&sample["token_ids"]), ids(&old[0][0].0), "drawn before the change");
            }
            false => {
                assert_eq!(spans, [(1, 0, LEN)]);
                assert_eq!((sample["token_ids"].clone(), sample["logps"].clone()), expected[0][0], "sample {index}");
            }
        }
    }
    assert_eq!(drawn(&server.post(ROLLOUTS, &of_one(1)).await.ok()), expected, "no prefix of the old weights is found");
    server.assert_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_can_abort_what_runs() {
    let server = Server::start("--max-num-seqs 2");
    let (url, client) = (server.url.clone(), server.client.clone());
    let request = client.post(format!("{url}{ROLLOUTS}")).json(&rollout(&["one", "two"], 300, 2));
    let running = tokio::spawn(async move { Reply::of(request).await.ok() });
    until("a token", || generated(&server) > 4).await;
    server.post("/v1/engine/pause", &json!({})).await.ok();
    put(&server, "?apply=abort", serialize(&weights(1))).await.ok();
    server.post("/v1/engine/resume", &json!({})).await.ok();
    let reply = running.await.unwrap();
    let sample = |group: usize| &reply["groups"][group]["samples"][1];
    assert_eq!((&sample(0)["status"], &sample(0)["completion_mask"]), (&json!("aborted"), &json!(0)), "{reply}");
    assert!(spans(sample(0)).iter().all(|(version, ..)| *version == 0));
    assert_eq!((&sample(1)["status"], spans(sample(1))), (&json!("truncated"), vec![(1, 0, 300)]));
    server.assert_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_update_at_a_time_and_a_caller_may_leave() {
    let server = Server::start("");
    let before = greedy(&server).await;
    // A body that never ends holds the turn until its sender goes.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let slow = server.request("PUT", POLICY).header("content-type", SAFETENSORS).body(body);
    let slow = tokio::spawn(async move { slow.send().await });
    sender.send(Ok(vec![0; 100])).await.unwrap();
    let policy = server.running().loaded.policy.clone();
    until("the turn of the body", || policy.is_updating()).await;
    server.post(POLICY, &json!({"path": "x"})).await.error(409);
    put(&server, "", serialize(&weights(1))).await.error(409);
    assert_eq!(greedy(&server).await, before, "the engine goes on meanwhile");
    slow.abort();
    drop(sender);
    for attempt in 0.. {
        let reply = put(&server, "", serialize(&weights(1))).await;
        if reply.status == 200 {
            break;
        }
        assert!(reply.status == 409 && attempt < 1000, "{}", reply.text);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_pauses_and_gives_memory_back() {
    let server = Server::start("");
    let before = greedy(&server).await;
    let (url, client) = (server.url.clone(), server.client.clone());
    let start = |max_tokens: usize| {
        let request = client.post(format!("{url}{ROLLOUTS}")).json(&rollout(&["one"], max_tokens, 2));
        tokio::spawn(async move { Reply::of(request).await.ok() })
    };
    for (mode, status) in [("finish", "truncated"), ("abort", "aborted"), ("keep", "truncated")] {
        let at = generated(&server);
        let running = start(250);
        until("a token", || generated(&server) > at + 4).await;
        server.post(&format!("/v1/engine/pause?mode={mode}"), &json!({})).await.ok();
        if mode == "keep" {
            server.post("/v1/engine/sleep", &json!({})).await.error(409);
            server.post("/v1/engine/resume", &json!({})).await.ok();
        }
        let reply = running.await.unwrap();
        assert_eq!(reply["groups"][0]["samples"][0]["status"], status, "{mode}");
        server.post("/v1/engine/resume", &json!({})).await.ok();
    }
    let asleep = server.post("/v1/engine/sleep?tags=kv", &json!({})).await.ok();
    assert!(asleep["state"] == "asleep" && asleep["freed_bytes"].as_u64().unwrap() > 1 << 20, "{asleep}");
    let waiting = start(4);
    put(&server, "", serialize(&tensors())).await.ok();
    server.post("/v1/engine/resume", &json!({})).await.error(409);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    server.post("/v1/engine/wake", &json!({})).await.ok();
    assert_eq!(spans(&waiting.await.unwrap()["groups"][0]["samples"][0]), [(1, 0, 4)]);
    assert_eq!(greedy(&server).await, before);
    for (path, param) in [("sleep?tags=weights", "tags"), ("sleep?tags=x", "tags"), ("pause?mode=x", "mode"), ("pause?moode=keep", "moode")]
    {
        assert_eq!(server.post(&format!("/v1/engine/{path}"), &json!({})).await.error(400)["param"], param, "{path}");
    }
    server.assert_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_holds_what_it_was_told_to_or_waits() {
    let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let flags = format!("--policy-root {} --data-dir {}", root.path().display(), data.path().display());
    let file = root.path().join("w.safetensors");
    std::fs::write(&file, serialize(&weights(1))).unwrap();
    let server = Server::start(&flags);
    let of_start = greedy(&server).await;
    server.post(POLICY, &json!({"path": "w.safetensors", "version": 5})).await.ok();
    let of_first = greedy(&server).await;
    server.stop().await;

    // The path has them still.
    let server = Server::start(&flags);
    ready(&server).await;
    assert_eq!(server.get(POLICY).await.ok()["held"]["version"], 5);
    assert_eq!(greedy(&server).await, of_first);
    let sha256 = put(&server, "", serialize(&weights(2))).await.ok()["sha256"].clone();
    let of_second = greedy(&server).await;
    server.stop().await;

    // What came in a body is gone: it waits, but takes whole weights.
    let server = Server::start(&flags);
    until_settled(&server).await;
    let state = server.get(POLICY).await.ok();
    assert_eq!((&state["held"]["version"], &state["expected"]), (&json!(0), &json!(6)), "{state}");
    assert!(server.get("/ready").await.error_text(503).contains("version 6 is expected"));
    let refused = server.post(ROLLOUTS, &rollout(&["one"], 4, 1)).await;
    assert!(refused.error(503)["message"].as_str().unwrap().contains("version 6"));
    let some: Tensors = weights(2).into_iter().take(2).collect();
    put(&server, "?partial=true", serialize(&some)).await.error(409);
    assert_eq!(put(&server, "?version=6", serialize(&weights(2))).await.error(400)["param"], "version");
    let pushed = put(&server, "", serialize(&weights(2))).await.ok();
    assert_eq!((&pushed["version"], &pushed["sha256"]), (&json!(7), &sha256));
    assert_eq!(greedy(&server).await, of_second);
    server.stop().await;

    // Or serves what it holds, under its own name.
    let server = Server::start(&format!("{flags} --on-restart serve-held"));
    ready(&server).await;
    let state = server.get(POLICY).await.ok();
    assert_eq!((&state["held"]["version"], &state["expected"]), (&json!(0), &json!(7)));
    assert_eq!(greedy(&server).await, of_start);
    std::fs::write(&file, serialize(&weights(3))).unwrap();
    assert_eq!(server.post(POLICY, &json!({"path": "w.safetensors"})).await.ok()["version"], 8);
    server.stop().await;

    // The path has other weights now.
    std::fs::write(&file, serialize(&weights(1))).unwrap();
    let server = Server::start(&flags);
    until_settled(&server).await;
    assert!(server.get("/ready").await.error_text(503).contains("have changed"));
    assert_eq!(server.get(POLICY).await.ok()["held"]["version"], 0);
    server.stop().await;
}

async fn ready(server: &Server) {
    for _ in 0..5000 {
        if server.get("/ready").await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{}", server.get("/ready").await.text);
}

/// Until it has decided what it holds.
async fn until_settled(server: &Server) {
    let engine = server.running().loaded.engine.clone();
    until("a decision", || engine.unfit().is_none_or(|reason| !reason.contains("being loaded"))).await;
}

#[test]
fn the_record_is_in_the_data_folder() {
    let (data, folder) = (tempfile::tempdir().unwrap(), model_folder(&tensors()));
    assert!(Path::new(folder.path()).join("model.safetensors").is_file());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = Server::serve(folder.path(), &format!("--data-dir {}", data.path().display()));
        put(&server, "", serialize(&weights(1))).await.ok();
        let record: Value = serde_json::from_slice(&std::fs::read(data.path().join("policy.json")).unwrap()).unwrap();
        assert_eq!((&record["version"], &record["path"]), (&json!(1), &Value::Null));
        // A refusal leaves it.
        put(&server, "", vec![1, 2, 3]).await.error(400);
        let after: Value = serde_json::from_slice(&std::fs::read(data.path().join("policy.json")).unwrap()).unwrap();
        assert_eq!(after, record);
        server.stop().await;
    });
}
