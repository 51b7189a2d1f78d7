//! Server-sent events, made by a task that ends when nobody listens.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;

/// The caller has left.
pub struct Gone;

/// Where a stream's events go.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Result<Event, Infallible>>);

impl Events {
    /// An event without a name, as OpenAI's streams have them.
    pub async fn data(&self, value: &impl Serialize) -> Result<(), Gone> {
        self.send(Event::default(), value).await
    }

    pub async fn named(&self, name: &str, value: &impl Serialize) -> Result<(), Gone> {
        self.send(Event::default().event(name), value).await
    }

    /// The error in its envelope: OpenAI's clients raise it.
    pub async fn error(&self, error: &ApiError) -> Result<(), Gone> {
        self.data(&error.body()).await?;
        self.done().await
    }

    pub async fn done(&self) -> Result<(), Gone> {
        self.0.send(Ok(Event::default().data("[DONE]"))).await.map_err(|_| Gone)
    }

    /// Resolves when the caller has left.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    async fn send(&self, event: Event, value: &impl Serialize) -> Result<(), Gone> {
        // Nothing that is sent has maps with keys other than strings, the one thing that JSON can't write.
        let text = serde_json::to_string(value).unwrap_or_else(|e| panic!("an event is not JSON: {e}"));
        self.0.send(Ok(event.data(text))).await.map_err(|_| Gone)
    }
}

/// A reply whose events `make` sends. It is dropped, with all it holds, as soon as the caller leaves.
pub fn respond<F>(make: impl FnOnce(Events) -> F) -> Response
where
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let events = Events(sender);
    let mut making = tokio::spawn(make(events.clone()));
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = &mut making => ended,
            () = events.closed() => return making.abort(),
        };
        if ended.is_err() {
            // It panicked, which is in the log.
            let _ = events.error(&ApiError::internal()).await;
        }
    });
    let mut response =
        Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response();
    // Proxies that collect a reply before passing it on defeat the purpose.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
