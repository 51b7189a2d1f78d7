//! Batches as learners load them, against the JSON of the same groups.

use std::collections::HashMap;

use grouper::processor::{PromptRequest, PromptSource};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::common::{Reply, Server, data_url, png, user, user_with_image};

const MEDIA_TYPE: &str = "application/vnd.safetensors";

/// A file taken apart: shapes and numbers by name, and the metadata with its JSON parsed.
struct File {
    shapes: HashMap<String, Vec<usize>>,
    integers: HashMap<String, Vec<i64>>,
    floats: HashMap<String, Vec<f32>>,
    metadata: Map<String, Value>,
}

impl File {
    fn read(bytes: &[u8]) -> File {
        let tensors = SafeTensors::deserialize(bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(bytes).unwrap();
        let parsed = metadata.metadata().as_ref().unwrap().iter();
        let metadata = parsed.map(|(key, value)| (key.clone(), serde_json::from_str(value).unwrap_or_else(|_| json!(value)))).collect();
        let (mut shapes, mut integers, mut floats) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (name, view) in tensors.tensors() {
            shapes.insert(name.clone(), view.shape().to_vec());
            match view.dtype() {
                Dtype::I64 => {
                    _ = integers.insert(name, view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect())
                }
                Dtype::F32 => {
                    _ = floats.insert(name, view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
                }
                other => panic!("{name} is {other:?}"),
            }
        }
        File { shapes, integers, floats, metadata }
    }

    fn rows<'a, T>(&self, name: &str, values: &'a HashMap<String, Vec<T>>) -> Vec<&'a [T]> {
        let shape = &self.shapes[name];
        assert_eq!(shape.len(), 2, "{name}");
        values[name].chunks_exact(shape[1]).collect()
    }
}

async fn ask(server: &Server, path: &str, body: &Value) -> File {
    let response = server.request("POST", path).header("accept", MEDIA_TYPE).json(body).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()), (200, MEDIA_TYPE));
    File::read(&response.bytes().await.unwrap())
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

/// Everything that JSON says of the groups is in the file.
fn check(file: &File, groups: &Value, reward_names: &[&str], pad: i64) {
    let groups = groups.as_array().unwrap();
    let samples: Vec<(usize, &Value, &Value)> =
        groups.iter().enumerate().flat_map(|(i, group)| group["samples"].as_array().unwrap().iter().map(move |s| (i, group, s))).collect();
    let (rows, columns) = (samples.len(), file.shapes["completion_ids"][1]);
    let prompts = file.shapes["prompt_ids"][1];
    assert_eq!(prompts, groups.iter().map(|group| group["prompt_token_ids"].as_array().unwrap().len()).max().unwrap());
    assert_eq!(columns, samples.iter().map(|(.., sample)| sample["token_ids"].as_array().unwrap().len()).max().unwrap());
    let mut items = 0;
    for (row, (index, group, sample)) in samples.iter().enumerate() {
        let (prompt, tokens) = (ids(&group["prompt_token_ids"]), ids(&sample["token_ids"]));
        let line = |name: &str| file.rows(name, &file.integers)[row];
        let left = prompts - prompt.len();
        assert!(line("prompt_ids")[..left].iter().all(|id| *id == pad) && line("prompt_ids")[left..] == prompt);
        assert!(line("prompt_mask").iter().enumerate().all(|(i, mask)| *mask == i64::from(i >= left)));
        assert!(line("completion_ids")[..tokens.len()] == tokens && line("completion_ids")[tokens.len()..].iter().all(|id| *id == pad));
        let learned = sample["completion_mask"].as_i64().unwrap();
        let masked = |i: usize| if i < tokens.len() { learned } else { 0 };
        assert!(line("completion_mask").iter().enumerate().all(|(i, mask)| *mask == masked(i)), "row {row}");
        items += learned as usize * tokens.len();
        for (name, field) in
            [("old_per_token_logps", "logps"), ("logps_raw", "logps_raw"), ("logps_sampled", "logps_sampled"), ("entropies", "entropy")]
        {
            let Some(numbers) = sample[field].as_array() else { continue };
            let ours = file.rows(name, &file.floats)[row];
            assert!(numbers.iter().zip(ours).all(|(json, ours)| json.to_string().parse::<f32>().unwrap() == *ours), "{name} row {row}");
            assert!(ours[numbers.len()..].iter().all(|number| *number == 0.0));
        }
        let rewards = file.rows("rewards", &file.floats)[row];
        for (name, reward) in reward_names.iter().zip(rewards) {
            match sample["rewards"][*name].as_f64() {
                Some(value) => assert_eq!(value as f32, *reward, "{name} row {row}"),
                None => assert!(reward.is_nan(), "{name} row {row}"),
            }
        }
        assert_eq!(file.floats["advantages"][row], sample["advantage"].as_f64().unwrap() as f32);
        let temperature = group["sampling"]["temperature"].as_f64().unwrap() as f32;
        assert_eq!(file.floats["temperature"][row], if temperature == 0.0 { 1.0 } else { temperature });
        assert_eq!(file.integers["group_index"][row], *index as i64);
        assert_eq!(file.integers["policy_version"][row], sample["policy_versions"][0]["version"].as_i64().unwrap());
    }
    assert_eq!(file.metadata["num_items_in_batch"], json!(items));
    assert_eq!(file.metadata["reward_names"], json!(reward_names));
    assert_eq!(file.metadata["uids"], json!(groups.iter().map(|group| &group["uid"]).collect::<Vec<_>>()));
    assert_eq!(file.shapes["rewards"], [rows, reward_names.len()]);
}

