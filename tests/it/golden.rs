//! Reading the golden vectors.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use grouper::model::config::ModelConfig;
use grouper::model::input::{MediaInput, MediaKind, PatchRows, PromptInput};
use grouper::model::mrope::{self, MediaGrid};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(relative)
}

pub fn model(name: &str) -> PathBuf {
    path("models").join(name)
}

/// The cases of `hf/NAME.json`.
pub fn cases(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path(&format!("hf/{name}.json"))).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["cases"].as_array().unwrap().clone()
}

/// Tensors of a golden safetensors file, as f32 (ids are small enough).
pub fn tensors(relative: &str) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path(&format!("hf/{relative}"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, t)| {
            let values = match t.dtype() {
                Dtype::F32 => t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::I64 => t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
                other => panic!("{relative}: {name} is {other:?}"),
            };
            (name, (t.shape().to_vec(), values))
        })
        .collect()
}

/// Ids in run-length form: an id, or `[id, count]`.
pub fn unrle(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().unwrap() as u32;
    value
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|v| v.as_array().map_or_else(|| vec![id(v)], |run| vec![id(&run[0]); run[1].as_u64().unwrap() as usize]))
        .collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

pub fn medium(kind: MediaKind, pixels: &str, grid: [usize; 3], second_per_grid_t: f32) -> MediaInput {
    let (shape, values) = tensors(pixels).remove("pixel_values").unwrap();
    assert_eq!(shape[0], grid.iter().product::<usize>(), "{pixels}");
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let patches = Arc::new(PatchRows { values, patch_len: shape[1] });
    MediaInput { kind, sha256: Sha256::digest(bytes).into(), grid_thw: grid, patches, second_per_grid_t }
}

/// The prompt of a case of greedy.json, from its exact pixels.
pub fn prompt(case: &Value, config: &ModelConfig) -> PromptInput {
    let token_ids = unrle(&case["input_ids_rle"]);
    let Some(vision) = &config.vision else {
        return PromptInput { positions: mrope::text_positions(token_ids.len()), token_ids, ..Default::default() };
    };
    let grids = |key: &str| serde_json::from_value::<Vec<[usize; 3]>>(case[key].clone()).unwrap();
    let seconds = serde_json::from_value::<Vec<f32>>(case["second_per_grid_ts"].clone()).unwrap();
    let images = grids("image_grid_thw").into_iter().map(|g| (MediaKind::Image, g, 1.0));
    let videos = grids("video_grid_thw").into_iter().zip(seconds).map(|(g, s)| (MediaKind::Video, g, s));
    let files = case["pixels"].as_array().unwrap();
    let media: Vec<Arc<MediaInput>> =
        images.chain(videos).zip(files).map(|((kind, grid, s), file)| Arc::new(medium(kind, file.as_str().unwrap(), grid, s))).collect();
    let described: Vec<MediaGrid> =
        media.iter().map(|m| MediaGrid { kind: m.kind, grid_thw: m.grid_thw, second_per_grid_t: m.second_per_grid_t }).collect();
    let (positions, rope_delta) = mrope::positions(&token_ids, &described, vision);
    let is_pad = |id: u32| id == vision.image_token_id || id == vision.video_token_id;
    let mut media_starts = Vec::new();
    let mut at = 0;
    for m in &media {
        while !is_pad(token_ids[at]) {
            at += 1;
        }
        media_starts.push(at);
        at += m.num_tokens(vision.merge_unit());
    }
    PromptInput { token_ids, positions, rope_delta, media, media_starts }
}

/// The largest difference and where it is.
pub fn max_diff(a: &[f32], b: &[f32]) -> (f32, usize) {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).enumerate().map(|(i, (x, y))| ((x - y).abs(), i)).fold((0.0, 0), |m, d| if d.0 > m.0 || d.0.is_nan() { d } else { m })
}

pub fn assert_close(stage: &str, ours: &[f32], golden: &[f32], tolerance: f32) {
    let (diff, at) = max_diff(ours, golden);
    assert!(diff <= tolerance, "{stage}: off by {diff} (tolerance {tolerance}) at element {at}: {} against {}", ours[at], golden[at]);
}
