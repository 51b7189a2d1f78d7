//! The weights that are served, from outside: which version they are, where they came from, and how new ones take their place.
//!
//! New weights are read and checked whole on other threads; the engine stops only for the copies. What the server ought to hold is
//! on disk before the engine changes, so that a version number that was ever served is never given to other weights.

mod path;
mod record;
mod stages;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use sha2::{Digest, Sha256};

pub use crate::backends::{FloatType, SharedTensor};
use crate::engine::handle::EngineHandle;
use crate::engine::policy::{Apply, NewWeights, Swap, Swapped};
use crate::engine::request::PolicyVersion;
use crate::error::{Error, Result};
pub use crate::model::shared::SharedPart;
use crate::model::shared::SharedUpdate;
use crate::model::update::{Extent, Facts, Update, WeightsDigest};
use crate::model::weights::Checkpoint;
use record::{Record, RecordFile};
use stages::Stages;
pub use stages::{MAX_STAGES, Staged};

#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// Folder from which requests may name checkpoints.
    pub root: Option<PathBuf>,
    /// Folder that remembers the expected version.
    pub data_dir: Option<PathBuf>,
    /// After a restart, serve the weights that are there even when others are expected.
    pub serve_held: bool,
    /// How long staged weights are kept after their last part.
    pub stage_ttl: Duration,
}

/// Weights and what they are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub version: u64,
    /// Of a partial update: of the digest held before and the digest of the update.
    pub sha256: String,
    /// `model:…`, `path:…`, `body`, `stage:…` or `ipc`.
    pub source: String,
}

pub struct Policy {
    engine: EngineHandle,
    config: PolicyConfig,
    state: Mutex<State>,
    stages: Stages,
    /// Whether somebody has the turn.
    updating: AtomicBool,
    record: Option<RecordFile>,
}

struct State {
    held: Held,
    /// Digest of the update that made what is held, to know it again when it is sent twice.
    last_update: String,
    expected: u64,
    reference: Option<Held>,
}

/// Where new weights come from.
pub enum Source {
    /// As the request names it.
    Path(String),
    Body(Vec<u8>),
    Stage(String),
    /// Another process's memory on the engine's device.
    Shared {
        device_uuid: [u8; 16],
        parts: Vec<SharedPart>,
    },
}

/// Weights that were found to fit.
struct Checked {
    weights: NewWeights,
    facts: Facts,
    /// Where they can be read again.
    path: Option<PathBuf>,
    /// Until they were in memory.
    read: Duration,
}

/// How an update is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// One more than the last unless given.
    pub version: Option<u64>,
    pub apply: Apply,
    pub extent: Extent,
}

/// What an update came to.
#[derive(Clone, Debug)]
pub struct Updated {
    pub held: Held,
    /// False when these weights were held already.
    pub changed: bool,
    pub num_tensors: usize,
    pub bytes: usize,
    /// Types that were rounded to the serving type, with the number of tensors.
    pub rounded: Vec<(String, usize)>,
    /// Until the weights were in memory or open, and until they were checked.
    pub read: Duration,
    pub checked: Duration,
    /// Waiting for started groups, and the time in which the engine took no step.
    pub waited: Duration,
    pub stalled: Duration,
}

/// The right to make the next update.
pub struct Turn {
    policy: Arc<Policy>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.policy.updating.store(false, Ordering::Release);
    }
}

impl Policy {
    /// `model`: what the weights that the engine started with are called.
    ///
    /// # Errors
    ///
    /// A record that can't be read or written.
    pub fn new(engine: EngineHandle, model: &str, config: PolicyConfig) -> Result<Arc<Self>> {
        let weights = engine.weights();
        let sha256 = hex(&weights.facts.digest);
        let held = Held { version: 0, sha256: sha256.clone(), source: format!("model:{model}") };
        let reference = weights.reference.then(|| held.clone());
        // In the widest type, with a tied head written out, and room for a header.
        let values: usize = weights.specs.iter().map(|spec| spec.len() * if spec.alias.is_some() { 2 } else { 1 }).sum();
        let stages = Stages::new(4 * values + (16 << 20), config.stage_ttl);
        let record = config.data_dir.as_deref().map(RecordFile::open).transpose()?;
        let state = Mutex::new(State { held, last_update: sha256, expected: 0, reference });
        Ok(Arc::new(Policy { engine, config, state, stages, updating: AtomicBool::default(), record }))
    }

