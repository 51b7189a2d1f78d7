//! The engine from outside: a cloneable handle that knows no backend, and one stream of events per group.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::policy::{Order, PauseMode, Swap, Swapped};
use super::request::{GroupRequest, PolicyVersion, SampleEvent, SamplingParams};
use super::scoring::{ScoreJob, ScoreRequest, Scores};
use super::vision_cache;
use crate::backends::{LaunchTime, SharedDoor};
use crate::error::{Error, Result};
use crate::model::input::PromptInput;
use crate::model::param::TensorSpec;
use crate::model::update::{Facts, Update};

/// Stop ids and ids never to be drawn of one sample.
pub const MAX_BANNED_IDS: usize = 128;
/// Entries of one sample's logit bias, as OpenAI bounds it.
pub const MAX_BIASED_IDS: usize = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u64);

/// What is fixed about an engine once it runs.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    pub device: String,
    pub dtype: &'static str,
    pub vocab_size: usize,
    /// Prompt and completion together.
    pub max_model_len: usize,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub num_blocks: usize,
    /// Patches of one image or video; 0 for a text model.
    pub max_patches: usize,
    /// Media tokens of one prompt.
    pub max_media_tokens: usize,
    pub merge_unit: usize,
    pub captured: Captured,
}

/// Decode steps that were captured before the first request.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// Their rows, the largest first; none where steps are not captured.
    pub rows: Vec<usize>,
    pub time: Duration,
    /// What they take of the device's memory.
    pub bytes: usize,
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.rows.first().unwrap_or(&0), self.rows.last().unwrap_or(&0));
        let mebibytes = self.bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{} decode steps of {last} to {first} rows captured in {:.2} s, {mebibytes:.0} MiB",
            self.rows.len(),
            self.time.as_secs_f64()
        )
    }
}

/// What the engine's model asks of a checkpoint.
#[derive(Debug)]
pub struct Weights {
    pub specs: Vec<TensorSpec>,
    /// Of those that it was started with.
    pub facts: Facts,
    /// Whether matrices are rounded to bf16.
    pub bf16: bool,
    /// Whether there are reference weights beside the policy's.
    pub reference: bool,
}

/// Figures that the engine thread keeps current, for `/metrics`, `/ready` and admission.
#[derive(Debug, Default)]
pub struct EngineStats {
    pub running: AtomicU64,
    pub waiting: AtomicU64,
    pub blocks_used: AtomicU64,
    pub blocks_cached: AtomicU64,
    pub steps: AtomicU64,
    pub preemptions: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub generated_tokens: AtomicU64,
    pub discarded_tokens: AtomicU64,
    pub prefix_queries: AtomicU64,
    pub prefix_hits: AtomicU64,
    pub vision_hits: AtomicU64,
    pub vision_encoded: AtomicU64,
    pub corrupt_samples: AtomicU64,
    pub policy_version: AtomicU64,
    /// No step is taken: somebody said so.
    pub halted: AtomicBool,
    /// Time without a step for new weights.
    pub swap_ns: AtomicU64,
    /// Nanoseconds by class of work, as `grouper bench` prints them.
    pub plan_ns: AtomicU64,
    pub forward_ns: AtomicU64,
    pub sample_ns: AtomicU64,
    pub vision_ns: AtomicU64,
    /// The host waiting for the device.
    pub wait_ns: AtomicU64,
    pub finish_ns: AtomicU64,
}

impl EngineStats {
    pub fn policy_version(&self) -> PolicyVersion {
        PolicyVersion(self.policy_version.load(Ordering::Acquire))
    }
}

/// What the handle tells the engine thread.
pub(super) enum Command {
    Start {
        id: GroupId,
        request: GroupRequest,
        events: UnboundedSender<SampleEvent>,
    },
    /// End the group's unfinished samples and report what they have (to nobody, when the caller has gone).
    Abort(GroupId),
    /// Run the invariants of blocks and slots and report what is in use.
    Audit(tokio::sync::oneshot::Sender<Audit>),
    /// Tell what launches took, and begin anew.
    LaunchTimes(tokio::sync::oneshot::Sender<Vec<LaunchTime>>),
    Policy(Order),
    Score(ScoreJob),
    /// Forget cached prefixes and vision features.
    ResetCaches,
    Shutdown,
}

