//! The GPU against golden vectors and against itself. Without one these pass and say so; `GROUPER_REQUIRE_CUDA=1` makes its absence a
//! failure.

use std::sync::{Mutex, MutexGuard, PoisonError};

use grouper::backends::Backend;
use grouper::backends::cpu::Cpu;
use grouper::backends::cuda::Cuda;
use grouper::engine::{Device, EngineConfig, ServingDtype};
use grouper::model::Model;
use grouper::model::activations::VisionActivations;
use grouper::model::input::MediaInput;
use grouper::selftest::{self, SelftestConfig};
use half::bf16;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::golden::{self, floats, ids, max_diff};
use crate::{engine, golden_model};

/// The GPU, for one test at a time: an engine takes what is left of its memory.
fn gpu() -> Option<(MutexGuard<'static, ()>, Cuda)> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match Cuda::new(0, true, false) {
        Ok(cuda) => Some((turn, cuda)),
        Err(e) => {
            assert!(std::env::var("GROUPER_REQUIRE_CUDA").as_deref() != Ok("1"), "{e}");
            println!("no GPU: {e}");
            None
        }
    }
}

#[test]
fn cuda_passes_the_self_test() {
    if let Some(_turn) = gpu() {
        let model = golden::model("tiny-vl");
        selftest::run(&SelftestConfig {
            device: Device::Cuda(0),
            small: true,
            kernels: true,
            engine: true,
            model,
            sequences: 512,
            max_tokens: None,
            enforce_eager: false,
        })
        .unwrap();
    }
}

/// Features of media through the tower.
fn features<B: Backend>(b: &B, model: &str, media: &[&MediaInput]) -> Vec<f32> {
    let model = Model::load(b, &golden_model::folder(model)).unwrap();
    let tower = model.vision.as_ref().unwrap();
    let config = tower.config();
    let patches: usize = media.iter().map(|m| m.num_patches()).sum();
    let mut act = VisionActivations::new(b, config, patches).unwrap();
    let tokens = patches / config.merge_unit();
    let mut features = b.alloc(tokens * config.out_hidden_size).unwrap();
    let rows: Vec<u32> = (0..tokens as u32).collect();
    tower.forward(b, media, &rows, &mut features, &mut act);
    golden_model::download(b, &features, tokens * config.out_hidden_size)
}

/// Against f32 no further away than the definition in bf16 is.
#[test]
fn cuda_vision_is_as_close_to_transformers_as_the_definition() {
    let Some((_turn, cuda)) = gpu() else { return };
    let image = |name: &str| golden_model::image(&format!("pixels/{name}.safetensors"));
    let (gradient, exif6, photo) = (image("gradient"), image("exif6"), image("photo"));
    for (file, model, media) in [
        ("tiny-vl.gradient", "tiny-vl", vec![&gradient]),
        ("tiny-vl.batch-exif6-photo", "tiny-vl", vec![&exif6, &photo]),
        ("mini-vl.exif6", "mini-vl", vec![&exif6]),
    ] {
        let golden = &golden::tensors(&format!("vision/{file}.safetensors"))["merged"].1;
        let mean = |x: &[f32]| x.iter().zip(golden).map(|(a, b)| (a - b).abs()).sum::<f32>() / x.len() as f32;
        let definition = features(&Cpu::<bf16>::new(2).unwrap(), model, &media);
        let ours = features(&cuda, model, &media);
        println!("{file}: mean difference to f32 {:.2e}, the definition's {:.2e}", mean(&ours), mean(&definition));
        assert!(mean(&ours) < 1.2 * mean(&definition) + 1e-6, "{file}: {} against {}", mean(&ours), mean(&definition));
    }
}

#[test]
fn cuda_logps_stay_close_to_f32() {
    for case in golden::cases("logps") {
        let Some((_turn, cuda)) = gpu() else { return };
        let prompt_case = golden_model::greedy_case(case["prompt"].as_str().unwrap());
        let mut teacher = golden_model::Teacher::new(cuda, case["model"].as_str().unwrap());
        let prompt = golden::prompt(&prompt_case, &teacher.model.config.clone());
        teacher.run(&prompt, &ids(&case["completion_ids"]), 1.0);
        let ours: Vec<f32> = teacher.sampled.iter().map(|s| s.logp).collect();
        let golden = floats(&case["T1.0"]["f32"]["logps"]);
        let mean = ours.iter().zip(&golden).map(|(a, b)| (a - b).abs()).sum::<f32>() / ours.len() as f32;
        let (max, at) = max_diff(&ours, &golden);
        println!("{}: mean |Δlogp| {mean:.3}, max {max:.3}", case["id"]);
        assert!(mean < 0.15 && max < 1.2, "{}: mean |Δlogp| {mean}, max {max} at token {at}", case["id"]);
    }
}

/// The engine's property test on the GPU, with media, for as many workloads as take a minute.
#[test]
fn cuda_samples_have_the_same_bits_whatever_else_the_engine_does() {
    let Some(_turn) = gpu() else { return };
    let base = EngineConfig { device: Device::Cuda(0), dtype: ServingDtype::Bfloat16, ..Default::default() };
    let mut runner = TestRunner::new(Config { cases: 40, max_shrink_iters: 40, failure_persistence: None, ..Default::default() });
    let strategy = (proptest::collection::vec(engine::work(), 1..7), engine::squeeze());
    let outcome = runner.run(&strategy, |(works, squeeze)| engine::check_bits(&works, &squeeze, &base).map_err(TestCaseError::fail));
    outcome.unwrap();
}
