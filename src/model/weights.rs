//! The safetensors of a Hugging Face folder, mapped and read by hub names.
//!
//! Trainers spell tensors in two ways (`visual.…` / `model.visual.…`, `model.layers.…` / `model.language_model.layers.…`); both are
//! read as the hub's. A loader claims the tensors it needs, with their shapes; what is missing, left over or misshapen is an
//! error that names it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::backends::FloatData;
use crate::error::{Error, Result};

pub struct Checkpoint {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
    claimed: RefCell<BTreeSet<String>>,
}

struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A claimed tensor: borrowed from the map, or copied where the file does not align it.
pub enum Tensor<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
}

impl Tensor<'_> {
    pub fn data(&self) -> FloatData<'_> {
        match self {
            Tensor::F32(v) => FloatData::F32(v),
            Tensor::F16(v) => FloatData::F16(v),
            Tensor::Bf16(v) => FloatData::Bf16(v),
        }
    }

    pub fn to_f32(&self) -> Vec<f32> {
        let data = self.data();
        (0..data.len()).map(|i| data.get(i)).collect()
    }
}

impl Checkpoint {
    pub fn open(folder: &Path) -> Result<Self> {
        let mut checkpoint = Checkpoint { files: Vec::new(), tensors: BTreeMap::new(), claimed: RefCell::default() };
        for path in shards(folder)? {
            checkpoint.add(path)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let map = map_file(&path)?;
        let (header_len, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::file(&path, format!("not a valid safetensors file: {e}")))?;
        // The header is preceded by its own length in eight bytes.
        let data_start = 8 + header_len;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry =
                Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), bytes: data_start + start..data_start + end };
            if entry.bytes.end > map.len() {
                return Err(Error::file(&path, format!("tensor {name} ends at byte {}, the file at {}", entry.bytes.end, map.len())));
            }
            let hub_name = hub_name(&name);
            if let Some(other) = self.tensors.insert(hub_name.clone(), entry) {
                let first = self.files.get(other.file).map_or(&path, |f| &f.path);
                return Err(Error::file(&path, format!("tensor {hub_name} is there twice, first in {}", first.display())));
            }
        }
        self.files.push(MappedFile { path, map });
        Ok(())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this hub name, which must have this shape.
    pub fn claim(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let entry =
            self.tensors.get(name).ok_or_else(|| Error::Model(format!("tensor {name} {shape:?} is missing from the checkpoint")))?;
        if entry.shape != shape {
            return Err(Error::Model(format!("tensor {name} has shape {:?}, the config asks for {shape:?}", entry.shape)));
        }
        self.claimed.borrow_mut().insert(name.to_owned());
        let bytes = &self.files[entry.file].map[entry.bytes.clone()];
        match entry.dtype {
            Dtype::F32 => Ok(Tensor::F32(cast(bytes, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])))),
            Dtype::F16 => Ok(Tensor::F16(cast(bytes, |b| f16::from_le_bytes([b[0], b[1]])))),
            Dtype::BF16 => Ok(Tensor::Bf16(cast(bytes, |b| bf16::from_le_bytes([b[0], b[1]])))),
            other => Err(Error::Model(format!("tensor {name} has dtype {other:?}: F32, F16 and BF16 are served"))),
        }
    }

    /// Says which tensors nobody claimed. Rotary frequencies, which old exports store, are recomputed; a head that repeats tied
    /// embeddings is allowed.
    pub fn finish(&self, tied_head: bool) -> Result<()> {
        let claimed = self.claimed.borrow();
        let harmless = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || name.ends_with("rotary_pos_emb.inv_freq") || (tied_head && name == "lm_head.weight")
        };
        let left: Vec<&str> = self.tensors.keys().map(String::as_str).filter(|n| !claimed.contains(*n) && !harmless(n)).collect();
        match left.as_slice() {
            [] => Ok(()),
            [one] => Err(Error::Model(format!("tensor {one} is in the checkpoint but not in the model that config.json describes"))),
            [first, rest @ ..] => Err(Error::Model(format!(
                "{} tensors are in the checkpoint but not in the model that config.json describes: {first}, {}, …",
                left.len(),
                rest[0]
            ))),
        }
    }

    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes.len() as u64).sum()
    }
}

/// Views little-endian values in place where they are aligned, else decodes a copy.
fn cast<'a, T: bytemuck::Pod>(bytes: &'a [u8], decode: impl Fn(&[u8]) -> T) -> Cow<'a, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
        _ => Cow::Owned(bytes.chunks_exact(size_of::<T>()).map(decode).collect()),
    }
}

#[allow(unsafe_code)]
fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    // Safety: the map is read-only and lives as long as the load; a checkpoint that another process truncates meanwhile ends this
    // process with SIGBUS, as it does every safetensors loader.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, e))
}

fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return Err(Error::file(folder, "has neither model.safetensors nor model.safetensors.index.json"));
    }
    let text = std::fs::read_to_string(&index).map_err(|e| Error::file(&index, e))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| Error::file(&index, e))?;
    let map = json["weight_map"].as_object().ok_or_else(|| Error::file(&index, "has no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    names
        .into_iter()
        .map(|name| {
            let plain = Path::new(name).file_name().is_some_and(|f| f == name);
            if plain { Ok(folder.join(name)) } else { Err(Error::file(&index, format!("shard name {name:?} is a path"))) }
        })
        .collect()
}

/// The hub's spelling of a tensor name.
pub fn hub_name(name: &str) -> String {
    let name = name.strip_prefix("model.visual.").map(|rest| format!("visual.{rest}")).unwrap_or_else(|| name.to_owned());
    match name.strip_prefix("model.language_model.") {
        Some(rest) => format!("model.{rest}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one_name() {
        for (given, hub) in [
            ("model.visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
            ("visual.patch_embed.proj.weight", "visual.patch_embed.proj.weight"),
            ("model.language_model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
            ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("model.norm.weight", "model.norm.weight"),
            ("lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(hub_name(given), hub);
        }
    }

    #[test]
    fn unaligned_tensors_are_copied() {
        let bytes: Vec<u8> = [0u8].into_iter().chain(1.5f32.to_le_bytes()).chain((-2.0f32).to_le_bytes()).collect();
        let start = if (bytes.as_ptr() as usize).is_multiple_of(4) { 1 } else { 4 - bytes.as_ptr() as usize % 4 };
        if start == 1 {
            assert_eq!(cast(&bytes[1..], |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).as_ref(), [1.5, -2.0]);
        }
    }
}
