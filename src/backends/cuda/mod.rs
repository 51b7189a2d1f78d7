//! The backend of NVIDIA GPUs: own kernels for everything but most GEMMs, which cublasLt does.
//!
//! Nothing of CUDA is needed to build or start the program; driver, compiler and cublasLt are found when a GPU is asked for. All
//! work goes down one stream, so buffers are written and read in the order of the calls.

#![allow(unsafe_code)]

mod attention;
mod device;
mod few;
mod gated;
mod gemm;
mod gemm_table;
mod graph;
pub mod kernels;
mod libs;
mod nvrtc;
mod sampler;
mod shared;
mod staging;
mod tensor_map;
mod tiles;
mod timeline;
mod trial;
mod turned;
mod weight;

use std::sync::Arc;

use cudarc::driver::result;
use half::bf16;

use super::{
    Backend, DeviceValues, Element, HeadShape, LaunchTime, Matrix, Memory, RopeQkv, RopeVision, SampleInputs, SampleRow, Sampled,
    SamplerState, SegmentAttention, SharedDoor, Span, StepKey, Store, TokenSource,
};
use crate::backends::BLOCK_SIZE;
use crate::error::Result;
use attention::{Plan, padded_dim};
pub use device::Buf;
use device::{Args, Device, check};
use gated::GatedCall;
pub use gemm::Choice;
use gemm::Gemm;
use graph::Graphs;
use kernels::{BLOCK, ELEMENTS, Kernels};
use sampler::PartsCall;
use shared::Door;
use staging::{Collected, Downloads, Ticket, Uploads};
use turned::{Places, TurnedCall};
use weight::{ROW_ALIGN, Weight, row_stride};

/// Tokens that a slot is prepared with at most: more than any context.
const RESET_TOKENS: usize = 1 << 20;
/// Bytes that one block of `deliver` takes at a time, and blocks that are worth it.
const DELIVERED: usize = 4096;
const MAX_DELIVERING: usize = 128;

pub struct Cuda {
    gemm: Gemm,
    graphs: Graphs,
    kernels: Kernels,
    uploads: Uploads,
    downloads: Downloads,
    reset_tokens: Buf<u32>,
    device: Arc<Device>,
}

/// Keys and values of a layer: `[blocks, 2, kv heads, 32, padded head]`.
pub struct Kv(Buf<bf16>);

/// Whether `cuda:ordinal` can be used at all, with the reason if not.
///
/// # Errors
///
/// No driver, no such GPU, or no libraries.
pub fn usable(ordinal: usize) -> Result<()> {
    Device::open(ordinal, false)?;
    libs::require_nvrtc()?;
    libs::require_cublaslt()
}

impl Cuda {
    /// Opens a GPU and loads the kernels; `graphs`: replay decode steps instead of launching them; `timed`: launch them one by one
    /// and keep their times.
    ///
    /// # Errors
    ///
    /// As [`usable`], and kernels that can't be compiled or loaded.
    pub fn new(ordinal: usize, graphs: bool, timed: bool) -> Result<Self> {
        Self::open(ordinal, graphs, timed, false)
    }

    /// A device whose GEMMs are timed when a weight of a new shape comes, to make the table from.
    ///
    /// # Errors
    ///
    /// As [`Cuda::new`].
    pub fn tuning(ordinal: usize) -> Result<Self> {
        Self::open(ordinal, false, false, true)
    }

    fn open(ordinal: usize, graphs: bool, timed: bool, tune: bool) -> Result<Self> {
        let device = Device::open(ordinal, timed)?;
        let kernels = Kernels::load(&device)?;
        let gemm = Gemm::new(&device, &kernels, tune)?;
        Ok(Cuda {
            gemm,
            graphs: Graphs::new(&device, graphs),
            kernels,
            uploads: Uploads::new(&device)?,
            downloads: Downloads::new(&device),
            reset_tokens: Buf::new(&device, RESET_TOKENS)?,
            device,
        })
    }

