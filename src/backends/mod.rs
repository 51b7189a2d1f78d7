//! The seam between the model and a device: one method of [`Backend`] is one operation, mostly one kernel launch.
//!
//! Methods write into buffers that the caller owns and allocate nothing, so that a step can be captured once and replayed.
//! Whatever changes between steps lives in buffers at fixed addresses ([`Backend::upload`]); scalars are what a captured step
//! is keyed by (`rows`) or what never changes (shapes, epsilons).
//!
//! Numerics, the same on every backend: the residual stream, norms, softmax, logits and log-softmax are f32; what enters a GEMM
//! is [`Backend::Float`]; GEMMs accumulate in f32 and their outputs stay f32. Sums have one order that does not depend on how
//! many rows a call has, so a token's bits do not depend on its neighbours.

pub mod cpu;
pub mod cuda;

use std::sync::Arc;

use crate::error::Result;

/// Keys of one KV block.
pub const BLOCK_SIZE: usize = 32;
/// Keys that one partial softmax covers, counted from the start of a segment (prompt or completion).
pub const ATTENTION_CHUNK: usize = 256;
/// Keys of one online-softmax update within a chunk.
pub const ATTENTION_TILE: usize = 64;
/// Bans of a row that takes its scores as they come otherwise, at most, for it to be drawn as fast.
pub const FEW_BANS: u32 = 8;
/// Neighbouring entries of the vocabulary of which a draw first chooses one tile, by its mass, then an entry.
pub const DRAW_TILE: usize = 192;
/// Entries that `top` of [`Sampled`] can hold (OpenAI's bound on `top_logprobs`).
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Plain data that lives in device buffers.
pub trait Element: Copy + Default + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for half::bf16 {}
impl Element for u32 {}
impl Element for i32 {}
impl Element for Span {}
impl Element for SampleRow {}
impl Element for Sampled {}

/// Consecutive rows of a step that belong to one sequence, for attention.
///
/// The sequence's keys are two segments: the prompt's (blocks shared by the group) and the completion's own. Row `i` of a prompt
/// span sees `prompt_keys + i` keys of the prompt; row `i` of a completion span sees all `prompt_keys` of the prompt and
/// `own_keys + i` of the completion. Both counts include the row's own key, which the same step writes beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Span {
    pub first_row: u32,
    pub num_rows: u32,
    /// Offset of the prompt's block table in the step's flat list of tables.
    pub prompt_table: u32,
    pub prompt_keys: u32,
    /// Offset of the completion's block table.
    pub own_table: u32,
    /// 0 in a prompt span.
    pub own_keys: u32,
}

/// What one draw needs: where its logits are and how to turn them into a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct SampleRow {
    /// Row of the logits; the first tokens of a group's samples share one row.
    pub logits_row: u32,
    /// Slot that keeps the sequence's last token and its seen tokens.
    pub slot: u32,
    /// What decides the draw (`rng::draw_words`): the first two words choose a tile, the third an entry of it.
    pub random: [u32; 4],
    /// 0 is greedy: argmax, lowest id on ties.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// Row of the token counts that presence and frequency penalties read; `NO_COUNTS` when there are none.
    pub counts_row: u32,
    /// Range of the step's `banned` list: ids that can't be drawn.
    pub banned_start: u32,
    pub banned_len: u32,
    /// Range of the step's `bias_ids` / `bias_values`.
    pub bias_start: u32,
    pub bias_len: u32,
    /// Alternatives to report, at most [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: u32,
    /// Score this token instead of drawing one; `NO_TOKEN` draws.
    pub forced: u32,
}

impl SampleRow {
    /// Whether the row only draws, by its temperature, from scores as they came, of which few are banned: no filters, no alternatives.
    pub fn is_plain(&self) -> bool {
        let draws = self.temperature != 0.0;
        let filters = draws && (self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0);
        let counts = self.counts_row != NO_COUNTS && (self.presence_penalty != 0.0 || self.frequency_penalty != 0.0);
        let changes = counts || self.bias_len > 0 || self.repetition_penalty != 1.0;
        let few_bans = self.banned_len <= if draws { FEW_BANS } else { 0 };
        few_bans && !filters && !changes && self.top_logprobs == 0 && self.forced == NO_TOKEN
    }
}

