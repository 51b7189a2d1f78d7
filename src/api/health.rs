//! `/health`: the process answers. `/ready`: it would take work now.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use futures::FutureExt;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;

/// An engine with work that takes no step for this long is stuck: one step of a large model on a CPU takes seconds.
const STALLED: Duration = Duration::from_secs(120);

/// Steps of the engine when they last changed (or when it last had no work), and when that was.
pub struct Health(Mutex<(u64, Instant)>);

impl Default for Health {
    fn default() -> Self {
        Health(Mutex::new((0, Instant::now())))
    }
}

impl Health {
    fn is_stalled(&self, steps: u64, has_work: bool) -> bool {
        let mut progress = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !has_work || progress.0 != steps {
            *progress = (steps, Instant::now());
        }
        progress.1.elapsed() > STALLED
    }
}

#[derive(Serialize, ToSchema)]
pub struct HealthReply {
    #[schema(example = "ok")]
    status: &'static str,
}

#[derive(Serialize, ToSchema)]
pub struct ReadyReply {
    /// `ready` or `not_ready`.
    #[schema(example = "ready")]
    status: &'static str,
    /// Why it is not ready.
    reasons: Vec<String>,
    model: String,
    device: String,
    policy_version: u64,
}

/// The process is alive.
#[utoipa::path(get, path = "/health", tag = "operation", responses((status = 200, body = HealthReply)))]
pub async fn health() -> Json<HealthReply> {
    Json(HealthReply { status: "ok" })
}

/// Weights are loaded, the engine takes steps, new work is accepted.
#[utoipa::path(get, path = "/ready", tag = "operation", responses(
    (status = 200, body = ReadyReply), (status = 503, description = "Not ready, or draining", body = ReadyReply)))]
pub async fn ready(State(state): State<AppState>) -> (StatusCode, Json<ReadyReply>) {
    let engine = state.generator.engine();
    let stats = engine.stats();
    let mut reasons = Vec::new();
    if state.generator.is_draining() {
        reasons.push("draining: no new work is accepted".to_owned());
    }
    reasons.extend(engine.unfit());
    if stats.halted.load(Ordering::Relaxed) {
        reasons.push("the engine is paused or asleep".to_owned());
    }
    // Asking fails at once when the engine's thread has ended; its answer is not waited for, a step can take long.
    if let Some(Err(error)) = engine.audit().now_or_never() {
        reasons.push(error.to_string());
    }
    if let Some(failure) = state.service.store().failure() {
        reasons.push(format!("the store: {failure}"));
    }
    let has_work =
        !stats.halted.load(Ordering::Relaxed) && stats.running.load(Ordering::Relaxed) + stats.waiting.load(Ordering::Relaxed) > 0;
    if state.health.is_stalled(stats.steps.load(Ordering::Relaxed), has_work) {
        reasons.push(format!("the engine has work and took no step for {} s", STALLED.as_secs()));
    }
    let (code, status) = if reasons.is_empty() { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not_ready") };
    let reply = ReadyReply {
        status,
        reasons,
        model: state.http.served_names[0].clone(),
        device: engine.info().device.clone(),
        policy_version: stats.policy_version().0,
    };
    (code, Json(reply))
}
