//! `--control-socket`: weights from another process on the same GPU, for processes of the same user on the same machine only.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::Json;
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::IncomingStream;
use base64::Engine;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::AppState;
use super::error::{ApiError, ApiResult, no_such_method, no_such_route};
use super::extract::{JsonBody, take_small_body};
use super::policy::{UpdateReply, extent};
use crate::engine::policy::Apply;
use crate::error::{Error, Result};
use crate::policy::{FloatType, SharedPart, SharedTensor, Source, Wanted};

/// A socket that is served until it is dropped.
pub struct ControlSocket {
    path: PathBuf,
    serving: JoinHandle<()>,
}

/// Who is at the other end: a user's number.
#[derive(Clone, Copy, Debug)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Peer(stream.io().peer_cred().ok().map(|credentials| credentials.uid()))
    }
}

impl ControlSocket {
    /// Serves `POST /v1/policy/ipc` on a socket that only its own user can open. Call it within a tokio runtime.
    ///
    /// # Errors
    ///
    /// A path that is taken by something else than a dead socket, or that can't be written.
    pub fn start(path: &Path, state: AppState) -> Result<Self> {
        let setup = |e: std::io::Error| Error::Setup(format!("--control-socket {}: {e}", path.display()));
        if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(Error::Setup(format!("--control-socket {}: another process serves it", path.display()))),
                Err(_) => std::fs::remove_file(path).map_err(setup)?,
            }
        }
        let listener = UnixListener::bind(path).map_err(setup)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(setup)?;
        let owner = std::fs::metadata(path).map_err(setup)?.uid();
        let router = Router::new()
            .route("/v1/policy/ipc", post(update))
            .fallback(no_such_route)
            .method_not_allowed_fallback(no_such_method)
            .layer(middleware::from_fn_with_state(owner, same_user))
            .layer(middleware::from_fn(take_small_body))
            .with_state(state);
        let service = router.into_make_service_with_connect_info::<Peer>();
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, service).await {
                tracing::error!("the control socket ended: {error}");
            }
        });
        Ok(ControlSocket { path: path.to_owned(), serving })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The mode of the file says the same; this holds even where somebody changed it.
async fn same_user(State(owner): State<u32>, ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    match peer.0 == Some(owner) {
        true => next.run(request).await,
        false => ApiError::new(StatusCode::FORBIDDEN, "another_user", "this socket is for the server's own user").into_response(),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IpcBody {
    /// Hexadecimal, with or without dashes and `GPU-` before it.
    device_uuid: String,
    tensors: Vec<IpcTensor>,
    version: Option<u64>,
    apply: Option<Apply>,
    partial: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IpcTensor {
    name: String,
    /// As safetensors or PyTorch spells it.
    dtype: String,
    shape: Vec<usize>,
    /// Base64 of the 64 bytes that `cudaIpcGetMemHandle` gives.
    handle: String,
    /// Bytes from the allocation's start.
    offset: usize,
}

/// The exporter has synchronised, and keeps the tensors as they are until the reply.
async fn update(State(state): State<AppState>, JsonBody(body): JsonBody<IpcBody>) -> ApiResult<Json<UpdateReply>> {
    let wanted = Wanted { version: body.version, apply: body.apply.unwrap_or_default(), extent: extent(body.partial.unwrap_or_default()) };
    let device = uuid(&body.device_uuid)?;
    let tensors = body.tensors.into_iter().enumerate();
    let parts = tensors.map(|(i, tensor)| part(tensor).map_err(|e| e.within(&format!("tensors[{i}]")))).collect::<Result<Vec<_>>>()?;
    let updated = state.policy.begin()?.update(Source::Shared { device_uuid: device, parts }, wanted).await?;
    Ok(Json(UpdateReply::new(updated, state.policy.dtype())))
}

fn uuid(text: &str) -> Result<[u8; 16]> {
    let digits: Vec<u32> = text.trim_start_matches("GPU-").chars().filter(|c| *c != '-').map(|c| c.to_digit(16).unwrap_or(16)).collect();
    if digits.len() != 32 || digits.contains(&16) {
        return Err(Error::invalid("device_uuid", format!("{:?} is not 16 bytes in hexadecimal", super::error::shorten(text))));
    }
    Ok(std::array::from_fn(|i| (digits[2 * i] << 4 | digits[2 * i + 1]) as u8))
}

fn part(tensor: IpcTensor) -> Result<SharedPart> {
    let dtype = match tensor.dtype.trim_start_matches("torch.") {
        "F32" | "float32" => FloatType::F32,
        "F16" | "float16" => FloatType::F16,
        "BF16" | "bfloat16" => FloatType::Bf16,
        other => return Err(Error::invalid("dtype", format!("{:?}: F32, F16 and BF16 are served", super::error::shorten(other)))),
    };
    let bytes = base64::engine::general_purpose::STANDARD.decode(&tensor.handle);
    let bytes = bytes.map_err(|e| Error::invalid("handle", format!("not base64: {e}")))?;
    // PyTorch puts a version and a letter before the handle of its own pickles.
    if bytes.len() != 64 && bytes.get(1) == Some(&b'e') {
        let message = "memory of an expandable segment can't be opened: unset expandable_segments in PYTORCH_CUDA_ALLOC_CONF";
        return Err(Error::invalid("handle", message));
    }
    let handle = bytes.as_slice().try_into().map_err(|_| Error::invalid("handle", format!("{} bytes, not 64", bytes.len())))?;
    let len = tensor.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let len =
        len.filter(|len| *len <= i32::MAX as usize).ok_or_else(|| Error::invalid("shape", format!("{:?} is too large", tensor.shape)))?;
    Ok(SharedPart { name: tensor.name, shape: tensor.shape, memory: SharedTensor { handle, offset: tensor.offset, dtype, len } })
}
