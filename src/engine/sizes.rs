//! How large everything is: what follows from the model, the settings and the device's memory.

use super::handle::{Captured, EngineInfo};
use super::runner::RunnerConfig;
use super::scheduler::SchedulerConfig;
use super::{EngineConfig, KvBudget};
use crate::backends::{BLOCK_SIZE, Memory};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;

/// What the cache takes at most when nobody says.
const AUTO_KV_BYTES: usize = 1 << 30;
/// Tokens a slot gets when nobody says how large the cache is.
const AUTO_SLOT_TOKENS: usize = 4096;

/// Capacities that follow from the model and the settings.
pub struct Sizes {
    /// `None` until [`Sizes::settle`] where the cache takes what is left of a device.
    num_blocks: Option<usize>,
    max_model_len: usize,
    max_patches: usize,
    vision_rows: usize,
    merge_unit: usize,
}

impl Sizes {
    /// `own_memory`: the device has memory of its own, of which the cache takes what is left when nobody says how much.
    pub fn new(model: &ModelConfig, config: &EngineConfig, block_bytes: usize, own_memory: bool) -> Result<Self> {
        if let Some(wanted) = config.max_model_len.filter(|wanted| *wanted > model.max_position_embeddings) {
            return Err(Error::Setup(format!("--max-model-len {wanted}: the model's context is {}", model.max_position_embeddings)));
        }
        let num_blocks = match config.kv_cache {
            KvBudget::Blocks(n) => Some(n),
            KvBudget::Bytes(bytes) => Some(bytes / block_bytes),
            KvBudget::Auto if own_memory => None,
            KvBudget::Auto => {
                let slot = config.max_model_len.unwrap_or(model.max_position_embeddings).min(AUTO_SLOT_TOKENS);
                // One sequence of the length that was asked for fits in any case.
                let least = config.max_model_len.unwrap_or(0).div_ceil(BLOCK_SIZE);
                Some((config.max_num_seqs * slot.div_ceil(BLOCK_SIZE)).min(AUTO_KV_BYTES / block_bytes).max(least) + 2)
            }
        };
        let wanted = match num_blocks {
            None => config.max_model_len.unwrap_or(model.max_position_embeddings),
            Some(n) => fitting_context(n, config.max_model_len, model.max_position_embeddings, block_bytes)?,
        };
        let merge_unit = model.vision.as_ref().map_or(1, |v| v.merge_unit());
        let max_patches = if model.vision.is_some() { config.max_patches.min(wanted * merge_unit) / merge_unit * merge_unit } else { 0 };
        // Every prompt's media fit at once, and what is left keeps images that are shown again.
        let vision_rows = if model.vision.is_some() { 2 * wanted.next_multiple_of(32) } else { 0 };
        Ok(Sizes { num_blocks, max_model_len: wanted, max_patches, vision_rows, merge_unit })
    }

    /// Fills what is left of the device's memory with the cache, if it has no size yet.
    ///
    /// # Errors
    ///
    /// What is left does not hold one sequence of the context that was asked for.
    pub fn settle(&mut self, memory: Memory, config: &EngineConfig, block_bytes: usize) -> Result<()> {
        if self.num_blocks.is_some() {
            return Ok(());
        }
        let kept = (memory.total as f64 * (1.0 - config.gpu_memory_utilization)) as usize;
        let left = memory.free.saturating_sub(kept);
        let num_blocks = left / block_bytes;
        self.num_blocks = Some(num_blocks);
        self.max_model_len = fitting_context(num_blocks, config.max_model_len, self.max_model_len, block_bytes).map_err(|e| {
            Error::Setup(format!(
                "{e} (of {} bytes on the device {} are free beside weights and buffers, and --gpu-memory-utilization {} keeps {kept})",
                memory.total, memory.free, config.gpu_memory_utilization
            ))
        })?;
        Ok(())
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks.unwrap_or_else(|| panic!("the cache was used before its size was settled"))
    }

