//! A step's attention as lists of work: which rows walk which keys together, and which rows are put together from chunks.
//!
//! `kernels/CONTRACT.md` says what the kernels read. Rows of one prompt that is being computed go in tiles (the wide walk). Rows of one group share the chunks of their prompt. Where single rows are enough to
//! fill the device, each walks its own keys in one go, from the partials of its prompt; those that would leave a last round of blocks half
//! empty, and all rows of small steps, are split into chunks that any block can take. How a row is cut up never shows in its bits.

use std::collections::HashMap;
use std::sync::Arc;

use super::device::{Buf, Device};
use super::staging::Uploads;
use crate::backends::{ATTENTION_CHUNK, BLOCK_SIZE, Element, HeadShape, Span};
use crate::error::Result;

/// Query heads of a wide item and of a narrow one: rows × heads that share a key head.
const WIDE: usize = 64;
const NARROW: usize = 16;
/// Blocks of each walk that a multiprocessor holds at a time.
pub const NARROW_BLOCKS: usize = 2;
pub const WIDE_BLOCKS: usize = 2;
pub const PROMPT_BLOCKS: usize = 3;
/// Share of all rounds of blocks that rows fill when none is split.
const FULL_ROUNDS: f64 = 0.9;
/// Chunks of rows that may be split in one step; what exceeds them is not split.
const MAX_PARTIALS: usize = 16_384;
/// Numbers of a partial beside its output: the LSE, and what spreads partials over the banks of shared memory.
const PARTIAL_EXTRA: usize = 8;
/// Blocks of a chunk.
const CHUNK_BLOCKS: usize = ATTENTION_CHUNK / BLOCK_SIZE;
/// The result goes to the output, not to a partial.
const DIRECT: u32 = u32::MAX;
/// No counter.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Item {
    pub first_entry: u32,
    pub num_entries: u32,
    pub prompt_table: u32,
    pub prompt_keys: u32,
    pub own_table: u32,
    pub own_keys: u32,
    /// Whether an entry has a counter.
    pub counted: u32,
    /// Partials that its row goes on from; `prompt_table` is the first of them.
    pub num_partials: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    pub row: u32,
    pub prompt_keys: u32,
    pub own_keys: u32,
    pub partial: u32,
    /// Of a split row: where its partials begin, how many they are, and who counts those that are there. Of a row that goes on from
    /// its prompt: the prompt's partials, which nobody counts.
    pub first_partial: u32,
    pub num_partials: u32,
    pub counter: u32,
    pub unused: u32,
}

impl Element for Item {}
impl Element for Entry {}

/// The lists on the device, at addresses that never change, and scratch for partial results.
pub struct Plan {
    pub counts: Buf<u32>,
    pub wide: Buf<Item>,
    pub prompts: Buf<Item>,
    pub narrow: Buf<Item>,
    pub entries: Buf<Entry>,
    pub tables: Buf<u32>,
    pub partials: Buf<f32>,
    /// Partials of split rows that are there, by counter and key head; every launch leaves zeros.
    pub finished: Buf<u32>,
    lists: Lists,
}

impl Plan {
    pub fn new(device: &Arc<Device>, max_rows: usize, max_table: usize, shape: HeadShape) -> Result<Self> {
        let max_partials = MAX_PARTIALS.min(16 * max_rows);
        // Every row is in one item, or in one for each of its partials.
        let most = max_rows + max_partials;
        Ok(Plan {
            counts: Buf::new(device, 4)?,
            wide: Buf::new(device, most)?,
            prompts: Buf::new(device, most)?,
            narrow: Buf::new(device, most)?,
            entries: Buf::new(device, most)?,
            tables: Buf::new(device, max_table)?,
            partials: Buf::new(device, max_partials * shape.num_heads * (padded_dim(shape.head_dim) + PARTIAL_EXTRA))?,
            finished: Buf::new(device, max_rows * shape.num_kv_heads)?,
            lists: Lists::new(shape, max_partials, device.multiprocessors() * NARROW_BLOCKS),
        })
    }

