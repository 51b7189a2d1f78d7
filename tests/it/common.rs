//! A server in this process, on a free port, with a golden model on the CPU; and an HTTP client for it.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use grouper::api;
use grouper::config::{Config, ServeArgs};
use grouper::serve::{Bars, Running};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::golden;

/// The model that [`Server::start`] serves, and its only name.
pub const MODEL: &str = "tiny-vl";
/// Prompt and completion together.
pub const CONTEXT: usize = 512;

pub struct Server {
    pub url: String,
    pub client: Client,
    config: Config,
    running: Option<Running>,
}

impl Server {
    /// Serves with these flags on top of small defaults. Call it within a multi-threaded runtime.
    pub fn start(flags: &str) -> Self {
        Server::serve(&golden::model(MODEL), flags)
    }

    /// As [`Server::start`], another folder.
    pub fn serve(folder: &Path, flags: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let context = CONTEXT.to_string();
        let defaults = ["--port", "0", "--threads", "1", "--max-model-len", &context, "--kv-cache-memory", "16M"];
        let words = ["serve", folder.to_str().unwrap()].into_iter().chain(defaults).chain(flags.split_whitespace());
        let config = Config::from_args(&ServeArgs::try_parse_from(words).unwrap()).unwrap();
        let running = Running::start(&config, folder, api::bind(&config.http).unwrap(), &Bars::quiet()).unwrap();
        let client = Client::builder().no_proxy().build().unwrap();
        Server { url: format!("http://{}", running.server.address()), client, config, running: Some(running) }
    }

    /// Queues the rows of the data set that the flags name.
    pub async fn read_dataset(&mut self) -> grouper::error::Result<()> {
        self.running.as_mut().unwrap().read_dataset(&self.config).await
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{path}", self.url)).timeout(Duration::from_secs(60))
    }

    pub async fn get(&self, path: &str) -> Reply {
        Reply::of(self.request("GET", path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::of(self.request("POST", path).json(body)).await
    }

    /// A body as it is, with the JSON media type.
    pub async fn post_text(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        Reply::of(self.request("POST", path).header("content-type", "application/json").body(body)).await
    }

    /// The server itself, for its engine and its end.
    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Waits until nothing is in flight and asks the block pool for its own check.
    pub async fn assert_idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let in_flight = self.running().loaded.generator.samples_in_flight();
            let audit = self.running().loaded.engine.audit().await.unwrap();
            if in_flight == 0 && audit.groups == 0 && audit.slots_used == 0 && audit.blocks_used == 0 {
                assert_eq!(audit.blocks_free + audit.blocks_cached, audit.blocks_total, "{audit:?}");
                return;
            }
            assert!(Instant::now() < deadline, "{in_flight} samples in flight, {audit:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn stop(mut self) {
        self.running.take().unwrap().stop(Duration::from_secs(10)).await;
    }
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    pub took: Duration,
}

impl Reply {
    pub async fn of(request: RequestBuilder) -> Self {
        let start = Instant::now();
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Reply { status, headers, text: response.text().await.unwrap(), took: start.elapsed() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }

    /// Checks that this is an error in OpenAI's envelope and gives its `error`.
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error in {}", self.text));
        assert_eq!(error.keys().map(String::as_str).collect::<Vec<_>>(), ["type", "code", "param", "message"], "{}", self.text);
        assert!(error["type"].is_string() && error["code"].is_string() && error["message"].is_string(), "{}", self.text);
        for leak in ["/root", "/home", "src/", "0x", "panicked", ".rs:"] {
            assert!(!self.text.contains(leak), "the error shows {leak}: {}", self.text);
        }
        body["error"].clone()
    }

    /// The text of a reply with this status, which need not be an error of the API.
    pub fn error_text(&self, status: u16) -> &str {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        &self.text
    }

    /// The `data` of server-sent events, with the event's name where it has one.
    pub fn events(&self) -> Vec<(String, String)> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        let events = self.text.split("\n\n").filter_map(|event| {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_start().to_owned());
            Some((field("event:").unwrap_or_default(), field("data:")?))
        });
        events.collect()
    }

    /// The chunks of an OpenAI stream, which must end in `[DONE]`.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().map(|(_, data)| data).as_deref(), Some("[DONE]"), "{}", self.text);
        events.into_iter().map(|(_, data)| serde_json::from_str(&data).unwrap()).collect()
    }
}

pub fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// A message with an image as a data URL and a text.
pub fn user_with_image(data_url: &str, text: &str) -> Value {
    json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": text}]}])
}

pub fn data_url(bytes: &[u8]) -> String {
    use base64::Engine;
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// A small picture with some structure.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 5) as u8, (y * 3) as u8, ((x ^ y) * 7) as u8]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}
