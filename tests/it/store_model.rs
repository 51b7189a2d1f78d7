//! Learners that race for leases which expire, are acked late and twice, on clocks that jump: every answer is that of a small model.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use grouper::error::{Error, Result};
use grouper::store::{BatchStore, Clock, LeaseWish, ManualClock, SqliteStore, State, StoreOptions};

use crate::store::{ready, rollout, wish};

const LEARNERS: u64 = 8;
const MAX_DELIVERIES: u32 = 4;
const MAX_QUEUED: usize = 200;

/// A stream of choices that a seed repeats.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

struct Group {
    uid: String,
    state: State,
    deliveries: u32,
}

#[derive(Clone, PartialEq, Debug)]
enum End {
    Live,
    Acked,
    Nacked,
    Expired,
}

struct Lease {
    id: String,
    fence: u64,
    groups: Vec<usize>,
    end: End,
    lease_ms: u64,
    expires_at: u64,
}

/// What the store should do, in the fewest words.
#[derive(Default)]
struct Model {
    groups: Vec<Group>,
    leases: Vec<Lease>,
    now: u64,
    /// Groups before this one are consumed or dead.
    settled: usize,
}

impl Model {
    fn queued(&self) -> usize {
        self.groups[self.settled..].iter().filter(|group| !matches!(group.state, State::Acked | State::Dead)).count()
    }

    fn expire(&mut self) {
        for i in 0..self.leases.len() {
            if self.leases[i].end == End::Live && self.leases[i].expires_at <= self.now {
                self.give_back(i, End::Expired);
            }
        }
    }

    fn give_back(&mut self, lease: usize, end: End) {
        self.leases[lease].end = end;
        for group in self.leases[lease].groups.clone() {
            let group = &mut self.groups[group];
            group.state = if group.deliveries >= MAX_DELIVERIES { State::Dead } else { State::Ready };
        }
    }

    /// The first ready groups.
    fn lease(&mut self, num_groups: usize) -> Option<Vec<usize>> {
        self.expire();
        while self.groups.get(self.settled).is_some_and(|group| matches!(group.state, State::Acked | State::Dead)) {
            self.settled += 1;
        }
        let ready = (self.settled..self.groups.len()).filter(|i| self.groups[*i].state == State::Ready);
        let ready: Vec<usize> = ready.take(num_groups).collect();
        (ready.len() == num_groups).then_some(ready)
    }

    fn uids(&self, groups: &[usize]) -> Vec<String> {
        groups.iter().map(|i| self.groups[*i].uid.clone()).collect()
    }
}

struct Race<'a> {
    open: &'a dyn Fn(Clock) -> Arc<dyn BatchStore>,
    store: Option<Arc<dyn BatchStore>>,
    clock: Arc<ManualClock>,
    model: Model,
    /// Leases that each learner believes to hold, by their place in the model.
    held: HashMap<u64, Vec<usize>>,
    acks: HashMap<String, usize>,
    stale_acks: usize,
    refused_stale_acks: usize,
}

