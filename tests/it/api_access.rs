//! Routes: the envelope of unknown ones, and who may call the known ones.

use grouper::api::{ROUTES, Role};
use serde_json::json;

use crate::common::{MODEL, Reply, Server};

/// A path of the table with its wildcards filled in.
fn concrete(path: &str) -> String {
    let filled = path.replace("{*model}", MODEL).replace("{*file}", "index.html");
    filled.replace("{rollout_id}", "rollout-1").replace("{lease_id}", "lease-1").replace("{uid}", "rollout-1-0")
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_routes_and_methods_have_the_envelope() {
    let server = Server::start("");
    for path in ["/nope", "/v1", "/v1/nope", "//v1/models", "/v1/models/other", "/docs/nope.html", "/%2e%2e/x"] {
        assert_eq!(server.get(path).await.error(404)["type"], "invalid_request_error", "{path}");
    }
    for (method, path) in [("DELETE", "/health"), ("GET", "/v1/batches/lease"), ("PUT", "/v1/models"), ("OPTIONS", "/v1/rollouts")] {
        let error = Reply::of(server.request(method, path)).await.error(405);
        assert_eq!(error["code"], "method_not_allowed", "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_the_key_of_its_role() {
    let server = Server::start("--api-key canary-data --control-key canary-control");
    for route in ROUTES {
        for path in [concrete(route.path), format!("{}/", concrete(route.path).trim_end_matches('/'))] {
            let call = |key: Option<&str>| {
                let request = server.request(route.method, &path).header("content-type", "application/json");
                Reply::of(match key {
                    Some(key) => request.header("authorization", format!("Bearer {key}")),
                    None => request,
                })
            };
            let what = format!("{} {path}", route.method);
            let (without, wrong, data, control) =
                (call(None).await, call(Some("other")).await, call(Some("canary-data")).await, call(Some("canary-control")).await);
            let refused = |reply: &Reply| matches!(reply.status.as_u16(), 401 | 403);
            assert!(!refused(&control), "{what}: {}", control.text);
            if route.role == Role::Public {
                assert!(!refused(&without) && !refused(&wrong), "{what}");
                continue;
            }
            assert_eq!(without.error(401)["code"], "missing_api_key", "{what}");
            assert_eq!(without.headers["www-authenticate"], "Bearer", "{what}");
            assert_eq!(wrong.error(401)["code"], "invalid_api_key", "{what}");
            match route.role {
                Role::Admin => assert_eq!(data.error(403)["type"], "permission_error", "{what}"),
                _ => assert!(!refused(&data), "{what}: {}", data.text),
            }
        }
    }
    let shown = [server.get("/metrics").await.text, server.get("/openapi.json").await.text, server.get("/").await.text].concat();
    assert!(!shown.contains("canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_keys_takes_any_and_answers_to_its_own_names() {
    let server = Server::start("--allow-host box.example");
    for key in ["Bearer anything", "Bearer ", "Basic eDp5"] {
        Reply::of(server.request("GET", "/v1/models").header("authorization", key)).await.ok();
    }
    for (host, status) in [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("box.example:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ] {
        let reply = Reply::of(server.request("GET", "/v1/models").header("host", host)).await;
        assert_eq!(reply.status.as_u16(), status, "{host}: {}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_describe_every_route() {
    let server = Server::start("");
    let document = server.get("/openapi.json").await.ok();
    for route in ROUTES.iter().filter(|route| route.path.starts_with("/v1/") || ["/health", "/ready", "/metrics"].contains(&route.path)) {
        let path = route.path.replace("{*", "{");
        let operation = &document["paths"][&path][route.method.to_lowercase()];
        assert!(operation["responses"]["200"].is_object(), "{} {path} is not in the document", route.method);
    }
    let known: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(known.contains(&path.replace("{model}", "{*model}").as_str()), "{path} is in the document only");
    }
    let page = server.get("/").await;
    assert!(page.text.contains(MODEL) && page.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert!(server.get("/docs").await.text.contains("swagger"));
    assert_eq!(server.get("/ready").await.ok()["status"], json!("ready"));
    let metrics = server.get("/metrics").await.text;
    for name in ["grouper_engine_running_samples", "grouper_http_requests_total", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name} is not in\n{metrics}");
    }
}
