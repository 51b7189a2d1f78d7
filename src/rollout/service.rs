//! Rollouts: requests in, scored groups out.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use futures::future::Either;
use futures::stream::{self, FuturesUnordered, Stream, StreamExt};
use metrics::{counter, histogram};
use sha2::{Digest, Sha256};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::advantage::advantages;
use super::batch::{Layout, check_media};
use super::dataset::Dataset;
use super::delivery::on_a_thread;
use super::figures::Tally;
use super::generator::{Generator, Permit};
use super::group::{Finished, Outcome, Run};
use super::idempotency::{Fingerprint, Replies};
use super::plan::{GroupPlan, Plan, Served};
use super::reply::{GroupReply, RolloutReply, RolloutSummary, StreamItem};
use super::request::RolloutRequest;
use super::rewarder::ScorePool;
use super::scoring::{self, ScoreReply, ScoreRequest};
use crate::error::{Error, Result};
use crate::judges::Judges;
use crate::processor::PromptRequest;
use crate::store::{BatchStore, StoreOptions};

pub struct RolloutService {
    pub(super) generator: Arc<Generator>,
    pub(super) served: Served,
    pub(super) pool: Arc<ScorePool>,
    pub(super) judges: Arc<Judges>,
    replies: Arc<Replies>,
    pub(super) store: Arc<dyn BatchStore>,
    pub(super) options: QueueOptions,
    /// Groups of the store that are being generated, by uid.
    pub(super) under_way: Mutex<HashMap<String, AbortHandle>>,
    pub(super) dataset: OnceLock<Arc<Dataset>>,
}

/// What an operator decides about queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueOptions {
    pub store: StoreOptions,
    /// Ready groups that are older are dropped when a learner asks for groups.
    pub max_staleness: Option<u64>,
}

/// What a running request is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub seed: u64,
    pub rollout_id: String,
}

/// An admitted request: its groups, what they share, and the room they take.
struct Started {
    run: Arc<Run>,
    groups: Vec<GroupPlan>,
    permit: Permit,
    model: String,
}

impl RolloutService {
    pub fn new(generator: Arc<Generator>, model: impl Into<String>, store: Arc<dyn BatchStore>, options: QueueOptions) -> Self {
        let info = generator.engine().info();
        let reference = generator.engine().weights().reference;
        let served = Served { model: model.into(), vocab_size: info.vocab_size, max_model_len: info.max_model_len, reference };
        let replies = Arc::new(Replies::new(store.clone(), generator.limits().max_idempotency_keys));
        RolloutService {
            generator,
            served,
            pool: Arc::default(),
            judges: Arc::default(),
            replies,
            store,
            options,
            under_way: Mutex::default(),
            dataset: OnceLock::new(),
        }
    }

    /// The same service with judges that rewards may ask.
    pub fn with_judges(self, judges: Arc<Judges>) -> Self {
        RolloutService { judges, ..self }
    }

    /// Generates, scores and normalises all groups. Dropping the future cancels everything, unless the request has a key.
    ///
    /// # Errors
    ///
    /// A request that can't be meant, no room, a key that came before with another body, and a bad group when all are bad.
    pub async fn run(&self, request: RolloutRequest) -> Result<RolloutReply> {
        let start = Instant::now();
        let result = self.run_or_join(request).await;
        counter!("grouper_rollouts_total", "outcome" => if result.is_ok() { "ok" } else { "error" }).increment(1);
        histogram!("grouper_rollout_seconds").record(start.elapsed().as_secs_f64());
        result
    }

    async fn run_or_join(&self, request: RolloutRequest) -> Result<RolloutReply> {
        let fingerprint = request.idempotency_key.is_some().then(|| Fingerprint::of(&request));
        let mut plan = Plan::new(request, self.generator.limits(), &self.served, &self.judges)?;
        let origin = Origin::drawn(&plan);
        match plan.idempotency_key.take().zip(fingerprint) {
            None => self.starter().start(plan, origin)?.finish().await,
            Some((key, fingerprint)) => {
                let wanted = plan.settings.returns.pixel_values;
                let prompts: HashMap<_, _> = plan.groups.iter().filter(|_| wanted).map(|g| (g.id.clone(), g.prompt.clone())).collect();
                let mut reply = RolloutReply::clone(&*self.keyed(key, fingerprint, plan, origin).await?);
                self.restore_media(&mut reply, prompts).await?;
                Ok(reply)
            }
        }
    }

