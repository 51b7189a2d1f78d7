//! Listening, serving and the orderly end.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{AppState, metrics, router};
use crate::config::HttpConfig;
use crate::error::{Error, Result};

/// Takes the address, or says which flag chooses another.
pub fn bind(http: &HttpConfig) -> Result<TcpListener> {
    let address = SocketAddr::new(http.host, http.port);
    TcpListener::bind(address).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::AddrInUse => format!("port {} is taken by another process; choose one with --port", http.port),
            std::io::ErrorKind::PermissionDenied => format!("port {} needs privileges; choose one above 1023 with --port", http.port),
            std::io::ErrorKind::AddrNotAvailable => format!("no interface of this machine has the address {}; see --host", http.host),
            _ => error.to_string(),
        };
        Error::Setup(format!("can't listen on {address}: {why}"))
    })
}

/// A server that runs until it is shut down.
pub struct Server {
    address: SocketAddr,
    state: AppState,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    upkeep: JoinHandle<()>,
}

impl Server {
    /// Serves on a listener from [`bind`]. Call it within a tokio runtime.
    pub fn start(listener: TcpListener, state: AppState) -> Result<Self> {
        let setup = |error: std::io::Error| Error::Setup(format!("can't serve: {error}"));
        listener.set_nonblocking(true).map_err(setup)?;
        let address = listener.local_addr().map_err(setup)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(setup)?;
        let (stop, stopped) = oneshot::channel();
        let app = router(state.clone());
        let serving = tokio::spawn(async move {
            let until = async { _ = stopped.await };
            if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(until).await {
                tracing::error!("serving ended: {error}");
            }
        });
        Ok(Server { address, state, stop, serving, upkeep: tokio::spawn(metrics::upkeep()) })
    }

    /// Where it listens; the port is a real one even when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Refuses new work, lets running samples end for at most `timeout`, then closes. True when all of them ended.
    ///
    /// Until then the server answers: `/ready` and new work get 503, so that a balancer sees what is going on.
    pub async fn shut_down(self, timeout: Duration) -> bool {
        let generator = &self.state.generator;
        generator.drain();
        let deadline = Instant::now() + timeout;
        while generator.samples_in_flight() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let left = generator.samples_in_flight();
        if left > 0 {
            tracing::warn!("{left} samples had not ended after {} s (--drain-timeout) and are dropped", timeout.as_secs());
        }
        let _ = self.stop.send(());
        // What is left are replies on their way and connections without a request.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.serving).await;
        self.upkeep.abort();
        left == 0
    }
}
