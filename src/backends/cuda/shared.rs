//! Weights in another process's memory on the same device, by CUDA IPC: opened and checked beside the engine's work, on a stream of their
//! own; closed when nothing is copied from them any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::Cuda;
use super::device::{Args, Buf, Device, Kernel, check};
use super::weight::Weight;
use crate::backends::{DeviceValues, FloatType, SharedCheck, SharedDoor, SharedMemory, SharedTensor};
use crate::error::{Error, Result};

/// Blocks of a check: enough to fill any device.
const CHECK_BLOCKS: usize = 2048;
/// Tensors whose checks come back at once.
const CHECKS: usize = 1024;

/// What opens memory on one device.
pub struct Door {
    device: Arc<Device>,
    stream: sys::CUstream,
    check: Kernel,
    /// What a check finds.
    found: Mutex<Buf<u32>>,
}

// Safety: as for `Device`.
unsafe impl Send for Door {}
unsafe impl Sync for Door {}

impl Door {
    pub fn new(device: &Arc<Device>, check_weight: Kernel) -> Result<Self> {
        let found = Mutex::new(Buf::new(device, 4 * CHECKS)?);
        // Zeroed on the engine's stream, and from then on used on this one.
        device.synchronize();
        let stream = check("creating a stream", result::stream::create(result::stream::StreamKind::NonBlocking));
        Ok(Door { device: device.clone(), stream, check: check_weight, found })
    }

    /// Copies from the device and waits for it.
    fn download<T>(&self, src: u64, to: &mut [T]) {
        self.device.bind();
        // Safety: callers name memory that holds as many plain values.
        unsafe {
            check("reading from the device", result::memcpy_dtoh_async(to, src, self.stream));
            check("waiting for the device", result::stream::synchronize(self.stream));
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.device.bind();
        // Safety: every use waits for its own work.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

impl SharedDoor for Door {
    fn open(self: Arc<Self>, device_uuid: &[u8; 16], tensors: &[SharedTensor]) -> Result<Box<dyn SharedMemory>> {
        self.device.bind();
        let own = self.device.uuid();
        if own != *device_uuid {
            let hex = |uuid: &[u8; 16]| uuid.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            return Err(Error::invalid("device_uuid", format!("{} is another device: this server is on {}", hex(device_uuid), hex(&own))));
        }
        let mut shared = Shared { door: self, opened: HashMap::new(), tensors: Vec::with_capacity(tensors.len()) };
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
            shared.tensors.push(DeviceValues { address: base + tensor.offset as u64, dtype: tensor.dtype, len: tensor.len });
        }
        Ok(Box::new(shared))
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

/// Open memory of another process.
struct Shared {
    door: Arc<Door>,
    opened: HashMap<[u8; 64], u64>,
    tensors: Vec<DeviceValues>,
}

impl SharedMemory for Shared {
    fn check(&self, rounds: &[bool]) -> Vec<SharedCheck> {
        let Door { device, stream, check: check_weight, found } = &*self.door;
        let found = found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks = Vec::with_capacity(self.tensors.len());
        for (tensors, rounds) in self.tensors.chunks(CHECKS).zip(rounds.chunks(CHECKS)) {
            device.bind();
            // Safety: memory of this size.
            check("zeroing memory", unsafe { result::memset_d8_async(found.ptr(), 0, CHECKS * 16, *stream) });
            for (i, (values, rounds)) in tensors.iter().zip(rounds).enumerate() {
                let grid = [values.len.div_ceil(super::BLOCK).min(CHECK_BLOCKS), 1, 1];
                let args = Args::default().ptr(values.address).word(type_number(values.dtype)).int(values.len).word(u32::from(*rounds));
                device.launch_on(*stream, *check_weight, grid, super::BLOCK, 0, args.ptr(found.at(4 * i)));
            }
            let mut words = vec![0u32; 4 * tensors.len()];
            self.door.download(found.ptr(), &mut words);
            checks.extend(words.chunks_exact(4).map(|words| SharedCheck {
                finite: words[0] == 0 && words[1] == 0,
                checksum: u64::from(words[2]) | u64::from(words[3]) << 32,
            }));
        }
        checks
    }

    fn read(&self, index: usize) -> Vec<f32> {
        let DeviceValues { address, dtype, len } = self.tensors[index];
        let mut bytes = vec![0u8; len * dtype.bytes()];
        self.door.download(address, &mut bytes);
        match dtype {
            FloatType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            FloatType::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            FloatType::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }

    fn values(&self, index: usize) -> DeviceValues {
        self.tensors[index]
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.door.device.bind();
        for base in self.opened.values() {
            // Safety: opened once; whoever copied from it has waited for the copies.
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
    pub(super) fn store(&self, weight: &Weight, first_row: usize, rows: usize, values: DeviceValues) {
        let DeviceValues { address, dtype, len } = values;
        assert!(len == rows * weight.k && first_row + rows <= weight.n, "{len} values into rows {first_row} to {}", first_row + rows);
        let to = weight.ptr() + (first_row * weight.ld * 2) as u64;
        if dtype == FloatType::Bf16 && weight.ld == weight.k {
            self.device.bind();
            // Safety: both are live and of this size.
            let copied = unsafe { result::memcpy_dtod_async(to, address, len * dtype.bytes(), self.device.stream()) };
            return check("copying another process's memory", copied);
        }
        let grid = [weight.ld.div_ceil(super::BLOCK), rows.min(65_535), 1];
        let args = Args::default().ptr(address).word(type_number(dtype)).int(rows).int(weight.k).int(weight.ld).ptr(to);
        self.launch("store_weight", grid, super::BLOCK, 0, args);
    }
}
