//! What was accepted is not lost: groups from their acceptance to the learner's ack, leases, and keys of requests.
//!
//! [`BatchStore`] is the seam; [`SqliteStore`] is the store that comes with the program. A store knows no prompt and no sample: what is to
//! be generated and what came of it are bytes to it.
//!
//! ```text
//! accepted → generating → scored = ready → leased(n) → acked
//!     ↑___________|  ↓         ↑______________|  ↓
//!        a crash   dropped(reason)    expired,  dead(reason)
//!                  dead(reason)        nacked
//! ```
//!
//! At every moment `accepted = acked + dropped + dead + in flight`, over the life of a store.

mod clock;
mod keys;
mod leases;
mod queue;
mod schema;
mod sqlite;
mod views;
mod writer;

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::watch;

pub use clock::{Clock, ManualClock};
pub use sqlite::SqliteStore;

use crate::error::Result;

/// Bounds and times of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Groups that are pending, ready or leased.
    pub max_queued_groups: usize,
    /// Leases of a group that end without an ack before it goes to the dead letters.
    pub max_deliveries: u32,
    /// Starts of a group's generation that end with the process before it goes to the dead letters.
    pub max_generations: u32,
    /// How long a request's key and its reply are remembered.
    pub key_ttl_ms: u64,
    /// Bytes of replies that are remembered.
    pub max_reply_bytes: usize,
    /// How long a consumed group and an ended lease are remembered.
    pub retention_ms: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        StoreOptions {
            max_queued_groups: 4096,
            max_deliveries: 5,
            max_generations: 5,
            key_ttl_ms: DAY_MS,
            max_reply_bytes: 512 << 20,
            retention_ms: DAY_MS,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Accepted,
    Generating,
    Ready,
    Leased,
    Acked,
    Dropped,
    Dead,
}

impl State {
    pub const ALL: [State; 7] =
        [State::Accepted, State::Generating, State::Ready, State::Leased, State::Acked, State::Dropped, State::Dead];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Accepted => "accepted",
            State::Generating => "generating",
            State::Ready => "ready",
            State::Leased => "leased",
            State::Acked => "acked",
            State::Dropped => "dropped",
            State::Dead => "dead",
        }
    }

    pub fn of(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// Bytes that several groups may share, such as an image: kept once, by the digest of their content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub sha256: String,
    pub bytes: Vec<u8>,
}

/// Groups to be generated. All of them are accepted, or none.
#[derive(Clone, Debug, Default)]
pub struct NewRollout {
    pub rollout_id: String,
    pub queue: String,
    /// What the groups have in common.
    pub settings: Vec<u8>,
    pub groups: Vec<NewGroup>,
    /// Stored with the acceptance: the key's reply is then that of the acceptance.
    pub key: Option<NewKey>,
    /// Stored with the acceptance: a place in a data set.
    pub cursor: Option<Vec<u8>>,
}

#[derive(Clone, Debug, Default)]
pub struct NewGroup {
    pub uid: String,
    pub job: Vec<u8>,
    pub blobs: Vec<Blob>,
    /// Accept the group anew, under another uid, when it is dropped for its age.
    pub retake: bool,
    /// Why it can't be generated: it goes to the dead letters at once.
    pub unusable: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewKey {
    pub key: String,
    pub fingerprint: Vec<u8>,
    pub seed: u64,
    pub rollout_id: String,
    pub reply: Option<Vec<u8>>,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the caller's now.
    New,
    /// It came before. Without a reply, its request was not finished.
    Known { fingerprint: Vec<u8>, seed: u64, rollout_id: String, reply: Option<Vec<u8>> },
}

/// A group to be generated.
#[derive(Clone, Debug)]
pub struct Job {
    pub uid: String,
    pub rollout_id: String,
    pub queue: String,
    pub settings: Vec<u8>,
    pub job: Vec<u8>,
    pub blobs: Vec<Blob>,
    /// Starts of this group so far, this one included, that did not end in an outcome or an orderly return.
    pub generations: u32,
}

/// How generation ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// `version` is the oldest policy version among the tokens.
    Ready {
        payload: Vec<u8>,
        version: u64,
    },
    Dropped {
        reason: String,
    },
    Dead {
        reason: String,
    },
}

/// What a learner wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseWish {
    pub queue: String,
    pub num_groups: usize,
    /// Whether fewer will do, as at the end of a data set.
    pub partial: bool,
    pub lease_ms: u64,
    pub learner: Option<String>,
    /// The version now serving, which ages are reckoned from.
    pub version: u64,
    /// Older ready groups are dropped.
    pub drop_older: Option<u64>,
    /// Older ready groups are left where they are.
    pub skip_older: Option<u64>,
}

/// Groups that one learner has for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub lease_id: String,
    /// Grows with every lease, so that whoever keeps the largest can tell a late holder.
    pub fence: u64,
    pub queue: String,
    pub learner: Option<String>,
    /// Unix milliseconds.
    pub expires_at: u64,
    pub groups: Vec<Delivery>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub uid: String,
    pub delivery: u32,
    pub payload: Vec<u8>,
}

