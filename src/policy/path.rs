//! Which files of the machine a request may name.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file or folder below `root` that a request names, absolutely or from the root. Links are followed and must stay below it.
///
/// # Errors
///
/// No root, nothing there, or something outside: the last two look alike, so that nobody learns what else the machine has.
pub fn resolve(root: Option<&Path>, named: &str) -> Result<PathBuf> {
    let Some(root) = root else {
        return Err(Error::invalid_code(
            "path",
            "paths_not_allowed",
            "this server takes no paths (--policy-root names the folder that they may be in)",
        ));
    };
    let inside = || {
        let root = root.canonicalize().ok()?;
        let path = root.join(named).canonicalize().ok()?;
        path.starts_with(&root).then_some(path)
    };
    inside().ok_or_else(|| Error::invalid_code("path", "not_found", format!("there is no {named:?} under --policy-root")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        std::fs::write(root.join("a/w.safetensors"), "x").unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), root.join("link")).unwrap();
        let of = |name: &str| resolve(Some(&root), name);
        assert!(of("a").is_ok() && of("a/w.safetensors").is_ok() && of("a/../a/w.safetensors").is_ok());
        assert!(of(root.join("a").to_str().unwrap()).is_ok());
        for bad in ["../secret", "link", "/etc/passwd", "a/../../secret", "nothing", "a\0b", ""] {
            let found = of(bad);
            assert!(found.is_err() || bad.is_empty(), "{bad:?}: {found:?}");
        }
        assert!(resolve(None, "a").unwrap_err().to_string().contains("--policy-root"));
    }
}
