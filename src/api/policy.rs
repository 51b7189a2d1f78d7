//! `/v1/policy`: which weights are served, and new ones; `/v1/engine/…`: rest and memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::error::{ApiError, ApiResult, ErrorBody};
use super::extract::{JsonBody, discard_body, read_body};
use crate::engine::policy::{Apply, PauseMode};
use crate::error::Error;
use crate::model::update::Extent;
use crate::policy::{Held, Policy, Source, Staged, Turn, Updated, Wanted};

/// Weights by version and content.
#[derive(Debug, Serialize, ToSchema)]
pub struct HeldReply {
    version: u64,
    /// SHA-256 over every tensor in the order of hub names: name, 0, type as safetensors spells it, 0, shape as `2,3`, 0, and the SHA-256 over
    /// the SHA-256 of each 4 MiB of its bytes; a tied head is left out. After a partial update: SHA-256 over the hexadecimal digests of what
    /// was held and of the update.
    sha256: String,
    /// `model:…`, `path:…`, `body`, `stage:…` or `ipc`.
    #[schema(example = "path:step-100")]
    source: String,
    /// What matrices are served in.
    #[schema(example = "float32")]
    dtype: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyReply {
    held: HeldReply,
    /// The version that ought to be held: another than the held one after a restart without its weights.
    expected: u64,
    /// An update is under way.
    updating: bool,
    reference: Option<HeldReply>,
    staged: Vec<StageReply>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct StageReply {
    stage: String,
    num_tensors: usize,
    bytes: usize,
    /// All stages together may have so many.
    max_bytes: usize,
    /// It ends then, without its weights being applied, unless another part comes (`--stage-ttl`). Unix milliseconds.
    expires_at: u64,
}

/// New weights that the server can reach: exactly one of `path` and `stage`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyBody {
    /// A safetensors file, or a folder as the hub has them, under `--policy-root`.
    #[schema(example = "step-100")]
    path: Option<String>,
    /// Parts that were put with `?stage=`. They are used up, even when they are refused; they end when no part has come for `--stage-ttl`.
    stage: Option<String>,
    /// One more than the last unless given; must be larger.
    version: Option<u64>,
    /// What becomes of groups that have started: `finish` (the default), `continue` or `abort`.
    #[schema(value_type = Option<String>, example = "finish")]
    apply: Option<Apply>,
    /// A part of the model's tensors is enough.
    partial: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct UpdateReply {
    version: u64,
    sha256: String,
    source: String,
    dtype: &'static str,
    /// False when these weights were held already.
    changed: bool,
    num_tensors: usize,
    bytes: usize,
    /// Tensors that were rounded to the serving type, by the type that they had.
    #[schema(example = json!({"F32": 312}))]
    rounded: BTreeMap<String, usize>,
    /// Reading or opening, while the engine went on.
    read_ms: f64,
    /// Reading and checking, while the engine went on.
    check_ms: f64,
    /// Until started groups had ended.
    wait_ms: f64,
    /// The engine took no step.
    stall_ms: f64,
}

impl HeldReply {
    fn new(held: Held, dtype: &'static str) -> Self {
        HeldReply { version: held.version, sha256: held.sha256, source: held.source, dtype }
    }
}

impl StageReply {
    fn new(staged: Staged, max_bytes: usize) -> Self {
        let Staged { id: stage, num_tensors, bytes, expires_at } = staged;
        StageReply { stage, num_tensors, bytes, max_bytes, expires_at }
    }
}

impl UpdateReply {
    pub fn new(updated: Updated, dtype: &'static str) -> Self {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        UpdateReply {
            version: updated.held.version,
            sha256: updated.held.sha256,
            source: updated.held.source,
            dtype,
            changed: updated.changed,
            num_tensors: updated.num_tensors,
            bytes: updated.bytes,
            rounded: updated.rounded.into_iter().collect(),
            read_ms: ms(updated.read),
            check_ms: ms(updated.checked),
            wait_ms: ms(updated.waited),
            stall_ms: ms(updated.stalled),
        }
    }
}

/// The weights that are served.
#[utoipa::path(get, path = "/v1/policy", tag = "policy", responses((status = 200, body = PolicyReply)))]
pub async fn show(State(state): State<AppState>) -> Json<PolicyReply> {
    let policy = &state.policy;
    Json(PolicyReply {
        held: HeldReply::new(policy.held(), policy.dtype()),
        expected: policy.expected(),
        updating: policy.is_updating(),
        reference: policy.reference().map(|held| HeldReply::new(held, policy.dtype())),
        staged: policy.staged().into_iter().map(|staged| StageReply::new(staged, policy.max_bytes())).collect(),
    })
}

/// Take weights from the server's machine, or those that were staged.
///
/// They are checked whole before anything changes: names, shapes, types and that every number is finite. Anything wrong leaves the old
/// weights serving. The reply comes after the change.
#[utoipa::path(post, path = "/v1/policy", tag = "policy", request_body = PolicyBody, responses(
    (status = 200, body = UpdateReply), (status = 400, description = "What is wrong, by tensor", body = ErrorBody),
    (status = 404, description = "No such stage, or none any more", body = ErrorBody),
    (status = 409, description = "Another update is under way, or the version is held with other weights", body = ErrorBody)))]