    /// A remembered reply has lost its pixels.
    async fn restore_media(&self, reply: &mut RolloutReply, mut prompts: HashMap<String, PromptRequest>) -> Result<()> {
        for group in &mut reply.groups {
            let GroupReply::Scored(group) = group else { continue };
            let lost = !group.images.is_empty() && group.media.is_empty();
            if let Some(prompt) = prompts.remove(&group.id).filter(|_| lost) {
                let media = self.generator.prepare(prompt).await?.input.media;
                check_media(group, &media)?;
                group.media = media;
            }
        }
        Ok(())
    }

    /// A reply as a safetensors file.
    pub async fn rollout_file(&self, reply: RolloutReply, expand_images: bool) -> Result<Vec<u8>> {
        let layout = Layout::new(&self.generator, expand_images);
        on_a_thread(move || layout.rollout(&reply)).await
    }

    /// The reply of a keyed request, generated once.
    async fn keyed(&self, key: String, fingerprint: Fingerprint, plan: Plan, origin: Origin) -> Result<Arc<RolloutReply>> {
        let starter = self.starter();
        self.replies.join(key, fingerprint, origin, move |origin| async move { starter.start(plan, origin)?.finish().await }).await
    }

    /// The groups one by one, each as it ends, then the summary; those of a keyed request when all have ended. Bad groups are
    /// elements with an `error`. Dropping the stream cancels what is unfinished, unless the request has a key.
    ///
    /// # Errors
    ///
    /// As [`RolloutService::run`], before the first group.
    pub fn stream(self: Arc<Self>, request: RolloutRequest) -> Result<impl Stream<Item = Result<StreamItem>> + Send + use<>> {
        let fingerprint = request.idempotency_key.is_some().then(|| Fingerprint::of(&request));
        let mut plan = Plan::new(request, self.generator.limits(), &self.served, &self.judges)?;
        if plan.settings.recipe.spans_groups() {
            return Err(Error::invalid("advantage", "this recipe reckons over all groups of a request, which a stream does not wait for"));
        }
        counter!("grouper_rollouts_total", "outcome" => "stream").increment(1);
        let origin = Origin::drawn(&plan);
        match plan.idempotency_key.take().zip(fingerprint) {
            None => Ok(Either::Left(self.starter().start(plan, origin)?.stream())),
            Some((key, fingerprint)) => {
                let all = async move {
                    stream::iter(match self.keyed(key, fingerprint, plan, origin).await {
                        Ok(reply) => {
                            let done = StreamItem::Done(Box::new(RolloutSummary::from(&*reply)));
                            reply.groups.iter().cloned().map(StreamItem::Group).chain([done]).map(Ok).collect()
                        }
                        Err(error) => vec![Err(error)],
                    })
                };
                Ok(Either::Right(stream::once(all).flatten()))
            }
        }
    }

    /// Rewards and advantages of completions that were generated elsewhere.
    pub async fn score(&self, request: ScoreRequest) -> Result<ScoreReply> {
        scoring::score(request, self.generator.limits(), &self.judges, &self.pool).await
    }

    pub fn served(&self) -> &Served {
        &self.served
    }

    pub fn generator(&self) -> &Arc<Generator> {
        &self.generator
    }

    pub fn store(&self) -> &Arc<dyn BatchStore> {
        &self.store
    }

    pub(super) fn starter(&self) -> Starter {
        Starter { generator: self.generator.clone(), pool: self.pool.clone(), model: self.served.model.clone() }
    }
}

/// What a request needs of the service to run, and can take along.
pub(super) struct Starter {
    generator: Arc<Generator>,
    pool: Arc<ScorePool>,
    model: String,
}

impl Starter {
    /// Makes room.
    fn start(self, plan: Plan, origin: Origin) -> Result<Started> {
        let permit = self.generator.admit(plan.groups.len() * plan.settings.num_generations, plan.settings.sampling.max_tokens)?;
        let model = self.model.clone();
        let (run, groups) = self.run(plan, origin);
        Ok(Started { run, groups, permit, model })
    }

    /// The request, its time running from now.
    pub fn run(self, plan: Plan, origin: Origin) -> (Arc<Run>, Vec<GroupPlan>) {
        let Plan { groups, settings, deadline, .. } = plan;
        let deadline = deadline.map(|deadline| Instant::now() + deadline);
        let Origin { seed, rollout_id } = origin;
        (Arc::new(Run { generator: self.generator, pool: self.pool, settings, seed, rollout_id, deadline }), groups)
    }
}

