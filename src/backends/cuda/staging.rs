//! The way in and out: pinned memory that the device copies from and to while the host goes on.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use cudarc::driver::result;
use half::bf16;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::device::{Device, Event, check};
use crate::error::{Error, Result};

/// Host memory that the device reads and writes by itself.
pub struct Pinned {
    ptr: *mut u8,
    bytes: usize,
    device: Arc<Device>,
}

// Safety: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(device: &Arc<Device>, bytes: usize) -> Self {
        device.bind();
        // Safety: nobody reads it before it is written.
        let ptr = check("allocating pinned memory", unsafe { result::malloc_host(bytes, 0) });
        Pinned { ptr: ptr.cast(), bytes, device: device.clone() }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn slice(&self, start: usize, len: usize) -> &[u8] {
        assert!(start + len <= self.bytes, "{len} bytes from {start} of {}", self.bytes);
        // Safety: within the allocation; callers wait for the device's copy first.
        unsafe { std::slice::from_raw_parts(self.ptr.add(start), len) }
    }

    /// Where the device finds byte `start`: host memory of this kind has one address for both.
    fn address(&self, start: usize) -> u64 {
        assert!(start <= self.bytes);
        self.ptr as u64 + start as u64
    }

    fn slice_mut(&mut self, start: usize, len: usize) -> &mut [u8] {
        assert!(start + len <= self.bytes, "{len} bytes from {start} of {}", self.bytes);
        // Safety: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.device.bind();
        // Safety: allocated by `malloc_host`, and no copy is under way once the stream is empty. After a device fault both calls
        // fail, which is no reason to end the process.
        unsafe {
            let _ = result::stream::synchronize(self.device.stream());
            let _ = result::free_host(self.ptr.cast());
        }
    }
}

/// Bytes of one part of the ring; larger sources go in several copies.
const PART: usize = 8 << 20;
/// Parts: while the device copies from some, the host fills the next.
const PARTS: usize = 6;
/// From here on several threads fill a part: one thread does not keep up with the bus.
const PARALLEL: usize = 1 << 20;

/// More do not make the bus faster.
const MAX_THREADS: usize = 8;
/// Rows that one thread rounds at least.
const MIN_ROWS: usize = 32;

/// What is collected is at most so large; more goes by itself.
const MAX_COLLECTED: usize = 1 << 20;
/// The kernel moves this at a time; buffers have room for the rest of their last piece.
const PIECE_ALIGN: usize = 16;

/// Sources on their way to the device.
pub struct Uploads {
    ring: RefCell<Ring>,
}

struct Ring {
    memory: Pinned,
    done: Vec<Event>,
    /// Part being filled and what is used of it.
    part: usize,
    used: usize,
    collecting: bool,
    pieces: Vec<Piece>,
    /// Threads that fill parts. Not those that process images: a part would wait behind a queue of them.
    threads: ThreadPool,
    /// Parts that are full but hold pieces that nothing on the stream reads yet.
    left: Vec<usize>,
    device: Arc<Device>,
}

/// Bytes in pinned memory that one launch takes to their places together with others.
#[derive(Clone, Copy)]
#[repr(C)]
struct Piece {
    src: u64,
    dst: u64,
    /// Of this and all before it, a multiple of [`PIECE_ALIGN`].
    end: u64,
}

/// Pieces that wait to be taken along.
pub struct Collected {
    /// Address of the list in pinned memory.
    pub list: u64,
    pub pieces: usize,
    pub bytes: usize,
}

