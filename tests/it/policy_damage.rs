//! Damaged weights: each is refused with the name of what is wrong, and the old ones serve on, bit for bit.

use std::collections::BTreeSet;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::{Tensors, cast};
use crate::common::Server;
use crate::policy::{greedy, put, serialize, weights};

const CASES: usize = 200;

/// A body, what the refusal has to name, and what was done to it.
struct Damaged {
    body: Vec<u8>,
    names: String,
    what: String,
}

/// The header of a safetensors file changed by `change`, with the data as it was.
fn with_header(file: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..8 + len]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &file[8 + len..]].concat()
}

/// Damage number `i`: the kind and the tensor follow from it.
fn damage(i: usize, good: &Tensors, file: &[u8]) -> Damaged {
    let names: Vec<&String> = good.keys().collect();
    let name = names[(i * 37) % names.len()].clone();
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        serialize(&tensors)
    };
    let poke = |bits: [u8; 2]| {
        changed(&|tensors| {
            let bytes = &mut tensors.get_mut(&name).unwrap().2;
            let at = (i * 101) % (bytes.len() / 2) * 2;
            bytes[at..at + 2].copy_from_slice(&bits);
        })
    };
    let offsets = |shift: [i64; 2]| {
        with_header(file, |header| {
            let offsets = header[&name]["data_offsets"].as_array_mut().unwrap();
            for (offset, shift) in offsets.iter_mut().zip(shift) {
                *offset = json!(offset.as_i64().unwrap() + shift);
            }
        })
    };
    let (what, names, body): (&str, &str, Vec<u8>) = match i % 20 {
        0 => ("NaN", &name, poke([0xC0, 0x7F])),
        1 => ("infinity", &name, poke([0x80, 0x7F])),
        2 => ("a negative NaN", &name, poke([0xFF, 0xFF])),
        3 => ("missing", &name, changed(&|t| drop(t.remove(&name)))),
        4 => ("extra", "model.extra.weight", changed(&|t| drop(t.insert("model.extra.weight".into(), good[&name].clone())))),
        5 => ("renamed", &name, {
            changed(&|t| {
                let tensor = t.remove(&name).unwrap();
                t.insert(format!("{name}s"), tensor);
            })
        }),
        6 => ("one row more", &name, {
            changed(&|t| {
                let (_, shape, bytes) = t.get_mut(&name).unwrap();
                let row = bytes.len() / shape[0];
                bytes.extend_from_within(..row);
                shape[0] += 1;
            })
        }),
        7 => ("another rank", &name, changed(&|t| t.get_mut(&name).unwrap().1.push(1))),
        8 => ("integers", &name, changed(&|t| t.get_mut(&name).unwrap().0 = Dtype::I16)),
        9 => ("bytes", &name, with_header(file, |header| header[&name]["dtype"] = json!("F8_E4M3"))),
        10 => ("an unknown type", &name, with_header(file, |header| header[&name]["dtype"] = json!("F5"))),
        11 => ("overlapping", "", offsets([-2, -2])),
        12 => ("a hole", "", offsets([2, 2])),
        13 => ("past the end", &name, offsets([0, 1 << 40])),
        14 => ("an end before the start", &name, offsets([1 << 20, 0])),
        15 => ("a huge shape", &name, with_header(file, |header| header[&name]["shape"] = json!([1u64 << 33, 1u64 << 33]))),
        16 => ("cut data", "", file[..file.len() - 1 - (i * 997) % (file.len() / 2)].to_vec()),
        17 => ("a cut header", "", file[..(i * 13) % 2000].to_vec()),
        18 => ("a wrong header length", "", {
            let mut file = file.to_vec();
            file[i % 8] ^= 0xFF;
            file
        }),
        _ => ("both spellings", &name, { changed(&|t| drop(t.insert(crate::checkpoint::trainer_spelling(&name), good[&name].clone()))) }),
    };
    Damaged { body, names: names.to_owned(), what: format!("{i}: {what} of {name}") }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_damaged_checkpoints_change_nothing() {
    let server = Server::start("");
    put(&server, "", serialize(&weights(4))).await.ok();
    let before = greedy(&server).await;
    let held = server.get("/v1/policy").await.ok();
    let good = weights(5);
    let file = serialize(&good);
    let mut kinds = BTreeSet::new();
    for i in 0..CASES {
        let Damaged { body, names, what } = damage(i, &good, &file);
        let reply = put(&server, "", body).await;
        let error = reply.error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&names), "{what}: {message}");
        assert_eq!(error["code"], "invalid_weights", "{what}: {message}");
        kinds.insert(i % 20);
        assert_eq!(greedy(&server).await, before, "{what}");
        assert_eq!(server.get("/v1/policy").await.ok(), held, "{what}");
    }
    assert_eq!(kinds.len(), 20);
    put(&server, "", file).await.ok();
    assert_ne!(greedy(&server).await, before, "the whole ones are taken");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_serving_type_does_not_hold_is_refused() {
    let mut huge = cast(&weights(1), Dtype::F32);
    let name = "model.layers.1.mlp.down_proj.weight";
    huge.get_mut(name).unwrap().2[400..404].copy_from_slice(&3.4e38f32.to_le_bytes());
    let mut untied = weights(1);
    let (dtype, shape, mut bytes) = untied["model.embed_tokens.weight"].clone();
    bytes[0] ^= 1;
    untied.insert("lm_head.weight".into(), (dtype, shape, bytes));
    for (flags, taken) in [("--dtype float32", true), ("--dtype bfloat16", false)] {
        let server = Server::start(flags);
        let reply = put(&server, "", serialize(&huge)).await;
        match taken {
            true => drop(reply.ok()),
            false => {
                let message = reply.error(400)["message"].as_str().unwrap().to_owned();
                assert!(message.contains(name) && message.contains("element 100"), "{message}");
            }
        }
        let message = put(&server, "", serialize(&untied)).await.error(400)["message"].to_string();
        assert!(message.contains("lm_head.weight differs"), "{message}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_t_be_meant_are_refused() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("bad.safetensors"), b"x").unwrap();
    let server = Server::start(&format!("--policy-root {}", root.path().display()));
    let before = greedy(&server).await;
    for (body, param) in [
        (json!({}), "path"),
        (json!({"path": "a", "stage": "b"}), "path"),
        (json!({"path": "../x"}), "path"),
        (json!({"path": "nothing"}), "path"),
        (json!({"path": "bad.safetensors"}), "weights"),
        (json!({"path": "."}), "weights"),
        (json!({"path": "bad.safetensors", "apply": "later"}), "apply"),
        (json!({"path": "bad.safetensors", "versoin": 3}), "versoin"),
        (json!({"path": "bad.safetensors", "version": -1}), "version"),
    ] {
        assert_eq!(server.post("/v1/policy", &body).await.error(400)["param"], param, "{body}");
    }
    for (query, param) in [
        ("?version=x", "version"),
        ("?partial=maybe", "partial"),
        ("?aply=finish", "aply"),
        ("?version=1&version=2", "version"),
        ("?stage=a&version=3", "version"),
        ("?stage=", "stage"),
        ("?apply=now", "apply"),
    ] {
        assert_eq!(put(&server, query, serialize(&weights(1))).await.error(400)["param"], param, "{query}");
    }
    assert!(server.post("/v1/policy", &json!({"path": "bad.safetensors"})).await.text.contains("bad.safetensors"));
    // A part that is refused leaves its stage as it was.
    let part: Tensors = weights(1).into_iter().take(3).collect();
    assert_eq!(put(&server, "?stage=a", serialize(&part)).await.status, 201);
    put(&server, "?stage=a", serialize(&part)).await.error(400);
    put(&server, "?stage=a", b"junk".to_vec()).await.error(400);
    let staged = server.get("/v1/policy").await.ok()["staged"].take();
    assert_eq!((staged.as_array().unwrap().len(), &staged[0]["stage"], &staged[0]["num_tensors"]), (1, &json!("a"), &json!(3)), "{staged}");
    assert_eq!(staged[0]["bytes"], serialize(&part).len());
    server.post("/v1/policy", &json!({"stage": "a"})).await.error(400);
    // Larger than the model can be.
    let huge = put(&server, "", vec![0; 64 << 20]).await;
    assert!(huge.error(413)["message"].as_str().unwrap().contains("the model's tensors"), "{}", huge.text);
    let wrong_type = crate::common::Reply::of(server.request("PUT", "/v1/policy").header("content-type", "text/plain").body("x")).await;
    wrong_type.error(415);
    assert_eq!(greedy(&server).await, before);
    server.stop().await;
}
