//! New weights and pauses, between two steps: the engine's side of the policy.
//!
//! A change waits until the groups that it lets end have ended, then until no step is in flight; so every token was drawn by the
//! weights that its step was launched with. What the old weights computed is forgotten, but for the keys and values of samples that
//! cross the change.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Engine;
use super::handle::GroupId;
use super::request::PolicyVersion;
use super::scheduler::Scheduler;
use super::scoring::no_reference;
use super::sequence::{Group, Phase};
use crate::backends::Backend;
use crate::error::{Error, Result};
use crate::model::shared::SharedUpdate;
use crate::model::update::Update;

/// What a change of the weights does to groups that have started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Apply {
    /// They end on the old weights first.
    #[default]
    Finish,
    /// They go on under the new ones with the keys and values that they have.
    Continue,
    Abort,
}

/// What a pause does to groups that have started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    /// They stop where they are and go on later.
    #[default]
    Keep,
    /// All groups are aborted, waiting ones included.
    Abort,
    Finish,
}

/// Weights to be served from now on.
#[derive(Clone)]
pub enum NewWeights {
    /// The present ones, under another version.
    Same,
    Host(Arc<Update>),
    Shared(Arc<SharedUpdate>),
}

pub struct Swap {
    pub weights: NewWeights,
    pub version: PolicyVersion,
    pub apply: Apply,
}

/// How long a change took the engine.
#[derive(Clone, Copy, Debug)]
pub struct Swapped {
    /// Until the groups that had to end had ended.
    pub waited: Duration,
    /// No step was taken for this time.
    pub stalled: Duration,
}

/// What the handle tells the engine about its weights and its rest.
pub(super) enum Order {
    Swap(Swap, oneshot::Sender<Result<Swapped>>),
    Pause(PauseMode, oneshot::Sender<Result<()>>),
    Resume(oneshot::Sender<Result<()>>),
    /// Give the cache's memory back; answers with its bytes.
    Sleep(oneshot::Sender<Result<usize>>),
    Wake(oneshot::Sender<Result<()>>),
    /// Makes the present weights, or those of an update, the reference.
    Freeze(Option<Arc<Update>>, oneshot::Sender<Result<PolicyVersion>>),
}

/// A change that waits for its moment.
enum Change {
    Swap(Swap, oneshot::Sender<Result<Swapped>>),
    Pause(oneshot::Sender<Result<()>>),
}

#[derive(Default)]
pub(super) struct Control {
    change: Option<(Change, Instant)>,
    paused: bool,
    asleep: bool,
}

impl Control {
    /// No step is taken.
    pub fn is_halted(&self) -> bool {
        self.paused || self.asleep
    }

    pub fn has_change(&self) -> bool {
        self.change.is_some()
    }
}

impl<B: Backend> Engine<B> {
    /// Takes an order; who gave it may have gone, which changes nothing.
    pub(super) fn obey(&mut self, order: Order) {
        match order {
            Order::Swap(swap, reply) => match self.may_swap(&swap) {
                Err(error) => drop(reply.send(Err(error))),
                Ok(()) => {
                    match swap.apply {
                        Apply::Finish => self.scheduler.closed = true,
                        Apply::Abort => self.scheduler.abort_where(Group::has_started),
                        Apply::Continue => {}
                    }
                    self.control.change = Some((Change::Swap(swap, reply), Instant::now()));
                }
            },
            Order::Pause(_, reply) if self.control.has_change() => drop(reply.send(Err(busy()))),
            Order::Pause(mode, reply) => {
                match mode {
                    // A halted engine can't let anything end.
                    PauseMode::Finish if self.control.is_halted() && self.scheduler.has_started() => {
                        return drop(reply.send(Err(Error::Conflict("the engine is paused amid groups; resume it first".into()))));
                    }
                    PauseMode::Finish => self.scheduler.closed = true,
                    PauseMode::Abort => self.scheduler.abort_where(|_| true),
                    PauseMode::Keep => {}
                }
                self.control.change = Some((Change::Pause(reply), Instant::now()));
            }
            Order::Resume(reply) => {
                let asleep = self.control.asleep;
                if !asleep {
                    self.control.paused = false;
                    self.publish_halt();
                }
                let _ = reply.send(if asleep { Err(Error::Conflict("the engine is asleep; wake it first".into())) } else { Ok(()) });
            }
            Order::Sleep(reply) => drop(reply.send(self.sleep())),
            Order::Wake(reply) => drop(reply.send(self.wake())),
            Order::Freeze(_, reply) if !self.runner.has_reference() => drop(reply.send(Err(no_reference()))),
            Order::Freeze(update, reply) => {
                self.runner.freeze(update.as_deref());
                // Features of the old reference are nobody's any more.
                self.scheduler.vision.clear();
                drop(update);
                let _ = reply.send(Ok(self.scheduler.version));
            }
        }
    }

