//! The model on `Cpu<f32>` against transformers, stage by stage: the first failure names the first wrong stage.

use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use grouper::backends::cpu::Cpu;
use grouper::backends::{BLOCK_SIZE, Backend, NO_COUNTS, SampleInputs, SampleRow, Sampled, SamplerState, Span, TokenSource};
use grouper::model::Model;
use grouper::model::activations::{Activations, VisionActivations};
use grouper::model::config::ModelConfig;
use grouper::model::decoder::DecoderStep;
use grouper::model::input::{MediaInput, MediaKind, PromptInput};
use grouper::model::windows::WindowPlan;
use grouper::processor::{Processor, ProcessorOptions, PromptRequest, PromptSource};
use half::bf16;
use serde_json::Value;

use crate::formula;
use crate::golden::{self, assert_close, floats, ids, max_diff};

pub fn folder(name: &str) -> PathBuf {
    if name == "mini-vl" { formula::mini_vl() } else { golden::model(name) }
}

pub fn download<B: Backend>(b: &B, buffer: &B::Buf<f32>, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    b.download(buffer, &mut values);
    values
}

fn vision_case(file: &str, media: &[&MediaInput], model_name: &str, blocks: bool) {
    let b = Cpu::<f32>::new(2).unwrap();
    let model = Model::load(&b, &folder(model_name)).unwrap();
    let tower = model.vision.as_ref().unwrap();
    let config = tower.config().clone();
    let golden = golden::tensors(&format!("vision/{file}.safetensors"));
    let patches: usize = media.iter().map(|m| m.num_patches()).sum();
    let mut act = VisionActivations::new(&b, &config, patches).unwrap();
    let plan = WindowPlan::new(&media.iter().map(|m| m.grid_thw).collect::<Vec<_>>(), &config);
    let width = config.hidden_size;
    let (tokens, _) = tower.embed(&b, media, &mut act);
    // The golden patch_embed stands in processor order; ours is already permuted.
    let unit = config.merge_unit() * width;
    let golden_embed: Vec<f32> =
        plan.order.iter().flat_map(|u| golden["patch_embed"].1[*u as usize * unit..][..unit].iter().copied()).collect();
    assert_close(&format!("{file}: patch_embed"), &download(&b, &act.x, patches * width), &golden_embed, 1e-4);
    for i in 0..config.depth {
        tower.block(&b, i, &plan, patches, &mut act);
        if let Some((_, values)) = golden.get(&format!("block.{i}")).filter(|_| blocks) {
            assert_close(&format!("{file}: block {i}"), &download(&b, &act.x, patches * width), values, 1e-4);
        }
    }
    assert_close(&format!("{file}: last_hidden_state"), &download(&b, &act.x, patches * width), &golden["last_hidden_state"].1, 2e-4);
    let mut features = b.alloc(tokens * config.out_hidden_size).unwrap();
    let rows: Vec<u32> = (0..tokens as u32).collect();
    tower.forward(&b, media, &rows, &mut features, &mut act);
    assert_close(&format!("{file}: merged"), &download(&b, &features, tokens * config.out_hidden_size), &golden["merged"].1, 1e-4);
}

pub fn image(pixels: &str) -> MediaInput {
    let (_, grid) = golden::tensors(pixels).remove("grid_thw").unwrap();
    golden::medium(MediaKind::Image, pixels, [grid[0] as usize, grid[1] as usize, grid[2] as usize], 1.0)
}

#[test]
fn vision_tower() {
    let (gradient, exif6, photo) =
        (image("pixels/gradient.safetensors"), image("pixels/exif6.safetensors"), image("pixels/photo.safetensors"));
    vision_case("tiny-vl.gradient", &[&gradient], "tiny-vl", true);
    vision_case("tiny-vl.batch-exif6-photo", &[&exif6, &photo], "tiny-vl", false);
    vision_case("mini-vl.exif6", &[&exif6], "mini-vl", false);
}

