//! From a model folder to something that generates: tokenizer and templates, then weights and the engine's thread.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::config::Config;
use crate::engine::handle::EngineHandle;
use crate::error::Result;
use crate::judges::Judges;
use crate::model::config::ModelConfig;
use crate::policy::Policy;
use crate::processor::Processor;
use crate::rollout::generator::Generator;

/// A model that is ready to generate.
pub struct Loaded {
    pub engine: EngineHandle,
    /// Ends after [`EngineHandle::shutdown`].
    pub thread: JoinHandle<()>,
    pub generator: Arc<Generator>,
    pub policy: Arc<Policy>,
    pub judges: Arc<Judges>,
}

/// Loads a folder; `progress` is told what begins. Call it within a tokio runtime.
///
/// # Errors
///
/// A file or tensor that is missing, superfluous or of the wrong shape, by name.
pub fn start(config: &Config, folder: &Path, progress: &dyn Fn(&str)) -> Result<Loaded> {
    progress("reading the configuration and the tokenizer");
    let model = ModelConfig::load(folder)?;
    let processor = Processor::load(folder, &model, config.processor.clone())?;
    // Before the engine, whose cache takes what is left of a GPU.
    let judges = Judges::load(&config.judges, progress)?;
    progress("loading the weights");
    let (engine, thread) = crate::engine::start_on_device(folder, &config.engine)?;
    let generator = Generator::new(Arc::new(processor), engine.clone(), &model, config.limits.clone());
    let policy = Policy::new(engine.clone(), &config.model.served_names[0], config.policy.clone())?;
    policy.restore()?;
    Ok(Loaded { engine, thread, generator: Arc::new(generator), policy, judges: Arc::new(judges) })
}