impl Origin {
    /// A fresh id, and a fresh seed unless the plan has one.
    pub fn drawn(plan: &Plan) -> Origin {
        // Readers of JSON with 53 bits of precision get a drawn seed unharmed.
        let seed = plan.settings.seed.unwrap_or_else(|| u64::from_le_bytes(fresh()) >> 11);
        Origin { seed, rollout_id: format!("rollout-{}", fresh::<12>().iter().map(|byte| format!("{byte:02x}")).collect::<String>()) }
    }
}

impl Started {
    /// Waits for all groups and writes the reply.
    async fn finish(self) -> Result<RolloutReply> {
        let Started { run, groups, permit, model } = self;
        let groups = groups.into_iter().enumerate().map(|(position, plan)| run.clone().group(position, plan));
        let mut finished: Vec<Finished> = groups.collect::<FuturesUnordered<_>>().collect().await;
        drop(permit);
        finished.sort_unstable_by_key(|group| group.position);
        let mut tally = Tally::default();
        finished.iter_mut().for_each(|group| tally.add(group));
        if finished.iter().all(|group| matches!(group.outcome, Outcome::Bad { .. })) {
            let first = finished.into_iter().find_map(|group| match group.outcome {
                Outcome::Bad { error, .. } => Some(error),
                _ => None,
            });
            return Err(first.unwrap_or_else(|| Error::invalid("groups", "there are none")));
        }
        let RolloutSummary { rollout_id, policy_version, model, seed, advantage, metrics } = run.summary(model, &tally);
        Ok(RolloutReply { rollout_id, policy_version, model, seed, advantage, groups: replies(&run, finished), metrics })
    }

    fn stream(self) -> impl Stream<Item = Result<StreamItem>> + Send + use<> {
        let Started { run, groups, permit, model } = self;
        let groups: FuturesUnordered<_> =
            groups.into_iter().enumerate().map(|(position, plan)| run.clone().group(position, plan)).collect();
        // The room is given back when the stream ends or is dropped.
        stream::unfold(Some((groups, Tally::default(), run, permit, model)), |state| async move {
            let (mut groups, mut tally, run, permit, model) = state?;
            while let Some(mut finished) = groups.next().await {
                tally.add(&mut finished);
                if let Some(reply) = replies(&run, vec![finished]).pop() {
                    return Some((Ok(StreamItem::Group(reply)), Some((groups, tally, run, permit, model))));
                }
            }
            Some((Ok(StreamItem::Done(Box::new(run.summary(model, &tally)))), None))
        })
    }
}

impl Run {
    fn summary(&self, model: String, tally: &Tally) -> RolloutSummary {
        RolloutSummary {
            rollout_id: self.rollout_id.clone(),
            policy_version: self.generator.engine().stats().policy_version(),
            model,
            seed: self.seed,
            advantage: self.settings.recipe.clone(),
            metrics: tally.figures(self.settings.rewarder.keys()),
        }
    }
}

/// The replies of groups whose advantages depend on each other, without those that were dropped.
fn replies(run: &Run, finished: Vec<Finished>) -> Vec<GroupReply> {
    let rewards: Vec<_> = finished
        .iter()
        .filter_map(|group| match &group.outcome {
            Outcome::Kept(group) => Some(group.rewards()),
            _ => None,
        })
        .collect();
    let mut advantages = advantages(&run.settings.recipe, run.settings.rewarder.weights(), &rewards).into_iter();
    finished
        .into_iter()
        .filter_map(|group| match group.outcome {
            Outcome::Kept(kept) => advantages.next().map(|advantages| run.scored(*kept, advantages)),
            Outcome::Bad { id, error } => Some(run.bad(group.position, id, &error)),
            Outcome::Dropped(_) => None,
        })
        .collect()
}

/// Bytes that no other call and no other process gets: hashed from the system's randomness and a counter.
fn fresh<const N: usize>() -> [u8; N] {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut hash = Sha256::new();
    hash.update(CALLS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    for round in 0..2 {
        // Its keys are seeded by the operating system.
        hash.update(RandomState::new().hash_one(round).to_le_bytes());
    }
    hash.update(std::process::id().to_le_bytes());
    if let Ok(time) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        hash.update(time.as_nanos().to_le_bytes());
    }
    let digest = hash.finalize();
    std::array::from_fn(|i| digest[i])
}
