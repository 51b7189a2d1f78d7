//! Parts of an update that arrive one by one. They die with the process.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::model::weights::Checkpoint;

/// Stages that may be open at once.
pub const MAX_STAGES: usize = 16;
const MAX_ID_BYTES: usize = 128;

pub struct Stages {
    open: Mutex<BTreeMap<String, Checkpoint>>,
    max_bytes: usize,
}

/// A stage and what it has so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    pub id: String,
    pub num_tensors: usize,
    pub bytes: usize,
}

impl Stages {
    pub fn new(max_bytes: usize) -> Self {
        Stages { open: Mutex::default(), max_bytes }
    }

    /// Bytes of one body, and of all stages together.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    pub fn list(&self) -> Vec<Staged> {
        self.lock().iter().map(|(id, part)| staged(id, part)).collect()
    }

    /// Adds a part; a part that is refused changes nothing.
    pub fn add(&self, id: &str, bytes: Vec<u8>) -> Result<Staged> {
        if id.is_empty() || id.len() > MAX_ID_BYTES || id.chars().any(char::is_control) {
            return Err(Error::invalid("stage", format!("1 to {MAX_ID_BYTES} printable bytes are a name of a stage")));
        }
        let mut open = self.lock();
        let held: usize = open.values().map(Checkpoint::total_bytes).sum();
        if held + bytes.len() > self.max_bytes {
            let names = open.keys().cloned().collect::<Vec<_>>().join(", ");
            let message = format!("{} bytes beside the {held} of stages {names}; {} are allowed in all", bytes.len(), self.max_bytes);
            return Err(Error::too_large("body", message));
        }
        if !open.contains_key(id) && open.len() == MAX_STAGES {
            return Err(Error::invalid("stage", format!("{MAX_STAGES} stages are open, which is the most; apply one first")));
        }
        let mut part = open.remove(id).unwrap_or_default();
        let added = part.add("body", bytes);
        let result = added.map(|()| staged(id, &part));
        if part.num_tensors() > 0 {
            open.insert(id.to_owned(), part);
        }
        result
    }

    /// What was staged, which it is no more.
    pub fn take(&self, id: &str) -> Result<Checkpoint> {
        self.lock().remove(id).ok_or_else(|| Error::NotFound(format!("stage: there is no stage {id:?}; stages die with the process")))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Checkpoint>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn staged(id: &str, part: &Checkpoint) -> Staged {
    Staged { id: id.to_owned(), num_tensors: part.num_tensors(), bytes: part.total_bytes() }
}
