//! What every store must do: [`suite`] runs on any [`BatchStore`] that can be opened twice in the same place.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use grouper::error::Error;
use grouper::store::{
    BatchStore, Blob, Claim, Clock, LeaseWish, ManualClock, NewGroup, NewKey, NewRollout, Outcome, SqliteStore, State, StoreOptions,
};

pub type Open<'a> = &'a dyn Fn(&Path, StoreOptions, Clock) -> Arc<dyn BatchStore>;

/// A store in a folder of its own, its clock, and a way to open it again.
struct Bench<'a> {
    store: Option<Arc<dyn BatchStore>>,
    clock: Arc<ManualClock>,
    options: StoreOptions,
    folder: tempfile::TempDir,
    open: Open<'a>,
}

impl<'a> Bench<'a> {
    fn new(open: Open<'a>, options: StoreOptions) -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new(1_000_000));
        let store = Some(open(folder.path(), options.clone(), Clock::Manual(clock.clone())));
        Bench { store, clock, options, folder, open }
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some((self.open)(self.folder.path(), self.options.clone(), Clock::Manual(self.clock.clone())));
    }

    fn store(&self) -> &dyn BatchStore {
        self.store.as_deref().unwrap()
    }

    async fn accept(&self, name: &str, groups: usize) {
        assert_eq!(self.store().accept(rollout(name, groups)).await.unwrap(), Claim::New);
    }

    /// Generates everything that waits.
    async fn generate(&self) {
        loop {
            let jobs = self.store().start(100).await.unwrap();
            if jobs.is_empty() {
                return;
            }
            for job in jobs {
                assert!(self.store().finish(&job.uid, ready(&job.uid, 1)).await.unwrap());
            }
        }
    }

    /// The uids of a lease with its id and fence.
    async fn lease(&self, num_groups: usize) -> Option<(String, u64, Vec<String>)> {
        let lease = self.store().lease(wish(num_groups)).await.unwrap()?;
        for group in &lease.groups {
            assert_eq!(group.payload, format!("scored {}", group.uid).into_bytes());
        }
        Some((lease.lease_id, lease.fence, lease.groups.into_iter().map(|group| group.uid).collect()))
    }

    async fn check_law(&self) {
        for (queue, counts) in self.store().counts().await.unwrap() {
            assert_eq!(counts.missing(), 0, "{queue}: {counts:?}");
        }
    }
}

pub fn rollout(name: &str, groups: usize) -> NewRollout {
    let group = |i: usize| NewGroup { uid: format!("{name}-{i}"), job: format!("job {i}").into_bytes(), ..NewGroup::default() };
    NewRollout {
        rollout_id: name.to_owned(),
        queue: "q".into(),
        settings: b"settings".to_vec(),
        groups: (0..groups).map(group).collect(),
        ..NewRollout::default()
    }
}

pub fn ready(uid: &str, version: u64) -> Outcome {
    Outcome::Ready { payload: format!("scored {uid}").into_bytes(), version }
}

pub fn wish(num_groups: usize) -> LeaseWish {
    LeaseWish {
        queue: "q".into(),
        num_groups,
        partial: false,
        lease_ms: 1000,
        learner: None,
        version: 1,
        drop_older: None,
        skip_older: None,
    }
}

fn is_conflict<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Conflict(_)))
}

/// All of it, on one kind of store.
pub async fn suite(open: Open<'_>) {
    acks_are_once_and_for_ever(open).await;
    groups_keep_their_places(open).await;
    poison_ends(open).await;
    leases_outlive_a_restart_and_a_clock_that_jumps(open).await;
    a_full_queue_refuses(open).await;
    stale_groups_go_by_rule(open).await;
    keys_are_remembered_for_their_time(open).await;
    blobs_are_kept_once_and_as_long_as_needed(open).await;
    rollouts_are_followed_and_cancelled(open).await;
}

