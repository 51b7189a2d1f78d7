//! New weights that another process holds on the same device.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::param::{Param, TensorSpec};
use super::update::{Extent, WeightsDigest};
use super::weights::hub_name;
use crate::backends::{Backend, FloatType, SharedTensor};
use crate::error::{Error, Result};

/// A tensor as its owner describes it.
#[derive(Clone, Debug)]
pub struct SharedPart {
    pub name: String,
    pub shape: Vec<usize>,
    pub memory: SharedTensor,
}

/// Tensors that fit the model by name, shape and type. What is in them is looked at on the device.
pub struct SharedUpdate {
    device_uuid: [u8; 16],
    /// Index of each tensor by its name in the model.
    index: BTreeMap<String, usize>,
    rounds: Vec<bool>,
    tensors: Vec<SharedTensor>,
}

impl SharedUpdate {
    /// # Errors
    ///
    /// A tensor that is missing, unknown, there twice or misshapen, by name.
    pub fn check(device_uuid: [u8; 16], parts: Vec<SharedPart>, specs: &[TensorSpec], extent: Extent) -> Result<Self> {
        let mut update = SharedUpdate { device_uuid, index: BTreeMap::new(), rounds: Vec::new(), tensors: Vec::new() };
        for part in parts {
            let name = hub_name(&part.name);
            let spec = specs.iter().find(|spec| spec.name == name || spec.alias.as_ref() == Some(&name));
            let spec = spec.ok_or_else(|| Error::Model(format!("tensor {name} is not in the model that config.json describes")))?;
            if part.shape != spec.shape {
                return Err(Error::Model(format!("tensor {name} has shape {:?}, the config asks for {:?}", part.shape, spec.shape)));
            }
            let known = update.index.get(&spec.name).map(|known| &update.tensors[*known]);
            // A tied head shares its memory with the embeddings.
            let same = |known: &SharedTensor| known.handle == part.memory.handle && known.offset == part.memory.offset;
            match known {
                Some(known) if name != spec.name && same(known) => continue,
                Some(_) => return Err(Error::Model(format!("tensor {name} is there twice"))),
                None => {}
            }
            update.index.insert(spec.name.clone(), update.tensors.len());
            update.rounds.push(spec.matrix);
            update.tensors.push(part.memory);
        }
        match specs.iter().find(|spec| !update.index.contains_key(&spec.name)) {
            Some(spec) if extent == Extent::Whole => Err(Error::Model(format!("tensor {} {:?} is missing", spec.name, spec.shape))),
            _ if update.tensors.is_empty() => Err(Error::Model("there is no tensor of the model in it".into())),
            _ => Ok(update),
        }
    }

    pub fn num_tensors(&self) -> usize {
        self.tensors.len()
    }

    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.len * tensor.dtype.bytes()).sum()
    }

    /// Types that are rounded to bf16, with the number of tensors.
    pub fn rounded(&self) -> BTreeMap<String, usize> {
        let mut rounded = BTreeMap::new();
        for (tensor, _) in self.tensors.iter().zip(&self.rounds).filter(|(tensor, rounds)| **rounds && tensor.dtype != FloatType::Bf16) {
            *rounded.entry(format!("{:?}", tensor.dtype).to_uppercase()).or_default() += 1;
        }
        rounded
    }

    /// Opens the memory, looks at every value and writes the parameters; the owner's memory is closed again on return.
    ///
    /// # Errors
    ///
    /// Memory that can't be opened, a value that is not finite; then nothing was written.
    pub fn apply<B: Backend>(&self, b: &B, params: Vec<Param<'_, B>>) -> Result<WeightsDigest> {
        let shared = b.open_shared(&self.device_uuid, &self.tensors)?;
        let checks = b.check_shared(&shared, &self.rounds);
        let mut hash = Sha256::new();
        for (name, i) in &self.index {
            if !checks[*i].finite {
                let message = format!("tensor {name} has an element that is not a finite number");
                return Err(Error::invalid_code("weights", "invalid_weights", message));
            }
            hash.update(format!("{name}\0{:?}\0{}\0", self.tensors[*i].dtype, self.tensors[*i].len));
            hash.update(checks[*i].checksum.to_le_bytes());
        }
        for mut param in params {
            param.rewrite_shared(b, &shared, &|spec: &TensorSpec| self.index.get(&spec.name).copied());
        }
        b.synchronize();
        Ok(hash.finalize().into())
    }
}
