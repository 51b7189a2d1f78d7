//! Request bodies: media type and size first, then [`read_json`].

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::AppState;
use super::error::{ApiError, shorten};
use super::json::read_json;
use crate::error::Error;

/// A JSON body of type `T`.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        check_media_type(request.headers())?;
        let bytes = read_body(request, state.generator.limits().max_body_bytes, "--max-body-mb allows").await?;
        Ok(JsonBody(read_json(&bytes)?))
    }
}

/// No body, or one that is not looked at. Its media type is asked for all the same: see [`check_media_type`].
pub struct NoBody;

impl FromRequest<AppState> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, ApiError> {
        check_media_type(request.headers())?;
        read_body(request, 1 << 20, "a body that is not looked at may have").await?;
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

/// A body of at most `limit` bytes; `why` says what sets the limit.
pub async fn read_body(request: Request, limit: usize, why: &str) -> Result<Vec<u8>, ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<usize>().ok());
    let mut stream = request.into_body().into_data_stream();
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(limit));
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Error::invalid_code("body", "invalid_body", "the body ended before it was whole"))?;
        if bytes.len() + chunk.len() > limit {
            drop(bytes);
            discard(stream, 4 * limit).await;
            return Err(Error::too_large("body", format!("larger than the {} MiB that {why}", limit >> 20)).into());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Takes some more of a body that is too large, so that a caller who is still sending gets to read why.
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
