//! A step's attention as lists of work: which rows walk which keys together, and which rows are put together from chunks.
//!
//! `kernels/CONTRACT.md` says what the kernels read. Rows with many keys are split into chunks that any block can take; rows of one
//! group share the chunks of their prompt. How a row is cut up never shows in its bits.

use std::collections::HashMap;
use std::sync::Arc;

use super::device::{Buf, Device};
use super::staging::Uploads;
use crate::backends::{ATTENTION_CHUNK, BLOCK_SIZE, Element, HeadShape, Span};
use crate::error::Result;

/// Query heads of a wide item and of a narrow one: rows × heads that share a key head.
const WIDE: usize = 64;
const NARROW: usize = 16;
/// Chunks of rows that may be split in one step; what exceeds them is not split.
const MAX_PARTIALS: usize = 16_384;
/// Blocks of a chunk.
const CHUNK_BLOCKS: usize = ATTENTION_CHUNK / BLOCK_SIZE;
/// The result goes to the output, not to a partial.
const DIRECT: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Item {
    pub first_entry: u32,
    pub num_entries: u32,
    pub prompt_table: u32,
    pub prompt_keys: u32,
    pub own_table: u32,
    pub own_keys: u32,
    pub unused: [u32; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    pub row: u32,
    pub prompt_keys: u32,
    pub own_keys: u32,
    pub partial: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Combine {
    pub row: u32,
    pub first_partial: u32,
    pub num_partials: u32,
    pub unused: u32,
}

impl Element for Item {}
impl Element for Entry {}
impl Element for Combine {}

/// The lists on the device, at addresses that never change, and scratch for partial results.
pub struct Plan {
    pub counts: Buf<u32>,
    pub wide: Buf<Item>,
    pub narrow: Buf<Item>,
    pub entries: Buf<Entry>,
    pub combines: Buf<Combine>,
    pub tables: Buf<u32>,
    pub partial_o: Buf<f32>,
    pub partial_lse: Buf<f32>,
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
            narrow: Buf::new(device, most)?,
            entries: Buf::new(device, most)?,
            combines: Buf::new(device, max_rows)?,
            tables: Buf::new(device, max_table)?,
            partial_o: Buf::new(device, max_partials * shape.num_heads * padded_dim(shape.head_dim))?,
            partial_lse: Buf::new(device, max_partials * shape.num_heads)?,
            lists: Lists::new(shape, max_partials),
        })
    }

    pub fn set(&mut self, uploads: &Uploads, spans: &[Span], tables: &[u32]) {
        self.lists.plan(spans);
        let lists = &self.lists;
        let counts = [lists.wide.len(), lists.narrow.len(), lists.combines.len(), 0].map(|n| n as u32);
        send(uploads, &counts, &self.counts);
        send(uploads, &lists.wide, &self.wide);
        send(uploads, &lists.narrow, &self.narrow);
        send(uploads, &lists.entries, &self.entries);
        send(uploads, &lists.combines, &self.combines);
        send(uploads, tables, &self.tables);
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
    narrow: Vec<Item>,
    entries: Vec<Entry>,
    combines: Vec<Combine>,
    /// Query heads of a key head.
    shared: usize,
    max_partials: usize,
}

impl Lists {
    fn new(shape: HeadShape, max_partials: usize) -> Self {
        let shared = shape.num_heads / shape.num_kv_heads;
        assert!(shared <= WIDE, "{shared} query heads share a key head; at most {WIDE}");
        Lists { shared, max_partials, ..Default::default() }
    }

