//! The processor and the position rules against vectors made with transformers, Pillow and torchvision.
//!
//! Each test names the first wrong case and the stage at which it went wrong.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use grouper::model::config::{ModelConfig, VisionConfig};
use grouper::model::input::MediaKind;
use grouper::model::mrope::{self, MediaGrid};
use grouper::model::windows::WindowPlan;
use grouper::processor::decode::{ImageLimits, decode};
use grouper::processor::detokenizer::Detokenizer;
use grouper::processor::expand::expand;
use grouper::processor::image::{ImageProcessor, PixelLimits, smart_resize};
use grouper::processor::resample::{Resample, RgbImage, resize};
use grouper::processor::template::{ChatTemplate, RenderInput};
use grouper::processor::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn read_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap_or_else(|e| panic!("{path}: {e}"))).unwrap()
}

fn cases(name: &str) -> Vec<Value> {
    let path = format!("hf/{name}.json");
    let cases = read_json(&path)["cases"].as_array().unwrap().clone();
    assert!(!cases.is_empty(), "{path} has no cases");
    cases
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The tokenizer of Qwen2.5(-VL).
static QWEN: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let file = std::fs::File::open(golden("assets/qwen2_5_vl_3b/tokenizer.json.gz")).unwrap();
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut text).unwrap();
    Arc::new(Tokenizer::from_json(&text).unwrap())
});

static TINY: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(Tokenizer::load(&golden("models/tiny-vl")).unwrap()));

fn tokenizer(name: &str) -> &'static Arc<Tokenizer> {
    match name {
        "qwen" => &QWEN,
        "tiny" => &TINY,
        other => panic!("no tokenizer {other}"),
    }
}

fn vision(folder: &str) -> VisionConfig {
    ModelConfig::load(&golden(folder)).unwrap().vision.unwrap()
}

fn image_processor(config: &Value, resample: Resample) -> ImageProcessor {
    let limits = PixelLimits { min_pixels: Some(parse(&config["min_pixels"])), max_pixels: Some(parse(&config["max_pixels"])) };
    ImageProcessor::load(&golden("models/tiny-vl"), &vision("models/tiny-vl"), limits, resample).unwrap()
}

