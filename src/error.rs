//! The one error type of the server: what the world can do wrong. Bugs panic with their numbers instead.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A value that a caller sent: where it stands (a JSON path such as `groups[3].images[0]`) and what is wrong with it, the
    /// value and the limit included. `code` is for machines (`unknown_field`, `context_length_exceeded`, …).
    #[error("{param}: {message}")]
    Invalid { param: String, code: &'static str, message: String },
    /// A body, an image or a video over a limit.
    #[error("{param}: {message}")]
    TooLarge { param: String, message: String },
    /// Something the caller named that is not here.
    #[error("{0}")]
    NotFound(String),
    /// The same key with another body, a lease that was lost.
    #[error("{0}")]
    Conflict(String),
    /// One update of the weights at a time: try again when that which is under way has ended.
    #[error("{0}")]
    UpdateUnderWay(String),
    /// Room will come: try again after the given time.
    #[error("{message}")]
    Overloaded { message: String, retry_after_ms: u64 },
    /// Weights not loaded yet, or the server drains.
    #[error("{0}")]
    NotReady(String),
    /// What was asked for will not come any more. `code` is for machines (`end_of_data`).
    #[error("{message}")]
    Gone { code: &'static str, message: String },
    /// Nothing was stored, because the store failed or its disk is `full`.
    #[error("{message}")]
    Storage { message: String, full: bool },
    /// A model folder that can't be served, with the file or tensor at fault.
    #[error("{0}")]
    Model(String),
    /// A setting of the command line or the machine.
    #[error("{0}")]
    Setup(String),
    #[error("{path}: {message}", path = path.display())]
    File { path: PathBuf, message: String },
}

impl Error {
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid_code(param, "invalid_value", message)
    }

    pub fn invalid_code(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Error::Invalid { param: param.into(), code, message: message.into() }
    }

    pub fn too_large(param: impl Into<String>, message: impl Into<String>) -> Self {
        Error::TooLarge { param: param.into(), message: message.into() }
    }

    pub fn file(path: impl Into<PathBuf>, error: impl std::fmt::Display) -> Self {
        Error::File { path: path.into(), message: error.to_string() }
    }

    /// The same error seen from one level further out: `images[0]` in `groups[3]` is `groups[3].images[0]`.
    pub fn within(self, outer: &str) -> Self {
        let join = |inner: String| match inner.as_str() {
            "" => outer.to_owned(),
            path if path.starts_with('[') => format!("{outer}{path}"),
            path => format!("{outer}.{path}"),
        };
        match self {
            Error::Invalid { param, code, message } => Error::Invalid { param: join(param), code, message },
            Error::TooLarge { param, message } => Error::TooLarge { param: join(param), message },
            other => other,
        }
    }
}
