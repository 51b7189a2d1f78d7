//! Dataset mode: rows become groups by themselves, a bounded number ahead of the learner, each once an epoch, across restarts.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use crate::common::{Reply, Server, png};

const ROWS: usize = 24;
const MAX_AHEAD: u64 = 6;

/// Questions, of which row 5 is not JSON and row 9 has no prompt.
fn write_rows(file: &Path) {
    let row = |i: usize| match i {
        5 => "{not json".to_owned(),
        9 => json!({"solution": "4"}).to_string(),
        _ => json!({"problem": format!("{i} + 2"), "solution": i + 2, "level": "easy"}).to_string(),
    };
    std::fs::write(file, (0..ROWS).map(|i| row(i) + "\n").collect::<String>()).unwrap();
}

fn write_config(folder: &Path, seed: u64) {
    let config = json!({"num_generations": 2, "seed": seed, "sampling": {"max_tokens": 3}, "rewards": [{"name": "accuracy"}]});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

async fn start(folder: &Path, data: &str, file: &str, more: &str) -> Server {
    let path = |name: &str| folder.join(name).display().to_string();
    let flags = format!(
        "--data-dir {} --dataset {} --rollout-config {} --max-ahead {MAX_AHEAD} {more}",
        path(data),
        path(file),
        path("config.json")
    );
    let mut server = Server::start(&flags);
    server.read_dataset().await.unwrap();
    server
}

async fn in_flight(server: &Server) -> u64 {
    let counts = server.get("/v1/batches").await.ok()["queues"]["default"].take();
    ["pending", "ready", "leased"].iter().filter_map(|name| counts[*name].as_u64()).sum()
}

/// Waits until as many groups as may be are in flight.
async fn filled(server: &Server) {
    while in_flight(server).await < MAX_AHEAD {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Leases what is ready, which is in the order of acceptance once nothing earlier is still being generated.
async fn lease(server: &Server, num_groups: usize) -> Reply {
    while server.get("/v1/batches").await.ok()["queues"]["default"]["pending"].as_u64() > Some(0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.post("/v1/batches/lease", &json!({"num_groups": num_groups, "wait_ms": 20_000})).await
}

async fn ack(server: &Server, lease: &Value) {
    let path = format!("/v1/batches/{}/ack", lease["lease_id"].as_str().unwrap());
    server.post(&path, &json!({"fence": lease["fence"]})).await.ok();
}

fn ids(lease: &Value) -> Vec<String> {
    lease["groups"].as_array().unwrap().iter().map(|group| group["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_comes_once_an_epoch_and_no_faster_than_it_is_acked() {
    let folder = tempfile::tempdir().unwrap();
    write_rows(&folder.path().join("rows.jsonl"));
    write_config(folder.path(), 3);
    let mut server = start(folder.path(), "data", "rows.jsonl", "--epochs 2").await;
    // A learner that has stopped: what waits for it does not grow.
    filled(&server).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(in_flight(&server).await, MAX_AHEAD);
    }
    assert!(lease(&server, 7).await.error(400)["message"].as_str().unwrap().contains('6'));
    let mut seen: Vec<String> = Vec::new();
    let mut end = None;
    for step in 0.. {
        if step % 7 == 3 {
            server.stop().await;
            server = start(folder.path(), "data", "rows.jsonl", "--epochs 2").await;
        }
        // Three do not go into what there is: the last lease is smaller.
        let reply = lease(&server, 3).await;
        match reply.status.as_u16() {
            200 => {
                let lease = reply.json();
                assert!(in_flight(&server).await <= MAX_AHEAD);
                seen.extend(ids(&lease));
                ack(&server, &lease).await;
            }
            _ => {
                end = Some(reply.error(410)["code"].clone());
                break;
            }
        }
    }
    assert_eq!(end, Some(json!("end_of_data")));
    let expected: BTreeSet<String> =
        (0..2).flat_map(|epoch| (0..ROWS).filter(|row| *row != 5 && *row != 9).map(move |row| format!("{epoch}:{row}"))).collect();
    assert_eq!((seen.len(), seen.iter().cloned().collect::<BTreeSet<_>>()), (expected.len(), expected));
    assert!(seen[..ROWS - 2].iter().all(|id| id.starts_with("0:")), "one epoch after the other: {seen:?}");
    let row = |id: &String| id.split_once(':').unwrap().1.to_owned();
    let (first, second): (Vec<_>, Vec<_>) = (seen[..ROWS - 2].iter().map(row).collect(), seen[ROWS - 2..].iter().map(row).collect());
    assert!(first != second && !first.is_sorted(), "each epoch has an order of its own");
    let dead = server.get("/v1/batches/dead").await.ok();
    let reasons: Vec<&str> = dead["groups"].as_array().unwrap().iter().map(|group| group["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons.len(), 4);
    assert_eq!(reasons.iter().filter(|reason| reason.starts_with("row 5: ") && reason.contains("not JSON")).count(), 2, "{reasons:?}");
    assert_eq!(reasons.iter().filter(|reason| reason.starts_with("row 9: ") && reason.contains("exactly one of")).count(), 2);
    let counts = server.get("/v1/batches").await.ok()["queues"]["default"].take();
    assert_eq!((&counts["accepted"], &counts["acked"], &counts["dropped"]), (&json!(2 * ROWS), &json!(2 * ROWS - 4), &json!({})));
    server.stop().await;

    // The same seed gives the same order and the same tokens; another file is refused.
    let again = start(folder.path(), "other", "rows.jsonl", "").await;
    filled(&again).await;
    let leased = lease(&again, 3).await.ok();
    assert_eq!(ids(&leased), seen[..3]);
    assert_eq!(leased["groups"][0]["fields"], json!({"level": "easy"}));
    again.stop().await;
    std::fs::write(folder.path().join("rows2.jsonl"), "{\"problem\": \"1\"}\n").unwrap();
    let flags = format!("--data-dir {0}/other --dataset {0}/rows2.jsonl", folder.path().display());
    let mut server = Server::start(&flags);
    let refused = server.read_dataset().await.unwrap_err().to_string();
    assert!(refused.contains("--dataset") && refused.contains("is not the one"), "{refused}");
}

/// Two rows with a question, an answer and an image as `datasets` writes it.
fn write_parquet(file: &Path) {
    let schema = "message schema { REQUIRED BYTE_ARRAY problem (UTF8); REQUIRED INT64 solution;
        REQUIRED group image { REQUIRED BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (UTF8); } }";
    let schema = std::sync::Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(std::fs::File::create(file).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts = |values: [&[u8]; 2]| values.map(|value| ByteArray::from(value.to_vec()));
    for column in 0..4 {
        let mut writer = group.next_column().unwrap().unwrap();
        match column {
            0 => _ = writer.typed::<ByteArrayType>().write_batch(&texts([b"How many?", b"Which one?"]), None, None).unwrap(),
            1 => _ = writer.typed::<Int64Type>().write_batch(&[3, 4], None, None).unwrap(),
            2 => _ = writer.typed::<ByteArrayType>().write_batch(&texts([&png(40, 30), &png(60, 40)]), None, None).unwrap(),
            _ => _ = writer.typed::<ByteArrayType>().write_batch(&[], Some(&[0, 0]), None).unwrap(),
        }
        writer.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn parquet_with_images_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(&folder.path().join("rows.parquet"));
    write_config(folder.path(), 1);
    let server = start(folder.path(), "data", "rows.parquet", "--epochs 1").await;
    let leased = lease(&server, 2).await.ok();
    let mut groups = leased["groups"].as_array().unwrap().clone();
    groups.sort_by_key(|group| group["id"].to_string());
    for (group, (solution, question)) in groups.iter().zip([(3, "How many?"), (4, "Which one?")]) {
        assert_eq!((&group["solution"], group["images"].as_array().unwrap().len()), (&json!(solution), 1));
        assert!(group["prompt_text"].as_str().unwrap().contains(question));
    }
    assert_eq!(lease(&server, 1).await.error(410)["code"], "end_of_data");
    assert!(
        std::fs::read_dir(folder.path().join("data")).unwrap().all(|file| !file.unwrap().file_name().to_string_lossy().contains("jsonl"))
    );
    server.stop().await;
}
