//! A file of rows, read one row at a time in any order. Memory holds where the rows begin, not the rows.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Bytes of one row.
const MAX_ROW: u64 = 256 << 20;

pub(super) struct Source {
    /// Of the file as it was given.
    pub sha256: String,
    lines: File,
    /// Where each row's line begins and how long it is.
    rows: Vec<(u64, usize)>,
}

impl Source {
    /// JSON lines are read where they are; Parquet, which has no cheap way to one row, is unpacked to lines in a file without a name.
    ///
    /// # Errors
    ///
    /// A file that is neither, can't be read, or has no rows.
    pub fn open(path: &Path, scratch: Option<&Path>) -> Result<Source> {
        let refuse = |message: String| Error::Setup(format!("--dataset {}: {message}", path.display()));
        let mut file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        let mut hash = Sha256::new();
        std::io::copy(&mut file, &mut hash).map_err(|e| refuse(e.to_string()))?;
        let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut magic = [0; 4];
        let is_parquet = file.read_exact_at(&mut magic, 0).is_ok() && &magic == b"PAR1";
        let lines = match is_parquet {
            true => unpack(file, scratch.unwrap_or(&std::env::temp_dir())).map_err(refuse)?,
            false => file,
        };
        let rows = index(&lines).map_err(refuse)?;
        match rows.is_empty() {
            true => Err(refuse("no rows: neither JSON lines nor Parquet?".into())),
            false => Ok(Source { sha256, lines, rows }),
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// # Errors
    ///
    /// A line that is not JSON.
    pub fn row(&self, row: usize) -> Result<Value> {
        let (start, len) = self.rows[row];
        let mut line = vec![0; len];
        self.lines.read_exact_at(&mut line, start).map_err(|e| Error::Storage { message: format!("the data set: {e}"), full: false })?;
        serde_json::from_slice(&line).map_err(|e| Error::invalid("", format!("not JSON: {e}")))
    }
}

/// Where the lines are that hold something.
fn index(file: &File) -> std::result::Result<Vec<(u64, usize)>, String> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    reader.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
    let (mut rows, mut start, mut line) = (Vec::new(), 0, Vec::new());
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_ROW + 1).read_until(b'\n', &mut line).map_err(|e| e.to_string())?;
        if read == 0 {
            return Ok(rows);
        }
        if read as u64 > MAX_ROW {
            return Err(format!("row {} has more than {MAX_ROW} bytes", rows.len()));
        }
        if !line.trim_ascii().is_empty() {
            rows.push((start, read));
        }
        start += read as u64;
    }
}

fn unpack(file: File, folder: &Path) -> std::result::Result<File, String> {
    let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
    let name = folder.join(format!("grouper-dataset-{}.jsonl", std::process::id()));
    let lines = File::options().read(true).write(true).create(true).truncate(true).open(&name);
    let lines = lines.map_err(|e| format!("{}: {e}", name.display()))?;
    // It is gone with the process.
    std::fs::remove_file(&name).map_err(|e| e.to_string())?;
    let mut writer = BufWriter::with_capacity(1 << 20, &lines);
    for row in reader.get_row_iter(None).map_err(|e| e.to_string())? {
        let row = row.map_err(|e| e.to_string())?.to_json_value();
        serde_json::to_writer(&mut writer, &row).map_err(|e| e.to_string())?;
        writer.write_all(b"\n").map_err(|e| e.to_string())?;
    }
    writer.flush().map_err(|e| e.to_string())?;
    drop(writer);
    Ok(lines)
}
