//! The command line as it is typed. [`super::Config`] says what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::scoring::{JudgeArgs, ScoreArgs};

/// A rollout-and-reward server for GRPO with its own inference engine.
#[derive(Debug, Parser)]
#[command(name = "grouper", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model: a Hugging Face id or a folder
    Serve(Box<ServeArgs>),
    /// Serve the bundled model and show one batch of scored groups
    Demo(DemoArgs),
    /// Score completions from a file, without a server
    Score(Box<ScoreArgs>),
    /// Measure generated tokens per second, with the split of the time
    Bench(Box<BenchArgs>),
    /// Compare a GPU's kernels and engine with their definition on the CPU
    Selftest(SelftestArgs),
    /// Look after the GPU kernels that the program carries
    #[command(subcommand)]
    Kernels(KernelsCommand),
    /// Print the OpenAPI document
    Openapi,
}

#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// Compile every kernel and print registers and spills; needs NVRTC, no GPU
    Check {
        /// Architectures as NVRTC names them
        #[arg(long, value_delimiter = ',', default_value = "sm_80,sm_90a")]
        arch: Vec<String>,
    },
    /// Time the GEMMs of a model on a GPU and print rows for kernels/gemm.tsv
    Tune {
        /// Folder of a model
        model: PathBuf,
        #[arg(long, default_value = "cuda:0", env = "GROUPER_DEVICE")]
        device: String,
    },
    /// Time attention and sampler of a decode step by themselves on a GPU, beside a copy
    Time {
        #[arg(long, default_value = "cuda:0", env = "GROUPER_DEVICE")]
        device: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SelftestPart {
    Kernels,
    Engine,
}

#[derive(Debug, Args)]
pub struct SelftestArgs {
    #[arg(long, default_value = "cuda:0", env = "GROUPER_DEVICE")]
    pub device: String,
    /// Only the shapes of small models
    #[arg(long)]
    pub small: bool,
    /// Only the kernels, each by itself, or only the engine [default: both]
    #[arg(long, value_enum)]
    pub only: Option<SelftestPart>,
    /// Folder of a model for the checks of the engine [default: the bundled one]
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Sequences of the checks of the engine, half of them with images; preemption is checked from 96 on, distance to the CPU from 128 on [default: 1024, with --small 128]
    #[arg(long)]
    pub sequences: Option<usize>,
    /// The most new tokens of a sequence [default: 32 to 96; preemption needs the longest]
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// Launch the engine's steps kernel by kernel, for tools that watch launches
    #[arg(long)]
    pub enforce_eager: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Exit after the batch
    #[arg(long)]
    pub once: bool,
    /// Port to serve on; 0 takes a free one
    #[arg(long, default_value_t = 0, env = "GROUPER_PORT")]
    pub port: u16,
    /// Worker threads [default: all cores]
    #[arg(long, env = "GROUPER_THREADS")]
    pub threads: Option<usize>,
}

#[derive(Debug, Parser)]
pub struct ServeArgs {
    /// Hugging Face id (Qwen/Qwen2.5-VL-3B-Instruct) or folder
    #[arg(env = "GROUPER_MODEL")]
    pub model: String,
    /// Branch, tag or commit on the hub
    #[arg(long, default_value = "main", env = "GROUPER_REVISION")]
    pub revision: String,
    /// Name(s) that requests use [default: MODEL]
    #[arg(long, num_args = 1.., env = "GROUPER_SERVED_MODEL_NAME", value_delimiter = ',')]
    pub served_model_name: Vec<String>,

    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", env = "GROUPER_HOST", help_heading = "Server")]
    pub host: String,
    #[arg(long, default_value_t = 8000, env = "GROUPER_PORT", help_heading = "Server")]
    pub port: u16,
    /// Key for data routes (Authorization: Bearer …)
    #[arg(long, env = "GROUPER_API_KEY", hide_env_values = true, help_heading = "Server")]
    pub api_key: Option<String>,
    /// Key for weights and engine control; opens data routes, too
    #[arg(long, env = "GROUPER_CONTROL_KEY", hide_env_values = true, help_heading = "Server")]
    pub control_key: Option<String>,
    /// Listen beyond loopback without --api-key
    #[arg(long, help_heading = "Server")]
    pub insecure: bool,
    /// Another name that the server answers to on loopback, such as that of a proxy (repeatable)
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub allow_host: Vec<String>,
    #[arg(long, default_value_t = 64, env = "GROUPER_MAX_BODY_MB", help_heading = "Server")]
    pub max_body_mb: usize,
    /// Seconds that running samples get to end after SIGTERM
    #[arg(long, default_value_t = 30, env = "GROUPER_DRAIN_TIMEOUT", help_heading = "Server")]
    pub drain_timeout: u64,
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "GROUPER_LOG_FORMAT", help_heading = "Server")]
    pub log_format: LogFormat,

    /// Folder for what outlives the process
    #[arg(long, value_name = "FOLDER", env = "GROUPER_DATA_DIR", help_heading = "Server")]
    pub data_dir: Option<PathBuf>,

    /// Folder from which POST /v1/policy may name weights
    #[arg(long, value_name = "FOLDER", env = "GROUPER_POLICY_ROOT", help_heading = "Policy")]
    pub policy_root: Option<PathBuf>,
    /// Unix socket on which processes of the same user hand over weights by CUDA IPC
    #[arg(long, value_name = "PATH", env = "GROUPER_CONTROL_SOCKET", help_heading = "Policy")]
    pub control_socket: Option<PathBuf>,
    /// Keep a second copy of the weights, for log-probabilities under a frozen policy
    #[arg(long, help_heading = "Policy")]
    pub reference: bool,
    /// How long parts of weights that wait for the rest are kept after the last of them: 2m, 30s
    #[arg(long, default_value = "2m", value_parser = parse_duration, env = "GROUPER_STAGE_TTL", help_heading = "Policy")]
    pub stage_ttl: Duration,
    /// After a restart without the expected weights: wait for a push, or serve those that are there
    #[arg(long, value_enum, default_value_t = OnRestart::Wait, env = "GROUPER_ON_RESTART", help_heading = "Policy")]
    pub on_restart: OnRestart,

    #[command(flatten)]
    pub engine: EngineArgs,
    /// Seed of requests that bring none [default: drawn for each]
    #[arg(long, env = "GROUPER_SEED", help_heading = "Engine")]
    pub seed: Option<u64>,

    #[command(flatten)]
    pub queue: QueueArgs,

    /// Folder from which requests may name image files
    #[arg(long, env = "GROUPER_MEDIA_ROOT", help_heading = "Media and limits")]
    pub media_root: Option<PathBuf>,
    /// Host from which requests may name image URLs (repeatable)
    #[arg(long, value_name = "DOMAIN", help_heading = "Media and limits")]
    pub allow_media_domain: Vec<String>,
    /// Fetch image URLs from any public host
    #[arg(long, help_heading = "Media and limits")]
    pub allow_remote_media: bool,
    #[arg(long, default_value_t = 256, env = "GROUPER_MAX_GROUPS_PER_REQUEST", help_heading = "Media and limits")]
    pub max_groups_per_request: usize,
    /// Samples that may be queued or running over all requests
    #[arg(long, default_value_t = 16_384, env = "GROUPER_MAX_QUEUED_SAMPLES", help_heading = "Media and limits")]
    pub max_queued_samples: usize,

    #[command(flatten)]
    pub judges: JudgeArgs,
}

