//! `/metrics`: Prometheus text. What requests did is counted through the `metrics` crate; the engine's own figures are written
//! as they stand, under grouper's names and under the names that dashboards made for vLLM read.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics::{counter, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::AppState;
use crate::engine::handle::{EngineInfo, EngineStats};
use crate::engine::request::{FinishReason, SampleOutput};
use crate::store::{Counts, QueueCounts};

/// Seconds: a token of a small model takes a millisecond, a long rollout minutes.
const SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const SAMPLES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The process-wide recorder, installed on first use.
fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("params_n".into()), SAMPLES));
        let recorder = builder.unwrap_or_else(|e| panic!("{SECONDS:?} and {SAMPLES:?} are no bucket bounds: {e}")).build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed; /metrics shows the engine's figures only");
        }
        handle
    })
}

/// Keeps histograms from growing between two scrapes.
pub async fn upkeep() {
    loop {
        recorder().run_upkeep();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Layer around every request: counts and times it by its route, and gives it an id.
pub async fn observe(request: Request, next: Next) -> Response {
    recorder();
    let route = match request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) {
        Some("/") => "/".to_owned(),
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => "unknown".to_owned(),
    };
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "PUT" | "DELETE" | "HEAD") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let id = format!("req-{:016x}", random_u64());
    let started = Instant::now();
    let mut response = next.run(request).await;
    let status = response.status();
    tracing::debug!(%id, %method, %route, status = status.as_u16(), ms = started.elapsed().as_millis() as u64, "answered");
    let labels = [("method", method), ("route", route.clone()), ("status", status.as_str().to_owned())];
    counter!("grouper_http_requests_total", &labels).increment(1);
    histogram!("grouper_http_request_seconds", "route" => route).record(started.elapsed().as_secs_f64());
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// A random number for ids and drawn seeds.
pub fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Counts one finished sample of plain inference, as vLLM counts a request.
pub fn sample_finished(model: &str, output: &SampleOutput) {
    let model = model.to_owned();
    let reason = match output.finish_reason {
        FinishReason::StopToken(_) | FinishReason::StopWatch => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
        FinishReason::Corrupt => "error",
    };
    counter!("vllm:request_success_total", "model_name" => model.clone(), "finished_reason" => reason).increment(1);
    let timing = output.timing;
    let first_token = timing.queue + timing.prefill;
    let decoded = output.token_ids.len().saturating_sub(1);
    let figures = [
        ("vllm:request_queue_time_seconds", timing.queue),
        ("vllm:request_prefill_time_seconds", timing.prefill),
        ("vllm:request_decode_time_seconds", timing.decode),
        ("vllm:time_to_first_token_seconds", first_token),
        ("vllm:e2e_request_latency_seconds", first_token + timing.decode),
    ];
    for (name, time) in figures {
        histogram!(name, "model_name" => model.clone()).record(time.as_secs_f64());
    }
    if decoded > 0 {
        histogram!("vllm:inter_token_latency_seconds", "model_name" => model).record(timing.decode.as_secs_f64() / decoded as f64);
    }
}

pub fn request_started(model: &str, n: usize) {
    histogram!("vllm:request_params_n", "model_name" => model.to_owned()).record(n as f64);
}

/// Figures in Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses((status = 200, content_type = "text/plain", body = String)))]
pub async fn metrics(State(state): State<AppState>) -> Response {
    let engine = state.generator.engine();
    let mut text = recorder().render();
    write_engine(&mut text, engine.info(), engine.stats(), &state.http.served_names[0]);
    write_one(&mut text, "grouper_draining", "gauge", "1 while no new work is accepted", "", f64::from(state.generator.is_draining()));
    // A store that can't count is said by /ready.
    if let Ok(counts) = state.service.store().counts().await {
        write_store(&mut text, &counts);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn write_one(text: &mut String, name: &str, kind: &str, help: &str, labels: &str, value: f64) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}\n");
}

fn write_store(text: &mut String, counts: &Counts) {
    let mut family = |name: &str, kind: &str, help: &str, figures: &dyn Fn(&QueueCounts) -> Vec<(String, f64)>| {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (queue, counts) in counts {
            for (labels, value) in figures(counts) {
                let _ = writeln!(text, "{name}{{queue=\"{}\"{labels}}} {value}", label(queue));
            }
        }
    };
    family("grouper_queue_groups", "gauge", "Groups by state", &|counts| {
        let states = [
            ("pending", counts.pending - counts.generating),
            ("generating", counts.generating),
            ("ready", counts.ready),
            ("leased", counts.leased),
            ("dead", counts.dead),
        ];
        states.map(|(state, count)| (format!(",state=\"{state}\""), count as f64)).into()
    });
    family("grouper_queue_accepted_total", "counter", "Groups accepted since the store began", &|counts| {
        vec![(String::new(), counts.accepted as f64)]
    });
    family("grouper_queue_acked_total", "counter", "Groups acked since the store began", &|counts| {
        vec![(String::new(), counts.acked as f64)]
    });
    family("grouper_queue_dropped_total", "counter", "Groups dropped since the store began", &|counts| {
        counts.dropped.iter().map(|(reason, count)| (format!(",reason=\"{}\"", label(reason)), *count as f64)).collect()
    });
    family("grouper_queue_missing", "gauge", "accepted - acked - dropped - dead - in flight: must be 0", &|counts| {
        vec![(String::new(), counts.missing() as f64)]
    });
}

fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn write_engine(text: &mut String, info: &EngineInfo, stats: &EngineStats, model: &str) {
    let own = [
        ("grouper_engine_running_samples", "gauge", "Samples in the running batch", &stats.running),
        ("grouper_engine_waiting_samples", "gauge", "Samples that wait for room", &stats.waiting),
        ("grouper_engine_blocks_used", "gauge", "KV blocks held by live groups and samples", &stats.blocks_used),
        ("grouper_engine_blocks_cached", "gauge", "KV blocks held by the prefix cache alone", &stats.blocks_cached),
        ("grouper_engine_steps_total", "counter", "Steps of the engine", &stats.steps),
        ("grouper_engine_preemptions_total", "counter", "Samples that gave up their blocks for a while", &stats.preemptions),
        ("grouper_engine_prompt_tokens_total", "counter", "Prompt tokens computed or found in the cache", &stats.prompt_tokens),
        ("grouper_engine_generated_tokens_total", "counter", "Tokens drawn and kept", &stats.generated_tokens),
        ("grouper_engine_discarded_tokens_total", "counter", "Tokens drawn after an end that was seen late", &stats.discarded_tokens),
        ("grouper_engine_prefix_queries_total", "counter", "Prompt tokens looked up in the prefix cache", &stats.prefix_queries),
        ("grouper_engine_prefix_hits_total", "counter", "Prompt tokens found in the prefix cache", &stats.prefix_hits),
        ("grouper_engine_vision_encoded_total", "counter", "Images and videos encoded", &stats.vision_encoded),
        ("grouper_engine_vision_hits_total", "counter", "Images and videos whose features were cached", &stats.vision_hits),
        ("grouper_engine_corrupt_samples_total", "counter", "Samples with logits that were not finite", &stats.corrupt_samples),
        ("grouper_policy_swap_nanoseconds_total", "counter", "Time without a step for new weights", &stats.swap_ns),
        ("grouper_policy_version", "gauge", "Version of the weights", &stats.policy_version),
    ];
    for (name, kind, help, figure) in own {
        write_one(text, name, kind, help, "", figure.load(Relaxed) as f64);
    }
    write_one(text, "grouper_engine_blocks", "gauge", "KV blocks in all", "", info.num_blocks as f64);
    let times = [
        ("plan", &stats.plan_ns),
        ("forward", &stats.forward_ns),
        ("sample", &stats.sample_ns),
        ("vision", &stats.vision_ns),
        ("finish", &stats.finish_ns),
    ];
    text.push_str("# HELP grouper_engine_seconds_total Time of the engine by kind of work\n# TYPE grouper_engine_seconds_total counter\n");
    for (work, figure) in times {
        let _ = writeln!(text, "grouper_engine_seconds_total{{work=\"{work}\"}} {}", figure.load(Relaxed) as f64 / 1e9);
    }
    let used_share = stats.blocks_used.load(Relaxed) as f64 / (info.num_blocks as f64).max(1.0);
    let aliases = [
        ("vllm:num_requests_running", "gauge", stats.running.load(Relaxed) as f64),
        ("vllm:num_requests_waiting", "gauge", stats.waiting.load(Relaxed) as f64),
        ("vllm:kv_cache_usage_perc", "gauge", used_share),
        ("vllm:prefix_cache_queries_total", "counter", stats.prefix_queries.load(Relaxed) as f64),
        ("vllm:prefix_cache_hits_total", "counter", stats.prefix_hits.load(Relaxed) as f64),
        ("vllm:mm_cache_queries_total", "counter", (stats.vision_hits.load(Relaxed) + stats.vision_encoded.load(Relaxed)) as f64),
        ("vllm:mm_cache_hits_total", "counter", stats.vision_hits.load(Relaxed) as f64),
        ("vllm:num_preemptions_total", "counter", stats.preemptions.load(Relaxed) as f64),
        ("vllm:prompt_tokens_total", "counter", stats.prompt_tokens.load(Relaxed) as f64),
        ("vllm:generation_tokens_total", "counter", stats.generated_tokens.load(Relaxed) as f64),
        ("vllm:corrupted_requests_total", "counter", stats.corrupt_samples.load(Relaxed) as f64),
    ];
    let labels = format!("{{model_name=\"{}\"}}", label(model));
    for (name, kind, value) in aliases {
        write_one(text, name, kind, "Alias for dashboards made for vLLM", &labels, value);
    }
}
