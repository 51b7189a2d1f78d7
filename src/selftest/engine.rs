//! The engine: what a sample is must not depend on its company, on the room there is or on when it is computed. Bits are compared,
//! over as many sequences as are asked for; on a GPU also how close they are to the CPU's.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::runtime::Runtime;

use super::sequences::{GROUP, LONGEST, Work, works};
use super::{SelftestConfig, Table};
use crate::backends::BLOCK_SIZE;
use crate::engine::handle::{EngineHandle, GroupStream};
use crate::engine::policy::PauseMode;
use crate::engine::request::{GroupRequest, SampleEvent, SampleOutput};
use crate::engine::scoring::{ScoreRequest, Scorer};
use crate::engine::{Device, EngineConfig, KvBudget, ServingDtype, start_on_device};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;

/// Samples that run at once.
const CROWD: usize = 512;
/// Samples and rows of a step when prompts are computed in small chunks.
const FEW: usize = 64;
const SMALL_STEP: usize = 96;
/// Tokens of a sample when only the size of the steps matters.
const SHORT: usize = 4;
/// Steps of so many rows where none are captured.
const ROWS: &[usize] = &[1, 2, 4, 8, 16, 32, 64];
/// One of text, one of images.
const LEAST_GROUPS: usize = 2;
/// Groups that the CPU computes, too.
const ON_CPU: usize = 16;

/// The samples of each group.
type Groups = Vec<Vec<SampleOutput>>;

pub fn run(config: &SelftestConfig, table: &mut Table) -> Result<()> {
    let model = ModelConfig::load(&config.model)?;
    let groups = config.sequences.div_ceil(GROUP).max(LEAST_GROUPS);
    let all = works(&model, config.sequences.max(groups), config.max_tokens.unwrap_or(usize::MAX));
    let works = &all[..groups];
    let base = base(config, works, longest(&all));
    let expected = one_engine(config, &base, works, &all, table)?;
    other_engines(config, &base, works, &expected, table)?;
    // The distance is a mean over prompts: a few of them say nothing.
    if config.device != Device::Cpu && model.hidden_size <= 512 && works.len() >= ON_CPU {
        let few = &works[..ON_CPU];
        let cpu = Session::start(&config.model, &EngineConfig { device: Device::Cpu, ..base })?;
        close(&cpu.generate(few, 0..few.len())?, &expected, table);
        cpu.stop()?;
    }
    Ok(())
}

/// Tokens of the longest prompt with its samples.
fn longest(works: &[Work]) -> usize {
    works.iter().map(Work::longest).max().unwrap_or(2)
}

/// Room for everything at once.
fn base(config: &SelftestConfig, works: &[Work], longest: usize) -> EngineConfig {
    let sequences = works.len() * GROUP;
    let blocks: usize = works.iter().map(|w| prompt_blocks(w) + GROUP * w.sampling.max_tokens.div_ceil(BLOCK_SIZE)).sum();
    EngineConfig {
        device: config.device,
        dtype: ServingDtype::Bfloat16,
        max_model_len: Some(longest),
        max_num_seqs: CROWD.min(sequences),
        max_num_batched_tokens: if config.device == Device::Cpu { 1024 } else { 8192 },
        kv_cache: KvBudget::Blocks(blocks + longest.div_ceil(BLOCK_SIZE) + 2),
        lag: 1,
        enforce_eager: config.enforce_eager,
        ..Default::default()
    }
}

fn prompt_blocks(work: &Work) -> usize {
    work.prompt.token_ids.len().div_ceil(BLOCK_SIZE)
}

