//! Continuous batching on a thread of its own. In come token ids, out go token ids and log-probabilities; no string passes here.
//!
//! The loop plans a step, launches it, and looks at its tokens up to `lag` steps later: the device draws the next input itself, so
//! the host's work hides behind it. A sample that stops is therefore noticed late; what was drawn past its end is discarded.

mod blocks;
mod complete;
mod forecast;
pub mod handle;
mod plan;
pub mod policy;
pub mod request;
mod runner;
mod scheduler;
pub mod scoring;
mod sequence;
mod sizes;
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

use crate::backends::Backend;
use crate::backends::cpu::Cpu;
use crate::backends::cuda::Cuda;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::config::Head;
use handle::{Command, EngineHandle, EngineStats, Weights};
use policy::Control;
use runner::{InFlight, Runner};
use scheduler::{Plan, Scheduler};
use scoring::ScoreJob;
use sequence::Group;
use sizes::Sizes;

/// What the engine is sized by.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub device: Device,
    pub dtype: ServingDtype,
    /// Prompt and completion together; `None`: what the model and the cache allow.
    pub max_model_len: Option<usize>,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub kv_cache: KvBudget,
    /// Share of a GPU's memory that the process may take, for [`KvBudget::Auto`].
    pub gpu_memory_utilization: f64,
    /// Launch every kernel of a decode step by itself, to find faults.
    pub enforce_eager: bool,
    /// Keep the time of every launch of decode steps, which are launched one by one for it.
    pub time_launches: bool,
    pub prefix_caching: bool,
    /// Steps that may be on the device while the host plans the next: 0, 1 or 2.
    pub lag: usize,
    /// CPU threads of the device; `None`: one a core.
    pub threads: Option<usize>,
    /// Patches of one pass of the vision tower.
    pub max_patches: usize,
    /// Keep a second copy of the weights for log-probabilities under a frozen policy.
    pub reference: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            device: Device::Cpu,
            dtype: ServingDtype::Float32,
            max_model_len: None,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            kv_cache: KvBudget::Auto,
            gpu_memory_utilization: 0.9,
            enforce_eager: false,
            time_launches: false,
            prefix_caching: true,
            lag: 1,
            threads: None,
            max_patches: 16_384,
            reference: false,
        }
    }
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
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
    /// On a GPU what is left of its memory; else room for every slot at a common length, within bounds.
    Auto,
    Bytes(usize),
    Blocks(usize),
}

/// Loads a model folder and serves it where the configuration says.
///
/// # Errors
///
/// A device that can't be used, a folder that can't be served, and sizes that do not fit.
pub fn start_on_device(folder: &Path, config: &EngineConfig) -> Result<(EngineHandle, JoinHandle<()>)> {
    match config.device {
        Device::Cpu => start_cpu(folder, config),
        Device::Cuda(_) if config.dtype != ServingDtype::Bfloat16 => {
            Err(Error::Setup(format!("a GPU serves bfloat16, not {}", config.dtype.name())))
        }
        Device::Cuda(ordinal) => {
            let opening = Instant::now();
            let backend = Cuda::new(ordinal, !config.enforce_eager, config.time_launches)?;
            tracing::info!("{}, its libraries and kernels opened in {:.2} s", backend.name(), opening.elapsed().as_secs_f64());
            start(backend, folder, config)
        }
    }
}

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
    let mut model = Model::load(&backend, folder)?;
    let weights =
        Weights { specs: model.specs(), facts: model.facts.clone(), bf16: Model::<B>::serves_bf16(), reference: config.reference };
    // Beside the policy from the start: nothing is allocated later.
    let reference = config.reference.then(|| Model::load_known(&backend, folder, Some(model.facts.clone()))).transpose()?;
    if model.config.head != Head::Vocabulary {
        return Err(Error::Model(format!("{} is a reward model, which draws no tokens", folder.display())));
    }
    let block_bytes = model.config.num_layers * backend.kv_block_bytes(model.decoder.shape());
    let mut sizes = Sizes::new(&model.config, config, block_bytes, backend.memory().is_some())?;
    let door = backend.shared_door()?;
    let preparing = Instant::now();
    let stats = Arc::new(EngineStats::default());
    let mut info = sizes.info(&model.config, config, backend.name());
    let runner_config = sizes.runner(config, |rows| backend.step_rows(rows));
    let mut runner = Runner::new(backend, model, reference, &runner_config, stats.clone())?;
    if let Some(memory) = runner.memory() {
        // Everything else is there; the cache takes what is left.
        sizes.settle(memory, config, block_bytes)?;
        info = sizes.info_of_cache(info);
    }
    runner.alloc_cache(sizes.num_blocks())?;
    info.captured = runner.capture_steps();
    tracing::info!("buffers and cache allocated, steps captured in {:.2} s", preparing.elapsed().as_secs_f64());
    let scheduler = Scheduler::new(sizes.scheduler(config), stats.clone());
    let (sender, commands) = channel();
    let engine = Engine {
        runner,
        scheduler,
        commands,
        in_flight: VecDeque::new(),
        lag: config.lag,
        stats: stats.clone(),
        draining: false,
        control: Control::default(),
        scoring: VecDeque::new(),
    };
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || engine.run())
        .map_err(|e| Error::Setup(format!("the engine thread did not start: {e}")))?;
    let handle = EngineHandle {
        commands: sender,
        info: Arc::new(info),
        weights: Arc::new(weights),
        door,
        stats,
        next_id: Arc::new(AtomicU64::new(0)),
        unfit: Arc::default(),
    };
    Ok((handle, thread))
}

struct Engine<B: Backend> {
    runner: Runner<B>,
    scheduler: Scheduler,
    commands: Receiver<Command>,
    in_flight: VecDeque<InFlight<B>>,
    lag: usize,
    stats: Arc<EngineStats>,
    draining: bool,
    control: Control,
    scoring: VecDeque<ScoreJob>,
}

impl<B: Backend> Engine<B> {
    fn run(mut self) {
        while self.take_commands() {
            self.settle();
            if self.control.is_halted() {
                continue;
            }
            self.score_next();
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
            let rests = (self.scheduler.is_empty() && self.scoring.is_empty()) || self.control.is_halted();
            let idle = rests && self.in_flight.is_empty() && !self.control.has_change();
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
            Command::LaunchTimes(reply) => {
                let _ = reply.send(self.runner.launch_times());
            }
            Command::ResetCaches => self.scheduler.reset_caches(),
            Command::Score(job) => self.scoring.push_back(job),
            Command::Policy(order) => self.obey(order),
            Command::Shutdown => self.draining = true,
        }
        self.scheduler.publish_stats();
        self.stats.policy_version.store(self.scheduler.version.0, Release);
    }
}