pub async fn update(State(state): State<AppState>, JsonBody(body): JsonBody<PolicyBody>) -> ApiResult<Json<UpdateReply>> {
    let source = match (body.path, body.stage) {
        (Some(path), None) => Source::Path(path),
        (None, Some(stage)) => Source::Stage(stage),
        _ => return Err(Error::invalid("path", "exactly one of path and stage is needed").into()),
    };
    let wanted = Wanted { version: body.version, apply: body.apply.unwrap_or_default(), extent: extent(body.partial.unwrap_or_default()) };
    let updated = state.policy.begin()?.update(source, wanted).await?;
    Ok(Json(UpdateReply::new(updated, state.policy.dtype())))
}

/// Take weights from the body, or keep them as a part of a later update.
///
/// The body is a safetensors file (`application/vnd.safetensors`) of all tensors; with `partial=true` of some, which is an update by
/// itself. With `stage` it is only kept, until it is applied or no part has come for `--stage-ttl`.
#[utoipa::path(put, path = "/v1/policy", tag = "policy",
    params(("version" = Option<u64>, Query, description = "One more than the last unless given; must be larger"),
        ("apply" = Option<String>, Query, description = "What becomes of started groups: finish, continue or abort"),
        ("partial" = Option<bool>, Query, description = "A part of the model's tensors is enough"),
        ("stage" = Option<String>, Query, description = "Keep the tensors under this name")),
    request_body(content_type = "application/vnd.safetensors", content = Vec<u8>),
    responses((status = 200, body = UpdateReply), (status = 201, description = "Kept", body = StageReply),
        (status = 400, description = "What is wrong, by tensor", body = ErrorBody),
        (status = 409, description = "Another update is under way, or the version is held with other weights", body = ErrorBody),
        (status = 413, description = "Larger than the model", body = ErrorBody)))]
pub async fn put(State(state): State<AppState>, RawQuery(query): RawQuery, request: Request) -> ApiResult<Response> {
    const WHY: &str = "what the model's tensors take";
    let (policy, limit) = (&state.policy, state.policy.max_bytes());
    match check_media_type(&request).and_then(|()| Ok(Put::read(query, policy)?)) {
        Err(error) => {
            // Who is still sending gets to read why.
            discard_body(request, limit).await;
            Err(error)
        }
        Ok(Put::Stage(stage)) => {
            let bytes = read_body(request, limit, WHY).await?;
            let staged = policy.stage(stage, bytes).await?;
            Ok((StatusCode::CREATED, Json(StageReply::new(staged, limit))).into_response())
        }
        Ok(Put::Update(turn, wanted)) => {
            let bytes = read_body(request, limit, WHY).await?;
            let updated = turn.update(Source::Body(bytes), wanted).await?;
            Ok(Json(UpdateReply::new(updated, policy.dtype())).into_response())
        }
    }
}

/// What a PUT is for.
enum Put {
    Stage(String),
    Update(Turn, Wanted),
}

impl Put {
    fn read(query: Option<String>, policy: &Arc<Policy>) -> Result<Self, Error> {
        let query = Query::read(query, &["version", "apply", "partial", "stage"])?;
        let Some(stage) = query.get("stage") else {
            let wanted = Wanted {
                version: query.parsed("version", "a version number")?,
                apply: query.named("apply")?.unwrap_or_default(),
                extent: extent(query.parsed("partial", "true or false")?.unwrap_or_default()),
            };
            return Ok(Put::Update(policy.begin()?, wanted));
        };
        match ["version", "apply", "partial"].iter().find(|name| query.get(name).is_some()) {
            Some(name) => Err(Error::invalid(*name, "belongs to the update: say it when the stage is applied")),
            None => Ok(Put::Stage(stage.to_owned())),
        }
    }
}

/// What to freeze.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferenceBody {
    /// Weights under `--policy-root`; those of the present policy unless given.
    path: Option<String>,
}

/// Freeze the present policy, or weights of a path, as the reference.
///
/// A server started with `--reference` keeps a second copy of the weights, at first those that it was started with.
#[utoipa::path(post, path = "/v1/policy/reference", tag = "policy", request_body = ReferenceBody, responses(
    (status = 200, body = HeldReply), (status = 400, description = "No second copy, or what is wrong by tensor", body = ErrorBody),
    (status = 409, description = "An update is under way", body = ErrorBody)))]
pub async fn freeze(State(state): State<AppState>, JsonBody(body): JsonBody<ReferenceBody>) -> ApiResult<Json<HeldReply>> {
    let held = state.policy.begin()?.freeze(body.path).await?;
    Ok(Json(HeldReply::new(held, state.policy.dtype())))
}

