//! `grouper score`: the scoring route for files. Samples come line by line and leave in the same order.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use crate::api::read_json;
use crate::error::{Error, Result};
use crate::judges::{JudgeConfig, Judges};
use crate::rollout::limits::Limits;
use crate::rollout::request::RewardBody;
use crate::rollout::rewarder::ScorePool;
use crate::rollout::scoring::{ScoreSample, ScoredReply, Scorer};

/// Samples and bytes that are read before they are scored.
const CHUNK: (usize, usize) = (4096, 32 << 20);

/// What to score and how.
#[derive(Debug)]
pub struct ScoreConfig {
    pub input: Input,
    pub rewards: Vec<RewardBody>,
    pub advantage: Value,
    pub judges: JudgeConfig,
    pub limits: Limits,
}

#[derive(Debug)]
pub enum Input {
    Stdin,
    File(PathBuf),
}

/// Scores every line of the input to standard output and tells figures on standard error.
///
/// # Errors
///
/// A file that can't be read, a line that is no sample (with its number and the JSON path), rewards that can't be meant.
pub async fn run(config: ScoreConfig) -> Result<()> {
    let start = Instant::now();
    let judges = Judges::load(&config.judges, &|line| eprintln!("{line}"))?;
    let scorer = Scorer::new(Some(config.rewards), Some(config.advantage), &config.limits, &judges, Arc::new(ScorePool::new()))?;
    let mut lines = Lines::open(&config.input, config.limits.max_body_bytes)?;
    let mut output = BufWriter::new(io::stdout().lock());
    let mut figures = Figures::new(&scorer);
    loop {
        let chunk = lines.chunk()?;
        if chunk.is_empty() {
            break;
        }
        for reply in scorer.score(chunk).await {
            figures.add(&reply);
            let written = serde_json::to_writer(&mut output, &reply).map_err(io::Error::from).and_then(|()| output.write_all(b"\n"));
            match written {
                // Whoever read it has read enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|e| Error::Setup(format!("standard output: {e}")))?,
            }
        }
    }
    output.flush().map_err(|e| Error::Setup(format!("standard output: {e}")))?;
    figures.tell(start.elapsed().as_secs_f64());
    Ok(())
}

/// Samples of a file.
struct Lines {
    reader: Box<dyn BufRead>,
    name: String,
    number: usize,
    max_bytes: usize,
    line: Vec<u8>,
}

impl Lines {
    fn open(input: &Input, max_bytes: usize) -> Result<Self> {
        let (reader, name): (Box<dyn BufRead>, String) = match input {
            Input::Stdin => (Box::new(BufReader::new(io::stdin())), "standard input".to_owned()),
            Input::File(path) => {
                let file = File::open(path).map_err(|e| Error::file(path, e))?;
                (Box::new(BufReader::with_capacity(1 << 20, file)), path.display().to_string())
            }
        };
        Ok(Lines { reader, name, number: 0, max_bytes, line: Vec::new() })
    }

    /// Some samples, none at the end. From the first sample with a group on, all: its siblings may be anywhere.
    fn chunk(&mut self) -> Result<Vec<ScoreSample>> {
        let (mut samples, mut bytes, mut grouped) = (Vec::new(), 0, false);
        while grouped || (samples.len() < CHUNK.0 && bytes < CHUNK.1) {
            let Some(sample) = self.next()? else { break };
            grouped |= sample.has_group();
            bytes += self.line.len();
            samples.push(sample);
        }
        Ok(samples)
    }

    fn next(&mut self) -> Result<Option<ScoreSample>> {
        loop {
            self.line.clear();
            self.number += 1;
            let limit = self.max_bytes as u64 + 1;
            let read = (&mut self.reader).take(limit).read_until(b'\n', &mut self.line);
            if read.map_err(|e| Error::file(&self.name, e))? == 0 {
                return Ok(None);
            }
            if self.line.len() > self.max_bytes {
                return Err(Error::Setup(format!("{}:{}: the line has more than {} bytes", self.name, self.number, self.max_bytes)));
            }
            if !self.line.trim_ascii().is_empty() {
                let sample = read_json::<ScoreSample>(&self.line).and_then(|sample| sample.check().map(|()| sample));
                return sample.map(Some).map_err(|error| Error::Setup(self.explain(&error)));
            }
        }
    }

    /// The error of a request's body as that of a line.
    fn explain(&self, error: &Error) -> String {
        let text = match error {
            Error::Invalid { param, message, .. } if param == "body" => {
                message.replace("at line 1, column", "at column").replace("the body", "the line")
            }
            other => other.to_string(),
        };
        format!("{}:{}: {text}", self.name, self.number)
    }
}

/// Mean and deviation of each reward and of their sum.
struct Figures {
    names: Vec<Arc<str>>,
    samples: usize,
    columns: Vec<Column>,
}

/// Welford's running moments.
#[derive(Clone, Default)]
struct Column {
    count: usize,
    mean: f64,
    squares: f64,
}

impl Figures {
    fn new(scorer: &Scorer) -> Self {
        let names: Vec<Arc<str>> = scorer.keys().iter().cloned().chain(["reward".into()]).collect();
        Figures { samples: 0, columns: vec![Column::default(); names.len()], names }
    }

    fn add(&mut self, reply: &ScoredReply) {
        self.samples += 1;
        let values = reply.rewards.0.iter().map(|(_, value)| *value).chain([reply.reward]);
        for (column, value) in self.columns.iter_mut().zip(values) {
            let Some(value) = value else { continue };
            column.count += 1;
            let before = value - column.mean;
            column.mean += before / column.count as f64;
            column.squares += before * (value - column.mean);
        }
    }

    fn tell(&self, seconds: f64) {
        let width = self.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        eprintln!("{} samples in {seconds:.2} s ({:.0}/s)", self.samples, self.samples as f64 / seconds.max(1e-9));
        eprintln!("{:width$}  {:>10}  {:>10}  {:>10}", "", "mean", "std", "no verdict");
        for (name, column) in self.names.iter().zip(&self.columns) {
            let (mean, std) = match column.count {
                0 => ("-".to_owned(), "-".to_owned()),
                n => (format!("{:.4}", column.mean), format!("{:.4}", (column.squares / (n.max(2) - 1) as f64).sqrt())),
            };
            eprintln!("{name:width$}  {mean:>10}  {std:>10}  {:>10}", self.samples - column.count);
        }
    }
}
