//! What the server ought to hold, on disk: written whole or not at all, and there before anybody is told.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub version: u64,
    pub sha256: String,
    /// Where the same weights can be read again.
    pub path: Option<PathBuf>,
}

pub struct RecordFile {
    path: PathBuf,
}

impl RecordFile {
    /// The record of a data folder, which is made if it is not there.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::file(folder, e))?;
        Ok(RecordFile { path: folder.join("policy.json") })
    }

    pub fn read(&self) -> Result<Option<Record>> {
        match std::fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::file(&self.path, e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file(&self.path, e)),
        }
    }

    /// Writes a record and returns the one that was there.
    pub fn replace(&self, record: &Record) -> Result<Option<Record>> {
        let before = self.read()?;
        self.write(record).map_err(|e| Error::file(&self.path, e))?;
        Ok(before)
    }

    /// Puts back what [`RecordFile::replace`] returned.
    pub fn restore(&self, before: Option<Record>) -> Result<()> {
        match before {
            Some(record) => self.write(&record),
            None => std::fs::remove_file(&self.path),
        }
        .map_err(|e| Error::file(&self.path, e))
    }

    fn write(&self, record: &Record) -> std::io::Result<()> {
        let new = self.path.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        // The name is durable once its folder is.
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = RecordFile::open(&folder.path().join("data")).unwrap();
        let record = |version| Record { version, sha256: "ab".into(), path: Some("/w".into()) };
        assert_eq!(file.read().unwrap(), None);
        assert_eq!(file.replace(&record(1)).unwrap(), None);
        assert_eq!(file.replace(&record(2)).unwrap(), Some(record(1)));
        file.restore(Some(record(1))).unwrap();
        assert_eq!(file.read().unwrap(), Some(record(1)));
        file.restore(None).unwrap();
        assert_eq!(file.read().unwrap(), None);
        std::fs::write(folder.path().join("data/policy.json"), "{\"version\": 1").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("policy.json"));
    }
}
