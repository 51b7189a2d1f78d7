//! Rollouts from request to reply on a tiny model, without HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use grouper::engine::{EngineConfig, KvBudget};
use grouper::error::{Error, Result};
use grouper::model::config::ModelConfig;
use grouper::processor::{Processor, ProcessorOptions};
use grouper::rollout::generator::Generator;
use grouper::rollout::limits::Limits;
use grouper::rollout::reply::{Finish, GroupReply, RolloutReply, RolloutSummary, ScoredGroup, Status, StreamItem};
use grouper::rollout::request::RolloutRequest;
use grouper::rollout::service::{QueueOptions, RolloutService};
use grouper::store::{Clock, SqliteStore, StoreOptions};
use serde_json::{Value, json};

fn service(limits: Limits) -> Arc<RolloutService> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/tiny-vl");
    let model = ModelConfig::load(&folder).unwrap();
    let processor = Processor::load(&folder, &model, ProcessorOptions::default()).unwrap();
    // The engine's thread ends when the last handle is gone.
    let config = EngineConfig { kv_cache: KvBudget::Bytes(64 << 20), ..EngineConfig::default() };
    let (engine, _thread) = grouper::engine::start_cpu(&folder, &config).unwrap();
    let generator = Generator::new(Arc::new(processor), engine, &model, limits);
    let store = SqliteStore::in_memory(StoreOptions::default(), Clock::system()).unwrap();
    Arc::new(RolloutService::new(Arc::new(generator), "tiny-vl", Arc::new(store), QueueOptions::default()))
}