/// A prompt and given completion tokens in one pass over one sequence.
pub struct Teacher<B: Backend> {
    b: B,
    pub model: Model<B>,
    pub sampled: Vec<Sampled>,
    logits: Vec<f32>,
}

impl<B: Backend> Teacher<B> {
    pub fn new(b: B, name: &str) -> Self {
        let model = Model::load(&b, &folder(name)).unwrap();
        Teacher { b, model, sampled: Vec::new(), logits: Vec::new() }
    }

    /// Logits of every prompt position, and the draws' figures for `completion` at `temperature`.
    pub fn run(&mut self, prompt: &PromptInput, completion: &[u32], temperature: f32) {
        let (b, model) = (&self.b, &self.model);
        let (p, c) = (prompt.token_ids.len(), completion.len());
        let rows = p + c;
        let vocab = model.config.vocab_size;
        let mut act = Activations::new(b, &model.config, rows, rows).unwrap();
        let mut features = b.alloc(rows * model.config.hidden_size).unwrap();
        let mut pairs = Vec::new();
        if let Some(tower) = &model.vision {
            let unit = tower.config().merge_unit();
            let mut next = 0u32;
            for (m, start) in prompt.media.iter().zip(&prompt.media_starts) {
                let mut vision = VisionActivations::new(b, tower.config(), m.num_patches()).unwrap();
                let feature_rows: Vec<u32> = (next..next + m.num_tokens(unit) as u32).collect();
                tower.forward(b, &[m], &feature_rows, &mut features, &mut vision);
                pairs.extend(feature_rows.iter().enumerate().flat_map(|(i, row)| [*row, (start + i) as u32]));
                next += feature_rows.len() as u32;
            }
        }
        let blocks = |n: usize| n.div_ceil(BLOCK_SIZE).max(1);
        let shape = model.decoder.shape();
        let mut kv: Vec<B::Kv> = (0..model.decoder.num_layers()).map(|_| b.alloc_kv(blocks(p) + blocks(c), shape).unwrap()).collect();
        let tables: Vec<u32> = (0..(blocks(p) + blocks(c)) as u32).collect();
        let own = blocks(p) as u32;
        let mut spans = vec![Span { first_row: 0, num_rows: p as u32, prompt_table: 0, prompt_keys: 1, own_table: 0, own_keys: 0 }];
        if c > 0 {
            spans.push(Span {
                first_row: p as u32,
                num_rows: c as u32,
                prompt_table: 0,
                prompt_keys: p as u32,
                own_table: own,
                own_keys: 1,
            });
        }
        let mut plan = b.alloc_attention_plan(2, rows, tables.len(), shape).unwrap();
        b.plan_attention(&spans, &tables, &mut plan);
        let upload = |values: &[u32]| {
            let mut buffer = b.alloc::<u32>(values.len().max(1)).unwrap();
            b.upload(values, &mut buffer);
            buffer
        };
        let token_ids: Vec<u32> = prompt.token_ids.iter().chain(completion).copied().collect();
        let positions: Vec<i32> = (0..3)
            .flat_map(|axis| {
                let after = (p..rows).map(move |t| t as i32 + prompt.rope_delta);
                prompt.positions.iter().map(move |q| q[axis]).chain(after)
            })
            .collect();
        let mut device_positions = b.alloc(positions.len()).unwrap();
        b.upload(&positions, &mut device_positions);
        let slot_mapping: Vec<u32> = (0..p as u32).chain((0..c as u32).map(|t| own * BLOCK_SIZE as u32 + t)).collect();
        let mut sampler = SamplerState::new(b, 1, 0, vocab).unwrap();
        let everything: Vec<u32> = (0..rows as u32).collect();
        let step = DecoderStep {
            source: TokenSource {
                ids: &upload(&token_ids),
                slots: &upload(&vec![grouper::backends::NO_TOKEN; rows]),
                last_tokens: &sampler.last_tokens,
            },
            positions: &device_positions,
            slot_mapping: &upload(&slot_mapping),
            plan: &plan,
            rows,
            features: &features,
            feature_pairs: &upload(&pairs),
            num_features: pairs.len() / 2,
            logits_index: &upload(&everything),
            num_logits: rows,
        };
        model.decoder.forward(b, &step, &mut kv, &mut act);
        model.decoder.logits(b, rows, &mut act);
        self.logits = download(b, &act.logits, p * vocab);
        let draws: Vec<SampleRow> = completion
            .iter()
            .enumerate()
            .map(|(i, token)| SampleRow {
                logits_row: (p + i - 1) as u32,
                temperature,
                top_p: 1.0,
                repetition_penalty: 1.0,
                counts_row: NO_COUNTS,
                top_logprobs: 1,
                forced: *token,
                ..Default::default()
            })
            .collect();
        let mut rows = b.alloc(draws.len().max(1)).unwrap();
        b.upload(&draws, &mut rows);
        let empty = upload(&[]);
        let no_bias = b.alloc(1).unwrap();
        let mut out = b.alloc::<Sampled>(draws.len().max(1)).unwrap();
        let inputs = SampleInputs { plain: false, rows: &rows, banned: &empty, bias_ids: &empty, bias_values: &no_bias };
        b.sample(&act.logits, inputs, draws.len(), &mut sampler, &mut out);
        self.sampled = b.wait(b.submit(&out, draws.len()));
    }
}

