//! Where the features of images and videos live on the device: pages of rows, kept per content until room is needed.
//!
//! Bookkeeping only; the runner computes the features. A distinct image is encoded once per policy version, however many prompts
//! show it.

use std::collections::{BTreeMap, HashMap};

use crate::model::input::MediaInput;

/// Rows of one page: small, since a small image has a few tokens only.
pub const PAGE: usize = 4;

type ContentKey = [u8; 32];

pub struct VisionCache {
    free_pages: Vec<u32>,
    entries: HashMap<ContentKey, Entry>,
    idle: BTreeMap<u64, ContentKey>,
    clock: u64,
}

struct Entry {
    /// Device row of each token.
    rows: Vec<u32>,
    pages: Vec<u32>,
    pins: usize,
    idle_since: u64,
}

impl VisionCache {
    pub fn new(num_rows: usize) -> Self {
        let free_pages = (0..(num_rows / PAGE) as u32).rev().collect();
        VisionCache { free_pages, entries: HashMap::new(), idle: BTreeMap::new(), clock: 0 }
    }

    /// Keeps the medium's rows until [`VisionCache::unpin`]. `Some(true)` means that they have to be computed; `None` that there is
    /// no room while others are pinned.
    pub fn pin(&mut self, medium: &MediaInput, num_tokens: usize) -> Option<bool> {
        if let Some(entry) = self.entries.get_mut(&medium.sha256) {
            if entry.pins == 0 {
                self.idle.remove(&entry.idle_since);
            }
            entry.pins += 1;
            return Some(false);
        }
        let wanted = num_tokens.div_ceil(PAGE);
        while self.free_pages.len() < wanted {
            let (_, key) = self.idle.pop_first()?;
            if let Some(entry) = self.entries.remove(&key) {
                self.free_pages.extend(entry.pages);
            }
        }
        let pages = self.free_pages.split_off(self.free_pages.len() - wanted);
        let rows = (0..num_tokens).map(|i| pages[i / PAGE] * PAGE as u32 + (i % PAGE) as u32).collect();
        self.entries.insert(medium.sha256, Entry { rows, pages, pins: 1, idle_since: 0 });
        Some(true)
    }

    pub fn unpin(&mut self, medium: &MediaInput) {
        let Some(entry) = self.entries.get_mut(&medium.sha256) else { return };
        entry.pins -= 1;
        if entry.pins == 0 {
            self.clock += 1;
            entry.idle_since = self.clock;
            self.idle.insert(self.clock, medium.sha256);
        }
    }

    /// Drops a medium that was pinned for the first time but will not be computed after all.
    pub fn discard(&mut self, key: &[u8; 32]) {
        if let Some(entry) = self.entries.remove(key) {
            self.idle.remove(&entry.idle_since);
            self.free_pages.extend(entry.pages);
        }
    }

    /// Device rows of a pinned medium's tokens, in order.
    pub fn rows(&self, medium: &MediaInput) -> &[u32] {
        &self.entries[&medium.sha256].rows
    }

    /// Forgets what nobody has pinned.
    pub fn clear(&mut self) {
        while let Some((_, key)) = self.idle.pop_first() {
            if let Some(entry) = self.entries.remove(&key) {
                self.free_pages.extend(entry.pages);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::input::{MediaKind, PatchRows};

    fn medium(n: u8) -> MediaInput {
        let patches = Arc::new(PatchRows { values: Vec::new(), patch_len: 0 });
        MediaInput { kind: MediaKind::Image, sha256: [n; 32], grid_thw: [1, 2, 2], patches, second_per_grid_t: 1.0 }
    }

    #[test]
    fn an_image_is_computed_once_and_evicted_when_idle() {
        let mut cache = VisionCache::new(4 * PAGE);
        assert_eq!(cache.pin(&medium(1), PAGE + 1), Some(true));
        assert_eq!(cache.pin(&medium(1), PAGE + 1), Some(false));
        assert_eq!(cache.pin(&medium(2), 2 * PAGE + 1), None, "two pages are pinned, three are wanted");
        assert_eq!(cache.rows(&medium(1)).len(), PAGE + 1);
        cache.unpin(&medium(1));
        cache.unpin(&medium(1));
        assert_eq!(cache.pin(&medium(2), 2 * PAGE + 1), Some(true));
        cache.unpin(&medium(2));
        assert_eq!(cache.pin(&medium(1), PAGE + 1), Some(true), "it made room");
    }
}
