//! Generation of queued groups: from the store to the engine, and back into the store when they are scored.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use metrics::counter;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use super::advantage::advantages;
use super::group::{DEADLINE_EXCEEDED, Outcome as GroupOutcome};
use super::queue::{StoredGroup, to_json, unix_ms};
use super::reply::{GroupReply, ScoredGroup};
use super::service::RolloutService;
use crate::error::{Error, Result};
use crate::store::{Job, Outcome};

/// Between two looks at what has expired, and after a failure of the store.
const TICK: Duration = Duration::from_secs(1);
/// Groups taken from the store at a time.
const MAX_TAKEN: usize = 64;
/// How soon a group is tried again that found no room in the engine.
const ROOM_AGAIN: Duration = Duration::from_millis(50);

/// The running task; dropping it stops it without giving back what it has.
pub struct Feeder {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// How a group's task ended.
enum End {
    Outcome(Box<Outcome>),
    /// Not the group's fault.
    GiveBack,
}

impl Feeder {
    /// Call it within a tokio runtime.
    pub fn start(service: Arc<RolloutService>) -> Feeder {
        let (stop, stopped) = oneshot::channel();
        Feeder { stop, task: tokio::spawn(feed(service, stopped)) }
    }

    /// Ends generation; what is unfinished is accepted again. Call it when the service drains.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

async fn feed(service: Arc<RolloutService>, mut stopped: oneshot::Receiver<()>) {
    // So many that the engine never waits for a group; more would only make groups older.
    let wanted = 2 * service.generator.engine().info().max_num_seqs;
    let mut changes = service.store.changes();
    let mut tick = tokio::time::interval(TICK);
    let mut tasks: JoinSet<()> = JoinSet::new();
    let mut samples_per_group = 8;
    loop {
        changes.mark_unchanged();
        let room = wanted.saturating_sub(tasks.len() * samples_per_group);
        let mut taken = 0;
        if room > 0 && !service.generator.is_draining() {
            match service.store.start((room / samples_per_group).clamp(1, MAX_TAKEN)).await {
                Ok(jobs) => {
                    taken = jobs.len();
                    for job in jobs {
                        samples_per_group = service.spawn(&mut tasks, job).unwrap_or(samples_per_group);
                    }
                }
                // Said by the store; the next tick tries again.
                Err(_) => changes.mark_unchanged(),
            }
        }
        if taken > 0 {
            continue;
        }
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = tasks.join_next() => {}
            Ok(()) = changes.changed() => {}
            _ = tick.tick() => {
                // A store that fails says so itself.
                let _ = service.store.sweep().await;
            }
        }
    }
    let left: Vec<String> = service.under_way().drain().map(|(uid, task)| (uid, task.abort()).0).collect();
    tasks.shutdown().await;
    if let Err(error) = service.store.give_back(left, false).await {
        tracing::warn!("groups that were being generated are taken up again at the next start only: {error}");
    }
}

impl RolloutService {
    pub(super) fn under_way(&self) -> MutexGuard<'_, std::collections::HashMap<String, AbortHandle>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a group; gives the number of its samples when it can be told.
    fn spawn(self: &Arc<Self>, tasks: &mut JoinSet<()>, job: Job) -> Option<usize> {
        let (service, uid) = (self.clone(), job.uid.clone());
        let num_samples = super::queue::settings_of(&job.settings).ok().map(|settings| settings.num_generations.unwrap_or(8).max(1));
        let mut under_way = self.under_way();
        let task = tasks.spawn(async move {
            let uid = job.uid.clone();
            // A task of its own: a panic in it is the group's.
            let generating = AbortOnDrop(tokio::spawn(service.clone().generate(job)));
            service.settle(&uid, generating.join().await).await;
        });
        under_way.insert(uid, task);
        num_samples
    }