pub fn greedy_case(id: &str) -> Value {
    golden::cases("greedy").into_iter().find(|c| c["id"] == id).unwrap_or_else(|| panic!("no case {id}"))
}

/// The real vocabulary, from the image and the text of a request to the last position's best twenty and sixteen greedy tokens.
#[tokio::test]
async fn the_real_vocabulary_end_to_end() {
    let folder = formula::tiny_vl_qwentok();
    let config = ModelConfig::load(folder.path()).unwrap();
    let processor = Processor::load(folder.path(), &config, ProcessorOptions::default()).unwrap();
    for case in golden::cases("tiny_vl_qwentok") {
        let prompt = golden::prompt(&case, &config);
        let image = std::fs::read(golden::path("hf/images/photo.rgb_hf.png")).unwrap();
        let mut messages = case["messages"].as_array().unwrap().clone();
        messages[0]["content"][0]["image"] = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(image)).into();
        let request = PromptRequest {
            source: PromptSource::Messages { messages, assistant_prefill: None },
            images: Vec::new(),
            tools: None,
            template_kwargs: Default::default(),
            add_generation_prompt: true,
        };
        let prepared = processor.prepare(request).await.unwrap();
        assert_eq!(prepared.text, case["rendered"], "{}: text", case["id"]);
        assert_eq!(prepared.input.token_ids, prompt.token_ids, "{}: ids", case["id"]);
        assert_eq!(prepared.input.positions, prompt.positions, "{}: positions", case["id"]);
        assert!(prepared.input.media[0].pixel_values() == prompt.media[0].pixel_values(), "{}: pixel values", case["id"]);

        let b = Cpu::<f32>::new(2).unwrap();
        let mut teacher = Teacher { model: Model::load(&b, folder.path()).unwrap(), b, sampled: Vec::new(), logits: Vec::new() };
        let generated = ids(&case["generated"]);
        teacher.run(&prompt, &generated, 1.0);
        let last = &teacher.logits[teacher.logits.len() - config.vocab_size..];
        let best = unnest(&case["last_top20"]["ids"]).iter().map(|id| id.as_u64().unwrap() as usize).collect::<Vec<_>>();
        let values: Vec<f32> = unnest(&case["last_top20"]["logits"]).iter().map(|v| v.as_f64().unwrap() as f32).collect();
        assert_close(&format!("{}: best logits", case["id"]), &best.iter().map(|id| last[*id]).collect::<Vec<_>>(), &values, 1e-3);
        assert_eq!(best[0], last.iter().enumerate().fold(0, |m, (i, x)| if *x > last[m] { i } else { m }), "{}: argmax", case["id"]);
        let greedy: Vec<u32> = teacher.sampled.iter().map(|s| s.top_ids[0]).collect();
        assert_eq!(greedy, generated, "{}: greedy", case["id"]);
    }
}