    pub fn set(&mut self, uploads: &Uploads, spans: &[Span], tables: &[u32]) {
        self.lists.plan(spans);
        let lists = &self.lists;
        // Rows that have keys of their own read prompts of earlier steps.
        let prompts_are_old = spans.iter().all(|span| span.own_keys > 0);
        let counts = [lists.wide.len(), lists.narrow.len(), lists.prompts.len(), prompts_are_old.into()].map(|n| n as u32);
        send(uploads, &counts, &self.counts);
        send(uploads, &lists.wide, &self.wide);
        send(uploads, &lists.prompts, &self.prompts);
        send(uploads, &lists.narrow, &self.narrow);
        send(uploads, &lists.entries, &self.entries);
        send(uploads, tables, &self.tables);
    }

    /// Whether this step has wide items; the same for all steps of single rows.
    pub fn is_wide(&self) -> bool {
        self.lists.shared > NARROW || !self.lists.wide.is_empty()
    }

    /// Whether a step of so many rows can have rows that walk a prompt together.
    pub fn may_share_prompts(&self, rows: usize) -> bool {
        rows * self.lists.shared > NARROW
    }
}

fn send<T: Element>(uploads: &Uploads, values: &[T], to: &Buf<T>) {
    assert!(values.len() <= to.len(), "{} entries of a plan, {} fit", values.len(), to.len());
    uploads.copy(super::bytes(values), to.ptr());
}

/// Head width in the cache: what the matrix instructions are built for.
pub fn padded_dim(head_dim: usize) -> usize {
    [16, 32, 64, 128].into_iter().find(|dim| head_dim <= *dim).unwrap_or_else(|| panic!("heads of {head_dim}; at most 128"))
}

/// The lists on the host, kept between steps for their memory.
#[derive(Debug, Default)]
struct Lists {
    wide: Vec<Item>,
    prompts: Vec<Item>,
    narrow: Vec<Item>,
    entries: Vec<Entry>,
    /// Query heads of a key head.
    shared: usize,
    num_kv_heads: usize,
    max_partials: usize,
    /// Blocks of the narrow walk that run at a time.
    blocks: usize,
}

impl Lists {
    fn new(shape: HeadShape, max_partials: usize, blocks: usize) -> Self {
        let (shared, num_kv_heads) = (shape.num_heads / shape.num_kv_heads, shape.num_kv_heads);
        assert!(shared <= WIDE, "{shared} query heads share a key head; at most {WIDE}");
        Lists { shared, num_kv_heads, max_partials, blocks, ..Default::default() }
    }

