//! `grouper bench`: generated tokens per second of the engine, with the split of its time.
//!
//! Counted are tokens that came back, over the wall time from the first request to the last reply. Prompts are random ids, lengths
//! exact (stop tokens are ignored), sampling is at temperature 1 with log-probabilities on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::handle::{EngineHandle, EngineStats};
use crate::engine::request::{GroupRequest, NoWatch, RngKey, SampleEvent, SampleOutput, SamplingParams, StopWatch};
use crate::engine::{EngineConfig, start_on_device};
use crate::error::{Error, Result};
use crate::model::input::PromptInput;
use crate::model::mrope;
use crate::rng::philox;

/// Prompts × completions with exact lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    pub num_prompts: usize,
    pub num_generations: usize,
    pub prompt_len: usize,
    pub output_len: usize,
}

/// Workloads that figures are quoted for.
pub const WORKLOADS: &[(&str, Workload)] = &[
    ("W1", Workload { num_prompts: 64, num_generations: 8, prompt_len: 256, output_len: 1024 }),
    ("W3", Workload { num_prompts: 128, num_generations: 16, prompt_len: 512, output_len: 2048 }),
    ("W6", Workload { num_prompts: 1, num_generations: 1, prompt_len: 256, output_len: 512 }),
];

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

/// Runs the workload and prints what it measured.
pub fn run(config: &BenchConfig) -> Result<()> {
    let w = config.workload;
    let started = Instant::now();
    let (engine, thread) = start_on_device(&config.folder, &config.engine)?;
    let info = engine.info();
    println!(
        "{} in {} on {}, loaded in {:.2} s; {} prompts × {}, {} prompt tokens, {} new tokens each",
        name(&config.folder),
        info.dtype,
        info.device,
        started.elapsed().as_secs_f64(),
        w.num_prompts,
        w.num_generations,
        w.prompt_len,
        w.output_len
    );
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| Error::Setup(e.to_string()))?;
    let bench = Bench { engine, seed: AtomicU64::new(0), keep: config.samples.is_some() };
    runtime.block_on(bench.group(Workload { output_len: w.output_len.min(2), ..w }))?; // warm up
    let mut best: Option<(Duration, Duration, Split)> = None;
    let mut last = Vec::new();
    for _ in 0..config.repeat.max(1) {
        let prefill = runtime.block_on(bench.group(Workload { output_len: 1, ..w }))?;
        let before = Split::read(bench.engine.stats());
        let (total, samples) = runtime.block_on(bench.collect(w))?;
        let split = Split::read(bench.engine.stats()) - before;
        last = samples;
        if best.as_ref().is_none_or(|(_, t, _)| total < *t) {
            best = Some((prefill, total, split));
        }
    }
    let Some((prefill, total, split)) = best else { return Ok(()) };
    let samples = w.num_prompts * w.num_generations;
    let tokens = samples * w.output_len;
    println!(
        "best of {}: prefill {:.1} tok/s ({:.3} s), decode {:.1} tok/s, overall {:.1} generated tok/s ({:.3} s)",
        config.repeat.max(1),
        rate(w.num_prompts * w.prompt_len, prefill),
        prefill.as_secs_f64(),
        rate(samples * (w.output_len - 1), total.saturating_sub(prefill)),
        rate(tokens, total),
        total.as_secs_f64()
    );
    println!("{}", split.describe(total));
    if let Some(path) = &config.samples {
        std::fs::write(path, serde_json::Value::Array(last).to_string()).map_err(|e| Error::file(path, e))?;
    }
    if config.compare_single {
        let mut single = Duration::MAX;
        for _ in 0..config.repeat.max(1) {
            single = single.min(runtime.block_on(bench.one_by_one(w))?);
        }
        println!(
            "one request after the other: {:.1} generated tok/s ({:.3} s); together {:.2} × as fast",
            rate(tokens, single),
            single.as_secs_f64(),
            single.as_secs_f64() / total.as_secs_f64()
        );
    }
    bench.engine.shutdown();
    thread.join().map_err(|_| Error::Setup("the engine thread panicked".into()))
}

struct Bench {
    engine: EngineHandle,
    /// Every run has prompts of its own, so that no run finds another's prefixes cached.
    seed: AtomicU64,
    /// Whether samples are wanted, not only their time.
    keep: bool,
}

impl Bench {
    async fn group(&self, w: Workload) -> Result<Duration> {
        Ok(self.collect(w).await?.0)
    }

