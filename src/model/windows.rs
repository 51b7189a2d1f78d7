//! Geometry of the vision tower's attention: windows, frames and rotary positions of patches.
//!
//! Pure functions of the grids. Patches arrive in the processor's order, where the patches of one merged unit (2×2) lie side by side.
//! The tower permutes whole units so that each window is contiguous, and undoes it after the merger.

use crate::model::config::VisionConfig;

/// How a batch of grids is attended to. All offsets count over the whole batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowPlan {
    /// `order[i]` is the merged unit (processor order) that stands at place `i` in window order.
    pub order: Vec<u32>,
    /// Borders of the windows in patches, window order: starts at 0, ends at the number of patches, strictly ascending.
    pub cu_window_seqlens: Vec<i32>,
    /// Borders of the frames in patches, the same in both orders, since a window never crosses a frame.
    pub cu_frame_seqlens: Vec<i32>,
    /// Row and column of each patch in its frame, processor order.
    pub rotary_hw: Vec<[i32; 2]>,
}

impl WindowPlan {
    /// The plan for `grids` (frames, rows and columns in patches), each side a multiple of the merge size.
    pub fn new(grids: &[[usize; 3]], vision: &VisionConfig) -> Self {
        let merge = vision.spatial_merge_size;
        let unit = vision.merge_unit() as i32;
        // Units along the side of a full window: 112 px / 14 / 2 = 4.
        let window = (vision.window_size / vision.patch_size / merge).max(1);
        let mut plan = WindowPlan { cu_window_seqlens: vec![0], cu_frame_seqlens: vec![0], ..Default::default() };
        for &[frames, height, width] in grids {
            assert!(height.is_multiple_of(merge) && width.is_multiple_of(merge), "a grid of {height} × {width} does not merge by {merge}");
            let (rows, columns) = (height / merge, width / merge);
            for _ in 0..frames {
                let base = plan.order.len() as u32;
                for top in (0..rows).step_by(window) {
                    for left in (0..columns).step_by(window) {
                        plan.push_window(base, columns, top..rows.min(top + window), left..columns.min(left + window), unit);
                    }
                }
                plan.cu_frame_seqlens.push(plan.order.len() as i32 * unit);
                plan.push_rotary(rows, columns, merge);
            }
        }
        plan
    }

    /// The inverse of `order`: `inverse[u]` is the place in window order of the unit `u`.
    pub fn inverse(&self) -> Vec<u32> {
        let mut inverse = vec![0; self.order.len()];
        for (place, unit) in self.order.iter().enumerate() {
            inverse[*unit as usize] = place as u32;
        }
        inverse
    }

    /// A window at the right or bottom edge is smaller; nothing is padded or masked.
    fn push_window(&mut self, base: u32, columns: usize, rows: std::ops::Range<usize>, span: std::ops::Range<usize>, unit: i32) {
        for row in rows {
            self.order.extend(span.clone().map(|column| base + (row * columns + column) as u32));
        }
        self.cu_window_seqlens.push(self.order.len() as i32 * unit);
    }

    fn push_rotary(&mut self, rows: usize, columns: usize, merge: usize) {
        for row in 0..rows {
            for column in 0..columns {
                for y in 0..merge {
                    self.rotary_hw.extend((0..merge).map(|x| [(row * merge + y) as i32, (column * merge + x) as i32]));
                }
            }
        }
    }
}