/// Flags of the durable queue.
#[derive(Debug, Args)]
#[command(next_help_heading = "Queue")]
pub struct QueueArgs {
    /// Groups that may be pending, ready or leased
    #[arg(long, default_value_t = 4096, env = "GROUPER_MAX_QUEUED_GROUPS")]
    pub max_queued_groups: usize,
    /// Leases of a group that end without an ack before it goes to the dead letters
    #[arg(long, default_value_t = 5, env = "GROUPER_MAX_DELIVERIES")]
    pub max_deliveries: u32,
    /// Times that the server may end while it generates a group before that goes to the dead letters
    #[arg(long, default_value_t = 5, env = "GROUPER_MAX_GENERATIONS")]
    pub max_generations: u32,
    /// Policy versions that a ready group may be old; older ones are dropped when a learner asks [default: any]
    #[arg(long, env = "GROUPER_MAX_STALENESS")]
    pub max_staleness: Option<u64>,
    /// How long a request's idempotency key is remembered: 24h, 90m, 30s
    #[arg(long, default_value = "24h", value_parser = parse_duration, env = "GROUPER_IDEMPOTENCY_TTL")]
    pub idempotency_ttl: Duration,
    /// JSON lines or Parquet whose rows are queued by themselves
    #[arg(long, value_name = "FILE", env = "GROUPER_DATASET")]
    pub dataset: Option<PathBuf>,
    /// JSON of a rollout request without groups, for the rows of --dataset
    #[arg(long, value_name = "FILE", requires = "dataset", env = "GROUPER_ROLLOUT_CONFIG")]
    pub rollout_config: Option<PathBuf>,
    /// Groups of --dataset that may be pending, ready or leased
    #[arg(long, default_value_t = 256, env = "GROUPER_MAX_AHEAD")]
    pub max_ahead: usize,
    /// Times that --dataset is gone through [default: for ever]
    #[arg(long, requires = "dataset", env = "GROUPER_EPOCHS")]
    pub epochs: Option<usize>,
}

