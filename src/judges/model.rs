//! Reward models: a decoder with one score in the place of the vocabulary, on a device and a thread of its own.
//!
//! Sequences are scored one after the other, each in chunks of bounded size, so that memory is fixed at load and a score depends on
//! nothing but its sequence.

use std::path::Path;

use half::bf16;
use rewards::{Reason, Verdict};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{JudgeConfig, Question, gone};
use crate::backends::cpu::Cpu;
use crate::backends::cuda::Cuda;
use crate::backends::{BLOCK_SIZE, Backend, NO_TOKEN, Span, TokenSource};
use crate::engine::{Device, ServingDtype};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::activations::Activations;
use crate::model::config::{Head, ModelConfig};
use crate::model::decoder::DecoderStep;
use crate::processor::tokenizer::Tokenizer;
use crate::processor::{Processor, ProcessorOptions, PromptRequest, PromptSource};

/// Tokens of one pass.
const CHUNK: usize = 512;
/// Sequences that wait for the thread; askers wait beyond that.
const QUEUE: usize = 256;

pub struct RewardModel {
    processor: Processor,
    pad_token_id: Option<u32>,
    max_len: usize,
    jobs: mpsc::Sender<Job>,
}

struct Job {
    token_ids: Vec<u32>,
    reply: oneshot::Sender<f32>,
}

impl RewardModel {
    /// # Errors
    ///
    /// A folder that is no reward model, or one that does not fit.
    pub fn load(name: &str, folder: &Path, config: &JudgeConfig) -> Result<Self> {
        let model = ModelConfig::load(folder)?;
        if model.head != Head::Score {
            return Err(Error::Model(format!("{} is no reward model: its architecture has no score", folder.display())));
        }
        let processor = Processor::load(folder, &model, ProcessorOptions::default())?;
        let max_len = config.max_model_len.min(model.max_position_embeddings);
        let (sender, jobs) = mpsc::channel(QUEUE);
        let threads = config.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        match (config.device, config.dtype) {
            (Device::Cuda(ordinal), _) => start(Cuda::new(ordinal, false, false)?, name, folder, max_len, jobs)?,
            (Device::Cpu, ServingDtype::Float32) => start(Cpu::<f32>::new(threads)?, name, folder, max_len, jobs)?,
            (Device::Cpu, ServingDtype::Bfloat16) => start(Cpu::<bf16>::new(threads)?, name, folder, max_len, jobs)?,
        }
        Ok(RewardModel { processor, pad_token_id: model.pad_token_id, max_len, jobs: sender })
    }

    pub async fn ask(&self, question: &Question) -> Verdict {
        let token_ids = match self.read(question).await {
            Ok(token_ids) => token_ids,
            Err(reason) => return Verdict::none(reason),
        };
        let (reply, score) = oneshot::channel();
        match self.jobs.send(Job { token_ids, reply }).await {
            Ok(()) => score.await.map_or_else(|_| gone(), |score| Verdict::new(f64::from(score), Reason::Judged)),
            Err(_) => gone(),
        }
    }

    /// The sequence up to its last token that is not padding, which is the one that transformers reads the score of.
    async fn read(&self, question: &Question) -> Result<Vec<u32>, Reason> {
        let context = &question.context;
        if context.has_media {
            return Err(Reason::NotApplicable);
        }
        let mut token_ids = match (&context.messages, &context.prompt) {
            (Some(messages), _) => self.render(messages, &question.completion).await?,
            (None, Some(_)) => {
                let (tokenizer, question) = (self.processor.tokenizer().clone(), question.clone());
                let joined = tokio::task::spawn_blocking(move || {
                    join(question.context.prompt.as_deref().unwrap_or_default(), &question.completion, &tokenizer)
                });
                joined.await.map_err(|_| Reason::Internal)?
            }
            (None, None) => return Err(Reason::NotApplicable),
        };
        let end = token_ids.iter().rposition(|id| Some(*id) != self.pad_token_id).unwrap_or(0);
        token_ids.truncate(end + 1);
        match token_ids.len() {
            0 => Err(Reason::NotApplicable),
            len if len > self.max_len => Err(Reason::TooLong),
            _ => Ok(token_ids),
        }
    }

    async fn render(&self, messages: &[Value], completion: &str) -> Result<Vec<u32>, Reason> {
        let is_media = |part: &Value| part["type"].as_str().is_some_and(|kind| kind != "text");
        if messages.iter().any(|message| message["content"].as_array().is_some_and(|parts| parts.iter().any(is_media))) {
            return Err(Reason::NotApplicable);
        }
        let mut messages = messages.to_vec();
        messages.push(json!({"role": "assistant", "content": completion}));
        let request = PromptRequest {
            source: PromptSource::Messages { messages, assistant_prefill: None },
            images: Vec::new(),
            tools: None,
            template_kwargs: Default::default(),
            add_generation_prompt: false,
        };
        let prepared = self.processor.prepare(request).await.map_err(|error| {
            tracing::debug!("the reward model's template does not render a conversation: {error}");
            Reason::NotApplicable
        })?;
        Ok(prepared.input.token_ids)
    }
}

