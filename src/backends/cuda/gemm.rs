//! GEMMs through cublasLt: bf16 operands, f32 sums and outputs, no split-K, and one order of summation for every number of rows.
//!
//! Which algorithm is fastest depends on the number of rows, so there is a choice for each power of two. An algorithm is admitted
//! only if its rows have the bits of the reference algorithm's; that is tried on random inputs when a weight of a new shape is
//! loaded. Nothing is timed then: `kernels/gemm.tsv` says which algorithm was fastest among the admitted when the table was made, by
//! `grouper kernels tune`; where it has no row, cublasLt's own order decides. A few rows go to a kernel of our own, admitted likewise.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::{result as lt, sys};
use half::bf16;

use super::device::{Buf, Device};
use super::few::{self, Few};
use super::gated::{Gated, GatedCall};
use super::gemm_table::{Algorithm, Row, Table};
use super::kernels::Kernels;
use super::libs;
use super::sampler::{PartsCall, Sampler};
use super::staging::Uploads;
use super::trial::{TRIAL_ROWS, Trial};
use super::turned::{Places, Turned, TurnedCall};
use super::weight::Weight;
use crate::error::{Error, Result};

/// Rows of the largest choice; more rows use the same.
const MAX_BUCKET: usize = 4096;
/// Values of the largest output that a choice is tried with.
const MAX_TRIAL: usize = 256 << 20;
/// Algorithms that cublasLt is asked for, and when they are timed.
const CANDIDATES: usize = 8;
const TUNED_CANDIDATES: usize = 64;
/// Launches that are timed at once, and how often.
const TIMED: usize = 20;
const TIMINGS: usize = 3;
/// Bytes of copies of a weight that are used in turn, so that none is found in the device's cache.
const TIMED_BYTES: usize = 256 << 20;

pub struct Gemm {
    device: Arc<Device>,
    few: Few,
    gated: Gated,
    turned: Turned,
    sampler: Sampler,
    handle: sys::cublasLtHandle_t,
    preference: sys::cublasLtMatmulPreference_t,
    plain: sys::cublasLtMatmulDesc_t,
    biased: sys::cublasLtMatmulDesc_t,
    plans: RefCell<Vec<Plan>>,
    table: Table,
    tune: bool,
}

// Safety: cublasLt's handles are not tied to a thread; the cell is used by whoever owns the backend.
unsafe impl Send for Gemm {}

/// Everything about a shape `[n, k]` but the number of rows.
struct Plan {
    n: usize,
    k: usize,
    layouts: Layouts,
    /// By bucket, without and with a bias.
    algorithms: [Vec<sys::cublasLtMatmulAlgo_t>; 2],
    choices: Vec<Choice>,
    /// Rows up to which our own kernel has the reference's bits; 0: none.
    few: usize,
    /// Whether our own kernel that activates has the bits of product and activation, without and with a bias.
    gated: [bool; 2],
    /// The same for our own kernels that turn queries and keys, with keys in a cache and in rows of their own.
    turned: [bool; 2],
    /// The same for our own kernels that make parts of softmaxes.
    sampled: bool,
}

/// What was admitted for a bucket, for reports.
#[derive(Clone, Debug)]
pub struct Choice {
    pub row: Row,
    /// Place among the candidates, of which a row of the table is the first; `None`: none had the reference's bits, the reference
    /// itself is used.
    pub admitted: Option<usize>,
    pub candidates: usize,
    /// Microseconds of the choice, of the first admitted and of the fastest, admitted or not; when tuning.
    pub times: Option<[f32; 3]>,
}

