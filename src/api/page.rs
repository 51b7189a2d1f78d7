//! `GET /`: what the server is doing, in one small page that needs no script and nothing from elsewhere.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

use super::AppState;

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

const HEAD: &str = r#"<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width"><title>grouper</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem;color:#222;background:#fff}
td{padding:.15rem 1rem .15rem 0}td+td{font-variant-numeric:tabular-nums}a{color:#05c}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}a{color:#8bf}}</style>"#;

/// The status page.
pub async fn status_page(State(state): State<AppState>) -> Response {
    let engine = state.generator.engine();
    let (info, stats) = (engine.info(), engine.stats());
    let count = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed).to_string();
    let rows = [
        ("model", state.http.served_names.join(", ")),
        ("state", if state.generator.is_draining() { "draining".into() } else { "ready".into() }),
        ("device", format!("{} ({})", info.device, info.dtype)),
        ("policy version", stats.policy_version().0.to_string()),
        ("context", format!("{} tokens", info.max_model_len)),
        ("samples running / waiting", format!("{} / {}", count(&stats.running), count(&stats.waiting))),
        ("KV blocks used / cached / all", format!("{} / {} / {}", count(&stats.blocks_used), count(&stats.blocks_cached), info.num_blocks)),
        ("tokens read / generated", format!("{} / {}", count(&stats.prompt_tokens), count(&stats.generated_tokens))),
    ];
    let mut page = format!("{HEAD}<h1>grouper</h1><table>");
    for (name, value) in rows {
        let _ = write!(page, "<tr><td>{name}<td>{}", escape(&value));
    }
    page.push_str(
        r#"</table><p><a href="/docs/">API</a> · <a href="/openapi.json">openapi.json</a> · <a href="/metrics">metrics</a> · <a href="/ready">ready</a>"#,
    );
    ([(header::CONTENT_SECURITY_POLICY, POLICY), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], Html(page)).into_response()
}

fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut page, c| {
        match c {
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '&' => page.push_str("&amp;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            c => page.push(c),
        }
        page
    })
}