    /// The chip and the version of cublasLt that [`Cuda::gemm_choices`] are for.
    pub fn gemm_place(&self) -> String {
        gemm_table::place(&self.device.arch(), Gemm::version())
    }

    /// What cublasLt was found to compute with equal bits, by shape and rows.
    pub fn gemm_choices(&self) -> Vec<Choice> {
        self.gemm.choices()
    }

    /// Shapes `[n, k]` of weights, and up to how many rows of a product our own kernel was found to compute with equal bits.
    pub fn gemm_few(&self) -> Vec<([usize; 2], usize)> {
        self.gemm.few()
    }

    /// Shapes `[n, k]` of weights, and whether our own kernel was found to compute and activate their products with equal bits: without
    /// a bias, and with one.
    pub fn gemm_gated(&self) -> Vec<([usize; 2], [bool; 2])> {
        self.gemm.gated_shapes()
    }

    /// Shapes `[n, k]` of weights, and whether our own kernels were found to make queries, keys and values of them with equal bits: with
    /// a cache, and without.
    pub fn gemm_turned(&self) -> Vec<([usize; 2], [bool; 2])> {
        self.gemm.turned_shapes()
    }

    /// Shapes `[n, k]` of weights, and whether our own kernels were found to draw from their products with equal bits.
    pub fn gemm_sampled(&self) -> Vec<([usize; 2], bool)> {
        self.gemm.sampled_shapes()
    }

    /// A layer's whole cache, to compare bits.
    pub fn cached(&self, kv: &Kv) -> Vec<bf16> {
        let mut values = vec![bf16::ZERO; kv.0.len()];
        self.download(&kv.0, &mut values);
        values
    }

    /// Milliseconds that the device needs for what `launches` asks of it.
    pub fn time(&self, launches: impl FnOnce()) -> f64 {
        f64::from(self.device.time(launches).1)
    }

    /// Copies values within the device, in the order of the stream.
    pub fn copy<T: Element>(&self, from: &Buf<T>, to: &mut Buf<T>) {
        assert_eq!(from.len(), to.len(), "a copy of another length");
        self.device.bind();
        // Safety: both are live and of equal size.
        let copied = unsafe { result::memcpy_dtod_async(to.ptr(), from.ptr(), size_of::<T>() * from.len(), self.device.stream()) };
        check("copying on the device", copied);
    }

    /// Steps that are replayed so far.
    pub fn captured_steps(&self) -> usize {
        self.graphs.captured()
    }

    fn launch(&self, name: &str, grid: [usize; 3], block: usize, shared: usize, args: Args) {
        self.device.launch(self.kernels.get(name), grid, block, shared, args);
    }

    /// `n` blocks in a row.
    fn launch_1d(&self, name: &str, n: usize, args: Args) {
        self.launch(name, [n, 1, 1], BLOCK, 0, args);
    }
}

