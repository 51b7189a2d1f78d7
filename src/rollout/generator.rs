//! The one way to the engine, for rollouts and for plain inference alike: admission, prompts, and groups with their stop strings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{counter, gauge};
use sha2::{Digest, Sha256};

pub use super::limits::Limits;
use super::stop::StopStrings;
use crate::engine::handle::{EngineHandle, GroupStream};
use crate::engine::request::{GroupRequest, NoWatch, RngKey, SamplingParams, StopWatch};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::processor::{PreparedPrompt, Processor, PromptRequest};

pub struct Generator {
    processor: Arc<Processor>,
    engine: EngineHandle,
    limits: Limits,
    /// Pads that stand for images and videos: a completion with one could not be scored again.
    media_token_ids: Vec<u32>,
    in_flight: Arc<Mutex<InFlight>>,
    draining: AtomicBool,
}

/// What admitted requests may still come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct InFlight {
    samples: usize,
    tokens: usize,
}

/// Room for a request's samples, given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    share: InFlight,
    in_flight: Arc<Mutex<InFlight>>,
}

/// What is wanted of one prompt.
#[derive(Clone, Debug)]
pub struct Generation {
    pub num_samples: usize,
    /// `stop_token_ids` without the model's own end tokens, which are added unless `ignore_eos`.
    pub sampling: SamplingParams,
    pub stop: Vec<String>,
    pub rng_key: RngKey,
    /// Whether every token is told.
    pub stream: bool,
    /// Never draw the pads of images and videos.
    pub ban_media: bool,
}

impl Generator {
    pub fn new(processor: Arc<Processor>, engine: EngineHandle, model: &ModelConfig, limits: Limits) -> Self {
        let media_token_ids = model.vision.as_ref().map_or(Vec::new(), |vision| vec![vision.image_token_id, vision.video_token_id]);
        let in_flight = Arc::default();
        Generator { processor, engine, limits, media_token_ids, in_flight, draining: AtomicBool::new(false) }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The pads of images and of videos; empty for a text model.
    pub fn media_token_ids(&self) -> &[u32] {
        &self.media_token_ids
    }

    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Makes room for `samples` completions of at most `max_tokens` new tokens each, before anything is allocated for them.
    ///
    /// # Errors
    ///
    /// 400 when they could never fit, [`Error::Overloaded`] when they don't fit now, [`Error::NotReady`] while draining.
    pub fn admit(&self, samples: usize, max_tokens: usize) -> Result<Permit> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Error::NotReady("the server is draining: it takes no new work".into()));
        }
        if let Some(reason) = self.engine.unfit() {
            return Err(Error::NotReady(reason));
        }
        let most = InFlight { samples: self.limits.max_sequences_in_flight, tokens: self.limits.max_tokens_in_flight };
        if samples > most.samples {
            let message = format!("{samples} samples; {} can be in flight", most.samples);
            return Err(Error::invalid_code("num_generations", "too_many_samples", message));
        }
        let Some(tokens) = samples.checked_mul(max_tokens).filter(|tokens| *tokens <= most.tokens) else {
            let message = format!("{samples} samples of {max_tokens} tokens; {} tokens can be in flight", most.tokens);
            return Err(Error::invalid_code("max_tokens", "too_many_tokens", message));
        };
        let mut in_flight = lock(&self.in_flight);
        let next = InFlight { samples: in_flight.samples + samples, tokens: in_flight.tokens + tokens };
        if next.samples > most.samples || next.tokens > most.tokens {
            let message = format!(
                "{} samples of at most {} tokens are in flight; {samples} more of {tokens} exceed the limits of {} and {}",
                in_flight.samples, in_flight.tokens, most.samples, most.tokens
            );
            counter!("grouper_refused_requests_total").increment(1);
            return Err(Error::Overloaded { message, retry_after_ms: 1000 });
        }
        *in_flight = next;
        gauge!("grouper_samples_in_flight").set(next.samples as f64);
        Ok(Permit { share: InFlight { samples, tokens }, in_flight: self.in_flight.clone() })
    }

    pub async fn prepare(&self, request: PromptRequest) -> Result<PreparedPrompt> {
        self.processor.prepare(request).await
    }

    /// Hands a group to the engine.
    ///
    /// # Errors
    ///
    /// A prompt that does not fit the context with its new tokens (`prompt`, `max_tokens`); an engine that is gone.
    pub fn start(&self, prompt: &PreparedPrompt, generation: Generation) -> Result<GroupStream> {
        let Generation { num_samples, mut sampling, stop, rng_key, stream, ban_media } = generation;
        self.engine.check_fits(prompt.input.token_ids.len(), sampling.max_tokens)?;
        if !sampling.ignore_eos {
            sampling.stop_token_ids.extend_from_slice(self.processor.tokenizer().eos_token_ids());
        }
        sampling.stop_token_ids.sort_unstable();
        sampling.stop_token_ids.dedup();
        if ban_media {
            sampling.banned_token_ids.extend_from_slice(&self.media_token_ids);
        }
        let watches = self.watches(num_samples, &stop.into(), sampling.min_tokens);
        let prompt = Arc::new(prompt.input.clone());
        self.engine.submit(GroupRequest { prompt, sampling, rng_key, watches, stream })
    }

    fn watches(&self, num_samples: usize, stops: &Arc<[String]>, min_tokens: usize) -> Vec<Box<dyn StopWatch>> {
        let one = |_| -> Box<dyn StopWatch> {
            match stops.is_empty() {
                true => Box::new(NoWatch),
                false => Box::new(StopStrings::new(self.processor.tokenizer().clone(), stops.clone(), min_tokens)),
            }
        };
        (0..num_samples).map(one).collect()
    }

    /// From now on nothing is admitted; what was admitted goes on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Samples that are admitted and not finished.
    pub fn samples_in_flight(&self) -> usize {
        lock(&self.in_flight).samples
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut in_flight = lock(&self.in_flight);
        in_flight.samples -= self.share.samples;
        in_flight.tokens -= self.share.tokens;
        gauge!("grouper_samples_in_flight").set(in_flight.samples as f64);
    }
}

/// Nothing is left half-done under this lock, so a panic elsewhere does not spoil it.
fn lock(in_flight: &Mutex<InFlight>) -> MutexGuard<'_, InFlight> {
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The key of the counter-based generator: the first eight bytes of SHA-256 over `grouper-rng-1`, the seed and the attempt in
/// little-endian order, and the group's id. Plain inference uses an empty id and attempt 0.
pub fn rng_key(seed: u64, group: &str, attempt: u32) -> RngKey {
    let mut hash = Sha256::new();
    hash.update(b"grouper-rng-1");
    hash.update(seed.to_le_bytes());
    hash.update(attempt.to_le_bytes());
    hash.update(group.as_bytes());
    let digest = hash.finalize();
    let word = |at: usize| u32::from_le_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]]);
    RngKey([word(0), word(4)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_everything_and_stay_as_they_are() {
        let key = rng_key(1234, "q17", 0);
        assert_eq!(key, RngKey([0x79c9195c, 0x672d2630]), "replays of older seeds depend on it");
        for other in [rng_key(1235, "q17", 0), rng_key(1234, "q18", 0), rng_key(1234, "q17", 1), rng_key(1234, "", 0)] {
            assert_ne!(key, other);
        }
    }
}
