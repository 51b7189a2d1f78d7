//! Queue mode: rollouts that are accepted now and generated when their turn comes, whatever happens to the process in between.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::idempotency::Fingerprint;
use super::plan::{DEFAULT_QUEUE, Plan};
use super::reply::ScoredGroup;
use super::request::{GroupBody, RolloutRequest};
use super::service::{Origin, RolloutService};
use crate::error::{Error, Result};
use crate::store::{Blob, Claim, Job, NewGroup, NewRollout, State};

/// What `mode: "queue"` answers at once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AcceptedReply {
    pub rollout_id: String,
    pub queue: String,
    pub seed: u64,
    pub num_groups: usize,
    /// Of the groups, in the order of the request.
    pub uids: Vec<String>,
    /// Whether the groups survive the server's process (`--data-dir`).
    pub durable: bool,
}

/// How far a queued rollout is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ProgressReply {
    pub rollout_id: String,
    pub queue: String,
    pub num_groups: usize,
    /// Groups that are `accepted`, `generating`, `ready`, `leased`, `acked`, `dropped` or `dead`.
    #[schema(value_type = BTreeMap<String, usize>)]
    pub states: BTreeMap<&'static str, usize>,
    /// Nothing is accepted or generating any more.
    pub finished: bool,
    /// Why groups were dropped or are dead, by uid.
    pub reasons: BTreeMap<String, String>,
    /// With `?groups=true`: those that are ready or leased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<ScoredGroup>>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CancelReply {
    pub rollout_id: String,
    /// Groups that were not finished and are dropped.
    pub cancelled: Vec<String>,
}

/// What is stored of a group until it is generated.
#[derive(Serialize, Deserialize)]
pub(super) struct GroupJob {
    pub position: usize,
    pub body: GroupBody,
    /// Unix milliseconds: the request's `deadline_ms` after it was accepted. Nobody has asked for a row of a data set, whose time begins
    /// with its generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_at: Option<u64>,
}

/// What is stored of a group until it is acked.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredGroup {
    /// Of its rewards, for advantages that depend on the other groups of a lease.
    pub weights: Vec<f64>,
    pub group: ScoredGroup,
}

impl RolloutService {
    /// Accepts a request's groups: they are on disk when this returns.
    ///
    /// # Errors
    ///
    /// What [`RolloutService::run`] refuses, more groups than can be queued, a key that came before with another body.
    pub async fn submit(&self, request: RolloutRequest) -> Result<AcceptedReply> {
        if self.generator.is_draining() {
            return Err(Error::NotReady("the server is draining: it takes no new work".into()));
        }
        let fingerprint = Fingerprint::of(&request);
        let plan = Plan::new(request.clone(), self.generator.limits(), &self.served, &self.judges)?;
        let key = request.idempotency_key.clone();
        let mut rollout = self.pack(request, &plan)?;
        let reply = AcceptedReply {
            rollout_id: rollout.rollout_id.clone(),
            queue: rollout.queue.clone(),
            seed: settings_of(&rollout.settings)?.seed.unwrap_or_default(),
            num_groups: rollout.groups.len(),
            uids: rollout.groups.iter().map(|group| group.uid.clone()).collect(),
            durable: self.store.is_durable(),
        };
        if let Some(key) = &key {
            let origin = Origin { seed: reply.seed, rollout_id: reply.rollout_id.clone() };
            rollout.key = Some(crate::store::NewKey { reply: Some(to_json(&reply)?), ..fingerprint.key(key, &origin) });
        }
        match (self.store.accept(rollout).await?, key) {
            (Claim::Known { fingerprint: known, reply: Some(earlier), .. }, Some(key)) => {
                fingerprint.check(&key, &known)?;
                from_json(&earlier)
            }
            (Claim::Known { fingerprint: known, .. }, Some(key)) => {
                fingerprint.check(&key, &known)?;
                Err(Error::Conflict(format!("idempotency_key: {key:?} belongs to a request of another mode")))
            }
            _ => Ok(reply),
        }
    }

    /// A checked request as it is stored: without its pixels, which are stored once, and with its seed.
    pub(super) fn pack(&self, request: RolloutRequest, plan: &Plan) -> Result<NewRollout> {
        let Origin { seed, rollout_id } = Origin::drawn(plan);
        let queue = request.queue.clone().unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
        let RolloutRequest { groups, .. } = request;
        let settings = RolloutRequest { groups: Vec::new(), seed: Some(seed), mode: None, queue: None, idempotency_key: None, ..request };
        let deadline_at = plan.deadline.map(|deadline| unix_ms() + deadline.as_millis() as u64);
        let packed = groups.into_iter().zip(&plan.groups).enumerate().map(|(position, (body, plan))| {
            let body = GroupBody { id: Some(plan.id.clone()), ..body };
            let (job, blobs) = pack(&GroupJob { position, body, deadline_at })?;
            Ok(NewGroup { uid: format!("{rollout_id}-{position}"), job, blobs, ..NewGroup::default() })
        });
        let groups = packed.collect::<Result<_>>()?;
        Ok(NewRollout { rollout_id, queue, settings: to_json(&settings)?, groups, ..NewRollout::default() })
    }

