//! Groups until they are ready: accepted, started, ended, cancelled.

use rusqlite::{Row, params};

use super::writer::{Attempt, Ops};
use super::{Blob, Claim, Job, NewGroup, NewRollout, Outcome, State};
use crate::error::Error;

/// Starts that did not end, before a group is generated alone, so that those beside it are not blamed again.
const SUSPECT_AFTER: u32 = 2;

impl Ops<'_> {
    pub fn accept(&self, rollout: &NewRollout) -> Attempt<Claim> {
        if let Some(known) = rollout.key.as_ref().map(|key| self.known_key(&key.key)).transpose()?.flatten() {
            return Ok(known);
        }
        let wanted = rollout.groups.iter().filter(|group| group.unusable.is_none()).count();
        let limit = self.options.max_queued_groups;
        if wanted > limit {
            let message = format!("{wanted} groups; {limit} can be queued (--max-queued-groups)");
            return Err(Error::invalid_code("groups", "too_many_groups", message).into());
        }
        let queued = self.queued()?;
        if wanted > 0 && queued + wanted > limit {
            let message = format!("{queued} groups are queued; {wanted} more exceed the limit of {limit} (--max-queued-groups)");
            return Err(Error::Overloaded { message, retry_after_ms: 2000 }.into());
        }
        let mut insert = self.db.prepare_cached("INSERT OR IGNORE INTO rollouts VALUES (?1, ?2, ?3, ?4)")?;
        insert.execute(params![rollout.rollout_id, rollout.queue, rollout.settings, self.now])?;
        for group in &rollout.groups {
            self.insert(rollout, group)?;
        }
        if let Some(key) = &rollout.key {
            self.insert_key(key)?;
        }
        if let Some(cursor) = &rollout.cursor {
            self.db.execute("INSERT OR REPLACE INTO cursors VALUES (?1, ?2)", params![rollout.queue, cursor])?;
        }
        Ok(Claim::New)
    }

    pub(super) fn insert(&self, rollout: &NewRollout, group: &NewGroup) -> Attempt<()> {
        let mut insert = self.db.prepare_cached(
            "INSERT INTO groups (uid, rollout_id, queue, state, reason, retake, at_ms, job) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        let state = if group.unusable.is_some() { State::Dead } else { State::Accepted };
        insert.execute(params![
            group.uid,
            rollout.rollout_id,
            rollout.queue,
            state.as_str(),
            group.unusable,
            group.retake,
            self.now,
            group.job
        ])?;
        let seq = self.db.last_insert_rowid();
        for Blob { sha256, bytes } in &group.blobs {
            self.db.prepare_cached("INSERT OR IGNORE INTO blobs VALUES (?1, ?2)")?.execute(params![sha256, bytes])?;
            self.db.prepare_cached("INSERT OR IGNORE INTO group_blobs VALUES (?1, ?2)")?.execute(params![seq, sha256])?;
        }
        self.tell();
        self.count(&rollout.queue, "accepted", "", 1)
    }

    /// Groups that are pending, ready or leased.
    fn queued(&self) -> Attempt<usize> {
        let mut count =
            self.db.prepare_cached("SELECT count(*) FROM groups WHERE state IN ('accepted', 'generating', 'ready', 'leased')")?;
        Ok(count.query_row([], |row| row.get(0))?)
    }

    pub fn start(&self, limit: usize) -> Attempt<Vec<Job>> {
        let suspicion = SUSPECT_AFTER.min(self.options.max_generations.saturating_sub(1)).max(1);
        let mut running =
            self.db.prepare_cached("SELECT count(*), coalesce(max(generations), 0) FROM groups WHERE state = 'generating'")?;
        let (running, most): (usize, u32) = running.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if most > suspicion {
            return Ok(Vec::new());
        }
        let mut next = self.db.prepare_cached("SELECT seq, generations FROM groups WHERE state = 'accepted' ORDER BY seq LIMIT ?1")?;
        let next: Vec<(i64, u32)> = next.query_map([limit], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let taken = match next.first() {
            Some((_, generations)) if *generations >= suspicion => usize::from(running == 0),
            _ => next.iter().take_while(|(_, generations)| *generations < suspicion).count(),
        };
        let mut jobs = Vec::with_capacity(taken);
        for (seq, _) in &next[..taken] {
            self.db
                .prepare_cached("UPDATE groups SET state = 'generating', generations = generations + 1, at_ms = ?2 WHERE seq = ?1")?
                .execute(params![seq, self.now])?;
            jobs.push(self.job(*seq)?);
        }
        Ok(jobs)
    }

    fn job(&self, seq: i64) -> Attempt<Job> {
        let mut select = self.db.prepare_cached(
            "SELECT uid, g.rollout_id, g.queue, settings, coalesce(job, x''), generations
             FROM groups g JOIN rollouts r ON r.rollout_id = g.rollout_id WHERE seq = ?1",
        )?;
        let mut job = select.query_row([seq], |row: &Row<'_>| {
            Ok(Job {
                uid: row.get(0)?,
                rollout_id: row.get(1)?,
                queue: row.get(2)?,
                settings: row.get(3)?,
                job: row.get(4)?,
                blobs: Vec::new(),
                generations: row.get(5)?,
            })
        })?;
        let mut blobs =
            self.db.prepare_cached("SELECT b.sha256, bytes FROM group_blobs g JOIN blobs b ON b.sha256 = g.sha256 WHERE seq = ?1")?;
        let blobs = blobs.query_map([seq], |row| Ok(Blob { sha256: row.get(0)?, bytes: row.get(1)? }))?;
        job.blobs = blobs.collect::<Result<_, _>>()?;
        Ok(job)
    }

    pub fn jobs(&self, uids: &[String]) -> Attempt<Vec<Job>> {
        let mut jobs = Vec::with_capacity(uids.len());
        for uid in uids {
            if let Some(seq) = self.seq(uid)? {
                jobs.push(self.job(seq)?);
            }
        }
        Ok(jobs)
    }

    pub fn finish(&self, uid: &str, outcome: &Outcome) -> Attempt<bool> {
        let mut select = self.db.prepare_cached("SELECT seq, queue FROM groups WHERE uid = ?1 AND state = 'generating'")?;
        let found = select.query_map([uid], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?.next().transpose()?;
        let Some((seq, queue)) = found else { return Ok(false) };
        self.tell();
        match outcome {
            Outcome::Ready { payload, version } => {
                self.db
                    .prepare_cached(
                        "UPDATE groups SET state = 'ready', generations = 0, payload = ?2, version = ?3, at_ms = ?4 WHERE seq = ?1",
                    )?
                    .execute(params![seq, payload, *version as i64, self.now])?;
            }
            Outcome::Dropped { reason } => self.drop_group(seq, &queue, reason)?,
            Outcome::Dead { reason } => self.bury(seq, reason)?,
        }
        Ok(true)
    }

    /// A group that nobody gets: only that it was, and why it was dropped, stays for a while.
    pub(super) fn drop_group(&self, seq: i64, queue: &str, reason: &str) -> Attempt<()> {
        self.db.prepare_cached("UPDATE groups SET state = 'dropped', reason = ?2 WHERE seq = ?1")?.execute(params![seq, reason])?;
        self.forget_content(seq)?;
        self.count(queue, "dropped", reason, 1)
    }

    pub(super) fn bury(&self, seq: i64, reason: &str) -> Attempt<()> {
        let mut update =
            self.db.prepare_cached("UPDATE groups SET state = 'dead', reason = ?2, lease_id = NULL, at_ms = ?3 WHERE seq = ?1")?;
        update.execute(params![seq, reason, self.now])?;
        Ok(())
    }

    /// Of a group that is consumed or dropped, what it was made of is no longer needed.
    pub(super) fn forget_content(&self, seq: i64) -> Attempt<()> {
        self.tell();
        self.db
            .prepare_cached("UPDATE groups SET job = NULL, payload = NULL, at_ms = ?2 WHERE seq = ?1")?
            .execute(params![seq, self.now])?;
        let mut blobs = self.db.prepare_cached("SELECT sha256 FROM group_blobs WHERE seq = ?1")?;
        let blobs: Vec<String> = blobs.query_map([seq], |row| row.get(0))?.collect::<Result<_, _>>()?;
        self.db.prepare_cached("DELETE FROM group_blobs WHERE seq = ?1")?.execute([seq])?;
        for sha256 in blobs {
            self.db
                .prepare_cached("DELETE FROM blobs WHERE sha256 = ?1 AND NOT EXISTS (SELECT 1 FROM group_blobs WHERE sha256 = ?1)")?
                .execute([sha256])?;
        }
        Ok(())
    }

    pub fn give_back(&self, uids: &[String], blame: bool) -> Attempt<()> {
        self.tell();
        for uid in uids {
            self.db
                .prepare_cached(
                    "UPDATE groups SET state = 'accepted', generations = generations - ?2 WHERE uid = ?1 AND state = 'generating'",
                )?
                .execute(params![uid, u32::from(!blame)])?;
        }
        self.bury_poison("the server failed {} times while it generated this group", "accepted")
    }

    /// Groups that were started too often go to the dead letters.
    fn bury_poison(&self, reason: &str, state: &str) -> Attempt<()> {
        let limit = self.options.max_generations;
        let reason = reason.replace("{}", &limit.to_string());
        self.db
            .prepare_cached("UPDATE groups SET state = 'dead', reason = ?2, at_ms = ?3 WHERE state = ?4 AND generations >= ?1")?
            .execute(params![limit, reason, self.now, state])?;
        Ok(())
    }

    /// What the last process left: groups that it was generating are generated again, unless they ended too many of them.
    pub fn recover(&self) -> Attempt<()> {
        self.bury_poison("the server ended {} times while it generated this group", "generating")?;
        self.db.execute("UPDATE groups SET state = 'accepted' WHERE state = 'generating'", [])?;
        // A wall clock that was set back must not make leases longer than they were.
        self.db.execute("UPDATE leases SET expires_ms = min(expires_ms, ?1 + lease_ms) WHERE state = 'live'", [self.now])?;
        Ok(())
    }

    pub fn cancel(&self, rollout_id: &str) -> Attempt<Option<Vec<String>>> {
        if !self.knows_rollout(rollout_id)? {
            return Ok(None);
        }
        let mut select = self.db.prepare_cached(
            "SELECT seq, uid, queue FROM groups WHERE rollout_id = ?1 AND state IN ('accepted', 'generating') ORDER BY seq",
        )?;
        let rows = select.query_map([rollout_id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let rows: Vec<(i64, String, String)> = rows.collect::<Result<_, _>>()?;
        for (seq, _, queue) in &rows {
            self.drop_group(*seq, queue, "cancelled")?;
        }
        Ok(Some(rows.into_iter().map(|(_, uid, _)| uid).collect()))
    }

    pub(super) fn seq(&self, uid: &str) -> Attempt<Option<i64>> {
        let mut select = self.db.prepare_cached("SELECT seq FROM groups WHERE uid = ?1")?;
        Ok(select.query_map([uid], |row| row.get(0))?.next().transpose()?)
    }

    pub(super) fn knows_rollout(&self, rollout_id: &str) -> Attempt<bool> {
        Ok(self.db.prepare_cached("SELECT 1 FROM rollouts WHERE rollout_id = ?1")?.exists([rollout_id])?)
    }

    pub(super) fn count(&self, queue: &str, event: &str, reason: &str, by: u64) -> Attempt<()> {
        let mut add = self.db.prepare_cached(
            "INSERT INTO counters VALUES (?1, ?2, ?3, ?4) ON CONFLICT (queue, event, reason) DO UPDATE SET count = count + ?4",
        )?;
        add.execute(params![queue, event, reason, by as i64])?;
        Ok(())
    }
}