fn load_rgb(file: &str) -> RgbImage {
    let bytes = std::fs::read(golden("hf").join(file)).unwrap();
    decode(&bytes, ImageLimits::default()).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn smart_resize_chooses_the_sizes_of_transformers() {
    for case in cases("smart_resize") {
        let number = |key: &str| parse::<usize>(&case[key]);
        let got = smart_resize(number("height"), number("width"), number("factor"), number("min_pixels"), number("max_pixels"));
        match (got, case["hf"].is_null()) {
            (Ok((height, width)), false) => assert_eq!(json!([height, width]), case["hf"], "{case}"),
            (Err(e), true) => {
                let want = case["hf_error"].as_str().unwrap().split_once(": ").unwrap().1;
                assert_eq!(e.to_string(), format!(": {want}"), "{case}");
            }
            (got, _) => panic!("{got:?}: {case}"),
        }
    }
}

#[test]
fn images_decode_to_the_pixels_of_pillow() {
    for case in cases("image_processor") {
        let (id, file) = (&case["id"], case["file"].as_str().unwrap());
        let image = load_rgb(file);
        let jpeg = file.ends_with(".jpg");
        let hw: [usize; 2] = parse(&case["load_image_hw"]);
        assert_eq!([image.height, image.width], hw, "{id}: size after turning upright");
        if !jpeg {
            assert_eq!(sha256(&image.pixels), case["rgb_hf_sha256"], "{id}: decoded pixels");
            continue;
        }
        // JPEG decoders differ in the last levels. The reference is what Pillow decoded, not turned.
        let want = load_rgb(case["rgb_hf_file"].as_str().unwrap());
        let turned = case["exif_orientation"] == 6;
        let mut worst = 0;
        for y in 0..want.height {
            for x in 0..want.width {
                // Orientation 6: a quarter turn clockwise makes it upright.
                let (ty, tx) = if turned { (x, want.height - 1 - y) } else { (y, x) };
                for c in 0..3 {
                    let level = |image: &RgbImage, y: usize, x: usize| i32::from(image.pixels[3 * (y * image.width + x) + c]);
                    worst = worst.max((level(&image, ty, tx) - level(&want, y, x)).abs());
                }
            }
        }
        assert!(worst <= 8, "{id}: decoded pixels differ by {worst} levels");
    }
}

#[test]
fn every_layout_of_pixels_converts_as_in_pillow() {
    for case in read_json("decode/cases.json")["cases"].as_array().unwrap() {
        let (id, mode) = (case["id"].as_str().unwrap(), &case["mode"]);
        let bytes = std::fs::read(golden("decode").join(id)).unwrap();
        let image = decode(&bytes, ImageLimits::default()).unwrap_or_else(|e| panic!("{id}: {e}"));
        assert_eq!(json!([image.height, image.width]), case["hw"], "{id} {mode}: size");
        let first: Vec<u8> = image.pixels.iter().copied().take(12).collect();
        assert_eq!(sha256(&image.pixels), case["rgb_sha256"], "{id} {mode}: pixels, the first {first:?} for {}", case["first_row"]);
    }
}

#[test]
fn images_resize_and_normalise_bit_for_bit() {
    for case in cases("image_processor") {
        let image = load_rgb(case.get("rgb_hf_file").unwrap_or(&case["file"]).as_str().unwrap());
        assert_eq!(sha256(&image.pixels), case["rgb_hf_sha256"], "{}: pixels to start from", case["id"]);
        for (name, config) in case["configs"].as_object().unwrap() {
            for (backend, resample) in [("pil", Resample::Pillow), ("torchvision", Resample::Torchvision)] {
                let (at, want) = (format!("{} {name} {backend}", case["id"]), &config[backend]);
                let processor = image_processor(config, resample);
                let (height, width) = processor.target_size(image.height, image.width).unwrap();
                let resized = resize(&image, height, width, resample);
                if let Some(file) = want["resized_file"].as_str() {
                    let file = load_rgb(file);
                    assert_eq!((file.height, file.width), (height, width), "{at}: size");
                    let wrong = file.pixels.iter().zip(&resized.pixels).position(|(a, b)| a != b);
                    let around = wrong.map(|i| (i, file.pixels[i], resized.pixels[i]));
                    assert_eq!(around, None, "{at}: first wrong resized value (index, wanted, got)");
                }
                assert_eq!(sha256(&resized.pixels), want["resized_u8_sha256"], "{at}: resized pixels");
                let media = processor.process(&image).unwrap();
                assert_eq!(json!(media.grid_thw), want["grid_thw"], "{at}: grid");
                let values = media.pixel_values();
                for (row, samples) in parse::<Vec<usize>>(&want["sample_rows"]).into_iter().zip(parse::<Vec<Vec<f32>>>(&want["samples"])) {
                    for (i, sample) in samples.into_iter().enumerate() {
                        let got = values[row * 1176 + i * 147];
                        assert!((got - sample).abs() < 1e-6, "{at}: row {row} element {}: {got} for {sample}", i * 147);
                    }
                }
                assert_eq!(sha256(&le_bytes(&values)), want["pixel_values_sha256"], "{at}: pixel values");
            }
        }
    }
}

#[test]
fn config_layouts_load_to_the_same_config() {
    let load = |name: &str| ModelConfig::from_json(&read_json(&format!("assets/config_variants/tiny-vl.{name}.json"))).unwrap();
    let hub = load("hub-layout");
    assert_eq!(hub, ModelConfig::load(&golden("models/tiny-vl")).unwrap(), "hub layout");
    for name in ["transformers-4.56", "transformers-5.17"] {
        let other = load(name);
        assert_eq!(ModelConfig { dtype: hub.dtype.clone(), ..other }, hub, "{name}");
    }
}

#[test]
fn text_becomes_the_ids_of_transformers_and_comes_back() {
    for case in cases("tokenizer") {
        let text = case["text"].as_str().unwrap();
        for name in ["qwen", "tiny"] {
            let (at, tokenizer) = (format!("{} {name} {text:?}", case["id"]), tokenizer(name));
            let want: Vec<u32> = parse(&case[name]);
            assert_eq!(tokenizer.encode(text), want, "{at}: encode");
        }
        let decoded = case["decoded"].as_str().unwrap_or(text);
        let skipped = case["decoded_skip_special"].as_str().unwrap_or(decoded);
        let ids: Vec<u32> = parse(&case["qwen"]);
        assert_eq!(QWEN.decode(&ids, false), decoded, "{}: decode", case["id"]);
        assert_eq!(QWEN.decode(&ids, true), skipped, "{}: decode without control tokens", case["id"]);
    }
}

#[test]
fn streamed_text_is_certain_and_complete() {
    for case in cases("streaming_decode") {
        let tokenizer = tokenizer(case["tokenizer"].as_str().unwrap());
        let ids: Vec<u32> = parse(&case["ids"]);
        let mut stream = Detokenizer::new(tokenizer.clone(), false);
        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).to_owned()).collect();
        let rest = stream.finish().to_owned();
        for (id, hex) in ids.iter().zip(parse::<Vec<String>>(&case["bytes_hex"])) {
            let got: String = tokenizer.token_bytes(*id).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(got, hex, "{}: bytes of token {id}", case["id"]);
        }
        assert_eq!(json!(pieces), case["incremental"], "{}: pieces", case["id"]);
        assert_eq!(json!(rest), case["flush"], "{}: rest", case["id"]);
        assert_eq!(json!(pieces.concat() + &rest), case["decode_all"], "{}: whole", case["id"]);
        assert_eq!(json!(tokenizer.decode(&ids, false)), case["decode_all"], "{}: decode", case["id"]);
    }
}

