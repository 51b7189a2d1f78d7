//! Every kind of bad input gets its 4xx with path, value and limit in under a second, and a good request straight after succeeds.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{CONTEXT, MODEL, Reply, Server, data_url, png, user, user_with_image};

const ROLLOUTS: &str = "/v1/rollouts";
const LEASE: &str = "/v1/batches/lease";
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const SCORE: &str = "/v1/rewards/score";

struct Case {
    path: &'static str,
    body: Body,
    status: u16,
    /// `param` of the error.
    param: &'static str,
    /// Each must be in the message: the value, the limit, what was meant.
    says: &'static [&'static str],
}

enum Body {
    Json(Value),
    Text(String),
}

fn case(path: &'static str, body: Value, param: &'static str, says: &'static [&'static str]) -> Case {
    Case { path, body: Body::Json(body), status: 400, param, says }
}

fn raw(path: &'static str, body: impl Into<String>, param: &'static str, says: &'static [&'static str]) -> Case {
    Case { path, body: Body::Text(body.into()), status: 400, param, says }
}

/// A rollout with one good group and these fields on top.
fn rollout(fields: Value) -> Value {
    merge(json!({"groups": [{"messages": user("2 + 2"), "solution": "4"}], "num_generations": 2, "sampling": {"max_tokens": 2}}), fields)
}

/// A rollout whose only group is this.
fn group(group: Value) -> Value {
    rollout(json!({"groups": [group]}))
}

fn chat(fields: Value) -> Value {
    merge(json!({"model": MODEL, "messages": user("hello"), "max_tokens": 2}), fields)
}

fn merge(mut body: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// A PNG that claims these dimensions and has no pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    bytes.extend(&header);
    bytes.extend(crc.sum().to_be_bytes());
    bytes.extend(b"\0\0\0\x04IDAT\0\0\0\0\0\0\0\0");
    bytes
}

