//! The kernels in `kernels/`: embedded in the program, compiled for the device at hand, cached on disk.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::{result, sys};
use sha2::{Digest, Sha256};

use super::device::{Device, Kernel};
use super::nvrtc;
use crate::error::{Error, Result};

/// Threads of most kernels.
pub const BLOCK: usize = 256;
/// Elements of a block of the elementwise kernels.
pub const ELEMENTS: usize = 1024;

/// What every source may include.
const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("hopper.cuh", include_str!("../../../kernels/hopper.cuh")),
    ("gemm_tiles.cuh", include_str!("../../../kernels/gemm_tiles.cuh")),
    ("rotation.cuh", include_str!("../../../kernels/rotation.cuh")),
    ("softmax.cuh", include_str!("../../../kernels/softmax.cuh")),
    ("attention_items.cuh", include_str!("../../../kernels/attention_items.cuh")),
    ("attention_rows.cuh", include_str!("../../../kernels/attention_rows.cuh")),
    ("sample_row.cuh", include_str!("../../../kernels/sample_row.cuh")),
    ("sample_tile.cuh", include_str!("../../../kernels/sample_tile.cuh")),
    ("sample_merge.cuh", include_str!("../../../kernels/sample_merge.cuh")),
    ("sample_filter.cuh", include_str!("../../../kernels/sample_filter.cuh")),
];

/// For heads of 16, 32, … values.
const SEGMENT_ATTENTION: &[&str] = &[
    "segment_attention_16",
    "segment_attention_32",
    "segment_attention_48",
    "segment_attention_64",
    "segment_attention_80",
    "segment_attention_96",
    "segment_attention_112",
    "segment_attention_128",
];

/// One translation unit each, with the kernels that it defines.
const SOURCES: &[Source] = &[
    Source {
        name: "elementwise.cu",
        text: include_str!("../../../kernels/elementwise.cu"),
        kernels: &["embed", "scatter_rows", "gather_rows", "rms_norm", "silu_mul", "gelu", "deliver"],
        only: None,
    },
    Source {
        name: "rope.cu",
        text: include_str!("../../../kernels/rope.cu"),
        kernels: &["rope_table", "rope_qkv", "rope_vision"],
        only: None,
    },
    Source {
        name: "attention.cu",
        text: include_str!("../../../kernels/attention.cu"),
        kernels: &[
            "attention_wide_16",
            "attention_wide_32",
            "attention_wide_64",
            "attention_wide_128",
            "attention_narrow_16",
            "attention_narrow_32",
            "attention_narrow_64",
            "attention_narrow_128",
        ],
        only: None,
    },
    Source {
        name: "prompt_attention.cu",
        text: include_str!("../../../kernels/prompt_attention.cu"),
        kernels: &["prompt_attention_16", "prompt_attention_32", "prompt_attention_64", "prompt_attention_128"],
        only: None,
    },
    Source {
        name: "gemm_few.cu",
        text: include_str!("../../../kernels/gemm_few.cu"),
        kernels: &["gemm_few_2", "gemm_few_3", "gemm_few_7"],
        only: None,
    },
    Source {
        name: "gemm_silu.cu",
        text: include_str!("../../../kernels/gemm_silu.cu"),
        kernels: &["gemm_silu_64", "gemm_silu_128", "gemm_silu_256"],
        only: Some("sm_90a"),
    },
    Source {
        name: "gemm_rope.cu",
        text: include_str!("../../../kernels/gemm_rope.cu"),
        kernels: &[
            "gemm_rope_qkv_64x64",
            "gemm_rope_qkv_64x128",
            "gemm_rope_qkv_128x128",
            "gemm_rope_qkv_128x256",
            "gemm_rope_vision_256x160",
        ],
        only: Some("sm_90a"),
    },
    Source {
        name: "gemm_sample.cu",
        text: include_str!("../../../kernels/gemm_sample.cu"),
        kernels: &["gemm_sample_64", "gemm_sample_128", "gemm_sample_256"],
        only: Some("sm_90a"),
    },
    Source {
        name: "segment_attention.cu",
        text: include_str!("../../../kernels/segment_attention.cu"),
        kernels: SEGMENT_ATTENTION,
        only: None,
    },
    Source {
        name: "tower_attention.cu",
        text: include_str!("../../../kernels/tower_attention.cu"),
        kernels: &["tower_attention_80"],
        only: Some("sm_90a"),
    },
    Source {
        name: "sample.cu",
        text: include_str!("../../../kernels/sample.cu"),
        kernels: &["sample_parts", "sample", "reset_slot"],
        only: None,
    },
    Source { name: "sample_full.cu", text: include_str!("../../../kernels/sample_full.cu"), kernels: &["sample_full"], only: None },
    Source {
        name: "weights.cu",
        text: include_str!("../../../kernels/weights.cu"),
        kernels: &["check_weight", "store_weight"],
        only: None,
    },
];

