//! The weights of mini-vl (the real head sizes 128 and 80) from the formula they were made with, so that 8 MB need not be stored.
//!
//! `h = FNV-1a-64("mini-vl/NAME")`, `z(i) = splitmix64(h + (i + 1) · 0x9E3779B97F4A7C15)`, `s(i)` = sum of its four 16-bit words
//! − 131070, `x(i) = mean + s(i) · (std · K)` in f64, rounded to f32 and then to bf16.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::golden;

const K: f64 = 2.6428997921303014e-05;
/// Vocabulary rows that no token id names.
const PADDING_FROM: usize = 1024;

/// A model folder with the weights written out, made once a run.
pub fn folder() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(write).clone()
}

fn write() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("mini-vl-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for file in std::fs::read_dir(golden::model("mini-vl")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let spec: Value = serde_json::from_str(&std::fs::read_to_string(golden::model("mini-vl").join("weights.json")).unwrap()).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = spec["tensors"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, t)| {
            let shape: Vec<usize> = serde_json::from_value(t["shape"].clone()).unwrap();
            let values = tensor(name, &shape, t["std"].as_f64().unwrap(), t["mean"].as_f64().unwrap());
            (name.clone(), shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    folder
}

fn tensor(name: &str, shape: &[usize], std: f64, mean: f64) -> Vec<bf16> {
    let mut h: u64 = 0xCBF29CE484222325;
    for byte in format!("mini-vl/{name}").bytes() {
        h = (h ^ u64::from(byte)).wrapping_mul(0x100000001B3);
    }
    let len: usize = shape.iter().product();
    let row = len / shape[0];
    (0..len)
        .map(|i| {
            let mut z = h.wrapping_add((i as u64 + 1).wrapping_mul(0x9E3779B97F4A7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
            z ^= z >> 31;
            let s = (0..4).map(|word| (z >> (16 * word) & 0xFFFF) as i64).sum::<i64>() - 131070;
            let x = mean + s as f64 * (std * K);
            let padding = shape[0] == 1040 && i / row >= PADDING_FROM;
            bf16::from_f32((if padding { x / 64.0 } else { x }) as f32)
        })
        .collect()
}

#[test]
fn formula_weights_have_the_recorded_bits() {
    let bytes = std::fs::read(folder().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ours: HashMap<String, String> =
        file.tensors().into_iter().map(|(name, t)| (name, Sha256::digest(t.data()).iter().map(|b| format!("{b:02x}")).collect())).collect();
    for case in golden::cases("weight_formula") {
        let name = case["id"].as_str().unwrap().strip_prefix("mini-vl/").unwrap();
        assert_eq!(ours[name], case["bf16le_sha256"].as_str().unwrap(), "{name}");
    }
}
