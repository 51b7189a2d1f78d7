//! `/v1/models`.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::AppState;
use super::super::error::{ApiResult, ErrorBody};

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Model {
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    /// Unix time at which it was loaded.
    created: u64,
    owned_by: &'static str,
    /// The first served name, of which the others are aliases.
    root: String,
    /// Prompt and completion together, in tokens.
    max_model_len: usize,
}

impl Model {
    fn new(state: &AppState, id: &str) -> Self {
        Model {
            id: id.to_owned(),
            object: "model",
            created: state.http.created,
            owned_by: "grouper",
            root: state.http.served_names[0].clone(),
            max_model_len: state.generator.engine().info().max_model_len,
        }
    }
}

/// The names under which the model is served.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, body = ModelList)))]
pub async fn list(State(state): State<AppState>) -> Json<ModelList> {
    let data = state.http.served_names.iter().map(|name| Model::new(&state, name)).collect();
    Json(ModelList { object: "list", data })
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "openai", params(("model" = String, Path, description = "A served name")), responses(
    (status = 200, body = Model), (status = 404, body = ErrorBody)))]
pub async fn get(State(state): State<AppState>, Path(model): Path<String>) -> ApiResult<Json<Model>> {
    let name = state.model(Some(model.trim_end_matches('/')))?;
    Ok(Json(Model::new(&state, name)))
}
