//! Log-probabilities of given completions: equal to those of the draw, under the policy and under a frozen reference.

use serde_json::{Value, json};

use crate::common::{Server, data_url, png, user, user_with_image};
use crate::policy::{put, serialize, weights};

const LOGPS: &str = "/v1/logps";

/// Prompts with and without an image, one longer than a chunk of attention.
fn prompts() -> Vec<Value> {
    let long = "word ".repeat(150);
    vec![user("What is 2 + 2?"), user_with_image(&data_url(&png(56, 84)), "How many?"), user(&long)]
}

async fn rollout(server: &Server, temperature: f64, returns: &[&str]) -> Value {
    let groups: Vec<Value> = prompts().into_iter().map(|messages| json!({"messages": messages})).collect();
    let sampling = json!({"temperature": temperature, "max_tokens": 90, "ignore_eos": true});
    let body = json!({"groups": groups, "num_generations": 2, "seed": 11, "sampling": sampling, "return": returns});
    server.post("/v1/rollouts", &body).await.ok()
}

/// The sequences of a rollout as a request for their log-probabilities.
fn sequences(rollout: &Value, fields: Value) -> Value {
    let groups = rollout["groups"].as_array().unwrap().iter().zip(prompts());
    let of_group = |(group, messages): (&Value, Value)| {
        let samples = group["samples"].as_array().unwrap().clone();
        samples.into_iter().map(move |s| json!({"messages": messages, "completion_token_ids": s["token_ids"]}))
    };
    let mut body = json!({"sequences": groups.flat_map(of_group).collect::<Vec<_>>()});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// One array of every sample, or of every sequence.
fn arrays(reply: &Value, name: &str) -> Vec<Value> {
    match reply["groups"].as_array() {
        Some(groups) => groups.iter().flat_map(|g| g["samples"].as_array().unwrap()).map(|s| s[name].clone()).collect(),
        None => reply["sequences"].as_array().unwrap().iter().map(|s| s[name].clone()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn given_tokens_have_the_log_probabilities_of_the_draw() {
    // Small steps: prompts and completions are cut into several.
    for flags in ["", "--max-num-seqs 7 --max-num-batched-tokens 50", "--dtype bfloat16"] {
        let server = Server::start(flags);
        for temperature in [1.0, 0.7, 0.0] {
            let drawn = rollout(&server, temperature, &["logps", "entropy"]).await;
            let body = sequences(&drawn, json!({"temperature": temperature, "return": ["logps", "entropy", "sum"]}));
            // Beside others, and while others are drawn.
            let (scored, again) = tokio::join!(server.post(LOGPS, &body), rollout(&server, temperature, &["logps", "entropy"]));
            let scored = scored.ok();
            for name in ["logps", "entropy"] {
                assert_eq!(arrays(&scored, name), arrays(&drawn, name), "{flags} at {temperature}: {name}");
                assert_eq!(arrays(&again, name), arrays(&drawn, name), "{flags} at {temperature}: {name}");
            }
            let sums: f64 = scored["sequences"][0]["logps"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).sum();
            assert!((scored["sequences"][0]["sum"].as_f64().unwrap() - sums).abs() < 1e-3);
        }
        server.assert_idle().await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_stays_while_the_policy_moves() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(&format!("--reference --policy-root {}", root.path().display()));
    assert_eq!(server.get("/v1/policy").await.ok()["reference"]["version"], 0);
    let before = rollout(&server, 1.0, &["logps", "ref_logps"]).await;
    assert_eq!(arrays(&before, "ref_logps"), arrays(&before, "logps"), "the reference begins as the policy");
    put(&server, "", serialize(&weights(1))).await.ok();
    let of = |weights: &str| sequences(&before, json!({"weights": weights}));
    let scored = server.post(LOGPS, &of("reference")).await.ok();
    assert_eq!((arrays(&scored, "logps"), &scored["weights"]), (arrays(&before, "logps"), &json!("reference")));
    assert_ne!(arrays(&server.post(LOGPS, &of("policy")).await.ok(), "logps"), arrays(&before, "logps"));
    let moved = rollout(&server, 0.8, &["logps", "ref_logps"]).await;
    assert_ne!(arrays(&moved, "ref_logps"), arrays(&moved, "logps"));
    // The present policy becomes the reference.
    let frozen = server.post("/v1/policy/reference", &json!({})).await.ok();
    assert_eq!((&frozen["version"], &frozen["source"]), (&json!(1), &json!("body")));
    let after = rollout(&server, 0.8, &["logps", "ref_logps"]).await;
    assert_eq!(arrays(&after, "ref_logps"), arrays(&moved, "logps"));
    // Or a path does, while the policy stays.
    std::fs::write(root.path().join("w.safetensors"), serialize(&weights(2))).unwrap();
    server.post("/v1/policy/reference", &json!({"path": "w.safetensors"})).await.ok();
    let by_path = server.post(LOGPS, &of("reference")).await.ok();
    put(&server, "", serialize(&weights(2))).await.ok();
    assert_eq!(arrays(&by_path, "logps"), arrays(&server.post(LOGPS, &of("policy")).await.ok(), "logps"));
    server.post("/v1/policy/reference", &json!({"path": "nothing"})).await.error(400);
    server.assert_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_are_sums_under_both_weights() {
    let server = Server::start("--reference");
    put(&server, "", serialize(&weights(1))).await.ok();
    let sums = async |weights: &str, completion: &str, eos: bool| {
        let sequence = json!({"messages": user("2 + 2?"), "completion": completion, "append_eos": eos});
        let body = json!({"sequences": [sequence], "weights": weights, "return": ["sum"]});
        server.post(LOGPS, &body).await.ok()["sequences"][0]["sum"].clone()
    };
    for eos in [true, false] {
        let mut pair = json!({"messages": user("2 + 2?"), "chosen": "4", "rejected": "five"});
        if !eos {
            pair["append_eos"] = json!(false);
        }
        let reply = server.post(LOGPS, &json!({"pairs": [pair.clone(), pair]})).await.ok();
        let second = &reply["pairs"][1];
        assert_eq!((reply["pairs"].as_array().unwrap().len(), &second["policy_version"]), (2, &json!(1)));
        for (name, weights, text) in [
            ("chosen_logps", "policy", "4"),
            ("rejected_logps", "policy", "five"),
            ("ref_chosen_logps", "reference", "4"),
            ("ref_rejected_logps", "reference", "five"),
        ] {
            assert_eq!(second[name], sums(weights, text, eos).await, "{name}");
        }
        assert_ne!(second["chosen_logps"], second["ref_chosen_logps"]);
    }
    let pair = json!({"prompt": "x", "chosen": "a", "rejected": "b"});
    for (body, param) in [
        (json!({}), "sequences"),
        (json!({"pairs": [pair], "sequences": []}), "sequences"),
        (json!({"pairs": [pair], "weights": "policy"}), "weights"),
        (json!({"pairs": []}), "pairs"),
        (json!({"pairs": [pair, {"prompt": "x", "chosen": "a"}]}), "pairs[1].rejected"),
        (json!({"pairs": [pair, {"chosen": "a", "rejected": "b"}]}), "pairs[1]"),
    ] {
        assert_eq!(server.post(LOGPS, &body).await.error(400)["param"], param, "{body}");
    }
    server.assert_idle().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_sequences_are_refused_by_path() {
    let server = Server::start("");
    let sequence = |fields: Value| {
        let mut sequence = json!({"prompt": "a", "completion": "b"});
        sequence.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"sequences": [{"prompt": "x", "completion": "y"}, sequence]})
    };
    for (body, param) in [
        (json!({"sequences": []}), "sequences"),
        (sequence(json!({"completion_token_ids": [1]})), "sequences[1]"),
        (sequence(json!({"completion": null})), "sequences[1]"),
        (sequence(json!({"completion": null, "completion_token_ids": [99_999]})), "sequences[1].completion_token_ids[0]"),
        (sequence(json!({"messages": []})), "sequences[1]"),
        (sequence(json!({"prompt": ""})), "sequences[1].prompt"),
        (sequence(json!({"completion": "long ".repeat(600)})), "sequences[1].max_tokens"),
        (json!({"sequences": [{"prompt": "x", "completion": "y"}], "temperature": -1.0}), "temperature"),
        (json!({"sequences": [{"prompt": "x", "completion": "y"}], "weights": "old"}), "weights"),
        (json!({"sequences": [{"prompt": "x", "completion": "y"}], "weights": "reference"}), "sequences[0].weights"),
    ] {
        assert_eq!(server.post(LOGPS, &body).await.error(400)["param"], param, "{body}");
    }
    let empty = server.post(LOGPS, &json!({"sequences": [{"prompt": "x", "completion": ""}], "return": ["logps", "sum"]})).await.ok();
    assert_eq!((&empty["sequences"][0]["logps"], &empty["sequences"][0]["sum"]), (&json!([]), &json!(0.0)));
    let with_eos = json!({"sequences": [{"prompt": "x", "completion": "y", "append_eos": true}]});
    assert!(server.post(LOGPS, &with_eos).await.ok()["sequences"][0]["token_ids"].as_array().unwrap().len() >= 2);
    server.post("/v1/policy/reference", &json!({})).await.error(400);
    let refused = json!({"groups": [{"prompt": "x"}], "return": ["ref_logps"]});
    assert!(server.post("/v1/rollouts", &refused).await.error(400)["message"].as_str().unwrap().contains("--reference"));
    server.assert_idle().await;
    server.stop().await;
}