    pub fn held(&self) -> Held {
        self.lock().held.clone()
    }

    pub fn reference(&self) -> Option<Held> {
        self.lock().reference.clone()
    }

    /// The version that ought to be held: another than the held one after a restart without its weights.
    pub fn expected(&self) -> u64 {
        self.lock().expected
    }

    /// Serving type of matrices.
    pub fn dtype(&self) -> &'static str {
        self.engine.info().dtype
    }

    pub fn staged(&self) -> Vec<Staged> {
        self.stages.list()
    }

    /// Bytes that all tensors of the model take at most.
    pub fn max_bytes(&self) -> usize {
        self.stages.max_bytes()
    }

    /// Whether an update is under way.
    pub fn is_updating(&self) -> bool {
        self.updating.load(Ordering::Acquire)
    }

    /// # Errors
    ///
    /// Another update is under way.
    pub fn begin(self: &Arc<Self>) -> Result<Turn> {
        match self.updating.swap(true, Ordering::AcqRel) {
            false => Ok(Turn { policy: self.clone() }),
            true => Err(Error::UpdateUnderWay("another update of the weights is under way".into())),
        }
    }

    /// Keeps a part of an update for later.
    ///
    /// # Errors
    ///
    /// Not safetensors, a tensor that is staged already, too much in all, a stage that has ended.
    pub async fn stage(self: &Arc<Self>, id: String, bytes: Vec<u8>) -> Result<Staged> {
        let policy = self.clone();
        let staged = blocking(move || policy.stages.add(&id, bytes)).await.map_err(refused)?;
        // Its memory is free at its end, whether or not somebody asks.
        let (policy, ttl) = (Arc::downgrade(self), self.stages.ttl());
        tokio::spawn(async move {
            tokio::time::sleep(ttl).await;
            policy.upgrade().inspect(|policy| policy.stages.sweep());
        });
        Ok(staged)
    }

    /// Brings back the weights that a previous process was last told to hold, if they can be had; until then, and for good if they
    /// can't, nothing is generated.
    pub fn restore(self: &Arc<Self>) -> Result<()> {
        let Some(record) = self.record.as_ref().map(RecordFile::read).transpose()?.flatten() else { return Ok(()) };
        self.lock().expected = record.version;
        let turn = self.begin()?;
        self.engine.set_unfit(Some(format!("the weights of version {} are being loaded", record.version)));
        let policy = self.clone();
        tokio::spawn(async move {
            let failed = match turn.bring_back(&record).await {
                Ok(()) => return policy.engine.set_unfit(None),
                Err(error) => error,
            };
            let held = policy.held();
            let why =
                format!("the server holds version {} ({}), version {} is expected: {failed}", held.version, held.source, record.version);
            if policy.config.serve_held {
                tracing::warn!("{why}; serving what it holds (--on-restart serve-held)");
                policy.engine.set_unfit(None);
            } else {
                tracing::error!("{why}; it waits for a push of whole weights");
                policy.engine.set_unfit(Some(format!("{why}; push whole weights, or start with --on-restart serve-held")));
            }
        });
        Ok(())
    }

    /// All tensors of the model from a path.
    fn read(&self, path: &Path) -> Result<Update> {
        let weights = self.engine.weights();
        Update::check(Checkpoint::read(path)?, &weights.specs, Extent::Whole, weights.bf16)
    }

    /// Reads weights and looks at every number.
    fn check(&self, source: Source, extent: Extent) -> Result<Checked> {
        let started = Instant::now();
        let weights = self.engine.weights();
        let (checkpoint, path) = match source {
            Source::Path(path) => {
                let path = path::resolve(self.config.root.as_deref(), &path)?;
                (Checkpoint::read(&path)?, Some(path))
            }
            Source::Stage(id) => (self.stages.take(&id)?, None),
            Source::Body(bytes) => {
                let mut checkpoint = Checkpoint::default();
                checkpoint.add("body", bytes)?;
                (checkpoint, None)
            }
            Source::Shared { device_uuid, parts } => {
                let shared = SharedUpdate::open(self.engine.shared_door(), device_uuid, parts, &weights.specs, extent)?;
                let read = started.elapsed();
                let update = shared.check()?;
                return Ok(Checked { facts: update.facts().clone(), weights: NewWeights::Shared(Arc::new(update)), path: None, read });
            }
        };
        let read = started.elapsed();
        let update = Update::check(checkpoint, &weights.specs, extent, weights.bf16)?;
        Ok(Checked { facts: update.facts().clone(), weights: NewWeights::Host(Arc::new(update)), path, read })
    }

    fn check_version(&self, wanted: &Wanted) -> Result<()> {
        let state = self.lock();
        let last = state.expected.max(state.held.version);
        if let Some(version) = wanted.version.filter(|version| *version < last || (*version == last && state.held.version != last)) {
            return Err(Error::invalid("version", format!("{version} is not above {last}; versions never go back")));
        }
        if wanted.extent == Extent::Partial && state.held.version != state.expected {
            return Err(Error::Conflict(format!(
                "version {} is expected and version {} is held: a part of the weights would not make it whole",
                state.expected, state.held.version
            )));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Checks the weights and puts them in the place of the present ones. A caller who leaves does not stop it.
    ///
    /// # Errors
    ///
    /// What is wrong with the weights or the version. Then the old weights serve on.
    pub async fn update(self, source: Source, wanted: Wanted) -> Result<Updated> {
        let started = Instant::now();
        let work = async move {
            let result = self.checked(source, wanted, started).await;
            let outcome = match &result {
                Ok(updated) if updated.changed => "ok",
                Ok(_) => "unchanged",
                Err(_) => "refused",
            };
            counter!("grouper_policy_updates_total", "outcome" => outcome).increment(1);
            if let Ok(updated) = &result {
                histogram!("grouper_policy_stall_seconds").record(updated.stalled.as_secs_f64());
                histogram!("grouper_policy_update_seconds").record(started.elapsed().as_secs_f64());
            }
            result
        };
        tokio::spawn(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    async fn checked(&self, source: Source, wanted: Wanted, started: Instant) -> Result<Updated> {
        let policy = self.policy.clone();
        policy.check_version(&wanted)?;
        let name = match &source {
            Source::Path(path) => format!("path:{path}"),
            Source::Body(_) => "body".to_owned(),
            Source::Stage(id) => format!("stage:{id}"),
            Source::Shared { .. } => "ipc".to_owned(),
        };
        let reader = policy.clone();
        let Checked { weights, facts, path, read } = blocking(move || reader.check(source, wanted.extent)).await.map_err(refused)?;
        let checked = started.elapsed();
        let digest = hex(&facts.digest);
        let (version, sha256) = {
            let state = policy.lock();
            let version = wanted.version.unwrap_or(state.expected.max(state.held.version) + 1);
            let sha256 = match wanted.extent {
                Extent::Whole => digest.clone(),
                Extent::Partial => hex(&Sha256::digest(format!("{}{digest}", state.held.sha256)).into()),
            };
            (version, sha256)
        };
        let rounded = facts.rounded.into_iter().collect();
        let updated = Updated {
            held: policy.held(),
            changed: false,
            num_tensors: facts.num_tensors,
            bytes: facts.bytes,
            rounded,
            read,
            checked,
            waited: Duration::ZERO,
            stalled: Duration::ZERO,
        };
        if version == updated.held.version {
            give_up(weights).await;
            return match policy.lock().last_update == digest {
                true => Ok(updated),
                false => Err(Error::Conflict(format!("version {version} is held already, with other weights"))),
            };
        }
        // A partial update of a path depends on what was there before it: the path alone does not bring it back.
        let path = path.filter(|_| wanted.extent == Extent::Whole);
        let held = Held { version, sha256, source: name };
        let swapped = self.swap(weights, held.clone(), path, wanted.apply).await?;
        policy.lock().last_update = digest;
        Ok(Updated { held, changed: true, waited: swapped.waited, stalled: swapped.stalled, ..updated })
    }

    /// Makes the present weights, or those of a path, the reference.
    ///
    /// # Errors
    ///
    /// No second copy of the weights, or what is wrong with those of the path.
    pub async fn freeze(self, path: Option<String>) -> Result<Held> {
        let policy = self.policy.clone();
        let reader = policy.clone();
        let Some(named) = path else {
            policy.engine.freeze(None).await?;
            // Nobody else changes what is held while this turn lasts.
            let held = policy.held();
            policy.lock().reference = Some(held.clone());
            return Ok(held);
        };
        let source = format!("path:{named}");
        let update = blocking(move || {
            let path = path::resolve(reader.config.root.as_deref(), &named)?;
            reader.read(&path)
        });
        let update = Arc::new(update.await.map_err(refused)?);
        let version = policy.engine.freeze(Some(update.clone())).await?.0;
        let held = Held { version, sha256: hex(&update.facts().digest), source };
        give_up(update).await;
        policy.lock().reference = Some(held.clone());
        Ok(held)
    }

    /// Writes down what is about to be held, changes the engine, and from then on says so. The new weights' memory is given up before
    /// it returns.
    async fn swap(&self, weights: NewWeights, held: Held, path: Option<PathBuf>, apply: Apply) -> Result<Swapped> {
        let policy = &self.policy;
        let record = Record { version: held.version, sha256: held.sha256.clone(), path };
        let before = policy.record.as_ref().map(|file| file.replace(&record)).transpose()?;
        let swap = Swap { weights: weights.clone(), version: PolicyVersion(held.version), apply };
        let result = match policy.engine.swap(swap).await {
            Ok(swapped) => {
                let mut state = policy.lock();
                state.expected = held.version;
                state.held = held;
                drop(state);
                policy.engine.set_unfit(None);
                Ok(swapped)
            }
            Err(error) => {
                // Nothing changed: what was expected before still is.
                match (&policy.record, before) {
                    (Some(file), Some(before)) => file.restore(before).and(Err(error)),
                    _ => Err(error),
                }
            }
        };
        give_up(weights).await;
        result
    }

    /// Loads what a record names, if it still is what it was.
    async fn bring_back(&self, record: &Record) -> Result<()> {
        let held = self.policy.held();
        let source = record.path.as_ref().map(|path| format!("path:{}", path.display()));
        let wanted = Held { version: record.version, sha256: record.sha256.clone(), source: source.unwrap_or(held.source) };
        if record.sha256 == held.sha256 {
            return self.swap(NewWeights::Same, wanted, record.path.clone(), Apply::Finish).await.map(drop);
        }
        let Some(path) = record.path.clone() else {
            return Err(Error::NotReady("they did not come from a path".into()));
        };
        let reader = self.policy.clone();
        let update = blocking(move || reader.read(&path)).await.map_err(refused)?;
        let digest = hex(&update.facts().digest);
        if digest != record.sha256 {
            return Err(Error::NotReady("the files of its path have changed".into()));
        }
        self.swap(NewWeights::Host(Arc::new(update)), wanted, record.path.clone(), Apply::Finish).await?;
        self.policy.lock().last_update = digest;
        Ok(())
    }
}

/// What is wrong with weights is the caller's to know, by file name and tensor.
fn refused(error: Error) -> Error {
    match error {
        Error::Model(message) => Error::invalid_code("weights", "invalid_weights", message),
        Error::File { path, message } => {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            Error::invalid_code("weights", "invalid_weights", format!("{name}: {message}"))
        }
        other => other,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Frees weights, which takes a while, on a thread that may wait.
async fn give_up<T: Send + 'static>(weights: T) {
    let freed = tokio::task::spawn_blocking(move || drop(weights)).await;
    freed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
}

fn hex(digest: &WeightsDigest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
