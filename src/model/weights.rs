//! Safetensors of a Hugging Face folder, a file or a request's body, read by hub names.
//!
//! Trainers spell tensors in two ways (`visual.…` / `model.visual.…`, `model.layers.…` / `model.language_model.layers.…`); both are
//! read as the hub's. What is missing, there twice or misshapen is an error that names it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::{Mmap, MmapMut, MmapOptions};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::param::TensorSpec;
use crate::backends::FloatData;
use crate::error::{Error, Result};

/// Bytes that one thread reads or compares at a time.
const READ: usize = 8 << 20;

#[derive(Default)]
pub struct Checkpoint {
    files: Vec<Bytes>,
    tensors: BTreeMap<String, Entry>,
}

type Bytes = Box<dyn AsRef<[u8]> + Send + Sync>;

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// Values of a tensor: borrowed from the file, or copied where the file does not align them.
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
    /// Maps the files of a model folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut checkpoint = Checkpoint::default();
        for path in shards(folder)? {
            let map = map_file(&path)?;
            checkpoint.add(path, map)?;
        }
        Ok(checkpoint)
    }

    /// Reads a file, or the files of a model folder, into memory: whoever wrote them may change them, and what was checked is what
    /// is used.
    pub fn read(path: &Path) -> Result<Self> {
        let mut checkpoint = Checkpoint::default();
        let paths = if path.is_dir() { shards(path)? } else { vec![path.to_owned()] };
        for path in paths {
            let bytes = read_file(&path)?;
            checkpoint.add(path, bytes)?;
        }
        Ok(checkpoint)
    }

    /// Adds the tensors of a safetensors file, all or none.
    ///
    /// # Errors
    ///
    /// No such file, and a tensor that is there already.
    pub fn add(&mut self, path: impl Into<PathBuf>, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<()> {
        let path: PathBuf = path.into();
        let data = bytes.as_ref();
        let (header_len, metadata) = SafeTensors::read_metadata(data).map_err(|e| match blame(data) {
            Some(fault) => Error::file(&path, fault),
            None => Error::file(&path, format!("not a valid safetensors file: {e}")),
        })?;
        // The header is preceded by its own length in eight bytes.
        let data_start = 8 + header_len;
        let mut found = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry =
                Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), bytes: data_start + start..data_start + end };
            if entry.bytes.end > data.len() {
                return Err(Error::file(&path, format!("tensor {name} ends at byte {}, the file at {}", entry.bytes.end, data.len())));
            }
            let hub_name = hub_name(&name);
            if self.tensors.contains_key(&hub_name) || found.contains_key(&hub_name) {
                return Err(Error::file(&path, format!("tensor {hub_name} is there twice")));
            }
            found.insert(hub_name, entry);
        }
        self.tensors.append(&mut found);
        self.files.push(Box::new(bytes));
        Ok(())
    }

    /// Hub names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn num_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Bytes that it keeps in memory or mapped.
    pub fn total_bytes(&self) -> usize {
        self.files.iter().map(|file| file.as_ref().as_ref().len()).sum()
    }

    fn entry(&self, spec: &TensorSpec) -> Option<&Entry> {
        self.tensors.get(&spec.name).or_else(|| self.tensors.get(spec.alias.as_ref()?))
    }

    pub fn has(&self, spec: &TensorSpec) -> bool {
        self.entry(spec).is_some()
    }

    /// The tensor that is asked for.
    ///
    /// # Errors
    ///
    /// It is missing, of another shape or no tensor of floating-point numbers that are served.
    pub fn tensor(&self, spec: &TensorSpec) -> Result<Tensor<'_>> {
        let TensorSpec { name, shape, .. } = spec;
        let entry = self.entry(spec).ok_or_else(|| Error::Model(format!("tensor {name} {shape:?} is missing from the checkpoint")))?;
        if entry.shape != *shape {
            return Err(Error::Model(format!("tensor {name} has shape {:?}, the config asks for {shape:?}", entry.shape)));
        }
        self.values(entry).ok_or_else(|| Error::Model(format!("tensor {name} has dtype {:?}: F32, F16 and BF16 are served", entry.dtype)))
    }

    fn values(&self, entry: &Entry) -> Option<Tensor<'_>> {
        let bytes = self.raw(entry);
        match entry.dtype {
            Dtype::F32 => Some(Tensor::F32(cast(bytes, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])))),
            Dtype::F16 => Some(Tensor::F16(cast(bytes, |b| f16::from_le_bytes([b[0], b[1]])))),
            Dtype::BF16 => Some(Tensor::Bf16(cast(bytes, |b| bf16::from_le_bytes([b[0], b[1]])))),
            _ => None,
        }
    }

    fn raw(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file].as_ref().as_ref()[entry.bytes.clone()]
    }

    /// The bytes of a tensor that is there.
    pub fn bytes(&self, spec: &TensorSpec) -> &[u8] {
        self.entry(spec).map_or(&[], |entry| self.raw(entry))
    }

    pub fn dtype(&self, spec: &TensorSpec) -> Dtype {
        self.entry(spec).map_or(Dtype::F32, |entry| entry.dtype)
    }

    /// Whether a tensor and its alias, where both are there, have the same values.
    pub fn alias_agrees(&self, spec: &TensorSpec) -> Result<bool> {
        let both = self.tensors.get(&spec.name).zip(spec.alias.as_ref().and_then(|alias| self.tensors.get(alias)));
        let Some((own, other)) = both else { return Ok(true) };
        if own.shape != other.shape {
            return Ok(false);
        }
        let same = |own: &[u8], other: &[u8]| own.par_chunks(READ).zip(other.par_chunks(READ)).all(|(own, other)| own == other);
        if own.dtype == other.dtype && same(self.raw(own), self.raw(other)) {
            return Ok(true);
        }
        let (Some(own), Some(other)) = (self.values(own), self.values(other)) else { return Ok(false) };
        let (own, other) = (own.data(), other.data());
        Ok((0..own.len()).all(|i| own.get(i) == other.get(i)))
    }
}

