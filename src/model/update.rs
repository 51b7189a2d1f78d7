//! New weights, checked whole before anything is changed: names, shapes, types, every number finite, and a digest of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rayon::prelude::*;
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::param::TensorSpec;
use super::weights::{Checkpoint, Tensor};
use crate::backends::FloatData;
use crate::error::{Error, Result};

pub type WeightsDigest = [u8; 32];

/// Bytes of a tensor that are hashed by themselves, so that a large one does not keep a single core busy. Part of the digest.
const PIECE: usize = 4 << 20;

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
    /// the SHA-256s of the pieces of 4 MiB that its bytes fall into. A tied head is left out.
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
    let of_tensor = |i: usize| (0..checkpoint.bytes(brought[i]).len()).step_by(PIECE).map(move |start| (i, start));
    let pieces: Vec<(usize, usize)> = (0..brought.len()).flat_map(of_tensor).collect();
    let digest_of = |(i, start): (usize, usize)| -> Result<[u8; 32]> {
        let (spec, bytes) = (brought[i], checkpoint.bytes(brought[i]));
        let piece = start..(start + PIECE).min(bytes.len());
        let size = checkpoint.dtype(spec).bitsize() / 8;
        check_finite(&spec.name, &tensors[i].data(), piece.start / size..piece.end / size, to_bf16 && spec.matrix)?;
        Ok(Sha256::digest(&bytes[piece]).into())
    };
    // Not the first that fails in time but in order, so that a refusal is the same every time.
    let digests: Vec<Result<[u8; 32]>> = pieces.par_iter().map(|piece| digest_of(*piece)).collect();
    let mut of_tensors = vec![Sha256::new(); brought.len()];
    for ((i, _), digest) in pieces.iter().zip(digests) {
        of_tensors[*i].update(digest?);
    }
    let mut hash = Sha256::new();
    let mut facts = Facts { digest: [0; 32], num_tensors: brought.len(), bytes: 0, rounded: BTreeMap::new() };
    for (spec, digest) in brought.iter().zip(of_tensors) {
        let dtype = checkpoint.dtype(spec);
        let shape: Vec<String> = spec.shape.iter().map(usize::to_string).collect();
        hash.update(format!("{}\0{dtype:?}\0{}\0", spec.name, shape.join(",")));
        hash.update(digest.finalize());
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

/// Looks at some values of a tensor. Without their sign, bits order as the values do, and what is not finite comes last.
fn check_finite(name: &str, data: &FloatData<'_>, values: Range<usize>, to_bf16: bool) -> Result<()> {
    // Half a step above the largest bf16 is rounded to infinity.
    let f32_limit = if to_bf16 { 0x7F7F_8000 } else { 0x7F80_0000 };
    let wrong = match data {
        FloatData::F32(v) => first(bytemuck::cast_slice(&v[values.clone()]), |bits: i32| bits & i32::MAX >= f32_limit),
        FloatData::F16(v) => first(bytemuck::cast_slice(&v[values.clone()]), |bits: i16| bits & i16::MAX >= 0x7C00),
        FloatData::Bf16(v) => first(bytemuck::cast_slice(&v[values.clone()]), |bits: i16| bits & i16::MAX >= 0x7F80),
    };
    match wrong.map(|at| (values.start + at, data.get(values.start + at))) {
        None => Ok(()),
        Some((at, value)) if value.is_finite() => {
            Err(Error::Model(format!("tensor {name}: element {at} is {value:e}, which bfloat16 does not hold")))
        }
        Some((at, value)) => Err(Error::Model(format!("tensor {name}: element {at} is {value}, not a finite number"))),
    }
}

/// Place of the first value of a kind. Runs are looked at without a branch a value, many at once; only one that has it is searched.
fn first<T: Copy>(values: &[T], is_wrong: impl Fn(T) -> bool) -> Option<usize> {
    const RUN: usize = 4096;
    let run = values.chunks(RUN).position(|run| run.iter().fold(false, |any, value| any | is_wrong(*value)))?;
    let within = values[run * RUN..].iter().position(|value| is_wrong(*value))?;
    Some(run * RUN + within)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn wrong(data: &FloatData<'_>, to_bf16: bool) -> Option<String> {
        check_finite("t", data, 0..data.len(), to_bf16).err().map(|e| e.to_string())
    }

    #[test]
    fn all_bits_are_judged_as_the_types_judge_them() {
        for bits in 0..=u16::MAX {
            let (brain, half) = ([bf16::from_bits(bits)], [f16::from_bits(bits)]);
            assert_eq!(wrong(&FloatData::Bf16(&brain), true).is_none(), brain[0].is_finite(), "{bits:x}");
            assert_eq!(wrong(&FloatData::F16(&half), true).is_none(), half[0].is_finite(), "{bits:x}");
            // The neighbourhood of every rounding, and of infinity.
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let single = [f32::from_bits(u32::from(bits) << 16 | low)];
                assert_eq!(wrong(&FloatData::F32(&single), false).is_none(), single[0].is_finite(), "{bits:x} {low:x}");
                assert_eq!(wrong(&FloatData::F32(&single), true).is_none(), bf16::from_f32(single[0]).is_finite(), "{bits:x} {low:x}");
            }
        }
    }

    /// A checkpoint of one f32 vector that falls into two pieces, and what the model asks for.
    fn two_pieces(values: &[f32]) -> (Checkpoint, Vec<TensorSpec>) {
        let shape = vec![values.len()];
        let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap();
        let mut checkpoint = Checkpoint::default();
        checkpoint.add("file", safetensors::serialize([("t", view)], None).unwrap()).unwrap();
        (checkpoint, vec![TensorSpec { name: "t".into(), alias: None, shape, matrix: false }])
    }

    #[test]
    fn a_tensor_is_looked_at_in_pieces() {
        let mut values: Vec<f32> = (0..PIECE / 4 + 1000).map(|i| i as f32).collect();
        let (checkpoint, specs) = two_pieces(&values);
        let facts = check(&checkpoint, &specs, Extent::Whole, false).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let pieces = [Sha256::digest(&bytes[..4 << 20]), Sha256::digest(&bytes[4 << 20..])].concat();
        let named = [format!("t\0F32\0{}\0", values.len()).as_bytes(), Sha256::digest(pieces).as_slice()].concat();
        assert_eq!(facts.digest, <[u8; 32]>::from(Sha256::digest(named)));
        let last = values.len() - 1;
        for at in [last, PIECE / 4, PIECE / 4 - 1, 0] {
            values[at] = f32::NAN;
            let (checkpoint, specs) = two_pieces(&values);
            let said = check(&checkpoint, &specs, Extent::Whole, false).unwrap_err().to_string();
            assert!(said.contains(&format!("tensor t: element {at} is NaN")), "{said}");
        }
    }

    #[test]
    fn the_first_of_several_is_named() {
        let mut values = vec![bf16::ONE; 10_000];
        assert_eq!(wrong(&FloatData::Bf16(&values), true), None);
        for at in [9_999, 4_096, 4_095, 17] {
            values[at] = bf16::NEG_INFINITY;
            let said = wrong(&FloatData::Bf16(&values), true).unwrap();
            assert!(said.contains(&format!("element {at} is -inf")), "{said}");
        }
        let said = check_finite("t", &FloatData::Bf16(&values), 18..10_000, true).unwrap_err().to_string();
        assert!(said.contains("element 4095 "), "{said}");
    }
}
