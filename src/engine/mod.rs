//! Continuous batching on a thread of its own. In come token ids, out go token ids and log-probabilities; no string passes here.
//!
//! The loop plans a step, launches it, and looks at its tokens up to `lag` steps later: the device draws the next input itself, so
//! the host's work hides behind it. A sample that stops is therefore noticed late; what was drawn past its end is discarded.

mod blocks;
mod complete;
mod forecast;
pub mod handle;
mod plan;
pub mod request;
mod runner;
mod scheduler;
mod sequence;
mod step_builder;
mod vision_cache;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use half::bf16;

use crate::backends::cpu::Cpu;
use crate::backends::{BLOCK_SIZE, Backend};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::config::ModelConfig;
use handle::{Command, EngineHandle, EngineInfo, EngineStats};
use runner::{InFlight, Runner, RunnerConfig};
use scheduler::{Plan, Scheduler, SchedulerConfig};
use sequence::Group;

/// What the engine is sized by.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub dtype: ServingDtype,
    /// Prompt and completion together; `None`: what the model and the cache allow.
    pub max_model_len: Option<usize>,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub kv_cache: KvBudget,
    pub prefix_caching: bool,
    /// Steps that may be on the device while the host plans the next: 0, 1 or 2.
    pub lag: usize,
    /// CPU threads of the device; `None`: one a core.
    pub threads: Option<usize>,
    /// Patches of one pass of the vision tower.
    pub max_patches: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            dtype: ServingDtype::Float32,
            max_model_len: None,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            kv_cache: KvBudget::Auto,
            prefix_caching: true,
            lag: 1,
            threads: None,
            max_patches: 16_384,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServingDtype {
    Float32,
    Bfloat16,
}

impl ServingDtype {
    pub fn name(self) -> &'static str {
        match self {
            ServingDtype::Float32 => "float32",
            ServingDtype::Bfloat16 => "bfloat16",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvBudget {
    /// Room for every slot at a common length, at most [`AUTO_KV_BYTES`].
    Auto,
    Bytes(usize),
    Blocks(usize),
}

/// What the cache takes at most when nobody says.
const AUTO_KV_BYTES: usize = 1 << 30;
/// Tokens a slot gets when nobody says how large the cache is.
const AUTO_SLOT_TOKENS: usize = 4096;

/// Loads a model folder and serves it on the CPU. Dropping the returned thread does not stop it: see [`EngineHandle::shutdown`].
pub fn start_cpu(folder: &Path, config: &EngineConfig) -> Result<(EngineHandle, JoinHandle<()>)> {
    let threads = config.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    match config.dtype {
        ServingDtype::Float32 => start(Cpu::<f32>::new(threads)?, folder, config),
        ServingDtype::Bfloat16 => start(Cpu::<bf16>::new(threads)?, folder, config),
    }
}

/// Loads a model folder onto a backend and runs the engine on a thread of its own.
pub fn start<B: Backend>(backend: B, folder: &Path, config: &EngineConfig) -> Result<(EngineHandle, JoinHandle<()>)> {
    let model = Model::load(&backend, folder)?;
    let block_bytes = model.config.num_layers * backend.kv_block_bytes(model.decoder.shape());
    let sizes = Sizes::new(&model.config, config, block_bytes)?;
    let stats = Arc::new(EngineStats::default());
    let info = sizes.info(&model.config, config, backend.name());
    let scheduler = Scheduler::new(sizes.scheduler(config), stats.clone());
    let runner = Runner::new(backend, model, &sizes.runner(config), stats.clone())?;
    let (sender, commands) = channel();
    let engine = Engine { runner, scheduler, commands, in_flight: VecDeque::new(), lag: config.lag, stats: stats.clone(), draining: false };
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || engine.run())
        .map_err(|e| Error::Setup(format!("the engine thread did not start: {e}")))?;
    Ok((EngineHandle { commands: sender, info: Arc::new(info), stats, next_id: Arc::new(AtomicU64::new(0)) }, thread))
}

/// Capacities that follow from the model and the settings.
struct Sizes {
    num_blocks: usize,
    max_model_len: usize,
    max_patches: usize,
    vision_rows: usize,
    merge_unit: usize,
}

impl Sizes {
    fn new(model: &ModelConfig, config: &EngineConfig, block_bytes: usize) -> Result<Self> {
        let num_blocks = match config.kv_cache {
            KvBudget::Blocks(n) => n,
            KvBudget::Bytes(bytes) => bytes / block_bytes,
            KvBudget::Auto => {
                let slot = config.max_model_len.unwrap_or(model.max_position_embeddings).min(AUTO_SLOT_TOKENS);
                // One sequence of the length that was asked for fits in any case.
                let least = config.max_model_len.unwrap_or(0).div_ceil(BLOCK_SIZE);
                (config.max_num_seqs * slot.div_ceil(BLOCK_SIZE)).min(AUTO_KV_BYTES / block_bytes).max(least) + 2
            }
        };
        // A prompt and a completion each round up to whole blocks, so the longest sequence wastes less than two.
        let fits = num_blocks.saturating_sub(2) * BLOCK_SIZE;
        let wanted = config.max_model_len.unwrap_or(model.max_position_embeddings.min(fits));
        if wanted > model.max_position_embeddings {
            return Err(Error::Setup(format!("--max-model-len {wanted}: the model's context is {}", model.max_position_embeddings)));
        }
        if wanted < 2 || wanted > fits {
            let bytes = block_bytes * (wanted.div_ceil(BLOCK_SIZE) + 2);
            return Err(Error::Setup(format!(
                "a context of {wanted} tokens needs {} KV blocks ({bytes} bytes), the cache has {num_blocks}: lower --max-model-len or raise --kv-cache-memory",
                wanted.div_ceil(BLOCK_SIZE) + 2
            )));
        }
        let merge_unit = model.vision.as_ref().map_or(1, |v| v.merge_unit());
        let max_patches = if model.vision.is_some() { config.max_patches.min(wanted * merge_unit) / merge_unit * merge_unit } else { 0 };
        // Every prompt's media fit at once, and what is left keeps images that are shown again.
        let vision_rows = if model.vision.is_some() { 2 * wanted.next_multiple_of(32) } else { 0 };
        Ok(Sizes { num_blocks, max_model_len: wanted, max_patches, vision_rows, merge_unit })
    }

