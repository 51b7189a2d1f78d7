//! The device side of the engine: model, cache and step buffers, allocated once; a plan becomes uploads and kernel launches.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::handle::{Captured, EngineStats, MAX_BANNED_IDS, MAX_BIASED_IDS};
use super::plan::StepPlan;
use super::policy::NewWeights;
use super::scoring::Scorer;
use crate::backends::{Backend, LaunchTime, Memory, SampleInputs, SampleRow, Sampled, SamplerState, StepKey, TokenSource};
use crate::error::Result;
use crate::model::Model;
use crate::model::activations::{Activations, VisionActivations};
use crate::model::decoder::DecoderStep;
use crate::model::input::MediaInput;
use crate::model::update::Update;

/// Time for captures before the first request; what is left is captured when it first comes.
const CAPTURE_TIME: Duration = Duration::from_secs(1);

/// Sizes of the buffers, planned at start.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    pub max_rows: usize,
    pub max_draws: usize,
    /// Samples that run at once; rows that only fill up a step have one more slot.
    pub num_slots: usize,
    pub counts_rows: usize,
    /// Entries of the flat list of block tables.
    pub max_table: usize,
    pub max_patches: usize,
    pub vision_rows: usize,
}

pub struct Runner<B: Backend> {
    backend: B,
    model: Model<B>,
    reference: Option<Model<B>>,
    kv: Vec<B::Kv>,
    num_blocks: usize,
    act: Activations<B>,
    vision: Option<Vision<B>>,
    features: B::Buf<f32>,
    sampler: SamplerState<B>,
    step: StepBuffers<B>,
    sampled: B::Buf<Sampled>,
    max_draws: usize,
    max_patches: usize,
    spare_slot: u32,
    stats: Arc<EngineStats>,
}

struct Vision<B: Backend> {
    act: VisionActivations<B>,
}

/// Fixed device buffers for everything that changes between steps.
struct StepBuffers<B: Backend> {
    token_ids: B::Buf<u32>,
    token_slots: B::Buf<u32>,
    positions: B::Buf<i32>,
    slot_mapping: B::Buf<u32>,
    feature_pairs: B::Buf<u32>,
    logits_index: B::Buf<u32>,
    plan: B::AttentionPlan,
    draws: B::Buf<SampleRow>,
    banned: B::Buf<u32>,
    bias_ids: B::Buf<u32>,
    bias_values: B::Buf<f32>,
}

/// The model that a step is computed with.
fn scorer_of<'a, B: Backend>(plan: &StepPlan, model: &'a Model<B>, reference: &'a Option<Model<B>>) -> &'a Model<B> {
    match (plan.scorer, reference) {
        (Some(Scorer::Reference), Some(reference)) => reference,
        _ => model,
    }
}

/// A step on the device.
pub struct InFlight<B: Backend> {
    pub plan: Box<StepPlan>,
    ticket: B::Ticket,
}

impl<B: Backend> Runner<B> {
    /// Everything but the cache, which comes last.
    pub fn new(backend: B, model: Model<B>, reference: Option<Model<B>>, config: &RunnerConfig, stats: Arc<EngineStats>) -> Result<Self> {
        let b = &backend;
        let shape = model.decoder.shape();
        let vision = match &model.vision {
            Some(tower) => Some(Vision { act: VisionActivations::new(b, tower.config(), config.max_patches)? }),
            None => None,
        };
        let step = StepBuffers {
            token_ids: b.alloc(config.max_rows)?,
            token_slots: b.alloc(config.max_rows)?,
            positions: b.alloc(3 * config.max_rows)?,
            slot_mapping: b.alloc(config.max_rows)?,
            feature_pairs: b.alloc(2 * config.max_rows)?,
            logits_index: b.alloc(config.max_draws)?,
            plan: b.alloc_attention_plan(config.max_rows, config.max_rows, config.max_table, shape)?,
            draws: b.alloc(config.max_draws)?,
            banned: b.alloc(config.max_draws * MAX_BANNED_IDS)?,
            bias_ids: b.alloc(config.max_draws * MAX_BIASED_IDS)?,
            bias_values: b.alloc(config.max_draws * MAX_BIASED_IDS)?,
        };
        Ok(Runner {
            kv: Vec::new(),
            num_blocks: 0,
            act: Activations::new(b, &model.config, config.max_rows, config.max_draws)?,
            vision,
            features: b.alloc(config.vision_rows * model.config.hidden_size)?,
            sampler: SamplerState::new(b, config.num_slots + 1, config.counts_rows, model.config.vocab_size)?,
            step,
            sampled: b.alloc(config.max_draws)?,
            max_draws: config.max_draws,
            max_patches: config.max_patches,
            spare_slot: config.num_slots as u32,
            model,
            reference,
            stats,
            backend,
        })
    }