    /// As [`Sizes::info`], once the cache has its size.
    pub fn info_of_cache(&self, info: EngineInfo) -> EngineInfo {
        EngineInfo { max_model_len: self.max_model_len, num_blocks: self.num_blocks(), ..info }
    }

    pub fn info(&self, model: &ModelConfig, config: &EngineConfig, device: String) -> EngineInfo {
        EngineInfo {
            device,
            dtype: config.dtype.name(),
            vocab_size: model.vocab_size,
            max_model_len: self.max_model_len,
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: rows(config),
            num_blocks: self.num_blocks.unwrap_or(0),
            max_patches: self.max_patches,
            max_media_tokens: self.vision_rows,
            merge_unit: self.merge_unit,
            captured: Captured::default(),
        }
    }

    pub fn scheduler(&self, config: &EngineConfig) -> SchedulerConfig {
        SchedulerConfig {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: rows(config),
            num_blocks: self.num_blocks(),
            counts_rows: counts_rows(config),
            prefix_caching: config.prefix_caching,
            vision_rows: self.vision_rows,
            merge_unit: self.merge_unit,
        }
    }

    /// `step_rows`: to how many rows a decode step is padded.
    pub fn runner(&self, config: &EngineConfig, step_rows: impl Fn(usize) -> usize) -> RunnerConfig {
        // A step names each prompt table once and each sample's own; together they hold no more than this.
        let tables = 2 * (config.max_num_seqs + 1) * (self.max_model_len.div_ceil(BLOCK_SIZE) + 1);
        RunnerConfig {
            max_rows: rows(config).max(step_rows(config.max_num_seqs)),
            max_draws: step_rows(config.max_num_seqs),
            num_slots: config.max_num_seqs,
            counts_rows: counts_rows(config),
            max_table: tables,
            max_patches: self.max_patches,
            vision_rows: self.vision_rows,
        }
    }
}

fn rows(config: &EngineConfig) -> usize {
    config.max_num_batched_tokens.max(config.max_num_seqs)
}

/// Presence and frequency penalties are for chat: a bounded number of samples at once may have them.
fn counts_rows(config: &EngineConfig) -> usize {
    config.max_num_seqs.min(64)
}

/// The longest sequence that a cache of `num_blocks` holds, or the one that was asked for if it does.
fn fitting_context(num_blocks: usize, asked: Option<usize>, most: usize, block_bytes: usize) -> Result<usize> {
    // A prompt and a completion each round up to whole blocks, so the longest sequence wastes less than two.
    let fits = num_blocks.saturating_sub(2) * BLOCK_SIZE;
    let wanted = asked.unwrap_or(most.min(fits));
    if wanted < 2 || wanted > fits {
        let needs = wanted.div_ceil(BLOCK_SIZE) + 2;
        return Err(Error::Setup(format!(
            "a context of {wanted} tokens needs {needs} KV blocks ({} bytes), the cache has {num_blocks}: lower --max-model-len or raise --kv-cache-memory",
            block_bytes * needs
        )));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_holds_no_sequence_is_refused_with_the_numbers() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/tiny-vl");
        let model = ModelConfig::load(&folder).unwrap();
        let sizes =
            |kv_cache, max_model_len| Sizes::new(&model, &EngineConfig { kv_cache, max_model_len, ..Default::default() }, 4096, false);
        for (budget, asked) in [(KvBudget::Bytes(100), None), (KvBudget::Blocks(2), None), (KvBudget::Blocks(9), Some(256))] {
            let refusal = sizes(budget, asked).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(refusal.contains("--kv-cache-memory"), "{budget:?}: {refusal}");
        }
        assert_eq!(sizes(KvBudget::Blocks(10), Some(256)).unwrap().num_blocks(), 10);
        assert_eq!(sizes(KvBudget::Bytes(12 * 4096), None).unwrap().max_model_len, 320);
    }
}
