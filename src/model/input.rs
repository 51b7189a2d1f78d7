//! What the processor hands to the model: ids, positions and patches, with every check already done.

use std::fmt::Debug;
use std::sync::Arc;

use rayon::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaKind {
    Image,
    Video,
}

/// The rows of a medium, `[t · h · w, channels · frames · patch · patch]` in 2×2-block order. A row is made when it is read: until then a
/// medium is as large as its resized pixels, not eight times that.
pub trait Patches: Debug + Send + Sync {
    /// Values of a row.
    fn patch_len(&self) -> usize;

    /// Writes row `index`.
    fn write(&self, index: usize, row: &mut [f32]);
}

/// Rows that were made elsewhere.
#[derive(Clone, Debug)]
pub struct PatchRows {
    pub values: Vec<f32>,
    pub patch_len: usize,
}

impl Patches for PatchRows {
    fn patch_len(&self) -> usize {
        self.patch_len
    }

    fn write(&self, index: usize, row: &mut [f32]) {
        row.copy_from_slice(&self.values[index * self.patch_len..][..self.patch_len]);
    }
}

/// One image or video, resized.
#[derive(Clone, Debug)]
pub struct MediaInput {
    pub kind: MediaKind,
    /// SHA-256 over kind, size and the resized pixels: what caches are keyed by.
    pub sha256: [u8; 32],
    /// Frames, rows and columns in patches (before the 2×2 merge).
    pub grid_thw: [usize; 3],
    pub patches: Arc<dyn Patches>,
    /// Seconds between two temporal patches; 1 for images, where nothing reads it.
    pub second_per_grid_t: f32,
}

impl MediaInput {
    pub fn num_patches(&self) -> usize {
        self.grid_thw.iter().product()
    }

    /// All rows, one after the other.
    pub fn pixel_values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.num_patches() * self.patches.patch_len()];
        values.par_chunks_mut(self.patches.patch_len()).enumerate().for_each(|(index, row)| self.patches.write(index, row));
        values
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
