//! Finding the libraries at run time: the driver, NVRTC and cublasLt. The program starts without any of them.
//!
//! A library that the loader does not find by itself is opened by its full path; the binding's own search then finds the one that is
//! loaded already. So the wheels of a Python environment serve as well as an installed toolkit.

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

use crate::error::{Error, Result};

/// Names a folder with `libnvrtc` and `libcublasLt`.
const FOLDER_VARIABLE: &str = "GROUPER_CUDA_LIBS";

/// # Errors
///
/// No `libcuda`: there is no NVIDIA driver.
pub fn require_driver() -> Result<()> {
    // Safety: the driver library has no initialisers that depend on the program.
    match unsafe { cudarc::driver::sys::is_culib_present() } {
        true => Ok(()),
        false => Err(Error::Setup("no CUDA driver: libcuda.so.1 was not found".into())),
    }
}

/// # Errors
///
/// NVRTC is nowhere; the message says where it was looked for.
pub fn require_nvrtc() -> Result<()> {
    // Safety: as above.
    let present = || unsafe { cudarc::nvrtc::sys::is_culib_present() };
    // NVRTC opens its builtins by name alone, so they come first.
    require("NVRTC", "nvidia-cuda-nvrtc", &["libnvrtc-builtins.so.", "libnvrtc.so."], present)
}

/// # Errors
///
/// As [`require_nvrtc`].
pub fn require_cublaslt() -> Result<()> {
    // Safety: as above.
    let present = || unsafe { cudarc::cublaslt::sys::is_culib_present() };
    require("cublasLt", "nvidia-cublas", &["libcublasLt.so."], present)
}

fn require(what: &str, package: &str, stems: &[&str], present: impl Fn() -> bool) -> Result<()> {
    // A folder that somebody named comes before what the loader knows.
    let named = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
    if named.is_none() && present() {
        return Ok(());
    }
    let folders = folders(named);
    if folders.iter().any(|folder| open_all(folder, stems)) || present() {
        return Ok(());
    }
    Err(Error::Setup(format!(
        "{what} was not found: install CUDA 13 or `pip install {package}`, or name its folder in {FOLDER_VARIABLE} (looked in {})",
        folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
    )))
}

/// Opens one library a stem and leaves it open for the life of the program.
fn open_all(folder: &Path, stems: &[&str]) -> bool {
    let files: Vec<Option<PathBuf>> = stems.iter().map(|stem| newest(folder, stem)).collect();
    if files.iter().any(Option::is_none) {
        return false;
    }
    files.into_iter().flatten().all(|file| {
        // Safety: NVIDIA's libraries, whose initialisers touch nothing of ours.
        match unsafe { Library::open(Some(&file), RTLD_LAZY | RTLD_GLOBAL) } {
            Ok(library) => {
                std::mem::forget(library);
                true
            }
            Err(_) => false,
        }
    })
}

/// The shortest name of a stem in the newest CUDA that it is there for: `libnvrtc.so.13` rather than `libnvrtc.so.13.0.88`.
fn newest(folder: &Path, stem: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|name| name.starts_with(stem));
    let major = |name: &str| name[stem.len()..].split('.').next().and_then(|n| n.parse::<u32>().ok());
    let best = names.filter_map(|name| Some((std::cmp::Reverse(major(&name)?), name.len(), name))).min();
    best.map(|(_, _, name)| folder.join(name))
}

/// Where the libraries may be: named, installed, or in a Python environment.
fn folders(named: Option<PathBuf>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = named.into_iter().collect();
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    folders.extend(["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| variable(name)).map(|home| home.join("lib64")));
    folders.extend(children(Path::new("/usr/local"), "cuda").into_iter().map(|home| home.join("lib64")));
    let mut environments: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| variable(name)).collect();
    environments.extend(children(Path::new("/opt"), "").into_iter().map(|folder| folder.join(".venv")));
    environments.extend(["/usr", "/usr/local"].map(PathBuf::from));
    for environment in environments {
        for python in children(&environment.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                folders.extend(children(&python.join(packages).join("nvidia"), "").into_iter().map(|package| package.join("lib")));
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// Folders below `parent` whose names start with `prefix`, in order.
fn children(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|path| path.is_dir() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found
}
