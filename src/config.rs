//! The command line ([`Cli`]: what was typed) and what it means ([`Config`]): the only place with defaults and limits.
//!
//! Spellings are vLLM's where vLLM has the flag. Every flag can come from the environment as `GROUPER_…`.

mod args;
mod scoring;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

pub use args::{
    BenchArgs, Cli, Command, DemoArgs, DtypeArg, EngineArgs, KernelsCommand, LogFormat, OnRestart, QueueArgs, SelftestArgs, SelftestPart,
    ServeArgs,
};
pub use scoring::{JudgeArgs, ScoreArgs};

use crate::backends::cuda;
use crate::bench::{BenchConfig, OutputLen, WORKLOADS, Workload};
use crate::engine::{Device, EngineConfig, KvBudget, ServingDtype};
use crate::error::{Error, Result};
use crate::judges::JudgeConfig;
use crate::policy::PolicyConfig;
use crate::processor::ProcessorOptions;
use crate::processor::media::MediaOptions;
use crate::rollout::dataset::DatasetOptions;
use crate::rollout::limits::Limits;
use crate::rollout::service::QueueOptions;
use crate::selftest::SelftestConfig;
use crate::store::StoreOptions;

/// Everything that was decided before the server starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub model: ModelConfig,
    pub http: HttpConfig,
    pub engine: EngineConfig,
    /// Seed of requests that bring none; `None` draws one for each.
    pub seed: Option<u64>,
    pub processor: ProcessorOptions,
    pub limits: Limits,
    pub queue: QueueOptions,
    /// Where the store is; in memory when `None`.
    pub data_dir: Option<PathBuf>,
    pub dataset: Option<DatasetOptions>,
    pub policy: PolicyConfig,
    pub judges: JudgeConfig,
}

#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Hub id or folder, as given.
    pub source: String,
    pub revision: String,
    /// The first is the one that replies carry.
    pub served_names: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub host: IpAddr,
    pub port: u16,
    pub api_key: Option<String>,
    pub control_key: Option<String>,
    /// Names answered to beside those of loopback; `None` when the server is bound beyond loopback and answers to all.
    pub allowed_hosts: Option<Vec<String>>,
    pub drain_timeout: Duration,
    /// Unix socket for weights by CUDA IPC.
    pub control_socket: Option<PathBuf>,
}

impl Config {
    /// # Errors
    ///
    /// A flag with a value that can't be meant, a device that this build lacks, an open server without a key.
    pub fn from_args(args: &ServeArgs) -> Result<Self> {
        let model = ModelConfig {
            source: args.model.clone(),
            revision: args.revision.clone(),
            served_names: match args.served_model_name.as_slice() {
                [] => vec![default_name(&args.model)],
                names => names.to_vec(),
            },
        };
        let limits = Limits {
            max_groups_per_request: at_least_1("--max-groups-per-request", args.max_groups_per_request)?,
            max_sequences_in_flight: at_least_1("--max-queued-samples", args.max_queued_samples)?,
            max_body_bytes: at_least_1("--max-body-mb", args.max_body_mb)? << 20,
            ..Limits::default()
        };
        let media = MediaOptions {
            media_root: args.media_root.clone(),
            allow_media_domains: args.allow_media_domain.clone(),
            allow_remote_media: args.allow_remote_media,
            ..MediaOptions::default()
        };
        let processor = ProcessorOptions { media, ..ProcessorOptions::default() };
        let engine = EngineConfig { reference: args.reference, ..engine(&args.engine)? };
        let judges = args.judges.config(engine.device, engine.dtype, engine.threads)?;
        let policy = PolicyConfig {
            root: args.policy_root.clone(),
            data_dir: args.data_dir.clone(),
            serve_held: args.on_restart == OnRestart::ServeHeld,
            stage_ttl: args.stage_ttl,
        };
        Ok(Config {
            policy,
            model,
            http: http(args)?,
            engine,
            seed: args.seed,
            processor,
            limits,
            queue: queue(&args.queue)?,
            data_dir: args.data_dir.clone(),
            dataset: dataset(args)?,
            judges,
        })
    }
}

fn queue(args: &QueueArgs) -> Result<QueueOptions> {
    let at_least_one = |flag: &str, value: u32| at_least_1(flag, value as usize).map(|value| value as u32);
    let store = StoreOptions {
        max_queued_groups: at_least_1("--max-queued-groups", args.max_queued_groups)?,
        max_deliveries: at_least_one("--max-deliveries", args.max_deliveries)?,
        max_generations: at_least_one("--max-generations", args.max_generations)?,
        key_ttl_ms: args.idempotency_ttl.as_millis() as u64,
        ..StoreOptions::default()
    };
    Ok(QueueOptions { store, max_staleness: args.max_staleness })
}

