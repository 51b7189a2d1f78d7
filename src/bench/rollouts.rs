//! The whole of a rollout: images decoded and resized, completions scored with the default rewards, advantages.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use image::{ImageFormat, RgbImage};
use serde_json::json;

use super::workload::Workload;
use super::{Run, prompt_ids};
use crate::engine::handle::EngineHandle;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::processor::{Processor, ProcessorOptions};
use crate::rng::philox;
use crate::rollout::generator::Generator;
use crate::rollout::limits::Limits;
use crate::rollout::reply::GroupReply;
use crate::rollout::request::{GroupBody, RolloutRequest, SamplingBody};
use crate::rollout::service::{QueueOptions, RolloutService};
use crate::store::{Clock, SqliteStore, StoreOptions};

pub struct Rollouts {
    service: RolloutService,
    model: ModelConfig,
    /// Whether samples are wanted, not only their time.
    keep: bool,
}

impl Rollouts {
    pub fn new(folder: &Path, model: &ModelConfig, engine: EngineHandle, keep: bool) -> Result<Self> {
        let processor = Processor::load(folder, model, ProcessorOptions::default())?;
        let limits = Limits { max_groups_per_request: usize::MAX, ..Limits::default() };
        let generator = Generator::new(Arc::new(processor), engine, model, limits);
        let store = Arc::new(SqliteStore::in_memory(StoreOptions::default(), Clock::system())?);
        let service = RolloutService::new(Arc::new(generator), "bench", store, QueueOptions::default());
        Ok(Rollouts { service, model: model.clone(), keep })
    }

    pub async fn run(&self, w: Workload, seed: u32) -> Result<Run> {
        let groups = (0..w.num_prompts).map(|index| self.group(w, seed, index)).collect::<Result<Vec<_>>>()?;
        let sampling = SamplingBody { max_tokens: Some(w.output.max()), ignore_eos: Some(true), ..Default::default() };
        let request = RolloutRequest {
            groups,
            num_generations: Some(w.num_generations),
            seed: Some(u64::from(seed)),
            sampling: Some(sampling),
            ..Default::default()
        };
        let started = Instant::now();
        let reply = self.service.run(request).await?;
        let time = started.elapsed();
        let mut run = Run { time, tokens: 0, samples: Vec::new(), prompt_tokens: 0, patches: 0 };
        for group in &reply.groups {
            let GroupReply::Scored(group) = group else { return Err(Error::Setup(format!("a group failed: {group:?}"))) };
            run.prompt_tokens = group.prompt_token_ids.len();
            run.patches = group.images.iter().map(|image| image.grid_thw.iter().product::<usize>()).sum();
            for sample in &group.samples {
                let len = sample.token_ids.len();
                if len != w.output.max() || sample.logps.as_ref().is_none_or(|logps| logps.len() != len) {
                    return Err(Error::Setup(format!("a sample of {len} tokens: {:?}", sample.status)));
                }
                run.tokens += len;
                if self.keep {
                    run.samples.push(json!({"prompt": group.prompt_token_ids, "completion": sample.token_ids, "logp": sample.logps}));
                }
            }
        }
        Ok(run)
    }

    fn group(&self, w: Workload, seed: u32, index: usize) -> Result<GroupBody> {
        let vision = self.model.vision.as_ref();
        let special =
            vision.map_or(Vec::new(), |v| vec![v.image_token_id, v.video_token_id, v.vision_start_token_id, v.vision_end_token_id]);
        let mut ids = prompt_ids(self.model.vocab_size, &special, seed, index, w.prompt_len).to_vec();
        let images = match (w.image, vision) {
            (None, _) => None,
            (Some(_), None) => return Err(Error::Setup("a text model sees no images".into())),
            (Some(size), Some(vision)) => {
                ids.splice(0..0, [vision.vision_start_token_id, vision.image_token_id, vision.vision_end_token_id]);
                Some(vec![picture(size, seed, index)?])
            }
        };
        Ok(GroupBody { prompt_token_ids: Some(ids), images, solution: Some(json!("4")), ..Default::default() })
    }
}

/// A JPEG with something of a photograph: slopes with noise on them.
fn picture((width, height): (u32, u32), seed: u32, index: usize) -> Result<String> {
    let [a, b, c, _] = philox([index as u32, 7, 0, 0], [seed, 7]).map(|word| word % 64);
    let mut noise = a | 1;
    let image = RgbImage::from_fn(width, height, |x, y| {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        let grain = noise % 24;
        image::Rgb([(x / 8 + a + grain) as u8, (y / 8 + b + grain) as u8, ((x + y) / 16 + c + grain) as u8])
    });
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, ImageFormat::Jpeg).map_err(|e| Error::Setup(format!("a picture for the bench: {e}")))?;
    Ok(format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(file.into_inner())))
}
