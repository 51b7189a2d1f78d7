//! The engine through its handle: golden ids, and the same bits whatever else it is doing.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use grouper::engine::handle::EngineHandle;
use grouper::engine::request::{FinishReason, GroupRequest, NoWatch, RngKey, SampleEvent, SampleOutput, SamplingParams, StopWatch};
use grouper::engine::{Device, EngineConfig, KvBudget, ServingDtype, start_on_device};
use grouper::model::config::ModelConfig;
use grouper::model::input::PromptInput;
use grouper::model::mrope;
use grouper::selftest::{self, SelftestConfig};
use proptest::prelude::*;
use serde_json::Value;

use crate::golden::{self, ids};

struct Running {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(folder: &Path, config: EngineConfig) -> Self {
        let (handle, thread) = start_on_device(folder, &EngineConfig { threads: Some(1), ..config }).unwrap();
        Running { handle, thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.shutdown();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn watches(n: usize) -> Vec<Box<dyn StopWatch>> {
    (0..n).map(|_| Box::new(NoWatch) as Box<dyn StopWatch>).collect()
}

fn request(prompt: PromptInput, n: usize, sampling: SamplingParams, key: u32) -> GroupRequest {
    GroupRequest { prompt: Arc::new(prompt), sampling, rng_key: RngKey([key, !key]), watches: watches(n), stream: false }
}

/// Runs groups together and returns their samples in order.
fn run_all(engine: &EngineHandle, requests: Vec<GroupRequest>) -> Vec<Vec<SampleOutput>> {
    runtime().block_on(async {
        let streams: Vec<_> = requests.into_iter().map(|r| (r.watches.len(), engine.submit(r).unwrap())).collect();
        let mut groups = Vec::new();
        for (n, mut stream) in streams {
            let mut samples = vec![None; n];
            while let Some(event) = stream.next().await {
                if let SampleEvent::Finished { sample, output } = event {
                    samples[sample] = Some(*output);
                }
            }
            groups.push(samples.into_iter().map(Option::unwrap).collect());
        }
        let audit = engine.audit().await.unwrap();
        assert_eq!((audit.blocks_used, audit.slots_used, audit.groups), (0, 0, 0), "{audit:?}");
        groups
    })
}

fn folder(case: &Value) -> std::path::PathBuf {
    match case["model"].as_str().unwrap() {
        "mini-vl" => crate::formula::mini_vl(),
        name => golden::model(name),
    }
}

fn greedy(max_tokens: usize, stop: &[u32]) -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens, stop_token_ids: stop.to_vec(), ..Default::default() }
}

#[test]
fn greedy_ids_equal_transformers() {
    for case in golden::cases("greedy") {
        let folder = folder(&case);
        let prompt = golden::prompt(&case, &ModelConfig::load(&folder).unwrap());
        let golden = ids(&case["generated"]);
        for lag in 0..3 {
            let engine = Running::start(&folder, EngineConfig { lag, kv_cache: KvBudget::Blocks(64), ..Default::default() });
            let out = run_all(&engine.handle, vec![request(prompt.clone(), 1, greedy(48, &[1004, 1002]), 0)]);
            assert_eq!(out[0][0].token_ids, golden, "{} at lag {lag}", case["id"]);
        }
    }
}

#[test]
fn penalties_stops_and_batches_equal_transformers() {
    let prompts: Vec<Value> = golden::cases("greedy");
    let prompt_of = |id: &Value| {
        let case = prompts.iter().find(|c| c["id"] == *id).unwrap();
        golden::prompt(case, &ModelConfig::load(&folder(case)).unwrap())
    };
    let engine = Running::start(&golden::model("tiny-vl"), EngineConfig { kv_cache: KvBudget::Blocks(64), ..Default::default() });
    for case in golden::cases("generation_extras") {
        let max_tokens = case["max_new_tokens"].as_u64().unwrap() as usize;
        match case["kind"].as_str().unwrap() {
            "repetition_penalty" => {
                let penalty = case["repetition_penalty"].as_f64().unwrap() as f32;
                let sampling = SamplingParams { repetition_penalty: penalty, ..greedy(max_tokens, &[1004, 1002]) };
                let out = run_all(&engine.handle, vec![request(prompt_of(&case["prompt"]), 1, sampling, 0)]);
                let golden = ids(&case["generated"]);
                // A gap of 1e-4 between the best two is within the tolerance of logits: up to there the ids must agree.
                let exact = if case["min_gap"].as_f64().unwrap() > 1e-3 { golden.len() } else { golden.len() / 2 };
                assert_eq!(out[0][0].token_ids[..exact], golden[..exact], "{}", case["id"]);
            }
            "stop" => {
                let sampling = greedy(max_tokens, &ids(&case["eos_token_id"]));
                let out = run_all(&engine.handle, vec![request(prompt_of(&case["prompt"]), 1, sampling, 0)]);
                assert_eq!(out[0][0].token_ids, ids(&case["generated"]), "{}", case["id"]);
                assert_eq!(out[0][0].finish_reason, FinishReason::StopToken(316));
            }
            "batch" => {
                let requests = case["prompts"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|p| request(prompt_of(p), 1, greedy(max_tokens, &[1004, 1002]), 0))
                    .collect();
                let out = run_all(&engine.handle, requests);
                for (ours, golden) in out.iter().zip(case["generated"].as_array().unwrap()) {
                    assert_eq!(ours[0].token_ids, ids(golden), "{}", case["id"]);
                }
            }
            other => panic!("{other}"),
        }
    }
}

/// A group of a random workload.
#[derive(Clone, Debug)]
pub struct Work {
    /// `None` is text; `Some(i)` the image (0) or video (1) prompt of the golden cases.
    media: Option<usize>,
    prompt_len: usize,
    /// Prompts with one salt share their beginning.
    salt: u32,
    samples: usize,
    max_tokens: usize,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    stops: bool,
}

/// How the engine is squeezed.
#[derive(Clone, Debug)]
pub struct Squeeze {
    max_num_seqs: usize,
    chunk: usize,
    kv_percent: usize,
    lag: usize,
    prefix_caching: bool,
}

pub fn work() -> impl Strategy<Value = Work> {
    (
        prop_oneof![3 => Just(None), 1 => (0usize..2).prop_map(Some)],
        prop_oneof![1usize..90, Just(32), Just(64), 255usize..300],
        0u32..3,
        1usize..6,
        prop_oneof![1usize..8, 20usize..45],
        prop_oneof![Just(1.0f32), Just(0.7), Just(0.0), Just(1.3)],
        prop_oneof![3 => Just(0u32), 1 => Just(40)],
        prop_oneof![3 => Just(1.0f32), 1 => Just(0.9)],
        prop_oneof![3 => Just(1.0f32), 1 => Just(1.1)],
        (prop_oneof![3 => Just(0.0f32), 1 => Just(0.5)], any::<bool>()),
    )
        .prop_map(
            |(media, prompt_len, salt, samples, max_tokens, temperature, top_k, top_p, repetition_penalty, (frequency_penalty, stops))| {
                Work {
                    media,
                    prompt_len,
                    salt,
                    samples,
                    max_tokens,
                    temperature,
                    top_k,
                    top_p,
                    repetition_penalty,
                    frequency_penalty,
                    stops,
                }
            },
        )
}

pub fn squeeze() -> impl Strategy<Value = Squeeze> {
    (1usize..12, prop_oneof![1usize..40, Just(64), Just(512)], prop_oneof![Just(10usize), 10usize..60, Just(100)], 0usize..3, any::<bool>())
        .prop_map(|(max_num_seqs, chunk, kv_percent, lag, prefix_caching)| Squeeze { max_num_seqs, chunk, kv_percent, lag, prefix_caching })
}

struct Material {
    text: std::path::PathBuf,
    media: Vec<PromptInput>,
}

impl Work {
    fn request(&self, material: &Material, key: u32) -> GroupRequest {
        let prompt = match self.media {
            Some(i) => material.media[i].clone(),
            None => {
                let token_ids: Vec<u32> =
                    (0..self.prompt_len as u32).map(|i| if i < 70 { (i * 7 + self.salt) % 1000 } else { (i * 13 + key) % 1000 }).collect();
                PromptInput { positions: mrope::text_positions(token_ids.len()), token_ids, ..Default::default() }
            }
        };
        let sampling = SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            max_tokens: self.max_tokens,
            min_tokens: 2.min(self.max_tokens),
            // Many stop ids, so that samples of a group end at different times.
            stop_token_ids: if self.stops { (0..60).map(|i| i * 17).collect() } else { Vec::new() },
            ..Default::default()
        };
        request(prompt, self.samples, sampling, key)
    }