/// Ids and `[id, count]` pairs.
fn unrle(list: &Value) -> Vec<u32> {
    let entry = |entry: &Value| match entry.as_u64() {
        Some(id) => vec![id as u32],
        None => {
            let [id, count]: [u32; 2] = parse(entry);
            vec![id; count as usize]
        }
    };
    list.as_array().unwrap().iter().flat_map(entry).collect()
}

#[test]
fn chat_templates_render_and_encode_as_in_transformers() {
    let folder = "assets/qwen2_5_vl_3b";
    let source = |name: &str| std::fs::read_to_string(golden(&format!("{folder}/chat_template_{name}.jinja"))).unwrap();
    let names = read_json(&format!("{folder}/tokenizer_config.json"));
    for (ids_key, tokenizer, vision) in [("input_ids_rle", &QWEN, vision(folder)), ("tiny_input_ids_rle", &TINY, vision("models/tiny-vl"))]
    {
        let vl = ChatTemplate::new(&source("vl"), &names, tokenizer).unwrap();
        let text = ChatTemplate::new(&source("text_tools"), &names, tokenizer).unwrap();
        for case in cases("chat_template") {
            let mut kwargs: Map<String, Value> = parse(&case["kwargs"]);
            let tools = kwargs.remove("tools");
            let messages: Vec<Value> = parse(&case["messages"]);
            let input = RenderInput {
                messages: &messages,
                tools: tools.as_ref(),
                kwargs: &kwargs,
                add_generation_prompt: parse(&case["add_generation_prompt"]),
                assistant_prefill: None,
            };
            let template = if case["template"] == "vl" { &vl } else { &text };
            let rendered = template.render(&input, tokenizer).unwrap_or_else(|e| panic!("{}: {e}", case["id"]));
            assert_eq!(rendered.text, case["rendered"].as_str().unwrap(), "{}: rendered text", case["id"]);
            // Videos expand as images do; only the pad differs.
            let mut ids = rendered.encode(tokenizer);
            let grids: Vec<Value> = parse(&case["grids"]);
            for (kind, other, pad) in [("image", vision.video_token_id, vision.image_token_id), ("video", u32::MAX, vision.video_token_id)]
            {
                let tokens = |grid: &Value| parse::<[usize; 3]>(&grid["thw"]).iter().product::<usize>() / vision.merge_unit();
                let num_tokens: Vec<usize> = grids.iter().filter(|grid| grid["kind"] == kind).map(tokens).collect();
                // The other kind stands aside meanwhile, as an id that is in neither vocabulary.
                let aside = |id: &mut u32, from: u32, to: u32| *id = if *id == from { to } else { *id };
                ids.iter_mut().for_each(|id| aside(id, other, u32::MAX));
                let of_kind = VisionConfig { image_token_id: pad, video_token_id: u32::MAX - 1, ..vision.clone() };
                let expanded = expand(&ids, &num_tokens, Some(&of_kind), "prompt", false);
                ids = expanded.unwrap_or_else(|e| panic!("{}: {e}", case["id"])).token_ids;
                ids.iter_mut().for_each(|id| aside(id, u32::MAX, other));
            }
            assert_eq!(ids, unrle(&case[ids_key]), "{}: {ids_key}", case["id"]);
        }
    }
}

