//! Queue mode over HTTP: accepted at once, generated when the turn comes, leased, acked, and all of it across restarts.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Reply, Server, data_url, png, user, user_with_image};

const ROLLOUTS: &str = "/v1/rollouts";

pub fn queued(groups: usize, fields: Value) -> Value {
    let groups: Vec<Value> =
        (0..groups).map(|i| json!({"id": format!("q{i}"), "messages": user(&format!("{i} + 2")), "solution": "4"})).collect();
    let mut body = json!({"groups": groups, "num_generations": 2, "seed": 5, "sampling": {"max_tokens": 6}, "mode": "queue",
        "rewards": [{"name": "accuracy"}, {"name": "repetition", "unit": "chars", "n": 1, "weight": 0.5}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn durable(folder: &Path, flags: &str) -> Server {
    Server::start(&format!("--data-dir {} {flags}", folder.display()))
}

async fn accepted(server: &Server, body: &Value) -> Value {
    let reply = server.post(ROLLOUTS, body).await;
    assert_eq!(reply.status.as_u16(), 202, "{}", reply.text);
    reply.json()
}

async fn lease(server: &Server, fields: Value) -> Reply {
    let mut body = json!({"num_groups": 1, "wait_ms": 20_000});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    server.post("/v1/batches/lease", &body).await
}

/// Waits until so many groups can be leased: before that, one that is ready earlier overtakes those that are not.
async fn all_ready(server: &Server, groups: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while counts(server).await["ready"] != groups {
        assert!(Instant::now() < deadline, "{}", counts(server).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn end(server: &Server, lease: &Value, how: &str) -> Reply {
    server.post(&format!("/v1/batches/{}/{how}", lease["lease_id"].as_str().unwrap()), &json!({"fence": lease["fence"]})).await
}

fn column<'a>(groups: &'a Value, name: &str) -> Vec<&'a str> {
    groups.as_array().unwrap().iter().map(|group| group[name].as_str().unwrap()).collect()
}

async fn counts(server: &Server) -> Value {
    let counts = server.get("/v1/batches").await.ok()["queues"]["default"].clone();
    let dropped: u64 = counts["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    let all: u64 = ["pending", "ready", "leased", "acked", "dead"].iter().map(|name| counts[*name].as_u64().unwrap()).sum();
    assert_eq!(counts["accepted"].as_u64().unwrap(), all + dropped, "{counts}");
    counts
}

/// Waits until a rollout has nothing left to generate.
async fn finished(server: &Server, rollout: &Value) -> Value {
    let path = format!("{ROLLOUTS}/{}", rollout["rollout_id"].as_str().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let progress = server.get(&path).await.ok();
        if progress["finished"] == true {
            return progress;
        }
        assert!(Instant::now() < deadline, "{progress}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_groups_are_those_of_a_reply() {
    let server = Server::start("");
    let whole = server.post(ROLLOUTS, &queued(3, json!({"mode": "wait"}))).await.ok();
    let rollout = accepted(&server, &queued(3, json!({}))).await;
    assert_eq!((&rollout["seed"], &rollout["num_groups"], &rollout["durable"]), (&json!(5), &json!(3), &json!(false)));
    let leased = lease(&server, json!({"num_groups": 3, "learner": "l"})).await.ok();
    assert_eq!(column(&leased["groups"], "id"), ["q0", "q1", "q2"]);
    assert_eq!(json!(column(&leased["groups"], "uid")), rollout["uids"]);
    assert!(leased["fence"].is_string() && leased["expires_at"].is_u64() && leased["policy_version"].is_u64());
    for (group, same) in leased["groups"].as_array().unwrap().iter().zip(whole["groups"].as_array().unwrap()) {
        assert_eq!(group["delivery"], 1);
        assert_eq!(group["rollout_id"], rollout["rollout_id"]);
        for field in ["samples", "seed", "attempt", "sampling", "advantage", "prompt_token_ids", "reward_mean", "reward_std", "solution"] {
            assert_eq!(group[field], same[field], "{field}");
        }
    }
    let live = server.get("/v1/batches/leases?learner=l&groups=true").await.ok();
    assert_eq!(live["leases"][0]["groups"], leased["groups"], "a lost reply is recovered");
    assert_eq!(server.get("/v1/batches/leases?learner=m").await.ok()["leases"], json!([]));
    assert_eq!(server.get("/v1/batches/leases?learned=m").await.error(400)["param"], "query");
    assert_eq!(end(&server, &leased, "ack").await.ok()["uids"], rollout["uids"]);
    assert_eq!(end(&server, &leased, "ack").await.ok()["uids"], rollout["uids"]);
    assert_eq!(end(&server, &leased, "nack").await.error(409)["code"], "conflict");
    let wrong = json!({"lease_id": leased["lease_id"], "fence": "12345"});
    assert_eq!(end(&server, &wrong, "ack").await.error(409)["code"], "conflict");
    assert_eq!(end(&server, &json!({"lease_id": "lease-x", "fence": "1"}), "ack").await.error(404)["code"], "not_found");
    assert_eq!(counts(&server).await["acked"], 3);
    let metrics = server.get("/metrics").await.text;
    for figure in [r#"grouper_queue_acked_total{queue="default"} 3"#, r#"grouper_queue_missing{queue="default"} 0"#] {
        assert!(metrics.lines().any(|line| line == figure), "{figure} is not in\n{metrics}");
    }
    let empty = lease(&server, json!({"wait_ms": 50})).await;
    assert!(empty.status.as_u16() == 204 && empty.took >= Duration::from_millis(50), "{empty:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let whole = {
        let server = Server::start("");
        server.post(ROLLOUTS, &queued(6, json!({"mode": "wait"}))).await.ok()
    };
    let server = durable(folder.path(), "");
    let rollout = accepted(&server, &queued(6, json!({"idempotency_key": "k"}))).await;
    assert_eq!(rollout["durable"], true);
    // Ended before, while or after the groups are generated.
    server.stop().await;
    let server = durable(folder.path(), "");
    assert_eq!(accepted(&server, &queued(6, json!({"idempotency_key": "k"}))).await, rollout);
    let other = server.post(ROLLOUTS, &queued(5, json!({"idempotency_key": "k"}))).await;
    assert_eq!(other.error(409)["code"], "conflict");
    all_ready(&server, 6).await;
    let first = lease(&server, json!({"num_groups": 2})).await.ok();
    let second = lease(&server, json!({"num_groups": 2, "lease_ms": 1})).await.ok();
    assert_eq!(end(&server, &first, "ack").await.status.as_u16(), 200);
    server.stop().await;

    let server = durable(folder.path(), "");
    assert_eq!(end(&server, &first, "ack").await.ok()["uids"].as_array().unwrap().len(), 2);
    assert_eq!(end(&server, &second, "ack").await.error(409)["type"], "invalid_request_error");
    let rest = lease(&server, json!({"num_groups": 4})).await.ok();
    assert_eq!(column(&rest["groups"], "id"), ["q2", "q3", "q4", "q5"]);
    let deliveries: Vec<&Value> = rest["groups"].as_array().unwrap().iter().map(|group| &group["delivery"]).collect();
    assert_eq!(deliveries, [2, 2, 1, 1]);
    for (group, same) in rest["groups"].as_array().unwrap().iter().zip(&whole["groups"].as_array().unwrap()[2..]) {
        assert_eq!(group["samples"], same["samples"], "the same tokens as without a queue and without restarts");
    }
    assert_eq!(end(&server, &rest, "ack").await.status.as_u16(), 200);
    let counts = counts(&server).await;
    assert_eq!((&counts["accepted"], &counts["acked"]), (&json!(6), &json!(6)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keyed_replies_outlive_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let body = queued(2, json!({"mode": "wait", "seed": null, "idempotency_key": "step-1"}));
    let server = durable(folder.path(), "");
    let first = server.post(ROLLOUTS, &body).await.ok();
    server.stop().await;
    let server = durable(folder.path(), "");
    assert_eq!(server.post(ROLLOUTS, &body).await.ok(), first);
    let other = queued(2, json!({"mode": "wait", "seed": 1, "idempotency_key": "step-1"}));
    assert_eq!(server.post(ROLLOUTS, &other).await.error(409)["code"], "conflict");
    let streamed = server.post(ROLLOUTS, &queued(2, json!({"mode": "queue", "seed": null, "idempotency_key": "step-1"}))).await;
    assert_eq!(streamed.error(409)["code"], "conflict", "another mode is another body");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_generated_is_a_dead_letter() {
    let server = Server::start("--max-deliveries 2");
    let groups = json!([{"id": "bad", "messages": user_with_image(&data_url(&[1; 400]), "x")}, {"id": "good", "messages": user("hi")}]);
    let rollout = accepted(&server, &queued(0, json!({"groups": groups}))).await;
    let progress = finished(&server, &rollout).await;
    assert_eq!((&progress["states"]["dead"], &progress["states"]["ready"]), (&json!(1), &json!(1)));
    let dead = server.get("/v1/batches/dead").await.ok();
    let letter = &dead["groups"][0];
    assert!(letter["reason"].as_str().unwrap().starts_with("groups[0].messages[0].content[0]"), "{letter}");
    assert!(letter["payload"]["messages"][0]["content"][0]["image_url"]["url"].as_str().unwrap().starts_with("grouper-blob:"), "{letter}");
    // Delivered twice, acked never.
    for delivery in [1, 2] {
        let leased = lease(&server, json!({})).await.ok();
        assert_eq!((&leased["groups"][0]["id"], &leased["groups"][0]["delivery"]), (&json!("good"), &json!(delivery)));
        assert_eq!(end(&server, &leased, "nack").await.ok()["uids"].as_array().unwrap().len(), 1);
    }
    assert_eq!(lease(&server, json!({"wait_ms": 0})).await.status.as_u16(), 204);
    let dead = server.get("/v1/batches/dead").await.ok();
    let uid = dead["groups"][1]["uid"].as_str().unwrap().to_owned();
    assert!(dead["groups"][1]["payload"]["samples"].is_array() && dead["groups"][1]["deliveries"] == 2, "{dead}");
    let requeue = async |uid: String| server.post_text(&format!("/v1/batches/dead/{uid}/requeue"), "").await;
    assert_eq!(requeue(uid.clone()).await.ok()["uid"], json!(uid));
    assert_eq!(requeue(uid.clone()).await.error(409)["code"], "conflict");
    assert_eq!(requeue("nobody".into()).await.error(404)["code"], "not_found");
    let leased = lease(&server, json!({})).await.ok();
    assert_eq!(leased["groups"][0]["uid"], json!(uid));
    end(&server, &leased, "ack").await.ok();
    let counts = counts(&server).await;
    assert_eq!((&counts["acked"], &counts["dead"]), (&json!(1), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_bounded_and_cancelled() {
    let server = Server::start("--max-queued-groups 4 --max-num-seqs 2");
    let long = |n| queued(n, json!({"sampling": {"max_tokens": 400, "ignore_eos": true}}));
    let rollout = accepted(&server, &long(3)).await;
    let refused = server.post(ROLLOUTS, &long(2)).await;
    assert_eq!(refused.error(429)["code"], "overloaded");
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(server.post(ROLLOUTS, &long(5)).await.error(400)["param"], "groups");
    assert!(lease(&server, json!({"num_groups": 5})).await.error(400)["message"].as_str().unwrap().contains('4'));
    let path = format!("{ROLLOUTS}/{}", rollout["rollout_id"].as_str().unwrap());
    let cancelled = Reply::of(server.request("DELETE", &path)).await.ok();
    let progress = server.get(&path).await.ok();
    assert_eq!(progress["states"]["dropped"].as_u64().unwrap() as usize, cancelled["cancelled"].as_array().unwrap().len());
    assert_eq!(progress["finished"], true);
    server.assert_idle().await;
    assert_eq!(server.get("/v1/rollouts/rollout-x").await.error(404)["code"], "not_found");
    assert_eq!(Reply::of(server.request("DELETE", "/v1/rollouts/rollout-x")).await.error(404)["code"], "not_found");
    let other = json!({"queue": "eval", "mode": "wait"});
    assert_eq!(server.post(ROLLOUTS, &queued(1, other)).await.error(400)["param"], "queue");
    accepted(&server, &queued(1, json!({"queue": "eval"}))).await;
    assert_eq!(lease(&server, json!({"queue": "eval"})).await.ok()["queue"], "eval");
    counts(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn advantages_over_a_batch_are_those_of_the_lease() {
    let server = Server::start("");
    let score = |i: usize| json!({"id": format!("{i}"), "messages": user("hi"), "fields": {"score": i}});
    let fields = json!({"advantage": "trl-batch", "num_generations": 3, "rewards": [{"name": "repetition", "unit": "chars", "n": 1}, {"name": "field", "field": "score"}],
        "groups": [score(1), score(2), score(5)]});
    let body = queued(0, fields);
    let mut wait = body.clone();
    wait["mode"] = json!("wait");
    accepted(&server, &body).await;
    let both = lease(&server, json!({"num_groups": 2})).await.ok();
    let one = lease(&server, json!({"num_groups": 1})).await.ok();
    for leased in [&both, &one] {
        // Which ones are in a lease depends on which were ready: an unfinished earlier group does not hold later ones.
        let has = |group: &&Value| leased["groups"].as_array().unwrap().iter().any(|other| other["id"] == group["id"]);
        wait["groups"] = body["groups"].as_array().unwrap().iter().filter(has).cloned().collect();
        let same = server.post(ROLLOUTS, &wait).await.ok();
        for (group, same) in leased["groups"].as_array().unwrap().iter().zip(same["groups"].as_array().unwrap()) {
            assert_eq!(group["samples"], same["samples"]);
            assert_eq!(group["advantage"]["scale"], "batch");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_stored_once_and_survive() {
    let folder = tempfile::tempdir().unwrap();
    let image = data_url(&png(40, 30));
    let groups = json!([{"messages": user_with_image(&image, "a")}, {"messages": user_with_image(&image, "b")}]);
    let server = durable(folder.path(), "");
    let whole = server.post(ROLLOUTS, &queued(0, json!({"groups": groups, "mode": "wait"}))).await.ok();
    accepted(&server, &queued(0, json!({"groups": groups}))).await;
    server.stop().await;
    let count = |sql: &str| -> usize {
        let db = rusqlite::Connection::open(folder.path().join("grouper.sqlite")).unwrap();
        db.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("SELECT count(*) FROM blobs"), count("SELECT count(*) FROM group_blobs")), (1, 2));
    let server = durable(folder.path(), "");
    let leased = lease(&server, json!({"num_groups": 2})).await.ok();
    for (group, same) in leased["groups"].as_array().unwrap().iter().zip(whole["groups"].as_array().unwrap()) {
        assert_eq!((&group["images"], &group["samples"]), (&same["images"], &same["samples"]));
    }
    end(&server, &leased, "ack").await.ok();
    server.stop().await;
    assert_eq!(count("SELECT count(*) FROM blobs"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_counts_from_the_request() {
    let folder = tempfile::tempdir().unwrap();
    // The first group takes all the room there is.
    let server = durable(folder.path(), "--max-queued-samples 2");
    server.post("/v1/engine/pause", &json!({})).await.ok();
    let sent = Instant::now();
    accepted(&server, &queued(1, json!({}))).await;
    while counts(&server).await["generating"] != 1 {
        assert!(sent.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let late = accepted(&server, &queued(2, json!({"deadline_ms": 300}))).await;
    let in_time = accepted(&server, &queued(1, json!({"deadline_ms": 600_000}))).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    server.post("/v1/engine/resume", &json!({})).await.ok();
    let progress = finished(&server, &late).await;
    assert_eq!(progress["states"]["dropped"], 2, "{progress}");
    assert_eq!(finished(&server, &in_time).await["states"]["ready"], 1);
    assert_eq!(counts(&server).await["dropped"], json!({"deadline": 2}));
    // It goes on while the server is away.
    server.post("/v1/engine/pause", &json!({})).await.ok();
    let late = accepted(&server, &queued(1, json!({"deadline_ms": 1500, "sampling": {"max_tokens": 7}}))).await;
    drop(server);
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let server = durable(folder.path(), "");
    assert_eq!(finished(&server, &late).await["states"]["dropped"], 1);
    server.stop().await;
}
