//! Parts of new weights whose learner is gone: they end, and whoever comes back late is told so.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::checkpoint::Tensors;
use crate::common::Server;
use crate::policy::{greedy, put, serialize, weights};

async fn staged(server: &Server) -> Vec<Value> {
    server.get("/v1/policy").await.ok()["staged"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_stages_end() {
    let server = Server::start("--stage-ttl 1s");
    let before = greedy(&server).await;
    let (one, two): (Tensors, Tensors) = weights(1).into_iter().partition(|(name, _)| name.contains("layers.0"));
    let (one, two) = (serialize(&one), serialize(&two));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let part = put(&server, "?stage=a", one.clone()).await;
    assert_eq!((part.status.as_u16(), part.json()), (201, staged(&server).await[0].clone()));
    let ends = part.json()["expires_at"].as_u64().unwrap();
    assert!(ends.abs_diff(now() + 1000) < 500, "{ends}");
    // A part renews it, and all stages together have a bound.
    tokio::time::sleep(Duration::from_millis(600)).await;
    put(&server, "?stage=a", two.clone()).await;
    let max_bytes = part.json()["max_bytes"].as_u64().unwrap() as usize;
    let too_much = put(&server, "?stage=b", vec![0; max_bytes - one.len()]).await.error(413)["message"].to_string();
    assert!(too_much.contains(&max_bytes.to_string()) && too_much.contains("1 s after its last part"), "{too_much}");
    tokio::time::sleep(Duration::from_millis(600)).await;
    let [stage] = &staged(&server).await[..] else { panic!("the stage ended too early") };
    assert!(stage["bytes"] == one.len() + two.len() && stage["expires_at"].as_u64().unwrap() > ends, "{stage}");
    // Nobody comes: neither a commit nor a part finds it afterwards, and its room is free.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(staged(&server).await, Vec::<Value>::new());
    let commit = server.post("/v1/policy", &json!({"stage": "a"})).await.error(404)["message"].to_string();
    assert!(commit.contains("ended 1 s after its last part") && commit.contains("--stage-ttl"), "{commit}");
    assert!(put(&server, "?stage=a", two.clone()).await.error(409)["message"].to_string().contains("another name"));
    assert!(server.post("/v1/policy", &json!({"stage": "z"})).await.error(404)["message"].to_string().contains("no stage"));
    assert_eq!(greedy(&server).await, before);
    for part in [one, two] {
        assert_eq!(put(&server, "?stage=b", part).await.status, 201);
    }
    server.post("/v1/policy", &json!({"stage": "b"})).await.ok();
    assert_ne!(greedy(&server).await, before);
    server.stop().await;
}
