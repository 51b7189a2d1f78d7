//! From resized pixels to rows of the vision tower: rescale, normalise, cut into patches.

use std::sync::Arc;

use rayon::prelude::*;

use super::resample::{Resample, RgbImage};

/// The value of each 8-bit level, one table a channel. A table makes the arithmetic exact by construction: it is done once a level,
/// in the order of the library that is followed.
pub struct Normalizer {
    tables: [[f32; 256]; 3],
}

/// Sides of a patch, all powers that the model's configuration gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchShape {
    pub patch_size: usize,
    pub temporal_patch_size: usize,
    pub merge_size: usize,
}

impl PatchShape {
    /// Pixels along the side of a merged unit: sizes are multiples of it.
    pub fn factor(&self) -> usize {
        self.patch_size * self.merge_size
    }

    /// Elements of one patch: channels × frames × height × width.
    pub fn patch_len(&self) -> usize {
        3 * self.temporal_patch_size * self.patch_size * self.patch_size
    }
}

impl Normalizer {
    /// `rescale` is 1/255 and is applied in f64 as numpy does; `mean` and `std` are those of the rescaled values.
    pub fn new(resample: Resample, rescale: f64, mean: [f32; 3], std: [f32; 3]) -> Self {
        let value = |level: usize, c: usize| match resample {
            Resample::Pillow => ((level as f64 * rescale) as f32 - mean[c]) / std[c],
            // The torchvision backend folds the rescaling into mean and std.
            Resample::Torchvision => {
                let back = (1.0 / rescale) as f32;
                (level as f32 - mean[c] * back) / (std[c] * back)
            }
        };
        Normalizer { tables: std::array::from_fn(|c| std::array::from_fn(|level| value(level, c))) }
    }
}

/// Rows `[t · h · w, channels · frames · patch · patch]` and the grid `[t, h, w]` in patches.
///
/// Rows go through frames, then through merged units row by row, then through the patches of a unit. Frames that do not fill the last
/// temporal patch repeat the last one; so a still image stands twice.
pub fn patchify(frames: &[RgbImage], shape: PatchShape, normalizer: &Normalizer) -> (Arc<[f32]>, [usize; 3]) {
    let PatchShape { patch_size: patch, temporal_patch_size: depth, merge_size: merge } = shape;
    let (height, width) = (frames[0].height, frames[0].width);
    let side = shape.factor();
    assert!(height.is_multiple_of(side) && width.is_multiple_of(side), "{height} × {width} pixels are not whole units of {side}");
    let grid = [frames.len().div_ceil(depth), height / patch, width / patch];
    // One band is one row of merged units in one temporal patch.
    let band_len = width / patch * merge * shape.patch_len();
    let bands = grid[1] / merge;
    let mut rows: Arc<[f32]> = std::iter::repeat_n(0.0, grid[0] * bands * band_len).collect();
    Arc::make_mut(&mut rows).par_chunks_mut(band_len).enumerate().for_each(|(index, band)| {
        let (time, band_row) = (index / bands, index % bands);
        for (i, row) in band.chunks_exact_mut(shape.patch_len()).enumerate() {
            let (unit, within) = (i / (merge * merge), i % (merge * merge));
            let top = (band_row * merge + within / merge) * patch;
            let left = (unit * merge + within % merge) * patch;
            for (plane_index, plane) in row.chunks_exact_mut(patch * patch).enumerate() {
                let (c, frame) = (plane_index / depth, (time * depth + plane_index % depth).min(frames.len() - 1));
                let table = &normalizer.tables[c];
                for (y, line) in plane.chunks_exact_mut(patch).enumerate() {
                    let pixels = &frames[frame].pixels[3 * ((top + y) * width + left)..][..3 * patch];
                    line.iter_mut().zip(pixels.as_chunks::<3>().0).for_each(|(value, pixel)| *value = table[usize::from(pixel[c])]);
                }
            }
        }
    });
    (rows, grid)
}