impl Uploads {
    /// # Errors
    ///
    /// The threads do not start.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let done = (0..PARTS).map(|_| Event::new(device)).collect();
        let memory = Pinned::new(device, PARTS * PART);
        let count = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS);
        let threads = ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("upload-{i}")).build();
        let threads = threads.map_err(|e| Error::Setup(format!("the threads for uploads did not start: {e}")))?;
        let (collecting, pieces, left) = (false, Vec::new(), Vec::new());
        let ring = Ring { memory, done, part: 0, used: 0, collecting, pieces, threads, left, device: device.clone() };
        Ok(Uploads { ring: RefCell::new(ring) })
    }

    /// From here on small copies wait for [`Uploads::collected`].
    pub fn collect(&self) {
        self.ring.borrow_mut().collecting = true;
    }

    /// What waits since [`Uploads::collect`], for the kernel that reads it where it is; [`Uploads::delivered`] follows its launch.
    pub fn collected(&self) -> Option<Collected> {
        let mut ring = self.ring.borrow_mut();
        let pieces = std::mem::take(&mut ring.pieces);
        let bytes = pieces.last()?.end as usize;
        let size = size_of_val(pieces.as_slice());
        let start = ring.reserve(size);
        // Safety: plain data.
        let list = unsafe { std::slice::from_raw_parts(pieces.as_ptr().cast::<u8>(), size) };
        ring.memory.slice_mut(start, size).copy_from_slice(list);
        Some(Collected { list: ring.memory.address(start), pieces: pieces.len(), bytes })
    }

    /// What was collected is not written again before everything on the stream by now is done.
    pub fn delivered(&self) {
        let mut ring = self.ring.borrow_mut();
        ring.collecting = false;
        let left = std::mem::take(&mut ring.left);
        left.into_iter().for_each(|part| ring.done[part].record());
    }

    /// Copies `src` to the device address `dst`, in the order of the stream; `src` may change when this returns.
    pub fn copy(&self, src: &[u8], dst: u64) {
        let mut at = 0;
        while at < src.len() {
            let n = (src.len() - at).min(PART);
            self.fill(n, dst + at as u64, |staged| {
                let src = &src[at..at + n];
                match n >= PARALLEL {
                    true => staged
                        .par_chunks_mut(PARALLEL / 4)
                        .zip(src.par_chunks(PARALLEL / 4))
                        .for_each(|(to, from)| to.copy_from_slice(from)),
                    false => staged.copy_from_slice(src),
                }
            });
            at += n;
        }
    }

    /// Copies so many rows of so many values one after the other, rounding them to bf16 as they are made.
    pub fn copy_rounded(&self, [rows, len]: [usize; 2], write: &(dyn Fn(usize, &mut [f32]) + Sync), dst: u64) {
        let bytes = len * size_of::<bf16>();
        let at_once = (PART / bytes.max(1)).max(1);
        for first in (0..rows).step_by(at_once) {
            self.fill(at_once.min(rows - first) * bytes, dst + (first * bytes) as u64, |staged| {
                let rows = staged.par_chunks_mut(bytes).enumerate().with_min_len(MIN_ROWS);
                rows.for_each_init(
                    || vec![0.0; len],
                    |row, (i, to)| {
                        write(first + i, row);
                        for (to, from) in to.as_chunks_mut().0.iter_mut().zip(row.iter()) {
                            *to = bf16::from_f32(*from).to_le_bytes();
                        }
                    },
                );
            });
        }
    }

    /// Lets `write` fill `bytes` (at most one part) and copies them to `dst`.
    pub fn fill(&self, bytes: usize, dst: u64, write: impl FnOnce(&mut [u8]) + Send) {
        assert!(bytes <= PART, "{bytes} bytes in one copy");
        if bytes == 0 {
            return;
        }
        let mut ring = self.ring.borrow_mut();
        let collected = ring.pieces.last().map_or(0, |piece| piece.end as usize);
        let start = ring.reserve(bytes);
        let Ring { memory, threads, .. } = &mut *ring;
        let staged = memory.slice_mut(start, bytes);
        match bytes >= PARALLEL {
            true => threads.install(|| write(staged)),
            false => write(staged),
        }
        if ring.collecting && collected + bytes <= MAX_COLLECTED {
            let src = ring.memory.address(start);
            let end = (collected + bytes).next_multiple_of(PIECE_ALIGN) as u64;
            ring.pieces.push(Piece { src, dst, end });
            return;
        }
        ring.device.bind();
        let staged = ring.memory.slice(start, bytes);
        // Safety: the part is not written again before its event says that the copy is done; callers name live memory.
        check("copying to the device", unsafe { result::memcpy_htod_async(dst, staged, ring.device.stream()) });
    }

    pub const MAX_FILL: usize = PART;
}

impl Ring {
    /// Start of `bytes` that no copy under way reads.
    fn reserve(&mut self, bytes: usize) -> usize {
        if self.used + bytes > PART {
            match self.collecting {
                true => self.left.push(self.part),
                false => self.done[self.part].record(),
            }
            self.part = (self.part + 1) % PARTS;
            self.used = 0;
            assert!(!self.left.contains(&self.part), "a step's uploads exceed {} bytes", PARTS * PART);
            // An event that was never recorded is done.
            self.done[self.part].wait();
        }
        let start = self.part * PART + self.used;
        self.used = (self.used + bytes).next_multiple_of(64);
        start
    }
}

/// Results on their way to the host: a few places, so that as many steps may be under way.
pub struct Downloads {
    places: RefCell<Vec<Place>>,
    next: Cell<usize>,
    device: Arc<Device>,
}

struct Place {
    memory: Pinned,
    done: Event,
    busy: bool,
}

/// Steps whose results may be under way at once.
const PLACES: usize = 4;

/// What [`Downloads::start`] hands out.
pub struct Ticket {
    place: usize,
    bytes: usize,
}

impl Downloads {
    pub fn new(device: &Arc<Device>) -> Self {
        Downloads { places: RefCell::default(), next: Cell::new(0), device: device.clone() }
    }

    /// Starts a copy of `bytes` from the device address `src`.
    pub fn start(&self, src: u64, bytes: usize) -> Ticket {
        let mut places = self.places.borrow_mut();
        if places.len() < PLACES {
            let memory = Pinned::new(&self.device, 4096);
            places.push(Place { memory, done: Event::new(&self.device), busy: false });
            self.next.set(places.len() - 1);
        }
        let index = self.next.get() % PLACES;
        self.next.set(index + 1);
        let place = &mut places[index];
        assert!(!place.busy, "more than {PLACES} steps are under way");
        if place.memory.bytes() < bytes {
            place.memory = Pinned::new(&self.device, bytes.next_power_of_two());
        }
        if bytes > 0 {
            self.device.bind();
            let to = place.memory.slice_mut(0, bytes);
            // Safety: the place is busy until its event has been waited for.
            check("copying from the device", unsafe { result::memcpy_dtoh_async(to, src, self.device.stream()) });
        }
        place.done.record();
        place.busy = true;
        Ticket { place: index, bytes }
    }

    /// Waits for a copy and hands its bytes to `read`.
    pub fn finish<R>(&self, ticket: &Ticket, read: impl FnOnce(&[u8]) -> R) -> R {
        let mut places = self.places.borrow_mut();
        let place = &mut places[ticket.place];
        place.done.wait();
        place.busy = false;
        read(place.memory.slice(0, ticket.bytes))
    }
}