/// The walks for heads of a padded width: many rows a block, a prompt's chunk for many rows, few rows a block.
pub fn attention_names(padded_dim: usize) -> [&'static str; 3] {
    match padded_dim {
        16 => ["attention_wide_16", "prompt_attention_16", "attention_narrow_16"],
        32 => ["attention_wide_32", "prompt_attention_32", "attention_narrow_32"],
        64 => ["attention_wide_64", "prompt_attention_64", "attention_narrow_64"],
        128 => ["attention_wide_128", "prompt_attention_128", "attention_narrow_128"],
        other => panic!("no attention kernel for heads of {other}"),
    }
}

/// Shared memory of the walks: stages of keys and values, queries and entries, then weights and bookkeeping.
pub fn wide_shared(padded_dim: usize) -> usize {
    walk_shared(padded_dim, 64, 2) + 1024
}

pub fn narrow_shared(padded_dim: usize) -> usize {
    walk_shared(padded_dim, 16, 3)
}

/// Keys of two tiles, values of one, and a word an entry, from a multiple of 1,024 bytes on.
pub fn prompt_shared(padded_dim: usize) -> usize {
    3 * 64 * shared_row(padded_dim, padded_dim >= 64) + 4 * 64 + 1024
}

fn walk_shared(padded_dim: usize, rows: usize, stages: usize) -> usize {
    let row = shared_row(padded_dim, padded_dim >= 64);
    let exchange = if rows == 16 { rows * 128 + 2 * 4 * 4 * rows } else { 0 };
    stages * (2 * 64 * row + rows * row + rows * 32 + 32) + rows * 4 + exchange
}

/// Kernel and shared memory of attention within segments.
pub fn segment_attention(arch: &str, head_dim: usize) -> (&'static str, usize) {
    if arch == "sm_90a" && head_dim == 80 {
        return ("tower_attention_80", 5 * 64 * 128 + 1024);
    }
    let names = SEGMENT_ATTENTION;
    let dim = head_dim.next_multiple_of(16);
    let name = names.get(dim / 16 - 1).unwrap_or_else(|| panic!("no attention kernel for heads of {head_dim}"));
    (name, 5 * 64 * shared_row(dim, dim.is_multiple_of(64)))
}

/// Bytes of a bf16 row in shared memory; rows that are not swizzled are set apart to spread over the banks.
fn shared_row(dim: usize, swizzled: bool) -> usize {
    if swizzled { 2 * dim } else { 2 * dim + 16 }
}

pub fn sample_shared(vocab: usize) -> usize {
    4 * vocab.div_ceil(32) + 24_576
}

struct Source {
    name: &'static str,
    text: &'static str,
    kernels: &'static [&'static str],
    /// The one architecture whose instructions it uses; `None`: every one.
    only: Option<&'static str>,
}

/// What is compiled for an architecture.
fn sources(arch: &str) -> impl Iterator<Item = &'static Source> {
    SOURCES.iter().filter(move |source| source.only.is_none_or(|only| only == arch))
}

fn options(arch: &str) -> Vec<String> {
    vec![format!("--gpu-architecture={arch}"), "--std=c++17".into(), "-lineinfo".into(), "--ptxas-options=-v".into()]
}

/// The kernels of one device.
pub struct Kernels {
    by_name: HashMap<&'static str, Kernel>,
    modules: Vec<sys::CUmodule>,
    device: Arc<Device>,
}

// Safety: driver handles, which are not tied to a thread.
unsafe impl Send for Kernels {}

