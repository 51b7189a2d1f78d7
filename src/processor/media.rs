//! The bytes behind a data URL, a path or a URL: the only place that reads files or opens connections for a caller.
//!
//! Everything but `data:` is off until a flag allows it. Errors say which flag, and contain neither what a library said nor a path of
//! the server.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use url::Url;

use super::remote::Remote;
use crate::error::{Error, Result};

/// Where images may come from, and how much of them.
#[derive(Clone, Debug)]
pub struct MediaOptions {
    /// `--media-root`: the folder under which local paths are read.
    pub media_root: Option<PathBuf>,
    /// `--allow-media-domain`: hosts, `*.example.com` for all below one, with `:port` where it is not 80 or 443.
    pub allow_media_domains: Vec<String>,
    /// `--allow-remote-media`: any public host.
    pub allow_remote_media: bool,
    /// Bytes of one encoded file.
    pub max_bytes: usize,
    pub connect_timeout: Duration,
    /// From the first byte sent to the last one read, redirects included.
    pub total_timeout: Duration,
}

impl Default for MediaOptions {
    fn default() -> Self {
        MediaOptions {
            media_root: None,
            allow_media_domains: Vec::new(),
            allow_remote_media: false,
            max_bytes: 20 << 20,
            connect_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(20),
        }
    }
}

/// Fetches encoded images.
pub struct MediaLoader {
    /// Canonical.
    root: Option<PathBuf>,
    remote: Remote,
    max_bytes: usize,
}

impl MediaLoader {
    /// Fails if the media root is not a folder or a domain is not one.
    pub fn new(options: &MediaOptions) -> Result<Self> {
        let canonical = |root: &PathBuf| match root.canonicalize() {
            Ok(root) if root.is_dir() => Ok(root),
            Ok(_) => Err(Error::Setup(format!("--media-root {}: not a folder", root.display()))),
            Err(e) => Err(Error::Setup(format!("--media-root {}: {e}", root.display()))),
        };
        let root = options.media_root.as_ref().map(canonical).transpose()?;
        Ok(MediaLoader { root, remote: Remote::new(options)?, max_bytes: options.max_bytes })
    }

    /// The bytes behind `source`. Errors have an empty `param`, to be placed by the caller.
    pub async fn load(self: &std::sync::Arc<Self>, source: String) -> Result<Vec<u8>> {
        if is_remote(&source) {
            return self.remote.fetch(&source).await;
        }
        let loader = self.clone();
        let reading = tokio::task::spawn_blocking(move || loader.read(&source));
        reading.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
    }

    fn read(&self, source: &str) -> Result<Vec<u8>> {
        match scheme_of(source) {
            Some("data") => self.data_url(source),
            Some("file") => {
                let path = Url::parse(source).ok().and_then(|url| url.to_file_path().ok());
                self.file(&path.ok_or_else(|| Error::invalid("", "not a file URL of this machine"))?)
            }
            Some(other) => Err(Error::invalid("", format!("{other} URLs are not read: data, http, https, file and paths are"))),
            None => self.file(Path::new(source)),
        }
    }

    /// `data:image/png;base64,…`. The declared type is not believed: the decoder looks at the bytes.
    fn data_url(&self, source: &str) -> Result<Vec<u8>> {
        let (header, payload) = source.split_once(',').ok_or_else(|| Error::invalid("", "a data URL needs a comma before its data"))?;
        if !header.to_ascii_lowercase().ends_with(";base64") {
            return Err(Error::invalid("", "a data URL must be base64: data:image/png;base64,…"));
        }
        if payload.len() / 4 * 3 > self.max_bytes + 3 {
            return Err(self.too_large());
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(payload);
        decoded.map_err(|_| Error::invalid("", "the data URL is not valid base64"))
    }

    fn file(&self, path: &Path) -> Result<Vec<u8>> {
        let Some(root) = &self.root else {
            return Err(Error::invalid("", "local files are not read: start the server with --media-root"));
        };
        let outside = || Error::invalid("", "the file is not under the folder given as --media-root");
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(outside());
        }
        // One answer for what is missing and what is elsewhere, so that nobody can ask which files exist.
        let real = root.join(path).canonicalize().map_err(|_| outside())?;
        if !real.starts_with(root) {
            return Err(outside());
        }
        let file = open_plain(&real).map_err(|_| outside())?;
        // A link could have been swapped in since: what counts is where the open file lies.
        if !opened_path(&file).is_none_or(|opened| opened.starts_with(root)) {
            return Err(outside());
        }
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(Error::invalid("", "not a regular file"));
        }
        let mut bytes = Vec::new();
        let unreadable = |_| Error::invalid("", "the file can't be read");
        file.take(self.max_bytes as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() > self.max_bytes { Err(self.too_large()) } else { Ok(bytes) }
    }

    fn too_large(&self) -> Error {
        Error::too_large("", format!("the file has more than {} bytes", self.max_bytes))
    }
}

/// Whether another host has to answer for this image.
pub fn is_remote(source: &str) -> bool {
    matches!(scheme_of(source), Some("http" | "https"))
}

/// The scheme before a colon, in the lower case that URLs are compared in; a path has none.
fn scheme_of(source: &str) -> Option<&'static str> {
    let (scheme, _) = source.split_once(':')?;
    let known = ["data", "file", "http", "https"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known));
    let looks_like_one = source.contains("://") && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    known.or(looks_like_one.then_some("other"))
}

/// Opens without following a link in the last place and without waiting for the writer of a pipe.
fn open_plain(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        const O_NONBLOCK: i32 = 0o4000;
        options.custom_flags(O_NONBLOCK);
    }
    options.open(path)
}

/// Where an open file lies, as the kernel sees it; `None` where it can't be asked.
fn opened_path(file: &File) -> Option<PathBuf> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        None
    }
}
