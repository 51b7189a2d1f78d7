//! Qwen2.5-VL and Qwen2.5, written once over [`Backend`]: the model never sees a device.

pub mod activations;
pub mod config;
pub mod decoder;
pub mod input;
pub mod mrope;
pub mod vision;
pub mod weights;
pub mod windows;

use std::path::Path;

use crate::backends::{Backend, Element, Matrix};
use crate::error::Result;
use config::ModelConfig;
use decoder::Decoder;
use vision::VisionTower;
use weights::Checkpoint;

pub struct Model<B: Backend> {
    pub config: ModelConfig,
    pub decoder: Decoder<B>,
    /// `None` for a text model.
    pub vision: Option<VisionTower<B>>,
}

impl<B: Backend> Model<B> {
    /// Loads a Hugging Face folder as it is. Errors name the file or the tensor.
    pub fn load(b: &B, folder: &Path) -> Result<Self> {
        let config = ModelConfig::load(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let decoder = Decoder::load(b, &config, &checkpoint)?;
        let vision = config.vision.as_ref().map(|v| VisionTower::load(b, v, &checkpoint)).transpose()?;
        checkpoint.finish(config.tie_word_embeddings)?;
        Ok(Model { config, decoder, vision })
    }
}

fn upload_new<B: Backend, T: Element>(b: &B, values: &[T]) -> Result<B::Buf<T>> {
    let mut buffer = b.alloc(values.len())?;
    b.upload(values, &mut buffer);
    Ok(buffer)
}

fn upload_vector<B: Backend>(b: &B, checkpoint: &Checkpoint, name: &str, len: usize) -> Result<B::Buf<f32>> {
    upload_new(b, &checkpoint.claim(name, &[len])?.to_f32())
}

/// The tensors `prefix + name + ".weight"` of `[rows, cols]` each, stacked into one GEMM operand.
fn load_weight<B: Backend>(b: &B, checkpoint: &Checkpoint, prefix: &str, names: &[(&str, usize)], cols: usize) -> Result<B::Weight> {
    let tensors =
        names.iter().map(|(name, rows)| checkpoint.claim(&format!("{prefix}{name}.weight"), &[*rows, cols])).collect::<Result<Vec<_>>>()?;
    let parts: Vec<Matrix<'_>> = names.iter().zip(&tensors).map(|((_, rows), t)| Matrix { rows: *rows, cols, data: t.data() }).collect();
    b.weight(&parts)
}
