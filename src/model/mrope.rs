//! Positions for multimodal rotary embeddings (M-RoPE), and the frequencies they turn.
//!
//! Pure functions. The rule is the one of Qwen's own code (also transformers 4.56 and vLLM): after an image or a video the text goes
//! on at the largest position so far + 1. transformers 5.x continues earlier after a video, which trained checkpoints never saw.

use crate::model::config::VisionConfig;
use crate::model::input::{MediaInput, MediaKind};

/// What the positions of one image or video depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MediaGrid {
    pub kind: MediaKind,
    /// Frames, rows and columns in patches, before the merge.
    pub grid_thw: [usize; 3],
    /// Seconds between two temporal patches; read for videos and harmless for images, which have one frame.
    pub second_per_grid_t: f32,
}

impl From<&MediaInput> for MediaGrid {
    fn from(media: &MediaInput) -> Self {
        MediaGrid { kind: media.kind, grid_thw: media.grid_thw, second_per_grid_t: media.second_per_grid_t }
    }
}

/// Temporal, height and width position of each token, and `rope_delta`: the first completion token stands at
/// `token_ids.len() + rope_delta` on all three axes.
///
/// `media` lists images and videos in their order in `token_ids`, whose pad tokens must already be expanded; a count that does not
/// match is a bug of the caller and panics.
pub fn positions(token_ids: &[u32], media: &[MediaGrid], vision: &VisionConfig) -> (Vec<[i32; 3]>, i32) {
    let mut positions = Vec::with_capacity(token_ids.len());
    let mut media = media.iter();
    let mut next = 0;
    while positions.len() < token_ids.len() {
        let start = positions.len();
        let id = token_ids[start];
        if id != vision.image_token_id && id != vision.video_token_id {
            positions.push([next; 3]);
            next += 1;
            continue;
        }
        let Some(item) = media.next() else { panic!("pad token at {start} has no image or video") };
        push_grid(&mut positions, item, next, vision);
        let run = token_ids.get(start..positions.len()).unwrap_or_default();
        assert!(!run.is_empty() && run.iter().all(|pad| *pad == id), "pads from {start} on do not fill the grid {:?}", item.grid_thw);
        next = 1 + positions[start..].iter().flatten().copied().max().unwrap_or(next);
    }
    assert_eq!(media.count(), 0, "images or videos without pad tokens");
    let delta = next - token_ids.len() as i32;
    (positions, delta)
}

/// Positions of a prompt without media: all three axes count the tokens.
pub fn text_positions(num_tokens: usize) -> Vec<[i32; 3]> {
    (0..num_tokens as i32).map(|position| [position; 3]).collect()
}

fn push_grid(positions: &mut Vec<[i32; 3]>, item: &MediaGrid, start: i32, vision: &VisionConfig) {
    let [frames, rows, columns] = item.grid_thw;
    let merge = vision.spatial_merge_size;
    for frame in 0..frames {
        // The product is taken in f32 from left to right and cut, as torch does with an integer range times a float.
        let time = (frame as f32 * item.second_per_grid_t * vision.tokens_per_second as f32) as i32;
        for row in 0..rows / merge {
            positions.extend((0..columns / merge).map(|column| [start + time, start + row as i32, start + column as i32]));
        }
    }
}

/// Inverse frequencies of a rotary embedding over `dim` elements (half as many values): `1 / theta^(i / dim)` for even `i`.
///
/// The exponent is divided in f32 and the power rounded to f32 before the reciprocal, because that is what the checkpoints were
/// trained with: exact exponents differ in the last bit of a third of the values, which shows at position 100,000.
pub fn inv_freq(theta: f64, dim: usize) -> Vec<f32> {
    let exact = |i: usize| 1.0 / theta.powf(f64::from(i as f32 / dim as f32)) as f32;
    let mut frequencies: Vec<f32> = (0..dim).step_by(2).map(exact).collect();
    for (_, _, index, bits) in PYTORCH_ROUNDING.iter().filter(|(t, d, ..)| *t == theta && *d == dim) {
        frequencies[*index] = f32::from_bits(*bits);
    }
    frequencies
}

/// Where PyTorch's vectorised power rounds the other way, for the shapes of served models: theta, dim, index, bits. (It is good to one
/// unit in the last place, not correctly rounded.)
const PYTORCH_ROUNDING: [(f64, usize, usize, u32); 1] = [(1e6, 128, 37, 0x39b2_29fb)];

/// The axis (0 temporal, 1 height, 2 width) whose position turns each frequency, in the order of [`inv_freq`].
pub fn frequency_axes(section: [usize; 3]) -> Vec<usize> {
    (0..3).flat_map(|axis| std::iter::repeat_n(axis, section[axis])).collect()
}
