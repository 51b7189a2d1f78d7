//! The command `grouper`: arguments → configuration → model and engine → serve → drain.

use std::process::ExitCode;

use clap::Parser;

use grouper::config::{Cli, Command, KernelsCommand, LogFormat};
use grouper::error::{Error, Result};
use grouper::hub::{self, HubEnv};
use grouper::serve::Bars;
use grouper::{api, bench, config, demo, score, selftest, serve};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The one place that chooses who does the cryptography of https; a second choice would be a bug.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("grouper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(args) => runtime()?.block_on(serve::run(&args)),
        Command::Demo(args) => runtime()?.block_on(demo::run(&args)),
        Command::Bench(args) => {
            let (env, bars) = (HubEnv::from_env(), Bars::new(LogFormat::Text));
            let folder = runtime()?.block_on(hub::resolve(&args.model, &args.revision, &env, &bars))?;
            bench::run(&args.config(folder)?)
        }
        Command::Score(args) => runtime()?.block_on(score::run(args.config()?)),
        Command::Selftest(args) => {
            let folder = args.model.clone().map_or_else(demo::find_model, Ok)?;
            selftest::run(&args.config(folder)?)
        }
        Command::Kernels(KernelsCommand::Check { arch }) => selftest::check_kernels(&arch),
        Command::Kernels(KernelsCommand::Tune { model, device }) => selftest::tune_gemms(config::gpu(&device)?, &model),
        Command::Kernels(KernelsCommand::Time { device }) => selftest::time_kernels(config::gpu(&device)?),
        Command::Openapi => {
            let document = api::openapi().to_pretty_json();
            println!("{}", document.map_err(|e| Error::Setup(format!("the OpenAPI document could not be written: {e}")))?);
            Ok(())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| Error::Setup(format!("no runtime: {e}")))
}
