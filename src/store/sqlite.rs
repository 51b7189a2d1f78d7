//! The store that comes with the program: one SQLite file that any of SQLite's tools reads, written by one thread.

use std::fs::File;
use std::path::Path;

use async_trait::async_trait;
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::writer::{Needs, Ops, Place, Shared};
use super::{
    BatchStore, Claim, Clock, Counts, DeadGroup, Job, Lease, LeaseWish, NewKey, NewRollout, Outcome, Progress, StoreOptions, schema,
};
use crate::error::{Error, Result};

pub struct SqliteStore {
    shared: Shared,
    durable: bool,
    /// Makes lease ids that no other lease of this store has.
    lease_prefix: String,
}

impl SqliteStore {
    /// The store of a data folder, which is made when it is not there.
    ///
    /// # Errors
    ///
    /// A folder that can't be written to or that another server uses, a damaged file, one of a later version.
    pub fn open(folder: &Path, options: StoreOptions, clock: Clock) -> Result<Self> {
        let setup = |message: String| Error::Setup(format!("--data-dir {}: {message}", folder.display()));
        std::fs::create_dir_all(folder).map_err(|e| setup(e.to_string()))?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock"));
        let lock = lock.map_err(|e| setup(e.to_string()))?;
        lock.try_lock().map_err(|_| setup("another server uses this folder".into()))?;
        let file = folder.join("grouper.sqlite");
        let mut db = Connection::open(&file).map_err(|e| setup(e.to_string()))?;
        let checked: String =
            db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|e| setup(format!("{e} (grouper.sqlite)")))?;
        if checked != "ok" {
            return Err(setup(format!("grouper.sqlite is damaged: {checked}")));
        }
        db.pragma_update(None, "journal_mode", "WAL").map_err(|e| setup(e.to_string()))?;
        Self::with(&mut db, &setup)?;
        // The name of a new file is durable when its folder is.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| setup(e.to_string()))?;
        Self::start(db, options, clock, Some(Place { reserve: folder.join("reserve"), _lock: lock }))
    }

    /// A store that ends with the process.
    pub fn in_memory(options: StoreOptions, clock: Clock) -> Result<Self> {
        let setup = |message: String| Error::Setup(format!("no store in memory: {message}"));
        let mut db = Connection::open_in_memory().map_err(|e| setup(e.to_string()))?;
        Self::with(&mut db, &setup)?;
        Self::start(db, options, clock, None)
    }

    fn with(db: &mut Connection, setup: &dyn Fn(String) -> Error) -> Result<()> {
        let pragmas = db.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 2000;");
        pragmas.map_err(|e| setup(e.to_string()))?;
        db.set_prepared_statement_cache_capacity(128);
        schema::migrate(db).map_err(setup)
    }

    fn start(db: Connection, options: StoreOptions, clock: Clock, place: Option<Place>) -> Result<Self> {
        let now = clock.now_ms();
        Ops::new(&db, &options, now).recover().map_err(|fault| Error::Setup(format!("the store can't be read: {fault:?}")))?;
        let last: i64 = db.query_row("SELECT last FROM fences", [], |row| row.get(0)).unwrap_or_default();
        let digest = Sha256::digest(format!("{now} {last} {}", std::process::id()));
        let lease_prefix = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        let durable = place.is_some();
        Ok(SqliteStore { shared: Shared::start(db, options, clock, place)?, durable, lease_prefix })
    }
}

#[async_trait]
impl BatchStore for SqliteStore {
    async fn accept(&self, rollout: NewRollout) -> Result<Claim> {
        self.shared.call(Needs::Room, move |ops| ops.accept(&rollout)).await
    }

    async fn start(&self, limit: usize) -> Result<Vec<Job>> {
        self.shared.call(Needs::Little, move |ops| ops.start(limit)).await
    }

    async fn finish(&self, uid: &str, outcome: Outcome) -> Result<bool> {
        let uid = uid.to_owned();
        self.shared.call(Needs::Room, move |ops| ops.finish(&uid, &outcome)).await
    }

