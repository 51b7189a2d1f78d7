//! Fetching a model from a hub: a stand-in on loopback, with redirects, etags and ranges as the real one has them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use grouper::hub::{self, HubEnv};
use grouper::serve::Bars;
use serde_json::json;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone, Default)]
struct Hub {
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// `METHOD path range`, and whether a token came along.
    log: Arc<Mutex<Vec<(String, bool)>>>,
    needs_token: bool,
}

impl Hub {
    /// Serves on a free port and gives the endpoint.
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}")
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap()).into_iter().map(|(line, _)| line).collect()
    }
}

async fn answer(State(hub): State<Hub>, request: Request) -> Response<Body> {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (path, range, token) = (request.uri().path().to_owned(), header("range"), header("authorization"));
    let line = format!("{} {path} {}", request.method(), range.as_deref().unwrap_or("-"));
    hub.log.lock().unwrap().push((line, token.is_some()));
    let reply = |status: StatusCode| Response::builder().status(status);
    let store = path.strip_prefix("/store/");
    if hub.needs_token && store.is_none() && token.as_deref() != Some("Bearer secret") {
        return reply(StatusCode::UNAUTHORIZED).body(Body::empty()).unwrap();
    }
    if ["main", COMMIT].iter().any(|revision| path == format!("/api/models/org/small/revision/{revision}")) {
        let names: Vec<_> = hub.files.lock().unwrap().keys().map(|name| json!({"rfilename": name})).collect();
        return reply(StatusCode::OK).body(Body::from(json!({"sha": COMMIT, "siblings": names}).to_string())).unwrap();
    }
    let name = path.strip_prefix(&format!("/org/small/resolve/{COMMIT}/")).or(store).unwrap_or_default();
    let Some(bytes) = hub.files.lock().unwrap().get(name).cloned() else {
        return reply(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    };
    let etag = format!("\"{}-{}\"", name.replace(['.', '/'], "-"), bytes.len());
    if name.ends_with(".safetensors") && store.is_none() {
        let moved = reply(StatusCode::FOUND).header("location", format!("/store/{name}"));
        return moved.header("x-linked-etag", etag).header("x-linked-size", bytes.len()).body(Body::empty()).unwrap();
    }
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let builder = match from {
        Some(from) => {
            reply(StatusCode::PARTIAL_CONTENT).header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))
        }
        None => reply(StatusCode::OK),
    };
    // Of a store that is not the hub the etag says nothing.
    let etag = if store.is_some() { "\"other\"".to_owned() } else { etag };
    let rest = bytes[from.unwrap_or(0)..].to_vec();
    builder.header("etag", etag).header("content-length", rest.len()).body(Body::from(rest)).unwrap()
}

fn a_model() -> Hub {
    let hub = Hub::default();
    let files = [
        ("config.json", "{}"),
        ("tokenizer.json", "{\"t\":1}"),
        ("README.md", "#"),
        ("pytorch_model.bin", "pickle"),
        ("onnx/model.safetensors", "no"),
    ];
    let mut all: HashMap<String, Vec<u8>> = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
    all.insert("model.safetensors".into(), (0..100_000_u32).map(|i| i as u8).collect());
    *hub.files.lock().unwrap() = all;
    hub
}

fn env(cache: &Path, endpoint: &str) -> HubEnv {
    let _ = rustls::crypto::ring::default_provider().install_default();
    HubEnv { cache: cache.to_owned(), endpoint: endpoint.to_owned(), token: None, offline: false }
}

async fn resolve(env: &HubEnv) -> Result<PathBuf, String> {
    hub::resolve("org/small", "main", env, &Bars::quiet()).await.map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_fetched_once_into_the_shared_layout() {
    let (hub, cache) = (a_model(), tempfile::tempdir().unwrap());
    let env = env(cache.path(), &hub.start().await);
    let folder = resolve(&env).await.unwrap();
    let repo = cache.path().join("models--org--small");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs/model-safetensors-100000"));
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), hub.files.lock().unwrap()["model.safetensors"]);
    for unwanted in ["README.md", "pytorch_model.bin", "onnx"] {
        assert!(!folder.join(unwanted).exists(), "{unwanted}");
    }
    hub.requests();
    resolve(&env).await.unwrap();
    assert_eq!(hub.requests(), ["GET /api/models/org/small/revision/main -"], "the second time it is all there");

    let offline = HubEnv { offline: true, ..env.clone() };
    assert_eq!(resolve(&offline).await.as_ref(), Ok(&folder));
    let gone = HubEnv { endpoint: "http://127.0.0.1:9".into(), ..env };
    assert_eq!(resolve(&gone).await.as_ref(), Ok(&folder), "a hub out of reach is no reason not to start");
    assert!(hub.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_download_goes_on_where_it_was() {
    let (hub, cache) = (a_model(), tempfile::tempdir().unwrap());
    let env = env(cache.path(), &hub.start().await);
    let blobs = cache.path().join("models--org--small/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let whole = hub.files.lock().unwrap()["model.safetensors"].clone();
    std::fs::write(blobs.join("model-safetensors-100000.incomplete"), &whole[..60_000]).unwrap();
    let folder = resolve(&env).await.unwrap();
    assert!(hub.requests().contains(&"GET /store/model.safetensors bytes=60000-".to_owned()));
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), whole);
    assert!(std::fs::read_dir(blobs).unwrap().all(|entry| !entry.unwrap().file_name().to_string_lossy().contains("incomplete")));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_open_private_models_and_refusals_say_what_to_do() {
    let (hub, cache) = (Hub { needs_token: true, ..a_model() }, tempfile::tempdir().unwrap());
    let env = env(cache.path(), &hub.start().await);
    assert!(resolve(&env).await.unwrap_err().contains("HF_TOKEN"));
    resolve(&HubEnv { token: Some("secret".into()), ..env.clone() }).await.unwrap();
    for (source, says) in [
        ("org/other", "no such model"),
        ("./nowhere", "no such folder"),
        ("a/b/c", "no such folder"),
        (cache.path().to_str().unwrap(), "no config.json"),
    ] {
        let env = HubEnv { token: Some("secret".into()), ..env.clone() };
        let message = hub::resolve(source, "main", &env, &Bars::quiet()).await.unwrap_err().to_string();
        assert!(message.contains(says), "{source}: {message}");
    }
    let empty = tempfile::tempdir().unwrap();
    let offline = HubEnv { offline: true, cache: empty.path().to_owned(), ..env };
    assert!(resolve(&offline).await.unwrap_err().contains("HF_HUB_OFFLINE"));
}
