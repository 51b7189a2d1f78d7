//! New weights that another process holds on the same device, checked whole before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::param::TensorSpec;
use super::update::{Extent, Facts};
use super::weights::hub_name;
use crate::backends::{DeviceValues, FloatType, SharedDoor, SharedMemory, SharedTensor};
use crate::error::{Error, Result};

/// A tensor as its owner describes it.
#[derive(Clone, Debug)]
pub struct SharedPart {
    pub name: String,
    pub shape: Vec<usize>,
    pub memory: SharedTensor,
}

/// Tensors that fit the model and may be copied at any time while their owner leaves them as they are. Dropping it closes the memory,
/// which takes a while.
pub struct SharedUpdate {
    opened: Opened,
    /// The values of those that are no matrices, by index.
    values: BTreeMap<usize, Vec<f32>>,
    facts: Facts,
}

/// Tensors that fit the model by name, shape and type.
pub struct Opened {
    memory: Box<dyn SharedMemory>,
    described: Described,
}

impl SharedUpdate {
    /// # Errors
    ///
    /// A tensor that is missing, unknown, there twice or misshapen, by name; memory that can't be opened.
    pub fn open(
        door: Option<Arc<dyn SharedDoor>>,
        device_uuid: [u8; 16],
        parts: Vec<SharedPart>,
        specs: &[TensorSpec],
        extent: Extent,
    ) -> Result<Opened> {
        let described = describe(parts, specs, extent)?;
        let message = "this server runs on the CPU; CUDA IPC needs its GPU";
        let door = door.ok_or_else(|| Error::invalid_code("device_uuid", "unsupported_parameter", message))?;
        Ok(Opened { memory: door.open(&device_uuid, &described.tensors)?, described })
    }

    /// Their digest is over the device's checksums.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A tensor on the device; `None` where a partial update does not bring it.
    pub fn matrix(&self, spec: &TensorSpec) -> Option<DeviceValues> {
        self.opened.described.index.get(&spec.name).map(|i| self.opened.memory.values(*i))
    }

    /// The values of a tensor that is no matrix.
    pub fn vector(&self, spec: &TensorSpec) -> Option<&[f32]> {
        self.values.get(self.opened.described.index.get(&spec.name)?).map(Vec::as_slice)
    }
}

impl Opened {
    /// Has the device look at every value.
    ///
    /// # Errors
    ///
    /// The first tensor, by name, that is not finite.
    pub fn check(self) -> Result<SharedUpdate> {
        let Opened { memory, described: Described { index, rounds, tensors } } = &self;
        let checks = memory.check(rounds);
        let mut hash = Sha256::new();
        for (name, i) in index {
            if !checks[*i].finite {
                return Err(Error::Model(format!("tensor {name} has an element that is not a finite number")));
            }
            hash.update(format!("{name}\0{:?}\0{}\0", tensors[*i].dtype, tensors[*i].len));
            hash.update(checks[*i].checksum.to_le_bytes());
        }
        let values = (0..tensors.len()).filter(|i| !rounds[*i]).map(|i| (i, memory.read(i))).collect();
        let bytes = tensors.iter().map(|tensor| tensor.len * tensor.dtype.bytes()).sum();
        let mut rounded = BTreeMap::new();
        for (tensor, _) in tensors.iter().zip(rounds).filter(|(tensor, rounds)| **rounds && tensor.dtype != FloatType::Bf16) {
            *rounded.entry(format!("{:?}", tensor.dtype).to_uppercase()).or_default() += 1;
        }
        let facts = Facts { digest: hash.finalize().into(), num_tensors: tensors.len(), bytes, rounded };
        Ok(SharedUpdate { opened: self, values, facts })
    }
}

struct Described {
    /// Index of each tensor by its name in the model.
    index: BTreeMap<String, usize>,
    /// Whether each enters GEMMs, as bf16.
    rounds: Vec<bool>,
    tensors: Vec<SharedTensor>,
}

