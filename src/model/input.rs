//! What the processor hands to the model: ids, positions and patches, with every check already done.

use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaKind {
    Image,
    Video,
}

/// One image or video, resized, normalised and cut into patches.
#[derive(Clone, Debug)]
pub struct MediaInput {
    pub kind: MediaKind,
    /// SHA-256 over kind, size and the resized pixels: what caches are keyed by.
    pub sha256: [u8; 32],
    /// Frames, rows and columns in patches (before the 2×2 merge).
    pub grid_thw: [usize; 3],
    /// `[t · h · w, channels · frames · patch · patch]` in 2×2-block order.
    pub pixel_values: Arc<[f32]>,
    /// Seconds between two temporal patches; 1 for images, where nothing reads it.
    pub second_per_grid_t: f32,
}

impl MediaInput {
    pub fn num_patches(&self) -> usize {
        self.grid_thw.iter().product()
    }

    /// Tokens in the prompt: one a 2×2 block.
    pub fn num_tokens(&self, merge_unit: usize) -> usize {
        self.num_patches() / merge_unit
    }
}

/// One prompt: expanded ids, M-RoPE positions and the media behind its pad tokens, in order of appearance.
#[derive(Clone, Debug, Default)]
pub struct PromptInput {
    pub token_ids: Vec<u32>,
    /// Temporal, height and width position of each token; all three equal for text.
    pub positions: Vec<[i32; 3]>,
    /// Position of the first completion token = `token_ids.len() + rope_delta`, on all three axes.
    pub rope_delta: i32,
    pub media: Vec<Arc<MediaInput>>,
    /// First pad token of each medium in `token_ids`.
    pub media_starts: Vec<usize>,
}
