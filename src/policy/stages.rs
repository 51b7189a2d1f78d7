//! Parts of an update that arrive one by one. They die with the process, and when no part has come for a while: whoever put them there
//! may be gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::model::weights::Checkpoint;

/// Stages that may be open at once.
pub const MAX_STAGES: usize = 16;
const MAX_ID_BYTES: usize = 128;
/// Names of stages that ended by themselves, which are remembered to say so.
const MAX_ENDED: usize = 64;

pub struct Stages {
    shelf: Mutex<Shelf>,
    max_bytes: usize,
    ttl: Duration,
}

#[derive(Default)]
struct Shelf {
    open: BTreeMap<String, Stage>,
    ended: VecDeque<String>,
}

#[derive(Default)]
struct Stage {
    parts: Checkpoint,
    /// When the last part came, for reckoning.
    touched: Option<Instant>,
    /// When it ends without another part, for telling: Unix milliseconds.
    expires_at: u64,
}

/// A stage and what it has so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    pub id: String,
    pub num_tensors: usize,
    pub bytes: usize,
    /// Unix milliseconds.
    pub expires_at: u64,
}

impl Stages {
    pub fn new(max_bytes: usize, ttl: Duration) -> Self {
        Stages { shelf: Mutex::default(), max_bytes, ttl }
    }

    /// Bytes of one body, and of all stages together.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// How long a stage lives after its last part.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    pub fn list(&self) -> Vec<Staged> {
        self.swept().open.iter().map(|(id, stage)| stage.told(id)).collect()
    }

    /// Ends the stages whose time is over.
    pub fn sweep(&self) {
        drop(self.swept());
    }

    /// Adds a part; a part that is refused changes nothing.
    pub fn add(&self, id: &str, bytes: Vec<u8>) -> Result<Staged> {
        if id.is_empty() || id.len() > MAX_ID_BYTES || id.chars().any(char::is_control) {
            return Err(Error::invalid("stage", format!("1 to {MAX_ID_BYTES} printable bytes are a name of a stage")));
        }
        let mut shelf = self.swept();
        if shelf.ended.iter().any(|ended| ended == id) {
            return Err(Error::Conflict(self.ended(id)));
        }
        let open = &mut shelf.open;
        let held: usize = open.values().map(|stage| stage.parts.total_bytes()).sum();
        if held + bytes.len() > self.max_bytes {
            let names = open.keys().cloned().collect::<Vec<_>>().join(", ");
            let message = format!(
                "{} bytes beside the {held} of stages {names}; {} are allowed in all, and a stage ends {} s after its last part",
                bytes.len(),
                self.max_bytes,
                self.ttl.as_secs()
            );
            return Err(Error::too_large("body", message));
        }
        if !open.contains_key(id) && open.len() == MAX_STAGES {
            return Err(Error::invalid("stage", format!("{MAX_STAGES} stages are open, which is the most; apply one first")));
        }
        let mut stage = open.remove(id).unwrap_or_default();
        let added = stage.parts.add("body", bytes);
        if added.is_ok() {
            stage.touched = Some(Instant::now());
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            stage.expires_at = (now + self.ttl).as_millis() as u64;
        }
        let result = added.map(|()| stage.told(id));
        if stage.parts.num_tensors() > 0 {
            open.insert(id.to_owned(), stage);
        }
        result
    }

    /// What was staged, which it is no more.
    pub fn take(&self, id: &str) -> Result<Checkpoint> {
        let mut shelf = self.swept();
        if let Some(stage) = shelf.open.remove(id) {
            return Ok(stage.parts);
        }
        Err(Error::NotFound(match shelf.ended.iter().any(|ended| ended == id) {
            true => self.ended(id),
            false => format!("stage: there is no stage {id:?}; stages die with the process"),
        }))
    }

    fn ended(&self, id: &str) -> String {
        let ttl = self.ttl.as_secs();
        format!("stage: {id:?} ended {ttl} s after its last part (--stage-ttl) and its parts are gone; put all of them under another name")
    }

    fn swept(&self) -> MutexGuard<'_, Shelf> {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let Shelf { open, ended } = &mut *shelf;
        open.retain(|id, stage| {
            let alive = stage.touched.is_some_and(|touched| touched.elapsed() < self.ttl);
            if !alive {
                tracing::warn!("stage {id:?} of new weights ended: no part came for {} s", self.ttl.as_secs());
                ended.push_back(id.clone());
            }
            alive
        });
        while ended.len() > MAX_ENDED {
            ended.pop_front();
        }
        shelf
    }
}

impl Stage {
    fn told(&self, id: &str) -> Staged {
        let (num_tensors, bytes) = (self.parts.num_tensors(), self.parts.total_bytes());
        Staged { id: id.to_owned(), num_tensors, bytes, expires_at: self.expires_at }
    }
}