    /// A stored group as the request it came with; its last part is when it ends.
    pub(super) fn unpack(&self, job: &Job) -> Result<(Plan, usize, Origin, Option<u64>)> {
        let settings = settings_of(&job.settings)?;
        let GroupJob { position, body, deadline_at } = unpack(&job.job, &job.blobs)?;
        let seed = settings.seed.unwrap_or_default();
        let request = RolloutRequest { groups: vec![body], ..settings };
        let plan = Plan::new(request, self.generator.limits(), &self.served, &self.judges)?;
        Ok((plan, position, Origin { seed, rollout_id: job.rollout_id.clone() }, deadline_at))
    }

    /// # Errors
    ///
    /// [`Error::NotFound`] for a rollout that was not queued, or is long forgotten.
    pub async fn progress(&self, rollout_id: &str, with_groups: bool) -> Result<ProgressReply> {
        let found = self.store.progress(rollout_id, with_groups).await?;
        let progress = found.ok_or_else(|| no_such_rollout(rollout_id))?;
        let count = |state: State| progress.states.get(&state).copied().unwrap_or_default();
        let groups = progress.groups.iter().map(|delivery| Ok(from_json::<StoredGroup>(&delivery.payload)?.group));
        Ok(ProgressReply {
            rollout_id: rollout_id.to_owned(),
            num_groups: progress.states.values().sum(),
            states: State::ALL.into_iter().map(|state| (state.as_str(), count(state))).collect(),
            finished: count(State::Accepted) + count(State::Generating) == 0,
            groups: if with_groups { Some(groups.collect::<Result<_>>()?) } else { None },
            queue: progress.queue,
            reasons: progress.reasons,
        })
    }

    /// Drops what a rollout has not finished. Finished groups stay where they are.
    pub async fn cancel(&self, rollout_id: &str) -> Result<CancelReply> {
        let cancelled = self.store.cancel(rollout_id).await?.ok_or_else(|| no_such_rollout(rollout_id))?;
        let mut under_way = self.under_way();
        for uid in &cancelled {
            if let Some(task) = under_way.remove(uid) {
                task.abort();
            }
        }
        Ok(CancelReply { rollout_id: rollout_id.to_owned(), cancelled })
    }
}

fn no_such_rollout(rollout_id: &str) -> Error {
    Error::NotFound(format!("there is no queued rollout {:?}", rollout_id.chars().take(80).collect::<String>()))
}

/// The wall clock's: a deadline goes on while no server runs.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

pub(super) fn settings_of(settings: &[u8]) -> Result<RolloutRequest> {
    from_json(settings)
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Setup(format!("what is to be stored is not JSON: {e}")))
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Setup(format!("what is stored can't be read: {e}")))
}

/// Data URLs from this length on are stored apart.
const LEAST_BLOB: usize = 256;
const BLOB: &str = "grouper-blob:";

/// A job as JSON in which every data URL gives way to the digest of its content.
pub(super) fn pack(job: &GroupJob) -> Result<(Vec<u8>, Vec<Blob>)> {
    let mut json = serde_json::to_value(job).map_err(|e| Error::Setup(format!("a group is not JSON: {e}")))?;
    let mut blobs: Vec<Blob> = Vec::new();
    each_string(&mut json, &mut |text| {
        let (header, payload) = text.split_once(',').filter(|(header, _)| header.starts_with("data:") && text.len() >= LEAST_BLOB)?;
        let codec = &base64::engine::general_purpose::STANDARD;
        // Only what can be written back to the letter.
        let bytes = codec.decode(payload).ok().filter(|bytes| header.ends_with(";base64") && codec.encode(bytes) == payload)?;
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{BLOB}{sha256}:{header}");
        if blobs.iter().all(|blob| blob.sha256 != sha256) {
            blobs.push(Blob { sha256, bytes });
        }
        Some(name)
    });
    Ok((to_json(&json)?, blobs))
}

pub(super) fn unpack(job: &[u8], blobs: &[Blob]) -> Result<GroupJob> {
    let mut json: Value = from_json(job)?;
    each_string(&mut json, &mut |text| {
        let (sha256, header) = text.strip_prefix(BLOB)?.split_once(':')?;
        let blob = blobs.iter().find(|blob| blob.sha256 == sha256)?;
        Some(format!("{header},{}", base64::engine::general_purpose::STANDARD.encode(&blob.bytes)))
    });
    serde_json::from_value(json).map_err(|e| Error::Setup(format!("a stored group can't be read: {e}")))
}

fn each_string(json: &mut Value, change: &mut impl FnMut(&str) -> Option<String>) {
    match json {
        Value::String(text) => {
            if let Some(changed) = change(text) {
                *text = changed;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| each_string(item, change)),
        Value::Object(fields) => fields.values_mut().for_each(|field| each_string(field, change)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_urls_are_stored_once_and_come_back_to_the_letter() {
        let image = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode([7; 300]));
        let odd = format!("data:image/png;base64,{}", "not base64 ".repeat(40));
        let message = serde_json::json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}, {"text": odd}]});
        let body = GroupBody { messages: Some(vec![message]), images: Some(vec![image.clone(), "a.png".into()]), ..GroupBody::default() };
        let (job, blobs) = pack(&GroupJob { position: 3, body: body.clone(), deadline_at: None }).unwrap();
        assert!(blobs.len() == 1 && blobs[0].bytes == [7; 300] && !String::from_utf8(job.clone()).unwrap().contains(&image));
        let back = unpack(&job, &blobs).unwrap();
        assert!(back.position == 3 && back.body == body);
    }
}
