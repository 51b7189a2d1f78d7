//! The engine on the GPU: the same bits alone and under pressure, replayed and launched; close to the CPU.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::runtime::Runtime;

use super::{Numbers, Table};
use crate::engine::handle::EngineHandle;
use crate::engine::request::{GroupRequest, NoWatch, RngKey, SampleEvent, SampleOutput, SamplingParams, StopWatch};
use crate::engine::{Device, EngineConfig, KvBudget, ServingDtype, start_on_device};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::input::PromptInput;
use crate::model::mrope;

/// A prompt with its samples.
struct Work {
    prompt: Vec<u32>,
    samples: usize,
    sampling: SamplingParams,
}

pub fn run(ordinal: usize, folder: &Path, table: &mut Table) -> Result<()> {
    let vocab = ModelConfig::load(folder)?.vocab_size;
    let works = works(vocab);
    let longest = works.iter().map(|w| w.prompt.len() + w.sampling.max_tokens).max().unwrap_or(2);
    let calm = EngineConfig {
        device: Device::Cuda(ordinal),
        dtype: ServingDtype::Bfloat16,
        max_model_len: Some(longest),
        max_num_seqs: 1,
        max_num_batched_tokens: 1024,
        kv_cache: KvBudget::Blocks(256),
        prefix_caching: false,
        lag: 0,
        enforce_eager: true,
        ..Default::default()
    };
    let alone = serve(folder, &calm, &works, true)?.0;
    let need: usize = works.iter().map(|w| w.prompt.len().div_ceil(32) + w.samples * w.sampling.max_tokens.div_ceil(32)).sum();
    let crowd = EngineConfig {
        max_num_seqs: 64,
        kv_cache: KvBudget::Blocks(need + 64),
        prefix_caching: true,
        enforce_eager: false,
        ..calm.clone()
    };
    let tight = KvBudget::Blocks((need / 4).max(longest.div_ceil(32) + 2));
    let configurations = [
        ("together, launched, lag 0", EngineConfig { enforce_eager: true, ..crowd.clone() }),
        ("together, replayed, lag 1", EngineConfig { lag: 1, ..crowd.clone() }),
        ("together, replayed, lag 2", EngineConfig { lag: 2, ..crowd.clone() }),
        (
            "chunks of 48, no room, lag 2",
            EngineConfig { lag: 2, max_num_batched_tokens: 48, max_num_seqs: 48, kv_cache: tight, ..crowd.clone() },
        ),
    ];
    for (name, config) in &configurations {
        let (outputs, preemptions) = serve(folder, config, &works, false)?;
        let (mut differ, mut total) = (0, 0);
        for (a, b) in alone.iter().flatten().zip(outputs.iter().flatten()) {
            total += a.token_ids.len();
            differ += bits(a).iter().zip(&bits(b)).filter(|(a, b)| a != b).count() + a.token_ids.len().abs_diff(b.token_ids.len());
        }
        table.push_bits("engine", format!("{name}, {preemptions} preemptions"), differ, total);
    }
    let small = ModelConfig::load(folder)?.hidden_size <= 512;
    if small {
        let cpu = EngineConfig { device: Device::Cpu, ..calm };
        close(&serve(folder, &cpu, &works, true)?.0, &alone, table);
    }
    Ok(())
}

/// Tokens agree until a difference in the last bits decides a draw; up to there log-probabilities are close.
fn close(expected: &[Vec<SampleOutput>], ours: &[Vec<SampleOutput>], table: &mut Table) {
    let (mut same, mut total, mut sum, mut worst) = (0usize, 0usize, 0f64, 0f32);
    for (a, b) in expected.iter().flatten().zip(ours.iter().flatten()) {
        let common = a.token_ids.iter().zip(&b.token_ids).take_while(|(a, b)| a == b).count();
        for (x, y) in a.logps[..common].iter().zip(&b.logps) {
            sum += f64::from((x - y).abs());
            worst = worst.max((x - y).abs());
        }
        same += common;
        total += a.token_ids.len();
    }
    let mean = sum / same.max(1) as f64;
    let passed = same * 2 > total && mean < 0.03;
    table.push(
        "engine",
        "against the CPU in bf16".into(),
        passed,
        format!("{same} of {total} tokens before a draw differs; logps: mean {mean:.1e}, worst {worst:.1e}"),
    );
}

