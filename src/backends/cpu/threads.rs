//! The threads of a backend, and how they share a matrix.
//!
//! A decode step has some eighty parallel regions of tens of microseconds; each costs a wake-up, so what is small runs on the
//! calling thread alone.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// The calling thread alone, or a pool of its own.
pub struct Threads {
    pool: Option<rayon::ThreadPool>,
}

impl Threads {
    pub fn new(count: usize) -> Result<Self> {
        let build = || rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("cpu-{i}")).build();
        let pool = (count > 1).then(build).transpose();
        Ok(Threads { pool: pool.map_err(|e| Error::Setup(format!("can't start {count} threads: {e}")))? })
    }

    pub fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// Calls `task` once with every index below `tasks`, in no particular order; returns when all are done.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync + Send) {
        match &self.pool {
            Some(pool) if tasks > 1 => pool.install(|| (0..tasks).into_par_iter().for_each(task)),
            _ => (0..tasks).for_each(task),
        }
    }
}

/// A rectangle of a matrix that one thread writes.
pub struct Tile<'a, T> {
    rows: Vec<&'a mut [T]>,
}

impl<T> Tile<'_, T> {
    pub fn row(&mut self, row: usize) -> &mut [T] {
        self.rows[row]
    }
}

/// Cuts the matrix `out[.., cols]` into row ranges (ascending, disjoint) by columns of `tile_cols` and calls `fill` for each tile
/// with the numbers of its range and of its columns.
pub fn for_each_tile<T: Send>(
    threads: &Threads,
    out: &mut [T],
    cols: usize,
    ranges: &[Range<usize>],
    tile_cols: usize,
    fill: impl Fn(usize, usize, Tile<'_, T>) + Sync + Send,
) {
    let across = cols.div_ceil(tile_cols.max(1));
    let mut tiles: Vec<Tile<'_, T>> = Vec::with_capacity(ranges.len() * across);
    let (mut rest, mut at) = (out, 0);
    for range in ranges {
        let (_, from_here) = std::mem::take(&mut rest).split_at_mut((range.start - at) * cols);
        let (these, after) = from_here.split_at_mut(range.len() * cols);
        (rest, at) = (after, range.end);
        let first = tiles.len();
        tiles.extend((0..across).map(|_| Tile { rows: Vec::with_capacity(range.len()) }));
        for row in these.chunks_exact_mut(cols) {
            for (tile, part) in tiles[first..].iter_mut().zip(row.chunks_mut(tile_cols)) {
                tile.rows.push(part);
            }
        }
    }
    let fill_tile = |(i, tile)| fill(i / across, i % across, tile);
    match &threads.pool {
        Some(pool) if tiles.len() > 1 => pool.install(|| tiles.into_par_iter().enumerate().for_each(fill_tile)),
        _ => tiles.into_iter().enumerate().for_each(fill_tile),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_index_once() {
        for count in [1, 2, 5] {
            let threads = Threads::new(count).unwrap();
            for tasks in [0, 1, 2, 100] {
                let calls: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                threads.run(tasks, |i| {
                    calls[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{count} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn tiles_cover_the_matrix() {
        let threads = Threads::new(3).unwrap();
        let mut out = vec![0; 7 * 10];
        for_each_tile(&threads, &mut out, 10, &[0..2, 2..5, 6..7], 4, |range, column, mut tile| {
            for row in 0..[2, 3, 1][range] {
                tile.row(row).iter_mut().for_each(|x| *x += 1 + 10 * range + column);
            }
        });
        let want = |row: usize, col: usize| [0, 0, 1, 1, 1, 9, 2][row] * 10 + 1 + col / 4;
        for (i, x) in out.iter().enumerate() {
            assert_eq!(*x, if i / 10 == 5 { 0 } else { want(i / 10, i % 10) });
        }
    }
}