/// The tensor at fault in a header that does not hold together.
fn blame(data: &[u8]) -> Option<String> {
    let len = usize::try_from(u64::from_le_bytes(data.get(..8)?.try_into().ok()?)).ok()?;
    let header: Value = serde_json::from_slice(data.get(8..8usize.checked_add(len)?)?).ok()?;
    let room = (data.len() - 8 - len) as u64;
    let mut ranges = Vec::new();
    for (name, info) in header.as_object()?.iter().filter(|(name, _)| *name != "__metadata__") {
        let Ok(dtype) = serde_json::from_value::<Dtype>(info["dtype"].clone()) else {
            return Some(format!("tensor {name} has dtype {}: F32, F16 and BF16 are served", info["dtype"]));
        };
        let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>();
        let (Some(shape), Some(offsets)) = (numbers(&info["shape"]), numbers(&info["data_offsets"])) else {
            return Some(format!("tensor {name} has no shape and data_offsets that are lists of counts"));
        };
        let [start, end] = offsets[..] else { return Some(format!("tensor {name} has {} data_offsets, not 2", offsets.len())) };
        let bits = shape.iter().try_fold(dtype.bitsize() as u64, |n, d| n.checked_mul(*d));
        if bits.is_none_or(|bits| end.checked_sub(start) != Some(bits / 8)) {
            return Some(format!("tensor {name} of shape {shape:?} and dtype {dtype:?} does not take bytes {start} to {end}"));
        }
        if end > room {
            return Some(format!("tensor {name} ends at byte {end} of the data, which has {room}: the file is cut"));
        }
        ranges.push((start, end, name));
    }
    ranges.sort_unstable();
    let mut at = 0;
    for (start, end, name) in ranges {
        if start != at {
            let how = if start < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Some(format!("tensor {name} at bytes {start} to {end} {how}"));
        }
        at = end;
    }
    (at != room).then(|| format!("the tensors take {at} bytes of the data, which has {room}"))
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

/// Large pages, where the system has them, and all cores: a page at a time, one core needs seconds for a large model.
fn read_file(path: &Path) -> Result<MmapMut> {
    let failed = |e| Error::file(path, e);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    let mut bytes = MmapOptions::new().len(metadata.len() as usize).map_anon().map_err(failed)?;
    // A hint; without it the memory is the same.
    #[cfg(target_os = "linux")]
    let _ = bytes.advise(memmap2::Advice::HugePage);
    bytes.par_chunks_mut(READ).enumerate().try_for_each(|(i, part)| file.read_exact_at(part, (i * READ) as u64)).map_err(failed)?;
    Ok(bytes)
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
