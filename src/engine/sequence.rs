//! A group and its samples as the scheduler keeps them.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::blocks::{BlockId, PrefixKey};
use super::handle::GroupId;
use super::request::{
    FinishReason, GroupRequest, PolicyVersion, RngKey, SampleEvent, SampleOutput, SamplingParams, StopWatch, Timing, TokenRecord,
    VersionSpan, Watch,
};
use crate::backends::Sampled;
use crate::model::input::PromptInput;

pub struct Group {
    pub id: GroupId,
    pub prompt: Arc<PromptInput>,
    pub sampling: SamplingParams,
    pub rng_key: RngKey,
    pub stream: bool,
    pub events: UnboundedSender<SampleEvent>,
    pub samples: Vec<Sample>,
    /// Content of the prompt's full blocks; empty without a prefix cache.
    pub prefix_keys: Vec<PrefixKey>,
    /// The prompt's blocks, which samples read and never write; empty while the group waits.
    pub prompt_blocks: Vec<BlockId>,
    /// Prompt tokens whose keys exist or are on their way.
    pub prompt_computed: usize,
    /// The prompt's blocks were computed by weights that are gone; samples that began with them still read them.
    pub stale_prompt: bool,
    /// Media (by index) whose features are pinned until the prompt is computed.
    pub pinned: Vec<usize>,
    /// Steps in flight that name the prompt's blocks.
    pub in_flight: usize,
    pub arrived: Instant,
    pub admitted: Option<Instant>,
}

pub struct Sample {
    pub index: usize,
    pub watch: Box<dyn StopWatch>,
    pub phase: Phase,
    /// The completion's own blocks.
    pub blocks: Vec<BlockId>,
    /// Completion tokens whose keys exist or are on their way.
    pub computed: usize,
    /// Tokens drawn or on their way; the host has seen `output.token_ids.len()` of them.
    pub drawn: usize,
    /// Steps in flight that name the sample's blocks or slot.
    pub in_flight: usize,
    pub output: SampleOutput,
    pub first_token: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not started, or preempted: it keeps its tokens and holds nothing.
    Waiting,
    Running {
        slot: u32,
        counts_row: Option<u32>,
    },
    /// Finished; it holds its slot and blocks until the last step that names them completes.
    Done {
        held: Option<(u32, Option<u32>)>,
    },
}

impl Group {
    pub fn new(id: GroupId, request: GroupRequest, events: UnboundedSender<SampleEvent>, prefix_keys: Vec<PrefixKey>) -> Self {
        Group {
            id,
            prompt: request.prompt,
            sampling: request.sampling,
            rng_key: request.rng_key,
            stream: request.stream,
            events,
            samples: request.watches.into_iter().enumerate().map(|(index, watch)| Sample::new(index, watch)).collect(),
            prefix_keys,
            prompt_blocks: Vec::new(),
            prompt_computed: 0,
            stale_prompt: false,
            pinned: Vec::new(),
            in_flight: 0,
            arrived: Instant::now(),
            admitted: None,
        }
    }

    pub fn prompt_len(&self) -> usize {
        self.prompt.token_ids.len()
    }

    pub fn is_resident(&self) -> bool {
        !self.prompt_blocks.is_empty()
    }

    pub fn prompt_is_computed(&self) -> bool {
        self.prompt_computed == self.prompt_len()
    }

    pub fn needs_counts(&self) -> bool {
        self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0
    }

    /// Whether every sample is done and nothing of it is held any more.
    pub fn is_over(&self) -> bool {
        self.in_flight == 0 && self.samples.iter().all(|s| matches!(s.phase, Phase::Done { held: None }))
    }

    /// Takes a token that the device drew; `Some` says that it was the sample's last.
    pub fn accept(&mut self, index: usize, drawn: &Sampled, version: PolicyVersion) -> Option<FinishReason> {
        let sampling = &self.sampling;
        let sample = &mut self.samples[index];
        if drawn.corrupt != 0 {
            return Some(FinishReason::Corrupt);
        }
        let token = TokenRecord {
            token_id: drawn.token,
            logp: drawn.logp,
            logp_raw: drawn.logp_raw,
            logp_sampled: drawn.logp_sampled,
            entropy: drawn.entropy,
            top: (0..drawn.num_top as usize).map(|i| (drawn.top_ids[i], drawn.top_logps[i])).collect(),
        };
        sample.record(&token, version, sampling.top_logprobs > 0);
        let watch = sample.watch.push(drawn.token);
        if self.stream {
            // A receiver that is gone is noticed through its Cancel.
            let _ = self.events.send(SampleEvent::Token { sample: index, token });
        }
        let len = sample.output.token_ids.len();
        if sampling.stop_token_ids.contains(&drawn.token) {
            Some(FinishReason::StopToken(drawn.token))
        } else if watch == Watch::Stop && len >= sampling.min_tokens {
            Some(FinishReason::StopWatch)
        } else if len >= sampling.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Ends a sample and reports it. What it holds is freed by the scheduler once no step names it.
    pub fn finish(&mut self, index: usize, reason: FinishReason) {
        let now = Instant::now();
        let sample = &mut self.samples[index];
        let held = match sample.phase {
            Phase::Running { slot, counts_row } => Some((slot, counts_row)),
            Phase::Waiting => None,
            Phase::Done { .. } => panic!("sample {index} of group {:?} finished twice", self.id),
        };
        sample.phase = Phase::Done { held };
        let admitted = self.admitted.unwrap_or(now);
        let first = sample.first_token.unwrap_or(now);
        let mut output = std::mem::replace(&mut sample.output, SampleOutput::empty());
        output.finish_reason = reason;
        output.timing = Timing { queue: admitted - self.arrived, prefill: first - admitted, decode: now - first };
        let _ = self.events.send(SampleEvent::Finished { sample: index, output: Box::new(output) });
    }
}

impl Sample {
    fn new(index: usize, watch: Box<dyn StopWatch>) -> Self {
        Sample {
            index,
            watch,
            phase: Phase::Waiting,
            blocks: Vec::new(),
            computed: 0,
            drawn: 0,
            in_flight: 0,
            output: SampleOutput::empty(),
            first_token: None,
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done { .. })
    }

    /// Tokens whose keys are still to be computed.
    pub fn pending(&self) -> usize {
        self.drawn - self.computed
    }

    fn record(&mut self, token: &TokenRecord, version: PolicyVersion, keep_top: bool) {
        self.first_token.get_or_insert_with(Instant::now);
        let output = &mut self.output;
        let position = output.token_ids.len();
        output.token_ids.push(token.token_id);
        output.logps.push(token.logp);
        output.logps_raw.push(token.logp_raw);
        output.logps_sampled.push(token.logp_sampled);
        output.entropy.push(token.entropy);
        if keep_top {
            output.top.push(token.top.clone());
        }
        match output.policy_versions.last_mut() {
            Some(span) if span.version == version => span.end = position + 1,
            _ => output.policy_versions.push(VersionSpan { version, start: position, end: position + 1 }),
        }
    }
}

impl SampleOutput {
    fn empty() -> Self {
        SampleOutput {
            finish_reason: FinishReason::Abort,
            token_ids: Vec::new(),
            logps: Vec::new(),
            logps_raw: Vec::new(),
            logps_sampled: Vec::new(),
            entropy: Vec::new(),
            top: Vec::new(),
            policy_versions: Vec::new(),
            timing: Timing::default(),
        }
    }
}
