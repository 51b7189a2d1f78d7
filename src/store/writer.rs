//! The one thread that touches the database: what waits is done in one transaction, and told when that is on disk.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::{oneshot, watch};

use super::{Clock, StoreOptions};
use crate::error::{Error, Result};

/// What one task sees: the database in a transaction, and the time.
pub(super) struct Ops<'a> {
    pub db: &'a Connection,
    pub options: &'a StoreOptions,
    pub now: u64,
    /// Set by what may give someone something to do.
    pub changed: Cell<bool>,
    /// Leases that this transaction found to be over.
    pub expired: Cell<usize>,
}

impl Ops<'_> {
    pub fn new<'a>(db: &'a Connection, options: &'a StoreOptions, now: u64) -> Ops<'a> {
        Ops { db, options, now, changed: Cell::new(false), expired: Cell::new(0) }
    }

    pub fn tell(&self) {
        self.changed.set(true);
    }
}

/// Why a task did nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// The caller's matter.
    Refused(Error),
    Sql(rusqlite::Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Refused(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Fault::Sql(error)
    }
}

pub(super) type Attempt<T> = std::result::Result<T, Fault>;

/// Whether a task needs room on the disk. When there is none, those that free some still go through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Room,
    Little,
}

/// A task runs as often as its transaction fails; its caller hears of the last run.
pub(super) struct Task {
    needs: Needs,
    run: Box<dyn FnMut(&Ops<'_>) -> Attempt<()> + Send>,
    reply: Box<dyn FnOnce(Result<()>) + Send>,
}

/// Tasks of one transaction. A commit takes longer than many tasks, so most wait for the one under way, not for company.
const MAX_BATCH: usize = 256;
/// Written at the start and given up when the disk is full, so that acks and nacks go on.
const RESERVE_BYTES: usize = 2 << 20;
/// How often a full disk is looked at again.
const RETRY: Duration = Duration::from_secs(1);

/// What the writer's thread and the store share.
pub(super) struct Shared {
    /// Taken at the end, by which the thread ends.
    tasks: Option<mpsc::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    pub changes: watch::Sender<u64>,
    pub failure: Arc<OnceLock<String>>,
}

/// What a store on disk has beside its database.
pub(super) struct Place {
    pub reserve: PathBuf,
    /// Held so that no second server writes to the same folder.
    pub _lock: File,
}

struct Writer {
    db: Connection,
    options: StoreOptions,
    clock: Clock,
    changes: watch::Sender<u64>,
    /// Why nothing can be trusted to reach the disk any more: after a failed fsync the kernel may have dropped what was to be written.
    failure: Arc<OnceLock<String>>,
    place: Option<Place>,
    /// Since when the disk is full, as far as is known.
    full: Cell<Option<Instant>>,
}

impl Shared {
    pub fn start(db: Connection, options: StoreOptions, clock: Clock, place: Option<Place>) -> Result<Shared> {
        let (tasks, queue) = mpsc::channel();
        let changes = watch::Sender::new(0);
        let failure = Arc::new(OnceLock::new());
        let writer = Writer { db, options, clock, changes: changes.clone(), failure: failure.clone(), place, full: Cell::new(None) };
        writer.make_reserve();
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || writer.run(&queue));
        let thread = thread.map_err(|e| Error::Setup(format!("no thread for the store: {e}")))?;
        Ok(Shared { tasks: Some(tasks), thread: Some(thread), changes, failure })
    }

    /// Does something in a transaction and answers when it is on disk.
    pub async fn call<T: Send + 'static>(&self, needs: Needs, mut act: impl FnMut(&Ops<'_>) -> Attempt<T> + Send + 'static) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        let run = move |ops: &Ops<'_>| {
            let done = act(ops)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
            Ok(())
        };
        let task = Task { needs, run: Box::new(run), reply: Box::new(move |committed| _ = sender.send(committed)) };
        let gone = || Error::Storage { message: "the store has stopped".into(), full: false };
        self.tasks.as_ref().and_then(|tasks| tasks.send(task).ok()).ok_or_else(gone)?;
        receiver.await.map_err(|_| gone())??;
        let done = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        done.ok_or_else(gone)
    }
}

/// What has been done is on disk, and the folder free, when a store is gone.
impl Drop for Shared {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Writer {
    fn run(self, queue: &mpsc::Receiver<Task>) {
        while let Ok(first) = queue.recv() {
            let mut batch = vec![first];
            batch.extend(queue.try_iter().take(MAX_BATCH - 1));
            // Of a batch that fails, each task is tried by itself: one may not fit where the others do.
            match self.transact(&mut batch) {
                Ok(results) => batch.into_iter().zip(results).for_each(|(task, result)| (task.reply)(result)),
                Err(_) => {
                    for task in batch {
                        self.alone(task);
                    }
                }
            }
        }
    }

