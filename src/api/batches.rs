//! `/v1/batches`: learners lease groups, ack them or give them back; operators see counts and dead letters.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::error::{ApiResult, ErrorBody};
use super::extract::{JsonBody, NoBody, Params};
use crate::rollout::batch::MEDIA_TYPE;
use crate::rollout::delivery::{
    AckRequest, CountsReply, DeadReply, EndReply, ExtendReply, ExtendRequest, LeaseReply, LeaseRequest, LeasesReply, NackRequest,
    RequeueReply,
};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct FileQuery {
    /// In safetensors: repeat a group's pixels for each of its samples.
    #[serde(default)]
    pub expand_images: bool,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LeasesQuery {
    /// Only this learner's.
    learner: Option<String>,
    /// With the groups themselves.
    #[serde(default)]
    groups: bool,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct DeadQuery {
    /// Go on behind this uid.
    after: Option<String>,
    /// At most so many; 100 unless given.
    limit: Option<usize>,
}

/// Take groups for a while.
///
/// First in, first out by acceptance. What is not acked before the lease ends is delivered again. With
/// `Accept: application/vnd.safetensors` the reply is one file with TRL's tensor names and the lease in its metadata.
#[utoipa::path(post, path = "/v1/batches/lease", tag = "batches", params(FileQuery), request_body = LeaseRequest, responses(
    (status = 200, body = LeaseReply), (status = 204, description = "Too few groups are ready"),
    (status = 400, body = ErrorBody), (status = 410, description = "`end_of_data`: the data set's last group was delivered", body = ErrorBody)))]
pub async fn lease(
    State(state): State<AppState>,
    Params(query): Params<FileQuery>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<LeaseRequest>,
) -> ApiResult<Response> {
    Ok(match state.service.lease(request).await? {
        Some(lease) if wants_file(&headers) => file(state.service.lease_file(lease, query.expand_images).await?),
        Some(lease) => Json(lease).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Whether a batch is wanted as a learner loads it.
pub fn wants_file(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(MEDIA_TYPE))
}

pub fn file(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], bytes).into_response()
}

/// Declare a lease's groups consumed: they are never delivered again. Repeating it changes nothing.
#[utoipa::path(post, path = "/v1/batches/{lease_id}/ack", tag = "batches", request_body = AckRequest, responses(
    (status = 200, body = EndReply), (status = 404, body = ErrorBody),
    (status = 409, description = "The lease expired, was nacked, or has another fence", body = ErrorBody)))]
pub async fn ack(
    State(state): State<AppState>,
    Path(lease_id): Path<String>,
    JsonBody(request): JsonBody<AckRequest>,
) -> ApiResult<Json<EndReply>> {
    Ok(Json(state.service.ack(&lease_id, request).await?))
}

/// Give a lease's groups back to their places.
#[utoipa::path(post, path = "/v1/batches/{lease_id}/nack", tag = "batches", request_body = NackRequest, responses(
    (status = 200, body = EndReply), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn nack(
    State(state): State<AppState>,
    Path(lease_id): Path<String>,
    JsonBody(request): JsonBody<NackRequest>,
) -> ApiResult<Json<EndReply>> {
    Ok(Json(state.service.nack(&lease_id, request).await?))
}

/// Hold a lease for longer.
#[utoipa::path(post, path = "/v1/batches/{lease_id}/extend", tag = "batches", request_body = ExtendRequest, responses(
    (status = 200, body = ExtendReply), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn extend(
    State(state): State<AppState>,
    Path(lease_id): Path<String>,
    JsonBody(request): JsonBody<ExtendRequest>,
) -> ApiResult<Json<ExtendReply>> {
    Ok(Json(state.service.extend(&lease_id, request).await?))
}

/// Groups by queue and state.
#[utoipa::path(get, path = "/v1/batches", tag = "batches", responses((status = 200, body = CountsReply)))]
pub async fn counts(State(state): State<AppState>) -> ApiResult<Json<CountsReply>> {
    Ok(Json(state.service.queues().await?))
}

/// Leases that are held, so that a lost reply can be recovered.
#[utoipa::path(get, path = "/v1/batches/leases", tag = "batches", params(LeasesQuery), responses((status = 200, body = LeasesReply)))]
pub async fn leases(State(state): State<AppState>, Params(query): Params<LeasesQuery>) -> ApiResult<Json<LeasesReply>> {
    Ok(Json(state.service.leases(query.learner, query.groups).await?))
}

/// Groups that could not be generated, or were delivered too often without an ack.
#[utoipa::path(get, path = "/v1/batches/dead", tag = "batches", params(DeadQuery), responses(
    (status = 200, body = DeadReply), (status = 400, body = ErrorBody)))]
pub async fn dead(State(state): State<AppState>, Params(query): Params<DeadQuery>) -> ApiResult<Json<DeadReply>> {
    Ok(Json(state.service.dead_letters(query.after, query.limit.unwrap_or(100)).await?))
}

/// Give a dead letter another chance.
#[utoipa::path(post, path = "/v1/batches/dead/{uid}/requeue", tag = "batches", responses(
    (status = 200, body = RequeueReply), (status = 404, body = ErrorBody), (status = 409, description = "It is not dead", body = ErrorBody)))]
pub async fn requeue(State(state): State<AppState>, Path(uid): Path<String>, _: NoBody) -> ApiResult<Json<RequeueReply>> {
    Ok(Json(state.service.requeue(&uid).await?))
}
