//! Bounds on what one caller can ask for and on what is in flight, checked before anything is allocated.

use std::fmt;

/// Every bound has a default that fits a large learner batch on one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_groups_per_request: usize,
    pub max_group_size: usize,
    pub max_samples_per_request: usize,
    /// Samples of all requests that are not finished.
    pub max_sequences_in_flight: usize,
    /// New tokens that those samples may come to.
    pub max_tokens_in_flight: usize,
    pub max_stop_strings: usize,
    pub max_stop_bytes: usize,
    pub max_stop_token_ids: usize,
    pub max_rewards: usize,
    pub max_refills: u32,
    pub max_id_bytes: usize,
    pub max_deadline_ms: u64,
    /// Samples of one call of the scoring route.
    pub max_score_samples: usize,
    /// Keyed requests that are being generated.
    pub max_idempotency_keys: usize,
    pub max_wait_ms: u64,
    pub max_lease_ms: u64,
    pub max_body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_groups_per_request: 256,
            max_group_size: 256,
            max_samples_per_request: 4096,
            max_sequences_in_flight: 16_384,
            max_tokens_in_flight: 64 << 20,
            max_stop_strings: 16,
            max_stop_bytes: 256,
            max_stop_token_ids: 64,
            max_rewards: 32,
            max_refills: 100,
            max_id_bytes: 256,
            max_deadline_ms: 24 * 60 * 60 * 1000,
            max_score_samples: 65_536,
            max_idempotency_keys: 1024,
            max_wait_ms: 60 * 60 * 1000,
            max_lease_ms: 7 * 24 * 60 * 60 * 1000,
            max_body_bytes: 64 << 20,
        }
    }
}

/// One line for the start of the log.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "groups per request {}, samples per group {}, samples per request {}, samples in flight {}, new tokens in flight {}, \
             body {} MiB",
            self.max_groups_per_request,
            self.max_group_size,
            self.max_samples_per_request,
            self.max_sequences_in_flight,
            self.max_tokens_in_flight,
            self.max_body_bytes >> 20,
        )
    }
}