struct Layouts {
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

/// Operands of a call: addresses, and whether the product is added.
#[derive(Clone, Copy)]
pub struct Call {
    pub w: u64,
    pub x: u64,
    pub bias: Option<u64>,
    pub out: u64,
    pub rows: usize,
    pub add: bool,
}

impl Gemm {
    /// `tune`: time what is admitted and take the fastest.
    pub fn new(device: &Arc<Device>, kernels: &Kernels, tune: bool) -> Result<Self> {
        libs::require_cublaslt()?;
        device.bind();
        let failed = |e: lt::CublasError| Error::Setup(format!("cublasLt does not start: {e}"));
        let desc = |epilogue: sys::cublasLtEpilogue_t| -> Result<sys::cublasLtMatmulDesc_t> {
            let desc =
                lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F).map_err(failed)?;
            use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_EPILOGUE as EPILOGUE, CUBLASLT_MATMUL_DESC_TRANSA as TRANSA};
            // CUBLAS_OP_T, which the binding of cublasLt does not name.
            let transposed = 1i32;
            // Safety: each attribute is given its own type.
            unsafe {
                lt::set_matmul_desc_attribute(desc, TRANSA, (&raw const transposed).cast(), size_of_val(&transposed)).map_err(failed)?;
                lt::set_matmul_desc_attribute(desc, EPILOGUE, (&raw const epilogue).cast(), size_of_val(&epilogue)).map_err(failed)?;
            }
            Ok(desc)
        };
        let handle = lt::create_handle().map_err(failed)?;
        let preference = lt::create_matmul_pref().map_err(failed)?;
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as WORKSPACE, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as REDUCTIONS,
        };
        let (workspace, reductions) = (0u64, 0u32);
        // Safety: as above.
        unsafe {
            lt::set_matmul_pref_attribute(preference, WORKSPACE, (&raw const workspace).cast(), 8).map_err(failed)?;
            lt::set_matmul_pref_attribute(preference, REDUCTIONS, (&raw const reductions).cast(), 4).map_err(failed)?;
        }
        Ok(Gemm {
            device: device.clone(),
            few: Few::new(device, kernels),
            gated: Gated::new(device, kernels),
            turned: Turned::new(device, kernels),
            sampler: Sampler::new(device, kernels)?,
            handle,
            preference,
            plain: desc(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT)?,
            biased: desc(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?,
            plans: RefCell::default(),
            table: Table::of(&device.arch(), Self::version()),
            tune,
        })
    }

    pub fn version() -> usize {
        // Safety: no arguments; the library is there once a `Gemm` is.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// `out = x · wᵀ (+ bias)`, or `+=`. Rows of `x` are `w.ld` apart.
    pub fn run(&self, w: &Weight, x: u64, bias: Option<u64>, rows: usize, add: bool, out: u64) {
        if rows == 0 {
            return;
        }
        let plans = self.plans.borrow();
        let plan = &plans[w.plan];
        let call = Call { w: w.ptr(), x, bias, out, rows, add };
        if bias.is_none() && rows <= plan.few {
            return self.few.launch(w, &call);
        }
        let algorithms = &plan.algorithms[usize::from(bias.is_some())];
        let algorithm = &algorithms[bucket(rows).min(algorithms.len() - 1)];
        if let Err(e) = self.launch(&plan.layouts, call, algorithm) {
            panic!("a GEMM of {rows} rows by [{}, {}]: {e}", plan.n, plan.k);
        }
        self.device.launched(|| format!("gemm [{}, {}]", plan.n, plan.k));
    }

    fn launch(&self, layouts: &Layouts, call: Call, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<(), lt::CublasError> {
        self.device.bind();
        layouts.set_rows(call.rows)?;
        let (alpha, beta) = (1f32, if call.add { 1f32 } else { 0f32 });
        let desc = self.desc(call.bias)?;
        // Safety: layouts and descriptor are alive, addresses are of buffers that hold what the layouts say.
        unsafe {
            lt::matmul(
                self.handle,
                desc,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                call.w as *const c_void,
                layouts.w,
                call.x as *const c_void,
                layouts.x,
                call.out as *const c_void,
                layouts.out,
                call.out as *mut c_void,
                layouts.out,
                algorithm,
                std::ptr::null_mut(),
                0,
                self.device.stream().cast(),
            )
        }
    }

    fn desc(&self, bias: Option<u64>) -> Result<sys::cublasLtMatmulDesc_t, lt::CublasError> {
        let Some(bias) = bias else { return Ok(self.plain) };
        let pointer = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        // Safety: the attribute is a pointer.
        unsafe { lt::set_matmul_desc_attribute(self.biased, pointer, (&raw const bias).cast(), 8)? };
        Ok(self.biased)
    }

    /// Chooses algorithms for a weight's shape, if it is the first of that shape. Takes and frees memory.
    ///
    /// # Errors
    ///
    /// cublasLt has nothing for the shape, or no algorithm whose rows agree.
    pub fn prepare(&self, w: &mut Weight, uploads: &Uploads) -> Result<()> {
        let known = self.plans.borrow().iter().position(|plan| (plan.n, plan.k) == (w.n, w.k));
        w.plan = match known {
            Some(known) => known,
            None => {
                let plan = self.choose(w, uploads)?;
                self.plans.borrow_mut().push(plan);
                self.plans.borrow().len() - 1
            }
        };
        Ok(())
    }

    fn choose(&self, w: &Weight, uploads: &Uploads) -> Result<Plan> {
        let failed = |e: lt::CublasError| Error::Setup(format!("a GEMM by [{}, {}]: cublasLt: {e}", w.n, w.k));
        let layouts = Layouts::new(w).map_err(failed)?;
        let largest = MAX_BUCKET.min((MAX_TRIAL / w.n).max(1).next_power_of_two() / 2).max(TRIAL_ROWS);
        let trial = Trial::new(&self.device, uploads, w, largest)?;
        let (algorithms, choices) = ([Vec::new(), Vec::new()], Vec::new());
        let mut plan = Plan { n: w.n, k: w.k, layouts, algorithms, choices, few: 0, gated: [false; 2], turned: [false; 2], sampled: false };
        for bias in [false, true] {
            let bias_at = bias.then(|| trial.bias.ptr());
            let call = |rows| Call { w: w.ptr(), x: trial.x.ptr(), bias: bias_at, out: trial.out.ptr(), rows, add: false };
            let reference =
                *self.candidates(&plan.layouts, bias_at, TRIAL_ROWS).map_err(failed)?.first().ok_or_else(|| {
                    Error::Setup(format!("cublasLt {} has no algorithm for a GEMM by [{}, {}]", Self::version(), w.n, w.k))
                })?;
            self.launch(&plan.layouts, call(TRIAL_ROWS), &reference).map_err(failed)?;
            let expected = trial.read(0, TRIAL_ROWS, w.n);
            // While the trial still holds the reference's rows.
            plan.gated[usize::from(bias)] = self.gated.takes(w) && trial.gated_agrees(&self.gated, w, bias_at, largest)?;
            if !bias {
                plan.turned = trial.turned_agree(&self.turned, uploads, w, largest)?;
                plan.sampled = self.sampler.takes(w) && trial.sampled_agree(&self.sampler, uploads, w, largest)?;
                let admits = |rows: &usize| {
                    self.few.launch(w, &call(*rows));
                    (0..*rows).all(|row| trial.row_agrees(row, w.n, &expected))
                };
                plan.few = (1..=few::MAX_ROWS).take_while(|rows| self.few.takes(w, *rows)).take_while(admits).last().unwrap_or(0);
            }
            for rows in (0..).map(|bucket| 1usize << bucket).take_while(|rows| *rows <= largest) {
                let place = Row { n: w.n, k: w.k, rows, bias, algorithm: Algorithm(reference.data) };
                let known = if self.tune { None } else { self.table.find(&place) };
                let known = known.map(|algorithm| sys::cublasLtMatmulAlgo_t { data: algorithm.0 });
                let mut candidates: Vec<_> = known.into_iter().collect();
                candidates.extend(self.candidates(&plan.layouts, bias_at, rows).map_err(failed)?);
                let admits = |candidate: &sys::cublasLtMatmulAlgo_t| {
                    self.launch(&plan.layouts, call(rows), candidate).is_ok() && trial.rows_agree(rows, w.n, &expected)
                };
                let (admitted, times) = match self.tune {
                    false => (candidates.iter().position(admits), None),
                    true => self.fastest(&plan.layouts, &call(rows), w, &candidates, admits)?,
                };
                if admitted.is_none() {
                    self.launch(&plan.layouts, call(rows), &reference).map_err(failed)?;
                    if !trial.rows_agree(rows, w.n, &expected) {
                        return Err(Error::Setup(format!(
                            "cublasLt {}: of {} algorithms for {rows} rows by [{}, {}] none sums as for {TRIAL_ROWS} rows",
                            Self::version(),
                            candidates.len(),
                            w.n,
                            w.k
                        )));
                    }
                }
                let algorithm = admitted.map_or(reference, |i| candidates[i]);
                plan.algorithms[usize::from(bias)].push(algorithm);
                let row = Row { algorithm: Algorithm(algorithm.data), ..place };
                plan.choices.push(Choice { row, admitted, candidates: candidates.len(), times });
            }
        }
        Ok(plan)
    }

    /// The fastest of the admitted candidates, with its time, the first one's and the fastest of all.
    fn fastest(
        &self,
        layouts: &Layouts,
        call: &Call,
        w: &Weight,
        candidates: &[sys::cublasLtMatmulAlgo_t],
        admits: impl Fn(&sys::cublasLtMatmulAlgo_t) -> bool,
    ) -> Result<(Option<usize>, Option<[f32; 3]>)> {
        let copies = (TIMED_BYTES / w.bytes()).clamp(1, TIMED);
        let spare = (1..copies).map(|_| Buf::<bf16>::new(&self.device, w.bytes() / size_of::<bf16>())).collect::<Result<Vec<_>>>()?;
        let operands: Vec<u64> = spare.iter().map(Buf::ptr).chain([w.ptr()]).collect();
        let (mut chosen, mut first, mut fastest) = (None, None, f32::MAX);
        for (i, candidate) in candidates.iter().enumerate() {
            let admitted = admits(candidate);
            let mut best = f32::MAX;
            for _ in 0..TIMINGS {
                let launches = || (0..TIMED).all(|j| self.launch(layouts, Call { w: operands[j % copies], ..*call }, candidate).is_ok());
                let (ok, ms) = self.device.time(launches);
                if ok {
                    best = best.min(ms * 1e3 / TIMED as f32);
                }
            }
            fastest = fastest.min(best);
            if admitted {
                first = first.or(Some(best));
                if chosen.is_none_or(|(_, time)| best < time) {
                    chosen = Some((i, best));
                }
            }
        }
        Ok((chosen.map(|(i, _)| i), chosen.zip(first).map(|((_, time), first)| [time, first, fastest])))
    }

    /// Algorithms for a number of rows, best first by cublasLt's own estimate, none of which splits the sum.
    fn candidates(&self, layouts: &Layouts, bias: Option<u64>, rows: usize) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, lt::CublasError> {
        layouts.set_rows(rows)?;
        let desc = self.desc(bias)?;
        // Safety: plain data that cublasLt fills; zero is a valid state of it.
        let mut results: [sys::cublasLtMatmulHeuristicResult_t; TUNED_CANDIDATES] = unsafe { std::mem::zeroed() };
        let wanted = if self.tune { TUNED_CANDIDATES } else { CANDIDATES };
        let mut found = 0;
        // Safety: descriptors are alive, the array has room for what is asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                layouts.w,
                layouts.x,
                layouts.out,
                layouts.out,
                self.preference,
                wanted as i32,
                results.as_mut_ptr(),
                &mut found,
            )
        };
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        status.result()?;
        let usable = |r: &&sys::cublasLtMatmulHeuristicResult_t| {
            r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && r.workspaceSize == 0 && splits(&r.algo) <= 1
        };
        Ok(results[..found as usize].iter().filter(usable).map(|r| r.algo).collect())
    }

    pub fn gated(&self) -> &Gated {
        &self.gated
    }

    /// Product and activation in one, if that was admitted for the weight.
    pub fn run_gated(&self, w: &Weight, call: &GatedCall) -> bool {
        let admitted = self.plans.borrow()[w.plan].gated[usize::from(call.bias.is_some())];
        if admitted && call.rows > 0 {
            self.gated.launch(w, call);
        }
        admitted
    }

    /// Queries, keys and values in one, if that was admitted for the weight.
    pub fn run_turned(&self, w: &Weight, call: &TurnedCall, places: &Places) -> bool {
        let sort = usize::from(matches!(places, Places::Apart { .. }));
        let admitted = self.plans.borrow()[w.plan].turned[sort] && self.turned.takes(places);
        if admitted && call.rows > 0 {
            self.turned.launch(w, call, places);
        }
        admitted
    }

    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Parts of softmaxes in place of logits, if that was admitted for the weight and is worth it.
    pub fn run_sampled(&self, w: &Weight, call: &PartsCall) -> bool {
        let plan = &self.plans.borrow()[w.plan];
        let admitted = plan.sampled && call.rows > plan.few && self.sampler.has_room(w, call.rows);
        if admitted {
            self.sampler.launch_parts_of_product(w, call);
        }
        admitted
    }

    /// Shapes `[n, k]` so far, and whether they make parts of softmaxes.
    pub fn sampled_shapes(&self) -> Vec<([usize; 2], bool)> {
        self.plans.borrow().iter().map(|plan| ([plan.n, plan.k], plan.sampled)).collect()
    }

    /// Shapes `[n, k]` so far, and whether they make queries, keys and values in one, with a cache and without.
    pub fn turned_shapes(&self) -> Vec<([usize; 2], [bool; 2])> {
        self.plans.borrow().iter().map(|plan| ([plan.n, plan.k], plan.turned)).collect()
    }

    /// Shapes `[n, k]` so far, and whether their products are activated where they are summed, without and with a bias.
    pub fn gated_shapes(&self) -> Vec<([usize; 2], [bool; 2])> {
        self.plans.borrow().iter().map(|plan| ([plan.n, plan.k], plan.gated)).collect()
    }

    /// Shapes `[n, k]` so far, and up to how many rows our own kernel takes of them.
    pub fn few(&self) -> Vec<([usize; 2], usize)> {
        self.plans.borrow().iter().map(|plan| ([plan.n, plan.k], plan.few)).collect()
    }

    /// What was admitted so far.
    pub fn choices(&self) -> Vec<Choice> {
        self.plans.borrow().iter().flat_map(|plan| plan.choices.iter().cloned()).collect()
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.device.bind();
        // Safety: each was created once.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.plain);
            let _ = lt::destroy_matmul_desc(self.biased);
            let _ = lt::destroy_matmul_pref(self.preference);
            let _ = lt::destroy_handle(self.handle);
        }
    }
}

