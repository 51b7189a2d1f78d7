//! Keyed requests: generated once, whoever asks and however often, and not cancelled when a caller leaves.
//!
//! The store remembers key, seed and finished reply; here are the requests that are being generated, which duplicates join.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use sha2::{Digest, Sha256};

use super::reply::RolloutReply;
use super::request::RolloutRequest;
use super::service::Origin;
use crate::error::{Error, Result};
use crate::store::{BatchStore, Claim, NewKey};

type Reply = Shared<BoxFuture<'static, Result<Arc<RolloutReply>>>>;

pub(super) struct Replies {
    store: Arc<dyn BatchStore>,
    running: Mutex<HashMap<String, (Fingerprint, Reply)>>,
    max_running: usize,
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

    pub fn key(&self, key: &str, origin: &Origin) -> NewKey {
        let Origin { seed, rollout_id } = origin.clone();
        NewKey { key: key.to_owned(), fingerprint: self.0.to_vec(), seed, rollout_id, reply: None }
    }

    /// # Errors
    ///
    /// [`Error::Conflict`] when the key came before with another body.
    pub fn check(&self, key: &str, known: &[u8]) -> Result<()> {
        match self.0 == known {
            true => Ok(()),
            false => Err(Error::Conflict(format!("idempotency_key: {key:?} came before with another body"))),
        }
    }
}

impl Replies {
    pub fn new(store: Arc<dyn BatchStore>, max_running: usize) -> Self {
        Replies { store, running: Mutex::default(), max_running }
    }

    /// The reply of an earlier request with this key, or that of `work`, which starts now and ends whoever leaves. A request that the
    /// server did not live to finish is generated again as what it was.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when the key came with another body; what `work` ends with, after which the key is free again.
    pub async fn join<F, W>(self: &Arc<Self>, key: String, fingerprint: Fingerprint, origin: Origin, work: F) -> Result<Arc<RolloutReply>>
    where
        F: FnOnce(Origin) -> W + Send + 'static,
        W: Future<Output = Result<RolloutReply>> + Send + 'static,
    {
        let reply = self.enter(key, fingerprint, origin, work)?;
        reply.await
    }

    fn enter<F, W>(self: &Arc<Self>, key: String, fingerprint: Fingerprint, origin: Origin, work: F) -> Result<Reply>
    where
        F: FnOnce(Origin) -> W + Send + 'static,
        W: Future<Output = Result<RolloutReply>> + Send + 'static,
    {
        let mut running = self.lock();
        if let Some((known, reply)) = running.get(&key) {
            fingerprint.check(&key, &known.0)?;
            return Ok(reply.clone());
        }
        if running.len() >= self.max_running {
            let message = format!("{} keyed requests are being generated, which is the limit", running.len());
            return Err(Error::Overloaded { message, retry_after_ms: 1000 });
        }
        let (replies, name) = (self.clone(), key.clone());
        let task = tokio::spawn(async move {
            // A panic must not leave the key behind.
            let work = tokio::spawn(replies.clone().claim_and_run(name.clone(), fingerprint, origin, work));
            let result = work.await.unwrap_or_else(|panic| Err(Error::Setup(format!("a keyed request failed: {panic}"))));
            replies.lock().remove(&name);
            result
        });
        let reply = async move { task.await.unwrap_or_else(|error| Err(Error::NotReady(format!("the server is ending: {error}")))) };
        let reply = reply.boxed().shared();
        running.insert(key, (fingerprint, reply.clone()));
        Ok(reply)
    }

    async fn claim_and_run<F, W>(
        self: Arc<Self>,
        key: String,
        fingerprint: Fingerprint,
        origin: Origin,
        work: F,
    ) -> Result<Arc<RolloutReply>>
    where
        F: FnOnce(Origin) -> W + Send + 'static,
        W: Future<Output = Result<RolloutReply>> + Send + 'static,
    {
        let origin = match self.store.claim_key(fingerprint.key(&key, &origin)).await? {
            Claim::New => origin,
            Claim::Known { fingerprint: known, seed, rollout_id, reply } => {
                fingerprint.check(&key, &known)?;
                if let Some(reply) = reply {
                    let unreadable = |e| Error::Setup(format!("the stored reply of key {key:?} can't be read: {e}"));
                    return serde_json::from_slice(&reply).map(Arc::new).map_err(unreadable);
                }
                Origin { seed, rollout_id }
            }
        };
        match work(origin).await {
            Ok(reply) => {
                let bytes = serde_json::to_vec(&reply).map_err(|e| Error::Setup(format!("a reply is not JSON: {e}")))?;
                if let Err(error) = self.store.set_reply(&key, bytes).await {
                    // The caller gets it all the same; a repetition generates it again, from the same seed.
                    tracing::warn!("the reply of key {key:?} is not remembered: {error}");
                }
                Ok(Arc::new(reply))
            }
            Err(error) => {
                self.store.free_key(&key).await?;
                Err(error)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Fingerprint, Reply)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
