//! One image, from decoded pixels to what the vision tower's rows are made of: size, resampling, digest.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::patchify::{Frames, Normalizer, PatchShape};
use super::resample::{Resample, RgbImage, resize};
use crate::error::{Error, Result};
use crate::model::config::VisionConfig;
use crate::model::input::{MediaInput, MediaKind};

/// The image processor of a model folder.
pub struct ImageProcessor {
    shape: PatchShape,
    min_pixels: usize,
    max_pixels: usize,
    resample: Resample,
    normalizer: Arc<Normalizer>,
}

/// Pixel limits that replace the folder's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PixelLimits {
    pub min_pixels: Option<usize>,
    pub max_pixels: Option<usize>,
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json`, or the `image_processor` of a `processor_config.json`, which transformers 5 writes.
    pub fn load(folder: &Path, vision: &VisionConfig, limits: PixelLimits, resample: Resample) -> Result<Self> {
        let old = folder.join("preprocessor_config.json");
        let new = folder.join("processor_config.json");
        let (path, config) = match (old.exists(), new.exists()) {
            (false, true) => (&new, read_json(&new)?["image_processor"].take()),
            _ => (&old, read_json(&old)?),
        };
        Self::from_json(&config, vision, limits, resample).map_err(|e| Error::file(path, e))
    }

    /// The processor for a parsed configuration. Old files have `min_pixels` and `max_pixels`, newer ones `size` with `shortest_edge`
    /// and `longest_edge`, which count pixels too in spite of their names.
    pub fn from_json(config: &Value, vision: &VisionConfig, limits: PixelLimits, resample: Resample) -> Result<Self> {
        let number = |value: &Value| value.as_u64().map(|n| n as usize);
        let size = |key: &str, edge: &str| number(&config[key]).or_else(|| number(&config["size"][edge]));
        let shape = PatchShape {
            patch_size: vision.patch_size,
            temporal_patch_size: vision.temporal_patch_size,
            merge_size: vision.spatial_merge_size,
        };
        for (key, used) in
            [("patch_size", shape.patch_size), ("temporal_patch_size", shape.temporal_patch_size), ("merge_size", shape.merge_size)]
        {
            if let Some(other) = number(&config[key]).filter(|n| *n != used) {
                return Err(Error::Model(format!("{key} is {other} here and {used} in config.json")));
            }
        }
        if vision.in_channels != 3 {
            return Err(Error::Model(format!("the vision tower takes {} channels: images have 3", vision.in_channels)));
        }
        if let Some(other) = number(&config["resample"]).filter(|filter| *filter != 3) {
            return Err(Error::Model(format!("resample {other} is not served: 3 (bicubic) is")));
        }
        if let Some(step) = ["do_resize", "do_rescale", "do_normalize"].into_iter().find(|step| config[step] == Value::Bool(false)) {
            return Err(Error::Model(format!("{step}: false is not served")));
        }
        let channels = |key: &str, default: [f32; 3]| match &config[key] {
            Value::Null => Ok(default),
            list => serde_json::from_value(list.clone()).map_err(|_| Error::Model(format!("{key} is {list}, not three numbers"))),
        };
        // The defaults of the class, used when a file leaves them out.
        let mean = channels("image_mean", [0.481_454_66, 0.457_827_5, 0.408_210_73])?;
        let std = channels("image_std", [0.268_629_54, 0.261_302_6, 0.275_777_1])?;
        let min_pixels = limits.min_pixels.or(size("min_pixels", "shortest_edge")).unwrap_or(56 * 56);
        let max_pixels = limits.max_pixels.or(size("max_pixels", "longest_edge")).unwrap_or(28 * 28 * 1280);
        let unit = shape.factor() * shape.factor();
        if min_pixels > max_pixels || max_pixels < unit {
            return Err(Error::Model(format!(
                "min_pixels {min_pixels} and max_pixels {max_pixels} leave no size of whole {unit}-pixel units"
            )));
        }
        let rescale = config["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0);
        let normalizer = Arc::new(Normalizer::new(resample, rescale, mean, std));
        Ok(ImageProcessor { shape, min_pixels, max_pixels, resample, normalizer })
    }

    /// Height and width that an image of the given size gets.
    pub fn target_size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        smart_resize(height, width, self.shape.factor(), self.min_pixels, self.max_pixels)
    }

    /// Bytes that resizing an image of the given size takes: after its first pass, and after its second.
    pub fn resize_bytes(&self, height: usize, width: usize) -> Result<usize> {
        let (resized_height, resized_width) = self.target_size(height, width)?;
        Ok(3 * resized_width * (height + resized_height))
    }

    pub fn process(&self, image: &RgbImage) -> Result<MediaInput> {
        let (height, width) = self.target_size(image.height, image.width)?;
        let resized = resize(image, height, width, self.resample);
        let named = Sha256::new().chain_update("grouper.image.v1");
        let sized = named.chain_update((height as u64).to_le_bytes()).chain_update((width as u64).to_le_bytes());
        let sha256 = sized.chain_update(&resized.pixels).finalize().into();
        let frames = Frames::new(vec![resized], self.shape, self.normalizer.clone());
        Ok(MediaInput { kind: MediaKind::Image, sha256, grid_thw: frames.grid(), patches: Arc::new(frames), second_per_grid_t: 1.0 })
    }
}

/// Height and width, both multiples of `factor`, with about the same ratio and an area within the limits: transformers'
/// `smart_resize`, with its error texts. (The function of this name in qwen_vl_utils differs when a side rounds to 0.)
pub fn smart_resize(height: usize, width: usize, factor: usize, min_pixels: usize, max_pixels: usize) -> Result<(usize, usize)> {
    if height == 0 || width == 0 {
        return Err(Error::invalid("", "division by zero"));
    }
    let (h, w) = (height as f64, width as f64);
    let ratio = h.max(w) / h.min(w);
    if ratio > 200.0 {
        return Err(Error::invalid("", format!("absolute aspect ratio must be smaller than 200, got {ratio:?}")));
    }
    let unit = factor as f64;
    let whole = |units: f64| units as usize * factor;
    // Python rounds ties to even.
    let (mut h_bar, mut w_bar) = (whole((h / unit).round_ties_even()), whole((w / unit).round_ties_even()));
    if h_bar * w_bar > max_pixels {
        let beta = (h * w / max_pixels as f64).sqrt();
        h_bar = whole((h / beta / unit).floor()).max(factor);
        w_bar = whole((w / beta / unit).floor()).max(factor);
    } else if h_bar * w_bar < min_pixels {
        let beta = (min_pixels as f64 / (h * w)).sqrt();
        h_bar = whole((h * beta / unit).ceil());
        w_bar = whole((w * beta / unit).ceil());
    }
    Ok((h_bar, w_bar))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| Error::file(path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(path, e))
}
