//! The pool of KV blocks and the prefix cache over it.
//!
//! A block is free, referenced by live sequences, or cached: full prompt blocks stay findable by content after their last reference
//! is gone, until room is needed (least recently used first). State with one owner: the scheduler calls, nothing is messaged.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::request::PolicyVersion;
use crate::backends::BLOCK_SIZE;
use crate::model::input::PromptInput;

pub type BlockId = u32;

/// Content of a full prompt block and of everything before it: tokens, media and the weights that computed it.
pub type PrefixKey = [u8; 32];

pub struct BlockPool {
    refs: Vec<u32>,
    free: Vec<BlockId>,
    cached: HashMap<PrefixKey, BlockId>,
    key_of: Vec<Option<PrefixKey>>,
    /// Cached blocks without references by time of release, and each one's time.
    idle: BTreeMap<u64, BlockId>,
    idle_since: Vec<u64>,
    clock: u64,
}

impl BlockPool {
    pub fn new(num_blocks: usize) -> Self {
        BlockPool {
            refs: vec![0; num_blocks],
            free: (0..num_blocks as BlockId).rev().collect(),
            cached: HashMap::new(),
            key_of: vec![None; num_blocks],
            idle: BTreeMap::new(),
            idle_since: vec![0; num_blocks],
            clock: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.refs.len()
    }

    /// Blocks that can be had now, cached ones included.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// `n` blocks of one's own, or none at all.
    pub fn allocate(&mut self, n: usize) -> Option<Vec<BlockId>> {
        (n <= self.available()).then(|| (0..n).map(|_| self.take()).collect())
    }

    fn take(&mut self) -> BlockId {
        let block = self.free.pop().unwrap_or_else(|| {
            let (_, block) = self.idle.pop_first().unwrap_or_else(|| panic!("took a block of {} with none available", self.total()));
            self.forget(block);
            block
        });
        self.refs[block as usize] = 1;
        block
    }

    fn forget(&mut self, block: BlockId) {
        if let Some(key) = self.key_of[block as usize].take() {
            self.cached.remove(&key);
        }
    }

    /// A reference to the block with this content, if it is cached.
    pub fn lookup(&mut self, key: &PrefixKey) -> Option<BlockId> {
        let block = *self.cached.get(key)?;
        let refs = &mut self.refs[block as usize];
        if *refs == 0 {
            self.idle.remove(&self.idle_since[block as usize]);
        }
        *refs += 1;
        Some(block)
    }

    /// Makes a referenced block findable. The first block with a content keeps the key.
    pub fn publish(&mut self, key: PrefixKey, block: BlockId) {
        debug_assert!(self.refs[block as usize] > 0, "published block {block} without an owner");
        if self.key_of[block as usize].is_none() && !self.cached.contains_key(&key) {
            self.cached.insert(key, block);
            self.key_of[block as usize] = Some(key);
        }
    }

    pub fn release(&mut self, blocks: &mut Vec<BlockId>) {
        // In reverse, so that the tail of a prefix is evicted before its head.
        for block in blocks.drain(..).rev() {
            let refs = &mut self.refs[block as usize];
            assert!(*refs > 0, "released block {block}, which nobody holds");
            *refs -= 1;
            if *refs > 0 {
                continue;
            }
            if self.key_of[block as usize].is_some() {
                self.clock += 1;
                self.idle_since[block as usize] = self.clock;
                self.idle.insert(self.clock, block);
            } else {
                self.free.push(block);
            }
        }
    }

    /// Forgets all contents: the weights changed, or somebody asked.
    pub fn clear_cache(&mut self) {
        while let Some((_, block)) = self.idle.pop_first() {
            self.free.push(block);
        }
        self.cached.clear();
        self.key_of.fill(None);
    }

    /// Panics with numbers when the pool's books do not add up; `held` are the blocks that live sequences name, with repeats.
    pub fn check(&self, held: impl Iterator<Item = BlockId>) {
        let mut expected = vec![0u32; self.total()];
        held.for_each(|b| expected[b as usize] += 1);
        assert_eq!(self.refs, expected, "references of blocks differ from what sequences hold");
        let unreferenced = self.refs.iter().filter(|r| **r == 0).count();
        assert_eq!(unreferenced, self.available(), "{unreferenced} blocks without references, {} available", self.available());
        for (key, block) in &self.cached {
            assert_eq!(self.key_of[*block as usize].as_ref(), Some(key), "block {block} and the cache disagree about its content");
        }
    }
}

/// Keys of a prompt's full blocks, each chained to the one before.
pub fn prefix_keys(prompt: &PromptInput, merge_unit: usize, version: PolicyVersion) -> Vec<PrefixKey> {
    let mut parent: PrefixKey = Sha256::digest(version.0.to_le_bytes()).into();
    let full = prompt.token_ids.len() / BLOCK_SIZE;
    (0..full)
        .map(|i| {
            let tokens = i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE;
            let mut hash = Sha256::new();
            hash.update(parent);
            prompt.token_ids[tokens.clone()].iter().for_each(|t| hash.update(t.to_le_bytes()));
            for (medium, start) in prompt.media.iter().zip(&prompt.media_starts) {
                let end = start + medium.num_tokens(merge_unit);
                if *start < tokens.end && tokens.start < end {
                    hash.update(medium.sha256);
                    hash.update(medium.second_per_grid_t.to_le_bytes());
                    hash.update((*start as u64).to_le_bytes());
                }
            }
            parent = hash.finalize().into();
            parent
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PrefixKey {
        [n; 32]
    }

    #[test]
    fn all_or_nothing() {
        let mut pool = BlockPool::new(4);
        let mut a = pool.allocate(3).unwrap();
        assert_eq!(pool.allocate(2), None);
        assert_eq!(pool.used(), 3);
        pool.release(&mut a);
        assert_eq!(pool.available(), 4);
        pool.check(std::iter::empty());
    }

    #[test]
    fn cached_blocks_survive_their_owner_until_room_is_needed() {
        let mut pool = BlockPool::new(3);
        let mut a = pool.allocate(2).unwrap();
        pool.publish(key(1), a[0]);
        pool.publish(key(2), a[1]);
        let first = a[0];
        pool.release(&mut a);
        assert_eq!((pool.free(), pool.idle()), (1, 2));
        assert_eq!(pool.lookup(&key(1)), Some(first));
        // Two fresh blocks: the free one, then the idle one with key 2.
        let mut b = pool.allocate(2).unwrap();
        assert_eq!(pool.lookup(&key(2)), None);
        assert_eq!(pool.allocate(1), None);
        pool.check([first].into_iter().chain(b.iter().copied()));
        pool.release(&mut b);
        pool.release(&mut vec![first]);
        pool.clear_cache();
        assert_eq!(pool.free(), 3);
        assert_eq!(pool.lookup(&key(1)), None);
    }

    #[test]
    fn keys_depend_on_tokens_before_and_on_the_version() {
        let prompt = |first: u32| PromptInput { token_ids: std::iter::once(first).chain(1..100).collect(), ..Default::default() };
        let a = prefix_keys(&prompt(0), 4, PolicyVersion(0));
        assert_eq!(a.len(), 3);
        assert_ne!(a[2], prefix_keys(&prompt(7), 4, PolicyVersion(0))[2]);
        assert_ne!(a[2], prefix_keys(&prompt(0), 4, PolicyVersion(1))[2]);
        assert_eq!(a, prefix_keys(&prompt(0), 4, PolicyVersion(0)));
    }
}