    fn plan(&mut self, spans: &[Span]) {
        self.wide.clear();
        self.prompts.clear();
        self.narrow.clear();
        self.entries.clear();
        let mut singles: Vec<&Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match span.num_rows {
                1 => singles.push(span),
                _ => self.direct(span),
            }
        }
        // Whole rounds of blocks are filled with the longest rows, in one go; what is left is split.
        singles.sort_by_key(|span| std::cmp::Reverse(span.own_keys));
        let items = singles.len() * self.num_kv_heads;
        let in_one_go = match items as f64 >= FULL_ROUNDS * items.next_multiple_of(self.blocks) as f64 {
            true => singles.len(),
            false => items / self.blocks * self.blocks / self.num_kv_heads,
        };
        self.singles(&singles, in_one_go);
        for list in [&mut self.wide, &mut self.prompts, &mut self.narrow] {
            // Blocks take items in turn: long ones first, so that short ones fill the end.
            list.sort_by_key(|item| std::cmp::Reverse((item.prompt_keys + item.own_keys).div_ceil(64)));
        }
        // Every second round backwards, so that no block gets the longest of each.
        for (round, items) in self.narrow.chunks_mut((self.blocks / self.num_kv_heads).max(1)).enumerate() {
            if round % 2 == 1 {
                items.reverse();
            }
        }
    }

    /// Rows by themselves, the longest first, of which the first `in_one_go` are not split unless they are alone with a prompt.
    fn singles(&mut self, singles: &[&Span], in_one_go: usize) {
        let narrow_rows = NARROW / self.shared;
        let mut partials = 0;
        let mut num_counters = 0;
        // Rows by the prompt that they read, in order of appearance: the first row's span, and an entry a row.
        let mut prompts: Vec<(Span, Vec<Entry>)> = Vec::new();
        let mut by_prompt: HashMap<(u32, u32), (usize, usize)> = HashMap::with_capacity(singles.len());
        for span in singles {
            by_prompt.entry((span.prompt_table, span.prompt_keys)).or_insert((usize::MAX, 0)).1 += 1;
        }
        for (i, span) in singles.iter().enumerate() {
            let (prompt, own) = (chunks(span.prompt_keys), chunks(span.own_keys));
            let whole = i < in_one_go;
            // Prompts of few rows are not worth a walk of their own.
            let few = narrow_rows == 0 || by_prompt[&(span.prompt_table, span.prompt_keys)].1 <= narrow_rows;
            let wanted = if whole { prompt } else { prompt + own };
            if prompt + own == 1 || (whole && (few || own == 0)) || partials + wanted > self.max_partials {
                self.direct(span);
                continue;
            }
            let row = Entry {
                row: span.first_row,
                first_partial: partials as u32,
                num_partials: wanted as u32,
                counter: if whole { NOBODY } else { num_counters },
                ..Default::default()
            };
            partials += wanted;
            if prompt > 0 {
                let place = by_prompt.entry((span.prompt_table, span.prompt_keys)).or_default();
                if place.0 == usize::MAX {
                    place.0 = prompts.len();
                    prompts.push((**span, Vec::new()));
                }
                prompts[place.0].1.push(row);
            }
            if whole {
                let item = Item {
                    prompt_table: row.first_partial,
                    own_table: span.own_table,
                    own_keys: span.own_keys,
                    num_partials: row.num_partials,
                    ..Default::default()
                };
                self.push(item, std::iter::once(Entry { own_keys: span.own_keys, partial: DIRECT, ..row }));
                continue;
            }
            num_counters += 1;
            for c in 0..own {
                let keys = chunk_keys(span.own_keys, c);
                let entry = Entry { own_keys: keys, partial: row.first_partial + (prompt + c) as u32, ..row };
                let item = Item { own_table: span.own_table + (c * CHUNK_BLOCKS) as u32, own_keys: keys, ..Default::default() };
                self.push(item, std::iter::once(entry));
            }
        }
        for (span, rows) in prompts {
            for c in 0..chunks(span.prompt_keys) {
                let keys = chunk_keys(span.prompt_keys, c);
                let item = Item { prompt_table: span.prompt_table + (c * CHUNK_BLOCKS) as u32, prompt_keys: keys, ..Default::default() };
                for tile in rows.chunks(WIDE / self.shared) {
                    let entries = tile.iter().map(|row| Entry { prompt_keys: keys, partial: row.first_partial + c as u32, ..*row });
                    // What the narrow walk goes on from must be there before it.
                    match tile.len() * self.shared > NARROW || tile.iter().any(|row| row.counter == NOBODY) {
                        true => self.push_prompt(item, entries),
                        false => self.push(item, entries),
                    }
                }
            }
        }
    }

    /// Rows that see all their keys in one go, in tiles.
    fn direct(&mut self, span: &Span) {
        let own_step = u32::from(span.own_keys > 0);
        let entry = |i: u32| Entry {
            row: span.first_row + i,
            prompt_keys: span.prompt_keys + i * (1 - own_step),
            own_keys: span.own_keys + i * own_step,
            partial: DIRECT,
            counter: NOBODY,
            ..Default::default()
        };
        let tile = (WIDE / self.shared) as u32;
        for first in (0..span.num_rows).step_by(tile as usize) {
            let rows = first..(first + tile).min(span.num_rows);
            let last = entry(rows.end - 1);
            let item = Item {
                prompt_table: span.prompt_table,
                prompt_keys: last.prompt_keys,
                own_table: span.own_table,
                own_keys: last.own_keys,
                ..Default::default()
            };
            self.push(item, rows.map(entry));
        }
    }

    fn push(&mut self, item: Item, entries: impl Iterator<Item = Entry>) {
        let item = self.with_entries(item, entries);
        match item.num_entries as usize * self.shared <= NARROW {
            true => self.narrow.push(item),
            false => self.wide.push(item),
        }
    }

    fn push_prompt(&mut self, item: Item, entries: impl Iterator<Item = Entry>) {
        let item = self.with_entries(item, entries);
        self.prompts.push(item);
    }

    fn with_entries(&mut self, item: Item, entries: impl Iterator<Item = Entry>) -> Item {
        let first = self.entries.len();
        self.entries.extend(entries);
        let added = &self.entries[first..];
        let counted = added.iter().any(|entry| entry.partial != DIRECT && entry.counter != NOBODY);
        Item { first_entry: first as u32, num_entries: added.len() as u32, counted: counted.into(), ..item }
    }
}