pub const NO_COUNTS: u32 = u32::MAX;
pub const NO_TOKEN: u32 = u32::MAX;
/// Place in the cache of a row that only fills up a step.
pub const NO_SLOT: u32 = u32::MAX;

/// Bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub free: usize,
    pub total: usize,
}

/// What the launches of one kind took in decode steps of so many rows; 0 rows: in everything else.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchTime {
    pub rows: u64,
    pub launch: String,
    pub calls: u64,
    pub ms: f64,
    /// Steps of so many rows that were measured.
    pub steps: u64,
}

/// What one draw gives. All log-probabilities are natural logarithms.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Sampled {
    pub token: u32,
    /// log softmax(logits / temperature) over the full vocabulary at the token (temperature 1 when greedy).
    pub logp: f32,
    /// The same at temperature 1.
    pub logp_raw: f32,
    /// Renormalised over what penalties, bias, bans, top-k, top-p and min-p left: 0 when greedy.
    pub logp_sampled: f32,
    /// Entropy of softmax(logits / temperature) over the full vocabulary.
    pub entropy: f32,
    /// 1 when a logit was not finite: nothing was drawn.
    pub corrupt: u32,
    pub num_top: u32,
    /// Most likely tokens by `logp_raw`, descending, lowest id first on ties.
    pub top_ids: [u32; MAX_TOP_LOGPROBS],
    pub top_logps: [f32; MAX_TOP_LOGPROBS],
}

impl Default for Sampled {
    fn default() -> Self {
        Sampled {
            token: 0,
            logp: 0.0,
            logp_raw: 0.0,
            logp_sampled: 0.0,
            entropy: 0.0,
            corrupt: 0,
            num_top: 0,
            top_ids: [0; MAX_TOP_LOGPROBS],
            top_logps: [0.0; MAX_TOP_LOGPROBS],
        }
    }
}

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl HeadShape {
    /// Width of the fused projection: queries, keys, values.
    pub fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }
}

/// A matrix `[rows, cols]` of a checkpoint, row-major, as the file has it.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub rows: usize,
    pub cols: usize,
    pub data: FloatData<'a>,
}

/// Values of a checkpoint in the type they were saved in.
#[derive(Clone, Copy)]
pub enum FloatData<'a> {
    F32(&'a [f32]),
    F16(&'a [half::f16]),
    Bf16(&'a [half::bf16]),
}

impl FloatData<'_> {
    pub fn len(&self) -> usize {
        match self {
            FloatData::F32(v) => v.len(),
            FloatData::F16(v) => v.len(),
            FloatData::Bf16(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, i: usize) -> f32 {
        match self {
            FloatData::F32(v) => v[i],
            FloatData::F16(v) => v[i].to_f32(),
            FloatData::Bf16(v) => v[i].to_f32(),
        }
    }
}

/// Type of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    pub fn bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }
}

/// A contiguous tensor in another process's memory on the same device.
#[derive(Clone, Debug)]
pub struct SharedTensor {
    /// As the driver exported its allocation.
    pub handle: [u8; 64],
    /// Bytes from the allocation's start.
    pub offset: usize,
    pub dtype: FloatType,
    pub len: usize,
}

/// What a device found in a shared tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedCheck {
    pub finite: bool,
    /// Depends on every bit and its place.
    pub checksum: u64,
}

/// Values that a device finds in its memory, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct DeviceValues {
    pub address: u64,
    pub dtype: FloatType,
    pub len: usize,
}

