//! Models whose weights come from the formula they were made with, so that they need not be stored: mini-vl (the real head sizes 128
//! and 80) and tiny-vl with the real vocabulary.
//!
//! `h = FNV-1a-64("MODEL/NAME")`, `z(i) = splitmix64(h + (i + 1) · 0x9E3779B97F4A7C15)`, `s(i)` = sum of its four 16-bit words
//! − 131070, `x(i) = mean + s(i) · (std · K)` in f64, rounded to f32 and then to bf16.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flate2::read::GzDecoder;
use half::bf16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::golden;

const K: f64 = 2.6428997921303014e-05;
/// Standard deviation of tiny-vl's embeddings.
const EMBED_STD: f64 = 0.3;

type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

/// mini-vl with its weights written out, once a run.
pub fn mini_vl() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(write_mini_vl).path().to_owned()
}

fn copy(model: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(golden::model(model)).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

fn write(tensors: &Tensors, path: &Path) {
    let views = tensors.iter().map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn write_mini_vl() -> TempDir {
    let folder = copy("mini-vl");
    let spec: Value = serde_json::from_str(&std::fs::read_to_string(golden::model("mini-vl").join("weights.json")).unwrap()).unwrap();
    let tensors: Tensors = spec["tensors"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, t)| {
            let shape: Vec<usize> = serde_json::from_value(t["shape"].clone()).unwrap();
            // Vocabulary rows that no token id names are small.
            let padding_from = if shape[0] == 1040 { 1024 } else { usize::MAX };
            let (std, mean) = (t["std"].as_f64().unwrap(), t["mean"].as_f64().unwrap());
            (name.clone(), shape.clone(), tensor(&format!("mini-vl/{name}"), &shape, std, mean, padding_from))
        })
        .collect();
    write(&tensors, &folder.path().join("model.safetensors"));
    folder
}

/// tiny-vl with the 151,936 embeddings and the tokenizer of Qwen2.5; everything else is tiny-vl's.
pub fn tiny_vl_qwentok() -> TempDir {
    const EMBED: &str = "model.embed_tokens.weight";
    let folder = copy("tiny-vl");
    let mut tensors = Tensors::new();
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let path = folder.path().join(shard);
        let bytes = std::fs::read(&path).unwrap();
        for (name, t) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            tensors.push((name, t.shape().to_vec(), t.data().to_vec()));
        }
        std::fs::remove_file(path).unwrap();
    }
    let shape = vec![151_936, 128];
    tensors.retain(|(name, ..)| name != EMBED);
    tensors.push((EMBED.into(), shape.clone(), tensor(&format!("tiny-vl/{EMBED}"), &shape, EMBED_STD, 0.0, 151_665)));
    write(&tensors, &folder.path().join("model.safetensors"));
    let config_path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&config_path).unwrap()).unwrap();
    for (key, id) in [
        ("vocab_size", 151_936),
        ("image_token_id", 151_655),
        ("video_token_id", 151_656),
        ("vision_start_token_id", 151_652),
        ("vision_end_token_id", 151_653),
    ] {
        config[key] = id.into();
    }
    std::fs::write(config_path, config.to_string()).unwrap();
    let packed = std::fs::File::open(golden::path("assets/qwen2_5_vl_3b/tokenizer.json.gz")).unwrap();
    std::io::copy(&mut GzDecoder::new(packed), &mut std::fs::File::create(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    std::fs::copy(golden::path("assets/qwen2_5_vl_3b/tokenizer_config.json"), folder.path().join("tokenizer_config.json")).unwrap();
    folder
}

/// bf16 values, little-endian; vocabulary rows from `padding_from` on are scaled by 1/64.
fn tensor(key: &str, shape: &[usize], std: f64, mean: f64, padding_from: usize) -> Vec<u8> {
    let mut h: u64 = 0xCBF29CE484222325;
    for byte in key.bytes() {
        h = (h ^ u64::from(byte)).wrapping_mul(0x100000001B3);
    }
    let len: usize = shape.iter().product();
    let row = len / shape[0];
    (0..len)
        .flat_map(|i| {
            let mut z = h.wrapping_add((i as u64 + 1).wrapping_mul(0x9E3779B97F4A7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
            z ^= z >> 31;
            let s = (0..4).map(|word| (z >> (16 * word) & 0xFFFF) as i64).sum::<i64>() - 131070;
            let x = mean + s as f64 * (std * K);
            bf16::from_f32((if i / row >= padding_from { x / 64.0 } else { x }) as f32).to_le_bytes()
        })
        .collect()
}

#[test]
fn formula_weights_have_the_recorded_bits() {
    let bytes = std::fs::read(mini_vl().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ours: HashMap<String, String> =
        file.tensors().into_iter().map(|(name, t)| (name, Sha256::digest(t.data()).iter().map(|b| format!("{b:02x}")).collect())).collect();
    for case in golden::cases("weight_formula") {
        let name = case["id"].as_str().unwrap().strip_prefix("mini-vl/").unwrap();
        assert_eq!(ours[name], case["bf16le_sha256"].as_str().unwrap(), "{name}");
    }
}