fn chunks(keys: u32) -> usize {
    (keys as usize).div_ceil(ATTENTION_CHUNK)
}

fn chunk_keys(keys: u32, chunk: usize) -> u32 {
    (keys - (chunk * ATTENTION_CHUNK) as u32).min(ATTENTION_CHUNK as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: HeadShape = HeadShape { num_heads: 16, num_kv_heads: 2, head_dim: 128 };

    fn plan(spans: &[Span], max_partials: usize, blocks: usize) -> Lists {
        let mut lists = Lists::new(SHAPE, max_partials, blocks);
        lists.plan(spans);
        lists
    }

    fn decode(row: u32, prompt_table: u32, prompt_keys: u32, own_keys: u32) -> Span {
        Span { first_row: row, num_rows: 1, prompt_table, prompt_keys, own_table: 1000 + 100 * row, own_keys }
    }

    /// (row, segment, key) of everything that is walked, to compare with what spans ask for; checks what items promise on the way.
    fn walked(lists: &Lists) -> Vec<(u32, bool, u32)> {
        let mut all = Vec::new();
        let mut partials: HashMap<u32, u32> = HashMap::new();
        let wide = lists.wide.len() + lists.prompts.len();
        for (i, item) in lists.wide.iter().chain(&lists.prompts).chain(&lists.narrow).enumerate() {
            assert!(item.prompt_keys + item.own_keys > 0);
            assert!(i >= wide || item.num_entries as usize * lists.shared <= WIDE);
            assert!(i < wide || item.num_entries as usize * lists.shared <= NARROW);
            let entries = &lists.entries[item.first_entry as usize..][..item.num_entries as usize];
            assert_eq!(item.counted == 1, entries.iter().any(|e| e.partial != DIRECT && e.counter != NOBODY));
            for entry in entries {
                assert!(entry.prompt_keys <= item.prompt_keys && entry.own_keys <= item.own_keys);
                let direct = entry.partial == DIRECT;
                assert!(direct || (entry.prompt_keys + entry.own_keys > 0 && (item.prompt_keys == 0 || item.own_keys == 0)));
                match direct {
                    // Its prompt's partials come from the launch before.
                    true => {
                        assert!((0..entry.num_partials).all(|c| partials.get(&(entry.first_partial + c)) == Some(&entry.row)) || i < wide);
                        assert_eq!(item.num_partials, entry.num_partials);
                        assert!(item.num_partials == 0 || (item.prompt_table, item.prompt_keys) == (entry.first_partial, 0));
                    }
                    false => {
                        assert!((entry.first_partial..entry.first_partial + entry.num_partials).contains(&entry.partial));
                        assert_eq!(partials.insert(entry.partial, entry.row), None, "a partial is written twice");
                    }
                }
                let start = |keys: u32| if direct { 0..keys } else { 0..keys.min(256) };
                let base = |table: u32, span_table: u32| if direct { 0 } else { (table - span_table) * 32 };
                all.extend(start(entry.prompt_keys).map(|k| (entry.row, false, base(item.prompt_table, 0) + k)));
                all.extend(start(entry.own_keys).map(|k| (entry.row, true, base(item.own_table, 1000 + 100 * entry.row) + k)));
            }
        }
        all.sort_unstable();
        all
    }

    fn wanted(spans: &[Span]) -> Vec<(u32, bool, u32)> {
        let mut all = Vec::new();
        for span in spans {
            for i in 0..span.num_rows {
                let (prompt, own) = if span.own_keys == 0 { (span.prompt_keys + i, 0) } else { (span.prompt_keys, span.own_keys + i) };
                all.extend((0..prompt).map(|k| (span.first_row + i, false, k)));
                all.extend((0..own).map(|k| (span.first_row + i, true, k)));
            }
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn every_key_is_walked_once() {
        let mut spans: Vec<Span> = (0..20).map(|row| decode(row, 0, 600, 1 + row * 37)).collect();
        spans.push(Span { first_row: 20, num_rows: 45, prompt_table: 0, prompt_keys: 250, own_table: 0, own_keys: 0 });
        spans.push(Span { first_row: 65, num_rows: 3, prompt_table: 0, prompt_keys: 30, own_table: 1000 + 6500, own_keys: 7 });
        spans.push(Span { first_row: 68, num_rows: 1, prompt_table: 0, prompt_keys: 513, own_table: 0, own_keys: 0 });
        spans.push(decode(69, 0, 10, 0));
        spans.push(decode(70, 0, 300, 700));
        for max_partials in [0, 10, 1000] {
            for blocks in [2, 6, 16, 100] {
                let lists = plan(&spans, max_partials, blocks);
                assert_eq!(walked(&lists), wanted(&spans), "{max_partials} partials, {blocks} blocks");
            }
        }
    }

    #[test]
    fn a_group_walks_its_prompt_together() {
        let spans: Vec<Span> = (0..8).map(|row| decode(row, 0, 512, 300)).collect();
        let lists = plan(&spans, 1000, 264);
        assert_eq!((lists.wide.len(), lists.prompts.len(), lists.narrow.len()), (0, 2, 16));
        assert_eq!(lists.prompts[0].num_entries, 8);
        assert!(lists.entries.iter().all(|e| e.num_partials == 4));
        let mut counters: Vec<u32> = lists.entries.iter().map(|e| e.counter).collect();
        counters.sort_unstable();
        counters.dedup();
        assert_eq!(counters, (0..8).collect::<Vec<u32>>(), "rows count by themselves");
    }

    #[test]
    fn rows_that_fill_the_device_are_not_split() {
        let spans: Vec<Span> = (0..24).map(|row| decode(row, row / 8 * 50, 512, 300 + row)).collect();
        let lists = plan(&spans, 1000, 20);
        // Two rounds of ten rows in one go, the four shortest rows in two chunks each.
        assert_eq!((lists.wide.len(), lists.prompts.len(), lists.narrow.len()), (0, 6, 20 + 8));
        let own = |item: &&Item| lists.entries[item.first_entry as usize].partial == DIRECT;
        let whole: Vec<u32> = lists.narrow.iter().filter(own).map(|item| item.own_keys).collect();
        assert_eq!(whole.iter().min(), Some(&304));
        assert!(lists.narrow[..20].iter().all(|item| own(&item) && item.counted == 0));
        assert!(lists.narrow[20..].iter().all(|item| item.counted == 1));
        // The second round is backwards: a block that has the longest of the first gets the shortest of the second.
        assert!(whole[..10].is_sorted_by(|a, b| a.div_ceil(64) >= b.div_ceil(64)));
        assert!(whole[10..20].is_sorted_by(|a, b| a.div_ceil(64) <= b.div_ceil(64)));
    }
}
