//! Leases: taken, extended, acked, given back, expired.

use rusqlite::{OptionalExtension, params};

use super::writer::{Attempt, Ops};
use super::{Blob, Delivery, Lease, LeaseWish, NewGroup, NewRollout};
use crate::error::Error;

/// A lease as it is stored.
struct Record {
    fence: u64,
    state: String,
    expires_at: u64,
}

impl Ops<'_> {
    pub fn lease(&self, lease_id: &str, wish: &LeaseWish) -> Attempt<Option<Lease>> {
        if let Some(age) = wish.drop_older {
            self.drop_stale(&wish.queue, wish.version.saturating_sub(age))?;
        }
        let oldest = wish.skip_older.map_or(0, |age| wish.version.saturating_sub(age));
        let mut ready = self
            .db
            .prepare_cached("SELECT seq FROM groups WHERE state = 'ready' AND queue = ?1 AND version >= ?2 ORDER BY seq LIMIT ?3")?;
        let ready = ready.query_map(params![wish.queue, oldest as i64, wish.num_groups], |row| row.get(0))?;
        let ready: Vec<i64> = ready.collect::<Result<_, _>>()?;
        if ready.is_empty() || (ready.len() < wish.num_groups && !wish.partial) {
            return Ok(None);
        }
        self.db.execute("UPDATE fences SET last = last + 1", [])?;
        let fence = self.db.query_row("SELECT last FROM fences", [], |row| row.get::<_, i64>(0))? as u64;
        let expires_at = self.now + wish.lease_ms;
        self.db.prepare_cached("INSERT INTO leases VALUES (?1, ?2, ?3, ?4, 'live', ?5, ?6, ?7)")?.execute(params![
            lease_id,
            fence as i64,
            wish.queue,
            wish.learner,
            wish.lease_ms,
            expires_at,
            self.now
        ])?;
        for seq in &ready {
            self.db
                .prepare_cached("UPDATE groups SET state = 'leased', lease_id = ?2, deliveries = deliveries + 1 WHERE seq = ?1")?
                .execute(params![seq, lease_id])?;
        }
        let groups = self.deliveries(lease_id, true)?;
        let (queue, learner) = (wish.queue.clone(), wish.learner.clone());
        Ok(Some(Lease { lease_id: lease_id.to_owned(), fence, queue, learner, expires_at, groups }))
    }

    /// The groups of a live lease.
    fn deliveries(&self, lease_id: &str, with_payloads: bool) -> Attempt<Vec<Delivery>> {
        let mut select = self.db.prepare_cached(
            "SELECT uid, deliveries, CASE WHEN ?2 THEN payload ELSE x'' END FROM groups
             WHERE lease_id = ?1 AND state = 'leased' ORDER BY seq",
        )?;
        let rows = select.query_map(params![lease_id, with_payloads], |row| {
            Ok(Delivery { uid: row.get(0)?, delivery: row.get(1)?, payload: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn drop_stale(&self, queue: &str, oldest: u64) -> Attempt<()> {
        let mut select = self
            .db
            .prepare_cached("SELECT seq, uid, rollout_id, retake, job FROM groups WHERE state = 'ready' AND queue = ?1 AND version < ?2")?;
        let rows = select.query_map(params![queue, oldest as i64], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, bool>(3)?, row.get(4)?))
        })?;
        let rows: Vec<(i64, String, String, bool, Vec<u8>)> = rows.collect::<Result<_, _>>()?;
        for (seq, uid, rollout_id, retake, job) in rows {
            if retake {
                let (base, takes) = uid.rsplit_once('~').and_then(|(base, n)| Some((base, n.parse::<u32>().ok()?))).unwrap_or((&uid, 1));
                let mut blobs = self
                    .db
                    .prepare_cached("SELECT b.sha256, bytes FROM group_blobs g JOIN blobs b ON b.sha256 = g.sha256 WHERE seq = ?1")?;
                let blobs =
                    blobs.query_map([seq], |row| Ok(Blob { sha256: row.get(0)?, bytes: row.get(1)? }))?.collect::<Result<_, _>>()?;
                let again = NewGroup { uid: format!("{base}~{}", takes + 1), job, blobs, retake, unusable: None };
                self.insert(&NewRollout { rollout_id, queue: queue.to_owned(), ..NewRollout::default() }, &again)?;
            }
            self.drop_group(seq, queue, "stale")?;
        }
        Ok(())
    }

    /// Ends leases whose time is over: the beginning of every transaction.
    pub fn expire(&self) -> Attempt<usize> {
        let mut select = self.db.prepare_cached("SELECT lease_id FROM leases WHERE state = 'live' AND expires_ms <= ?1")?;
        let over: Vec<String> = select.query_map([self.now], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for lease_id in &over {
            self.end(lease_id, "expired")?;
            self.return_groups(lease_id, "its lease expired")?;
        }
        Ok(over.len())
    }

    pub fn ack(&self, lease_id: &str, fence: u64) -> Attempt<Vec<String>> {
        if self.held(lease_id, fence, "acked")? {
            self.end(lease_id, "acked")?;
            let mut groups =
                self.db.prepare_cached("SELECT seq, queue FROM groups WHERE lease_id = ?1 AND state = 'leased' ORDER BY seq")?;
            let groups: Vec<(i64, String)> =
                groups.query_map([lease_id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
            for (seq, queue) in groups {
                self.db.prepare_cached("UPDATE groups SET state = 'acked' WHERE seq = ?1")?.execute([seq])?;
                self.forget_content(seq)?;
                self.count(&queue, "acked", "", 1)?;
            }
        }
        let mut uids = self.db.prepare_cached("SELECT uid FROM groups WHERE lease_id = ?1 AND state = 'acked' ORDER BY seq")?;
        Ok(uids.query_map([lease_id], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    pub fn nack(&self, lease_id: &str, fence: u64, reason: Option<&str>) -> Attempt<Vec<String>> {
        if !self.held(lease_id, fence, "nacked")? {
            return Ok(Vec::new());
        }
        self.end(lease_id, "nacked")?;
        self.return_groups(lease_id, reason.unwrap_or("it was nacked"))
    }

    pub fn extend(&self, lease_id: &str, fence: u64, lease_ms: u64) -> Attempt<u64> {
        self.held(lease_id, fence, "live")?;
        let expires_at = self.now + lease_ms;
        self.db
            .prepare_cached("UPDATE leases SET lease_ms = ?2, expires_ms = ?3 WHERE lease_id = ?1")?
            .execute(params![lease_id, lease_ms, expires_at])?;
        Ok(expires_at)
    }

    /// Whether the lease is held; false when it ended in the way that is wanted, an error when it ended in another.
    fn held(&self, lease_id: &str, fence: u64, wanted: &str) -> Attempt<bool> {
        let mut select = self.db.prepare_cached("SELECT fence, state, expires_ms FROM leases WHERE lease_id = ?1")?;
        let record = select
            .query_row([lease_id], |row| Ok(Record { fence: row.get::<_, i64>(0)? as u64, state: row.get(1)?, expires_at: row.get(2)? }))
            .optional()?;
        let record = record.ok_or_else(|| Error::NotFound(format!("there is no lease {lease_id:?}")))?;
        if record.fence != fence {
            return Err(Error::Conflict(format!("fence: {fence} is not that of lease {lease_id}")).into());
        }
        match record.state.as_str() {
            "live" => Ok(true),
            state if state == wanted => Ok(false),
            "expired" => {
                let message = format!("lease {lease_id} expired at {}; its groups are delivered again", record.expires_at);
                Err(Error::Conflict(message).into())
            }
            state => Err(Error::Conflict(format!("lease {lease_id} was {state}")).into()),
        }
    }

    fn end(&self, lease_id: &str, state: &str) -> Attempt<()> {
        self.db
            .prepare_cached("UPDATE leases SET state = ?2, at_ms = ?3 WHERE lease_id = ?1")?
            .execute(params![lease_id, state, self.now])?;
        Ok(())
    }

    /// Groups go back to their places, or to the dead letters when this was their last delivery.
    fn return_groups(&self, lease_id: &str, why: &str) -> Attempt<Vec<String>> {
        self.tell();
        let mut groups =
            self.db.prepare_cached("SELECT seq, uid, deliveries FROM groups WHERE lease_id = ?1 AND state = 'leased' ORDER BY seq")?;
        let groups = groups.query_map([lease_id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let groups: Vec<(i64, String, u32)> = groups.collect::<Result<_, _>>()?;
        for (seq, _, deliveries) in &groups {
            if *deliveries >= self.options.max_deliveries {
                self.bury(*seq, &format!("delivered {deliveries} times without an ack; the last time: {why}"))?;
            } else {
                self.db.prepare_cached("UPDATE groups SET state = 'ready', lease_id = NULL WHERE seq = ?1")?.execute([seq])?;
            }
        }
        Ok(groups.into_iter().map(|(_, uid, _)| uid).collect())
    }

    pub fn leases(&self, learner: Option<&str>, with_payloads: bool) -> Attempt<Vec<Lease>> {
        let mut select = self.db.prepare_cached(
            "SELECT lease_id, fence, queue, learner, expires_ms FROM leases
             WHERE state = 'live' AND (?1 IS NULL OR learner = ?1) ORDER BY fence",
        )?;
        let rows = select.query_map([learner], |row| {
            Ok(Lease {
                lease_id: row.get(0)?,
                fence: row.get::<_, i64>(1)? as u64,
                queue: row.get(2)?,
                learner: row.get(3)?,
                expires_at: row.get(4)?,
                groups: Vec::new(),
            })
        })?;
        let mut leases: Vec<Lease> = rows.collect::<Result<_, _>>()?;
        for lease in &mut leases {
            lease.groups = self.deliveries(&lease.lease_id, with_payloads)?;
        }
        Ok(leases)
    }
}
