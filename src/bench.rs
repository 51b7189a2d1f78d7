//! `grouper bench`: generated tokens per second, with the split of their time.
//!
//! Counted are tokens that came back, over the wall time from the request to ids, log-probabilities, rewards and advantages on the host.
//! Prompts are random ids, sampling is at temperature 1. A folder without a tokenizer, and lengths that no request can ask for, are run
//! on the engine alone, without rewards.

mod direct;
mod launches;
mod rollouts;
mod split;
mod workload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engine::handle::EngineHandle;
use crate::engine::{EngineConfig, start_on_device};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::rng::philox;
use direct::Direct;
use rollouts::Rollouts;
use split::Split;
pub use workload::{OutputLen, WORKLOADS, Workload};

#[derive(Clone, Debug)]
pub struct BenchConfig {
    pub folder: PathBuf,
    pub engine: EngineConfig,
    pub workload: Workload,
    pub repeat: usize,
    /// Also run every completion as a request of its own, one after the other, and print the ratio.
    pub compare_single: bool,
    /// Where to put prompts, completions and log-probabilities of the last run, as JSON.
    pub samples: Option<PathBuf>,
}

/// A run as it was measured.
struct Run {
    time: Duration,
    tokens: usize,
    /// Prompts, completions and log-probabilities.
    samples: Vec<Value>,
    prompt_tokens: usize,
    patches: usize,
}

/// Who generates.
enum Driver {
    Rollouts(Box<Rollouts>),
    Direct(Direct),
}

impl Driver {
    /// Runs a workload with prompts that only `seed` has.
    async fn run(&self, w: Workload, seed: u32) -> Result<Run> {
        match self {
            Driver::Rollouts(rollouts) => rollouts.run(w, seed).await,
            Driver::Direct(direct) => direct.run(w, seed).await,
        }
    }
}

/// Runs the workload and prints what it measured.
///
/// # Errors
///
/// A folder or device that can't be used, a workload that the model can't run, samples that end where they should not.
pub fn run(config: &BenchConfig) -> Result<()> {
    let w = config.workload;
    let started = Instant::now();
    let model = ModelConfig::load(&config.folder)?;
    let (engine, thread) = start_on_device(&config.folder, &config.engine)?;
    let info = engine.info().clone();
    println!(
        "{} in {} on {}, loaded in {:.2} s; {}",
        name(&config.folder),
        info.dtype,
        info.device,
        started.elapsed().as_secs_f64(),
        w.describe()
    );
    if !info.captured.rows.is_empty() {
        println!("{}", info.captured);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| Error::Setup(e.to_string()))?;
    let exact = matches!(w.output, OutputLen::Exact(_));
    let driver = match exact && config.folder.join("tokenizer.json").is_file() {
        true => Driver::Rollouts(Box::new(Rollouts::new(&config.folder, &model, engine.clone(), config.samples.is_some())?)),
        false if w.image.is_some() => return Err(Error::Setup(format!("{}: images need a tokenizer", config.folder.display()))),
        false => Driver::Direct(Direct { engine: engine.clone(), keep: config.samples.is_some() }),
    };
    // Every run has prompts of its own, so that none finds another's prefixes cached.
    let mut seeds = 0..;
    let mut run = |w: Workload| runtime.block_on(driver.run(w, seeds.next().unwrap_or(u32::MAX)));
    let short = |n: usize| Workload { output: OutputLen::Exact(n), ..w };
    run(short(w.output.max().min(32)))?; // warm up
    runtime.block_on(engine.launch_times())?;
    let mut runs = Vec::new();
    for _ in 0..config.repeat.max(1) {
        let prefill = run(short(1))?.time;
        let before = Split::read(engine.stats());
        let full = run(w)?;
        let split = Split::read(engine.stats()) - before;
        println!("{:.3} s, {:.1} tokens/s", full.time.as_secs_f64(), rate(full.tokens, full.time));
        runs.push((prefill, full, split));
    }
    let launches = runtime.block_on(engine.launch_times())?;
    if let (Some(path), Some((_, last, _))) = (&config.samples, runs.last()) {
        std::fs::write(path, Value::Array(last.samples.clone()).to_string()).map_err(|e| Error::file(path, e))?;
    }
    runs.sort_by_key(|(_, run, _)| run.time);
    let (prefill, median, split) = &runs[runs.len() / 2];
    let firsts = w.num_samples();
    println!(
        "median of {}: prefill {:.1} tok/s ({:.3} s), decode {:.1} tok/s, overall {:.1} generated tok/s ({:.3} s){}",
        runs.len(),
        rate(w.num_prompts * median.prompt_tokens, *prefill),
        prefill.as_secs_f64(),
        rate(median.tokens - firsts, median.time.saturating_sub(*prefill)),
        rate(median.tokens, median.time),
        median.time.as_secs_f64(),
        if exact { "" } else { ", without rewards" }
    );
    let floor = workload::floor(&w, &model, &info.device, info.max_num_seqs, median.prompt_tokens, median.patches);
    if let Some(floor) = floor {
        let share = 100.0 * floor / median.time.as_secs_f64();
        println!("floor {floor:.3} s ({:.0} tokens/s); {share:.1} % of it reached", median.tokens as f64 / floor);
    }
    println!("{}", split.describe(median.time));
    launches::print(&launches);
    if config.compare_single {
        compare_single(&runtime, &engine, w, median)?;
    }
    drop(driver);
    engine.shutdown();
    thread.join().map_err(|_| Error::Setup("the engine thread panicked".into()))
}

fn compare_single(runtime: &tokio::runtime::Runtime, engine: &EngineHandle, w: Workload, together: &Run) -> Result<()> {
    let direct = Direct { engine: engine.clone(), keep: false };
    let single = runtime.block_on(direct.one_by_one(w, u32::MAX))?;
    println!(
        "one request after the other: {:.1} generated tok/s ({:.3} s); together {:.2} × as fast",
        rate(together.tokens, single),
        single.as_secs_f64(),
        single.as_secs_f64() / together.time.as_secs_f64()
    );
    Ok(())
}

/// Random ids of prompt `index`, none of which stands for an image.
fn prompt_ids(vocab: usize, special: &[u32], seed: u32, index: usize, len: usize) -> Arc<[u32]> {
    let draw = |i: u32| philox([i, index as u32, 0, 0], [seed, 0])[0] % vocab as u32;
    (0..).map(draw).filter(|id| !special.contains(id)).take(len).collect()
}

fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}

fn name(folder: &Path) -> String {
    folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned())
}
