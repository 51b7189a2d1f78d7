//! One GPU: its context and stream, memory that frees itself, and launches.

use std::cell::Cell;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::libs;
use super::timeline::Timeline;
use crate::backends::Element;
use crate::error::{Error, Result};

/// What the machine has for `ordinal`.
pub struct Device {
    context: sys::CUcontext,
    raw: sys::CUdevice,
    stream: sys::CUstream,
    timeline: Option<Mutex<Timeline>>,
    ordinal: usize,
    name: String,
    compute: (i32, i32),
    multiprocessors: usize,
    shared_memory: usize,
}

// Safety: the driver's handles may be used from any thread that has bound the context, which every method does first.
unsafe impl Send for Device {}
unsafe impl Sync for Device {}

thread_local! {
    /// The context that this thread has bound, so that binding it again costs nothing.
    static BOUND: Cell<sys::CUcontext> = const { Cell::new(std::ptr::null_mut()) };
}

impl Device {
    /// Opens a GPU with a stream of its own; `timed`: keep the time of every launch.
    ///
    /// # Errors
    ///
    /// No driver, no such device, or one that is older than the kernels.
    pub fn open(ordinal: usize, timed: bool) -> Result<Arc<Self>> {
        let failed = |what: &'static str| move |e: DriverError| Error::Setup(format!("cuda:{ordinal}: {what}: {e}"));
        libs::require_driver()?;
        result::init().map_err(failed("the driver does not start"))?;
        let count = result::device::get_count().map_err(failed("no devices"))?;
        let raw = result::device::get(ordinal as i32)
            .map_err(|e| Error::Setup(format!("cuda:{ordinal}: there are {count} CUDA devices on this machine ({e})")))?;
        let attribute = |attribute| {
            // Safety: `raw` is a device that the driver named.
            unsafe { result::device::get_attribute(raw, attribute) }.map_err(failed("an attribute can't be read"))
        };
        use sys::CUdevice_attribute_enum::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED_MEMORY,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
        };
        let name = result::device::get_name(raw).map_err(failed("it has no name"))?;
        let compute = (attribute(MAJOR)?, attribute(MINOR)?);
        if compute < (8, 0) {
            return Err(Error::Setup(format!(
                "cuda:{ordinal}: {name} has compute capability {}.{}; 8.0 or later is needed",
                compute.0, compute.1
            )));
        }
        // Safety: as above; the context is released when the device is dropped.
        let context = unsafe { result::primary_ctx::retain(raw) }.map_err(failed("no context"))?;
        let mut device = Device {
            context,
            raw,
            stream: std::ptr::null_mut(),
            timeline: None,
            ordinal,
            name,
            compute,
            multiprocessors: attribute(MULTIPROCESSORS)? as usize,
            shared_memory: attribute(SHARED_MEMORY)? as usize,
        };
        device.bind();
        device.stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("no stream"))?;
        device.timeline = timed.then(|| Mutex::new(Timeline::new(device.stream)));
        Ok(Arc::new(device))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What other processes call the device.
    pub fn uuid(&self) -> [u8; 16] {
        check("reading the UUID", result::device::get_uuid(self.raw)).bytes.map(|byte| byte as u8)
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Bytes of shared memory that one block can have.
    pub fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    /// As NVRTC names it: with the suffix that unlocks a chip's own instructions where it has one.
    pub fn arch(&self) -> String {
        let (major, minor) = self.compute;
        format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
    }

    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context current on this thread.
    pub fn bind(&self) {
        BOUND.with(|bound| {
            if bound.get() != self.context {
                // Safety: the context lives as long as the device.
                check("binding the context", unsafe { result::ctx::set_current(self.context) });
                bound.set(self.context);
            }
        });
    }

    /// Free and total bytes.
    pub fn memory(&self) -> (usize, usize) {
        self.bind();
        check("reading the free memory", result::mem_get_info())
    }

    /// Zeroed memory.
    pub fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Memory> {
        self.bind();
        // An address of its own even for nothing, and room for the last 16-byte access of a row that ends early.
        let bytes = bytes.next_multiple_of(16).max(16);
        let refused = |e: DriverError| {
            let (free, total) = self.memory();
            Error::Setup(format!("cuda:{}: {bytes} bytes could not be allocated; {free} of {total} are free ({e})", self.ordinal))
        };
        // Safety: the memory is written before anybody reads it.
        let ptr = unsafe { result::malloc_sync(bytes) }.map_err(refused)?;
        let memory = Memory { device: self.clone(), ptr, bytes };
        self.zero(memory.ptr, bytes);
        Ok(memory)
    }

    /// Zeroes device memory, in the order of the stream.
    pub fn zero(&self, ptr: u64, bytes: usize) {
        self.bind();
        // Safety: callers name memory of this device.
        check("zeroing memory", unsafe { result::memset_d8_async(ptr, 0, bytes, self.stream) });
    }

    /// Milliseconds that the device needs for what `launches` puts on the stream.
    pub fn time<R>(&self, launches: impl FnOnce() -> R) -> (R, f32) {
        self.bind();
        let event = || check("creating an event", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let (start, end) = (event(), event());
        // Safety: events and stream belong to one live context; each event is destroyed once, here.
        unsafe {
            check("recording an event", result::event::record(start, self.stream));
            let done = launches();
            check("recording an event", result::event::record(end, self.stream));
            check("waiting for an event", result::event::synchronize(end));
            let ms = check("reading a time", result::event::elapsed(start, end));
            let _ = (result::event::destroy(start), result::event::destroy(end));
            (done, ms)
        }
    }

    /// Waits until the stream is empty.
    pub fn synchronize(&self) {
        self.bind();
        // Safety: the stream lives as long as the device.
        check("waiting for the device", unsafe { result::stream::synchronize(self.stream) });
    }

    /// The times of launches, if they are kept.
    pub fn timeline(&self) -> Option<MutexGuard<'_, Timeline>> {
        // A panic elsewhere leaves times, nothing that could be half-done.
        self.timeline.as_ref().map(|timeline| timeline.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says what was launched, for those who keep the times.
    pub fn launched(&self, what: impl FnOnce() -> String) {
        if let Some(mut timeline) = self.timeline() {
            timeline.mark(&what());
        }
    }

    /// Launches a kernel. The arguments match its signature, their buffers outlive the stream's work on them.
    pub fn launch(&self, kernel: Kernel, grid: [usize; 3], block: usize, shared: usize, args: Args) {
        if !grid.contains(&0) {
            self.launch_on(self.stream, kernel, grid, block, shared, args);
            self.launched(|| kernel.name.to_owned());
        }
    }

    /// As [`Device::launch`], beside the device's own stream.
    pub fn launch_on(&self, stream: sys::CUstream, kernel: Kernel, grid: [usize; 3], block: usize, shared: usize, mut args: Args) {
        self.bind();
        let [x, y, z] = grid.map(|g| g as u32);
        let mut pointers: [*mut c_void; Args::MAX] = [std::ptr::null_mut(); Args::MAX];
        for (pointer, value) in pointers.iter_mut().zip(&mut args.values[..args.len]) {
            *pointer = (value as *mut u64).cast();
        }
        for (place, map) in &mut args.maps {
            pointers[*place] = (map as *mut sys::CUtensorMap).cast();
        }
        // Every kernel waits by itself for those before it, so it may be put on the device while they end.
        let early = self.compute >= (9, 0);
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared as u32,
            hStream: stream,
            attrs: &mut attribute,
            numAttrs: u32::from(early),
        };
        // Safety: the kernel belongs to this context; the driver copies configuration and arguments before it returns.
        let launched = unsafe { sys::cuLaunchKernelEx(&config, kernel.function, pointers.as_mut_ptr(), std::ptr::null_mut()).result() };
        if let Err(e) = launched {
            panic!("launching {} on a grid of {grid:?} with {block} threads and {shared} bytes: {e}", kernel.name);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.bind();
        self.timeline = None;
        // Safety: nothing uses either afterwards; a device that is lost can't be released, which is no reason to panic.
        unsafe {
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.raw);
        }
        BOUND.with(|bound| bound.set(std::ptr::null_mut()));
    }
}

/// A device fault leaves nothing to go on with.
pub fn check<T>(what: &str, result: Result<T, DriverError>) -> T {
    result.unwrap_or_else(|e| panic!("{what}: {e}"))
}

/// A compiled kernel.
#[derive(Clone, Copy)]
pub struct Kernel {
    pub name: &'static str,
    pub function: sys::CUfunction,
}

// Safety: a handle of the context, which is not tied to a thread.
unsafe impl Send for Kernel {}
unsafe impl Sync for Kernel {}

/// Arguments of a launch in the order of the kernel's signature.
#[derive(Default)]
pub struct Args {
    values: [u64; Args::MAX],
    len: usize,
    /// Arguments too large for a value, by their places.
    maps: Vec<(usize, sys::CUtensorMap)>,
}

impl Args {
    const MAX: usize = 24;

    fn push(mut self, bits: u64) -> Self {
        self.values[self.len] = bits;
        self.len += 1;
        self
    }

    /// What the tensor memory accelerator knows of a matrix, by value.
    pub fn map(mut self, map: sys::CUtensorMap) -> Self {
        self.maps.push((self.len, map));
        self.push(0)
    }

    pub fn ptr(self, address: u64) -> Self {
        self.push(address)
    }

    pub fn buf<T: Element>(self, buf: &Buf<T>) -> Self {
        self.push(buf.ptr())
    }

    /// A 32-bit integer.
    pub fn int(self, value: usize) -> Self {
        assert!(value <= i32::MAX as usize, "{value} does not fit a kernel's int");
        self.push(value as u64)
    }

    pub fn word(self, value: u32) -> Self {
        self.push(u64::from(value))
    }

    pub fn float(self, value: f32) -> Self {
        self.push(u64::from(value.to_bits()))
    }
}

/// Device memory that frees itself.
pub struct Memory {
    device: Arc<Device>,
    ptr: u64,
    bytes: usize,
}

impl Memory {
    pub fn ptr(&self) -> u64 {
        self.ptr
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.device.bind();
        // Safety: the one owner frees; freeing waits for work that still uses the memory.
        let _ = unsafe { result::free_sync(self.ptr) };
    }
}

/// `len` values on the device.
pub struct Buf<T> {
    memory: Memory,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Buf<T> {
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        Ok(Buf { memory: device.alloc(len * size_of::<T>())?, len, element: PhantomData })
    }

    pub fn ptr(&self) -> u64 {
        self.memory.ptr
    }

    /// Address of value `index`.
    pub fn at(&self, index: usize) -> u64 {
        assert!(index <= self.len, "value {index} of {}", self.len);
        self.memory.ptr + (index * size_of::<T>()) as u64
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A point of the stream that the host can wait for.
pub struct Event(sys::CUevent, Arc<Device>);

// Safety: as for `Device`.
unsafe impl Send for Event {}

impl Event {
    pub fn new(device: &Arc<Device>) -> Self {
        device.bind();
        Event(check("creating an event", result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)), device.clone())
    }

    pub fn record(&self) {
        self.1.bind();
        // Safety: event and stream belong to one live context.
        check("recording an event", unsafe { result::event::record(self.0, self.1.stream) });
    }

    /// Returns once everything before the last `record` is done.
    pub fn wait(&self) {
        self.1.bind();
        // Safety: as above.
        check("waiting for the device", unsafe { result::event::synchronize(self.0) });
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.1.bind();
        // Safety: nobody waits for it any more.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
