//! Tables of the embedded store, and how older files become what this program reads.

use rusqlite::Connection;

/// One step a version of the file (`PRAGMA user_version`); a step is never changed once it was released.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE rollouts (
        rollout_id TEXT PRIMARY KEY,
        queue      TEXT NOT NULL,
        settings   BLOB NOT NULL,
        at_ms      INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX rollouts_by_age ON rollouts (at_ms);
    -- seq is the place in the queue for life.
    CREATE TABLE groups (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        uid         TEXT NOT NULL UNIQUE,
        rollout_id  TEXT NOT NULL REFERENCES rollouts,
        queue       TEXT NOT NULL,
        state       TEXT NOT NULL,
        reason      TEXT,
        generations INTEGER NOT NULL DEFAULT 0,
        deliveries  INTEGER NOT NULL DEFAULT 0,
        retake      INTEGER NOT NULL,
        lease_id    TEXT,
        version     INTEGER,
        at_ms       INTEGER NOT NULL,
        job         BLOB,
        payload     BLOB
    ) STRICT;
    CREATE INDEX groups_by_state ON groups (state, queue, seq);
    CREATE INDEX groups_done ON groups (at_ms) WHERE state IN ('acked', 'dropped');
    CREATE INDEX groups_by_lease ON groups (lease_id) WHERE lease_id IS NOT NULL;
    CREATE INDEX groups_by_rollout ON groups (rollout_id, seq);
    CREATE TABLE leases (
        lease_id   TEXT PRIMARY KEY,
        fence      INTEGER NOT NULL,
        queue      TEXT NOT NULL,
        learner    TEXT,
        state      TEXT NOT NULL,
        lease_ms   INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        at_ms      INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX leases_by_state ON leases (state, expires_ms);
    CREATE INDEX leases_done ON leases (at_ms) WHERE state != 'live';
    CREATE TABLE blobs (sha256 TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
    CREATE TABLE group_blobs (
        seq    INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (seq, sha256)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX group_blobs_by_content ON group_blobs (sha256);
    -- Events over the life of the store: accepted, acked, dropped (by reason).
    CREATE TABLE counters (
        queue  TEXT NOT NULL,
        event  TEXT NOT NULL,
        reason TEXT NOT NULL,
        count  INTEGER NOT NULL,
        PRIMARY KEY (queue, event, reason)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE keys (
        key         TEXT PRIMARY KEY,
        fingerprint BLOB NOT NULL,
        seed        INTEGER NOT NULL,
        rollout_id  TEXT NOT NULL,
        reply       BLOB,
        bytes       INTEGER NOT NULL,
        at_ms       INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX keys_by_age ON keys (at_ms, bytes);
    CREATE TABLE cursors (queue TEXT PRIMARY KEY, cursor BLOB NOT NULL) STRICT;
    CREATE TABLE fences (only_one INTEGER PRIMARY KEY CHECK (only_one = 0), last INTEGER NOT NULL) STRICT;
    INSERT INTO fences VALUES (0, 0);
"];

/// Brings a file to the present version.
///
/// # Errors
///
/// A file of a later version of the program, in words for the operator.
pub fn migrate(db: &mut Connection) -> Result<(), String> {
    let sql = |e: rusqlite::Error| e.to_string();
    let version: usize = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sql)?;
    if version > MIGRATIONS.len() {
        return Err(format!("written by a later version of grouper (schema {version}; this one knows up to {})", MIGRATIONS.len()));
    }
    for (done, step) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = db.transaction().map_err(sql)?;
        transaction.execute_batch(step).map_err(sql)?;
        transaction.pragma_update(None, "user_version", done + 1).map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    Ok(())
}