    /// What is left of the device's memory; `None` where that is the host's.
    pub fn memory(&self) -> Option<Memory> {
        self.backend.memory()
    }

    pub fn launch_times(&self) -> Vec<LaunchTime> {
        self.backend.launch_times()
    }

    pub fn alloc_cache(&mut self, num_blocks: usize) -> Result<()> {
        let (b, shape) = (&self.backend, self.model.decoder.shape());
        self.kv = (0..self.model.decoder.num_layers()).map(|_| b.alloc_kv(num_blocks, shape)).collect::<Result<_>>()?;
        self.num_blocks = num_blocks;
        Ok(())
    }

    /// Gives the cache's memory back and says how much it was.
    pub fn free_cache(&mut self) -> usize {
        self.backend.synchronize();
        self.backend.forget_graphs();
        let (layers, num_blocks) = (self.kv.len(), self.num_blocks);
        self.kv.clear();
        layers * num_blocks * self.backend.kv_block_bytes(self.model.decoder.shape())
    }

    /// Runs decode steps of nobody, so that a device that replays steps has captured them before somebody waits for one.
    pub fn capture_steps(&mut self) -> Captured {
        let (started, before) = (Instant::now(), self.memory());
        let mut rows = self.backend.captured_rows(self.max_draws);
        rows.reverse();
        let mut done = 0;
        while done < rows.len() && started.elapsed() < CAPTURE_TIME {
            // The first launch loads what a capture can't, the second is captured.
            for _ in 0..2 {
                let mut plan = StepPlan::default();
                plan.pad(rows[done], self.spare_slot);
                let step = self.submit(Box::new(plan));
                self.wait(step);
            }
            done += 1;
        }
        rows.truncate(done);
        let free = |memory: Option<Memory>| memory.map_or(0, |memory| memory.free);
        Captured { rows, time: started.elapsed(), bytes: free(before).saturating_sub(free(self.memory())) }
    }

    pub fn has_reference(&self) -> bool {
        self.reference.is_some()
    }

    /// Draws of one step.
    pub fn max_draws(&self) -> usize {
        self.max_draws
    }

    /// A slot that no sample has.
    pub fn spare_slot(&self) -> u32 {
        self.spare_slot
    }

    /// Makes the present weights, or those of an update, the reference.
    pub fn freeze(&mut self, update: Option<&Update>) {
        let Some(reference) = &mut self.reference else { return };
        match update {
            Some(update) => reference.rewrite(&self.backend, update),
            None => reference.copy(&self.backend, &mut self.model),
        }
        self.backend.synchronize();
    }

    /// New weights in place of the old ones; no step may be in flight. Nothing reads the new ones' memory when it returns.
    pub fn rewrite(&mut self, weights: &NewWeights) {
        match weights {
            NewWeights::Same => {}
            NewWeights::Host(update) => self.model.rewrite(&self.backend, update),
            NewWeights::Shared(update) => self.model.rewrite_shared(&self.backend, update),
        }
        self.backend.synchronize();
    }

