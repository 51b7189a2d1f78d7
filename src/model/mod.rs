//! Qwen2.5-VL and Qwen2.5, written once over [`Backend`]: the model never sees a device.

pub mod activations;
pub mod config;
pub mod decoder;
pub mod input;
pub mod mrope;
pub mod param;
pub mod shared;
pub mod update;
pub mod vision;
pub mod weights;
pub mod windows;

use std::path::Path;
use std::time::Instant;

use crate::backends::Backend;
use crate::error::Result;
use config::ModelConfig;
use decoder::Decoder;
use half::bf16;
use param::{Loader, Param, TensorSpec};
use shared::SharedUpdate;
use update::{Extent, Facts, Update};
use vision::VisionTower;
use weights::Checkpoint;

pub struct Model<B: Backend> {
    pub config: ModelConfig,
    pub decoder: Decoder<B>,
    /// `None` for a text model.
    pub vision: Option<VisionTower<B>>,
    /// What is known of the weights that it was loaded with.
    pub facts: Facts,
}

impl<B: Backend> Model<B> {
    /// Loads a Hugging Face folder as it is. Errors name the file or the tensor.
    pub fn load(b: &B, folder: &Path) -> Result<Self> {
        Self::load_known(b, folder, None)
    }

    /// As [`Model::load`], without looking at every number of files whose facts are known.
    pub fn load_known(b: &B, folder: &Path, facts: Option<Facts>) -> Result<Self> {
        let started = Instant::now();
        let config = ModelConfig::load(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let loader = Loader { b, checkpoint: &checkpoint };
        let mut decoder = Decoder::load(&loader, &config)?;
        let mut vision = config.vision.as_ref().map(|v| VisionTower::load(&loader, v)).transpose()?;
        let uploaded = started.elapsed().as_secs_f64();
        let specs = specs(params(&mut decoder, &mut vision));
        let check = || update::check(&checkpoint, &specs, Extent::Whole, Self::serves_bf16());
        let facts = facts.map_or_else(check, Ok)?;
        let (gigabytes, checked) = (facts.bytes as f64 / 1e9, started.elapsed().as_secs_f64() - uploaded);
        tracing::info!("{}: {gigabytes:.2} GB of weights handed over in {uploaded:.2} s, checked in {checked:.2} s", folder.display());
        Ok(Model { config, decoder, vision, facts })
    }

    /// Whether matrices are rounded to bf16.
    pub fn serves_bf16() -> bool {
        size_of::<B::Float>() == size_of::<bf16>()
    }

    /// What a checkpoint of the model consists of.
    pub fn specs(&mut self) -> Vec<TensorSpec> {
        specs(params(&mut self.decoder, &mut self.vision))
    }

    /// Writes new weights into the buffers that the old ones are in; nothing may be computed meanwhile.
    pub fn rewrite(&mut self, b: &B, update: &Update) {
        for mut param in params(&mut self.decoder, &mut self.vision) {
            param.rewrite(b, update);
        }
    }

    /// As [`Model::rewrite`], from another process's memory.
    pub fn rewrite_shared(&mut self, b: &B, update: &SharedUpdate) {
        for mut param in params(&mut self.decoder, &mut self.vision) {
            param.rewrite_shared(b, update);
        }
    }

    /// Takes over the weights of another instance of the same model.
    pub fn copy(&mut self, b: &B, from: &mut Self) {
        let from = params(&mut from.decoder, &mut from.vision);
        for (mut to, from) in params(&mut self.decoder, &mut self.vision).into_iter().zip(from) {
            to.copy(b, &from);
        }
    }
}

fn params<'a, B: Backend>(decoder: &'a mut Decoder<B>, vision: &'a mut Option<VisionTower<B>>) -> Vec<Param<'a, B>> {
    let mut params = decoder.params();
    params.extend(vision.iter_mut().flat_map(VisionTower::params));
    params
}

fn specs<B: Backend>(params: Vec<Param<'_, B>>) -> Vec<TensorSpec> {
    params.iter().flat_map(|param| param.parts().to_vec()).collect()
}
