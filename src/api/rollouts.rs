//! `POST /v1/rollouts`: groups of scored completions, in one reply or as a stream.

use std::pin::pin;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::batches::{self, FileQuery};
use super::error::{ApiError, ApiResult, ErrorBody};
use super::extract::{JsonBody, Params};
use super::sse::{self, Events};
use crate::error::Error;
use crate::rollout::queue::{AcceptedReply, CancelReply, ProgressReply};
use crate::rollout::reply::{GroupReply, RolloutReply, RolloutSummary, StreamItem};
use crate::rollout::request::{Mode, Return, RolloutRequest};

/// Generate groups of completions, score them and normalise their rewards.
///
/// With `mode: "stream"` the reply is server-sent events: `group` with one element of `groups` each, as they end, then `done` with the rest
/// of the reply, or `error`. A caller who leaves cancels what is unfinished, unless the request has an `idempotency_key`. With
/// `mode: "queue"` the reply comes when the groups are stored; learners get them from `/v1/batches/lease` when they are done. With
/// `Accept: application/vnd.safetensors` the reply is a batch as a learner loads it.
#[utoipa::path(post, path = "/v1/rollouts", tag = "rollouts", params(FileQuery), request_body = RolloutRequest, responses(
    (status = 200, description = "The groups",
     content((RolloutReply = "application/json"), (GroupReply = "text/event-stream"), (RolloutSummary = "text/event-stream; event=done"))),
    (status = 202, description = "The groups are queued", body = AcceptedReply),
    (status = 400, body = ErrorBody), (status = 404, description = "Another model", body = ErrorBody),
    (status = 409, description = "The key came with another body", body = ErrorBody), (status = 413, body = ErrorBody),
    (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn create(
    State(state): State<AppState>,
    Params(query): Params<FileQuery>,
    headers: HeaderMap,
    JsonBody(mut request): JsonBody<RolloutRequest>,
) -> ApiResult<Response> {
    // Every served name means the one model there is.
    state.model(request.model.as_deref())?;
    request.model = None;
    let wants_file = batches::wants_file(&headers);
    let mode = request.mode.unwrap_or_default();
    let pixels = request.r#return.iter().flatten().position(|part| *part == Return::PixelValues);
    if let Some(i) = pixels.filter(|_| mode == Mode::Stream || (mode == Mode::Wait && !wants_file)) {
        let message = "JSON carries no pixels: ask with Accept: application/vnd.safetensors, and mode \"wait\" or \"queue\"";
        return Err(Error::invalid_code(format!("return[{i}]"), "unsupported_parameter", message).into());
    }
    match mode {
        Mode::Stream => stream(state, request),
        Mode::Queue => Ok((StatusCode::ACCEPTED, Json(state.service.submit(request).await?)).into_response()),
        Mode::Wait => {
            let reply = state.service.run(request).await?;
            Ok(match wants_file {
                true => batches::file(state.service.rollout_file(reply, query.expand_images).await?),
                false => Json(reply).into_response(),
            })
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ProgressQuery {
    /// With the groups that are ready or leased, which stay where they are.
    #[serde(default)]
    groups: bool,
}

/// How far a queued rollout is.
#[utoipa::path(get, path = "/v1/rollouts/{rollout_id}", tag = "rollouts", params(ProgressQuery), responses(
    (status = 200, body = ProgressReply), (status = 404, body = ErrorBody)))]
pub async fn progress(
    State(state): State<AppState>,
    Path(rollout_id): Path<String>,
    Params(query): Params<ProgressQuery>,
) -> ApiResult<Json<ProgressReply>> {
    Ok(Json(state.service.progress(&rollout_id, query.groups).await?))
}

/// Cancel what a queued rollout has not finished.
#[utoipa::path(delete, path = "/v1/rollouts/{rollout_id}", tag = "rollouts", responses(
    (status = 200, body = CancelReply), (status = 404, body = ErrorBody)))]
pub async fn cancel(State(state): State<AppState>, Path(rollout_id): Path<String>) -> ApiResult<Json<CancelReply>> {
    Ok(Json(state.service.cancel(&rollout_id).await?))
}

fn stream(state: AppState, request: RolloutRequest) -> ApiResult<Response> {
    let items = state.service.stream(request)?;
    Ok(sse::respond(|events: Events| async move {
        let mut items = pin!(items);
        while let Some(item) = items.next().await {
            match item {
                Ok(StreamItem::Group(group)) => events.named("group", &group).await?,
                Ok(StreamItem::Done(summary)) => events.named("done", &summary).await?,
                Err(error) => events.named("error", &ApiError::from(error).body()).await?,
            }
        }
        Ok(())
    }))
}