impl Race<'_> {
    fn store(&self) -> &dyn BatchStore {
        self.store.as_deref().unwrap()
    }

    async fn step(&mut self, choices: &mut Choices, restarts: bool) {
        let learner = choices.below(LEARNERS);
        match choices.below(100) {
            0..12 => self.accept(1 + choices.below(12) as usize).await,
            12..25 => self.generate(1 + choices.below(12) as usize).await,
            25..50 => self.lease(learner, 1 + choices.below(5) as usize, 1 + choices.below(400)).await,
            50..75 => self.end(learner, choices, true).await,
            75..84 => self.end(learner, choices, false).await,
            84..89 => self.extend(learner, choices).await,
            89..97 => self.advance(choices.below(120)),
            97..98 => self.advance(choices.below(5000)),
            98 if restarts => self.restart(choices).await,
            _ => {
                self.model.expire();
                self.store().sweep().await.unwrap();
            }
        }
    }

    fn advance(&mut self, ms: u64) {
        self.clock.advance(ms);
        self.model.now += ms;
    }

    async fn accept(&mut self, count: usize) {
        self.model.expire();
        let name = format!("r{}", self.model.groups.len());
        let result = self.store().accept(rollout(&name, count)).await;
        if self.model.queued() + count > MAX_QUEUED {
            assert!(matches!(result, Err(Error::Overloaded { .. })), "{result:?}");
            return;
        }
        result.unwrap();
        let group = |i| Group { uid: format!("{name}-{i}"), state: State::Accepted, deliveries: 0 };
        self.model.groups.extend((0..count).map(group));
    }

    async fn generate(&mut self, count: usize) {
        self.model.expire();
        let jobs = self.store().start(count).await.unwrap();
        let waiting = (0..self.model.groups.len()).filter(|i| self.model.groups[*i].state == State::Accepted);
        let expected: Vec<usize> = waiting.take(count).collect();
        assert_eq!(jobs.iter().map(|job| job.uid.clone()).collect::<Vec<_>>(), self.model.uids(&expected));
        for i in expected.into_iter().rev() {
            assert!(self.store().finish(&self.model.groups[i].uid, ready(&self.model.groups[i].uid, 1)).await.unwrap());
            self.model.groups[i].state = State::Ready;
        }
    }

    async fn lease(&mut self, learner: u64, num_groups: usize, lease_ms: u64) {
        let wish = LeaseWish { lease_ms, learner: Some(learner.to_string()), ..wish(num_groups) };
        let lease = self.store().lease(wish).await.unwrap();
        let expected = self.model.lease(num_groups);
        let found = lease.as_ref().map(|lease| lease.groups.iter().map(|group| group.uid.clone()).collect::<Vec<_>>());
        assert_eq!(found, expected.as_deref().map(|groups| self.model.uids(groups)), "first in, first out");
        let Some((lease, groups)) = lease.zip(expected) else { return };
        for (i, delivered) in groups.iter().zip(&lease.groups) {
            let group = &mut self.model.groups[*i];
            group.deliveries += 1;
            group.state = State::Leased;
            assert_eq!(group.deliveries, delivered.delivery);
        }
        assert!(self.model.leases.iter().all(|other| other.fence < lease.fence && other.id != lease.lease_id));
        assert_eq!(lease.expires_at, self.model.now + lease_ms);
        self.held.entry(learner).or_default().push(self.model.leases.len());
        let (id, fence, expires_at) = (lease.lease_id, lease.fence, lease.expires_at);
        self.model.leases.push(Lease { id, fence, groups, end: End::Live, lease_ms, expires_at });
    }

    /// A lease of the learner, mostly one of its last.
    fn pick(&self, learner: u64, choices: &mut Choices) -> Option<usize> {
        let held = self.held.get(&learner)?;
        let back = if choices.below(4) == 0 { choices.below(held.len() as u64) } else { choices.below(3).min(held.len() as u64 - 1) };
        Some(held[held.len() - 1 - back as usize])
    }

    async fn end(&mut self, learner: u64, choices: &mut Choices, ack: bool) {
        let Some(at) = self.pick(learner, choices) else { return };
        self.model.expire();
        let wanted = if ack { End::Acked } else { End::Nacked };
        let (id, uids, end) =
            (self.model.leases[at].id.clone(), self.model.uids(&self.model.leases[at].groups), self.model.leases[at].end.clone());
        let wrong = u64::from(choices.below(20) == 0);
        let fence = self.model.leases[at].fence + wrong;
        let result = if ack { self.store().ack(&id, fence).await } else { self.store().nack(&id, fence, None).await };
        if ack && (wrong == 1 || !matches!(end, End::Live | End::Acked)) {
            self.stale_acks += 1;
            self.refused_stale_acks += usize::from(is_conflict(&result));
        }
        if wrong == 1 || (end != End::Live && end != wanted) {
            assert!(is_conflict(&result), "{result:?} of a lease that is {end:?}");
            return;
        }
        let found = result.unwrap();
        if ack {
            assert_eq!(found, uids);
        }
        if end == End::Live && ack {
            self.model.leases[at].end = End::Acked;
            for i in self.model.leases[at].groups.clone() {
                self.model.groups[i].state = State::Acked;
                *self.acks.entry(self.model.groups[i].uid.clone()).or_default() += 1;
            }
        } else if end == End::Live {
            self.model.give_back(at, End::Nacked);
        }
    }

    async fn extend(&mut self, learner: u64, choices: &mut Choices) {
        let Some(at) = self.pick(learner, choices) else { return };
        self.model.expire();
        let (now, lease_ms) = (self.model.now, 1 + choices.below(400));
        let lease = &mut self.model.leases[at];
        let result = self.store.as_deref().unwrap().extend(&lease.id, lease.fence, lease_ms).await;
        if lease.end == End::Live {
            (lease.lease_ms, lease.expires_at) = (lease_ms, now + lease_ms);
            assert_eq!(result.unwrap(), now + lease_ms);
        } else {
            assert!(is_conflict(&result), "{result:?}");
        }
    }

    /// The process ends and another starts, with a wall clock that is anywhere.
    async fn restart(&mut self, choices: &mut Choices) {
        self.store = None;
        let jump = choices.below(4000) as i64 - 2000;
        self.model.now = self.model.now.saturating_add_signed(jump);
        self.clock.set(self.model.now);
        self.store = Some((self.open)(Clock::Manual(self.clock.clone())));
        for lease in self.model.leases.iter_mut().filter(|lease| lease.end == End::Live) {
            lease.expires_at = lease.expires_at.min(self.model.now + lease.lease_ms);
        }
    }
}