fn pad_of(server: &Server) -> i64 {
    let generator = &server.running().loaded.generator;
    let tokenizer = generator.processor().tokenizer();
    i64::from(tokenizer.pad_token_id().unwrap_or(tokenizer.eos_token_ids()[0]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_texts_is_its_json() {
    let server = Server::start("");
    let body = |groups: Value, fields: Value| {
        let mut body = json!({"groups": groups, "num_generations": 3, "seed": 5, "sampling": {"max_tokens": 9}, "mode": "queue",
            "return": ["text", "logps", "logps_raw", "logps_sampled", "entropy"], "mask_truncated": true});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let first = body(
        json!([{"id": "a", "messages": user("1 + 1")}, {"id": "b", "messages": user("a longer question: what is 2 + 2?")}]),
        json!({"rewards": [{"name": "accuracy"}, {"name": "repetition", "unit": "chars", "n": 1}]}),
    );
    let second = body(
        json!([{"id": "c", "messages": user("3")}]),
        json!({"rewards": [{"name": "constant", "value": 0.3}], "sampling": {"temperature": 0.0, "max_tokens": 4, "ignore_eos": true}}),
    );
    for body in [&first, &second] {
        assert_eq!(server.post("/v1/rollouts", body).await.status.as_u16(), 202);
    }
    let wish = json!({"num_groups": 3, "wait_ms": 20_000});
    let leased = server.post("/v1/batches/lease", &wish).await.ok();
    let path = |id: &Value, how: &str| format!("/v1/batches/{}/{how}", id.as_str().unwrap());
    server.post(&path(&leased["lease_id"], "nack"), &json!({"fence": leased["fence"]})).await.ok();
    let file = ask(&server, "/v1/batches/lease", &wish).await;
    check(&file, &leased["groups"], &["accuracy", "repetition", "constant"], pad_of(&server));
    assert!(!file.shapes.keys().any(|name| name.contains("image") || name.contains("mm_")), "{:?}", file.shapes);
    assert_eq!(file.metadata["deliveries"], json!([2, 2, 2]));
    assert_eq!(file.metadata["metrics"]["num_scorable"], json!(9));
    // What the metadata says is what the ack takes.
    let fence = json!({"fence": file.metadata["fence"].to_string().trim_matches('"')});
    let acked = server.post(&path(&file.metadata["lease_id"], "ack"), &fence).await.ok();
    assert_eq!(acked["uids"], file.metadata["uids"]);
    let none = server.request("POST", "/v1/batches/lease").header("accept", MEDIA_TYPE).json(&json!({"num_groups": 1}));
    assert_eq!(Reply::of(none).await.status.as_u16(), 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_once_a_group_or_once_a_sample() {
    let folder = tempfile::tempdir().unwrap();
    let flags = format!("--data-dir {}", folder.path().display());
    let server = Server::start(&flags);
    let (small, large) = (data_url(&png(40, 30)), data_url(&png(90, 60)));
    let two = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": large}}, {"type": "text", "text": "and"},
        {"type": "image_url", "image_url": {"url": small}}]}]);
    let groups = json!([{"id": "one", "messages": user_with_image(&small, "x")}, {"id": "none", "messages": user("no image")}, {"id": "two", "messages": two}]);
    let mut body = json!({"groups": groups, "num_generations": 2, "seed": 5, "sampling": {"max_tokens": 4}, "return": ["logps", "pixel_values"],
        "rewards": [{"name": "constant", "value": 1}], "idempotency_key": "k"});
    assert_eq!(server.post("/v1/rollouts", &body).await.error(400)["param"], "return[1]");
    let generator = &server.running().loaded.generator;
    let mut pixels: Vec<(Vec<f32>, Vec<i64>)> = Vec::new();
    for group in groups.as_array().unwrap() {
        let source = PromptSource::Messages { messages: group["messages"].as_array().unwrap().clone(), assistant_prefill: None };
        let request = PromptRequest { source, images: vec![], tools: None, template_kwargs: Map::new(), add_generation_prompt: true };
        let media = generator.prepare(request).await.unwrap().input.media;
        let grids = media.iter().flat_map(|media| media.grid_thw).map(|n| n as i64).collect();
        pixels.push((media.iter().flat_map(|media| media.pixel_values()).collect(), grids));
    }
    let image_token = i64::from(generator.media_token_ids()[0]);
    let check_images = |file: &File, times: usize| {
        let repeated = || pixels.iter().flat_map(|of_group| std::iter::repeat_n(of_group, times));
        assert_eq!(file.floats["pixel_values"], repeated().flat_map(|(pixels, _)| pixels.clone()).collect::<Vec<_>>());
        assert_eq!(file.integers["image_grid_thw"], repeated().flat_map(|(_, grids)| grids.clone()).collect::<Vec<_>>());
        assert_eq!(file.integers["num_images"], repeated().map(|(_, grids)| grids.len() as i64 / 3).collect::<Vec<_>>());
        let patches = file.integers["image_grid_thw"].chunks(3).map(|grid| grid.iter().product::<i64>()).sum::<i64>() as usize;
        assert_eq!(file.shapes["pixel_values"], [patches, 1176]);
        let (prompts, types) = (file.rows("prompt_ids", &file.integers), file.rows("mm_token_type_ids", &file.integers));
        for (prompt, types) in prompts.iter().zip(types) {
            let expected = prompt.iter().map(|id| i64::from(*id == image_token)).chain(std::iter::repeat(0));
            assert!(types.len() == prompt.len() + file.shapes["completion_ids"][1] && types.iter().copied().eq(expected.take(types.len())));
        }
    };
    let file = ask(&server, "/v1/rollouts", &body).await;
    check_images(&file, 1);
    check_images(&ask(&server, "/v1/rollouts?expand_images=true", &body).await, 2);
    body["mode"] = json!("queue");
    body["idempotency_key"] = Value::Null;
    assert_eq!(server.post("/v1/rollouts", &body).await.status.as_u16(), 202);
    let wish = json!({"num_groups": 3, "wait_ms": 20_000, "learner": "l"});
    let leased = ask(&server, "/v1/batches/lease?expand_images=true", &wish).await;
    check_images(&leased, 2);
    let json = server.get("/v1/batches/leases?groups=true").await.ok();
    check(&leased, &json["leases"][0]["groups"], &["constant"], pad_of(&server));
    assert!(!json.to_string().contains("pixel"), "JSON never carries pixels");
    server.stop().await;
    // From the stored images, after a restart.
    let server = Server::start(&flags);
    let fence = json!({"fence": leased.metadata["fence"].to_string()});
    server.post(&format!("/v1/batches/{}/nack", leased.metadata["lease_id"].as_str().unwrap()), &fence).await.ok();
    check_images(&ask(&server, "/v1/batches/lease", &wish).await, 1);
    server.stop().await;
}
