//! Streams of rollouts, callers who leave, and the end of a server.

use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::common::{Server, user};

const ROLLOUTS: &str = "/v1/rollouts";

fn rollout(max_tokens: usize, fields: Value) -> Value {
    let groups: Vec<Value> = (0..3).map(|i| json!({"messages": user(&format!("{i} + 2")), "solution": "4"})).collect();
    let sampling = json!({"max_tokens": max_tokens, "ignore_eos": true});
    let mut body = json!({"groups": groups, "num_generations": 2, "seed": 5, "sampling": sampling});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_the_groups_of_a_reply() {
    let server = Server::start("");
    let whole = server.post(ROLLOUTS, &rollout(6, json!({}))).await.ok();
    let events = server.post(ROLLOUTS, &rollout(6, json!({"mode": "stream"}))).await.events();
    let (last, groups) = events.split_last().unwrap();
    assert!(last.0 == "done" && groups.iter().all(|(name, _)| name == "group"), "{events:?}");
    assert_eq!(groups.len(), 3);
    let summary: Value = serde_json::from_str(&last.1).unwrap();
    for field in ["seed", "advantage", "metrics", "model", "policy_version"] {
        assert_eq!(summary[field], whole[field], "{field}");
    }
    for (_, data) in groups {
        let group: Value = serde_json::from_str(data).unwrap();
        let same = whole["groups"].as_array().unwrap().iter().find(|other| other["id"] == group["id"]).unwrap();
        assert_eq!(group["samples"], same["samples"]);
    }
    let refused = rollout(6, json!({"mode": "stream", "advantage": {"scale": "batch"}}));
    assert_eq!(server.post(ROLLOUTS, &refused).await.error(400)["param"], "advantage");
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_cancels() {
    let server = Server::start("");
    let chat = json!({"messages": user("hello"), "max_tokens": 400, "ignore_eos": true, "n": 4, "stream": true});
    let stream = rollout(400, json!({"mode": "stream"}));
    for (path, body) in [("/v1/chat/completions", &chat), (ROLLOUTS, &stream)] {
        let response = server.request("POST", path).json(body).send().await.unwrap();
        if path != ROLLOUTS {
            assert!(response.bytes_stream().next().await.unwrap().unwrap().starts_with(b"data: "));
        }
        server.assert_idle().await;
    }
    for body in [rollout(400, json!({})), rollout(400, json!({"num_generations": 8}))] {
        let left = server.request("POST", ROLLOUTS).json(&body).timeout(Duration::from_millis(50)).send().await;
        assert!(left.is_err());
        server.assert_idle().await;
    }
    server.post(ROLLOUTS, &rollout(2, json!({}))).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_of_which_some_are_cancelled_leave_nothing_behind() {
    let server = Server::start("--max-num-seqs 16");
    let calls = (0..64).map(|i| {
        let leaves = i % 4 == 0;
        let body = rollout(if leaves { 400 } else { 12 }, json!({"seed": i, "mode": if i % 8 == 4 { "stream" } else { "wait" }}));
        let request = server.request("POST", ROLLOUTS).json(&body);
        async move {
            if leaves {
                let _ = tokio::time::timeout(Duration::from_millis(20 + i), async { request.send().await?.text().await }).await;
                return;
            }
            let reply: Value = request.send().await.unwrap().json().await.unwrap();
            let samples = reply["groups"].as_array().unwrap().iter().flat_map(|group| group["samples"].as_array().unwrap());
            assert_eq!(samples.filter(|sample| sample["token_ids"].as_array().unwrap().len() == 12).count(), 6, "{reply}");
        }
    });
    futures::future::join_all(calls).await;
    server.assert_idle().await;
    let metrics = server.get("/metrics").await.text;
    for figure in ["grouper_engine_running_samples 0", "grouper_engine_waiting_samples 0", "grouper_engine_blocks_used 0"] {
        assert!(metrics.lines().any(|line| line == figure), "{figure} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_ends_what_runs_and_refuses_what_comes() {
    let server = Server::start("");
    let (url, client) = (server.url.clone(), server.client.clone());
    let post = |body: Value| client.post(format!("{url}{ROLLOUTS}")).json(&body).send();
    let running = tokio::spawn(post(rollout(300, json!({}))));
    let generator = server.running().loaded.generator.clone();
    while generator.samples_in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stopping = tokio::spawn(server.stop());
    while !generator.is_draining() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if generator.samples_in_flight() > 0 {
        let refused = post(rollout(1, json!({}))).await.unwrap();
        assert!(refused.status() == 503 && refused.headers().contains_key("retry-after"), "{refused:?}");
        let ready = client.get(format!("{url}/ready")).send().await.unwrap();
        assert_eq!(ready.status(), 503);
        assert!(ready.text().await.unwrap().contains("draining"));
        assert_eq!(client.get(format!("{url}/health")).send().await.unwrap().status(), 200);
    }
    let reply: Value = running.await.unwrap().unwrap().json().await.unwrap();
    assert!(reply["groups"][2]["samples"][1]["token_ids"].as_array().unwrap().len() == 300, "{reply}");
    stopping.await.unwrap();
    assert!(post(rollout(1, json!({}))).await.is_err(), "nobody listens any more");
}

/// The next reply on a connection: its status, with the body taken.
async fn next_status(stream: &mut BufReader<TcpStream>) -> u16 {
    let (mut status, mut len) = (0, 0);
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).await.unwrap() > 0, "the connection was closed");
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest[..3].parse().unwrap();
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            len = value.parse().unwrap();
        } else if line.is_empty() {
            break;
        }
    }
    stream.read_exact(&mut vec![0; len]).await.unwrap();
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_bodies_that_nobody_wanted() {
    let server = Server::start("");
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    for (call, status) in
        [("POST /v1/engine/resume", 200), ("POST /v1/nothing", 404), ("DELETE /health", 405), ("POST /v1/engine/resume", 200)]
    {
        let head = format!("{call} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // As clients do that send head and body one after the other.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(b"{}").await.unwrap();
        assert_eq!(next_status(&mut stream).await, status, "{call}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_names_the_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let http = grouper::config::Config::from_args(&grouper::config::ServeArgs { port, ..Default::default() }).unwrap().http;
    let message = grouper::api::bind(&http).unwrap_err().to_string();
    assert!(message.contains(&port.to_string()) && message.contains("--port"), "{message}");
}