#[derive(Debug, Serialize, ToSchema)]
pub struct EngineReply {
    /// `running`, `paused` or `asleep`.
    #[schema(example = "paused")]
    state: &'static str,
    /// Memory that was given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    freed_bytes: Option<usize>,
}

impl EngineReply {
    fn new(state: &'static str) -> Json<Self> {
        Json(EngineReply { state, freed_bytes: None })
    }
}

/// Take no further step. Requests are still accepted, and wait.
#[utoipa::path(post, path = "/v1/engine/pause", tag = "policy",
    params(("mode" = Option<String>, Query, description = "keep (the default): started groups stop where they are; finish: they end first; \
        abort: all end now")),
    responses((status = 200, body = EngineReply), (status = 409, description = "An update is under way", body = ErrorBody)))]
pub async fn pause(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<Json<EngineReply>> {
    let mode: Option<PauseMode> = Query::read(query, &["mode"])?.named("mode")?;
    state.generator.engine().pause(mode.unwrap_or_default()).await?;
    Ok(EngineReply::new("paused"))
}

/// Go on.
#[utoipa::path(post, path = "/v1/engine/resume", tag = "policy", responses(
    (status = 200, body = EngineReply), (status = 409, description = "It is asleep", body = ErrorBody)))]
pub async fn resume(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<Json<EngineReply>> {
    Query::read(query, &[])?;
    state.generator.engine().resume().await?;
    Ok(EngineReply::new("running"))
}

/// Give the KV cache's memory back until `wake`. Groups that have started must have ended.
#[utoipa::path(post, path = "/v1/engine/sleep", tag = "policy",
    params(("tags" = Option<String>, Query, description = "kv (the default). Weights keep their memory: they are replaced in place")),
    responses((status = 200, body = EngineReply), (status = 400, body = ErrorBody),
        (status = 409, description = "Groups are under way", body = ErrorBody)))]
pub async fn sleep(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<Json<EngineReply>> {
    if tags(query)?.contains(&"weights".to_owned()) {
        let message = "the memory of weights can't be given back: captured steps name it and new weights are written into it; kv can";
        return Err(Error::invalid_code("tags", "unsupported_parameter", message).into());
    }
    let freed = state.generator.engine().sleep().await?;
    Ok(Json(EngineReply { state: "asleep", freed_bytes: Some(freed) }))
}

/// Take the memory again.
#[utoipa::path(post, path = "/v1/engine/wake", tag = "policy",
    params(("tags" = Option<String>, Query, description = "As for sleep; weights never slept")),
    responses((status = 200, body = EngineReply), (status = 400, body = ErrorBody),
        (status = 503, description = "The memory is taken", body = ErrorBody)))]
pub async fn wake(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<Json<EngineReply>> {
    let tags = tags(query)?;
    if tags.iter().any(|tag| tag == "kv") {
        state.generator.engine().wake().await.map_err(|error| Error::NotReady(format!("the cache could not be had again: {error}")))?;
    }
    Ok(EngineReply::new("running"))
}

fn tags(query: Option<String>) -> Result<Vec<String>, Error> {
    let query = Query::read(query, &["tags"])?;
    let tags: Vec<String> = query.get("tags").unwrap_or("kv").split(',').map(str::to_owned).collect();
    match tags.iter().find(|tag| !matches!(tag.as_str(), "weights" | "kv" | "kv_cache")) {
        Some(tag) => Err(Error::invalid("tags", format!("{tag:?} is neither weights nor kv"))),
        None => Ok(tags.into_iter().map(|tag| tag.replace("kv_cache", "kv")).collect()),
    }
}

pub fn extent(partial: bool) -> Extent {
    if partial { Extent::Partial } else { Extent::Whole }
}

fn check_media_type(request: &Request) -> ApiResult<()> {
    let sent = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    match sent.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
        "application/vnd.safetensors" | "application/octet-stream" => Ok(()),
        _ => {
            let message = "send the tensors as a safetensors file with Content-Type: application/vnd.safetensors";
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
        }
    }
}

/// The parameters behind a path's question mark.
struct Query(BTreeMap<String, String>);

impl Query {
    /// # Errors
    ///
    /// An unknown parameter, or one that is there twice.
    fn read(query: Option<String>, known: &[&str]) -> Result<Self, Error> {
        let mut found = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let name = super::error::shorten(&name);
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Error::invalid_code(name, "unknown_field", format!("unknown parameter; known: {known}")));
            }
            if found.insert(name.clone(), value.into_owned()).is_some() {
                return Err(Error::invalid(name, "is there twice"));
            }
        }
        Ok(Query(found))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, Error> {
        let wrong = |value: &str| Error::invalid(name, format!("{:?} is not {what}", super::error::shorten(value)));
        self.get(name).map(|value| value.parse().map_err(|_| wrong(value))).transpose()
    }

    /// A value of an enumeration by its name.
    fn named<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let value = |value: &str| serde_json::from_value(value.into()).map_err(|e| Error::invalid(name, e.to_string()));
        self.get(name).map(value).transpose()
    }
}