/// Prompt and completion as one text. Control tokens are read in the prompt only: a completion must not be able to spell them.
fn join(prompt: &str, completion: &str, tokenizer: &Tokenizer) -> Vec<u32> {
    let last = tokenizer.added_tokens().iter().filter_map(|token| prompt.rfind(&token.text).map(|at| at + token.text.len())).max();
    let (head, tail) = prompt.split_at(last.unwrap_or(0));
    let mut token_ids = tokenizer.encode(head);
    token_ids.extend(tokenizer.encode_ordinary(&format!("{tail}{completion}")));
    token_ids
}

/// Loads the weights here, so that errors are the caller's, and scores on a thread that ends with the last sender.
fn start<B: Backend>(backend: B, name: &str, folder: &Path, max_len: usize, mut jobs: mpsc::Receiver<Job>) -> Result<()> {
    let mut scorer = Scorer::new(backend, folder, max_len)?;
    let work = move || {
        while let Some(job) = jobs.blocking_recv() {
            if !job.reply.is_closed() {
                let _ = job.reply.send(scorer.score(&job.token_ids));
            }
        }
    };
    let thread = std::thread::Builder::new().name(format!("judge-{name}")).spawn(work);
    thread.map(drop).map_err(|e| Error::Setup(format!("its thread did not start: {e}")))
}

/// The model with buffers for one sequence.
struct Scorer<B: Backend> {
    model: Model<B>,
    kv: Vec<B::Kv>,
    act: Activations<B>,
    plan: B::AttentionPlan,
    token_ids: B::Buf<u32>,
    /// Nothing here is drawn: every row has an id.
    token_slots: B::Buf<u32>,
    last_tokens: B::Buf<u32>,
    positions: B::Buf<i32>,
    slot_mapping: B::Buf<u32>,
    features: B::Buf<f32>,
    feature_pairs: B::Buf<u32>,
    logits_index: B::Buf<u32>,
    /// One sequence has all blocks, in order.
    table: Vec<u32>,
    backend: B,
}

impl<B: Backend> Scorer<B> {
    fn new(backend: B, folder: &Path, max_len: usize) -> Result<Self> {
        let b = &backend;
        let model = Model::load(b, folder)?;
        let shape = model.decoder.shape();
        let rows = CHUNK.min(max_len);
        let num_blocks = max_len.div_ceil(BLOCK_SIZE);
        let mut token_slots = b.alloc(rows)?;
        b.upload(&vec![NO_TOKEN; rows], &mut token_slots);
        Ok(Scorer {
            kv: (0..model.decoder.num_layers()).map(|_| b.alloc_kv(num_blocks, shape)).collect::<Result<_>>()?,
            act: Activations::new(b, &model.config, rows, 1)?,
            plan: b.alloc_attention_plan(1, rows, num_blocks, shape)?,
            token_ids: b.alloc(rows)?,
            token_slots,
            last_tokens: b.alloc(1)?,
            positions: b.alloc(3 * rows)?,
            slot_mapping: b.alloc(rows)?,
            features: b.alloc(1)?,
            feature_pairs: b.alloc(2)?,
            logits_index: b.alloc(1)?,
            table: (0..num_blocks as u32).collect(),
            model,
            backend,
        })
    }

    /// The score of the last token.
    fn score(&mut self, token_ids: &[u32]) -> f32 {
        let b = &self.backend;
        for (i, chunk) in token_ids.chunks(CHUNK).enumerate() {
            let (first, rows) = (i * CHUNK, chunk.len());
            let is_last = first + rows == token_ids.len();
            let span = Span { num_rows: rows as u32, prompt_keys: first as u32 + 1, ..Span::default() };
            b.plan_attention(&[span], &self.table[..(first + rows).div_ceil(BLOCK_SIZE)], &mut self.plan);
            b.upload(chunk, &mut self.token_ids);
            let places = first..first + rows;
            b.upload(&places.clone().map(|at| at as u32).collect::<Vec<_>>(), &mut self.slot_mapping);
            b.upload(&(0..3).flat_map(|_| places.clone().map(|at| at as i32)).collect::<Vec<_>>(), &mut self.positions);
            b.upload(&[rows as u32 - 1], &mut self.logits_index);
            let step = DecoderStep {
                source: TokenSource { ids: &self.token_ids, slots: &self.token_slots, last_tokens: &self.last_tokens },
                positions: &self.positions,
                slot_mapping: &self.slot_mapping,
                plan: &self.plan,
                rows,
                features: &self.features,
                feature_pairs: &self.feature_pairs,
                num_features: 0,
                logits_index: &self.logits_index,
                num_logits: usize::from(is_last),
            };
            self.model.decoder.forward(b, &step, &mut self.kv, &mut self.act);
        }
        self.model.decoder.logits(b, 1, &mut self.act);
        let mut score = [0.0];
        b.download(&self.act.logits, &mut score);
        score[0]
    }
}