fn rollout_cases() -> Vec<Case> {
    let image = |url: String| group(json!({"messages": user_with_image(&url, "what?")}));
    let whole = png(64, 64);
    const IMAGE: &str = "groups[0].messages[0].content[0].image_url";
    vec![
        case(
            ROLLOUTS,
            group(json!({"messages": user("x"), "solutoin": "4"})),
            "groups[0].solutoin",
            &["unknown field, did you mean solution?"],
        ),
        case(ROLLOUTS, rollout(json!({"num_generatoins": 2})), "num_generatoins", &["did you mean num_generations?"]),
        case(ROLLOUTS, rollout(json!({"num_generations": "8"})), "num_generations", &["integer", "\"8\""]),
        case(ROLLOUTS, rollout(json!({"num_generations": 0})), "num_generations", &["0", "256"]),
        case(ROLLOUTS, rollout(json!({"num_generations": 257})), "num_generations", &["257", "256"]),
        case(ROLLOUTS, rollout(json!({"num_generations": -1})), "num_generations", &["-1"]),
        case(ROLLOUTS, rollout(json!({"num_generations": 2_147_483_648_u64})), "num_generations", &["2147483648", "256"]),
        case(ROLLOUTS, rollout(json!({"sampling": {"max_tokens": 1_000_000_000}})), "sampling.max_tokens", &["1000000000", "511"]),
        case(ROLLOUTS, rollout(json!({"sampling": {"temperature": -0.5}})), "sampling.temperature", &["-0.5"]),
        case(ROLLOUTS, rollout(json!({"sampling": {"temperature": "hot"}})), "sampling.temperature", &["a number", "\"hot\""]),
        case(ROLLOUTS, rollout(json!({"sampling": {"top_p": 0}})), "sampling.top_p", &["0"]),
        case(ROLLOUTS, rollout(json!({"sampling": {"top_k": -2}})), "sampling.top_k", &["-2"]),
        case(ROLLOUTS, rollout(json!({"sampling": {"stop_token_ids": [4_000_000]}})), "sampling.stop_token_ids[0]", &["4000000"]),
        raw(ROLLOUTS, r#"{"groups": [], "sampling": {"temperature": NaN}}"#, "body", &["line 1, column", "NaN"]),
        raw(ROLLOUTS, r#"{"groups": [], "sampling": {"temperature": 1e999}}"#, "body", &["64-bit"]),
        raw(ROLLOUTS, "{\"groups\": [\n{]}", "body", &["line 2, column 2"]),
        raw(ROLLOUTS, "", "body", &["empty"]),
        raw(ROLLOUTS, "[]", "body", &["object"]),
        raw(ROLLOUTS, "[".repeat(20_000_000), "body", &["object"]),
        raw(ROLLOUTS, format!("{{\"groups\": {}", "[".repeat(20_000_000)), "body", &["64 levels"]),
        case(ROLLOUTS, rollout(json!({"groups": []})), "groups", &["0", "256"]),
        case(ROLLOUTS, rollout(json!({"groups": {}})), "groups", &["a list", "an object"]),
        case(ROLLOUTS, json!({}), "groups", &["required"]),
        case(ROLLOUTS, rollout(json!({"mode": "later"})), "mode", &["\"later\"", "wait"]),
        case(ROLLOUTS, rollout(json!({"queue": "eval"})), "queue", &["mode \"queue\""]),
        case(ROLLOUTS, rollout(json!({"mode": "queue", "queue": "x".repeat(65)})), "queue", &["65", "64"]),
        case(ROLLOUTS, rollout(json!({"mode": "queue", "num_generations": 0})), "num_generations", &["0", "256"]),
        case(ROLLOUTS, rollout(json!({"return": ["pixel_values"]})), "return[0]", &["safetensors"]),
        case(ROLLOUTS, rollout(json!({"rewards": [{"name": "acuracy"}]})), "rewards[0].name", &["acuracy"]),
        case(ROLLOUTS, rollout(json!({"advantage": "trll"})), "advantage", &["trll"]),
        case(ROLLOUTS, group(json!({"messages": []})), "groups[0].messages", &["empty"]),
        case(ROLLOUTS, group(json!({})), "groups[0]", &["messages", "prompt"]),
        case(ROLLOUTS, group(json!({"prompt": "a", "messages": user("x")})), "groups[0]", &["one of"]),
        case(ROLLOUTS, group(json!({"messages": [{"role": "robot", "content": "x"}]})), "groups[0].messages[0].role", &["robot"]),
        case(ROLLOUTS, image("data:image/png;base64,@@@@".into()), IMAGE, &["base64"]),
        case(ROLLOUTS, image(data_url(&whole[..whole.len() / 2])), IMAGE, &["truncated"]),
        Case { status: 413, ..case(ROLLOUTS, image(data_url(&png_header(30_000, 30_000))), IMAGE, &["8192"]) },
        case(ROLLOUTS, image(data_url(b"GIF87 it is not")), IMAGE, &["image"]),
        case(ROLLOUTS, image("http://127.0.0.1/x.png".into()), IMAGE, &["--allow-"]),
        case(ROLLOUTS, image("file:///etc/passwd".into()), IMAGE, &["--media-root"]),
        case(ROLLOUTS, group(json!({"prompt_token_ids": vec![5; 600]})), "groups[0].prompt", &["600 tokens", "512"]),
        case(ROLLOUTS, group(json!({"prompt_token_ids": [5, 4_000_000]})), "groups[0].prompt_token_ids[1]", &["4000000"]),
        case(ROLLOUTS, group(json!({"prompt": "<|vision_start|><|image_pad|><|vision_end|>"})), "groups[0].prompt", &["1", "0"]),
    ]
}

fn other_cases() -> Vec<Case> {
    vec![
        case(LEASE, json!({}), "num_groups", &["required"]),
        case(LEASE, json!({"num_groups": 0}), "num_groups", &["0", "4096"]),
        case(LEASE, json!({"num_groups": 4097}), "num_groups", &["4097", "4096"]),
        case(LEASE, json!({"num_groups": 1, "lease_m": 1}), "lease_m", &["did you mean lease_ms?"]),
        case(LEASE, json!({"num_groups": 1, "wait_ms": 10_000_000}), "wait_ms", &["10000000", "3600000"]),
        case(LEASE, json!({"num_groups": 1, "lease_ms": 0}), "lease_ms", &["0"]),
        case(LEASE, json!({"num_groups": 1, "learner": "a\nb"}), "learner", &["control"]),
        case("/v1/batches/lease-1/extend", json!({"fence": "1", "lease_ms": 0}), "lease_ms", &["0"]),
        case("/v1/batches/lease-1/ack", json!({"fence": 1}), "fence", &["a string", "1"]),
        case(CHAT, chat(json!({"temprature": 1})), "temprature", &["did you mean temperature?"]),
        case(CHAT, chat(json!({"tools": [{"type": "function"}]})), "tools", &["not supported"]),
        case(CHAT, chat(json!({"response_format": {"type": "json_object"}})), "response_format", &["not supported"]),
        case(CHAT, chat(json!({"prompt_logprobs": 1})), "prompt_logprobs", &["not supported"]),
        case(CHAT, chat(json!({"n": 0})), "n", &["0", "256"]),
        case(CHAT, chat(json!({"n": 2_147_483_648_u64})), "n", &["2147483648", "256"]),
        case(CHAT, chat(json!({"top_logprobs": 21, "logprobs": true})), "top_logprobs", &["21", "20"]),
        case(CHAT, chat(json!({"top_logprobs": 2})), "top_logprobs", &["logprobs: true"]),
        case(CHAT, chat(json!({"logit_bias": {"x": 1}})), "logit_bias", &["\"x\""]),
        case(CHAT, chat(json!({"logit_bias": {"5": 101}})), "logit_bias", &["101", "100"]),
        case(CHAT, chat(json!({"logit_bias": {"4000000": 1}})), "logit_bias.4000000", &["4000000"]),
        case(CHAT, chat(json!({"presence_penalty": 3})), "presence_penalty", &["3", "2"]),
        case(CHAT, chat(json!({"max_tokens": 1_000_000_000})), "max_tokens", &["1000000000", "511"]),
        case(CHAT, chat(json!({"max_tokens": 2, "max_completion_tokens": 3})), "max_completion_tokens", &["3", "2"]),
        case(CHAT, chat(json!({"stop": 5})), "stop", &["a string or a list of strings"]),
        case(CHAT, chat(json!({"messages": user(&"long ".repeat(600))})), "prompt", &["context"]),
        case(CHAT, chat(json!({"messages": [{"role": "user"}]})), "messages[0].content", &["content"]),
        Case { status: 404, ..case(CHAT, chat(json!({"model": "gpt-4o"})), "model", &["gpt-4o", MODEL]) },
        case(TEXT, json!({"prompt": []}), "prompt", &["empty"]),
        case(TEXT, json!({"prompt": ["a", 5]}), "prompt", &["ids"]),
        case(TEXT, json!({"prompt": [5, 4_294_967_296_u64]}), "prompt[1]", &["4294967296"]),
        case(TEXT, json!({"prompt": "a", "echo": true}), "echo", &["not supported"]),
        case(TEXT, json!({"prompt": "a", "logprobs": 21}), "logprobs", &["21", "20"]),
        case(SCORE, json!({"samples": [{"completion": 5}]}), "samples[0].completion", &["string", "5"]),
    ]
}

/// What is wrong with the answer to a case, and with the good request after it.
async fn check(server: &Server, case: &Case) -> Result<(), String> {
    let send = || async {
        match &case.body {
            Body::Json(body) => server.post(case.path, body).await,
            Body::Text(body) => server.post_text(case.path, body.clone()).await,
        }
    };
    let mut reply = send().await;
    if reply.took > Duration::from_secs(1) {
        // Other tests run beside this one: once more, to tell the server's time from theirs.
        reply = send().await;
    }
    if reply.status != case.status {
        return Err(format!("status {}, not {}: {}", reply.status, case.status, reply.text));
    }
    let error = reply.error(case.status);
    if error["param"].as_str().unwrap_or("") != case.param {
        return Err(format!("the param is not {:?}: {error}", case.param));
    }
    if let Some(missing) = case.says.iter().find(|says| !error["message"].as_str().unwrap().contains(**says)) {
        return Err(format!("the message lacks {missing:?}: {error}"));
    }
    if reply.took > Duration::from_secs(1) {
        return Err(format!("took {:?}", reply.took));
    }
    server.post(ROLLOUTS, &rollout(json!({}))).await.ok();
    Ok(())
}

/// Runs a table and tells all that fails at once.
async fn check_all(cases: Vec<Case>) {
    let server = Server::start("");
    let mut failures = Vec::new();
    for case in &cases {
        if let Err(why) = check(&server, case).await {
            let body = match &case.body {
                Body::Json(body) => body.to_string(),
                Body::Text(body) => body.clone(),
            };
            failures.push(format!("{} {}\n  {why}", case.path, body.chars().take(160).collect::<String>()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rollouts_are_refused_and_good_ones_follow() {
    check_all(rollout_cases()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_inference_requests_are_refused_and_good_ones_follow() {
    check_all(other_cases()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_group_fails_alone() {
    let server = Server::start("");
    let bad = json!({"messages": user_with_image("data:image/png;base64,AAAA", "what?")});
    let body = rollout(json!({"groups": [bad, {"messages": user("2 + 2")}]}));
    let reply = server.post(ROLLOUTS, &body).await.ok();
    assert_eq!(reply["groups"][0]["error"]["type"], "invalid_request_error");
    assert_eq!(reply["groups"][0]["error"]["param"], "groups[0].messages[0].content[0].image_url");
    assert_eq!(reply["groups"][1]["samples"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_type_and_a_size() {
    let server = Server::start("--max-body-mb 1");
    let plain = server.request("POST", ROLLOUTS).header("content-type", "text/plain").body("{}");
    assert!(Reply::of(plain).await.error(415)["message"].as_str().unwrap().contains("application/json"));
    let untyped = server.request("POST", ROLLOUTS).body("{}");
    Reply::of(untyped).await.error(415);
    let packed = server.request("POST", ROLLOUTS).header("content-type", "application/json").header("content-encoding", "gzip").body("{}");
    Reply::of(packed).await.error(415);
    let large = server.post_text(ROLLOUTS, " ".repeat((1 << 20) + 1)).await.error(413);
    assert_eq!(large["param"], "body");
    assert!(large["message"].as_str().unwrap().contains("1 MiB (--max-body-mb)"), "{large}");
    assert_eq!(CONTEXT, 512, "the messages above name it");
    server.post(ROLLOUTS, &rollout(json!({}))).await.ok();
}