/// Flags of everything that runs an engine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// auto (a GPU if there is one), cpu or cuda:N
    #[arg(long, default_value = "auto", env = "GROUPER_DEVICE")]
    pub device: String,
    /// Type of weights and activations [auto: float32 on the CPU, bfloat16 on a GPU]
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto, env = "GROUPER_DTYPE")]
    pub dtype: DtypeArg,
    /// Prompt and completion together [default: the model's]
    #[arg(long, env = "GROUPER_MAX_MODEL_LEN")]
    pub max_model_len: Option<usize>,
    /// Samples that decode at the same time [default: 64 on the CPU, 512 on a GPU]
    #[arg(long, env = "GROUPER_MAX_NUM_SEQS")]
    pub max_num_seqs: Option<usize>,
    /// Tokens of one step, prompt chunks included [default: 512 on the CPU, 8192 on a GPU]
    #[arg(long, env = "GROUPER_MAX_NUM_BATCHED_TOKENS")]
    pub max_num_batched_tokens: Option<usize>,
    /// KV blocks of 32 tokens
    #[arg(long, env = "GROUPER_NUM_GPU_BLOCKS_OVERRIDE", conflicts_with = "kv_cache_memory")]
    pub num_gpu_blocks_override: Option<usize>,
    /// Bytes for the KV cache, with K, M or G behind [default: 1G on the CPU, what is left on a GPU]
    #[arg(long, value_parser = parse_bytes, env = "GROUPER_KV_CACHE_MEMORY")]
    pub kv_cache_memory: Option<usize>,
    /// Share of a GPU's memory that the server may take
    #[arg(long, default_value_t = 0.9, env = "GROUPER_GPU_MEMORY_UTILIZATION")]
    pub gpu_memory_utilization: f64,
    /// Launch each kernel of a decode step by itself instead of replaying the step: slower, for finding faults
    #[arg(long)]
    pub enforce_eager: bool,
    /// Keep the KV of full prompt blocks for later prompts (the default)
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,
    #[arg(long)]
    pub no_enable_prefix_caching: bool,
    /// Worker threads [default: all cores]
    #[arg(long, env = "GROUPER_THREADS")]
    pub threads: Option<usize>,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Hugging Face id or folder
    pub model: String,
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// W1 (64 × 8 completions of 1024 tokens), W2 (32 × 8 of 512, an image each), W3 (128 × 16 of 2048), W4 (64 × 8, lognormal
    /// lengths) or W6 (one of 512); the flags below change it
    #[arg(long, default_value = "W1")]
    pub workload: String,
    #[arg(long)]
    pub num_prompts: Option<usize>,
    #[arg(long)]
    pub num_generations: Option<usize>,
    #[arg(long)]
    pub prompt_len: Option<usize>,
    #[arg(long)]
    pub output_len: Option<usize>,
    /// Runs, of which each is printed, then the median
    #[arg(long, default_value_t = 1)]
    pub repeat: usize,
    /// Also run every completion as a request of its own, one after the other
    #[arg(long)]
    pub compare_single: bool,
    /// Launch kernels one by one and print what each kind takes in decode steps; slower than a run without it
    #[arg(long)]
    pub time_launches: bool,
    /// Write prompts, completions and log-probabilities of the last run here, as JSON
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    #[command(flatten)]
    pub engine: EngineArgs,
}

impl Default for ServeArgs {
    /// What clap fills in when nothing but a model is given.
    fn default() -> Self {
        ServeArgs::parse_from(["serve", "model"])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    Auto,
    Float32,
    Bfloat16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnRestart {
    Wait,
    ServeHeld,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is not a time such as 24h, 90m or 30s");
    let (digits, seconds) = match text.trim().split_at_checked(text.trim().len().saturating_sub(1)).ok_or_else(wrong)? {
        (digits, "d") => (digits, 24 * 3600),
        (digits, "h") => (digits, 3600),
        (digits, "m") => (digits, 60),
        (digits, "s") => (digits, 1),
        _ => (text.trim(), 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|seconds| (1..=u64::from(u32::MAX)).contains(seconds)).map(Duration::from_secs).ok_or_else(wrong)
}

fn parse_bytes(text: &str) -> Result<usize, String> {
    let short = text.trim_end_matches(['B', 'b', 'i']);
    let shift = match short.bytes().last().map(|byte| byte.to_ascii_lowercase()) {
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        _ => 0,
    };
    let digits = if shift == 0 { short } else { &short[..short.len() - 1] };
    let number: usize = digits.trim().parse().map_err(|_| format!("{text} is not a number of bytes such as 512M or 4G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [("24h", 86_400), ("90m", 5400), ("30s", 30), ("2d", 172_800), ("7", 7)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "h", "0s", "-1h", "1.5h", "1 week", "99999999999999h", "é"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("512", 512), ("4K", 4096), ("3M", 3 << 20), ("2GiB", 2 << 30), ("1gb", 1 << 30)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "99999999999999G"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