fn dataset(args: &ServeArgs) -> Result<Option<DatasetOptions>> {
    let (scratch, args) = (args.data_dir.clone(), &args.queue);
    let max_ahead = at_least_1("--max-ahead", args.max_ahead)?;
    if args.dataset.is_some() && max_ahead > args.max_queued_groups {
        return Err(Error::Setup(format!("--max-ahead {max_ahead}: more than --max-queued-groups {}", args.max_queued_groups)));
    }
    let epochs = args.epochs.map(|epochs| at_least_1("--epochs", epochs).map(|epochs| epochs as u64)).transpose()?;
    Ok(args.dataset.clone().map(|file| DatasetOptions { file, config: args.rollout_config.clone(), max_ahead, epochs, scratch }))
}

fn http(args: &ServeArgs) -> Result<HttpConfig> {
    let host = match args.host.as_str() {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        other => other
            .trim_matches(['[', ']'])
            .parse()
            .map_err(|_| Error::Setup(format!("--host {other}: not an IP address (127.0.0.1, 0.0.0.0, ::1, …)")))?,
    };
    for (flag, key) in [("--api-key", &args.api_key), ("--control-key", &args.control_key)] {
        if key.as_deref().is_some_and(|key| key.trim() != key || key.is_empty()) {
            return Err(Error::Setup(format!("{flag}: empty, or with spaces around it")));
        }
    }
    if !host.is_loopback() && args.api_key.is_none() && !args.insecure {
        return Err(Error::Setup(format!(
            "--host {host} can be reached from other machines: set --api-key (GROUPER_API_KEY), or say --insecure to serve everyone"
        )));
    }
    Ok(HttpConfig {
        host,
        port: args.port,
        api_key: args.api_key.clone(),
        control_key: args.control_key.clone(),
        allowed_hosts: host.is_loopback().then(|| args.allow_host.clone()),
        drain_timeout: Duration::from_secs(args.drain_timeout),
        control_socket: args.control_socket.clone(),
    })
}

/// The device that was asked for; `auto` is a GPU if one can be used.
///
/// # Errors
///
/// A name that is none, and a GPU that can't be used, with the reason.
pub fn device(name: &str) -> Result<Device> {
    let wrong = || Error::Setup(format!("--device {name}: not auto, cpu or cuda:N"));
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(if cuda::usable(0).is_ok() { Device::Cuda(0) } else { Device::Cpu }),
        other => {
            let ordinal = match other.strip_prefix("cuda").ok_or_else(wrong)? {
                "" => 0,
                rest => rest.strip_prefix(':').and_then(|n| n.parse().ok()).ok_or_else(wrong)?,
            };
            cuda::usable(ordinal).map_err(|e| Error::Setup(format!("--device {name}: {e}")))?;
            Ok(Device::Cuda(ordinal))
        }
    }
}

/// Samples at once and tokens of a step on a GPU when nobody says.
const GPU_NUM_SEQS: usize = 512;
const GPU_BATCHED_TOKENS: usize = 8192;

fn engine(args: &EngineArgs) -> Result<EngineConfig> {
    let device = device(&args.device)?;
    let mut defaults = EngineConfig { device, ..EngineConfig::default() };
    if device != Device::Cpu {
        defaults.dtype = ServingDtype::Bfloat16;
        defaults.max_num_seqs = GPU_NUM_SEQS;
        defaults.max_num_batched_tokens = GPU_BATCHED_TOKENS;
    }
    if !(0.05..=1.0).contains(&args.gpu_memory_utilization) {
        return Err(Error::Setup(format!("--gpu-memory-utilization {}: must be from 0.05 to 1", args.gpu_memory_utilization)));
    }
    Ok(EngineConfig {
        dtype: match (args.dtype, device) {
            (DtypeArg::Auto, _) => defaults.dtype,
            (DtypeArg::Float32, Device::Cuda(_)) => return Err(Error::Setup("--dtype float32: a GPU serves bfloat16".into())),
            (DtypeArg::Float32, Device::Cpu) => ServingDtype::Float32,
            (DtypeArg::Bfloat16, _) => ServingDtype::Bfloat16,
        },
        gpu_memory_utilization: args.gpu_memory_utilization,
        enforce_eager: args.enforce_eager,
        max_model_len: args.max_model_len.map(|len| at_least("--max-model-len", len, 2)).transpose()?,
        max_num_seqs: at_least_1("--max-num-seqs", args.max_num_seqs.unwrap_or(defaults.max_num_seqs))?,
        max_num_batched_tokens: at_least_1(
            "--max-num-batched-tokens",
            args.max_num_batched_tokens.unwrap_or(defaults.max_num_batched_tokens),
        )?,
        kv_cache: match (args.num_gpu_blocks_override, args.kv_cache_memory) {
            (Some(blocks), _) => KvBudget::Blocks(at_least("--num-gpu-blocks-override", blocks, 3)?),
            (None, Some(bytes)) => KvBudget::Bytes(bytes),
            (None, None) => defaults.kv_cache,
        },
        prefix_caching: !args.no_enable_prefix_caching,
        threads: args.threads.map(|threads| at_least_1("--threads", threads)).transpose()?,
        ..defaults
    })
}

