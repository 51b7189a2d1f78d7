//! The engine alone: groups submitted to it, samples as they come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::workload::{OutputLen, Workload};
use super::{Run, prompt_ids};
use crate::engine::handle::{EngineHandle, GroupStream};
use crate::engine::request::{GroupRequest, RngKey, SampleEvent, SampleOutput, SamplingParams, StopWatch, Watch};
use crate::error::{Error, Result};
use crate::model::input::PromptInput;
use crate::model::mrope;

pub struct Direct {
    pub engine: EngineHandle,
    /// Whether samples are wanted, not only their time.
    pub keep: bool,
}

/// Ends a sample at a length.
struct StopAt {
    left: usize,
}

impl StopWatch for StopAt {
    fn push(&mut self, _token: u32) -> Watch {
        self.left -= 1;
        match self.left {
            0 => Watch::Stop,
            _ => Watch::Continue,
        }
    }
}

impl Direct {
    pub async fn run(&self, w: Workload, seed: u32) -> Result<Run> {
        let prompts: Vec<Arc<PromptInput>> = (0..w.num_prompts).map(|p| self.prompt(w, seed, p)).collect();
        let started = Instant::now();
        let group = |(i, prompt)| self.submit(w, prompt, i * w.num_generations..(i + 1) * w.num_generations);
        let streams = prompts.iter().enumerate().map(group).collect::<Result<Vec<_>>>()?;
        let mut outputs = Vec::with_capacity(streams.len());
        for (i, stream) in streams.into_iter().enumerate() {
            outputs.push(drain(stream, w, i * w.num_generations).await?);
        }
        let time = started.elapsed();
        let tokens = outputs.iter().flatten().map(|output| output.token_ids.len()).sum();
        let samples = prompts.iter().zip(&outputs).flat_map(|(prompt, outputs)| {
            outputs.iter().map(|o| json!({"prompt": prompt.token_ids, "completion": o.token_ids, "logp": o.logps}))
        });
        Ok(Run { time, tokens, samples: if self.keep { samples.collect() } else { Vec::new() }, prompt_tokens: w.prompt_len, patches: 0 })
    }

    pub async fn one_by_one(&self, w: Workload, seed: u32) -> Result<Duration> {
        let prompts: Vec<Arc<PromptInput>> = (0..w.num_prompts).map(|p| self.prompt(w, seed, p)).collect();
        let started = Instant::now();
        for (i, prompt) in prompts.iter().enumerate() {
            for sample in i * w.num_generations..(i + 1) * w.num_generations {
                drain(self.submit(w, prompt, sample..sample + 1)?, w, sample).await?;
            }
        }
        Ok(started.elapsed())
    }

    fn prompt(&self, w: Workload, seed: u32, index: usize) -> Arc<PromptInput> {
        let token_ids = prompt_ids(self.engine.info().vocab_size, &[], seed, index, w.prompt_len).to_vec();
        Arc::new(PromptInput { positions: mrope::text_positions(token_ids.len()), token_ids, ..Default::default() })
    }

    fn submit(&self, w: Workload, prompt: &Arc<PromptInput>, samples: std::ops::Range<usize>) -> Result<GroupStream> {
        let watch = |sample| Box::new(StopAt { left: w.output.of(sample) }) as Box<dyn StopWatch>;
        let ignore_eos = matches!(w.output, OutputLen::Exact(_));
        self.engine.submit(GroupRequest {
            prompt: prompt.clone(),
            sampling: SamplingParams { max_tokens: w.output.max(), ignore_eos, ..Default::default() },
            rng_key: RngKey([prompt.token_ids[0], 1]),
            watches: samples.map(watch).collect(),
            stream: false,
        })
    }
}

/// The samples of a group, the first of which has number `first` in the run.
async fn drain(mut stream: GroupStream, w: Workload, first: usize) -> Result<Vec<SampleOutput>> {
    let mut outputs = Vec::new();
    while let Some(event) = stream.next().await {
        if let SampleEvent::Finished { sample, output } = event {
            if output.token_ids.len() != w.output.of(first + sample) {
                let (len, reason) = (output.token_ids.len(), output.finish_reason);
                return Err(Error::Setup(format!("a sample ended after {len} tokens with {reason:?}")));
            }
            outputs.push(*output);
        }
    }
    match stream.is_complete() {
        true => Ok(outputs),
        false => Err(Error::NotReady("the engine stopped".into())),
    }
}
