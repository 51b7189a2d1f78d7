//! Weights in another process's memory on the same device, by CUDA IPC: opened, checked and copied there, then closed.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{DriverError, result, sys};

use super::Cuda;
use super::device::{Args, Device, check};
use super::weight::Weight;
use crate::backends::{FloatType, SharedCheck, SharedTensor};
use crate::error::{Error, Result};

/// Blocks of a check: enough to fill any device.
const CHECK_BLOCKS: usize = 2048;
/// Tensors whose checks come back at once.
pub const CHECKS: usize = 1024;

/// Open memory of another process. Dropping it closes.
pub struct Shared {
    device: Arc<Device>,
    opened: HashMap<[u8; 64], u64>,
    tensors: Vec<(u64, FloatType, usize)>,
}

impl Shared {
    pub fn open(device: &Arc<Device>, device_uuid: &[u8; 16], tensors: &[SharedTensor]) -> Result<Self> {
        device.bind();
        let own = device.uuid();
        if own != *device_uuid {
            let hex = |uuid: &[u8; 16]| uuid.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            return Err(Error::invalid("device_uuid", format!("{} is another device: this server is on {}", hex(device_uuid), hex(&own))));
        }
        let mut shared = Shared { device: device.clone(), opened: HashMap::new(), tensors: Vec::with_capacity(tensors.len()) };
        for (i, tensor) in tensors.iter().enumerate() {
            let refused =
                |what: &str, e: DriverError| Error::invalid_code(format!("tensors[{i}].handle"), "ipc_failed", format!("{what}: {e}"));
            let base = match shared.opened.get(&tensor.handle) {
                Some(base) => *base,
                None => {
                    let base = open(&tensor.handle).map_err(|e| refused("the driver does not open it", e))?;
                    shared.opened.insert(tensor.handle, base);
                    base
                }
            };
            let size = size_from(base).map_err(|e| refused("its size is not known", e))?;
            let bytes = tensor.len * tensor.dtype.bytes();
            if tensor.offset.checked_add(bytes).is_none_or(|end| end > size) {
                let message = format!("{bytes} bytes at offset {} of an allocation of {size}", tensor.offset);
                return Err(Error::invalid(format!("tensors[{i}].offset"), message));
            }
            if !tensor.offset.is_multiple_of(tensor.dtype.bytes()) {
                return Err(Error::invalid(format!("tensors[{i}].offset"), format!("{} is not aligned to its type", tensor.offset)));
            }
            shared.tensors.push((base + tensor.offset as u64, tensor.dtype, tensor.len));
        }
        Ok(shared)
    }
}

fn open(handle: &[u8; 64]) -> Result<u64, DriverError> {
    let mut base = 0;
    let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
    let flags = sys::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    // Safety: the driver checks the handle; the context is bound.
    unsafe { sys::cuIpcOpenMemHandle_v2(&mut base, handle, flags) }.result()?;
    Ok(base)
}

/// Bytes from an opened address to the end of its allocation.
fn size_from(address: u64) -> Result<usize, DriverError> {
    let (mut start, mut size) = (0, 0);
    // Safety: both are written before they are read.
    unsafe { sys::cuMemGetAddressRange_v2(&mut start, &mut size, address) }.result()?;
    Ok(size - (address - start) as usize)
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.device.synchronize();
        for base in self.opened.values() {
            // Safety: opened once, and nothing reads it any more.
            if let Err(e) = unsafe { sys::cuIpcCloseMemHandle(*base) }.result() {
                tracing::warn!("closing another process's memory: {e}");
            }
        }
    }
}

fn type_number(dtype: FloatType) -> u32 {
    match dtype {
        FloatType::F32 => 0,
        FloatType::F16 => 1,
        FloatType::Bf16 => 2,
    }
}

impl Cuda {
    /// `rounds[i]`: whether tensor `i` is rounded to bf16.
    pub(super) fn check(&self, shared: &Shared, rounds: &[bool]) -> Vec<SharedCheck> {
        let mut checks = Vec::with_capacity(shared.tensors.len());
        for (tensors, rounds) in shared.tensors.chunks(CHECKS).zip(rounds.chunks(CHECKS)) {
            self.device.zero(self.checks.ptr(), CHECKS * 16);
            for (i, ((ptr, dtype, len), rounds)) in tensors.iter().zip(rounds).enumerate() {
                let args = Args::default().ptr(*ptr).word(type_number(*dtype)).int(*len).word(u32::from(*rounds));
                self.launch_1d("check_weight", len.div_ceil(super::BLOCK).min(CHECK_BLOCKS), args.ptr(self.checks.at(4 * i)));
            }
            let mut words = vec![0u32; 4 * tensors.len()];
            self.device.synchronize();
            // Safety: the buffer holds at least these words.
            check("reading what a check found", unsafe { result::memcpy_dtoh_sync(&mut words, self.checks.ptr()) });
            checks.extend(words.chunks_exact(4).map(|words| SharedCheck {
                finite: words[0] == 0 && words[1] == 0,
                checksum: u64::from(words[2]) | u64::from(words[3]) << 32,
            }));
        }
        checks
    }

    pub(super) fn store(&self, weight: &Weight, first_row: usize, rows: usize, shared: &Shared, index: usize) {
        let (ptr, dtype, len) = shared.tensors[index];
        assert!(len == rows * weight.k && first_row + rows <= weight.n, "{len} values into rows {first_row} to {}", first_row + rows);
        let to = weight.ptr() + (first_row * weight.ld * 2) as u64;
        if dtype == FloatType::Bf16 && weight.ld == weight.k {
            self.device.bind();
            // Safety: both are live and of this size.
            let copied = unsafe { result::memcpy_dtod_async(to, ptr, len * dtype.bytes(), self.device.stream()) };
            return check("copying another process's memory", copied);
        }
        let grid = [weight.ld.div_ceil(super::BLOCK), rows.min(65_535), 1];
        let args = Args::default().ptr(ptr).word(type_number(dtype)).int(rows).int(weight.k).int(weight.ld).ptr(to);
        self.launch("store_weight", grid, super::BLOCK, 0, args);
    }

    pub(super) fn read(&self, shared: &Shared, index: usize) -> Vec<f32> {
        let (ptr, dtype, len) = shared.tensors[index];
        let mut bytes = vec![0u8; len * dtype.bytes()];
        self.device.bind();
        // Safety: the tensor was found to be of this size.
        check("reading another process's memory", unsafe { result::memcpy_dtoh_sync(&mut bytes, ptr) });
        match dtype {
            FloatType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            FloatType::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            FloatType::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }
}