async fn acks_are_once_and_for_ever(open: Open<'_>) {
    let mut bench = Bench::new(open, StoreOptions::default());
    bench.accept("a", 4).await;
    assert!(bench.lease(1).await.is_none(), "nothing is ready");
    bench.generate().await;
    assert!(bench.lease(5).await.is_none(), "a lease is whole or none");
    let (id, fence, uids) = bench.lease(2).await.unwrap();
    assert_eq!(uids, ["a-0", "a-1"]);
    assert!(is_conflict(bench.store().ack(&id, fence + 1).await));
    assert!(matches!(bench.store().ack("lease-none", fence).await, Err(Error::NotFound(_))));
    for restarts in 0..2 {
        assert_eq!(bench.store().ack(&id, fence).await.unwrap(), uids, "after {restarts} restarts");
        assert!(is_conflict(bench.store().nack(&id, fence, None).await) && is_conflict(bench.store().extend(&id, fence, 1).await));
        bench.clock.advance(10_000);
        bench.reopen();
    }
    let (second, later, rest) = bench.lease(2).await.unwrap();
    assert!(later > fence && second != id && rest == ["a-2", "a-3"]);
    assert!(is_conflict(bench.store().ack(&second, fence).await));
    assert_eq!(bench.store().nack(&second, later, None).await.unwrap(), rest);
    assert!(is_conflict(bench.store().ack(&second, later).await));
    bench.check_law().await;
    let counts = &bench.store().counts().await.unwrap()["q"];
    assert_eq!((counts.accepted, counts.acked, counts.ready), (4, 2, 2));
}

async fn groups_keep_their_places(open: Open<'_>) {
    let bench = Bench::new(open, StoreOptions::default());
    bench.accept("a", 6).await;
    let jobs = bench.store().start(6).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.uid.as_str()).collect::<Vec<_>>(), ["a-0", "a-1", "a-2", "a-3", "a-4", "a-5"]);
    assert_eq!((jobs[3].job.as_slice(), jobs[3].settings.as_slice()), (b"job 3".as_slice(), b"settings".as_slice()));
    // Done in another order, and the first not at all.
    for i in [5, 2, 1, 4, 3] {
        assert!(bench.store().finish(&format!("a-{i}"), ready(&format!("a-{i}"), 1)).await.unwrap());
    }
    let (one, fence, uids) = bench.lease(2).await.unwrap();
    assert_eq!(uids, ["a-1", "a-2"]);
    let (_, _, uids) = bench.lease(2).await.unwrap();
    assert_eq!(uids, ["a-3", "a-4"]);
    bench.store().nack(&one, fence, Some("no".into())).await.unwrap();
    assert!(bench.store().finish("a-0", ready("a-0", 1)).await.unwrap());
    bench.clock.advance(1000);
    let lease = bench.store().lease(wish(6)).await.unwrap().unwrap();
    let found: Vec<(&str, u32)> = lease.groups.iter().map(|group| (group.uid.as_str(), group.delivery)).collect();
    assert_eq!(found, [("a-0", 1), ("a-1", 2), ("a-2", 2), ("a-3", 2), ("a-4", 2), ("a-5", 1)]);
    bench.check_law().await;
}