fn works(vocab: usize) -> Vec<Work> {
    let plain = SamplingParams { max_tokens: 40, ..Default::default() };
    let samplings = [
        plain.clone(),
        SamplingParams { temperature: 0.0, ..plain.clone() },
        SamplingParams { temperature: 0.7, top_k: 40, ..plain.clone() },
        SamplingParams { top_p: 0.9, repetition_penalty: 1.1, max_tokens: 25, ..plain.clone() },
        SamplingParams { frequency_penalty: 0.5, max_tokens: 33, ..plain.clone() },
        SamplingParams { max_tokens: 70, ..plain },
    ];
    let lengths = [1, 31, 32, 33, 64, 90, 255, 256, 257, 300, 40, 40];
    let mut numbers = Numbers::new(41);
    let shared: Vec<u32> = (0..70).map(|_| numbers.below(vocab) as u32).collect();
    lengths
        .iter()
        .enumerate()
        .map(|(i, length)| {
            // Every second prompt begins as the others do, for the prefix cache.
            let own: Vec<u32> = (0..*length).map(|_| numbers.below(vocab) as u32).collect();
            let prompt = if i % 2 == 0 { own } else { shared.iter().copied().chain(own).take(*length).collect() };
            Work { prompt, samples: 1 + i % 5, sampling: samplings[i % samplings.len()].clone() }
        })
        .collect()
}

/// Runs the works, each alone or all at once; returns their samples and how many gave way.
fn serve(folder: &Path, config: &EngineConfig, works: &[Work], alone: bool) -> Result<(Vec<Vec<SampleOutput>>, u64)> {
    let (engine, thread) = start_on_device(folder, config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| Error::Setup(e.to_string()))?;
    let mut outputs = Vec::new();
    // A short sample first: the forecast then admits more than fits, so that somebody has to give way.
    let short = SamplingParams { max_tokens: 2, ..Default::default() };
    submit_and_wait(&engine, &runtime, &[Work { prompt: vec![1], samples: 1, sampling: short }], 1000)?;
    for batch in works.chunks(if alone { 1 } else { works.len() }) {
        let done = submit_and_wait(&engine, &runtime, batch, outputs.len())?;
        outputs.extend(done);
    }
    let preemptions = engine.stats().preemptions.load(Relaxed);
    engine.shutdown();
    thread.join().map_err(|_| Error::Setup("the engine thread panicked".into()))?;
    Ok((outputs, preemptions))
}

/// Runs works at once; the first has number `first` in the key of its draws.
fn submit_and_wait(engine: &EngineHandle, runtime: &Runtime, works: &[Work], first: usize) -> Result<Vec<Vec<SampleOutput>>> {
    let request = |(i, work): (usize, &Work)| {
        let positions = mrope::text_positions(work.prompt.len());
        engine.submit(GroupRequest {
            prompt: Arc::new(PromptInput { positions, token_ids: work.prompt.clone(), ..Default::default() }),
            sampling: work.sampling.clone(),
            rng_key: RngKey([(first + i) as u32, 99]),
            watches: (0..work.samples).map(|_| Box::new(NoWatch) as Box<dyn StopWatch>).collect(),
            stream: false,
        })
    };
    let streams = works.iter().enumerate().map(request).collect::<Result<Vec<_>>>()?;
    let mut groups = Vec::new();
    for (mut stream, work) in streams.into_iter().zip(works) {
        let mut samples = vec![None; work.samples];
        runtime.block_on(async {
            while let Some(event) = stream.next().await {
                if let SampleEvent::Finished { sample, output } = event {
                    samples[sample] = Some(*output);
                }
            }
        });
        let samples: Option<Vec<SampleOutput>> = samples.into_iter().collect();
        groups.push(samples.ok_or_else(|| Error::NotReady("the engine stopped".into()))?);
    }
    Ok(groups)
}

fn bits(out: &SampleOutput) -> Vec<[u32; 5]> {
    (0..out.token_ids.len())
        .map(|i| {
            [out.token_ids[i], out.logps[i].to_bits(), out.logps_raw[i].to_bits(), out.logps_sampled[i].to_bits(), out.entropy[i].to_bits()]
        })
        .collect()
}