impl Kernels {
    /// Loads every kernel, compiling what the cache does not have.
    ///
    /// # Errors
    ///
    /// NVRTC is missing, a source does not compile, or the driver refuses the code.
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let arch = device.arch();
        let version = nvrtc::version()?;
        let mut kernels = Kernels { by_name: HashMap::new(), modules: Vec::new(), device: device.clone() };
        for source in sources(&arch) {
            let path = cache_file(source, &arch, version);
            let cached = path.as_ref().and_then(|path| std::fs::read(path).ok());
            if cached.is_none_or(|cubin| kernels.add(source, &cubin).is_err()) {
                let cubin = nvrtc::compile(source.name, source.text, HEADERS, &options(&arch))?.cubin;
                kernels.add(source, &cubin)?;
                if let Some(path) = path {
                    store(&path, &cubin);
                }
            }
        }
        kernels.allow_shared_memory()?;
        Ok(kernels)
    }

    fn add(&mut self, source: &Source, cubin: &[u8]) -> Result<()> {
        self.device.bind();
        let refused = |what: &str| {
            let what = what.to_owned();
            move |e: cudarc::driver::DriverError| Error::Setup(format!("kernels/{}: {what}: {e}", source.name))
        };
        // Safety: the driver checks the image; a truncated one is an error.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.map_err(refused("the driver refuses the code"))?;
        self.modules.push(module);
        for name in source.kernels {
            let c_name = CString::new(*name).map_err(|_| Error::Setup("a NUL in a kernel's name".into()))?;
            // Safety: the module is loaded.
            let function = unsafe { result::module::get_function(module, c_name) }.map_err(refused(name))?;
            self.by_name.insert(name, Kernel { name, function });
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Kernel {
        self.find(name).unwrap_or_else(|| panic!("no kernel {name}"))
    }

    /// A kernel that not every chip has.
    pub fn find(&self, name: &str) -> Option<Kernel> {
        self.by_name.get(name).copied()
    }

    /// Lets every kernel have the shared memory that a block of this device can have; 48 KB without asking.
    fn allow_shared_memory(&self) -> Result<()> {
        let most = self.device.shared_memory();
        for kernel in self.by_name.values() {
            use sys::CUfunction_attribute_enum::{
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
            };
            // Safety: the functions belong to loaded modules.
            let set = unsafe {
                result::function::get_function_attribute(kernel.function, STATIC)
                    .and_then(|taken| result::function::set_function_attribute(kernel.function, DYNAMIC, most as i32 - taken))
            };
            set.map_err(|e| Error::Setup(format!("{} can't have {most} bytes of shared memory: {e}", kernel.name)))?;
        }
        Ok(())
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        self.device.bind();
        for module in self.modules.drain(..) {
            // Safety: loaded once; nothing is launched any more.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

fn cache_file(source: &Source, arch: &str, version: (i32, i32)) -> Option<PathBuf> {
    let base =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let mut hash = Sha256::new();
    let mut part = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    part(source.name);
    part(source.text);
    HEADERS.iter().for_each(|(name, text)| {
        part(name);
        part(text);
    });
    options(arch).iter().for_each(|option| part(option));
    part(&format!("{version:?}"));
    let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(base.join("grouper/kernels").join(format!("{name}.cubin")))
}

/// A cache that can't be written costs time at the next start, nothing else.
fn store(path: &Path, cubin: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let stored =
        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&temporary, cubin)).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(e) = stored {
        tracing::warn!("{}: compiled kernels are not kept: {e}", path.display());
    }
}

/// What the assembler said about one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub source: &'static str,
    pub kernel: String,
    pub registers: usize,
    pub spill_bytes: usize,
    pub stack_bytes: usize,
}

/// Compiles everything for an architecture; no device is needed.
///
/// # Errors
///
/// As [`Kernels::load`], and a kernel of the table that no source defines.
pub fn usage(arch: &str) -> Result<Vec<Usage>> {
    let mut all = Vec::new();
    for source in sources(arch) {
        let compiled = nvrtc::compile(source.name, source.text, HEADERS, &options(arch))?;
        let found = parse_usage(source.name, &compiled.log);
        if let Some(missing) = source.kernels.iter().find(|name| !found.iter().any(|usage| usage.kernel == **name)) {
            return Err(Error::Setup(format!("kernels/{} does not define {missing} for {arch}", source.name)));
        }
        all.extend(found);
    }
    Ok(all)
}

fn parse_usage(source: &'static str, log: &str) -> Vec<Usage> {
    let mut found: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some(kernel) = line.split("Compiling entry function '").nth(1).and_then(|rest| rest.split('\'').next()) {
            found.push(Usage { source, kernel: kernel.to_owned(), registers: 0, spill_bytes: 0, stack_bytes: 0 });
        }
        let Some(usage) = found.last_mut() else { continue };
        let before = |unit: &str| {
            let words = line.split(unit).next().filter(|_| line.contains(unit))?;
            words.trim_end().rsplit([' ', ',']).next()?.parse::<usize>().ok()
        };
        if let Some(bytes) = before("bytes stack frame") {
            usage.stack_bytes = bytes;
            usage.spill_bytes = before("bytes spill stores").unwrap_or(0);
        }
        if let Some(registers) = before("registers") {
            usage.registers = registers;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_the_assembler_are_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'silu_mul' for 'sm_90a'\n\
            ptxas info    : Function properties for silu_mul\n    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 58 registers, used 1 barriers, 4096 bytes smem\n";
        let expected = Usage { source: "a.cu", kernel: "silu_mul".into(), registers: 58, spill_bytes: 8, stack_bytes: 0 };
        assert_eq!(parse_usage("a.cu", log), [expected]);
    }
}