/// What opens other processes' memory on a device, on any thread and beside the engine's work.
pub trait SharedDoor: Send + Sync {
    /// # Errors
    ///
    /// Another device than the one with this UUID, memory that can't be opened, tensors that exceed it.
    fn open(self: Arc<Self>, device_uuid: &[u8; 16], tensors: &[SharedTensor]) -> Result<Box<dyn SharedMemory>>;
}

/// Open memory of another process; dropping it closes.
pub trait SharedMemory: Send + Sync {
    /// Looks at every value; `rounds[i]`: tensor `i` has to be finite as [`Backend::Float`], too.
    fn check(&self, rounds: &[bool]) -> Vec<SharedCheck>;
    /// Tensor `index` as f32 on the host.
    fn read(&self, index: usize) -> Vec<f32>;
    /// Tensor `index` where it is.
    fn values(&self, index: usize) -> DeviceValues;
}

/// What a GEMM does with its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `out = x · wᵀ (+ bias)`
    Write,
    /// `out += x · wᵀ (+ bias)`: the product is summed first, then added
    Add,
}

/// Ids of a step's rows: given by the host, or the last token that a slot drew.
pub struct TokenSource<'a, B: Backend> {
    pub ids: &'a B::Buf<u32>,
    /// Slot whose last token is the row's id; `NO_TOKEN` takes `ids`.
    pub slots: &'a B::Buf<u32>,
    pub last_tokens: &'a B::Buf<u32>,
}

/// What `sample` reads beside the logits.
pub struct SampleInputs<'a, B: Backend> {
    /// Whether row `i` of every `i` draws from logits `i` and [`SampleRow::is_plain`]. A captured step is keyed by it.
    pub plain: bool,
    pub rows: &'a B::Buf<SampleRow>,
    pub banned: &'a B::Buf<u32>,
    pub bias_ids: &'a B::Buf<u32>,
    pub bias_values: &'a B::Buf<f32>,
}

/// Memory of the sampler between steps, by slot; lives on the device so that the next step can start before the host looks.
pub struct SamplerState<B: Backend> {
    /// `[slots]`
    pub last_tokens: B::Buf<u32>,
    /// Bitmap of prompt and completion tokens, `[slots, ceil(vocab / 32)]`.
    pub seen: B::Buf<u32>,
    /// How often each token was drawn, `[counts rows, vocab]`.
    pub counts: B::Buf<u32>,
    pub vocab: usize,
}

impl<B: Backend> SamplerState<B> {
    pub fn new(backend: &B, slots: usize, counts_rows: usize, vocab: usize) -> Result<Self> {
        Ok(SamplerState {
            last_tokens: backend.alloc(slots)?,
            seen: backend.alloc(slots * vocab.div_ceil(32))?,
            counts: backend.alloc(counts_rows * vocab)?,
            vocab,
        })
    }
}

/// What decides the launches of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    pub rows: usize,
    /// Whether all draws are plain, as [`SampleInputs`] has it.
    pub plain: bool,
}