    async fn give_back(&self, uids: Vec<String>, blame: bool) -> Result<()> {
        self.shared.call(Needs::Little, move |ops| ops.give_back(&uids, blame)).await
    }

    async fn cancel(&self, rollout_id: &str) -> Result<Option<Vec<String>>> {
        let rollout_id = rollout_id.to_owned();
        self.shared.call(Needs::Little, move |ops| ops.cancel(&rollout_id)).await
    }

    async fn lease(&self, wish: LeaseWish) -> Result<Option<Lease>> {
        let prefix = self.lease_prefix.clone();
        self.shared
            .call(Needs::Little, move |ops| {
                let fence: i64 = ops.db.query_row("SELECT last FROM fences", [], |row| row.get(0))?;
                ops.lease(&format!("lease-{prefix}-{}", fence + 1), &wish)
            })
            .await
    }

    async fn ack(&self, lease_id: &str, fence: u64) -> Result<Vec<String>> {
        let lease_id = lease_id.to_owned();
        self.shared.call(Needs::Little, move |ops| ops.ack(&lease_id, fence)).await
    }

    async fn nack(&self, lease_id: &str, fence: u64, reason: Option<String>) -> Result<Vec<String>> {
        let lease_id = lease_id.to_owned();
        self.shared.call(Needs::Little, move |ops| ops.nack(&lease_id, fence, reason.as_deref())).await
    }

    async fn extend(&self, lease_id: &str, fence: u64, lease_ms: u64) -> Result<u64> {
        let lease_id = lease_id.to_owned();
        self.shared.call(Needs::Little, move |ops| ops.extend(&lease_id, fence, lease_ms)).await
    }

    async fn leases(&self, learner: Option<String>, with_payloads: bool) -> Result<Vec<Lease>> {
        self.shared.call(Needs::Little, move |ops| ops.leases(learner.as_deref(), with_payloads)).await
    }

    async fn sweep(&self) -> Result<usize> {
        self.shared
            .call(Needs::Little, |ops| {
                ops.forget_old()?;
                Ok(ops.expired.get())
            })
            .await
    }

    async fn counts(&self) -> Result<Counts> {
        self.shared.call(Needs::Little, |ops| ops.counts()).await
    }

    async fn dead(&self, after: Option<String>, limit: usize) -> Result<Vec<DeadGroup>> {
        self.shared.call(Needs::Little, move |ops| ops.dead(after.as_deref(), limit)).await
    }

    async fn requeue(&self, uid: &str) -> Result<()> {
        let uid = uid.to_owned();
        self.shared.call(Needs::Little, move |ops| ops.requeue(&uid)).await
    }

    async fn progress(&self, rollout_id: &str, with_groups: bool) -> Result<Option<Progress>> {
        let rollout_id = rollout_id.to_owned();
        self.shared.call(Needs::Little, move |ops| ops.progress(&rollout_id, with_groups)).await
    }

    async fn jobs(&self, uids: Vec<String>) -> Result<Vec<Job>> {
        self.shared.call(Needs::Little, move |ops| ops.jobs(&uids)).await
    }

    async fn claim_key(&self, key: NewKey) -> Result<Claim> {
        self.shared.call(Needs::Room, move |ops| ops.claim_key(&key)).await
    }

    async fn set_reply(&self, key: &str, reply: Vec<u8>) -> Result<()> {
        let key = key.to_owned();
        self.shared.call(Needs::Room, move |ops| ops.set_reply(&key, &reply)).await
    }

    async fn free_key(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.shared.call(Needs::Little, move |ops| ops.free_key(&key)).await
    }

    async fn cursor(&self, queue: &str) -> Result<Option<Vec<u8>>> {
        let queue = queue.to_owned();
        self.shared.call(Needs::Little, move |ops| ops.cursor(&queue)).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn is_durable(&self) -> bool {
        self.durable
    }

    fn failure(&self) -> Option<String> {
        self.shared.failure.get().cloned()
    }
}
