//! Leases as learners see them: groups out, acks in, and advantages that depend on what is delivered together.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::histogram;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::advantage::{SampleRewards, advantages};
use super::batch::{Layout, check_media};
use super::plan::{DEFAULT_QUEUE, MAX_QUEUE_NAME, check_label, in_range};
use super::queue::{StoredGroup, from_json};
use super::reply::ScoredGroup;
use super::service::RolloutService;
use crate::error::{Error, Result};
use crate::store::{DeadGroup, Job, Lease, LeaseWish, QueueCounts};

/// How often a waiting learner looks again, for leases of others that expire.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const DEFAULT_LEASE_MS: u64 = 600_000;

/// Groups that a learner wants for a while.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    #[schema(minimum = 1, example = 8)]
    pub num_groups: usize,
    /// How long to wait for enough groups; not at all unless given.
    pub wait_ms: Option<u64>,
    /// `default` unless given.
    pub queue: Option<String>,
    /// Leave groups where they are whose oldest token is more versions old than this.
    pub max_staleness: Option<u64>,
    /// How long the groups are the learner's; 600000 unless given.
    #[schema(minimum = 1)]
    pub lease_ms: Option<u64>,
    /// A name under which `GET /v1/batches/leases` finds the lease.
    pub learner: Option<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LeaseReply {
    pub lease_id: String,
    /// To be sent with the ack. As a number it grows from lease to lease.
    pub fence: String,
    /// Unix milliseconds.
    pub expires_at: u64,
    /// Now serving.
    pub policy_version: u64,
    pub queue: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learner: Option<String>,
    /// In order of acceptance.
    pub groups: Vec<ScoredGroup>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    pub fence: String,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NackRequest {
    pub fence: String,
    /// For the dead letters, should this be the last delivery.
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    pub fence: String,
    /// From now.
    #[schema(minimum = 1)]
    pub lease_ms: u64,
}

/// What became of a lease's groups.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EndReply {
    pub lease_id: String,
    /// `acked` or `nacked`.
    pub state: &'static str,
    pub uids: Vec<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ExtendReply {
    pub lease_id: String,
    /// Unix milliseconds.
    pub expires_at: u64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LeasesReply {
    pub leases: Vec<LiveLease>,
}

/// A lease that is held, for a learner that lost the reply.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LiveLease {
    pub lease_id: String,
    pub fence: String,
    pub expires_at: u64,
    pub queue: String,
    pub learner: Option<String>,
    pub uids: Vec<String>,
    /// With `?groups=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<ScoredGroup>>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CountsReply {
    pub queues: BTreeMap<String, QueueReply>,
}

/// Groups of a queue. `accepted` = `acked` + `dropped` + `dead` + `pending` + `ready` + `leased`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct QueueReply {
    /// Since the store began, as are `acked` and `dropped`.
    pub accepted: u64,
    /// To be generated, or being generated.
    pub pending: u64,
    pub generating: u64,
    pub ready: u64,
    pub leased: u64,
    pub acked: u64,
    pub dead: u64,
    /// By reason.
    pub dropped: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DeadReply {
    pub groups: Vec<DeadLetter>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DeadLetter {
    pub uid: String,
    pub rollout_id: String,
    pub queue: String,
    pub reason: String,
    pub deliveries: u32,
    /// Starts of its generation that ended with the server.
    pub generations: u32,
    /// Unix milliseconds.
    pub died_at: u64,
    /// The scored group, or else the group as it was asked for, images by their digest.
    #[schema(value_type = Object)]
    pub payload: Value,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RequeueReply {
    pub uid: String,
}

impl RolloutService {
    /// Ready groups, after some waiting; `None` when there were too few all the time.
    ///
    /// # Errors
    ///
    /// A number of groups that can never be queued, times that are out of range.
    pub async fn lease(&self, request: LeaseRequest) -> Result<Option<LeaseReply>> {
        let limits = self.generator.limits();
        let wait_ms = request.wait_ms.unwrap_or(0);
        in_range("wait_ms", wait_ms, 0, limits.max_wait_ms)?;
        let lease_ms = request.lease_ms.unwrap_or(DEFAULT_LEASE_MS);
        in_range("lease_ms", lease_ms, 1, limits.max_lease_ms)?;
        let queue = request.queue.unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
        check_label("queue", &queue, MAX_QUEUE_NAME)?;
        let dataset = self.dataset.get().filter(|dataset| dataset.queue == queue);
        let most = dataset.map_or(usize::MAX, |dataset| dataset.max_ahead).min(self.options.store.max_queued_groups);
        in_range("num_groups", request.num_groups, 1, most)?;
        if let Some(learner) = &request.learner {
            check_label("learner", learner, limits.max_id_bytes)?;
        }
        let started = Instant::now();
        let deadline = started + Duration::from_millis(wait_ms);
        let mut changes = self.store.changes();
        loop {
            changes.mark_unchanged();
            let ending = dataset.is_some_and(|dataset| dataset.is_exhausted());
            let left = if ending { self.store.counts().await?.remove(&queue).unwrap_or_default() } else { QueueCounts::default() };
            let wish = LeaseWish {
                queue: queue.clone(),
                num_groups: request.num_groups,
                // The last groups of a data set may be fewer.
                partial: ending && left.pending == 0,
                lease_ms,
                learner: request.learner.clone(),
                version: self.version(),
                drop_older: self.options.max_staleness,
                skip_older: request.max_staleness,
            };
            if let Some(lease) = self.store.lease(wish).await? {
                histogram!("grouper_lease_wait_seconds").record(started.elapsed().as_secs_f64());
                return Ok(Some(self.reply(lease)?));
            }
            if ending && left.pending + left.ready == 0 {
                return Err(Error::Gone { code: "end_of_data", message: "the data set's last group was delivered".into() });
            }
            // A server that ends does not make it wait for learners.
            if Instant::now() >= deadline || self.generator.is_draining() {
                return Ok(None);
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_AGAIN)) => {}
            }
        }
    }

    /// A lease as a safetensors file. Should that fail, the groups go back to their places.
    pub async fn lease_file(&self, mut lease: LeaseReply, expand_images: bool) -> Result<Vec<u8>> {
        let (lease_id, held) = (lease.lease_id.clone(), fence(&lease.fence)?);
        let made = async {
            self.add_media(&mut lease).await?;
            let layout = Layout::new(&self.generator, expand_images);
            on_a_thread(move || layout.lease(&lease)).await
        };
        match made.await {
            Ok(file) => Ok(file),
            Err(error) => {
                self.store.nack(&lease_id, held, Some(error.to_string())).await?;
                Err(error)
            }
        }
    }

    /// The pixels of groups that want them, from the images that they were accepted with.
    async fn add_media(&self, lease: &mut LeaseReply) -> Result<()> {
        let with_images = lease.groups.iter().filter(|group| !group.images.is_empty());
        let jobs = self.store.jobs(with_images.map(|group| group.uid.clone()).collect()).await?;
        let load = async |job: Job| {
            let (mut plan, ..) = self.unpack(&job)?;
            let wanted = plan.groups.pop().filter(|_| plan.settings.returns.pixel_values);
            Ok::<_, Error>(match wanted {
                Some(group) => Some((job.uid, self.generator.prepare(group.prompt).await?.input.media)),
                None => None,
            })
        };
        for (uid, media) in futures::future::try_join_all(jobs.into_iter().map(load)).await?.into_iter().flatten() {
            for group in lease.groups.iter_mut().filter(|group| group.uid == uid) {
                check_media(group, &media)?;
                group.media = media.clone();
            }
        }
        Ok(())
    }

    pub async fn ack(&self, lease_id: &str, request: AckRequest) -> Result<EndReply> {
        let uids = self.store.ack(lease_id, fence(&request.fence)?).await?;
        Ok(EndReply { lease_id: lease_id.to_owned(), state: "acked", uids })
    }

    pub async fn nack(&self, lease_id: &str, request: NackRequest) -> Result<EndReply> {
        if let Some(reason) = &request.reason {
            check_label("reason", reason, 4 * self.generator.limits().max_id_bytes)?;
        }
        let uids = self.store.nack(lease_id, fence(&request.fence)?, request.reason).await?;
        Ok(EndReply { lease_id: lease_id.to_owned(), state: "nacked", uids })
    }

    pub async fn extend(&self, lease_id: &str, request: ExtendRequest) -> Result<ExtendReply> {
        in_range("lease_ms", request.lease_ms, 1, self.generator.limits().max_lease_ms)?;
        let expires_at = self.store.extend(lease_id, fence(&request.fence)?, request.lease_ms).await?;
        Ok(ExtendReply { lease_id: lease_id.to_owned(), expires_at })
    }

    /// Leases that are held.
    pub async fn leases(&self, learner: Option<String>, with_groups: bool) -> Result<LeasesReply> {
        let live = |lease: Lease| {
            let uids = lease.groups.iter().map(|group| group.uid.clone()).collect();
            let reply = self.reply(if with_groups { lease } else { Lease { groups: Vec::new(), ..lease } })?;
            Ok(LiveLease {
                lease_id: reply.lease_id,
                fence: reply.fence,
                expires_at: reply.expires_at,
                queue: reply.queue,
                learner: reply.learner,
                uids,
                groups: with_groups.then_some(reply.groups),
            })
        };
        let leases = self.store.leases(learner, with_groups).await?;
        Ok(LeasesReply { leases: leases.into_iter().map(live).collect::<Result<_>>()? })
    }

    pub async fn queues(&self) -> Result<CountsReply> {
        let queues = self.store.counts().await?.into_iter().map(|(queue, counts)| {
            let reply = QueueReply {
                accepted: counts.accepted,
                pending: counts.pending,
                generating: counts.generating,
                ready: counts.ready,
                leased: counts.leased,
                acked: counts.acked,
                dead: counts.dead,
                dropped: counts.dropped,
            };
            (queue, reply)
        });
        Ok(CountsReply { queues: queues.collect() })
    }

    pub async fn dead_letters(&self, after: Option<String>, limit: usize) -> Result<DeadReply> {
        in_range("limit", limit, 1, 1000)?;
        let groups = self.store.dead(after, limit).await?;
        let letter = |group: DeadGroup| {
            let payload = match &group.payload {
                Some(payload) => from_json::<Value>(payload)?["group"].take(),
                None => from_json::<Value>(&group.job)?["body"].take(),
            };
            let DeadGroup { uid, rollout_id, queue, reason, deliveries, generations, died_at, .. } = group;
            Ok(DeadLetter { uid, rollout_id, queue, reason, deliveries, generations, died_at, payload })
        };
        Ok(DeadReply { groups: groups.into_iter().map(letter).collect::<Result<_>>()? })
    }

    pub async fn requeue(&self, uid: &str) -> Result<RequeueReply> {
        self.store.requeue(uid).await?;
        Ok(RequeueReply { uid: uid.to_owned() })
    }

    fn version(&self) -> u64 {
        self.generator.engine().stats().policy_version().0
    }

    fn reply(&self, lease: Lease) -> Result<LeaseReply> {
        let stored = lease.groups.iter().map(|delivery| {
            let mut stored: StoredGroup = from_json(&delivery.payload)?;
            stored.group.delivery = Some(delivery.delivery);
            Ok(stored)
        });
        let mut stored: Vec<StoredGroup> = stored.collect::<Result<_>>()?;
        normalise_together(&mut stored);
        Ok(LeaseReply {
            lease_id: lease.lease_id,
            fence: lease.fence.to_string(),
            expires_at: lease.expires_at,
            policy_version: self.version(),
            queue: lease.queue,
            learner: lease.learner,
            groups: stored.into_iter().map(|stored| stored.group).collect(),
        })
    }
}

/// A batch takes long enough to write that others should not wait for it.
pub(super) async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

/// Advantages that span groups, over those of one recipe and the same rewards.
fn normalise_together(stored: &mut [StoredGroup]) {
    let keys = |stored: &StoredGroup| -> Vec<String> {
        stored.group.samples.first().map(|sample| sample.rewards.0.iter().map(|(key, _)| key.to_string()).collect()).unwrap_or_default()
    };
    let mut done = vec![false; stored.len()];
    for first in 0..stored.len() {
        if done[first] || !stored[first].group.advantage.spans_groups() {
            continue;
        }
        let (recipe, weights, names) = (stored[first].group.advantage.clone(), stored[first].weights.clone(), keys(&stored[first]));
        let alike = |other: &StoredGroup| other.group.advantage == recipe && other.weights == weights && keys(other) == names;
        let together: Vec<usize> = (first..stored.len()).filter(|i| alike(&stored[*i])).collect();
        let rewards: Vec<Vec<SampleRewards>> = together.iter().map(|i| rewards_of(&stored[*i].group)).collect();
        for (i, found) in together.iter().zip(advantages(&recipe, &weights, &rewards)) {
            done[*i] = true;
            for (sample, advantage) in stored[*i].group.samples.iter_mut().zip(found.advantages) {
                sample.advantage = advantage;
            }
        }
    }
}

/// What a stored group's rewards were.
pub(super) fn rewards_of(group: &ScoredGroup) -> Vec<SampleRewards> {
    let of_sample = |sample: &super::reply::SampleReply| SampleRewards {
        values: sample.rewards.0.iter().map(|(_, value)| *value).collect(),
        excluded: !sample.status.is_whole(),
    };
    group.samples.iter().map(of_sample).collect()
}

/// A fence is a number that only the server reads.
fn fence(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::Conflict("fence: not one that this server gave".into()))
}
