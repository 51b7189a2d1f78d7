//! What the checks of the engine generate: groups over text and over images, with the ways to sample mixed.

use std::sync::Arc;

use super::Numbers;
use crate::engine::request::{GroupRequest, NoWatch, RngKey, SamplingParams, StopWatch};
use crate::model::config::{ModelConfig, VisionConfig};
use crate::model::input::{MediaInput, MediaKind, PatchRows, PromptInput};
use crate::model::mrope::{self, MediaGrid};

/// Samples of a group.
pub const GROUP: usize = 8;
/// Tokens of prompts around the edges of blocks, tiles and chunks; the first fills some of each.
const PROMPTS: &[usize] = &[300, 1, 32, 257, 64, 90, 150, 255, 256, 31, 33, 513];
/// New tokens. A few samples get long, so that a cache that holds the others may not hold them.
const LENGTHS: &[usize] = &[32, 48, 33, 64, 32, LONGEST, 40, 32];
pub const LONGEST: usize = 96;
/// Rows and columns of images in patches.
const IMAGES: &[[usize; 2]] = &[[4, 4], [8, 8], [16, 20], [24, 36], [38, 46], [10, 30]];

/// A prompt with its samples.
pub struct Work {
    pub prompt: Arc<PromptInput>,
    pub sampling: SamplingParams,
    key: RngKey,
}

impl Work {
    /// The first of its samples, at most `max_tokens` long: a sample's draws depend on neither.
    pub fn request(&self, samples: usize, max_tokens: usize) -> GroupRequest {
        let max_tokens = max_tokens.min(self.sampling.max_tokens);
        GroupRequest {
            prompt: self.prompt.clone(),
            sampling: SamplingParams { max_tokens, ..self.sampling.clone() },
            rng_key: self.key,
            watches: (0..samples).map(|_| Box::new(NoWatch) as Box<dyn StopWatch>).collect(),
            stream: false,
        }
    }

    pub fn has_media(&self) -> bool {
        !self.prompt.media.is_empty()
    }

    pub fn longest(&self) -> usize {
        self.prompt.token_ids.len() + self.sampling.max_tokens
    }
}

/// Groups, every second of which shows images if the model sees; samples of at most `max_tokens`.
pub fn works(model: &ModelConfig, groups: usize, max_tokens: usize) -> Vec<Work> {
    let mut numbers = Numbers::new(41);
    let images: Vec<Arc<MediaInput>> = match &model.vision {
        Some(vision) => IMAGES.iter().enumerate().map(|(i, size)| Arc::new(image(&mut numbers, vision, i as u8, *size))).collect(),
        None => Vec::new(),
    };
    let pads: Vec<u32> = model.vision.iter().flat_map(|v| [v.image_token_id, v.video_token_id]).collect();
    let mut ids = |n: usize| -> Vec<u32> {
        std::iter::repeat_with(|| numbers.below(model.vocab_size) as u32).filter(|id| !pads.contains(id)).take(n).collect()
    };
    let shared = ids(70);
    (0..groups)
        .map(|i| {
            let (kind, round) = (i % 2, i / 2);
            let length = PROMPTS[round % PROMPTS.len()];
            // Every second prompt begins as the others do, for the prefix cache.
            let start: &[u32] = if round % 2 == 0 { &shared } else { &[] };
            let text: Vec<u32> = start.iter().copied().chain(ids(length)).take(length).collect();
            let prompt = match &model.vision {
                Some(vision) if kind == 1 => {
                    let shown = if round % 7 == 0 { 2 } else { 1 };
                    let shown: Vec<_> = (0..shown).map(|j| images[(round + j) % images.len()].clone()).collect();
                    with_images(vision, shown, &text[..length.min(90)])
                }
                _ => PromptInput { positions: mrope::text_positions(length), token_ids: text, ..Default::default() },
            };
            Work { prompt: Arc::new(prompt), sampling: sampling(round, max_tokens), key: RngKey([i as u32, 99]) }
        })
        .collect()
}

fn sampling(round: usize, max_tokens: usize) -> SamplingParams {
    let plain = SamplingParams { max_tokens: LENGTHS[round % LENGTHS.len()].min(max_tokens), ..Default::default() };
    // Samples with counts of their tokens are bounded, so few have them.
    match round % 16 {
        2 | 10 => SamplingParams { temperature: 0.7, top_k: 40, ..plain },
        4 | 12 => SamplingParams { top_p: 0.9, repetition_penalty: 1.1, ..plain },
        6 => SamplingParams { frequency_penalty: 0.5, ..plain },
        7 => SamplingParams { temperature: 0.0, ..plain },
        _ => plain,
    }
}

/// Patches without a picture in them.
fn image(numbers: &mut Numbers, vision: &VisionConfig, index: u8, [rows, columns]: [usize; 2]) -> MediaInput {
    let patch_len = vision.patch_len();
    let patches = Arc::new(PatchRows { values: numbers.values(rows * columns * patch_len, 1.0), patch_len });
    MediaInput { kind: MediaKind::Image, sha256: [index; 32], grid_thw: [1, rows, columns], patches, second_per_grid_t: 1.0 }
}

/// Images amid text: one after a few tokens, one at the end of the text.
fn with_images(vision: &VisionConfig, media: Vec<Arc<MediaInput>>, text: &[u32]) -> PromptInput {
    let (head, tail) = text.split_at(text.len().min(5));
    let mut token_ids = head.to_vec();
    let mut media_starts = Vec::new();
    for (i, medium) in media.iter().enumerate() {
        if i == 1 {
            token_ids.extend_from_slice(tail);
        }
        token_ids.push(vision.vision_start_token_id);
        media_starts.push(token_ids.len());
        token_ids.extend(std::iter::repeat_n(vision.image_token_id, medium.num_tokens(vision.merge_unit())));
        token_ids.push(vision.vision_end_token_id);
    }
    if media.len() == 1 {
        token_ids.extend_from_slice(tail);
    }
    let grids: Vec<MediaGrid> = media.iter().map(|medium| medium.as_ref().into()).collect();
    let (positions, rope_delta) = mrope::positions(&token_ids, &grids, vision);
    PromptInput { token_ids, positions, rope_delta, media, media_starts }
}
