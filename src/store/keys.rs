//! Keys of requests: claimed before the work, answered after it, forgotten in time.

use rusqlite::{OptionalExtension, params};

use super::writer::{Attempt, Ops};
use super::{Claim, NewKey};

impl Ops<'_> {
    /// What is remembered of a key.
    pub(super) fn known_key(&self, key: &str) -> Attempt<Option<Claim>> {
        let oldest = self.now.saturating_sub(self.options.key_ttl_ms);
        self.db.prepare_cached("DELETE FROM keys WHERE key = ?1 AND at_ms < ?2")?.execute(params![key, oldest])?;
        let mut select = self.db.prepare_cached("SELECT fingerprint, seed, rollout_id, reply FROM keys WHERE key = ?1")?;
        let known = select.query_row([key], |row| {
            let seed = row.get::<_, i64>(1)? as u64;
            Ok(Claim::Known { fingerprint: row.get(0)?, seed, rollout_id: row.get(2)?, reply: row.get(3)? })
        });
        Ok(known.optional()?)
    }

    pub fn claim_key(&self, key: &NewKey) -> Attempt<Claim> {
        match self.known_key(&key.key)? {
            Some(known) => Ok(known),
            None => {
                self.insert_key(key)?;
                Ok(Claim::New)
            }
        }
    }

    pub(super) fn insert_key(&self, key: &NewKey) -> Attempt<()> {
        self.db.prepare_cached("INSERT INTO keys VALUES (?1, ?2, ?3, ?4, ?5, coalesce(length(?5), 0), ?6)")?.execute(params![
            key.key,
            key.fingerprint,
            key.seed as i64,
            key.rollout_id,
            key.reply,
            self.now
        ])?;
        Ok(())
    }

    pub fn set_reply(&self, key: &str, reply: &[u8]) -> Attempt<()> {
        self.db
            .prepare_cached("UPDATE keys SET reply = ?2, bytes = length(?2), at_ms = ?3 WHERE key = ?1")?
            .execute(params![key, reply, self.now])?;
        // Room for younger replies; the youngest stays in any case.
        let mut select = self.db.prepare_cached("SELECT rowid, bytes FROM keys WHERE bytes > 0 ORDER BY at_ms DESC, rowid DESC")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<Vec<(i64, usize)>, _>>()?;
        let mut sum = 0;
        for (rowid, bytes) in rows {
            let is_youngest = sum == 0;
            sum += bytes;
            if sum > self.options.max_reply_bytes && !is_youngest {
                self.db.prepare_cached("DELETE FROM keys WHERE rowid = ?1")?.execute([rowid])?;
            }
        }
        Ok(())
    }

    pub fn free_key(&self, key: &str) -> Attempt<()> {
        self.db.prepare_cached("DELETE FROM keys WHERE key = ?1")?.execute([key])?;
        Ok(())
    }

    pub fn cursor(&self, queue: &str) -> Attempt<Option<Vec<u8>>> {
        Ok(self.db.query_row("SELECT cursor FROM cursors WHERE queue = ?1", [queue], |row| row.get(0)).optional()?)
    }

    /// Forgets what is older than anyone can want. A little at a time, so that nothing waits for it.
    pub fn forget_old(&self) -> Attempt<()> {
        const AT_ONCE: usize = 1000;
        let oldest = self.now.saturating_sub(self.options.retention_ms);
        let statements = [
            (
                "DELETE FROM keys WHERE key IN (SELECT key FROM keys WHERE at_ms < ?1 LIMIT ?2)",
                self.now.saturating_sub(self.options.key_ttl_ms),
            ),
            (
                "DELETE FROM groups WHERE seq IN (SELECT seq FROM groups WHERE state IN ('acked', 'dropped') AND at_ms < ?1 LIMIT ?2)",
                oldest,
            ),
            ("DELETE FROM leases WHERE lease_id IN (SELECT lease_id FROM leases WHERE state != 'live' AND at_ms < ?1 LIMIT ?2)", oldest),
            (
                "DELETE FROM rollouts WHERE rollout_id IN (SELECT rollout_id FROM rollouts r WHERE at_ms < ?1
                 AND NOT EXISTS (SELECT 1 FROM groups g WHERE g.rollout_id = r.rollout_id) LIMIT ?2)",
                oldest,
            ),
        ];
        for (statement, before) in statements {
            self.db.prepare_cached(statement)?.execute(params![before, AT_ONCE])?;
        }
        Ok(())
    }
}