fn describe(parts: Vec<SharedPart>, specs: &[TensorSpec], extent: Extent) -> Result<Described> {
    let mut found = Described { index: BTreeMap::new(), rounds: Vec::new(), tensors: Vec::new() };
    let mut names = BTreeSet::new();
    for part in parts {
        let name = hub_name(&part.name);
        let spec = specs.iter().find(|spec| spec.name == name || spec.alias.as_ref() == Some(&name));
        let spec = spec.ok_or_else(|| Error::Model(format!("tensor {name} is not in the model that config.json describes")))?;
        if part.shape != spec.shape {
            return Err(Error::Model(format!("tensor {name} has shape {:?}, the config asks for {:?}", part.shape, spec.shape)));
        }
        let known = found.index.get(&spec.name).map(|known| &found.tensors[*known]);
        // A tied head shares its memory with the embeddings.
        let same = known.is_some_and(|known| known.handle == part.memory.handle && known.offset == part.memory.offset);
        if known.is_some() && !same || !names.insert(name.clone()) {
            return Err(Error::Model(format!("tensor {name} is there twice")));
        }
        if same {
            continue;
        }
        found.index.insert(spec.name.clone(), found.tensors.len());
        found.rounds.push(spec.matrix);
        found.tensors.push(part.memory);
    }
    match specs.iter().find(|spec| !found.index.contains_key(&spec.name)) {
        Some(spec) if extent == Extent::Whole => Err(Error::Model(format!("tensor {} {:?} is missing", spec.name, spec.shape))),
        _ if found.tensors.is_empty() => Err(Error::Model("there is no tensor of the model in it".into())),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::SharedCheck;

    /// A device whose tensors hold their number; one of them may be broken.
    struct Fake {
        broken: Option<usize>,
    }

    struct FakeMemory {
        broken: Option<usize>,
        tensors: Vec<SharedTensor>,
    }

    impl SharedDoor for Fake {
        fn open(self: Arc<Self>, _device_uuid: &[u8; 16], tensors: &[SharedTensor]) -> Result<Box<dyn SharedMemory>> {
            Ok(Box::new(FakeMemory { broken: self.broken, tensors: tensors.to_vec() }))
        }
    }

    impl SharedMemory for FakeMemory {
        fn check(&self, rounds: &[bool]) -> Vec<SharedCheck> {
            assert_eq!(rounds.len(), self.tensors.len());
            let check = |offset| SharedCheck { finite: self.broken != Some(offset), checksum: offset as u64 };
            self.tensors.iter().map(|tensor| check(tensor.offset)).collect()
        }

        fn read(&self, index: usize) -> Vec<f32> {
            vec![self.tensors[index].offset as f32; self.tensors[index].len]
        }

        fn values(&self, index: usize) -> DeviceValues {
            let SharedTensor { offset, dtype, len, .. } = self.tensors[index];
            DeviceValues { address: offset as u64, dtype, len }
        }
    }

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, alias: Option<&str>, shape: &[usize], matrix| TensorSpec {
            name: name.to_owned(),
            alias: alias.map(str::to_owned),
            shape: shape.to_vec(),
            matrix,
        };
        vec![
            spec("model.embed_tokens.weight", Some("lm_head.weight"), &[4, 2], true),
            spec("model.norm.weight", None, &[2], false),
            spec("visual.merger.weight", None, &[3, 2], true),
        ]
    }

    fn part(name: &str, shape: &[usize], offset: usize, dtype: FloatType) -> SharedPart {
        let memory = SharedTensor { handle: [0; 64], offset, dtype, len: shape.iter().product() };
        SharedPart { name: name.to_owned(), shape: shape.to_vec(), memory }
    }

    fn parts() -> Vec<SharedPart> {
        vec![
            part("model.visual.merger.weight", &[3, 2], 64, FloatType::F16),
            part("model.language_model.embed_tokens.weight", &[4, 2], 16, FloatType::Bf16),
            part("lm_head.weight", &[4, 2], 16, FloatType::Bf16),
            part("model.norm.weight", &[2], 32, FloatType::F32),
        ]
    }

    fn check(parts: Vec<SharedPart>, extent: Extent, broken: Option<usize>) -> Result<SharedUpdate> {
        SharedUpdate::open(Some(Arc::new(Fake { broken })), [0; 16], parts, &specs(), extent)?.check()
    }

    #[test]
    fn tensors_are_found_by_their_hub_names() {
        let update = check(parts(), Extent::Whole, None).unwrap();
        let [embed, norm, merger] = &specs()[..] else { panic!() };
        assert_eq!(update.matrix(embed).map(|v| (v.address, v.dtype, v.len)), Some((16, FloatType::Bf16, 8)));
        assert_eq!(update.matrix(merger).map(|v| v.address), Some(64));
        assert_eq!((update.vector(norm), update.vector(embed)), (Some(&[32.0, 32.0][..]), None));
        let facts = update.facts();
        assert_eq!((facts.num_tensors, facts.bytes, &facts.rounded), (3, 16 + 8 + 12, &[("F16".to_owned(), 1)].into()));
        // The order in which they are listed is no part of the digest, their checksums are.
        let reversed = check(parts().into_iter().rev().collect(), Extent::Whole, None).unwrap();
        assert_eq!(reversed.facts().digest, facts.digest);
        let mut moved = parts();
        moved[3].memory.offset = 40;
        assert_ne!(check(moved, Extent::Whole, None).unwrap().facts().digest, facts.digest);
        let partial = check(parts().split_off(3), Extent::Partial, None).unwrap();
        assert!(partial.matrix(embed).is_none() && partial.vector(norm).is_some());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |parts, broken| check(parts, Extent::Whole, broken).err().expect("it was accepted").to_string();
        assert!(refused(parts(), Some(64)).contains("tensor visual.merger.weight has an element"));
        assert!(refused(parts().split_off(1), None).contains("tensor visual.merger.weight [3, 2] is missing"));
        let mut untied = parts();
        untied[2].memory.offset = 48;
        assert!(refused(untied, None).contains("lm_head.weight is there twice"));
        let nothing = SharedUpdate::open(None, [0; 16], parts(), &specs(), Extent::Whole).err().unwrap().to_string();
        assert!(nothing.contains("needs its GPU"), "{nothing}");
    }
}
