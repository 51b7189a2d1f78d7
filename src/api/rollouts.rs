//! `POST /v1/rollouts`: groups of scored completions, in one reply or as a stream.

use std::pin::pin;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::error::{ApiError, ApiResult, ErrorBody};
use super::extract::JsonBody;
use super::sse::{self, Events};
use crate::rollout::reply::{GroupReply, RolloutReply};
use crate::rollout::request::{Mode, RolloutRequest};

/// The last event of a stream, `done`.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutDone {
    model: String,
    policy_version: u64,
    /// `group` events sent, bad groups included.
    num_groups: usize,
    /// Groups with an `error` among them.
    num_bad_groups: usize,
}

/// Generate groups of completions, score them and normalise their rewards.
///
/// With `mode: "stream"` the reply is server-sent events: `group` with one element of `groups` each, as they end, then `done`, or
/// `error`. A caller who leaves cancels what is unfinished, unless the request has an `idempotency_key`.
#[utoipa::path(post, path = "/v1/rollouts", tag = "rollouts", request_body = RolloutRequest, responses(
    (status = 200, description = "The groups",
     content((RolloutReply = "application/json"), (GroupReply = "text/event-stream"))),
    (status = 400, body = ErrorBody), (status = 404, description = "Another model", body = ErrorBody),
    (status = 409, description = "The key came with another body", body = ErrorBody), (status = 413, body = ErrorBody),
    (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn create(State(state): State<AppState>, JsonBody(mut request): JsonBody<RolloutRequest>) -> ApiResult<Response> {
    // Every served name means the one model there is.
    state.model(request.model.as_deref())?;
    request.model = None;
    match request.mode.unwrap_or_default() {
        Mode::Stream => stream(state, request),
        Mode::Wait | Mode::Queue => Ok(Json(state.service.run(request).await?).into_response()),
    }
}

fn stream(state: AppState, request: RolloutRequest) -> ApiResult<Response> {
    let groups = state.service.clone().stream(request)?;
    Ok(sse::respond(|events: Events| async move {
        let mut groups = pin!(groups);
        let (mut num_groups, mut num_bad_groups) = (0, 0);
        while let Some(group) = groups.next().await {
            match group {
                Ok(group) => {
                    num_groups += 1;
                    num_bad_groups += usize::from(matches!(group, GroupReply::Bad(_)));
                    events.named("group", &group).await?;
                }
                Err(error) => return events.named("error", &ApiError::from(error).body()).await,
            }
        }
        let policy_version = state.generator.engine().stats().policy_version().0;
        let model = state.http.served_names[0].clone();
        events.named("done", &RolloutDone { model, policy_version, num_groups, num_bad_groups }).await
    }))
}