/// What the block pool's own check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    pub blocks_total: usize,
    pub blocks_free: usize,
    /// Held by the prefix cache alone.
    pub blocks_cached: usize,
    /// Named by a live group or sample.
    pub blocks_used: usize,
    pub slots_used: usize,
    pub groups: usize,
}

#[derive(Clone)]
pub struct EngineHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) info: Arc<EngineInfo>,
    pub(super) stats: Arc<EngineStats>,
    pub(super) weights: Arc<Weights>,
    pub(super) door: Option<Arc<dyn SharedDoor>>,
    pub(super) next_id: Arc<AtomicU64>,
    /// Why nothing may be generated, although the engine could.
    pub(super) unfit: Arc<RwLock<Option<String>>>,
}

impl EngineHandle {
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// Hands a group to the engine. It ends when its stream says so, or silently when the stream is dropped.
    ///
    /// Errors when the request can never run (its prompt and `max_tokens` exceed the context or the whole cache) and when the
    /// engine is gone.
    pub fn submit(&self, request: GroupRequest) -> Result<GroupStream> {
        self.check_fits(request.prompt.token_ids.len(), request.sampling.max_tokens)?;
        self.check_media(&request.prompt)?;
        self.check_lists(&request.sampling)?;
        let id = GroupId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = unbounded_channel();
        let remaining = request.watches.len();
        self.send(Command::Start { id, request, events: sender })?;
        Ok(GroupStream { id, events, remaining, commands: self.commands.clone() })
    }

    /// Whether a prompt with this many new tokens can ever run.
    pub fn check_fits(&self, prompt_len: usize, max_tokens: usize) -> Result<()> {
        let limit = self.info.max_model_len;
        if prompt_len == 0 {
            return Err(Error::invalid("prompt", "the prompt has no tokens"));
        }
        if prompt_len >= limit {
            return Err(Error::invalid_code(
                "prompt",
                "context_length_exceeded",
                format!(
                    "the prompt has {prompt_len} tokens, the context holds {limit} with at least one to generate; a prompt is never cut"
                ),
            ));
        }
        if prompt_len + max_tokens > limit {
            return Err(Error::invalid_code(
                "max_tokens",
                "context_length_exceeded",
                format!("{prompt_len} prompt tokens and {max_tokens} new ones exceed the context of {limit}"),
            ));
        }
        Ok(())
    }

    fn check_media(&self, prompt: &PromptInput) -> Result<()> {
        let (max_patches, max_tokens) = (self.info.max_patches, self.info.max_media_tokens);
        if let Some(patches) = prompt.media.iter().map(|m| m.num_patches()).find(|p| *p > max_patches) {
            return Err(Error::too_large("images", format!("an image of {patches} patches; one pass takes {max_patches}")));
        }
        let tokens: usize = prompt.media.iter().map(|m| m.num_tokens(self.info.merge_unit).next_multiple_of(vision_cache::PAGE)).sum();
        if tokens > max_tokens {
            return Err(Error::too_large("images", format!("{tokens} image tokens in one prompt; {max_tokens} fit")));
        }
        Ok(())
    }

    fn check_lists(&self, sampling: &SamplingParams) -> Result<()> {
        let limits = [
            ("stop_token_ids", sampling.stop_token_ids.len() + sampling.banned_token_ids.len(), MAX_BANNED_IDS),
            ("logit_bias", sampling.logit_bias.len(), MAX_BIASED_IDS),
        ];
        match limits.iter().find(|(_, len, limit)| len > limit) {
            Some((name, len, limit)) => Err(Error::invalid(*name, format!("{len} ids; at most {limit}"))),
            None => Ok(()),
        }
    }

    pub async fn audit(&self) -> Result<Audit> {
        let (reply, audit) = tokio::sync::oneshot::channel();
        self.send(Command::Audit(reply))?;
        audit.await.map_err(|_| gone())
    }

    /// What the launches of decode steps took since the last call; nothing without [`super::EngineConfig::time_launches`].
    pub async fn launch_times(&self) -> Result<Vec<LaunchTime>> {
        let (reply, times) = tokio::sync::oneshot::channel();
        self.send(Command::LaunchTimes(reply))?;
        times.await.map_err(|_| gone())
    }

