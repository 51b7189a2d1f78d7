//! Time that never jumps: the wall clock once, at the start, then the monotonic one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Unix milliseconds that only grow while the process lives, whatever happens to the wall clock.
#[derive(Clone, Debug)]
pub enum Clock {
    System { wall_ms: u64, since: Instant },
    Manual(Arc<ManualClock>),
}

/// A clock that a test moves.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl Clock {
    pub fn system() -> Self {
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        Clock::System { wall_ms, since: Instant::now() }
    }

    pub fn now_ms(&self) -> u64 {
        match self {
            Clock::System { wall_ms, since } => wall_ms + since.elapsed().as_millis() as u64,
            Clock::Manual(clock) => clock.0.load(Ordering::SeqCst),
        }
    }
}

impl ManualClock {
    pub fn new(now_ms: u64) -> Arc<Self> {
        Arc::new(ManualClock(AtomicU64::new(now_ms)))
    }

    pub fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// To any time, also an earlier one: what the wall clock of the next start may be.
    pub fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::SeqCst);
    }
}