async fn poison_ends(open: Open<'_>) {
    let options = StoreOptions { max_deliveries: 2, max_generations: 4, ..StoreOptions::default() };
    let mut bench = Bench::new(open, options);
    bench.accept("a", 1).await;
    bench.generate().await;
    let (id, fence, _) = bench.lease(1).await.unwrap();
    bench.store().nack(&id, fence, None).await.unwrap();
    bench.lease(1).await.unwrap();
    bench.clock.advance(1000);
    assert_eq!(bench.store().sweep().await.unwrap(), 1);
    assert!(bench.lease(1).await.is_none());
    let dead = bench.store().dead(None, 10).await.unwrap();
    assert!(dead.len() == 1 && dead[0].deliveries == 2 && dead[0].reason.contains("expired"), "{dead:?}");
    assert_eq!(dead[0].payload.as_deref(), Some(b"scored a-0".as_slice()));
    bench.store().requeue("a-0").await.unwrap();
    assert!(is_conflict(bench.store().requeue("a-0").await));
    assert!(matches!(bench.store().requeue("nobody").await, Err(Error::NotFound(_))));
    let (id, fence, _) = bench.lease(1).await.unwrap();
    bench.store().ack(&id, fence).await.unwrap();

    // A process that ends while it generates: others beside it are let off, the guilty one is tried alone, then given up.
    bench.accept("b", 2).await;
    let mut alone = 0;
    for _ in 0..4 {
        let jobs = bench.store().start(9).await.unwrap();
        assert!(jobs.iter().any(|job| job.uid == "b-0"), "{jobs:?}");
        if jobs.len() == 1 {
            alone += 1;
            assert!(bench.store().start(9).await.unwrap().is_empty(), "nothing is started beside a suspect");
        }
        bench.reopen();
    }
    assert_eq!(alone, 2);
    let dead = bench.store().dead(None, 10).await.unwrap();
    assert!(dead.len() == 1 && dead[0].uid == "b-0" && dead[0].reason.contains("ended 4 times") && dead[0].payload.is_none(), "{dead:?}");
    bench.generate().await;
    assert_eq!(bench.lease(1).await.unwrap().2, ["b-1"]);
    // An orderly return is held against nobody; a failure is.
    bench.accept("c", 1).await;
    for blame in [false, false, false, false, false, true, true, true] {
        assert_eq!(bench.store().start(1).await.unwrap().len(), 1);
        bench.store().give_back(vec!["c-0".into()], blame).await.unwrap();
    }
    assert_eq!(bench.store().start(1).await.unwrap().len(), 1);
    bench.store().give_back(vec!["c-0".into()], true).await.unwrap();
    assert!(bench.store().start(1).await.unwrap().is_empty());
    let unusable = NewGroup { unusable: Some("no such image".into()), ..rollout("d", 1).groups.remove(0) };
    bench.store().accept(NewRollout { groups: vec![unusable], ..rollout("d", 0) }).await.unwrap();
    let dead = bench.store().dead(Some("b-0".into()), 10).await.unwrap();
    assert_eq!(dead.iter().map(|group| group.uid.as_str()).collect::<Vec<_>>(), ["c-0", "d-0"]);
    assert_eq!(bench.store().dead(None, 1).await.unwrap().len(), 1);
    bench.check_law().await;
}

async fn leases_outlive_a_restart_and_a_clock_that_jumps(open: Open<'_>) {
    let mut bench = Bench::new(open, StoreOptions::default());
    bench.accept("a", 2).await;
    bench.generate().await;
    let lease = bench.store().lease(LeaseWish { learner: Some("l".into()), ..wish(1) }).await.unwrap().unwrap();
    assert_eq!(lease.expires_at, 1_001_000);
    bench.reopen();
    let live = bench.store().leases(Some("l".into()), true).await.unwrap();
    assert_eq!(live, [lease.clone()]);
    assert!(bench.store().leases(Some("other".into()), true).await.unwrap().is_empty());
    assert_eq!(bench.store().extend(&lease.lease_id, lease.fence, 5000).await.unwrap(), 1_005_000);
    bench.clock.advance(4999);
    assert_eq!(bench.lease(2).await, None);
    bench.clock.advance(1);
    assert_eq!(bench.lease(2).await.unwrap().2, ["a-0", "a-1"]);
    assert!(
        is_conflict(bench.store().ack(&lease.lease_id, lease.fence).await) && bench.store().leases(None, false).await.unwrap().len() == 1
    );
    // The next process starts with a clock set back by a day: a lease is not longer for it.
    bench.clock.set(1);
    bench.reopen();
    assert_eq!(bench.lease(2).await, None);
    bench.clock.advance(1000);
    assert_eq!(bench.lease(2).await.unwrap().2, ["a-0", "a-1"]);
    bench.check_law().await;
}

async fn a_full_queue_refuses(open: Open<'_>) {
    let bench = Bench::new(open, StoreOptions { max_queued_groups: 4, ..StoreOptions::default() });
    let too_many = bench.store().accept(rollout("x", 5)).await.unwrap_err();
    assert!(matches!(too_many, Error::Invalid { ref param, .. } if param == "groups"), "{too_many}");
    bench.accept("a", 3).await;
    bench.generate().await;
    let full = |result: Result<Claim, Error>| matches!(result, Err(Error::Overloaded { .. }));
    assert!(full(bench.store().accept(rollout("b", 2)).await));
    let (id, fence, _) = bench.lease(2).await.unwrap();
    assert!(full(bench.store().accept(rollout("b", 2)).await), "leased groups count");
    assert!(bench.store().progress("b", false).await.unwrap().is_none(), "nothing of what is refused is taken");
    let mut changes = bench.store().changes();
    changes.mark_unchanged();
    bench.store().ack(&id, fence).await.unwrap();
    assert!(changes.has_changed().unwrap());
    bench.accept("b", 2).await;
    bench.check_law().await;
}