/// A group that nobody will get unless someone asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadGroup {
    pub uid: String,
    pub rollout_id: String,
    pub queue: String,
    pub reason: String,
    pub deliveries: u32,
    pub generations: u32,
    pub died_at: u64,
    pub job: Vec<u8>,
    pub payload: Option<Vec<u8>>,
}

/// Where the groups of one rollout are.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub queue: String,
    pub states: BTreeMap<State, usize>,
    /// Reasons of those that were dropped or are dead, by uid.
    pub reasons: BTreeMap<String, String>,
    /// Payloads of those that are ready or leased, in order of acceptance, when asked for.
    pub groups: Vec<Delivery>,
}

/// Over the life of a store: what was accepted, acked and dropped; and what is there now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    pub accepted: u64,
    pub acked: u64,
    pub dropped: BTreeMap<String, u64>,
    pub pending: u64,
    /// Of those pending.
    pub generating: u64,
    pub ready: u64,
    pub leased: u64,
    pub dead: u64,
}

impl QueueCounts {
    pub fn in_flight(&self) -> u64 {
        self.pending + self.ready + self.leased
    }

    /// Accepted groups that are nowhere: 0.
    pub fn missing(&self) -> i64 {
        self.accepted as i64 - (self.acked + self.dropped.values().sum::<u64>() + self.dead + self.in_flight()) as i64
    }
}

pub type Counts = BTreeMap<String, QueueCounts>;

/// A durable queue of groups. What a method returned without an error survives the end of the process.
#[async_trait]
pub trait BatchStore: Send + Sync {
    /// Takes groups in; nothing is taken when the rollout's key is known.
    ///
    /// # Errors
    ///
    /// More groups than can ever be queued (`groups`), [`crate::error::Error::Overloaded`] when they can't be now.
    async fn accept(&self, rollout: NewRollout) -> Result<Claim>;

    /// The next groups to generate, in order of acceptance, marked as being generated. A group under suspicion of ending the process
    /// comes alone, and only when nothing else is being generated.
    async fn start(&self, limit: usize) -> Result<Vec<Job>>;

    /// How generation of a group ended. False when nobody waits for it any more: it was cancelled.
    async fn finish(&self, uid: &str, outcome: Outcome) -> Result<bool>;

    /// Groups whose generation was ended: they are accepted again, as if never started unless they are to `blame` for the end.
    async fn give_back(&self, uids: Vec<String>, blame: bool) -> Result<()>;

    /// Drops what a rollout has not finished; gives the uids of those groups. `None` when it is not known.
    async fn cancel(&self, rollout_id: &str) -> Result<Option<Vec<String>>>;

    /// The first ready groups, or `None` when there are too few.
    async fn lease(&self, wish: LeaseWish) -> Result<Option<Lease>>;

    /// Declares a lease's groups consumed; gives their uids. Repeating it changes nothing.
    ///
    /// # Errors
    ///
    /// [`crate::error::Error::NotFound`] for a lease that never was, [`crate::error::Error::Conflict`] for one that ended otherwise.
    async fn ack(&self, lease_id: &str, fence: u64) -> Result<Vec<String>>;

    /// Gives a lease's groups back to their places. Errors as [`BatchStore::ack`].
    async fn nack(&self, lease_id: &str, fence: u64, reason: Option<String>) -> Result<Vec<String>>;

    /// A lease from now on for this long; gives when it expires. Errors as [`BatchStore::ack`].
    async fn extend(&self, lease_id: &str, fence: u64, lease_ms: u64) -> Result<u64>;

    /// Leases that are held, of one learner or of all; their payloads are empty unless asked for.
    async fn leases(&self, learner: Option<String>, with_payloads: bool) -> Result<Vec<Lease>>;

    /// Ends leases that have expired and forgets what is old; gives the number of leases ended.
    async fn sweep(&self) -> Result<usize>;

    async fn counts(&self) -> Result<Counts>;

    /// Dead letters in order of acceptance, after a uid.
    async fn dead(&self, after: Option<String>, limit: usize) -> Result<Vec<DeadGroup>>;

    /// A dead letter gets another chance: to be delivered if it was generated, to be generated otherwise.
    async fn requeue(&self, uid: &str) -> Result<()>;

    async fn progress(&self, rollout_id: &str, with_groups: bool) -> Result<Option<Progress>>;

    /// Jobs with their blobs, of groups that are not yet consumed.
    async fn jobs(&self, uids: Vec<String>) -> Result<Vec<Job>>;

    async fn claim_key(&self, key: NewKey) -> Result<Claim>;

    /// Remembers the reply of a claimed key.
    async fn set_reply(&self, key: &str, reply: Vec<u8>) -> Result<()>;

    /// A claimed key whose request failed is free again.
    async fn free_key(&self, key: &str) -> Result<()>;

    /// The cursor stored with the last acceptance on this queue that had one.
    async fn cursor(&self, queue: &str) -> Result<Option<Vec<u8>>>;

    /// Changes with everything that may give someone something to do.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Whether what is accepted survives the process.
    fn is_durable(&self) -> bool;

    /// Why the store can do nothing any more.
    fn failure(&self) -> Option<String>;
}