/// The bytes of plain values.
fn bytes<T: Element>(values: &[T]) -> &[u8] {
    // Safety: `Element` is plain data without padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// A GEMM's input has rows of `width` values side by side, so `width` must need no padding.
fn check_width(width: usize) {
    assert!(width.is_multiple_of(ROW_ALIGN), "rows of {width} values; a multiple of {ROW_ALIGN} is needed here");
}

impl Backend for Cuda {
    type Float = bf16;
    type Buf<T: Element> = Buf<T>;
    type Weight = Weight;
    type Kv = Kv;
    type AttentionPlan = Plan;
    type Ticket = Ticket;

    fn name(&self) -> String {
        let device = &self.device;
        format!("cuda:{} ({}, {}, cublasLt {})", device.ordinal(), device.name(), device.arch(), Gemm::version())
    }

    fn memory(&self) -> Option<Memory> {
        let (free, total) = self.device.memory();
        Some(Memory { free, total })
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<Buf<T>> {
        Buf::new(&self.device, len)
    }

    fn weight(&self, parts: &[Matrix<'_>]) -> Result<Weight> {
        let mut weight = Weight::upload(&self.device, &self.uploads, parts)?;
        self.gemm.prepare(&mut weight, &self.uploads)?;
        Ok(weight)
    }

    fn rewrite_weight(&self, weight: &mut Weight, first_row: usize, rows: Matrix<'_>) {
        weight.write(&self.uploads, first_row, &rows);
    }

    fn shared_door(&self) -> Result<Option<Arc<dyn SharedDoor>>> {
        Ok(Some(Arc::new(Door::new(&self.device, self.kernels.get("check_weight"))?)))
    }

    fn rewrite_shared(&self, weight: &mut Weight, first_row: usize, rows: usize, values: DeviceValues) {
        self.store(weight, first_row, rows, values);
    }

    fn copy_weight(&self, from: &Weight, to: &mut Weight) {
        to.copy_from(&self.device, from);
    }

    fn synchronize(&self) {
        self.device.synchronize();
    }

    fn forget_graphs(&self) {
        self.graphs.forget();
    }

    fn row_stride(&self, width: usize) -> usize {
        row_stride(width)
    }

    fn kv_block_bytes(&self, shape: HeadShape) -> usize {
        2 * shape.num_kv_heads * BLOCK_SIZE * padded_dim(shape.head_dim) * size_of::<bf16>()
    }

    fn alloc_kv(&self, num_blocks: usize, shape: HeadShape) -> Result<Kv> {
        Ok(Kv(Buf::new(&self.device, num_blocks * self.kv_block_bytes(shape) / size_of::<bf16>())?))
    }

    fn alloc_attention_plan(&self, _max_spans: usize, max_rows: usize, max_table: usize, shape: HeadShape) -> Result<Plan> {
        Plan::new(&self.device, max_rows, max_table, shape)
    }

    fn upload<T: Element>(&self, src: &[T], dst: &mut Buf<T>) {
        assert!(src.len() <= dst.len(), "{} values into {}", src.len(), dst.len());
        self.uploads.copy(bytes(src), dst.ptr());
    }

    fn download<T: Element>(&self, src: &Buf<T>, dst: &mut [T]) {
        assert!(dst.len() <= src.len(), "{} values out of {}", dst.len(), src.len());
        self.device.synchronize();
        // Safety: the buffer holds at least these values, and any bits are a value.
        check("reading from the device", unsafe { result::memcpy_dtoh_sync(dst, src.ptr()) });
    }

    fn together(&self, uploads: impl FnOnce(&Self)) {
        self.uploads.collect();
        uploads(self);
        if let Some(Collected { list, pieces, bytes }) = self.uploads.collected() {
            self.launch_1d("deliver", bytes.div_ceil(DELIVERED).min(MAX_DELIVERING), Args::default().ptr(list).int(pieces).int(bytes));
        }
        self.uploads.delivered();
    }

    fn plan_attention(&self, spans: &[Span], tables: &[u32], plan: &mut Plan) {
        plan.set(&self.uploads, spans, tables);
    }

    fn step_rows(&self, rows: usize) -> usize {
        graph::padded(rows)
    }

    fn captured_rows(&self, most: usize) -> Vec<usize> {
        match self.graphs.enabled() {
            true => graph::buckets(most).collect(),
            false => Vec::new(),
        }
    }

    fn graphed(&self, key: StepKey, step: impl FnOnce(&Self)) {
        self.graphs.run(key, || step(self));
    }

    fn launch_times(&self) -> Vec<LaunchTime> {
        self.device.bind();
        self.device.timeline().map_or(Vec::new(), |mut timeline| timeline.take())
    }

    fn embed(&self, source: TokenSource<'_, Self>, table: &Weight, rows: usize, out: &mut Buf<f32>) {
        let args = Args::default().buf(source.ids).buf(source.slots).buf(source.last_tokens);
        self.launch_1d("embed", rows, args.ptr(table.ptr()).int(table.ld).int(table.k).buf(out));
    }

    fn scatter_rows(&self, src: &Buf<f32>, pairs: &Buf<u32>, n: usize, width: usize, out: &mut Buf<f32>) {
        self.launch_1d("scatter_rows", n, Args::default().buf(src).buf(pairs).int(width).buf(out));
    }

    fn gather_rows(&self, src: &Buf<f32>, index: &Buf<u32>, n: usize, width: usize, out: &mut Buf<f32>) {
        self.launch_1d("gather_rows", n, Args::default().buf(src).buf(index).int(width).buf(out));
    }

    fn rms_norm(&self, x: &Buf<f32>, weight: &Buf<f32>, eps: f32, rows: usize, width: usize, out: &mut Buf<bf16>) {
        check_width(width);
        self.launch_1d("rms_norm", rows, Args::default().buf(x).buf(weight).float(eps).int(width).buf(out));
    }

    fn gemm(&self, x: &Buf<bf16>, w: &Weight, bias: Option<&Buf<f32>>, rows: usize, store: Store, out: &mut Buf<f32>) {
        assert!(rows * w.ld <= x.len() && rows * w.n <= out.len(), "a GEMM of {rows} rows by [{}, {}] exceeds its buffers", w.n, w.k);
        self.gemm.run(w, x.ptr(), bias.map(Buf::ptr), rows, store == Store::Add, out.ptr());
    }

    fn rope_table(&self, positions: &Buf<i32>, inv_freq: &Buf<f32>, axis: &Buf<u32>, half: usize, rows: usize, out: &mut Buf<f32>) {
        let args = Args::default().buf(positions).buf(inv_freq).buf(axis).int(half).int(rows).buf(out);
        self.launch_1d("rope_table", (rows * half).div_ceil(BLOCK), args);
    }

    fn rope_qkv(&self, qkv: &Buf<f32>, args: RopeQkv<'_, Self>, q: &mut Buf<bf16>, kv: &mut Kv) {
        let RopeQkv { bias, rope, slot_mapping, shape, rows } = args;
        let heads = Args::default().buf(qkv).buf(bias).buf(rope).buf(slot_mapping).int(shape.num_heads).int(shape.num_kv_heads);
        self.launch_1d("rope_qkv", rows, heads.int(shape.head_dim).int(padded_dim(shape.head_dim)).buf(q).buf(&kv.0));
    }

    fn gemm_rope_qkv(&self, (x, w): (&Buf<bf16>, &Weight), qkv: &mut Buf<f32>, args: RopeQkv<'_, Self>, q: &mut Buf<bf16>, kv: &mut Kv) {
        let RopeQkv { bias, rope, slot_mapping, shape, rows } = args;
        assert!(rows * w.ld <= x.len() && rows * shape.q_width() <= q.len(), "{rows} rows by [{}, {}] exceed their buffers", w.n, w.k);
        let call = TurnedCall { x: x.ptr(), bias: bias.ptr(), rope: rope.ptr(), rows };
        let places = Places::Paged { shape, slot_mapping: slot_mapping.ptr(), q: q.ptr(), kv: kv.0.ptr() };
        if !self.gemm.run_turned(w, &call, &places) {
            self.gemm(x, w, None, rows, Store::Write, qkv);
            self.rope_qkv(qkv, RopeQkv { bias, rope, slot_mapping, shape, rows }, q, kv);
        }
    }

    fn attention(&self, q: &Buf<bf16>, kv: &Kv, plan: &Plan, shape: HeadShape, rows: usize, out: &mut Buf<bf16>) {
        check_width(shape.q_width());
        let dim = padded_dim(shape.head_dim);
        let [wide, prompts, narrow] = kernels::attention_names(dim);
        let processors = self.device.multiprocessors();
        let args = |items: u64| {
            let lists = Args::default().buf(q).buf(&kv.0).buf(&plan.counts).ptr(items).buf(&plan.entries).buf(&plan.tables);
            let shape_args = lists.int(shape.num_heads).int(shape.num_kv_heads).int(shape.head_dim).float(scale(shape));
            shape_args.buf(out).buf(&plan.partials).buf(&plan.finished)
        };
        if plan.is_wide() {
            let grid = [processors * attention::WIDE_BLOCKS, 1, 1];
            self.launch(wide, grid, 128, kernels::wide_shared(dim), args(plan.wide.ptr()).word(0));
        }
        // The narrow walk goes on from what is left for prompts, and begins beside that.
        let shares_prompts = plan.may_share_prompts(rows);
        if shares_prompts {
            self.launch(prompts, [processors * attention::PROMPT_BLOCKS, 1, 1], 128, kernels::prompt_shared(dim), args(plan.prompts.ptr()));
        }
        let grid = [processors * attention::NARROW_BLOCKS, 1, 1];
        self.launch(narrow, grid, 128, kernels::narrow_shared(dim), args(plan.narrow.ptr()).word(shares_prompts.into()));
    }

    fn silu_mul(&self, gate_up: &Buf<f32>, rows: usize, width: usize, out: &mut Buf<bf16>) {
        self.gemm.gated().activate(gate_up.ptr(), rows, width, out.ptr());
    }

    fn gemm_silu_mul(
        &self,
        x: &Buf<bf16>,
        w: &Weight,
        bias: Option<&Buf<f32>>,
        (rows, width): (usize, usize),
        gate_up: &mut Buf<f32>,
        out: &mut Buf<bf16>,
    ) {
        assert_eq!(w.n, 2 * width, "gates and ups");
        assert!(rows * w.ld <= x.len() && rows * row_stride(width) <= out.len(), "{rows} rows by [{}, {}] exceed their buffers", w.n, w.k);
        let call = GatedCall { x: x.ptr(), bias: bias.map(Buf::ptr), rows, out: out.ptr() };
        if !self.gemm.run_gated(w, &call) {
            self.gemm(x, w, bias, rows, Store::Write, gate_up);
            self.silu_mul(gate_up, rows, width, out);
        }
    }

    fn sample(&self, logits: &Buf<f32>, inputs: SampleInputs<'_, Self>, n: usize, state: &mut SamplerState<Self>, out: &mut Buf<Sampled>) {
        self.gemm.sampler().run(logits.ptr(), &inputs, n, state, out);
    }

    fn gemm_sample(
        &self,
        (x, w): (&Buf<bf16>, &Weight),
        logits: &mut Buf<f32>,
        inputs: SampleInputs<'_, Self>,
        [rows, draws]: [usize; 2],
        state: &mut SamplerState<Self>,
        out: &mut Buf<Sampled>,
    ) {
        assert!(rows * w.ld <= x.len() && rows * w.n <= logits.len(), "{rows} rows by [{}, {}] exceed their buffers", w.n, w.k);
        let call = PartsCall { x: x.ptr(), rows, asked: inputs.rows.ptr(), banned: inputs.banned.ptr(), logits: logits.ptr() };
        if inputs.plain && rows == draws && self.gemm.run_sampled(w, &call) {
            return self.gemm.sampler().finish(logits.ptr(), &inputs, [0, draws], state, out);
        }
        self.gemm(x, w, None, rows, Store::Write, logits);
        self.sample(logits, inputs, draws, state, out);
    }

    fn reset_slot(&self, state: &mut SamplerState<Self>, slot: u32, counts_row: Option<u32>, prompt: &[u32], completion: &[u32]) {
        let (p, c) = (prompt.len(), completion.len());
        assert!(p + c <= self.reset_tokens.len(), "a sequence of {} tokens", p + c);
        self.uploads.copy(bytes(prompt), self.reset_tokens.ptr());
        self.uploads.copy(bytes(completion), self.reset_tokens.at(p));
        let args = Args::default().buf(&state.last_tokens).buf(&state.seen).buf(&state.counts).int(state.vocab).word(slot);
        let args = args.word(counts_row.unwrap_or(super::NO_COUNTS)).buf(&self.reset_tokens).int(p).int(c);
        self.launch("reset_slot", [1, 1, 1], 1024, 0, args);
    }

    fn submit(&self, out: &Buf<Sampled>, n: usize) -> Ticket {
        self.downloads.start(out.ptr(), n * size_of::<Sampled>())
    }

    fn wait(&self, ticket: Ticket) -> Vec<Sampled> {
        self.downloads.finish(&ticket, |bytes| {
            let mut sampled = vec![Sampled::default(); bytes.len() / size_of::<Sampled>()];
            // Safety: plain data of the same length.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), sampled.as_mut_ptr().cast(), bytes.len()) };
            sampled
        })
    }

    fn upload_patches(&self, shape: [usize; 2], write: &(dyn Fn(usize, &mut [f32]) + Sync), out: &mut Buf<bf16>) {
        assert!(shape[0] * shape[1] <= out.len(), "{shape:?} values of patches into {}", out.len());
        self.uploads.copy_rounded(shape, write, out.ptr());
    }

    fn rope_vision(&self, qkv: &Buf<f32>, args: RopeVision<'_, Self>, [q, k, v]: [&mut Buf<bf16>; 3]) {
        let RopeVision { bias, rope, shape, rows } = args;
        let args = Args::default().buf(qkv).buf(bias).buf(rope).int(shape.num_heads).int(shape.head_dim);
        self.launch_1d("rope_vision", rows, args.buf(q).buf(k).buf(v));
    }

    fn gemm_rope_vision(
        &self,
        (x, w): (&Buf<bf16>, &Weight),
        qkv: &mut Buf<f32>,
        args: RopeVision<'_, Self>,
        [q, k, v]: [&mut Buf<bf16>; 3],
    ) {
        let RopeVision { bias, rope, shape, rows } = args;
        assert!(rows * w.ld <= x.len() && rows * shape.q_width() <= q.len(), "{rows} rows by [{}, {}] exceed their buffers", w.n, w.k);
        let call = TurnedCall { x: x.ptr(), bias: bias.ptr(), rope: rope.ptr(), rows };
        if !self.gemm.run_turned(w, &call, &Places::Apart { shape, q: q.ptr(), k: k.ptr(), v: v.ptr() }) {
            self.gemm(x, w, None, rows, Store::Write, qkv);
            self.rope_vision(qkv, RopeVision { bias, rope, shape, rows }, [q, k, v]);
        }
    }

    fn segment_attention(&self, args: SegmentAttention<'_, Self>, out: &mut Buf<bf16>) {
        let SegmentAttention { q, k, v, cu_seqlens, num_segments, shape, rows } = args;
        check_width(shape.q_width());
        let (name, shared) = kernels::segment_attention(&self.device.arch(), shape.head_dim);
        let args = Args::default().buf(q).buf(k).buf(v).buf(cu_seqlens).int(num_segments).int(shape.num_heads).int(shape.head_dim);
        self.launch(name, [rows.div_ceil(64), shape.num_heads, 1], 128, shared, args.int(rows).float(scale(shape)).buf(out));
    }

    fn gelu(&self, x: &Buf<f32>, rows: usize, width: usize, out: &mut Buf<bf16>) {
        check_width(width);
        self.launch_1d("gelu", (rows * width).div_ceil(ELEMENTS), Args::default().buf(x).int(rows * width).buf(out));
    }
}

fn scale(shape: HeadShape) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

// The kernels read these layouts.
const _: () = assert!(size_of::<SampleRow>() == 80 && size_of::<Sampled>() == 188);
const _: () = assert!(size_of::<attention::Item>() == 32 && size_of::<attention::Entry>() == 32);