    fn info(&self, model: &ModelConfig, config: &EngineConfig, device: String) -> EngineInfo {
        EngineInfo {
            device,
            dtype: config.dtype.name(),
            vocab_size: model.vocab_size,
            max_model_len: self.max_model_len,
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: rows(config),
            num_blocks: self.num_blocks,
            max_patches: self.max_patches,
            max_media_tokens: self.vision_rows,
            merge_unit: self.merge_unit,
        }
    }

    fn scheduler(&self, config: &EngineConfig) -> SchedulerConfig {
        SchedulerConfig {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: rows(config),
            num_blocks: self.num_blocks,
            counts_rows: counts_rows(config),
            prefix_caching: config.prefix_caching,
            vision_rows: self.vision_rows,
            merge_unit: self.merge_unit,
        }
    }

    fn runner(&self, config: &EngineConfig) -> RunnerConfig {
        // A step names each prompt table once and each sample's own; together they hold no more than this.
        let tables = 2 * (config.max_num_seqs + 1) * (self.max_model_len.div_ceil(BLOCK_SIZE) + 1);
        RunnerConfig {
            max_rows: rows(config),
            max_draws: config.max_num_seqs,
            num_blocks: self.num_blocks,
            counts_rows: counts_rows(config),
            max_table: tables,
            max_patches: self.max_patches,
            vision_rows: self.vision_rows,
        }
    }
}

fn rows(config: &EngineConfig) -> usize {
    config.max_num_batched_tokens.max(config.max_num_seqs)
}

/// Presence and frequency penalties are for chat: a bounded number of samples at once may have them.
fn counts_rows(config: &EngineConfig) -> usize {
    config.max_num_seqs.min(64)
}

struct Engine<B: Backend> {
    runner: Runner<B>,
    scheduler: Scheduler,
    commands: Receiver<Command>,
    in_flight: VecDeque<InFlight<B>>,
    lag: usize,
    stats: Arc<EngineStats>,
    draining: bool,
}

impl<B: Backend> Engine<B> {
    fn run(mut self) {
        while self.take_commands() {
            let planning = Instant::now();
            let plan = self.scheduler.plan(self.in_flight.len());
            self.stats.plan_ns.fetch_add(planning.elapsed().as_nanos() as u64, Relaxed);
            let allowed = match plan {
                Plan::Step(step) => {
                    let step = self.runner.submit(step);
                    self.in_flight.push_back(step);
                    self.stats.steps.fetch_add(1, Relaxed);
                    self.lag
                }
                Plan::Drain => 0,
                Plan::Idle => {
                    assert!(
                        !self.in_flight.is_empty() || self.scheduler.is_empty(),
                        "work is left, nothing is in flight and nothing can be planned"
                    );
                    self.in_flight.len().saturating_sub(1)
                }
            };
            while self.in_flight.len() > allowed {
                self.finish_oldest();
            }
            self.scheduler.publish_stats();
        }
    }

    fn finish_oldest(&mut self) {
        let Some(step) = self.in_flight.pop_front() else { return };
        let (plan, drawn) = self.runner.wait(step);
        let finishing = Instant::now();
        self.scheduler.complete(&plan, &drawn);
        self.stats.finish_ns.fetch_add(finishing.elapsed().as_nanos() as u64, Relaxed);
    }

    /// Handles what has arrived; sleeps while there is nothing to do. False ends the thread.
    fn take_commands(&mut self) -> bool {
        loop {
            let idle = self.scheduler.is_empty() && self.in_flight.is_empty();
            if idle && self.draining {
                return false;
            }
            let command = match idle {
                true => match self.commands.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                },
                false => match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => {
                        self.draining = true;
                        return true;
                    }
                },
            };
            self.handle(command);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Start { id, request, events } => {
                let keys = self.scheduler.prefix_keys(&request.prompt);
                self.scheduler.add(Group::new(id, request, events, keys));
            }
            Command::Abort(id) => self.scheduler.abort(id),
            Command::Audit(reply) => {
                // Steps in flight hold blocks of samples that have already ended; the books are closed without them.
                while !self.in_flight.is_empty() {
                    self.finish_oldest();
                }
                // Nobody waiting for the answer is nobody's problem.
                let _ = reply.send(self.scheduler.audit());
            }
            Command::ResetCaches => self.scheduler.reset_caches(),
            Command::Shutdown => self.draining = true,
        }
        self.scheduler.publish_stats();
        self.stats.policy_version.store(self.scheduler.version.0, Release);
    }
}
