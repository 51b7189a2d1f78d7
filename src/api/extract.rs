//! Request bodies: media type and size first, then [`read_json`].

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::AppState;
use super::error::{ApiError, shorten};
use super::json::read_json;
use crate::error::Error;

/// Bodies that are taken before anything is decided.
const SMALL_BODY: usize = 64 << 10;

/// A JSON body of type `T`.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        check_media_type(request.headers())?;
        let bytes = read_body(request, state.generator.limits().max_body_bytes, "--max-body-mb").await?;
        Ok(JsonBody(read_json(&bytes)?))
    }
}

/// No body, or one that is not looked at. Its media type is asked for all the same: see [`check_media_type`].
pub struct NoBody;

impl FromRequest<AppState> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, ApiError> {
        check_media_type(request.headers())?;
        read_body(request, 1 << 20, "a route without a body allows").await?;
        Ok(NoBody)
    }
}

/// What stands behind the question mark.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let query = Query::try_from_uri(&parts.uri);
        let Query(params) = query.map_err(|e| Error::invalid_code("query", "invalid_query", shorten(&e.body_text())))?;
        Ok(Params(params))
    }
}

/// A page of another origin can send a form or plain text without asking, but not `application/json`: the type is a guard.
fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let refuse = |message: String| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    let sent = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = sent.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if essence != "application/json" {
        let got = if sent.is_empty() { "none".to_owned() } else { shorten(sent) };
        return refuse(format!("send the body with Content-Type: application/json, not {got}"));
    }
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => refuse("compressed bodies are not taken; send it without Content-Encoding".to_owned()),
        _ => Ok(()),
    }
}

fn announced_len(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Takes the body of a request first, if it is said to be small. Where a reply is ready before the body has come, because the route has no use
/// for it or refuses the request, the connection is closed, and the caller's next request on it fails.
pub async fn take_small_body(request: Request, next: Next) -> Response {
    if !announced_len(request.headers()).is_some_and(|len| (1..=SMALL_BODY).contains(&len)) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    match read_body(Request::from_parts(parts.clone(), body), SMALL_BODY, "as announced").await {
        Ok(bytes) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Err(error) => error.into_response(),
    }
}

/// A body of at most `limit` bytes; `why` says what sets the limit.
pub async fn read_body(request: Request, limit: usize, why: &str) -> Result<Vec<u8>, ApiError> {
    let announced = announced_len(request.headers());
    let mut stream = request.into_body().into_data_stream();
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(limit));
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Error::invalid_code("body", "invalid_body", "the body ended before it was whole"))?;
        if bytes.len() + chunk.len() > limit {
            drop(bytes);
            discard(stream, 4 * limit).await;
            return Err(Error::too_large("body", format!("larger than {} MiB ({why})", limit >> 20)).into());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Takes the body of a request that is refused for another reason, if it is not too large.
pub async fn discard_body(request: Request, budget: usize) {
    discard(request.into_body().into_data_stream(), budget).await;
}

/// Takes some more of a body that is not wanted, so that a caller who is still sending gets to read why.
async fn discard(mut stream: BodyDataStream, mut budget: usize) {
    let taking = async {
        while let Some(Ok(chunk)) = stream.next().await {
            budget = budget.saturating_sub(chunk.len());
            if budget == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), taking).await;
}