    pub fn reset_caches(&self) -> Result<()> {
        self.send(Command::ResetCaches)
    }

    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// What opens weights in other processes' memory on the engine's device.
    pub fn shared_door(&self) -> Option<Arc<dyn SharedDoor>> {
        self.door.clone()
    }

    /// Changes the weights; resolves after the change. Groups submitted later are computed with the new ones.
    ///
    /// # Errors
    ///
    /// Another change is under way, or this one would wait for ever; an engine that is gone.
    pub async fn swap(&self, swap: Swap) -> Result<Swapped> {
        self.order(|reply| Order::Swap(swap, reply)).await
    }

    /// Takes no step from here on; groups may still be submitted and wait.
    pub async fn pause(&self, mode: PauseMode) -> Result<()> {
        self.order(|reply| Order::Pause(mode, reply)).await
    }

    pub async fn resume(&self) -> Result<()> {
        self.order(Order::Resume).await
    }

    /// Gives the cache's memory back until [`EngineHandle::wake`]; returns its bytes.
    pub async fn sleep(&self) -> Result<usize> {
        self.order(Order::Sleep).await
    }

    pub async fn wake(&self) -> Result<()> {
        self.order(Order::Wake).await
    }

    /// Makes the present weights, or those of an update, the reference; returns the version of the policy at that time.
    ///
    /// # Errors
    ///
    /// An engine without reference weights.
    pub async fn freeze(&self, update: Option<Arc<Update>>) -> Result<PolicyVersion> {
        self.order(|reply| Order::Freeze(update, reply)).await
    }

    /// Log-probabilities of given tokens.
    ///
    /// # Errors
    ///
    /// A sequence that does not fit the context, an engine without the weights that are asked for.
    pub async fn score(&self, request: ScoreRequest) -> Result<Scores> {
        if request.completion.is_empty() {
            return Ok(Scores { version: self.stats.policy_version(), ..Scores::default() });
        }
        self.check_fits(request.prompt.token_ids.len(), request.completion.len())?;
        self.check_media(&request.prompt)?;
        let (reply, scores) = tokio::sync::oneshot::channel();
        self.send(Command::Score(ScoreJob { request, reply }))?;
        scores.await.map_err(|_| gone())?
    }

    async fn order<T>(&self, order: impl FnOnce(tokio::sync::oneshot::Sender<Result<T>>) -> Order) -> Result<T> {
        let (reply, done) = tokio::sync::oneshot::channel();
        self.send(Command::Policy(order(reply)))?;
        done.await.map_err(|_| gone())?
    }

    /// Says why nothing may be generated, or that it may.
    pub fn set_unfit(&self, reason: Option<String>) {
        *self.unfit.write().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Why nothing may be generated.
    pub fn unfit(&self) -> Option<String> {
        self.unfit.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the engine thread to end after what it has; used once, by whoever joins it.
    pub fn shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::NotReady("the engine has stopped".into())
}

/// Events of one group. Dropping it before the end cancels what is unfinished.
pub struct GroupStream {
    id: GroupId,
    events: UnboundedReceiver<SampleEvent>,
    remaining: usize,
    commands: mpsc::Sender<Command>,
}

impl GroupStream {
    /// The next event; `None` once every sample has finished (or the engine has stopped: see [`GroupStream::is_complete`]).
    pub async fn next(&mut self) -> Option<SampleEvent> {
        if self.remaining == 0 {
            return None;
        }
        let event = self.events.recv().await?;
        if matches!(event, SampleEvent::Finished { .. }) {
            self.remaining -= 1;
        }
        Some(event)
    }

    pub fn is_complete(&self) -> bool {
        self.remaining == 0
    }

    /// Ends the unfinished samples; their `Finished` events follow with what they have.
    pub fn abort(&self) {
        let _ = self.commands.send(Command::Abort(self.id));
    }
}

impl Drop for GroupStream {
    fn drop(&mut self) {
        if self.remaining > 0 {
            let _ = self.commands.send(Command::Abort(self.id));
        }
    }
}