    /// Time, and what each sample was: prompt, completion and log-probabilities.
    async fn collect(&self, w: Workload) -> Result<(Duration, Vec<Value>)> {
        let seed = self.seed.fetch_add(1, Relaxed);
        let prompts: Vec<Arc<PromptInput>> = (0..w.num_prompts).map(|p| self.prompt(w, seed, p)).collect();
        let started = Instant::now();
        let streams = prompts.iter().map(|p| self.submit(w, p, w.num_generations)).collect::<Result<Vec<_>>>()?;
        let mut outputs = Vec::with_capacity(streams.len());
        for stream in streams {
            outputs.push(drain(stream, w.output_len).await?);
        }
        let time = started.elapsed();
        let samples = prompts.iter().zip(&outputs).flat_map(|(prompt, outputs)| {
            outputs.iter().map(|o| json!({"prompt": prompt.token_ids, "completion": o.token_ids, "logp": o.logps}))
        });
        Ok((time, if self.keep { samples.collect() } else { Vec::new() }))
    }

    async fn one_by_one(&self, w: Workload) -> Result<Duration> {
        let seed = self.seed.fetch_add(1, Relaxed);
        let prompts: Vec<Arc<PromptInput>> = (0..w.num_prompts).map(|p| self.prompt(w, seed, p)).collect();
        let started = Instant::now();
        for prompt in &prompts {
            for _ in 0..w.num_generations {
                drain(self.submit(w, prompt, 1)?, w.output_len).await?;
            }
        }
        Ok(started.elapsed())
    }

    fn prompt(&self, w: Workload, seed: u64, index: usize) -> Arc<PromptInput> {
        let vocab = self.engine.info().vocab_size as u32;
        let token_ids: Vec<u32> = (0..w.prompt_len as u32).map(|i| philox([i, index as u32, 0, 0], [seed as u32, 0])[0] % vocab).collect();
        Arc::new(PromptInput { positions: mrope::text_positions(token_ids.len()), token_ids, ..Default::default() })
    }

    fn submit(&self, w: Workload, prompt: &Arc<PromptInput>, samples: usize) -> Result<crate::engine::handle::GroupStream> {
        self.engine.submit(GroupRequest {
            prompt: prompt.clone(),
            sampling: SamplingParams { max_tokens: w.output_len, ignore_eos: true, ..Default::default() },
            rng_key: RngKey([prompt.token_ids[0], 1]),
            watches: (0..samples).map(|_| Box::new(NoWatch) as Box<dyn StopWatch>).collect(),
            stream: false,
        })
    }
}

async fn drain(mut stream: crate::engine::handle::GroupStream, output_len: usize) -> Result<Vec<SampleOutput>> {
    let mut outputs = Vec::new();
    while let Some(event) = stream.next().await {
        if let SampleEvent::Finished { output, .. } = event {
            if output.token_ids.len() != output_len {
                return Err(Error::Setup(format!(
                    "a sample ended after {} tokens with {:?}",
                    output.token_ids.len(),
                    output.finish_reason
                )));
            }
            outputs.push(*output);
        }
    }
    match stream.is_complete() {
        true => Ok(outputs),
        false => Err(Error::NotReady("the engine stopped".into())),
    }
}

/// Nanoseconds by class of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    classes: [(&'static str, u64); 6],
    steps: u64,
}

impl Split {
    fn read(stats: &EngineStats) -> Self {
        let classes = [
            ("plan and fill", &stats.plan_ns),
            ("vision", &stats.vision_ns),
            ("forward", &stats.forward_ns),
            ("sample", &stats.sample_ns),
            ("wait", &stats.wait_ns),
            ("finish", &stats.finish_ns),
        ];
        Split { classes: classes.map(|(name, ns)| (name, ns.load(Relaxed))), steps: stats.steps.load(Relaxed) }
    }

    fn describe(&self, total: Duration) -> String {
        let parts = self.classes.iter().map(|(name, ns)| format!("{name} {:.1} %", 100.0 * *ns as f64 / total.as_nanos() as f64));
        format!(
            "time: {}; {} steps of {:.2} ms",
            parts.collect::<Vec<_>>().join(", "),
            self.steps,
            total.as_secs_f64() * 1e3 / self.steps.max(1) as f64
        )
    }
}

impl std::ops::Sub for Split {
    type Output = Split;

    fn sub(mut self, before: Split) -> Split {
        for (class, (_, ns)) in self.classes.iter_mut().zip(before.classes) {
            class.1 -= ns;
        }
        self.steps -= before.steps;
        self
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}

fn name(folder: &Path) -> String {
    folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned())
}