impl SelftestArgs {
    /// # Errors
    ///
    /// A device that can't be used, and no sequences.
    pub fn config(&self, model: PathBuf) -> Result<SelftestConfig> {
        let sequences = self.sequences.unwrap_or(if self.small { 128 } else { 1024 });
        let sequences = at_least_1("--sequences", sequences)?;
        let [kernels, engine] = [SelftestPart::Kernels, SelftestPart::Engine].map(|part| self.only.is_none_or(|only| only == part));
        let max_tokens = self.max_tokens.map(|tokens| at_least_1("--max-tokens", tokens)).transpose()?;
        Ok(SelftestConfig {
            device: device(&self.device)?,
            small: self.small,
            kernels,
            engine,
            model,
            sequences,
            max_tokens,
            enforce_eager: self.enforce_eager,
        })
    }
}

/// The number of a GPU.
///
/// # Errors
///
/// A device that is none, or one that can't be used.
pub fn gpu(name: &str) -> Result<usize> {
    match device(name)? {
        Device::Cpu => Err(Error::Setup(format!("--device {name}: this is for a GPU"))),
        Device::Cuda(ordinal) => Ok(ordinal),
    }
}

impl BenchArgs {
    /// What to run on a model's folder.
    ///
    /// # Errors
    ///
    /// An unknown workload, an empty one, and what [`Config::from_args`] refuses of an engine.
    pub fn config(&self, folder: PathBuf) -> Result<BenchConfig> {
        let named = WORKLOADS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&self.workload));
        let known = || WORKLOADS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let (_, base) = named.ok_or_else(|| Error::Setup(format!("--workload {}: not one of {}", self.workload, known())))?;
        let workload = Workload {
            num_prompts: at_least_1("--num-prompts", self.num_prompts.unwrap_or(base.num_prompts))?,
            num_generations: at_least_1("--num-generations", self.num_generations.unwrap_or(base.num_generations))?,
            prompt_len: at_least_1("--prompt-len", self.prompt_len.unwrap_or(base.prompt_len))?,
            output: match self.output_len {
                Some(len) => OutputLen::Exact(at_least_1("--output-len", len)?),
                None => base.output,
            },
            image: base.image,
        };
        let repeat = at_least_1("--repeat", self.repeat)?;
        Ok(BenchConfig {
            folder,
            engine: EngineConfig { time_launches: self.time_launches, ..engine(&self.engine)? },
            workload,
            repeat,
            compare_single: self.compare_single,
            samples: self.samples.clone(),
        })
    }
}

fn at_least_1(flag: &str, value: usize) -> Result<usize> {
    at_least(flag, value, 1)
}

fn at_least(flag: &str, value: usize, least: usize) -> Result<usize> {
    match value >= least {
        true => Ok(value),
        false => Err(Error::Setup(format!("{flag} {value}: must be at least {least}"))),
    }
}

/// A hub id is its own name; of a folder the last part is enough, the rest is nobody's business.
fn default_name(source: &str) -> String {
    let path = std::path::Path::new(source);
    match (path.is_dir(), path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))) {
        (true, Some(name)) => name,
        _ => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(flags: &str) -> Result<Config> {
        let args = ServeArgs::try_parse_from(["serve", "m"].into_iter().chain(flags.split_whitespace())).expect("flags");
        Config::from_args(&args)
    }

    #[test]
    fn flags_mean_what_they_say() {
        let config = parse("").unwrap();
        assert!(config.http.host.is_loopback() && config.http.allowed_hosts.is_some() && config.engine.prefix_caching);
        assert_eq!((config.http.port, config.model.served_names.as_slice()), (8000, ["m".to_owned()].as_slice()));
        assert_eq!(parse("--kv-cache-memory 2G").unwrap().engine.kv_cache, KvBudget::Bytes(2 << 30));
        assert_eq!(parse("--num-gpu-blocks-override 64").unwrap().engine.kv_cache, KvBudget::Blocks(64));
        assert!(!parse("--no-enable-prefix-caching").unwrap().engine.prefix_caching);
        assert_eq!(parse("--served-model-name a b").unwrap().model.served_names, ["a", "b"]);
        assert!(parse("--host 0.0.0.0 --api-key k").unwrap().http.allowed_hosts.is_none());
        assert!(parse("--host 0.0.0.0 --insecure").is_ok());
        let refused = [
            ("--device cuda:x", "not auto, cpu or cuda:N"),
            // No machine has as many, whether it has a driver or not.
            ("--device cuda:999", "--device cuda:999: "),
            ("--gpu-memory-utilization 1.5", "must be from 0.05 to 1"),
            ("--device tpu", "not auto, cpu or cuda:N"),
            ("--host 0.0.0.0", "--api-key"),
            ("--host example", "not an IP address"),
            ("--max-num-seqs 0", "--max-num-seqs 0: must be at least 1"),
            ("--threads 0", "--threads 0"),
        ];
        for (flags, says) in refused {
            let message = parse(flags).unwrap_err().to_string();
            assert!(message.contains(says), "{flags}: {message}");
        }
    }
}
