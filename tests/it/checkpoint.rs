//! Checkpoints as trainers write them, and checkpoints that are wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use grouper::backends::cpu::Cpu;
use grouper::error::Error;
use grouper::model::Model;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use crate::golden;

pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// tiny-vl's tensors, both shards.
pub fn tensors() -> Tensors {
    let mut all = Tensors::new();
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let bytes = std::fs::read(golden::model("tiny-vl").join(shard)).unwrap();
        for (name, t) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            all.insert(name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
        }
    }
    all
}

/// A model folder of tiny-vl with these tensors in one file.
fn folder(tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden::model("tiny-vl").join("config.json"), folder.path().join("config.json")).unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

fn load(folder: &Path) -> Result<(), Error> {
    Model::load(&Cpu::<f32>::new(1).unwrap(), folder).map(|_| ())
}

fn refused(tensors: &Tensors) -> String {
    load(folder(tensors).path()).expect_err("the checkpoint was accepted").to_string()
}

/// Renames, as a trainer's `state_dict()` does.
pub fn trainer_spelling(name: &str) -> String {
    match name.strip_prefix("visual.") {
        Some(rest) => format!("model.visual.{rest}"),
        None => name.strip_prefix("model.").map_or(name.to_owned(), |rest| format!("model.language_model.{rest}")),
    }
}

pub fn cast(tensors: &Tensors, dtype: Dtype) -> Tensors {
    let convert = |bytes: &[u8]| -> Vec<u8> {
        let values = bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32());
        match dtype {
            Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
            Dtype::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => bytes.to_vec(),
        }
    };
    tensors.iter().map(|(name, (_, shape, bytes))| (name.clone(), (dtype, shape.clone(), convert(bytes)))).collect()
}

#[test]
fn every_spelling_type_and_tie_loads() {
    let hub = tensors();
    load(&golden::model("tiny-vl")).unwrap();
    load(folder(&hub).path()).unwrap();
    let renamed: Tensors = hub.iter().map(|(name, t)| (trainer_spelling(name), t.clone())).collect();
    load(folder(&renamed).path()).unwrap();
    for dtype in [Dtype::F32, Dtype::F16] {
        load(folder(&cast(&hub, dtype)).path()).unwrap();
    }
    // A head that repeats the tied embeddings is allowed.
    let mut with_head = hub.clone();
    with_head.insert("lm_head.weight".into(), hub["model.embed_tokens.weight"].clone());
    load(folder(&with_head).path()).unwrap();
}

#[test]
fn the_tensor_at_fault_is_named() {
    const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
    let hub = tensors();
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = hub.clone();
        change(&mut tensors);
        refused(&tensors)
    };
    let missing = changed(&|t| drop(t.remove(DOWN)));
    assert!(missing.contains(DOWN) && missing.contains("missing"), "{missing}");
    let superfluous = changed(&|t| drop(t.insert("model.layers.9.mlp.down_proj.weight".into(), hub[DOWN].clone())));
    assert!(superfluous.contains("model.layers.9.mlp.down_proj.weight"), "{superfluous}");
    let reshaped = changed(&|t| {
        let (dtype, shape, bytes) = hub[DOWN].clone();
        t.insert(DOWN.into(), (dtype, vec![shape[1], shape[0]], bytes));
    });
    assert!(reshaped.contains(DOWN) && reshaped.contains("[256, 128]") && reshaped.contains("[128, 256]"), "{reshaped}");
    let integers = changed(&|t| {
        let (_, shape, bytes) = hub[DOWN].clone();
        t.insert(DOWN.into(), (Dtype::I16, shape, bytes));
    });
    assert!(integers.contains(DOWN) && integers.contains("I16"), "{integers}");
    let twice = changed(&|t| drop(t.insert(trainer_spelling(DOWN), hub[DOWN].clone())));
    assert!(twice.contains(DOWN) && twice.contains("twice"), "{twice}");
}

#[test]
fn a_damaged_file_is_named() {
    let whole = folder(&tensors());
    let path: PathBuf = whole.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for damaged in [&bytes[..bytes.len() - 10], &bytes[..100], &[][..]] {
        std::fs::write(&path, damaged).unwrap();
        let error = load(whole.path()).expect_err("a truncated file was accepted").to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(load(whole.path()).expect_err("no file was accepted").to_string().contains("model.safetensors"));
}
