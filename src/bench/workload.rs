//! What is run, and the least time that a card could need for it.

use crate::model::config::ModelConfig;
use crate::rng::philox;

/// Prompts × completions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    pub num_prompts: usize,
    pub num_generations: usize,
    /// Text tokens of a prompt.
    pub prompt_len: usize,
    /// One image of so many pixels a prompt, width and height before resizing.
    pub image: Option<(u32, u32)>,
    pub output: OutputLen,
}

/// How long completions get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OutputLen {
    Exact(usize),
    /// Of this mean and standard deviation of the logarithm, at most `max`.
    LogNormal {
        mean: f64,
        sigma: f64,
        max: usize,
    },
}

/// Tokens of the image of W2: 58 × 84 patches, merged by four.
const W2_IMAGE: (u32, u32) = (1180, 818);

const fn workload(num_prompts: usize, num_generations: usize, prompt_len: usize, output: OutputLen) -> Workload {
    Workload { num_prompts, num_generations, prompt_len, image: None, output }
}

/// Workloads that figures are quoted for.
pub const WORKLOADS: &[(&str, Workload)] = &[
    ("W1", workload(64, 8, 256, OutputLen::Exact(1024))),
    ("W2", Workload { image: Some(W2_IMAGE), ..workload(32, 8, 64, OutputLen::Exact(512)) }),
    ("W3", workload(128, 16, 512, OutputLen::Exact(2048))),
    ("W4", workload(64, 8, 256, OutputLen::LogNormal { mean: 900.0, sigma: 0.8, max: 4096 })),
    ("W6", workload(1, 1, 256, OutputLen::Exact(512))),
];

impl OutputLen {
    pub fn max(self) -> usize {
        match self {
            OutputLen::Exact(n) => n,
            OutputLen::LogNormal { max, .. } => max,
        }
    }

    /// At which of its tokens sample `index` of the run ends.
    pub fn of(self, index: usize) -> usize {
        match self {
            OutputLen::Exact(n) => n,
            OutputLen::LogNormal { mean, sigma, max } => {
                let [a, b, ..] = philox([index as u32, 0, 0, 0], [4, 4]);
                let [a, b] = [a, b].map(|word| (f64::from(word) + 0.5) / 4_294_967_296.0);
                let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
                let length = (mean.ln() - sigma * sigma / 2.0 + sigma * normal).exp();
                (length.round() as usize).clamp(1, max)
            }
        }
    }
}

impl Workload {
    pub fn num_samples(&self) -> usize {
        self.num_prompts * self.num_generations
    }

    pub fn num_tokens(&self) -> usize {
        (0..self.num_samples()).map(|i| self.output.of(i)).sum()
    }

    pub fn describe(&self) -> String {
        let image = self.image.map_or(String::new(), |(width, height)| format!(", one image of {width} × {height} pixels each"));
        let output = match self.output {
            OutputLen::Exact(n) => format!("{n} new tokens each"),
            OutputLen::LogNormal { mean, sigma, max } => format!("lognormal lengths (mean {mean}, σ {sigma}, at most {max})"),
        };
        format!("{} prompts × {}, {} text tokens{image}, {output}", self.num_prompts, self.num_generations, self.prompt_len)
    }
}

/// What a card was measured to do at best: bytes a second copied, operations a second multiplied in bf16.
const CARDS: &[(&str, f64, f64)] = &[("H100 80GB HBM3", 3.0e12, 798e12), ("H200", 4.2e12, 790e12)];

/// Seconds that the card called `device` needs at least: weights and keys read once a step (a prompt's once a group) or the
/// multiplications done, whichever is longer, keys beside them, and the prompts' multiplications before. `None`: an unknown card.
pub fn floor(w: &Workload, model: &ModelConfig, device: &str, max_num_seqs: usize, prompt_tokens: usize, patches: usize) -> Option<f64> {
    let (_, bandwidth, operations) = CARDS.iter().find(|(name, ..)| device.contains(name))?;
    let head = (model.vocab_size * model.hidden_size) as f64;
    let layer = model.hidden_size * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
        + model.num_heads * model.head_dim * model.hidden_size
        + 3 * model.hidden_size * model.intermediate_size;
    let layers = (layer * model.num_layers) as f64;
    let tower = model.vision.as_ref().map_or(0.0, |v| {
        let block = 4 * v.hidden_size * v.hidden_size + 3 * v.hidden_size * v.intermediate_size;
        let merged = v.hidden_size * v.merge_unit();
        let merger = (merged * merged + merged * model.hidden_size) as f64 / v.merge_unit() as f64;
        (block * v.depth) as f64 + merger
    });
    let kv = (2 * model.num_layers * model.num_kv_heads * model.head_dim * 2) as f64;
    let samples = w.num_samples() as f64;
    let together = samples.min(max_num_seqs as f64);
    let mean_len = w.num_tokens() as f64 / samples;
    let steps = mean_len * samples / together;
    let prompts = together / w.num_generations as f64;
    let multiply = (2.0 * (layers + head) / bandwidth).max(2.0 * (layers + head) * together / operations);
    let keys = kv * (together * mean_len / 2.0 + prompts * prompt_tokens as f64) / bandwidth;
    let prefill = 2.0 * (layers * (w.num_prompts * prompt_tokens) as f64 + tower * (w.num_prompts * patches) as f64) / operations;
    Some(steps * (multiply + keys) + prefill)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_their_mean() {
        let output = OutputLen::LogNormal { mean: 900.0, sigma: 0.8, max: 1 << 20 };
        let mean = (0..20_000).map(|i| output.of(i)).sum::<usize>() as f64 / 20_000.0;
        assert!((mean - 900.0).abs() < 30.0, "{mean}");
        let most = (0..5000).map(|i| OutputLen::LogNormal { mean: 900.0, sigma: 0.8, max: 4096 }.of(i)).max();
        assert_eq!(most, Some(4096));
    }
}
