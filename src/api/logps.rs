//! `POST /v1/logps`: log-probabilities of given completions, under the policy or the reference.

use axum::Json;
use axum::extract::State;

use super::AppState;
use super::error::{ApiResult, ErrorBody};
use super::extract::JsonBody;
use crate::rollout::logps::{LogpsReply, LogpsRequest, logps};

/// Score completions that are given.
///
/// The policy's log-probabilities are those that a rollout of the same tokens reports, bit for bit.
#[utoipa::path(post, path = "/v1/logps", tag = "rollouts", request_body = LogpsRequest, responses(
    (status = 200, body = LogpsReply), (status = 400, body = ErrorBody), (status = 404, description = "Another model", body = ErrorBody),
    (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn create(State(state): State<AppState>, JsonBody(request): JsonBody<LogpsRequest>) -> ApiResult<Json<LogpsReply>> {
    state.model(request.model.as_deref())?;
    Ok(Json(logps(&state.generator, state.service.served(), request).await?))
}
