//! The OpenAPI document and its pages. Everything they need is in the binary.

use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::error::{ApiError, ErrorBody};
use super::{batches, health, metrics, openai, policy, rewards, rollouts};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "grouper",
        description = "A rollout-and-reward server for GRPO: groups of completions with rewards, advantages and exact per-token \
                       log-probabilities, and the OpenAI API beside it. Every reply that is not a success has the shape of `ErrorBody`."
    ),
    tags(
        (name = "rollouts", description = "Groups of scored completions"),
        (name = "batches", description = "Queued groups for learners: leases, acks, dead letters"),
        (name = "rewards", description = "Rewards by themselves"),
        (name = "policy", description = "The weights that are served, and the engine's rest"),
        (name = "openai", description = "Plain inference for OpenAI clients"),
        (name = "operation", description = "Health and figures")
    ),
    paths(
        rollouts::create, rollouts::progress, rollouts::cancel, batches::lease, batches::ack, batches::nack, batches::extend,
        batches::counts, batches::leases, batches::dead, batches::requeue, rewards::list, rewards::score, openai::chat::create, openai::completions::create, openai::models::list,
        openai::models::get, policy::show, policy::update, policy::put, policy::pause, policy::resume, policy::sleep, policy::wake,
        health::health, health::ready, metrics::metrics
    ),
    components(schemas(ErrorBody)),
    security(("bearer" = [])),
    modifiers(&Bearer)
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("--api-key or --control-key, when set")).build();
        document.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(http));
    }
}

/// The OpenAPI document of this build.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

pub async fn openapi_json() -> Response {
    static DOCUMENT: OnceLock<utoipa::openapi::OpenApi> = OnceLock::new();
    Json(DOCUMENT.get_or_init(openapi)).into_response()
}

pub async fn swagger_index(uri: axum::http::Uri) -> Response {
    match uri.path().ends_with('/') {
        true => swagger("").into_response(),
        false => Redirect::permanent("/docs/").into_response(),
    }
}

pub async fn swagger_file(Path(file): Path<String>) -> Response {
    swagger(&file)
}

fn swagger(file: &str) -> Response {
    static CONFIG: OnceLock<Arc<utoipa_swagger_ui::Config<'static>>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| Arc::new(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none")));
    match utoipa_swagger_ui::serve(file, config.clone()) {
        Ok(Some(file)) => ([(header::CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response(),
        Ok(None) | Err(_) => {
            ApiError::new(axum::http::StatusCode::NOT_FOUND, "unknown_route", "no such file of the documentation").into_response()
        }
    }
}