    /// Launches a step. Everything it needs is uploaded first; nothing is allocated on the device.
    pub fn submit(&mut self, mut plan: Box<StepPlan>) -> InFlight<B> {
        self.encode(&plan);
        let started = Instant::now();
        let num_draws = plan.draws.len();
        let decode = plan.is_decode();
        if decode {
            plan.pad(self.backend.step_rows(plan.num_rows()), self.spare_slot);
        }
        self.upload(&plan);
        let uploaded = Instant::now();
        for reset in &plan.resets {
            self.backend.reset_slot(&mut self.sampler, reset.slot, reset.counts_row, &reset.prompt, &reset.completion);
        }
        let mut forwarded = None;
        let plain = plan.draws_plainly();
        let Runner { backend, model, reference, kv, act, features, sampler, step, sampled, .. } = self;
        // A replayed step runs none of this: what it reads is in buffers, what it was captured with is the same for its key.
        let mut run = |b: &B| {
            let inputs = DecoderStep {
                source: TokenSource { ids: &step.token_ids, slots: &step.token_slots, last_tokens: &sampler.last_tokens },
                positions: &step.positions,
                slot_mapping: &step.slot_mapping,
                plan: &step.plan,
                rows: plan.num_rows(),
                features,
                feature_pairs: &step.feature_pairs,
                num_features: plan.features.len(),
                logits_index: &step.logits_index,
                num_logits: plan.logits_index.len(),
            };
            let decoder = &scorer_of(&plan, model, reference).decoder;
            decoder.forward(b, &inputs, kv, act);
            forwarded = Some(Instant::now());
            if !plan.draws.is_empty() {
                let StepBuffers { draws: rows, banned, bias_ids, bias_values, .. } = &*step;
                let inputs = SampleInputs { plain, rows, banned, bias_ids, bias_values };
                decoder.sample(b, [plan.logits_index.len(), plan.draws.len()], inputs, act, sampler, sampled);
            }
        };
        match decode {
            true => backend.graphed(StepKey { rows: plan.num_rows(), plain }, run),
            false => run(backend),
        }
        let ticket = self.backend.submit(&self.sampled, num_draws);
        let forwarded = forwarded.unwrap_or_else(Instant::now);
        self.stats.plan_ns.fetch_add((uploaded - started).as_nanos() as u64, Relaxed);
        self.stats.forward_ns.fetch_add((forwarded - uploaded).as_nanos() as u64, Relaxed);
        self.stats.sample_ns.fetch_add(forwarded.elapsed().as_nanos() as u64, Relaxed);
        InFlight { plan, ticket }
    }

    /// Waits for a step and returns its draws, in the order of its plan.
    pub fn wait(&self, step: InFlight<B>) -> (Box<StepPlan>, Vec<Sampled>) {
        let waiting = Instant::now();
        let sampled = self.backend.wait(step.ticket);
        self.stats.wait_ns.fetch_add(waiting.elapsed().as_nanos() as u64, Relaxed);
        (step.plan, sampled)
    }

    fn upload(&mut self, plan: &StepPlan) {
        let step = &mut self.step;
        let positions: Vec<i32> = (0..3).flat_map(|axis| plan.positions.iter().map(move |p| p[axis])).collect();
        self.backend.together(|b| {
            b.upload(&plan.token_ids, &mut step.token_ids);
            b.upload(&plan.token_slots, &mut step.token_slots);
            b.upload(&positions, &mut step.positions);
            b.upload(&plan.slot_mapping, &mut step.slot_mapping);
            b.upload(plan.features.as_flattened(), &mut step.feature_pairs);
            b.upload(&plan.logits_index, &mut step.logits_index);
            b.upload(&plan.draws, &mut step.draws);
            b.upload(&plan.banned, &mut step.banned);
            b.upload(&plan.bias_ids, &mut step.bias_ids);
            b.upload(&plan.bias_values, &mut step.bias_values);
            b.plan_attention(&plan.spans, &plan.tables, &mut step.plan);
        });
    }

    /// Runs the tower over the media that a plan needs, as many a pass as fit.
    fn encode(&mut self, plan: &StepPlan) {
        if plan.encode.is_empty() {
            return;
        }
        let started = Instant::now();
        let (Some(tower), Some(vision)) = (&scorer_of(plan, &self.model, &self.reference).vision, &mut self.vision) else {
            panic!("{} media for a model without a vision tower", plan.encode.len());
        };
        let mut pass: Vec<&(Arc<MediaInput>, Vec<u32>)> = Vec::new();
        let mut patches = 0;
        for (i, item) in plan.encode.iter().enumerate() {
            patches += item.0.num_patches();
            pass.push(item);
            let next = plan.encode.get(i + 1).map(|next| next.0.num_patches());
            if next.is_none_or(|next| patches + next > self.max_patches) {
                let media: Vec<&MediaInput> = pass.iter().map(|(m, _)| m.as_ref()).collect();
                let rows: Vec<u32> = pass.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
                tower.forward(&self.backend, &media, &rows, &mut self.features, &mut vision.act);
                pass.clear();
                patches = 0;
            }
        }
        self.stats.vision_ns.fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
    }
}
