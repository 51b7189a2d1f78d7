//! Errors as the OpenAI clients expect them: `{"error": {"type", "code", "param", "message"}}` with a status that says whose turn it is.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Error;

/// What a handler returns when it can't answer.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<String>,
    message: String,
    retry_after_ms: Option<u64>,
}

pub type ApiResult<T> = Result<T, ApiError>;

/// The body of every reply that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or `server_error`.
    #[schema(example = "invalid_request_error")]
    r#type: &'static str,
    /// For machines: `unknown_field`, `context_length_exceeded`, `model_not_found`, …
    #[schema(example = "unknown_field")]
    code: &'static str,
    /// JSON path of the value at fault, where there is one.
    #[schema(example = "groups[3].solutoin")]
    param: Option<String>,
    #[schema(example = "groups[3].solutoin: unknown field, did you mean solution?")]
    message: String,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let kind = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        ApiError { status, kind, code, param: None, message: message.into(), retry_after_ms: None }
    }

    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub fn model_not_found(asked: &str, served: &[String]) -> Self {
        let message = format!("model: this server has no model {asked:?}; it serves {}", served.join(", "));
        ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
    }

    /// A fault of the server. What went wrong is for the log; a caller learns nothing of paths or library texts.
    pub fn internal() -> Self {
        let message = "the server failed while answering; its log says why";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    pub fn body(&self) -> ErrorBody {
        let error = ErrorDetail { r#type: self.kind, code: self.code, param: self.param.clone(), message: self.message.clone() };
        ErrorBody { error }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Invalid { param, code, .. } => ApiError::new(StatusCode::BAD_REQUEST, code, message).with_param(param),
            Error::TooLarge { param, .. } => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message).with_param(param),
            Error::NotFound(_) => ApiError::new(StatusCode::NOT_FOUND, "not_found", message),
            Error::Conflict(_) => ApiError::new(StatusCode::CONFLICT, "conflict", message),
            Error::UpdateUnderWay(_) => ApiError::new(StatusCode::CONFLICT, "update_under_way", message),
            Error::Overloaded { retry_after_ms, .. } => {
                let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message);
                error.retry_after_ms = Some(retry_after_ms);
                error
            }
            Error::NotReady(_) => {
                let mut error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message);
                error.retry_after_ms = Some(1000);
                error
            }
            Error::Gone { code, .. } => ApiError::new(StatusCode::GONE, code, message),
            Error::Storage { full: true, .. } => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", message),
            Error::Storage { full: false, .. } => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "storage_failed", message),
            Error::Model(_) | Error::Setup(_) | Error::File { .. } => {
                tracing::error!("while answering a request: {message}");
                ApiError::internal()
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub async fn no_such_route(uri: axum::http::Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "unknown_route", format!("there is no {}; /docs lists what there is", shorten(uri.path())))
}

pub async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let message = format!("{} does not take {}; /docs lists what it takes", shorten(uri.path()), shorten(method.as_str()));
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// A handler panicked: the reply has the usual shape, the panic's text stays in the log.
pub fn after_panic(_panic: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal().into_response()
}

/// What a caller sent, short enough to be sent back.
pub fn shorten(text: &str) -> String {
    const LIMIT: usize = 100;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_status() {
        let cases = [
            (Error::invalid("a.b", "x"), 400, Some("a.b")),
            (Error::too_large("a", "x"), 413, Some("a")),
            (Error::NotFound("x".into()), 404, None),
            (Error::Conflict("x".into()), 409, None),
            (Error::UpdateUnderWay("x".into()), 409, None),
            (Error::Overloaded { message: "x".into(), retry_after_ms: 1500 }, 429, None),
            (Error::NotReady("x".into()), 503, None),
            (Error::Gone { code: "end_of_data", message: "x".into() }, 410, None),
            (Error::Storage { message: "x".into(), full: true }, 507, None),
            (Error::Model("/root/weights: bad".into()), 500, None),
            (Error::file("/etc/secret", "denied"), 500, None),
        ];
        for (error, status, param) in cases {
            let api = ApiError::from(error.clone());
            assert_eq!((api.status.as_u16(), api.param.as_deref()), (status, param), "{error:?}");
            assert!(!api.message.contains('/'), "{api:?}");
            let response = api.into_response();
            let retry = response.headers().get(header::RETRY_AFTER).map(|v| v.to_str().unwrap().to_owned());
            assert_eq!(
                retry.as_deref(),
                match status {
                    429 => Some("2"),
                    503 => Some("1"),
                    _ => None,
                }
            );
        }
    }
}