/// What one engine does to the same samples; returns them. `all`: these groups and more, of which one sample each is compared.
fn one_engine(config: &SelftestConfig, base: &EngineConfig, works: &[Work], all: &[Work], table: &mut Table) -> Result<Groups> {
    let engine = Session::start(&config.model, base)?;
    let started = Instant::now();
    let expected = engine.generate(works, 0..works.len())?;
    let at_once = base.max_num_seqs;
    let (tokens, whole) = count(works, &expected);
    let found = format!("{} sequences, {tokens} tokens: what others are compared with ({:.1} s)", works.len() * GROUP, seconds(started));
    table.push("engine bits", format!("{at_once} at once, lag 1"), whole, found);

    let (started, hits) = (Instant::now(), engine.prefix_hits());
    let compared = Compared::all(works, &expected, &engine.generate(works, 0..works.len())?);
    let hits = engine.prefix_hits() - hits;
    compared.report(table, format!("again: {hits} blocks of prompts cached"), hits > 0, started);

    let started = Instant::now();
    let firsts = engine.together(all.iter().map(|work| (work.request(1, usize::MAX), 1)))?;
    let mut compared = Compared::default();
    for ((work, expected), first) in works.iter().zip(&expected).zip(&firsts) {
        compared.group(work, expected, first);
    }
    compared.report(table, format!("without the rest of their groups, {} groups", all.len()), true, started);

    let (started, mut compared) = (Instant::now(), Compared::default());
    for (work, first) in all.iter().zip(&firsts) {
        engine.handle.reset_caches()?;
        let stream = engine.handle.submit(work.request(1, usize::MAX))?;
        compared.group(work, first, &engine.drain(stream, 1)?);
    }
    compared.report(table, "each alone".into(), compared.text + compared.media == all.len(), started);

    let (started, mut compared) = (Instant::now(), Compared::default());
    for (work, samples) in works.iter().zip(&expected) {
        for sample in samples {
            let scores = engine.runtime.block_on(engine.handle.score(ScoreRequest {
                prompt: work.prompt.clone(),
                completion: sample.token_ids.clone().into(),
                temperature: work.sampling.temperature,
                scorer: Scorer::Policy,
            }))?;
            let same = same_bits(&scores.logps, &sample.logps) && same_bits(&scores.entropy, &sample.entropy);
            compared.sequence(work, scores.logps.len(), same);
        }
    }
    compared.report(table, "given and scored: logps, entropy".into(), true, started);

    let (started, mut compared) = (Instant::now(), Compared::default());
    let captured = &engine.handle.info().captured.rows;
    let mut sizes = if captured.is_empty() { ROWS.to_vec() } else { captured.clone() };
    sizes.sort_unstable();
    let mut below = 0;
    for size in sizes.iter().copied().filter(|size| *size <= at_once) {
        // The most that is filled up, and nothing.
        for rows in if below + 1 < size { vec![below + 1, size] } else { vec![size] } {
            let groups = rows.div_ceil(GROUP);
            let samples = |group: usize| GROUP.min(rows - group * GROUP);
            let ours = engine.together((0..groups).map(|g| (works[g].request(samples(g), SHORT), samples(g))))?;
            for ((work, expected), ours) in works.iter().zip(&expected).zip(&ours) {
                compared.group(work, expected, ours);
            }
        }
        below = size;
    }
    let case = format!("steps of {} sizes, {SHORT} tokens each", sizes.len());
    compared.report(table, case, true, started);
    engine.stop()?;
    Ok(expected)
}

/// Engines that start on the same weights with less room.
fn other_engines(config: &SelftestConfig, base: &EngineConfig, works: &[Work], expected: &Groups, table: &mut Table) -> Result<()> {
    // Prompts and samples of the long groups as they are expected to end after a short sample, which is not how they end.
    let long: Vec<usize> = (0..works.len()).filter(|i| works[*i].sampling.max_tokens == LONGEST).collect();
    let short_of: usize = long.iter().map(|i| prompt_blocks(&works[*i]) + GROUP * 2).sum();
    let least = base.max_model_len.unwrap_or(longest(works)).div_ceil(BLOCK_SIZE) + 2;
    let tight = EngineConfig { lag: 2, kv_cache: KvBudget::Blocks(short_of.max(least)), ..base.clone() };
    let chunks = EngineConfig {
        lag: 2,
        max_num_seqs: FEW.min(base.max_num_seqs),
        max_num_batched_tokens: SMALL_STEP,
        enforce_eager: true,
        ..base.clone()
    };
    let mut others = vec![
        ("restarted, lag 0, no prefix cache", EngineConfig { lag: 0, prefix_caching: false, ..base.clone() }),
        ("restarted, lag 2, 96 rows a step, not replayed", chunks),
    ];
    // Short samples leave room for each other.
    if !long.is_empty() {
        others.push(("restarted, lag 2, no room", tight.clone()));
    }
    for (name, settings) in others {
        let engine = Session::start(&config.model, &settings)?;
        let started = Instant::now();
        let squeezed = settings.kv_cache == tight.kv_cache;
        let mut order: Vec<usize> = (0..works.len()).collect();
        if squeezed {
            // A short sample and then the long ones: more are admitted than fit, so that somebody has to give way.
            engine.together(std::iter::once((works[0].request(1, 2), 1)))?;
            order.sort_by_key(|i| std::cmp::Reverse(works[*i].sampling.max_tokens));
        }
        let compared = Compared::all(works, expected, &engine.generate(works, order)?);
        let preempted = engine.handle.stats().preemptions.load(Relaxed);
        let case = if squeezed { format!("{name}: {preempted} preempted") } else { name.into() };
        compared.report(table, case, preempted > 0 || !squeezed, started);
        engine.stop()?;
    }
    Ok(())
}

