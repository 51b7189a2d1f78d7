//! `/v1/rewards`: the catalogue, and scoring of texts that were generated elsewhere.

use axum::Json;
use axum::extract::State;

use super::AppState;
use super::error::{ApiResult, ErrorBody};
use super::extract::JsonBody;
use crate::rollout::scoring::{self, CatalogueReply, ScoreReply, ScoreRequest};

/// Every reward with its arguments and defaults.
#[utoipa::path(get, path = "/v1/rewards", tag = "rewards", responses((status = 200, body = CatalogueReply)))]
pub async fn list() -> Json<CatalogueReply> {
    Json(scoring::catalogue())
}

/// Rewards, and advantages where `group` is given, of completions in the request.
#[utoipa::path(post, path = "/v1/rewards/score", tag = "rewards", request_body = ScoreRequest, responses(
    (status = 200, body = ScoreReply), (status = 400, body = ErrorBody)))]
pub async fn score(State(state): State<AppState>, JsonBody(request): JsonBody<ScoreRequest>) -> ApiResult<Json<ScoreReply>> {
    Ok(Json(state.service.score(request).await?))
}