#[test]
fn chat_template_files_have_an_order_of_preference() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || ChatTemplate::load(folder.path(), &TINY).unwrap();
    let kind = || {
        let messages = [json!({"role": "user", "content": "x"})];
        let kwargs = Map::new();
        let input =
            RenderInput { messages: &messages, tools: None, kwargs: &kwargs, add_generation_prompt: false, assistant_prefill: None };
        load().unwrap().render(&input, &TINY).unwrap().text
    };
    assert!(load().is_none(), "no template");
    write("tokenizer_config.json", r#"{"chat_template": "tokenizer {{ messages[0].content }}"}"#);
    assert_eq!(kind(), "tokenizer x");
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "list"}]}"#;
    write("tokenizer_config.json", list);
    assert_eq!(kind(), "list");
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(kind(), "json");
    write("chat_template.jinja", "jinja");
    assert_eq!(kind(), "jinja");
}

#[test]
fn positions_follow_the_original_rule() {
    let file = read_json("hf/rope_index.json");
    let id = |key: &str| parse::<u32>(&file[key]);
    let vision = VisionConfig {
        image_token_id: id("image_pad"),
        video_token_id: id("video_pad"),
        vision_start_token_id: id("vision_start"),
        vision_end_token_id: id("vision_end"),
        tokens_per_second: parse(&file["tokens_per_second"]),
        spatial_merge_size: parse(&file["spatial_merge_size"]),
        ..vision("models/tiny-vl")
    };
    for case in cases("rope_index") {
        let grids = |key: &str| parse::<Vec<[usize; 3]>>(&case[key]).into_iter();
        let (mut images, mut videos) = (grids("image_grid_thw"), grids("video_grid_thw"));
        let mut seconds = parse::<Vec<f32>>(&case["second_per_grid_ts"]).into_iter();
        let want = &case["original"];
        if let Some(hash) = want["position_ids_i32le_sha256"].as_str() {
            let grid_thw = images.next().unwrap();
            let pads = vec![vision.image_token_id; grid_thw.iter().product::<usize>() / 4];
            let ids = [vec![5, vision.vision_start_token_id], pads, vec![vision.vision_end_token_id, 5]].concat();
            let media = [MediaGrid { kind: MediaKind::Image, grid_thw, second_per_grid_t: 1.0 }];
            let (positions, delta) = mrope::positions(&ids, &media, &vision);
            let axes: Vec<u8> = (0..3).flat_map(|axis| positions.iter().flat_map(move |p| p[axis].to_le_bytes())).collect();
            assert_eq!((sha256(&axes).as_str(), json!([delta])), (hash, want["rope_deltas"].clone()), "{}", case["id"]);
            assert_eq!(json!(positions.last()), want["last_column"], "{}: last position", case["id"]);
            continue;
        }
        let (rows, masks): (Vec<Vec<u32>>, Vec<Vec<u8>>) = (parse(&case["input_ids"]), parse(&case["attention_mask"]));
        for (b, (row, mask)) in rows.iter().zip(&masks).enumerate() {
            let kept: Vec<usize> = (0..row.len()).filter(|i| mask[*i] == 1).collect();
            let ids: Vec<u32> = kept.iter().map(|i| row[*i]).collect();
            let (mut media, mut at) = (Vec::new(), 0);
            while at < ids.len() {
                let item = match ids[at] {
                    id if id == vision.image_token_id => {
                        MediaGrid { kind: MediaKind::Image, grid_thw: images.next().unwrap(), second_per_grid_t: 1.0 }
                    }
                    id if id == vision.video_token_id => {
                        let second_per_grid_t = seconds.next().unwrap();
                        MediaGrid { kind: MediaKind::Video, grid_thw: videos.next().unwrap(), second_per_grid_t }
                    }
                    _ => {
                        at += 1;
                        continue;
                    }
                };
                at += item.grid_thw.iter().product::<usize>() / 4;
                media.push(item);
            }
            let (positions, delta) = mrope::positions(&ids, &media, &vision);
            assert_eq!(json!(delta), want["rope_deltas"][b], "{} row {b}: rope_delta", case["id"]);
            for (token, i) in kept.iter().enumerate() {
                let expected: [i32; 3] = std::array::from_fn(|axis| parse(&want["position_ids"][axis][b][*i]));
                assert_eq!(positions[token], expected, "{} row {b}: position of token {token}", case["id"]);
            }
        }
    }
    assert_eq!(mrope::text_positions(3), [[0; 3], [1; 3], [2; 3]]);
}