    fn blocks(&self, material: &Material) -> usize {
        let prompt_len = self.media.map_or(self.prompt_len, |i| material.media[i].token_ids.len());
        prompt_len.div_ceil(32) + self.samples * self.max_tokens.div_ceil(32)
    }
}

/// What must not change: ids and the bits of every figure.
fn bits(out: &SampleOutput) -> (Vec<u32>, Vec<[u32; 4]>, FinishReason) {
    let figures = (0..out.token_ids.len())
        .map(|i| [out.logps[i].to_bits(), out.logps_raw[i].to_bits(), out.logps_sampled[i].to_bits(), out.entropy[i].to_bits()])
        .collect();
    (out.token_ids.clone(), figures, out.finish_reason)
}

fn material() -> &'static Material {
    static MATERIAL: std::sync::OnceLock<Material> = std::sync::OnceLock::new();
    MATERIAL.get_or_init(|| {
        let text = golden::model("tiny-vl");
        let config = ModelConfig::load(&text).unwrap();
        let media = ["tiny-vl/image", "tiny-vl/video"]
            .iter()
            .map(|id| golden::prompt(golden::cases("greedy").iter().find(|c| c["id"] == *id).unwrap(), &config))
            .collect();
        Material { text, media }
    })
}

/// Runs the works one by one with room for everything, then together under pressure, twice; `Err` says which bits differ.
pub fn check_bits(works: &[Work], squeeze: &Squeeze, base: &EngineConfig) -> Result<(), String> {
    let material = material();
    let alone: Vec<Vec<SampleOutput>> = {
        let calm = EngineConfig {
            max_num_batched_tokens: 1024,
            kv_cache: KvBudget::Blocks(256),
            prefix_caching: false,
            lag: 0,
            max_num_seqs: 1,
            ..base.clone()
        };
        let engine = Running::start(&material.text, calm);
        works.iter().enumerate().map(|(i, w)| run_all(&engine.handle, vec![w.request(material, i as u32)]).remove(0)).collect()
    };
    let need: usize = works.iter().map(|w| w.blocks(material)).sum();
    // A single sequence must fit, whatever the percentage.
    let largest = works.iter().map(|w| Work { samples: 1, ..w.clone() }.blocks(material)).max().unwrap_or(1);
    let length = |w: &Work| w.media.map_or(w.prompt_len, |i| material.media[i].token_ids.len()) + w.max_tokens;
    let longest = works.iter().map(length).max().unwrap_or(1).max(2);
    let num_blocks = (need * squeeze.kv_percent / 100).max(largest).max(longest.div_ceil(32) + 2);
    let tight = EngineConfig {
        max_model_len: Some(longest),
        max_num_seqs: squeeze.max_num_seqs,
        max_num_batched_tokens: squeeze.chunk,
        kv_cache: KvBudget::Blocks(num_blocks),
        prefix_caching: squeeze.prefix_caching,
        lag: squeeze.lag,
        ..base.clone()
    };
    let engine = Running::start(&material.text, tight);
    for round in 0..2 {
        let together = run_all(&engine.handle, works.iter().enumerate().map(|(i, w)| w.request(material, i as u32)).collect());
        for (g, (a, b)) in alone.iter().zip(&together).enumerate() {
            for (s, (a, b)) in a.iter().zip(b).enumerate() {
                if bits(a) != bits(b) {
                    return Err(format!("group {g} sample {s} in round {round}: {:?} against {:?}", bits(a), bits(b)));
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 200, ..Default::default() })]

    /// Alone, in a batch, chunked, with a prefix-cache hit and after preemption: the same bits.
    #[test]
    fn a_sample_has_the_same_bits_whatever_else_the_engine_does(
        works in prop::collection::vec(work(), 1..7),
        squeeze in squeeze(),
        dtype in prop_oneof![2 => Just(ServingDtype::Float32), 1 => Just(ServingDtype::Bfloat16)],
    ) {
        let checked = check_bits(&works, &squeeze, &EngineConfig { dtype, ..Default::default() });
        prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }
}

/// The squeezed runs above must really preempt, chunk and hit the cache, or they prove nothing.
#[test]
fn pressure_preempts_and_everything_finishes() {
    use std::sync::atomic::Ordering::Relaxed;
    let material = material();
    let work = Work {
        media: None,
        prompt_len: 70,
        salt: 1,
        samples: 8,
        max_tokens: 100,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        stops: false,
    };
    let need = 4 * work.blocks(material);
    let config = EngineConfig {
        max_model_len: Some(256),
        max_num_seqs: 32,
        max_num_batched_tokens: 48,
        kv_cache: KvBudget::Blocks(need / 10),
        lag: 2,
        ..Default::default()
    };
    let engine = Running::start(&material.text, config);
    // Short completions first, so that the forecast admits more than fits.
    let mut short = work.request(material, 9);
    short.sampling = SamplingParams { max_tokens: 3, ..Default::default() };
    run_all(&engine.handle, vec![short]);
    let requests = (0..4).map(|i| work.request(material, i)).collect();
    let out = run_all(&engine.handle, requests);
    assert!(out.iter().flatten().all(|s| s.finish_reason == FinishReason::Length && s.token_ids.len() == 100));
    let stats = engine.handle.stats();
    assert!(stats.preemptions.load(Relaxed) > 0, "nothing was preempted");
    assert!(stats.prefix_hits.load(Relaxed) > 0, "no prefix was reused");
}

/// What `grouper selftest` checks of the engine, with fewer sequences than on a GPU.
#[test]
fn the_self_test_of_the_engine_passes_on_the_cpu() {
    let model = golden::model("tiny-vl");
    selftest::run(&SelftestConfig {
        device: Device::Cpu,
        small: true,
        kernels: true,
        engine: true,
        model,
        sequences: 96,
        max_tokens: None,
        enforce_eager: false,
    })
    .unwrap();
}

#[test]
fn leaving_callers_free_everything() {
    let material = material();
    let engine = Running::start(&material.text, EngineConfig { max_num_seqs: 16, kv_cache: KvBudget::Blocks(400), ..Default::default() });
    runtime().block_on(async {
        let work = Work {
            media: Some(0),
            prompt_len: 0,
            salt: 0,
            samples: 4,
            max_tokens: 40,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            stops: false,
        };
        let mut streams = Vec::new();
        for i in 0..64 {
            let mut request = work.request(material, i);
            request.stream = true;
            streams.push(engine.handle.submit(request).unwrap());
        }
        // Every third caller leaves after a few tokens, every fifth aborts.
        for (i, mut stream) in streams.into_iter().enumerate() {
            let (mut tokens, mut finished) = (0, Vec::new());
            while let Some(event) = stream.next().await {
                match event {
                    SampleEvent::Token { .. } => tokens += 1,
                    SampleEvent::Finished { output, .. } => finished.push(output),
                }
                if tokens == 7 && i % 3 == 0 {
                    break;
                }
                if tokens == 9 && i % 5 == 1 {
                    stream.abort();
                }
            }
            if i % 3 == 0 {
                continue;
            }
            assert_eq!(finished.len(), 4, "caller {i}");
            let expected =
                |o: &SampleOutput| if i % 5 == 1 { true } else { o.finish_reason == FinishReason::Length && o.token_ids.len() == 40 };
            assert!(finished.iter().all(|o| expected(o)), "caller {i}");
        }
        let audit = engine.handle.audit().await.unwrap();
        assert_eq!((audit.blocks_used, audit.slots_used, audit.groups), (0, 0, 0), "{audit:?}");
    });
}