/// An engine and who waits for it.
struct Session {
    handle: EngineHandle,
    thread: JoinHandle<()>,
    runtime: Runtime,
}

impl Session {
    fn start(folder: &Path, config: &EngineConfig) -> Result<Self> {
        let started = Instant::now();
        let (handle, thread) = start_on_device(folder, config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| Error::Setup(e.to_string()))?;
        let captured = &handle.info().captured;
        let graphs = if captured.rows.is_empty() { String::new() } else { format!("; {captured}") };
        println!("     engine on {} in {:.1} s{graphs}", handle.info().device, started.elapsed().as_secs_f64());
        Ok(Session { handle, thread, runtime })
    }

    /// Ends the engine, which gives the device's memory back.
    fn stop(self) -> Result<()> {
        self.handle.shutdown();
        self.thread.join().map_err(|_| Error::Setup("the engine thread panicked".into()))
    }

    fn prefix_hits(&self) -> u64 {
        self.handle.stats().prefix_hits.load(Relaxed)
    }

    /// Whole groups, submitted in `order`, as they are in `works`.
    fn generate(&self, works: &[Work], order: impl IntoIterator<Item = usize>) -> Result<Groups> {
        let order: Vec<usize> = order.into_iter().collect();
        let groups = self.together(order.iter().map(|i| (works[*i].request(GROUP, usize::MAX), GROUP)))?;
        let mut sorted = vec![Vec::new(); works.len()];
        order.into_iter().zip(groups).for_each(|(i, group)| sorted[i] = group);
        Ok(sorted)
    }

    /// Requests, with the number of their samples, that start in one step.
    fn together(&self, requests: impl Iterator<Item = (GroupRequest, usize)>) -> Result<Groups> {
        self.runtime.block_on(self.handle.pause(PauseMode::Keep))?;
        let streams = requests.map(|(request, samples)| Ok((self.handle.submit(request)?, samples))).collect::<Result<Vec<_>>>()?;
        self.runtime.block_on(self.handle.resume())?;
        streams.into_iter().map(|(stream, samples)| self.drain(stream, samples)).collect()
    }

    fn drain(&self, mut stream: GroupStream, samples: usize) -> Result<Vec<SampleOutput>> {
        let mut outputs = vec![None; samples];
        self.runtime.block_on(async {
            while let Some(event) = stream.next().await {
                if let SampleEvent::Finished { sample, output } = event {
                    outputs[sample] = Some(*output);
                }
            }
        });
        let outputs: Option<Vec<SampleOutput>> = outputs.into_iter().collect();
        outputs.ok_or_else(|| Error::NotReady("the engine stopped".into()))
    }
}

/// How many sequences were compared, by kind, and how many differ.
#[derive(Debug, Default, PartialEq)]
struct Compared {
    text: usize,
    media: usize,
    tokens: usize,
    differ: usize,
}

impl Compared {
    fn all(works: &[Work], expected: &Groups, ours: &Groups) -> Self {
        let mut compared = Compared::default();
        for ((work, expected), ours) in works.iter().zip(expected).zip(ours) {
            assert_eq!(expected.len(), ours.len(), "a group lost samples");
            compared.group(work, expected, ours);
        }
        compared
    }

    /// Samples of one group, of which ours may be fewer and shorter.
    fn group(&mut self, work: &Work, expected: &[SampleOutput], ours: &[SampleOutput]) {
        for (expected, ours) in expected.iter().zip(ours) {
            let (expected, ours) = (bits(expected), bits(ours));
            self.sequence(work, ours.len(), !ours.is_empty() && expected.starts_with(&ours));
        }
    }