/// A request of two groups, with the given fields over it.
fn request(fields: Value) -> RolloutRequest {
    let mut body = json!({
        "groups": [
            {"id": "a", "messages": [{"role": "user", "content": "What is 2 + 2?"}], "solution": "4"},
            {"id": "b", "messages": [{"role": "user", "content": "What is 3 + 3?"}], "solution": 6, "fields": {"score": 0.5}}],
        "num_generations": 4, "seed": 7, "sampling": {"max_tokens": 12},
        "rewards": [{"name": "accuracy"}, {"name": "field", "field": "score", "weight": 2.0}],
        "return": ["text", "logps", "logps_raw", "logps_sampled", "entropy"]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(body).unwrap()
}

fn scored(group: &GroupReply) -> &ScoredGroup {
    match group {
        GroupReply::Scored(group) => group,
        GroupReply::Bad(group) => panic!("{:?}", group.error),
    }
}

/// What must be equal when a request is repeated.
fn content(reply: &RolloutReply) -> Value {
    let mut value = serde_json::to_value(reply).unwrap();
    value.as_object_mut().unwrap().remove("rollout_id");
    for group in value["groups"].as_array_mut().unwrap() {
        for name in ["rollout_id", "uid"] {
            group.as_object_mut().unwrap().remove(name);
        }
    }
    value
}

fn tokens(group: &GroupReply) -> Vec<Vec<u32>> {
    scored(group).samples.iter().map(|sample| sample.token_ids.clone()).collect()
}

async fn refused(service: &RolloutService, fields: Value) -> String {
    match service.run(request(fields.clone())).await {
        Ok(reply) => panic!("{fields} was accepted: {reply:?}"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_says_all_that_a_learner_needs() {
    let service = service(Limits::default());
    let reply = service.run(request(json!({}))).await.unwrap();
    assert_eq!((reply.seed, reply.model.as_str(), reply.groups.len()), (7, "tiny-vl", 2));
    let (a, b) = (scored(&reply.groups[0]), scored(&reply.groups[1]));
    assert_eq!((a.id.as_str(), b.id.as_str(), a.attempt), ("a", "b", 0));
    assert!(a.uid != b.uid && a.rollout_id == reply.rollout_id);
    assert_eq!(a.solution, Some(json!("4")));
    assert_eq!(b.fields.as_ref().unwrap()["score"], json!(0.5));
    assert_eq!(a.samples.len(), 4);
    for (index, sample) in a.samples.iter().chain(&b.samples).enumerate() {
        assert_eq!(sample.index, index % 4);
        let len = sample.token_ids.len();
        assert!((1..=12).contains(&len));
        for array in [&sample.logps, &sample.logps_raw, &sample.logps_sampled, &sample.entropy] {
            assert_eq!(array.as_ref().unwrap().len(), len);
        }
        assert_eq!(sample.status == Status::Truncated, sample.finish_reason == Finish::Length);
        assert_eq!(sample.stop_token_id, (sample.finish_reason == Finish::Stop).then(|| sample.token_ids[len - 1]));
        assert_eq!(sample.completion_mask, 1);
        assert_eq!(sample.policy_versions.last().map(|span| span.end), Some(len));
        assert!(sample.rewards.get("accuracy").is_some() && sample.details.get("accuracy").is_some());
    }
    assert_eq!(b.samples[0].rewards.get("field"), Some(&Some(0.5)));
    assert_eq!(a.samples[0].rewards.get("field"), Some(&None));
    assert_eq!(reply.metrics.get("rewards/field/mean"), Some(&json!(0.5)));
    let json = serde_json::to_value(&reply).unwrap();
    assert_eq!(json["groups"][0]["sampling"]["max_tokens"], json!(12));
    assert_eq!(json["groups"][0]["samples"][0].get("timing_ms"), None);
    assert_eq!(json["advantage"]["preset"], json!("trl"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_and_ids_give_the_same_reply_whatever_else_runs() {
    let service = service(Limits::default());
    let first = service.run(request(json!({}))).await.unwrap();
    let (again, other) = tokio::join!(service.run(request(json!({}))), service.run(request(json!({"seed": 8}))));
    assert_eq!(content(&first), content(&again.unwrap()));
    assert_ne!(tokens(&first.groups[0]), tokens(&other.unwrap().groups[0]));
    // A group by itself under the same id, and one whose id is its position.
    let alone = json!([{"id": "b", "messages": [{"role": "user", "content": "What is 3 + 3?"}]}]);
    let alone = service.run(request(json!({"groups": alone}))).await.unwrap();
    assert_eq!(tokens(&first.groups[1]), tokens(&alone.groups[0]));
    let drawn = service.run(request(json!({"seed": null}))).await.unwrap();
    assert!(drawn.seed < 1 << 53);
    let replayed = service.run(request(json!({"seed": drawn.seed}))).await.unwrap();
    assert_eq!(content(&drawn), content(&replayed));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_group_fails_alone() {
    let service = service(Limits::default());
    let bad = json!({"id": "bad", "prompt": "x", "images": ["data:image/png;base64,AAAA"]});
    let good = json!({"prompt": "Say something."});
    let reply = service.run(request(json!({"groups": [good, bad]}))).await.unwrap();
    assert_eq!(scored(&reply.groups[0]).id, "0");
    let GroupReply::Bad(group) = &reply.groups[1] else { panic!("{:?}", reply.groups[1]) };
    assert!(group.error.param.as_ref().unwrap().starts_with("groups[1]"), "{:?}", group.error);
    assert_eq!(reply.metrics.get("num_groups_bad"), Some(&json!(1)));
    assert!(refused(&service, json!({"groups": [bad]})).await.starts_with("groups[0]"));
    let context = service.generator().engine().info().max_model_len;
    let long = json!([{"prompt_token_ids": vec![65; context]}]);
    assert!(refused(&service, json!({"groups": long})).await.contains("never cut"));
    let most = json!({"groups": [{"prompt": "Say something."}], "sampling": {"max_tokens": context - 1}});
    assert!(refused(&service, most).await.starts_with("sampling.max_tokens: groups[0]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn text_ends_before_a_stop_string_and_ids_with_its_token() {
    let service = service(Limits::default());
    let free = service.run(request(json!({"sampling": {"max_tokens": 30, "ignore_eos": true}}))).await.unwrap();
    let sample = &scored(&free.groups[0]).samples[1];
    let text = sample.text.as_ref().unwrap();
    let stop: String = text.chars().skip(5).take(2).collect();
    let sampling = json!({"max_tokens": 30, "ignore_eos": true, "stop": [stop]});
    let stopped = service.run(request(json!({"sampling": sampling}))).await.unwrap();
    let cut = &scored(&stopped.groups[0]).samples[1];
    assert_eq!(cut.text.as_deref(), text.split(&stop).next());
    assert_eq!((cut.finish_reason, cut.status, cut.stop_token_id), (Finish::Stop, Status::Completed, None));
    assert!(cut.token_ids.len() < 30 && sample.token_ids.starts_with(&cut.token_ids));
    assert_eq!(cut.logps.as_ref().unwrap(), &sample.logps.as_ref().unwrap()[..cut.token_ids.len()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_without_spread_are_dropped_or_drawn_again() {
    let service = service(Limits::default());
    let rewards = json!([{"name": "constant", "value": 1.0}]);
    let kept = service.run(request(json!({"rewards": rewards}))).await.unwrap();
    assert!(scored(&kept.groups[0]).zero_std);
    assert_eq!(scored(&kept.groups[0]).reward_std, Some(0.0));
    let dropped = service.run(request(json!({"rewards": rewards, "zero_std": "drop"}))).await.unwrap();
    assert!(dropped.groups.is_empty());
    assert_eq!(dropped.metrics.get("frac_reward_zero_std"), Some(&json!(1.0)));
    assert_eq!(dropped.metrics.get("num_scorable"), Some(&json!(8)));
    let refilled = service.run(request(json!({"rewards": rewards, "zero_std": "refill", "max_refills": 2}))).await.unwrap();
    assert!(refilled.groups.is_empty());
    assert_eq!(refilled.metrics.get("num_refills"), Some(&json!(4)));
    assert_eq!(refilled.metrics.get("num_scorable"), Some(&json!(24)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_aborts_and_labels_what_is_unfinished() {
    let service = service(Limits::default());
    let max_tokens = service.generator().engine().info().max_model_len - 64;
    let late = json!({"deadline_ms": 300, "num_generations": 64, "sampling": {"max_tokens": max_tokens, "ignore_eos": true}});
    let reply = service.run(request(late.clone())).await.unwrap();
    for sample in reply.groups.iter().flat_map(|group| &scored(group).samples) {
        assert_eq!((sample.status, sample.finish_reason), (Status::Aborted, Finish::Abort));
        assert_eq!((sample.reward, sample.advantage, sample.completion_mask), (None, 0.0, 0));
        assert_eq!(sample.rewards.get("accuracy"), Some(&None));
        assert_eq!(sample.logps.as_ref().unwrap().len(), sample.token_ids.len());
    }
    let mut dropped = request(late);
    dropped.failed = Some(grouper::rollout::request::Policy::Refill);
    assert!(service.run(dropped).await.unwrap().groups.is_empty());
}

/// The groups of a stream and the summary at its end.
async fn stream(service: &Arc<RolloutService>, request: RolloutRequest) -> (Vec<GroupReply>, RolloutSummary) {
    let mut items: Vec<StreamItem> = service.clone().stream(request).unwrap().map(Result::unwrap).collect().await;
    let Some(StreamItem::Done(summary)) = items.pop() else { panic!("a stream without a summary") };
    let group = |item| match item {
        StreamItem::Group(group) => group,
        StreamItem::Done(_) => panic!("a summary before the end"),
    };
    (items.into_iter().map(group).collect(), *summary)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_generated_once_and_goes_on_without_its_caller() {
    let service = service(Limits::default());
    let keyed = |seed: Value| request(json!({"idempotency_key": "step-1", "seed": seed}));
    let (first, second) = tokio::join!(service.run(keyed(json!(null))), service.run(keyed(json!(null))));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(serde_json::to_value(&first).unwrap(), serde_json::to_value(&second).unwrap());
    assert!(matches!(service.run(keyed(json!(1))).await, Err(Error::Conflict(_))));
    let (streamed, summary) = stream(&service, keyed(json!(null))).await;
    assert_eq!(scored(&streamed[0]).rollout_id, first.rollout_id);
    assert_eq!(summary.rollout_id, first.rollout_id);

    let other = || request(json!({"idempotency_key": "step-2", "seed": null}));
    let leaving = tokio::time::timeout(Duration::ZERO, service.run(other())).await;
    assert!(leaving.is_err());
    let (left, joined) = tokio::join!(service.run(other()), service.run(other()));
    assert_eq!(left.unwrap().rollout_id, joined.unwrap().rollout_id);
    // A failure is forgotten.
    let bad = json!({"idempotency_key": "step-3", "groups": [{"prompt": "x", "images": ["data:,"]}]});
    for _ in 0..2 {
        assert!(refused(&service, bad.clone()).await.starts_with("groups[0]"));
    }
    service.run(request(json!({"idempotency_key": "step-3"}))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_carries_the_groups_of_the_reply() {
    let service = service(Limits::default());
    let whole = content(&service.run(request(json!({}))).await.unwrap());
    let (groups, summary) = stream(&service, request(json!({"mode": "stream"}))).await;
    assert_eq!(serde_json::to_value(&summary.metrics).unwrap(), whole["metrics"]);
    let mut groups: Vec<Value> = groups.into_iter().map(|group| serde_json::to_value(group).unwrap()).collect();
    groups.sort_by_key(|group| group["id"].to_string());
    for (i, group) in groups.iter().enumerate() {
        assert_eq!(group["samples"], whole["groups"][i]["samples"]);
    }
    for recipe in ["gdpo", "trl-batch"] {
        let refused = service.clone().stream(request(json!({"mode": "stream", "advantage": recipe})));
        assert!(refused.is_err_and(|error| error.to_string().starts_with("advantage: ")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_checked_first_and_given_back() {
    let service = service(Limits { max_sequences_in_flight: 10, ..Limits::default() });
    assert!(refused(&service, json!({"num_generations": 6})).await.contains("12 samples; 10 can be in flight"));
    let max_tokens = service.generator().engine().info().max_model_len - 64;
    let long = json!({"sampling": {"max_tokens": max_tokens, "ignore_eos": true}});
    let mut running = Box::pin(service.run(request(long)));
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut running).await.is_err());
    assert!(matches!(service.run(request(json!({}))).await, Err(Error::Overloaded { .. })));
    drop(running);
    assert_eq!(service.generator().samples_in_flight(), 0);
    service.run(request(json!({}))).await.unwrap();
    service.generator().drain();
    assert!(matches!(service.run(request(json!({}))).await, Err(Error::NotReady(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_scored_without_generating() {
    let service = service(Limits::default());
    let body = json!({
        "rewards": [{"name": "field", "field": "score"}, {"name": "constant", "as": "one", "value": 1, "weight": 0.5}],
        "samples": [
            {"completion": "a", "fields": {"score": 1.0}, "group": "q"}, {"completion": "b", "fields": {"score": 3}, "group": "q"},
            {"completion": "c", "fields": {}, "group": 7}, {"completion": "d", "fields": {"score": 2}}]});
    let reply = service.score(serde_json::from_value(body).unwrap()).await.unwrap();
    let reply = serde_json::to_value(reply).unwrap();
    let column = |name: &str| reply["samples"].as_array().unwrap().iter().map(|s| s[name].clone()).collect::<Vec<_>>();
    assert_eq!(column("reward"), [json!(1.5), json!(3.5), json!(0.5), json!(2.5)]);
    assert_eq!(reply["samples"][2]["rewards"], json!({"field": null, "one": 1.0}));
    assert_eq!(reply["samples"][2]["details"]["field"], json!({"reason": "no_field"}));
    let advantage = column("advantage");
    assert!((advantage[1].as_f64().unwrap() - 1.0 / (2f64.sqrt() + 1e-4)).abs() < 1e-12);
    assert_eq!(advantage[2..], [json!(0.0), Value::Null]);
    assert_eq!(reply["advantage"]["preset"], json!("trl"));
}