fn is_conflict<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Conflict(_)))
}

fn options() -> StoreOptions {
    StoreOptions { max_deliveries: MAX_DELIVERIES, max_queued_groups: MAX_QUEUED, ..StoreOptions::default() }
}

async fn race(open: &dyn Fn(Clock) -> Arc<dyn BatchStore>, seed: u64, steps: usize, restarts: bool) {
    let clock = ManualClock::new(1_000_000_000);
    let mut race = Race {
        open,
        store: Some(open(Clock::Manual(clock.clone()))),
        clock,
        model: Model { now: 1_000_000_000, ..Model::default() },
        held: HashMap::new(),
        acks: HashMap::new(),
        stale_acks: 0,
        refused_stale_acks: 0,
    };
    let mut choices = Choices(seed | 1);
    for _ in 0..steps {
        race.step(&mut choices, restarts).await;
    }
    let counts = &race.store().counts().await.unwrap()["q"];
    let count = |state: State| race.model.groups.iter().filter(|group| group.state == state).count() as u64;
    assert_eq!(counts.missing(), 0, "{counts:?}");
    assert_eq!((counts.accepted, counts.acked, counts.dead), (race.model.groups.len() as u64, count(State::Acked), count(State::Dead)));
    assert_eq!((counts.pending, counts.ready, counts.leased), (count(State::Accepted), count(State::Ready), count(State::Leased)));
    let double = race.acks.values().filter(|acks| **acks > 1).count();
    println!(
        "{steps} steps, seed {seed}: {} groups, {} leases, {} acked, double acks {double}, stale acks {} of which {} refused",
        race.model.groups.len(),
        race.model.leases.len(),
        race.acks.len(),
        race.stale_acks,
        race.refused_stale_acks
    );
    assert!(double == 0 && race.stale_acks == race.refused_stale_acks && race.stale_acks > steps / 100 && race.acks.len() > steps / 20);
}

#[tokio::test]
async fn racing_learners_get_what_the_model_says() {
    let open = |clock| Arc::new(SqliteStore::in_memory(options(), clock).unwrap()) as Arc<dyn BatchStore>;
    race(&open, 0x9e37_79b9_7f4a_7c15, 100_000, false).await;
}

#[tokio::test]
async fn racing_learners_over_restarts_get_what_the_model_says() {
    for seed in [1, 2, 3] {
        let folder = tempfile::tempdir().unwrap();
        let open = |clock| Arc::new(SqliteStore::open(folder.path(), options(), clock).unwrap()) as Arc<dyn BatchStore>;
        race(&open, seed, 1500, true).await;
    }
}

/// Truly at the same time, on a disk: what each learner was told that it acked is nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn learners_at_the_same_time_never_ack_the_same_group() {
    const GROUPS: usize = 400;
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn BatchStore> = Arc::new(open_real(folder.path()));
    for i in 0..GROUPS / 10 {
        store.accept(rollout(&format!("r{i}"), 10)).await.unwrap();
    }
    for job in store.start(GROUPS).await.unwrap() {
        store.finish(&job.uid, ready(&job.uid, 1)).await.unwrap();
    }
    let learners = (0..LEARNERS).map(|learner| {
        let store = store.clone();
        tokio::spawn(async move {
            let (mut acked, mut choices) = (Vec::new(), Choices(learner + 1));
            let mut idle = 0;
            while idle < 50 {
                let lease_ms = 1 + choices.below(20);
                let Some(lease) = store.lease(LeaseWish { lease_ms, partial: true, ..wish(4) }).await.unwrap() else {
                    idle += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                    continue;
                };
                idle = 0;
                tokio::time::sleep(std::time::Duration::from_millis(choices.below(12))).await;
                match store.ack(&lease.lease_id, lease.fence).await {
                    Ok(uids) => acked.extend(uids),
                    Err(error) => assert!(matches!(error, Error::Conflict(_)), "{error}"),
                }
            }
            acked
        })
    });
    let mut all: Vec<String> = Vec::new();
    for learner in learners.collect::<Vec<_>>() {
        all.extend(learner.await.unwrap());
    }
    let counts = &store.counts().await.unwrap()["q"];
    let total = all.len();
    all.sort_unstable();
    all.dedup();
    assert!(
        total == all.len() && counts.acked as usize == total && counts.missing() == 0,
        "{total} acks of {} groups: {counts:?}",
        all.len()
    );
    assert_eq!(counts.acked + counts.dead, GROUPS as u64);
}

fn open_real(folder: &Path) -> SqliteStore {
    SqliteStore::open(folder, StoreOptions { max_deliveries: 30, ..StoreOptions::default() }, Clock::system()).unwrap()
}
