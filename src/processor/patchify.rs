//! From resized pixels to rows of the vision tower: rescale, normalise, cut into patches.

use std::fmt;
use std::sync::Arc;

use super::resample::{Resample, RgbImage};
use crate::model::input::Patches;

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

/// Resized frames, cut into patches as these are read.
///
/// Patches go through frames, then through merged units row by row, then through the patches of a unit. Frames that do not fill the last
/// temporal patch repeat the last one; so a still image stands twice.
pub struct Frames {
    frames: Vec<RgbImage>,
    shape: PatchShape,
    normalizer: Arc<Normalizer>,
}

impl Frames {
    /// Frames of one size, in whole merged units.
    pub fn new(frames: Vec<RgbImage>, shape: PatchShape, normalizer: Arc<Normalizer>) -> Self {
        let RgbImage { height, width, .. } = frames[0];
        let side = shape.factor();
        assert!(height.is_multiple_of(side) && width.is_multiple_of(side), "{height} × {width} pixels are not whole units of {side}");
        Frames { frames, shape, normalizer }
    }

    /// `[t, h, w]` in patches.
    pub fn grid(&self) -> [usize; 3] {
        let PatchShape { patch_size, temporal_patch_size, .. } = self.shape;
        [self.frames.len().div_ceil(temporal_patch_size), self.frames[0].height / patch_size, self.frames[0].width / patch_size]
    }
}

impl Patches for Frames {
    fn patch_len(&self) -> usize {
        self.shape.patch_len()
    }

    fn write(&self, index: usize, row: &mut [f32]) {
        let PatchShape { patch_size: patch, temporal_patch_size: depth, merge_size: merge } = self.shape;
        let [_, rows, columns] = self.grid();
        let (time, place) = (index / (rows * columns), index % (rows * columns));
        // A band is a row of merged units.
        let (band, place) = (place / (merge * columns), place % (merge * columns));
        let (unit, within) = (place / (merge * merge), place % (merge * merge));
        let (top, left) = ((band * merge + within / merge) * patch, (unit * merge + within % merge) * patch);
        let plane_len = patch * patch;
        for (c, row) in row.chunks_exact_mut(depth * plane_len).enumerate() {
            let table = &self.normalizer.tables[c];
            for frame in 0..depth {
                if time * depth + frame >= self.frames.len() {
                    row.copy_within((frame - 1) * plane_len..frame * plane_len, frame * plane_len);
                    continue;
                }
                let RgbImage { width, pixels, .. } = &self.frames[time * depth + frame];
                for (y, line) in row[frame * plane_len..][..plane_len].chunks_exact_mut(patch).enumerate() {
                    let pixels = &pixels[3 * ((top + y) * width + left)..][..3 * patch];
                    line.iter_mut().zip(pixels.as_chunks::<3>().0).for_each(|(value, pixel)| *value = table[usize::from(pixel[c])]);
                }
            }
        }
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "patches {:?} of {:?}", self.grid(), self.shape)
    }
}
