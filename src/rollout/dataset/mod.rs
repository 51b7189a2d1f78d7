//! Dataset mode: the rows of a file become queued groups by themselves, a bounded number ahead of what learners have acked.
//!
//! The place in the data set is stored with the acceptance of its rows, so that a restart neither skips a row nor takes one twice.

mod rows;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::plan::{DEFAULT_QUEUE, Plan};
use super::queue::{GroupJob, from_json, pack, to_json};
use super::request::{GroupBody, Mode, RolloutRequest};
use super::service::{Origin, RolloutService};
use crate::error::{Error, Result};
use crate::store::{NewGroup, NewRollout};
use source::Source;

/// What an operator says of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetOptions {
    pub file: PathBuf,
    /// A rollout body without groups; defaults when `None`.
    pub config: Option<PathBuf>,
    /// Groups that are pending, ready or leased.
    pub max_ahead: usize,
    /// `None` goes on for ever.
    pub epochs: Option<u64>,
    /// For what a Parquet file is unpacked to; the system's folder for temporary files when `None`.
    pub scratch: Option<PathBuf>,
}

/// Rows accepted in one transaction.
const MAX_TAKEN: usize = 32;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where a data set is, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    /// Of the file.
    sha256: String,
    seed: u64,
    epoch: u64,
    /// Rows of this epoch's order that were taken.
    taken: usize,
}

/// A data set that is being read.
pub(super) struct Dataset {
    pub queue: String,
    pub max_ahead: usize,
    epochs: Option<u64>,
    settings: RolloutRequest,
    source: Source,
    /// Every row of every epoch was accepted.
    exhausted: AtomicBool,
}

/// The task that accepts rows; dropping it does not stop it.
pub struct DatasetTask(JoinHandle<()>);

impl DatasetTask {
    /// Opens the file and goes on where the store says. Call it within a tokio runtime.
    ///
    /// # Errors
    ///
    /// A file that can't be read, another file than the one that was begun, a configuration that no rollout could have.
    pub async fn start(service: Arc<RolloutService>, options: &DatasetOptions) -> Result<DatasetTask> {
        let settings = read_config(options.config.as_deref())?;
        let queue = settings.queue.clone().unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
        let (file, scratch) = (options.file.clone(), options.scratch.clone());
        let opened = tokio::task::spawn_blocking(move || Source::open(&file, scratch.as_deref())).await;
        let source = opened.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        // A probe of what all rows have in common: faults are the operator's, now, and not each row's, later.
        let probe = RolloutRequest { groups: vec![rows::probe()], ..settings.clone() };
        let plan = Plan::new(probe, service.generator.limits(), &service.served, &service.judges);
        let plan = plan.map_err(|e| Error::Setup(format!("--rollout-config: {e}")))?;
        let cursor = match service.store.cursor(&queue).await? {
            None => Cursor { sha256: source.sha256.clone(), seed: Origin::drawn(&plan).seed, epoch: 0, taken: 0 },
            Some(stored) => from_json::<Cursor>(&stored)?,
        };
        if cursor.sha256 != source.sha256 {
            let (name, ours, theirs) = (options.file.display(), &source.sha256[..12], &cursor.sha256[..12]);
            return Err(Error::Setup(format!(
                "--dataset {name}: this file (sha256 {ours}…) is not the one that queue {queue:?} was filled from ({theirs}…); \
                 give that one, or another --data-dir"
            )));
        }
        let settings = RolloutRequest { seed: Some(cursor.seed), mode: None, queue: None, ..settings };
        let (max_ahead, epochs) = (options.max_ahead, options.epochs);
        let dataset = Arc::new(Dataset { queue, max_ahead, epochs, settings, source, exhausted: AtomicBool::new(false) });
        if service.dataset.set(dataset.clone()).is_err() {
            return Err(Error::Setup("--dataset: one data set is being read already".into()));
        }
        Ok(DatasetTask(tokio::spawn(feed(service, dataset, cursor))))
    }