async fn stale_groups_go_by_rule(open: Open<'_>) {
    let bench = Bench::new(open, StoreOptions::default());
    let retaken = NewGroup { retake: true, ..rollout("a", 3).groups.remove(2) };
    let mut groups = rollout("a", 2).groups;
    groups.push(retaken);
    bench.store().accept(NewRollout { groups, ..rollout("a", 0) }).await.unwrap();
    for (job, version) in bench.store().start(3).await.unwrap().iter().zip([5, 7, 4]) {
        bench.store().finish(&job.uid, ready(&job.uid, version)).await.unwrap();
    }
    let at = |drop_older, skip_older| LeaseWish { version: 7, drop_older, skip_older, ..wish(1) };
    let lease = bench.store().lease(at(None, Some(0))).await.unwrap().unwrap();
    assert_eq!(lease.groups[0].uid, "a-1", "older groups are skipped, not dropped");
    let lease = bench.store().lease(at(Some(2), None)).await.unwrap().unwrap();
    assert_eq!(lease.groups[0].uid, "a-0");
    assert_eq!(bench.store().counts().await.unwrap()["q"].dropped, [("stale".to_owned(), 1)].into());
    // Leased groups are never dropped, and a row of a data set is taken again.
    assert!(bench.store().lease(LeaseWish { version: 99, ..at(Some(0), None) }).await.unwrap().is_none());
    assert_eq!(bench.store().ack(&lease.lease_id, lease.fence).await.unwrap(), ["a-0"]);
    let again = bench.store().start(9).await.unwrap();
    assert!(again.len() == 1 && again[0].uid == "a-2~2" && again[0].job == b"job 2", "{again:?}");
    bench.check_law().await;
}

async fn keys_are_remembered_for_their_time(open: Open<'_>) {
    let mut bench = Bench::new(open, StoreOptions { key_ttl_ms: 1000, max_reply_bytes: 10, ..StoreOptions::default() });
    let key = |name: &str| NewKey { key: name.into(), fingerprint: vec![1], seed: u64::MAX >> 1, rollout_id: "r".into(), reply: None };
    let known = |reply: Option<&[u8]>| Claim::Known {
        fingerprint: vec![1],
        seed: u64::MAX >> 1,
        rollout_id: "r".into(),
        reply: reply.map(<[u8]>::to_vec),
    };
    assert_eq!(bench.store().claim_key(key("k")).await.unwrap(), Claim::New);
    bench.reopen();
    assert_eq!(bench.store().claim_key(key("k")).await.unwrap(), known(None));
    bench.store().set_reply("k", b"reply".to_vec()).await.unwrap();
    bench.reopen();
    assert_eq!(bench.store().claim_key(key("k")).await.unwrap(), known(Some(b"reply")));
    // With its key, a rollout is accepted once.
    let keyed = || NewRollout { key: Some(NewKey { reply: Some(b"202".to_vec()), ..key("a") }), ..rollout("a", 1) };
    assert_eq!(bench.store().accept(keyed()).await.unwrap(), Claim::New);
    assert_eq!(bench.store().accept(keyed()).await.unwrap(), known(Some(b"202")));
    assert_eq!(bench.store().counts().await.unwrap()["q"].accepted, 1);
    // Room for younger replies, and the time.
    bench.clock.advance(1);
    bench.store().claim_key(key("big")).await.unwrap();
    bench.store().set_reply("big", vec![0; 100]).await.unwrap();
    assert_eq!(bench.store().claim_key(key("k")).await.unwrap(), Claim::New);
    bench.store().free_key("k").await.unwrap();
    assert_eq!(bench.store().claim_key(key("k")).await.unwrap(), Claim::New);
    bench.clock.advance(1001);
    assert_eq!(bench.store().claim_key(key("big")).await.unwrap(), Claim::New);
}

