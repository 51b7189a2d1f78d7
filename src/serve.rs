//! `grouper serve`: a model's folder, its engine, the server, and an orderly end on a signal.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, AppState, ControlSocket, Server};
use crate::config::{Config, LogFormat, ServeArgs};
use crate::error::{Error, Result};
use crate::hub::{self, HubEnv};
use crate::load::{self, Loaded};
use crate::rollout::dataset::DatasetTask;
use crate::rollout::feeder::Feeder;
use crate::rollout::service::RolloutService;
use crate::store::{BatchStore, Clock, SqliteStore};

pub async fn run(args: &ServeArgs) -> Result<()> {
    let started = Instant::now();
    init_logging(args.log_format);
    let config = Config::from_args(args)?;
    // A taken port is known before gigabytes are loaded.
    let listener = api::bind(&config.http)?;
    let bars = Bars::new(args.log_format);
    let folder = hub::resolve(&config.model.source, &config.model.revision, &HubEnv::from_env(), &bars).await?;
    let mut running = Running::start(&config, &folder, listener, &bars)?;
    running.read_dataset(&config).await?;
    bars.say(&format!("limits: {}", config.limits));
    let address = running.server.address();
    bars.say(&format!("ready in {:.1} s on http://{address}  docs: /docs  health: /health", started.elapsed().as_secs_f64()));
    let signal = a_signal().await?;
    bars.say(&format!("{signal}: draining for at most {} s; once more ends it at once", config.http.drain_timeout.as_secs()));
    tokio::spawn(async {
        if a_signal().await.is_ok() {
            std::process::exit(130);
        }
    });
    running.stop(config.http.drain_timeout).await;
    bars.say("drained");
    Ok(())
}

/// A loaded model and the server in front of it.
pub struct Running {
    pub server: Server,
    pub loaded: Loaded,
    service: Arc<RolloutService>,
    feeder: Feeder,
    dataset: Option<DatasetTask>,
    _control: Option<ControlSocket>,
}

impl Running {
    /// Loads the model and serves it. Call it within a tokio runtime.
    pub fn start(config: &Config, folder: &Path, listener: std::net::TcpListener, bars: &Bars) -> Result<Self> {
        // The global pool decodes images; building it twice, as tests do, changes nothing.
        if let Some(threads) = config.engine.threads {
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        // A folder that can't be used is known before gigabytes are loaded.
        let store = open_store(config, bars)?;
        let loaded = bars.spin(|say| load::start(config, folder, say))?;
        let info = loaded.engine.info();
        let figures =
            format!("context {} tokens, {} samples at once, {} KV blocks", info.max_model_len, info.max_num_seqs, info.num_blocks);
        bars.say(&format!("{} backend, {}: {figures}", info.device, info.dtype));
        if !info.captured.rows.is_empty() {
            bars.say(&info.captured.to_string());
        }
        let name = config.model.served_names[0].clone();
        let service =
            Arc::new(RolloutService::new(loaded.generator.clone(), name, store, config.queue.clone()).with_judges(loaded.judges.clone()));
        let state = AppState::new(config, service.clone(), loaded.policy.clone());
        let control = config.http.control_socket.as_deref().map(|path| ControlSocket::start(path, state.clone())).transpose()?;
        let server = Server::start(listener, state)?;
        Ok(Running { server, loaded, feeder: Feeder::start(service.clone()), service, dataset: None, _control: control })
    }

    /// Queues the rows of the configured data set, if there is one.
    pub async fn read_dataset(&mut self, config: &Config) -> Result<()> {
        if let Some(options) = &config.dataset {
            self.dataset = Some(DatasetTask::start(self.service.clone(), options).await?);
        }
        Ok(())
    }

    /// Drains the server, then ends the engine.
    pub async fn stop(self, timeout: Duration) {
        let drained = self.server.shut_down(timeout).await;
        if let Some(dataset) = self.dataset {
            dataset.stop().await;
        }
        self.feeder.stop().await;
        self.loaded.engine.shutdown();
        // An engine with samples left ends with the process.
        if drained {
            let _ = tokio::task::spawn_blocking(move || self.loaded.thread.join()).await;
        }
    }
}

fn open_store(config: &Config, bars: &Bars) -> Result<Arc<dyn BatchStore>> {
    let options = config.queue.store.clone();
    let store = match &config.data_dir {
        Some(folder) => SqliteStore::open(folder, options, Clock::system())?,
        None => {
            bars.say("without --data-dir, queued groups, leases and idempotency keys end with this process");
            SqliteStore::in_memory(options, Clock::system())?
        }
    };
    Ok(Arc::new(store))
}

/// Resolves with the name of the next SIGINT or SIGTERM.
pub async fn a_signal() -> Result<&'static str> {
    let setup = |e: std::io::Error| Error::Setup(format!("signals can't be awaited: {e}"));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate()).map_err(setup)?, signal(SignalKind::interrupt()).map_err(setup)?);
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

pub fn init_logging(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,hyper=warn,reqwest=warn".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A second call, as tests make it, finds the first one's.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// What a start tells on the way: bars on a terminal, lines elsewhere, log records when those are JSON.
pub struct Bars {
    terminal: bool,
    json: bool,
    quiet: bool,
    file: Mutex<Option<ProgressBar>>,
}

impl Bars {
    pub fn new(format: LogFormat) -> Self {
        let json = format == LogFormat::Json;
        Bars { terminal: std::io::stderr().is_terminal() && !json, json, quiet: false, file: Mutex::new(None) }
    }

    /// Says nothing.
    pub fn quiet() -> Self {
        Bars { terminal: false, json: false, quiet: true, file: Mutex::new(None) }
    }

    pub fn say(&self, line: &str) {
        match (self.quiet, self.json) {
            (true, _) => {}
            (false, true) => tracing::info!("{line}"),
            (false, false) => eprintln!("{line}"),
        }
    }

    /// Runs work that says what it is at, with a spinner on a terminal.
    fn spin<T>(&self, work: impl FnOnce(&dyn Fn(&str)) -> T) -> T {
        if !self.terminal || self.quiet {
            return work(&|line| self.say(line));
        }
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(Duration::from_millis(100));
        let result = work(&|line| spinner.set_message(line.to_owned()));
        spinner.finish_and_clear();
        result
    }

    fn with_file(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl hub::Progress for Bars {
    fn say(&self, line: &str) {
        Bars::say(self, line);
    }

    fn begin_file(&self, name: &str, done: u64, total: u64) {
        if !self.terminal || self.quiet {
            return Bars::say(self, &format!("fetching {name} ({:.1} MB)", (total - done.min(total)) as f64 / 1e6));
        }
        let style = ProgressStyle::with_template("{msg:32!} {bar:30} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {eta}");
        let bar = ProgressBar::new(total).with_message(name.to_owned()).with_position(done);
        self.with_file(|file| *file = Some(style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)));
    }

    fn advance(&self, bytes: u64) {
        self.with_file(|file| {
            if let Some(bar) = file {
                bar.inc(bytes);
            }
        });
    }

    fn end_file(&self) {
        self.with_file(|file| {
            if let Some(bar) = file.take() {
                bar.finish();
            }
        });
    }
}
