//! New weights, checked whole before anything is changed: names, shapes, types, every number finite, and a digest of it all.

use std::collections::{BTreeMap, BTreeSet};

use half::bf16;
use rayon::prelude::*;
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::param::TensorSpec;
use super::weights::{Checkpoint, Tensor};
use crate::backends::FloatData;
use crate::error::{Error, Result};

pub type WeightsDigest = [u8; 32];

/// How much of the model a checkpoint has to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Whole,
    /// Any of its tensors, at least one.
    Partial,
}

/// Tensors that fit the model and may be written at any time.
pub struct Update {
    checkpoint: Checkpoint,
    facts: Facts,
}

/// What is known about checked weights.
#[derive(Clone, Debug)]
pub struct Facts {
    /// SHA-256 over every tensor in the order of hub names: name, 0, type as safetensors spells it, 0, shape as `2,3`, 0, SHA-256 of
    /// the bytes. A tied head is left out.
    pub digest: WeightsDigest,
    pub num_tensors: usize,
    pub bytes: usize,
    /// Types that are rounded to the serving type, with the number of tensors.
    pub rounded: BTreeMap<String, usize>,
}

impl Update {
    /// `to_bf16`: matrices are served in bf16.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, unknown, misshapen, of another type or not finite, by name.
    pub fn check(checkpoint: Checkpoint, specs: &[TensorSpec], extent: Extent, to_bf16: bool) -> Result<Self> {
        let facts = check(&checkpoint, specs, extent, to_bf16)?;
        Ok(Update { checkpoint, facts })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// `None` where a partial update does not bring it.
    pub fn tensor(&self, spec: &TensorSpec) -> Option<Tensor<'_>> {
        self.checkpoint.tensor(spec).ok()
    }
}

/// As [`Update::check`], for weights that are loaded.
pub fn check(checkpoint: &Checkpoint, specs: &[TensorSpec], extent: Extent, to_bf16: bool) -> Result<Facts> {
    check_names(checkpoint, specs)?;
    let mut brought: Vec<&TensorSpec> = specs.iter().filter(|spec| extent == Extent::Whole || checkpoint.has(spec)).collect();
    if brought.is_empty() {
        return Err(Error::Model("there is no tensor of the model in it".into()));
    }
    brought.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let tensors = brought.iter().map(|spec| checkpoint.tensor(spec)).collect::<Result<Vec<_>>>()?;
    for spec in &brought {
        if !checkpoint.alias_agrees(spec)? {
            let alias = spec.alias.as_deref().unwrap_or_default();
            return Err(Error::Model(format!("tensor {alias} differs from {}, to which config.json ties it", spec.name)));
        }
    }
    // Not the first that fails in time but in order, so that a refusal is the same every time.
    let digests: Vec<Result<[u8; 32]>> = brought
        .par_iter()
        .zip(&tensors)
        .map(|(spec, tensor)| {
            check_finite(&spec.name, &tensor.data(), to_bf16 && spec.matrix)?;
            Ok(Sha256::digest(checkpoint.bytes(spec)).into())
        })
        .collect();
    let mut hash = Sha256::new();
    let mut facts = Facts { digest: [0; 32], num_tensors: brought.len(), bytes: 0, rounded: BTreeMap::new() };
    for (spec, digest) in brought.iter().zip(digests) {
        let dtype = checkpoint.dtype(spec);
        let shape: Vec<String> = spec.shape.iter().map(usize::to_string).collect();
        hash.update(format!("{}\0{dtype:?}\0{}\0", spec.name, shape.join(",")));
        hash.update(digest?);
        facts.bytes += checkpoint.bytes(spec).len();
        if to_bf16 && spec.matrix && dtype != Dtype::BF16 {
            *facts.rounded.entry(format!("{dtype:?}")).or_default() += 1;
        }
    }
    facts.digest = hash.finalize().into();
    Ok(facts)
}

/// Rotary frequencies, which old exports store, are recomputed.
fn check_names(checkpoint: &Checkpoint, specs: &[TensorSpec]) -> Result<()> {
    let known: BTreeSet<&str> = specs.iter().flat_map(|spec| [Some(spec.name.as_str()), spec.alias.as_deref()]).flatten().collect();
    let harmless = |name: &str| name.ends_with("rotary_emb.inv_freq") || name.ends_with("rotary_pos_emb.inv_freq");
    let left: Vec<&str> = checkpoint.names().filter(|name| !known.contains(name) && !harmless(name)).collect();
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

fn check_finite(name: &str, data: &FloatData<'_>, to_bf16: bool) -> Result<()> {
    let fits = |x: f32| if to_bf16 { bf16::from_f32(x).is_finite() } else { x.is_finite() };
    let wrong = match data {
        FloatData::F32(v) => v.par_iter().position_first(|x| !fits(*x)),
        FloatData::F16(v) => v.par_iter().position_first(|x| !x.is_finite()),
        FloatData::Bf16(v) => v.par_iter().position_first(|x| !x.is_finite()),
    };
    match wrong.map(|at| (at, data.get(at))) {
        None => Ok(()),
        Some((at, value)) if value.is_finite() => {
            Err(Error::Model(format!("tensor {name}: element {at} is {value:e}, which bfloat16 does not hold")))
        }
        Some((at, value)) => Err(Error::Model(format!("tensor {name}: element {at} is {value}, not a finite number"))),
    }
}