/// The elements of a list of one list.
fn unnest(value: &Value) -> &Vec<Value> {
    value[0].as_array().unwrap_or_else(|| value.as_array().unwrap())
}

#[test]
fn logits() {
    for case in golden::cases("greedy") {
        let name = case["model"].as_str().unwrap();
        let mut teacher = Teacher::new(Cpu::<f32>::new(2).unwrap(), name);
        let prompt = golden::prompt(&case, &teacher.model.config.clone());
        teacher.run(&prompt, &[], 1.0);
        let golden = golden::tensors(case["logits_file"].as_str().unwrap());
        let golden_positions = &golden["position_ids"].1;
        let ours: Vec<f32> = (0..3).flat_map(|axis| prompt.positions.iter().map(move |p| p[axis] as f32)).collect();
        assert_eq!(&ours, golden_positions, "{}: positions", case["id"]);
        assert_eq!(i64::from(prompt.rope_delta), case["rope_delta"].as_i64().unwrap(), "{}: rope_delta", case["id"]);
        assert_close(&format!("{}: logits", case["id"]), &teacher.logits, &golden["logits"].1, 1e-3);
    }
}

#[test]
fn teacher_forced_logps_and_entropies() {
    for case in golden::cases("logps") {
        let prompt_case = greedy_case(case["prompt"].as_str().unwrap());
        let mut teacher = Teacher::new(Cpu::<f32>::new(2).unwrap(), case["model"].as_str().unwrap());
        let prompt = golden::prompt(&prompt_case, &teacher.model.config.clone());
        let completion = ids(&case["completion_ids"]);
        for (key, temperature) in [("T1.0", 1.0), ("T0.7", 0.7)] {
            teacher.run(&prompt, &completion, temperature);
            let stage = |what: &str| format!("{} {key}: {what}", case["id"]);
            let logps: Vec<f32> = teacher.sampled.iter().map(|s| s.logp).collect();
            let entropies: Vec<f32> = teacher.sampled.iter().map(|s| s.entropy).collect();
            assert_close(&stage("logps"), &logps, &floats(&case[key]["f32"]["logps"]), 2e-3);
            assert_close(&stage("entropies"), &entropies, &floats(&case[key]["f32"]["entropies"]), 2e-3);
        }
    }
}

/// bf16 is judged by distance to the f32 model: closer than transformers' own bf16 stays to it.
#[test]
fn bf16_logps_stay_close_to_f32() {
    for case in golden::cases("logps") {
        let prompt_case = greedy_case(case["prompt"].as_str().unwrap());
        let mut teacher = Teacher::new(Cpu::<bf16>::new(2).unwrap(), case["model"].as_str().unwrap());
        let prompt = golden::prompt(&prompt_case, &teacher.model.config.clone());
        teacher.run(&prompt, &ids(&case["completion_ids"]), 1.0);
        let ours: Vec<f32> = teacher.sampled.iter().map(|s| s.logp).collect();
        let golden = floats(&case["T1.0"]["f32"]["logps"]);
        let mean = ours.iter().zip(&golden).map(|(a, b)| (a - b).abs()).sum::<f32>() / ours.len() as f32;
        let (max, at) = max_diff(&ours, &golden);
        assert!(mean < 0.15 && max < 1.2, "{}: mean |Δlogp| {mean}, max {max} at token {at}", case["id"]);
    }
}

#[test]
fn config_layouts_agree() {
    let read = |name: &str| {
        let text = std::fs::read_to_string(golden::path(&format!("assets/config_variants/tiny-vl.{name}.json"))).unwrap();
        ModelConfig { dtype: None, ..ModelConfig::from_json(&serde_json::from_str(&text).unwrap()).unwrap() }
    };
    let hub = read("hub-layout");
    assert_eq!(hub, read("transformers-4.56"));
    assert_eq!(hub, read("transformers-5.17"));
}
