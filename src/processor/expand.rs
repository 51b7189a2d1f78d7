//! From one placeholder an image to as many pad tokens as the image has features.

use crate::error::{Error, Result};
use crate::model::config::VisionConfig;

/// A prompt with every image at its full length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    pub token_ids: Vec<u32>,
    /// First pad token of each image.
    pub starts: Vec<usize>,
}

/// Expands the placeholders of `ids`, in order, to `num_tokens` pads each.
///
/// A placeholder is one pad or exactly the expanded run, so that a prompt that another tool expanded is taken as it is. Anything else
/// is refused with both counts, because features would land on the wrong tokens. `param` is the request field that the ids come
/// from; errors about single tokens name `param[i]` if `indexed`.
pub fn expand(ids: &[u32], num_tokens: &[usize], vision: Option<&VisionConfig>, param: &str, indexed: bool) -> Result<Expanded> {
    let Some(vision) = vision else {
        return match num_tokens.is_empty() {
            true => Ok(Expanded { token_ids: ids.to_vec(), starts: Vec::new() }),
            false => Err(Error::invalid("images", "this model takes no images")),
        };
    };
    let at = |i: usize| if indexed { format!("{param}[{i}]") } else { param.to_owned() };
    if let Some(i) = ids.iter().position(|id| *id == vision.video_token_id) {
        return Err(Error::invalid(at(i), "a video token: video is not decoded yet"));
    }
    let pad = vision.image_token_id;
    let runs: Vec<&[u32]> = ids.chunk_by(|a, b| (*a == pad) == (*b == pad)).collect();
    let placeholders = runs.iter().filter(|run| run[0] == pad).count();
    if placeholders != num_tokens.len() {
        let param = if num_tokens.is_empty() { param } else { "images" };
        return Err(Error::invalid(param, format!("{} images for {placeholders} image placeholders in the prompt", num_tokens.len())));
    }
    let mut expanded = Expanded::default();
    let mut position = 0;
    for run in runs {
        if run[0] == pad {
            let image = expanded.starts.len();
            let needed = num_tokens[image];
            if run.len() != 1 && run.len() != needed {
                let message = format!("image {image} has {needed} tokens, its placeholder {} of them: one or all are expected", run.len());
                return Err(Error::invalid(at(position), message));
            }
            expanded.starts.push(expanded.token_ids.len());
            expanded.token_ids.extend(std::iter::repeat_n(pad, needed));
        } else {
            expanded.token_ids.extend_from_slice(run);
        }
        position += run.len();
    }
    Ok(expanded)
}

/// The same ids with one pad an image, as a template writes them.
pub fn collapse(ids: &[u32], vision: Option<&VisionConfig>) -> Vec<u32> {
    let mut collapsed = ids.to_vec();
    if let Some(pad) = vision.map(|vision| vision.image_token_id) {
        collapsed.dedup_by(|a, b| *a == pad && *b == pad);
    }
    collapsed
}