/// A device. See the module text for what every method keeps to; shapes are row-major.
pub trait Backend: Sized + Send + 'static {
    /// What enters GEMMs and the KV cache.
    type Float: Element;
    type Buf<T: Element>: Send;
    /// A GEMM operand `[n, k]`, laid out for the device.
    type Weight: Send;
    /// Keys and values of one layer: `num_blocks` blocks of [`BLOCK_SIZE`] keys.
    type Kv: Send;
    /// A step's spans and tables, laid out for the attention kernel.
    type AttentionPlan: Send;
    /// Results on their way to the host.
    type Ticket: Send;

    /// What `/metrics` and the start line call it.
    fn name(&self) -> String;

    /// What a device with memory of its own has of it; `None`: the host's.
    fn memory(&self) -> Option<Memory> {
        None
    }

    // Memory: at load only.
    fn alloc<T: Element>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// The parts stacked along their rows (fused projections), as one GEMM operand.
    fn weight(&self, parts: &[Matrix<'_>]) -> Result<Self::Weight>;
    /// Writes rows `first_row..` of a weight anew where they are: its address stays, nothing is allocated on a device. The source
    /// may change when this returns.
    fn rewrite_weight(&self, weight: &mut Self::Weight, first_row: usize, rows: Matrix<'_>);
    /// Copies a weight of the same shape where it is.
    fn copy_weight(&self, from: &Self::Weight, to: &mut Self::Weight);
    /// What opens memory of other processes; `None` where it is not the device's.
    ///
    /// # Errors
    ///
    /// No memory for it.
    fn shared_door(&self) -> Result<Option<Arc<dyn SharedDoor>>> {
        Ok(None)
    }
    /// As [`Backend::rewrite_weight`], from what [`Backend::shared_door`] opened; it is read until [`Backend::synchronize`] returns.
    fn rewrite_shared(&self, _weight: &mut Self::Weight, _first_row: usize, _rows: usize, _values: DeviceValues) {
        unreachable!("nothing was opened on this device");
    }
    /// Returns once the device has done all that it was asked for.
    fn synchronize(&self) {}
    /// Forgets captured steps: a buffer that they name is about to go.
    fn forget_graphs(&self) {}
    /// Values from one row to the next where [`Backend::silu_mul`] writes rows of `width`; what lies between stays zero.
    fn row_stride(&self, width: usize) -> usize {
        width
    }
    /// Bytes of one KV block of one layer.
    fn kv_block_bytes(&self, shape: HeadShape) -> usize;
    fn alloc_kv(&self, num_blocks: usize, shape: HeadShape) -> Result<Self::Kv>;
    fn alloc_attention_plan(&self, max_spans: usize, max_rows: usize, max_table: usize, shape: HeadShape) -> Result<Self::AttentionPlan>;

    /// Copies to the start of `dst`.
    fn upload<T: Element>(&self, src: &[T], dst: &mut Self::Buf<T>);
    /// Runs uploads of a step, which may then travel as one.
    fn together(&self, uploads: impl FnOnce(&Self)) {
        uploads(self);
    }
    /// Copies the start of `src`; waits for the device. For tests and diagnostics.
    fn download<T: Element>(&self, src: &Self::Buf<T>, dst: &mut [T]);
    /// `spans` index `tables` (block numbers); the plan must not be read by a step still running.
    fn plan_attention(&self, spans: &[Span], tables: &[u32], plan: &mut Self::AttentionPlan);

    /// Rows to which a decode step is padded, so that few different ones are captured.
    fn step_rows(&self, rows: usize) -> usize {
        rows
    }
    /// The numbers of rows up to `most` whose decode steps a device captures, ascending.
    fn captured_rows(&self, _most: usize) -> Vec<usize> {
        Vec::new()
    }
    /// Runs a step that is always the same for its key: a device may capture it once and replay it. The closure holds backend calls
    /// only, since host code in it would not run on replay.
    fn graphed(&self, _key: StepKey, step: impl FnOnce(&Self)) {
        step(self);
    }

    /// What the device spent where since the last call, if it was told to measure that.
    fn launch_times(&self) -> Vec<LaunchTime> {
        Vec::new()
    }

    // Decoder.
    /// `out[r] = table[id(r)]`, f32 `[rows, width]`.
    fn embed(&self, source: TokenSource<'_, Self>, table: &Self::Weight, rows: usize, out: &mut Self::Buf<f32>);
    /// `out[pairs[2i + 1]] = src[pairs[2i]]` for `i < n`: media features to their rows.
    fn scatter_rows(&self, src: &Self::Buf<f32>, pairs: &Self::Buf<u32>, n: usize, width: usize, out: &mut Self::Buf<f32>);
    /// `out[i] = src[index[i]]` for `i < n`.
    fn gather_rows(&self, src: &Self::Buf<f32>, index: &Self::Buf<u32>, n: usize, width: usize, out: &mut Self::Buf<f32>);
    /// `out = weight · x / sqrt(mean(x²) + eps)`; rounded to `Float` once, at the end.
    fn rms_norm(&self, x: &Self::Buf<f32>, weight: &Self::Buf<f32>, eps: f32, rows: usize, width: usize, out: &mut Self::Buf<Self::Float>);
    /// `x[rows, k] · wᵀ[k, n] (+ bias[n])` into `out[rows, n]`; each output is one chain over ascending k whatever `rows` is.
    fn gemm(
        &self,
        x: &Self::Buf<Self::Float>,
        w: &Self::Weight,
        bias: Option<&Self::Buf<f32>>,
        rows: usize,
        store: Store,
        out: &mut Self::Buf<f32>,
    );
    /// Cosines and sines `[rows, 2, half]` of `positions[axes, rows][axis[f]] · inv_freq[f]`, `half = inv_freq.len()`.
    /// `positions` is axis-major with `rows` entries an axis.
    fn rope_table(
        &self,
        positions: &Self::Buf<i32>,
        inv_freq: &Self::Buf<f32>,
        axis: &Self::Buf<u32>,
        half: usize,
        rows: usize,
        out: &mut Self::Buf<f32>,
    );
    /// Adds the bias to `qkv[rows, qkv_width]`, turns queries and keys (pairs are `i`, `i + head_dim / 2`), writes queries
    /// `[rows, heads, head_dim]` and puts keys and values at `slot_mapping[row]` (block · 32 + offset) of the cache;
    /// [`NO_SLOT`] puts them nowhere.
    fn rope_qkv(&self, qkv: &Self::Buf<f32>, args: RopeQkv<'_, Self>, q: &mut Self::Buf<Self::Float>, kv: &mut Self::Kv);
    /// Queries, keys and values of `x · wᵀ`, as [`Backend::gemm`] and [`Backend::rope_qkv`] give them one after the other; `qkv` is room
    /// for what lies between, where a device needs that.
    fn gemm_rope_qkv(
        &self,
        (x, w): (&Self::Buf<Self::Float>, &Self::Weight),
        qkv: &mut Self::Buf<f32>,
        args: RopeQkv<'_, Self>,
        q: &mut Self::Buf<Self::Float>,
        kv: &mut Self::Kv,
    ) {
        self.gemm(x, w, None, args.rows, Store::Write, qkv);
        self.rope_qkv(qkv, args, q, kv);
    }
    /// Causal attention of a step over the paged cache, scale `head_dim^-0.5`, in the one order: per segment chunks of
    /// [`ATTENTION_CHUNK`] keys from its start, within a chunk an online softmax over tiles of [`ATTENTION_TILE`], unnormalised
    /// weights rounded to `Float`, chunks merged in ascending order in f32. `rows`: of the step.
    fn attention(
        &self,
        q: &Self::Buf<Self::Float>,
        kv: &Self::Kv,
        plan: &Self::AttentionPlan,
        shape: HeadShape,
        rows: usize,
        out: &mut Self::Buf<Self::Float>,
    );
    /// `silu(gate) · up` of `gate_up[rows, 2 · width]`, gate first.
    fn silu_mul(&self, gate_up: &Self::Buf<f32>, rows: usize, width: usize, out: &mut Self::Buf<Self::Float>);
    /// `silu(gate) · up` of `x · wᵀ (+ bias)`, as [`Backend::gemm`] and [`Backend::silu_mul`] give it one after the other; `gate_up` is
    /// room for what lies between, where a device needs that.
    fn gemm_silu_mul(
        &self,
        x: &Self::Buf<Self::Float>,
        w: &Self::Weight,
        bias: Option<&Self::Buf<f32>>,
        (rows, width): (usize, usize),
        gate_up: &mut Self::Buf<f32>,
        out: &mut Self::Buf<Self::Float>,
    ) {
        self.gemm(x, w, bias, rows, Store::Write, gate_up);
        self.silu_mul(gate_up, rows, width, out);
    }
    /// Draws or scores `n` tokens from `logits[.., vocab]`; updates the sampler's state of every slot that drew.
    fn sample(
        &self,
        logits: &Self::Buf<f32>,
        inputs: SampleInputs<'_, Self>,
        n: usize,
        state: &mut SamplerState<Self>,
        out: &mut Self::Buf<Sampled>,
    );
    /// Draws from `x · wᵀ`, as [`Backend::gemm`] and [`Backend::sample`] do one after the other; `rows`: of x, of draws; `logits` is room for
    /// what lies between, where a device needs that.
    fn gemm_sample(
        &self,
        (x, w): (&Self::Buf<Self::Float>, &Self::Weight),
        logits: &mut Self::Buf<f32>,
        inputs: SampleInputs<'_, Self>,
        rows: [usize; 2],
        state: &mut SamplerState<Self>,
        out: &mut Self::Buf<Sampled>,
    ) {
        let [rows, draws] = rows;
        self.gemm(x, w, None, rows, Store::Write, logits);
        self.sample(logits, inputs, draws, state, out);
    }
    /// Prepares a slot for a new or resumed sequence: its last token, seen tokens and, when it has one, its counts row.
    fn reset_slot(&self, state: &mut SamplerState<Self>, slot: u32, counts_row: Option<u32>, prompt: &[u32], completion: &[u32]);

    /// Ends a step: its first `n` draws start towards the host.
    fn submit(&self, out: &Self::Buf<Sampled>, n: usize) -> Self::Ticket;
    fn wait(&self, ticket: Self::Ticket) -> Vec<Sampled>;

    // Vision tower.
    /// So many patches of so many values into the first rows of `out`, rounded to `Float`; `write` makes the row of a number.
    fn upload_patches(&self, shape: [usize; 2], write: &(dyn Fn(usize, &mut [f32]) + Sync), out: &mut Self::Buf<Self::Float>);
    /// As [`Backend::rope_qkv`] for the tower: of `qkv[rows, 3, heads, head_dim]` queries, keys and values `[rows, heads, head_dim]`, no
    /// cache.
    fn rope_vision(&self, qkv: &Self::Buf<f32>, args: RopeVision<'_, Self>, out: [&mut Self::Buf<Self::Float>; 3]);
    /// As [`Backend::gemm_rope_qkv`] for the tower.
    fn gemm_rope_vision(
        &self,
        (x, w): (&Self::Buf<Self::Float>, &Self::Weight),
        qkv: &mut Self::Buf<f32>,
        args: RopeVision<'_, Self>,
        out: [&mut Self::Buf<Self::Float>; 3],
    ) {
        self.gemm(x, w, None, args.rows, Store::Write, qkv);
        self.rope_vision(qkv, args, out);
    }
    /// Full attention within each segment `cu_seqlens[i]..cu_seqlens[i + 1]` of rows (`num_segments + 1` entries).
    fn segment_attention(&self, args: SegmentAttention<'_, Self>, out: &mut Self::Buf<Self::Float>);
    /// Exact (erf) GELU, rounded to `Float`.
    fn gelu(&self, x: &Self::Buf<f32>, rows: usize, width: usize, out: &mut Self::Buf<Self::Float>);
}

pub struct RopeQkv<'a, B: Backend> {
    pub bias: &'a B::Buf<f32>,
    /// `[rows, 2, head_dim / 2]`
    pub rope: &'a B::Buf<f32>,
    pub slot_mapping: &'a B::Buf<u32>,
    pub shape: HeadShape,
    pub rows: usize,
}

pub struct RopeVision<'a, B: Backend> {
    pub bias: &'a B::Buf<f32>,
    pub rope: &'a B::Buf<f32>,
    pub shape: HeadShape,
    pub rows: usize,
}

pub struct SegmentAttention<'a, B: Backend> {
    pub q: &'a B::Buf<B::Float>,
    pub k: &'a B::Buf<B::Float>,
    pub v: &'a B::Buf<B::Float>,
    pub cu_seqlens: &'a B::Buf<u32>,
    pub num_segments: usize,
    pub shape: HeadShape,
    pub rows: usize,
}
