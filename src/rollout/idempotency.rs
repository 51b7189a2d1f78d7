//! Keyed requests: generated once, whoever asks and however often, and not cancelled when a caller leaves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use sha2::{Digest, Sha256};

use super::limits::Limits;
use super::reply::RolloutReply;
use super::request::RolloutRequest;
use crate::error::{Error, Result};

type Reply = Shared<BoxFuture<'static, Result<Arc<RolloutReply>>>>;

/// Replies by key, in memory: they end with the process, after their time, or to make room for younger ones.
pub(super) struct Replies {
    entries: Mutex<HashMap<String, Entry>>,
    max_keys: usize,
    max_bytes: usize,
    ttl: Duration,
}

struct Entry {
    fingerprint: Fingerprint,
    reply: Reply,
    since: Instant,
    /// Of the finished reply; `None` while it is generated.
    bytes: Option<usize>,
}

/// A digest of a request's body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(request: &RolloutRequest) -> Self {
        // Maps with string keys and finite numbers always serialise.
        let body = serde_json::to_vec(request).unwrap_or_default();
        Fingerprint(Sha256::digest(&body).into())
    }
}

impl Replies {
    pub fn new(limits: &Limits) -> Self {
        Replies {
            entries: Mutex::default(),
            max_keys: limits.max_idempotency_keys,
            max_bytes: limits.max_idempotency_bytes,
            ttl: Duration::from_secs(limits.idempotency_ttl_s),
        }
    }

    /// The reply of an earlier request with this key, or that of `work`, which starts now and ends whoever leaves.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when the key came with another body; what `work` ends with, which is then forgotten.
    pub async fn join<W>(
        self: &Arc<Self>,
        key: String,
        fingerprint: Fingerprint,
        work: impl FnOnce() -> Result<W>,
    ) -> Result<Arc<RolloutReply>>
    where
        W: Future<Output = Result<RolloutReply>> + Send + 'static,
    {
        let reply = self.enter(key, fingerprint, work)?;
        reply.await
    }

    fn enter<W>(self: &Arc<Self>, key: String, fingerprint: Fingerprint, work: impl FnOnce() -> Result<W>) -> Result<Reply>
    where
        W: Future<Output = Result<RolloutReply>> + Send + 'static,
    {
        let mut entries = self.lock();
        entries.retain(|_, entry| entry.bytes.is_none() || entry.since.elapsed() < self.ttl);
        if let Some(entry) = entries.get(&key) {
            return match entry.fingerprint == fingerprint {
                true => Ok(entry.reply.clone()),
                false => Err(Error::Conflict(format!("idempotency_key: {key:?} came before with another body"))),
            };
        }
        while entries.len() >= self.max_keys {
            if !forget_oldest(&mut entries) {
                let message = format!("{} keyed requests are being generated, which is the limit", entries.len());
                return Err(Error::Overloaded { message, retry_after_ms: 1000 });
            }
        }
        let work = tokio::spawn(work()?);
        let (replies, name) = (self.clone(), key.clone());
        let task = tokio::spawn(async move {
            let result = match work.await {
                Ok(result) => result.map(Arc::new),
                Err(panic) => Err(Error::Setup(format!("a keyed request failed: {panic}"))),
            };
            replies.finished(&name, &result);
            result
        });
        let reply = async move { task.await.unwrap_or_else(|error| Err(Error::NotReady(format!("the server is ending: {error}")))) };
        let reply = reply.boxed().shared();
        entries.insert(key, Entry { fingerprint, reply: reply.clone(), since: Instant::now(), bytes: None });
        Ok(reply)
    }

    /// Keeps what can be repeated; a failure is forgotten, so that the key can be tried again.
    fn finished(&self, key: &str, result: &Result<Arc<RolloutReply>>) {
        let mut entries = self.lock();
        match result {
            Ok(reply) => {
                if let Some(entry) = entries.get_mut(key) {
                    entry.bytes = Some(reply.size());
                    entry.since = Instant::now();
                }
            }
            Err(_) => _ = entries.remove(key),
        }
        while entries.values().filter_map(|entry| entry.bytes).sum::<usize>() > self.max_bytes && forget_oldest(&mut entries) {}
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there was a finished reply to forget.
fn forget_oldest(entries: &mut HashMap<String, Entry>) -> bool {
    let finished = entries.iter().filter(|(_, entry)| entry.bytes.is_some());
    match finished.min_by_key(|(_, entry)| entry.since).map(|(key, _)| key.clone()) {
        Some(key) => entries.remove(&key).is_some(),
        None => false,
    }
}
