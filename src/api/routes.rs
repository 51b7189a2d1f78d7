//! The table of routes. A route can't be written without a role, so none is open by oversight.

use axum::routing::{MethodRouter, delete, get, post, put};

use super::AppState;
use super::{batches, docs, health, metrics, openai, page, policy, rewards, rollouts};

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everyone: nothing of requests, prompts or weights is shown.
    Public,
    /// Whoever may generate (`--api-key`).
    Infer,
    /// Learners: batches and their leases (`--api-key`).
    Learn,
    /// Weights and engine control (`--control-key`).
    Admin,
}

pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    pub role: Role,
    pub(super) handler: fn() -> MethodRouter<AppState>,
}

const fn route(method: &'static str, path: &'static str, role: Role, handler: fn() -> MethodRouter<AppState>) -> Route {
    Route { method, path, role, handler }
}

pub static ROUTES: &[Route] = &[
    route("GET", "/", Role::Public, || get(page::status_page)),
    route("GET", "/health", Role::Public, || get(health::health)),
    route("GET", "/ready", Role::Public, || get(health::ready)),
    route("GET", "/metrics", Role::Public, || get(metrics::metrics)),
    route("GET", "/openapi.json", Role::Public, || get(docs::openapi_json)),
    route("GET", "/docs", Role::Public, || get(docs::swagger_index)),
    route("GET", "/docs/{*file}", Role::Public, || get(docs::swagger_file)),
    route("POST", "/v1/rollouts", Role::Infer, || post(rollouts::create)),
    route("GET", "/v1/rollouts/{rollout_id}", Role::Infer, || get(rollouts::progress)),
    route("DELETE", "/v1/rollouts/{rollout_id}", Role::Infer, || delete(rollouts::cancel)),
    route("POST", "/v1/batches/lease", Role::Learn, || post(batches::lease)),
    route("POST", "/v1/batches/{lease_id}/ack", Role::Learn, || post(batches::ack)),
    route("POST", "/v1/batches/{lease_id}/nack", Role::Learn, || post(batches::nack)),
    route("POST", "/v1/batches/{lease_id}/extend", Role::Learn, || post(batches::extend)),
    route("GET", "/v1/batches", Role::Learn, || get(batches::counts)),
    route("GET", "/v1/batches/leases", Role::Learn, || get(batches::leases)),
    route("GET", "/v1/batches/dead", Role::Learn, || get(batches::dead)),
    route("POST", "/v1/batches/dead/{uid}/requeue", Role::Learn, || post(batches::requeue)),
    route("GET", "/v1/rewards", Role::Infer, || get(rewards::list)),
    route("POST", "/v1/rewards/score", Role::Infer, || post(rewards::score)),
    route("GET", "/v1/policy", Role::Admin, || get(policy::show)),
    route("POST", "/v1/policy", Role::Admin, || post(policy::update)),
    route("PUT", "/v1/policy", Role::Admin, || put(policy::put)),
    route("POST", "/v1/engine/pause", Role::Admin, || post(policy::pause)),
    route("POST", "/v1/engine/resume", Role::Admin, || post(policy::resume)),
    route("POST", "/v1/engine/sleep", Role::Admin, || post(policy::sleep)),
    route("POST", "/v1/engine/wake", Role::Admin, || post(policy::wake)),
    route("POST", "/v1/chat/completions", Role::Infer, || post(openai::chat::create)),
    route("POST", "/v1/completions", Role::Infer, || post(openai::completions::create)),
    route("GET", "/v1/models", Role::Infer, || get(openai::models::list)),
    // Hub ids hold a slash, which clients send as it is or as %2F.
    route("GET", "/v1/models/{*model}", Role::Infer, || get(openai::models::get)),
];