    fn alone(&self, task: Task) {
        let mut task = [task];
        let result = match self.transact(&mut task) {
            Err(error) if self.full.get().is_some() && task[0].needs == Needs::Little => {
                // The reserve was given up by the failure.
                self.transact(&mut task).map_err(|_| error)
            }
            result => result,
        };
        let [task] = task;
        (task.reply)(result.and_then(|mut results| results.pop().unwrap_or(Ok(()))));
    }

    /// One transaction; the error is that of the transaction, the results are those of its tasks.
    fn transact(&self, batch: &mut [Task]) -> Result<Vec<Result<()>>> {
        if let Some(failure) = self.failure.get() {
            return Err(Error::Storage { message: failure.clone(), full: false });
        }
        let full = self.full.get().is_some_and(|since| since.elapsed() < RETRY || !(self.make_reserve() || self.has_free_pages()));
        let ops = Ops::new(&self.db, &self.options, self.clock.now_ms());
        let result = self.attempt(&ops, batch, full);
        if result.is_ok() && ops.changed.get() {
            self.changes.send_modify(|count| *count += 1);
        }
        if !self.db.is_autocommit() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        result.map_err(|error| self.explain(&error))
    }

    fn attempt(&self, ops: &Ops<'_>, batch: &mut [Task], full: bool) -> rusqlite::Result<Vec<Result<()>>> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        // Before any task, and not undone with one that is refused: what a caller was told to be over stays so.
        match ops.expire() {
            Ok(ended) => ops.expired.set(ended),
            Err(Fault::Sql(error)) => return Err(error),
            Err(Fault::Refused(error)) => tracing::error!("leases do not expire: {error}"),
        }
        let mut results = Vec::with_capacity(batch.len());
        for task in batch {
            if full && task.needs == Needs::Room {
                results.push(Err(no_room()));
                continue;
            }
            self.db.execute_batch("SAVEPOINT task")?;
            results.push(match (task.run)(ops) {
                Ok(()) => Ok(()),
                Err(Fault::Refused(error)) => {
                    self.db.execute_batch("ROLLBACK TO task")?;
                    Err(error)
                }
                Err(Fault::Sql(error)) => return Err(error),
            });
            self.db.execute_batch("RELEASE task")?;
        }
        self.db.execute_batch("COMMIT")?;
        Ok(results)
    }

    /// What the caller hears of a failure, and what follows from it.
    fn explain(&self, error: &rusqlite::Error) -> Error {
        tracing::error!("the store: {error}");
        let (code, extended) = match error {
            rusqlite::Error::SqliteFailure(failure, _) => (failure.code, failure.extended_code),
            _ => (ErrorCode::Unknown, 0),
        };
        let fatal = match (code, extended) {
            (ErrorCode::DiskFull, _) => {
                self.give_up_reserve();
                return no_room();
            }
            (ErrorCode::ReadOnly, _) => return Error::Storage { message: "the data folder can't be written to".into(), full: false },
            (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC) => "a write did not reach the disk; restart the server",
            (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => "the file is damaged; restore it or choose another --data-dir",
            _ => return Error::Storage { message: "the store failed; the server's log says why".into(), full: false },
        };
        let _ = self.failure.set(fatal.to_owned());
        Error::Storage { message: fatal.to_owned(), full: false }
    }

    /// Whether there is room for the reserve and as much again.
    fn make_reserve(&self) -> bool {
        let Some(Place { reserve: path, .. }) = &self.place else { return true };
        let write = || -> std::io::Result<()> {
            let mut file = File::create(path)?;
            file.write_all(&vec![0x5a; 2 * RESERVE_BYTES])?;
            file.sync_all()?;
            file.set_len(RESERVE_BYTES as u64)
        };
        match write() {
            Ok(()) => {
                self.full.set(None);
                true
            }
            Err(_) => {
                self.give_up_reserve();
                false
            }
        }
    }

    /// What was acked made room within the file, which does not shrink.
    fn has_free_pages(&self) -> bool {
        let pragma = |name: &str| self.db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, usize>(0)).unwrap_or(0);
        pragma("freelist_count") * pragma("page_size") >= 2 * RESERVE_BYTES
    }

    fn give_up_reserve(&self) {
        if let Some(Place { reserve: path, .. }) = &self.place {
            let _ = std::fs::remove_file(path);
        }
        self.full.set(Some(Instant::now()));
    }
}

fn no_room() -> Error {
    Error::Storage { message: "the disk of the data folder is full".into(), full: true }
}
