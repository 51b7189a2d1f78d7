//! What a store tells about its groups, and dead letters.

use rusqlite::params;

use super::writer::{Attempt, Ops};
use super::{Counts, DeadGroup, Delivery, Progress, State};
use crate::error::Error;

impl Ops<'_> {
    pub fn counts(&self) -> Attempt<Counts> {
        let mut counts = Counts::new();
        let mut events = self.db.prepare_cached("SELECT queue, event, reason, count FROM counters")?;
        let events = events.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, i64>(3)? as u64))
        })?;
        for event in events {
            let (queue, event, reason, count) = event?;
            let queue = counts.entry(queue).or_default();
            match event.as_str() {
                "accepted" => queue.accepted = count,
                "acked" => queue.acked = count,
                _ => _ = queue.dropped.insert(reason, count),
            }
        }
        let mut states = self
            .db
            .prepare_cached("SELECT queue, state, count(*) FROM groups WHERE state IN ('accepted', 'generating', 'ready', 'leased', 'dead') GROUP BY state, queue")?;
        let states = states.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)? as u64)))?;
        for state in states {
            let (queue, state, count) = state?;
            let queue = counts.entry(queue).or_default();
            match State::of(&state) {
                Some(State::Accepted) => queue.pending += count,
                Some(State::Generating) => {
                    queue.pending += count;
                    queue.generating = count;
                }
                Some(State::Ready) => queue.ready = count,
                Some(State::Leased) => queue.leased = count,
                _ => queue.dead = count,
            }
        }
        Ok(counts)
    }

    pub fn dead(&self, after: Option<&str>, limit: usize) -> Attempt<Vec<DeadGroup>> {
        let after = match after {
            None => 0,
            Some(uid) => self.seq(uid)?.ok_or_else(|| Error::NotFound(format!("there is no group {uid:?}")))?,
        };
        let mut select = self.db.prepare_cached(
            "SELECT uid, rollout_id, queue, coalesce(reason, ''), deliveries, generations, at_ms, coalesce(job, x''), payload
             FROM groups WHERE state = 'dead' AND seq > ?1 ORDER BY seq LIMIT ?2",
        )?;
        let rows = select.query_map(params![after, limit], |row| {
            Ok(DeadGroup {
                uid: row.get(0)?,
                rollout_id: row.get(1)?,
                queue: row.get(2)?,
                reason: row.get(3)?,
                deliveries: row.get(4)?,
                generations: row.get(5)?,
                died_at: row.get(6)?,
                job: row.get(7)?,
                payload: row.get(8)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub fn requeue(&self, uid: &str) -> Attempt<()> {
        let mut update = self.db.prepare_cached(
            "UPDATE groups SET state = CASE WHEN payload IS NULL THEN 'accepted' ELSE 'ready' END, reason = NULL, deliveries = 0,
             generations = 0, lease_id = NULL, at_ms = ?2 WHERE uid = ?1 AND state = 'dead'",
        )?;
        match (update.execute(params![uid, self.now])?, self.seq(uid)?) {
            (1.., _) => {
                self.tell();
                Ok(())
            }
            (0, Some(_)) => Err(Error::Conflict(format!("group {uid} is not among the dead letters")).into()),
            (0, None) => Err(Error::NotFound(format!("there is no group {uid:?}")).into()),
        }
    }

    pub fn progress(&self, rollout_id: &str, with_groups: bool) -> Attempt<Option<Progress>> {
        let mut rollout = self.db.prepare_cached("SELECT queue FROM rollouts WHERE rollout_id = ?1")?;
        let Some(queue) = rollout.query_map([rollout_id], |row| row.get(0))?.next().transpose()? else { return Ok(None) };
        let mut progress = Progress { queue, ..Progress::default() };
        let mut select = self.db.prepare_cached("SELECT uid, state, reason FROM groups WHERE rollout_id = ?1 ORDER BY seq")?;
        let rows = select.query_map([rollout_id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?)))?;
        for row in rows {
            let (uid, state, reason) = row?;
            if let Some(state) = State::of(&state) {
                *progress.states.entry(state).or_default() += 1;
            }
            if let Some(reason) = reason {
                progress.reasons.insert(uid, reason);
            }
        }
        if with_groups {
            let mut select = self.db.prepare_cached(
                "SELECT uid, deliveries, payload FROM groups WHERE rollout_id = ?1 AND state IN ('ready', 'leased') ORDER BY seq",
            )?;
            let rows =
                select.query_map([rollout_id], |row| Ok(Delivery { uid: row.get(0)?, delivery: row.get(1)?, payload: row.get(2)? }))?;
            progress.groups = rows.collect::<Result<_, _>>()?;
        }
        Ok(Some(progress))
    }
}