    fn may_swap(&self, swap: &Swap) -> Result<()> {
        if self.control.has_change() {
            return Err(busy());
        }
        match swap.apply == Apply::Finish && self.control.is_halted() && self.scheduler.has_started() {
            true => Err(Error::Conflict(
                "the engine is paused amid groups, which could never finish: resume it, or apply with continue or abort".into(),
            )),
            false => Ok(()),
        }
    }

    /// Makes the change that waits, if its moment has come.
    pub(super) fn settle(&mut self) {
        let waits = self.scheduler.closed && self.scheduler.has_started();
        let Some((change, since)) = self.control.change.take_if(|_| !waits) else { return };
        let waited = since.elapsed();
        let stalling = Instant::now();
        while !self.in_flight.is_empty() {
            self.finish_oldest();
        }
        let drained = stalling.elapsed();
        self.scheduler.closed = false;
        match change {
            Change::Pause(reply) => {
                self.control.paused = true;
                self.publish_halt();
                let _ = reply.send(Ok(()));
            }
            Change::Swap(Swap { weights, version, .. }, reply) => {
                self.runner.rewrite(&weights);
                if !matches!(weights, NewWeights::Same) {
                    self.scheduler.forget_old_weights(version);
                }
                self.scheduler.set_version(version);
                self.stats.policy_version.store(version.0, Release);
                let stalled = stalling.elapsed();
                let ms = |time: Duration| time.as_secs_f64() * 1e3;
                tracing::info!("version {}: {:.1} ms until no step was in flight, {:.1} ms in all", version.0, ms(drained), ms(stalled));
                self.stats.swap_ns.fetch_add(stalled.as_nanos() as u64, Relaxed);
                // Whoever waits for the reply is the last owner then: giving up gigabytes takes time that is not this thread's.
                drop(weights);
                let _ = reply.send(Ok(Swapped { waited, stalled }));
            }
        }
        self.scheduler.publish_stats();
    }

    fn publish_halt(&self) {
        self.stats.halted.store(self.control.is_halted(), Relaxed);
    }

    fn sleep(&mut self) -> Result<usize> {
        if self.control.has_change() {
            return Err(busy());
        }
        if self.scheduler.has_started() {
            return Err(Error::Conflict(
                "groups are under way, whose keys and values can't be given up: pause with finish or abort first".into(),
            ));
        }
        while !self.in_flight.is_empty() {
            self.finish_oldest();
        }
        if self.control.asleep {
            return Ok(0);
        }
        self.scheduler.reset_caches();
        self.control.asleep = true;
        self.publish_halt();
        Ok(self.runner.free_cache())
    }

    fn wake(&mut self) -> Result<()> {
        if self.control.asleep {
            self.runner.alloc_cache(self.scheduler.num_blocks())?;
            self.runner.capture_steps();
            self.control.asleep = false;
            self.publish_halt();
        }
        Ok(())
    }
}

fn busy() -> Error {
    Error::UpdateUnderWay("another update or pause is under way".into())
}

impl Group {
    pub fn has_started(&self) -> bool {
        self.admitted.is_some()
    }

    /// Whether a sample reads the prompt's keys, or a step in flight may.
    fn is_read(&self) -> bool {
        self.in_flight > 0 || self.samples.iter().any(|s| matches!(s.phase, Phase::Running { .. } | Phase::Done { held: Some(_) }))
    }
}

impl Scheduler {
    pub fn num_blocks(&self) -> usize {
        self.pool.total()
    }

    pub fn has_started(&self) -> bool {
        self.groups.values().any(Group::has_started)
    }

    fn abort_where(&mut self, condition: impl Fn(&Group) -> bool) {
        let ids: Vec<GroupId> = self.groups.values().filter(|group| condition(group)).map(|group| group.id).collect();
        ids.into_iter().for_each(|id| self.abort(id));
    }

    fn set_version(&mut self, version: PolicyVersion) {
        self.version = version;
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            self.renew_keys(id);
        }
    }

    /// Nothing is in flight. Prompts that a running sample reads stay for it and are never found or read by a sample that starts
    /// later; all others are computed anew.
    fn forget_old_weights(&mut self, version: PolicyVersion) {
        self.version = version;
        for id in self.groups.keys().copied().collect::<Vec<_>>() {
            let group = self.group(id);
            match group.is_read() {
                true => group.stale_prompt = true,
                false => self.evict_prompt(id),
            }
        }
        self.reset_caches();
    }

    /// The keys of a prompt under the present weights; none while it was computed by others.
    fn renew_keys(&mut self, id: GroupId) {
        let prompt = self.group(id).prompt.clone();
        let keys = if self.group(id).stale_prompt { Vec::new() } else { self.prefix_keys(&prompt) };
        self.group(id).prefix_keys = keys;
    }

    /// Gives up prompts of old weights that nobody reads any more, so that samples which have not started get new ones.
    pub(super) fn renew_prompts(&mut self) {
        let stale: Vec<GroupId> = self.groups.values().filter(|g| g.stale_prompt && !g.is_read()).map(|g| g.id).collect();
        for id in stale {
            self.evict_prompt(id);
            self.group(id).stale_prompt = false;
            self.renew_keys(id);
        }
    }
}