async fn blobs_are_kept_once_and_as_long_as_needed(open: Open<'_>) {
    let bench = Bench::new(open, StoreOptions::default());
    let image = Blob { sha256: "ab".into(), bytes: vec![7; 1000] };
    let mut two = rollout("a", 2);
    two.groups.iter_mut().for_each(|group| group.blobs = vec![image.clone()]);
    bench.store().accept(two).await.unwrap();
    bench.generate().await;
    let jobs = |uids: &[&str]| bench.store().jobs(uids.iter().map(|uid| (*uid).to_owned()).collect());
    let (id, fence, _) = bench.lease(1).await.unwrap();
    bench.store().ack(&id, fence).await.unwrap();
    assert_eq!(jobs(&["a-1"]).await.unwrap()[0].blobs, [image]);
    let (id, fence, _) = bench.lease(1).await.unwrap();
    bench.store().ack(&id, fence).await.unwrap();
    assert!(jobs(&["a-1"]).await.unwrap()[0].blobs.is_empty());
}

async fn rollouts_are_followed_and_cancelled(open: Open<'_>) {
    let bench = Bench::new(open, StoreOptions::default());
    bench.accept("a", 5).await;
    bench.store().start(3).await.unwrap();
    bench.store().finish("a-0", ready("a-0", 1)).await.unwrap();
    bench.store().finish("a-1", Outcome::Dead { reason: "bad".into() }).await.unwrap();
    let progress = bench.store().progress("a", true).await.unwrap().unwrap();
    let states = [(State::Accepted, 2), (State::Generating, 1), (State::Ready, 1), (State::Dead, 1)];
    assert_eq!((progress.queue.as_str(), progress.states), ("q", states.into()));
    assert_eq!((progress.reasons["a-1"].as_str(), progress.groups[0].payload.as_slice()), ("bad", b"scored a-0".as_slice()));
    assert_eq!(bench.store().cancel("a").await.unwrap().unwrap(), ["a-2", "a-3", "a-4"]);
    assert!(bench.store().cancel("nothing").await.unwrap().is_none());
    assert!(!bench.store().finish("a-2", ready("a-2", 1)).await.unwrap(), "what was cancelled is not brought back");
    assert_eq!(bench.lease(1).await.unwrap().2, ["a-0"]);
    bench.check_law().await;
    assert_eq!(bench.store().counts().await.unwrap()["q"].dropped["cancelled"], 3);
}

fn open_sqlite(folder: &Path, options: StoreOptions, clock: Clock) -> Arc<dyn BatchStore> {
    Arc::new(SqliteStore::open(folder, options, clock).unwrap())
}

#[tokio::test]
async fn sqlite_does_what_every_store_must() {
    suite(&open_sqlite).await;
}

#[tokio::test]
async fn a_folder_has_one_server_and_a_file_that_others_can_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_sqlite(folder.path(), StoreOptions::default(), Clock::system());
    assert!(store.is_durable());
    let second = SqliteStore::open(folder.path(), StoreOptions::default(), Clock::system());
    assert!(second.err().unwrap().to_string().contains("another server"));
    store.accept(rollout("a", 3)).await.unwrap();
    // Another reader, while the server runs.
    let db =
        rusqlite::Connection::open_with_flags(folder.path().join("grouper.sqlite"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let uids: BTreeSet<String> =
        db.prepare("SELECT uid FROM groups").unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(uids, ["a-0".to_owned(), "a-1".to_owned(), "a-2".to_owned()].into());
    drop((store, db));
    // A later program's file, and one that is none.
    let file = folder.path().join("grouper.sqlite");
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let open = || SqliteStore::open(folder.path(), StoreOptions::default(), Clock::system()).err().unwrap().to_string();
    assert!(open().contains("later version"), "{}", open());
    std::fs::write(&file, "not a database, but long enough to be taken for one: ".repeat(100)).unwrap();
    assert!(open().contains("not a database"), "{}", open());
}