    fn sequence(&mut self, work: &Work, tokens: usize, same: bool) {
        *(if work.has_media() { &mut self.media } else { &mut self.text }) += 1;
        self.tokens += tokens;
        self.differ += usize::from(!same);
    }

    fn report(&self, table: &mut Table, case: String, happened: bool, started: Instant) {
        let Compared { text, media, tokens, differ } = self;
        let found = format!("{text} + {media} with images, {tokens} tokens: {differ} sequences differ ({:.1} s)", seconds(started));
        table.push("engine bits", case, happened && *differ == 0 && text + media > 0, found);
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// Tokens of all samples, and whether none ended early.
fn count(works: &[Work], groups: &Groups) -> (usize, bool) {
    let lengths = |(work, samples): (&Work, &Vec<SampleOutput>)| -> Vec<(usize, usize)> {
        samples.iter().map(|sample| (sample.token_ids.len(), work.sampling.max_tokens)).collect()
    };
    let lengths: Vec<(usize, usize)> = works.iter().zip(groups).flat_map(lengths).collect();
    (lengths.iter().map(|(len, _)| len).sum(), lengths.iter().all(|(len, asked)| len == asked))
}

/// Ids and everything that was measured of them.
fn bits(out: &SampleOutput) -> Vec<[u32; 5]> {
    (0..out.token_ids.len())
        .map(|i| {
            [out.token_ids[i], out.logps[i].to_bits(), out.logps_raw[i].to_bits(), out.logps_sampled[i].to_bits(), out.entropy[i].to_bits()]
        })
        .collect()
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && super::differing_bits(a, b) == 0
}

/// Tokens agree until a difference in the last bits decides a draw, a quarter of all at least; up to there log-probabilities are close.
fn close(expected: &Groups, ours: &Groups, table: &mut Table) {
    let (mut same, mut total, mut sum, mut worst) = (0usize, 0usize, 0f64, 0f32);
    for (a, b) in expected.iter().flatten().zip(ours.iter().flatten()) {
        let common = a.token_ids.iter().zip(&b.token_ids).take_while(|(a, b)| a == b).count();
        for (x, y) in a.logps[..common].iter().zip(&b.logps) {
            sum += f64::from((x - y).abs());
            worst = worst.max((x - y).abs());
        }
        same += common;
        total += a.token_ids.len();
    }
    let mean = sum / same.max(1) as f64;
    let passed = same * 4 > total && mean < 0.03;
    table.push(
        "engine",
        "against the CPU in bf16".into(),
        passed,
        format!("{same} of {total} tokens before a draw differs; logps: mean {mean:.1e}, worst {worst:.1e}"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::request::{FinishReason, Timing};

    #[test]
    fn a_last_bit_is_a_difference() {
        let output = SampleOutput {
            finish_reason: FinishReason::Length,
            token_ids: vec![1, 2],
            logps: vec![-1.0, -2.0],
            logps_raw: vec![-1.0, -2.0],
            logps_sampled: vec![-1.0, -2.0],
            entropy: vec![1.0, 1.0],
            top: Vec::new(),
            policy_versions: Vec::new(),
            timing: Timing::default(),
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/tiny-vl");
        let works = works(&ModelConfig::load(&folder).unwrap(), 2, usize::MAX);
        let compared = |change: &dyn Fn(&mut SampleOutput)| {
            let mut ours = output.clone();
            change(&mut ours);
            let mut compared = Compared::default();
            compared.group(&works[1], std::slice::from_ref(&output), &[ours]);
            (compared.media, compared.differ)
        };
        assert_eq!(compared(&|_| {}), (1, 0));
        assert_eq!(compared(&|ours| ours.logps[1] = f32::from_bits(ours.logps[1].to_bits() + 1)), (1, 1));
        assert_eq!(compared(&|ours| ours.token_ids[0] = 7), (1, 1));
        assert_eq!(compared(&|ours| ours.token_ids.clear()), (1, 1));
        assert_eq!(compared(&|ours| ours.token_ids.truncate(1)), (1, 0), "it was asked for less");
    }
}