impl Layouts {
    /// Column-major, as cublasLt has it: `out[n, rows] = w[k, n]ᵀ · x[k, rows]`.
    fn new(w: &Weight) -> Result<Self, lt::CublasError> {
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        // Sums run over the padding too: it is zero on both sides, and a multiple of eight values lets more algorithms in.
        let (n, k) = (w.n as u64, w.ld as u64);
        Ok(Layouts {
            w: lt::create_matrix_layout(CUDA_R_16BF, k, n, w.ld as i64)?,
            x: lt::create_matrix_layout(CUDA_R_16BF, k, 1, w.ld as i64)?,
            out: lt::create_matrix_layout(CUDA_R_32F, n, 1, n as i64)?,
        })
    }

    fn set_rows(&self, rows: usize) -> Result<(), lt::CublasError> {
        let (rows, cols) = (rows as u64, sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS);
        for layout in [self.x, self.out] {
            // Safety: the attribute is 64 bits wide.
            unsafe { lt::set_matrix_layout_attribute(layout, cols, (&raw const rows).cast(), 8)? };
        }
        Ok(())
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        for layout in [self.w, self.x, self.out] {
            // Safety: each was created once.
            let _ = unsafe { lt::destroy_matrix_layout(layout) };
        }
    }
}

/// Index of the choice for a number of rows.
fn bucket(rows: usize) -> usize {
    rows.next_power_of_two().ilog2() as usize
}

/// Parts into which an algorithm cuts its sums.
fn splits(algorithm: &sys::cublasLtMatmulAlgo_t) -> u32 {
    let (mut splits, mut written) = (1u32, 0usize);
    let attribute = sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_SPLITK_NUM;
    // Safety: the attribute is 32 bits wide. One that an algorithm does not have leaves 1.
    let status = unsafe {
        sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, (&raw mut splits).cast(), size_of::<u32>(), &mut written)
    };
    if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS { splits } else { 1 }
}