    fn plan(&mut self, spans: &[Span]) {
        self.wide.clear();
        self.narrow.clear();
        self.entries.clear();
        self.combines.clear();
        let mut partials = 0;
        // Single rows by the prompt that they read, in order of appearance: (first row's span, rows with their first partials).
        let mut prompts: Vec<(Span, Vec<(u32, u32)>)> = Vec::new();
        let mut by_prompt: HashMap<(u32, u32), usize> = HashMap::new();
        for span in spans {
            if span.num_rows != 1 {
                self.direct(span);
                continue;
            }
            let (prompt, own) = (chunks(span.prompt_keys), chunks(span.own_keys));
            if prompt + own == 1 || partials + prompt + own > self.max_partials {
                self.direct(span);
                continue;
            }
            let first = partials as u32;
            self.combines.push(Combine { row: span.first_row, first_partial: first, num_partials: (prompt + own) as u32, unused: 0 });
            let place = *by_prompt.entry((span.prompt_table, span.prompt_keys)).or_insert_with(|| {
                prompts.push((*span, Vec::new()));
                prompts.len() - 1
            });
            prompts[place].1.push((span.first_row, first));
            for c in 0..own {
                let keys = chunk_keys(span.own_keys, c);
                let entry = Entry { row: span.first_row, prompt_keys: 0, own_keys: keys, partial: first + (prompt + c) as u32 };
                let item = Item { own_table: span.own_table + (c * CHUNK_BLOCKS) as u32, own_keys: keys, ..Default::default() };
                self.push(item, std::iter::once(entry));
            }
            partials += prompt + own;
        }
        for (span, rows) in prompts {
            for c in 0..chunks(span.prompt_keys) {
                let keys = chunk_keys(span.prompt_keys, c);
                let item = Item { prompt_table: span.prompt_table + (c * CHUNK_BLOCKS) as u32, prompt_keys: keys, ..Default::default() };
                for tile in rows.chunks(WIDE / self.shared) {
                    let entry = |(row, first): &(u32, u32)| Entry { row: *row, prompt_keys: keys, own_keys: 0, partial: first + c as u32 };
                    self.push(item, tile.iter().map(entry));
                }
            }
        }
        for list in [&mut self.wide, &mut self.narrow] {
            // Blocks take items in turn: long ones first, so that short ones fill the end.
            list.sort_by_key(|item| std::cmp::Reverse((item.prompt_keys + item.own_keys).div_ceil(64)));
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
        let first = self.entries.len();
        self.entries.extend(entries);
        let rows = self.entries.len() - first;
        let item = Item { first_entry: first as u32, num_entries: rows as u32, ..item };
        match rows * self.shared <= NARROW {
            true => self.narrow.push(item),
            false => self.wide.push(item),
        }
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

    fn plan(spans: &[Span], max_partials: usize) -> Lists {
        let mut lists = Lists::new(SHAPE, max_partials);
        lists.plan(spans);
        lists
    }

    fn decode(row: u32, prompt_table: u32, prompt_keys: u32, own_keys: u32) -> Span {
        Span { first_row: row, num_rows: 1, prompt_table, prompt_keys, own_table: 100 + row, own_keys }
    }

    /// (row, segment, key) of everything that is walked, to compare with what spans ask for.
    fn walked(lists: &Lists) -> Vec<(u32, bool, u32)> {
        let mut all = Vec::new();
        for item in lists.wide.iter().chain(&lists.narrow) {
            assert!(item.prompt_keys + item.own_keys > 0);
            for entry in &lists.entries[item.first_entry as usize..][..item.num_entries as usize] {
                assert!(entry.prompt_keys <= item.prompt_keys && entry.own_keys <= item.own_keys);
                assert!(
                    entry.partial == DIRECT || (entry.prompt_keys + entry.own_keys > 0 && (item.prompt_keys == 0 || item.own_keys == 0))
                );
                let start = |keys: u32| if entry.partial == DIRECT { 0..keys } else { 0..keys.min(256) };
                let base = |table: u32, span_table: u32| if entry.partial == DIRECT { 0 } else { (table - span_table) * 32 };
                all.extend(start(entry.prompt_keys).map(|k| (entry.row, false, base(item.prompt_table, 0) + k)));
                all.extend(start(entry.own_keys).map(|k| (entry.row, true, base(item.own_table, 100 + entry.row) + k)));
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
        spans.push(Span { first_row: 65, num_rows: 3, prompt_table: 0, prompt_keys: 30, own_table: 165, own_keys: 7 });
        spans.push(Span { first_row: 68, num_rows: 1, prompt_table: 0, prompt_keys: 513, own_table: 0, own_keys: 0 });
        spans.push(decode(69, 0, 10, 0));
        for max_partials in [0, 10, 1000] {
            let lists = plan(&spans, max_partials);
            assert_eq!(walked(&lists), wanted(&spans), "{max_partials} partials");
        }
    }

    #[test]
    fn a_group_walks_its_prompt_together() {
        let spans: Vec<Span> = (0..8).map(|row| decode(row, 0, 512, 300)).collect();
        let lists = plan(&spans, 1000);
        assert_eq!((lists.wide.len(), lists.narrow.len(), lists.combines.len()), (2, 16, 8));
        assert_eq!(lists.wide[0].num_entries, 8);
        assert!(lists.combines.iter().all(|c| c.num_partials == 4));
        let mut partials: Vec<u32> = lists.entries.iter().map(|e| e.partial).collect();
        partials.sort_unstable();
        assert_eq!(partials, (0..32).collect::<Vec<u32>>());
    }

    #[test]
    fn long_items_come_first() {
        let spans: Vec<Span> = (0..5).map(|row| decode(row, 0, 64, 1 + row * 60)).collect();
        let lists = plan(&spans, 1000);
        let keys: Vec<u32> = lists.narrow.iter().map(|item| (item.prompt_keys + item.own_keys).div_ceil(64)).collect();
        assert!(keys.is_sorted_by(|a, b| a >= b), "{keys:?}");
    }
}
