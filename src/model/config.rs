//! `config.json` of a Hugging Face folder, in its three layouts, as one type.
//!
//! The hub's own files have flat text keys; transformers 4.56 writes flat keys and a copy under `text_config`; 5.x writes
//! `text_config` only, with `rope_parameters` in the place of `rope_theta` and `rope_scaling`.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    /// Frequencies that turn with the temporal, height and width position, in this order; `None` for a text model.
    pub mrope_section: Option<[usize; 3]>,
    pub tie_word_embeddings: bool,
    pub head: Head,
    pub pad_token_id: Option<u32>,
    pub max_position_embeddings: usize,
    /// `torch_dtype` / `dtype`: what the weights were saved as.
    pub dtype: Option<String>,
    pub vision: Option<VisionConfig>,
}

/// What the decoder ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Logits of the vocabulary.
    Vocabulary,
    /// One number: a reward model.
    Score,
}

/// The vision tower and the token ids that tie it to the text.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    pub depth: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub in_channels: usize,
    pub out_hidden_size: usize,
    pub patch_size: usize,
    pub temporal_patch_size: usize,
    pub spatial_merge_size: usize,
    pub window_size: usize,
    /// Blocks that attend over a whole frame; the others attend within windows.
    pub full_attention_blocks: Vec<usize>,
    pub tokens_per_second: f64,
    pub image_token_id: u32,
    pub video_token_id: u32,
    pub vision_start_token_id: u32,
    pub vision_end_token_id: u32,
}

impl VisionConfig {
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Elements of one patch: channels × frames × height × width.
    pub fn patch_len(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches that the merger turns into one token.
    pub fn merge_unit(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }
}

impl ModelConfig {
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::file(&path, e))?;
        let json = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
        Self::from_json(&json).map_err(|e| Error::file(&path, e))
    }

    pub fn from_json(config: &Value) -> Result<Self> {
        let model_type = config["model_type"].as_str().unwrap_or_default();
        if !matches!(model_type, "qwen2_5_vl" | "qwen2") {
            return Err(Error::Model(format!("model_type {model_type:?} is not served: qwen2_5_vl and qwen2 are")));
        }
        let text = Keys { inner: config.get("text_config"), outer: config };
        let hidden_size = text.size("hidden_size")?;
        let num_heads = text.size("num_attention_heads")?;
        let rope = text.get("rope_parameters").or_else(|| text.get("rope_scaling"));
        let rope_type = rope.and_then(|r| r.get("rope_type").or_else(|| r.get("type"))).and_then(Value::as_str);
        if let Some(kind) = rope_type.filter(|kind| !matches!(*kind, "mrope" | "default")) {
            return Err(Error::Model(format!("rope type {kind:?} is not served: default and mrope are")));
        }
        if text.get("hidden_act").and_then(Value::as_str).is_some_and(|act| act != "silu") {
            return Err(Error::Model(format!("hidden_act {} is not served: silu is", text.get("hidden_act").unwrap_or(&Value::Null))));
        }
        let rope_theta = rope.and_then(|r| r.get("rope_theta")).or_else(|| text.get("rope_theta"));
        let parsed = ModelConfig {
            hidden_size,
            intermediate_size: text.size("intermediate_size")?,
            num_layers: text.size("num_hidden_layers")?,
            num_heads,
            num_kv_heads: text.size("num_key_value_heads")?,
            head_dim: text.optional_size("head_dim")?.unwrap_or(hidden_size / num_heads.max(1)),
            vocab_size: text.size("vocab_size")?,
            rms_norm_eps: text.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6) as f32,
            rope_theta: rope_theta.and_then(Value::as_f64).unwrap_or(1e6),
            mrope_section: rope.and_then(|r| r.get("mrope_section")).map(mrope_section).transpose()?,
            // The top level decides (5.x reads no other); 4.56 leaves it out there where it is true and writes text_config's copy.
            tie_word_embeddings: config["tie_word_embeddings"]
                .as_bool()
                .or_else(|| config["text_config"]["tie_word_embeddings"].as_bool())
                .unwrap_or(false),
            head: head(config)?,
            pad_token_id: text.get("pad_token_id").and_then(Value::as_u64).map(|id| id as u32),
            max_position_embeddings: text.size("max_position_embeddings")?,
            dtype: ["dtype", "torch_dtype"].iter().find_map(|k| text.get(k).and_then(Value::as_str)).map(str::to_owned),
            vision: (model_type == "qwen2_5_vl").then(|| VisionConfig::from_json(config)).transpose()?,
        };
        parsed.check()
    }

    fn check(self) -> Result<Self> {
        let even_groups = self.num_kv_heads > 0 && self.num_heads.is_multiple_of(self.num_kv_heads);
        if !even_groups {
            return Err(Error::Model(format!("{} query heads do not divide over {} key-value heads", self.num_heads, self.num_kv_heads)));
        }
        if let Some(section) = self.mrope_section.filter(|s| 2 * s.iter().sum::<usize>() != self.head_dim) {
            return Err(Error::Model(format!("mrope_section {section:?} does not cover half of head_dim {}", self.head_dim)));
        }
        if let Some(out) = self.vision.as_ref().map(|v| v.out_hidden_size).filter(|out| *out != self.hidden_size) {
            return Err(Error::Model(format!("the vision tower ends in {out} features, the decoder has {}", self.hidden_size)));
        }
        Ok(self)
    }
}

