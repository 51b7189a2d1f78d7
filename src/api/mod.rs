//! HTTP: the only user of axum. One file per resource; what a request means is decided in `rollout` and `processor`.

mod auth;
mod batches;
mod control;
mod docs;
mod error;
mod extract;
mod health;
mod json;
mod logps;
mod metrics;
mod openai;
mod page;
mod policy;
mod rewards;
mod rollouts;
mod routes;
mod server;
mod sse;

pub use auth::{Key, Keys};
pub use control::ControlSocket;
pub use docs::openapi;
pub use json::read_json;
pub use routes::{ROUTES, Role, Route};
pub use server::{Server, bind};

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use tower_http::catch_panic::CatchPanicLayer;

use crate::config::Config;
use crate::policy::Policy;
use crate::rollout::generator::Generator;
use crate::rollout::service::RolloutService;

/// What handlers share; cloning it is cheap.
#[derive(Clone)]
pub struct AppState {
    service: Arc<RolloutService>,
    generator: Arc<Generator>,
    policy: Arc<Policy>,
    http: Arc<Http>,
    health: Arc<health::Health>,
}

/// The part of the configuration that handlers need.
struct Http {
    keys: Keys,
    served_names: Vec<String>,
    allowed_hosts: Option<Vec<String>>,
    /// Seed of requests that bring none; drawn for each when absent, too.
    seed: Option<u64>,
    /// Unix time at which the model was loaded.
    created: u64,
}

impl AppState {
    pub fn new(config: &Config, service: Arc<RolloutService>, policy: Arc<Policy>) -> Self {
        let names = &config.model.served_names;
        let http = Http {
            keys: Keys { api: config.http.api_key.as_deref().map(Key::new), control: config.http.control_key.as_deref().map(Key::new) },
            served_names: names.clone(),
            allowed_hosts: config.http.allowed_hosts.clone(),
            seed: config.seed,
            created: unix_seconds(),
        };
        let generator = service.generator().clone();
        AppState { service, generator, policy, http: Arc::new(http), health: Arc::default() }
    }

    /// The name that replies carry, or 404 when a request asks for another model.
    fn model(&self, asked: Option<&str>) -> error::ApiResult<&str> {
        let served = &self.http.served_names;
        match asked {
            None => Ok(&served[0]),
            Some(asked) => served
                .iter()
                .find(|name| *name == asked)
                .map(String::as_str)
                .ok_or_else(|| error::ApiError::model_not_found(&error::shorten(asked), served)),
        }
    }
}

/// All routes of [`ROUTES`] with the key check of their role, and what surrounds every request.
pub fn router(state: AppState) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let handler = (route.handler)().route_layer(middleware::from_fn_with_state((state.clone(), route.role), auth::require));
        // TRL's client ends its paths in a slash; a wildcard has none.
        if !route.path.ends_with('/') && !route.path.contains('*') {
            router = router.route(&format!("{}/", route.path), handler.clone());
        }
        router = router.route(route.path, handler);
    }
    router
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(middleware::from_fn_with_state(state.clone(), auth::check_host))
        .layer(middleware::from_fn(extract::take_small_body))
        .layer(CatchPanicLayer::custom(error::after_panic))
        .layer(middleware::from_fn(metrics::observe))
        .with_state(state)
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
