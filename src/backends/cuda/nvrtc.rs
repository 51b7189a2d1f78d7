//! CUDA C++ to machine code, with headers in memory: nothing of a toolkit but the compiler's library is needed.

use std::ffi::{CString, c_char};
use std::ptr;

use cudarc::nvrtc::sys;

use super::libs;
use crate::error::{Error, Result};

/// Machine code and what the assembler said about it.
pub struct Compiled {
    pub cubin: Vec<u8>,
    pub log: String,
}

/// Version of the compiler, part of what a cached kernel depends on.
pub fn version() -> Result<(i32, i32)> {
    libs::require_nvrtc()?;
    let (mut major, mut minor) = (0, 0);
    // Safety: both are written before the call returns.
    check("asking NVRTC for its version", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    Ok((major, minor))
}

/// Compiles one source. Headers are (name in `#include`, text).
///
/// # Errors
///
/// NVRTC is missing, or it refuses the source: the message carries its log.
pub fn compile(name: &str, source: &str, headers: &[(&str, &str)], options: &[String]) -> Result<Compiled> {
    libs::require_nvrtc()?;
    let header_names = c_strings(headers.iter().map(|(name, _)| *name))?;
    let header_texts = c_strings(headers.iter().map(|(_, text)| *text))?;
    let options = c_strings(options.iter().map(String::as_str))?;
    let (source, c_name) = (c_string(source)?, c_string(name)?);
    let (header_names, header_texts, options) = (pointers(&header_names), pointers(&header_texts), pointers(&options));
    let mut program = Program(ptr::null_mut());
    // Safety: every pointer is into a C string that outlives the program.
    unsafe {
        let created = sys::nvrtcCreateProgram(
            &mut program.0,
            source.as_ptr(),
            c_name.as_ptr(),
            headers.len() as i32,
            header_texts.as_ptr(),
            header_names.as_ptr(),
        );
        check(name, created)?;
        let outcome = sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr());
        let log = program.log()?;
        if outcome != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(Error::Setup(format!("kernels/{name} does not compile ({outcome:?}):\n{log}")));
        }
        let mut size = 0;
        check(name, sys::nvrtcGetCUBINSize(program.0, &mut size))?;
        let mut cubin = vec![0u8; size];
        check(name, sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()))?;
        Ok(Compiled { cubin, log })
    }
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> Result<String> {
        let mut size = 0;
        // Safety: the program lives, the buffer has the size that NVRTC asks for.
        unsafe {
            check("reading NVRTC's log", sys::nvrtcGetProgramLogSize(self.0, &mut size))?;
            let mut log = vec![0u8; size.max(1)];
            check("reading NVRTC's log", sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()))?;
            log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(log.len()));
            Ok(String::from_utf8_lossy(&log).into_owned())
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // Safety: created once, destroyed once.
            unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
        }
    }
}

fn check(what: &str, result: sys::nvrtcResult) -> Result<()> {
    result.result().map_err(|e| Error::Setup(format!("{what}: NVRTC: {e}")))
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Setup("a NUL in kernel source".into()))
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<CString>> {
    texts.map(c_string).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).collect()
}