#[test]
fn inverse_frequencies_have_the_bits_of_transformers() {
    for case in cases("rope_tables") {
        let bits: Vec<u32> = mrope::inv_freq(parse(&case["theta"]), parse(&case["dim"])).iter().map(|f| f.to_bits()).collect();
        let want: Vec<u32> = parse(&case["inv_freq_bits"]);
        let wrong = (0..want.len().max(bits.len())).find(|i| bits.get(*i) != want.get(*i));
        assert_eq!(wrong, None, "{}: first wrong frequency", case["id"]);
    }
    let axes = mrope::frequency_axes([16, 24, 24]);
    assert_eq!((axes.len(), axes[15], axes[16], axes[39], axes[40], axes[63]), (64, 0, 1, 1, 2, 2));
}

#[test]
fn windows_frames_and_rotary_positions_are_those_of_the_tower() {
    let file = read_json("hf/window_index.json");
    let vision = VisionConfig {
        window_size: parse(&file["window_size"]),
        patch_size: parse(&file["patch_size"]),
        spatial_merge_size: parse(&file["spatial_merge_size"]),
        ..vision("models/tiny-vl")
    };
    for case in cases("window_index") {
        let plan = WindowPlan::new(&parse::<Vec<[usize; 3]>>(&case["grid_thw"]), &vision);
        assert_eq!(json!(plan.order), case["window_index"], "{}: window_index", case["id"]);
        assert_eq!(json!(plan.cu_window_seqlens), case["cu_window_seqlens"], "{}: cu_window_seqlens", case["id"]);
        assert_eq!(json!(plan.cu_frame_seqlens), case["cu_seqlens"], "{}: cu_seqlens", case["id"]);
        let first: Vec<[i32; 2]> = plan.rotary_hw.iter().copied().take(16).collect();
        assert_eq!(json!(first), case["rotary_hw_first16"], "{}: first rotary positions", case["id"]);
        let bytes: Vec<u8> = plan.rotary_hw.iter().flatten().flat_map(|position| position.to_le_bytes()).collect();
        assert_eq!(sha256(&bytes), case["rotary_hw_i32le_sha256"], "{}: rotary positions", case["id"]);
        let inverse = plan.inverse();
        assert!(plan.order.iter().enumerate().all(|(place, unit)| inverse[*unit as usize] == place as u32), "{}: inverse", case["id"]);
    }
}