impl VisionConfig {
    fn from_json(config: &Value) -> Result<Self> {
        let empty = Value::Null;
        let vision = Keys { inner: None, outer: config.get("vision_config").unwrap_or(&empty) };
        let top = Keys { inner: config.get("text_config"), outer: config };
        let token = |key: &str| Ok::<u32, Error>(top.size(key)? as u32);
        let blocks = vision.get("fullatt_block_indexes").and_then(Value::as_array);
        Ok(VisionConfig {
            depth: vision.size("depth")?,
            hidden_size: vision.size("hidden_size")?,
            intermediate_size: vision.size("intermediate_size")?,
            num_heads: vision.size("num_heads")?,
            // The hub's files say in_chans, the class reads in_channels; both are 3 in every checkpoint.
            in_channels: vision.optional_size("in_channels")?.or(vision.optional_size("in_chans")?).unwrap_or(3),
            out_hidden_size: vision.size("out_hidden_size")?,
            patch_size: vision.size("patch_size")?,
            temporal_patch_size: vision.optional_size("temporal_patch_size")?.unwrap_or(2),
            spatial_merge_size: vision.optional_size("spatial_merge_size")?.unwrap_or(2),
            window_size: vision.size("window_size")?,
            full_attention_blocks: blocks
                .ok_or_else(|| Error::Model("vision_config.fullatt_block_indexes is missing".into()))?
                .iter()
                .filter_map(|b| b.as_u64().map(|b| b as usize))
                .collect(),
            tokens_per_second: vision.get("tokens_per_second").and_then(Value::as_f64).unwrap_or(2.0),
            image_token_id: token("image_token_id")?,
            video_token_id: token("video_token_id")?,
            vision_start_token_id: token("vision_start_token_id")?,
            vision_end_token_id: token("vision_end_token_id")?,
        })
    }
}

/// Keys that may stand in a nested section or, in the older layouts, at the top. A null counts as absent: 4.56 writes
/// `text_config.image_token_id: null` beside the real id at the top.
struct Keys<'a> {
    inner: Option<&'a Value>,
    outer: &'a Value,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        let present = |section: &'a Value| section.get(key).filter(|v| !v.is_null());
        self.inner.and_then(present).or_else(|| present(self.outer))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|v| v.as_u64().map(|n| n as usize).ok_or_else(|| Error::Model(format!("{key} is {v}, not a count")))).transpose()
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.filter(|n| *n > 0).ok_or_else(|| Error::Model(format!("{key} is missing or 0")))
    }
}

fn head(config: &Value) -> Result<Head> {
    let architecture = config["architectures"][0].as_str().unwrap_or_default();
    if !architecture.ends_with("ForSequenceClassification") {
        return Ok(Head::Vocabulary);
    }
    // transformers writes the labels' names unless there are two of them.
    match config["id2label"].as_object().map_or(2, serde_json::Map::len) {
        1 => Ok(Head::Score),
        labels => Err(Error::Model(format!("{architecture} with {labels} labels is not served: a reward model has one"))),
    }
}

fn mrope_section(value: &Value) -> Result<[usize; 3]> {
    serde_json::from_value(value.clone()).map_err(|_| Error::Model(format!("mrope_section {value} is not three counts")))
}