    /// Brings a group's end to the store, which may have to come back to its senses first.
    async fn settle(&self, uid: &str, end: std::result::Result<End, tokio::task::JoinError>) {
        loop {
            let stored = match &end {
                Ok(End::Outcome(outcome)) => {
                    let stored = self.store.finish(uid, Outcome::clone(outcome)).await.map(drop);
                    if stored.is_ok() {
                        self.under_way().remove(uid);
                    }
                    stored
                }
                Ok(End::GiveBack) => {
                    // What is wrong with the engine is not over at once.
                    tokio::time::sleep(TICK).await;
                    // It may be started again before this task is over.
                    self.under_way().remove(uid);
                    self.store.give_back(vec![uid.to_owned()], false).await
                }
                Err(panic) => {
                    tracing::error!("generation of group {uid} failed: {panic}");
                    self.under_way().remove(uid);
                    self.store.give_back(vec![uid.to_owned()], true).await
                }
            };
            match stored {
                Ok(()) => return,
                Err(_) => tokio::time::sleep(TICK).await,
            }
        }
    }

    async fn generate(self: Arc<Self>, job: Job) -> End {
        match self.outcome(&job).await {
            Ok(outcome) => End::Outcome(Box::new(outcome)),
            Err(Error::NotReady(_) | Error::Overloaded { .. } | Error::Storage { .. }) => End::GiveBack,
            Err(error) => End::Outcome(Box::new(Outcome::Dead { reason: error.to_string() })),
        }
    }

    async fn outcome(&self, job: &Job) -> Result<Outcome> {
        let (mut plan, position, origin, deadline_at) = self.unpack(job)?;
        let (samples, max_tokens) = (plan.settings.num_generations, plan.settings.sampling.max_tokens);
        let _permit = loop {
            if let Some(deadline_at) = deadline_at {
                let left = deadline_at.saturating_sub(unix_ms());
                if left == 0 {
                    return Ok(too_late());
                }
                plan.deadline = Some(Duration::from_millis(left));
            }
            match self.generator.admit(samples, max_tokens) {
                Ok(permit) => break permit,
                Err(Error::Overloaded { .. }) => tokio::time::sleep(ROOM_AGAIN).await,
                // Weights may be on their way.
                Err(Error::NotReady(_)) if !self.generator.is_draining() => tokio::time::sleep(TICK).await,
                Err(error) => return Err(error),
            }
        };
        let (run, mut groups) = self.starter().run(plan, origin);
        let Some(group) = groups.pop() else { return Err(Error::Setup(format!("group {} is empty", job.uid))) };
        let finished = run.clone().group(position, group).await;
        // An engine that stopped owes its samples; they are not the model's.
        if let Some(Err(error)) = self.generator.engine().audit().now_or_never() {
            return Err(error);
        }
        match finished.outcome {
            GroupOutcome::Dropped(rule) => Ok(Outcome::Dropped { reason: rule.to_owned() }),
            GroupOutcome::Bad { error: Error::Invalid { code: DEADLINE_EXCEEDED, .. }, .. } => Ok(too_late()),
            GroupOutcome::Bad { error, .. } => Err(error),
            GroupOutcome::Kept(group) => {
                let weights = run.settings.rewarder.weights().to_vec();
                // Those that depend on other groups are reckoned when it is known which are delivered together.
                let own = advantages(&run.settings.recipe, &weights, &[group.rewards()]).remove(0);
                let GroupReply::Scored(scored) = run.scored(*group, own) else {
                    return Err(Error::Setup(format!("group {} has no samples", job.uid)));
                };
                let version = oldest_version(&scored).unwrap_or_else(|| self.generator.engine().stats().policy_version().0);
                let group = ScoredGroup { uid: job.uid.clone(), media: Vec::new(), ..*scored };
                counter!("grouper_queue_generated_total").increment(1);
                Ok(Outcome::Ready { payload: to_json(&StoredGroup { weights, group })?, version })
            }
        }
    }
}

/// The deadline passed before there was anything to abort.
fn too_late() -> Outcome {
    Outcome::Dropped { reason: "deadline".into() }
}

/// The oldest policy version among a group's tokens.
fn oldest_version(group: &ScoredGroup) -> Option<u64> {
    group.samples.iter().flat_map(|sample| &sample.policy_versions).map(|span| span.version.0).min()
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> AbortOnDrop<T> {
    async fn join(mut self) -> std::result::Result<T, tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