    /// Ends it; nothing of it holds the service afterwards.
    pub async fn stop(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

async fn feed(service: Arc<RolloutService>, dataset: Arc<Dataset>, mut cursor: Cursor) {
    let mut changes = service.store.changes();
    let mut order = Vec::new();
    let mut order_of = None;
    loop {
        changes.mark_unchanged();
        if cursor.taken >= dataset.source.len() {
            cursor = Cursor { epoch: cursor.epoch + 1, taken: 0, ..cursor };
        }
        if dataset.epochs.is_some_and(|epochs| cursor.epoch >= epochs) {
            dataset.exhausted.store(true, Ordering::Release);
            tracing::info!("the data set is at its end");
            return;
        }
        if order_of != Some(cursor.epoch) {
            order = dataset.order(&cursor);
            order_of = Some(cursor.epoch);
        }
        let room = match service.store.counts().await {
            Ok(counts) => dataset.max_ahead.saturating_sub(counts.get(&dataset.queue).map_or(0, |counts| counts.in_flight() as usize)),
            Err(_) => 0,
        };
        let rows = &order[cursor.taken..(cursor.taken + room.min(MAX_TAKEN)).min(order.len())];
        let next = Cursor { taken: cursor.taken + rows.len(), ..cursor.clone() };
        if !rows.is_empty() && !service.generator.is_draining() {
            match dataset.rollout(&service, &next, rows) {
                Ok(rollout) => match service.store.accept(rollout).await {
                    Ok(_) => {
                        cursor = next;
                        continue;
                    }
                    Err(Error::Overloaded { .. } | Error::Storage { .. }) => {}
                    Err(error) => return tracing::error!("the data set is not read on: {error}"),
                },
                Err(error) => return tracing::error!("the data set is not read on: {error}"),
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

impl Dataset {
    /// Whether all that will ever be generated was accepted.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Acquire)
    }

    /// The rows of an epoch in the order of their digests: one that seed and epoch decide, and nothing else.
    fn order(&self, cursor: &Cursor) -> Vec<usize> {
        let digest = |row: &usize| {
            let mut hash = Sha256::new();
            hash.update(b"grouper-order-1");
            hash.update(cursor.seed.to_le_bytes());
            hash.update(cursor.epoch.to_le_bytes());
            hash.update((*row as u64).to_le_bytes());
            hash.finalize()
        };
        let mut rows: Vec<usize> = (0..self.source.len()).collect();
        rows.sort_by_cached_key(digest);
        rows
    }

    /// Rows as groups to be accepted. Those that can't be generated are among them, with the reason.
    fn rollout(&self, service: &RolloutService, next: &Cursor, rows: &[usize]) -> Result<NewRollout> {
        let settings = to_json(&self.settings)?;
        let run = Sha256::digest([self.source.sha256.as_bytes(), &settings].concat());
        let run: String = run[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        let rollout_id = format!("dataset-{run}-{}", next.epoch);
        let groups = rows.iter().map(|row| {
            let uid = format!("{rollout_id}-{row}");
            let id = format!("{}:{row}", next.epoch);
            match self.body(service, *row, id) {
                Ok(body) => {
                    let (job, blobs) = pack(&GroupJob { position: *row, body, deadline_at: None })?;
                    Ok(NewGroup { uid, job, blobs, retake: true, unusable: None })
                }
                Err(error) => {
                    let line = self.source.row(*row).unwrap_or_default();
                    let job = to_json(&json!({"position": row, "body": line}))?;
                    Ok(NewGroup { uid, job, unusable: Some(format!("row {row}: {error}")), ..NewGroup::default() })
                }
            }
        });
        let groups = groups.collect::<Result<_>>()?;
        let cursor = Some(to_json(next)?);
        Ok(NewRollout { rollout_id, queue: self.queue.clone(), settings, groups, cursor, key: None })
    }

    /// A row as a group that can be generated, as far as can be told without its images.
    fn body(&self, service: &RolloutService, row: usize, id: String) -> Result<GroupBody> {
        let body = rows::group(self.source.row(row)?, id)?;
        let request = RolloutRequest { groups: vec![body.clone()], ..self.settings.clone() };
        Plan::new(request, service.generator.limits(), &service.served, &service.judges)?;
        Ok(body)
    }
}

/// A rollout body without groups.
fn read_config(path: Option<&Path>) -> Result<RolloutRequest> {
    let Some(path) = path else { return Ok(RolloutRequest::default()) };
    let refuse = |message: String| Error::Setup(format!("--rollout-config {}: {message}", path.display()));
    let text = std::fs::read(path).map_err(|e| refuse(e.to_string()))?;
    let mut body: Value = serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))?;
    let Some(fields) = body.as_object_mut() else { return Err(refuse("not a JSON object".into())) };
    for name in ["groups", "idempotency_key"] {
        if fields.contains_key(name) {
            return Err(refuse(format!("{name:?} has no place beside --dataset")));
        }
    }
    fields.insert("groups".into(), json!([]));
    let request: RolloutRequest = serde_json::from_value(body).map_err(|e| refuse(e.to_string()))?;
    if !matches!(request.mode, None | Some(Mode::Queue)) {
        return Err(refuse("mode: groups of a data set are queued".into()));
    }
    Ok(RolloutRequest { mode: Some(Mode::Queue), ..request })
}
