//! From what a caller sends (messages, text or ids, and images) to what the model takes: ids, positions and patches.
//!
//! Templates, tokenising, decoding and resizing run on the rayon pool, so that no request holds up the others' input and output; the
//! memory that decoding needs is granted from a budget before it starts.

pub mod chat;
pub mod decode;
pub mod detokenizer;
pub mod expand;
pub mod image;
pub mod media;
pub mod patchify;
pub mod python;
mod remote;
pub mod resample;
pub mod template;
pub mod tokenizer;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::chat::{Conversation, ImageReference};
use self::decode::ImageLimits;
use self::image::{ImageProcessor, PixelLimits};
use self::media::{MediaLoader, MediaOptions};
use self::resample::Resample;
use self::template::{ChatTemplate, RenderInput};
use self::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::{ModelConfig, VisionConfig};
use crate::model::input::{MediaInput, PromptInput};
use crate::model::mrope;

/// What the server's operator chooses.
#[derive(Clone, Debug)]
pub struct ProcessorOptions {
    pub media: MediaOptions,
    pub image_limits: ImageLimits,
    /// In the place of the folder's `min_pixels` and `max_pixels`.
    pub pixel_limits: PixelLimits,
    pub resample: Resample,
    /// A template file in the place of the folder's.
    pub chat_template: Option<PathBuf>,
    /// Images of one prompt.
    pub max_images: usize,
    /// Bytes that all images being decoded at one time may take.
    pub decode_memory: usize,
}

impl Default for ProcessorOptions {
    fn default() -> Self {
        ProcessorOptions {
            media: MediaOptions::default(),
            image_limits: ImageLimits::default(),
            pixel_limits: PixelLimits::default(),
            resample: Resample::default(),
            chat_template: None,
            max_images: 16,
            decode_memory: 2 << 30,
        }
    }
}

/// Where a prompt's tokens come from.
#[derive(Clone, Debug)]
pub enum PromptSource {
    /// OpenAI or Hugging Face chat messages; whatever their strings contain is ordinary text.
    Messages {
        messages: Vec<Value>,
        assistant_prefill: Option<String>,
    },
    /// Text that a template was already applied to: the only source whose text can contain control tokens.
    Text(String),
    TokenIds(Vec<u32>),
}

#[derive(Clone, Debug)]
pub struct PromptRequest {
    pub source: PromptSource,
    /// Beside text and ids: a data URL, path or URL for each placeholder. Beside messages: for their bare image parts.
    pub images: Vec<String>,
    pub tools: Option<Value>,
    pub template_kwargs: Map<String, Value>,
    pub add_generation_prompt: bool,
}

/// A prompt ready for the engine, and what is told about it.
#[derive(Clone, Debug)]
pub struct PreparedPrompt {
    pub input: PromptInput,
    /// The rendered prompt, with one placeholder an image.
    pub text: String,
    pub images: Vec<MediaInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MediaInfo {
    /// Hexadecimal digest of the resized pixels.
    pub sha256: String,
    /// Frames, rows and columns in patches.
    pub grid_thw: [usize; 3],
    /// Tokens in the prompt.
    pub num_tokens: usize,
}

/// The processor of one model folder.
pub struct Processor {
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    images: Option<Arc<ImageProcessor>>,
    vision: Option<VisionConfig>,
    vocab_size: usize,
    media: Arc<MediaLoader>,
    image_limits: ImageLimits,
    max_images: usize,
    /// Images between the first byte fetched and the last patch: bounds the encoded bytes held. Those of other hosts count apart, so
    /// that slow hosts hold up only each other.
    local_in_flight: Arc<Semaphore>,
    remote_in_flight: Arc<Semaphore>,
    /// Images that are decoded and cut at the same time: the first ones are ready early, for the engine to begin with.
    at_work: Arc<Semaphore>,
    /// One permit for each [`BUDGET_UNIT`] of decoding memory.
    budget: Arc<Semaphore>,
    budget_units: usize,
}

const BUDGET_UNIT: usize = 64 << 10;
const IMAGES_IN_FLIGHT: usize = 32;
/// Threads for each image at work: decoding takes one, everything after it all there are.
const THREADS_AN_IMAGE: usize = 3;

impl Processor {
    /// Reads tokenizer, chat template and image settings of a model folder.
    pub fn load(folder: &Path, config: &ModelConfig, options: ProcessorOptions) -> Result<Self> {
        let tokenizer = Tokenizer::load(folder)?;
        if tokenizer.num_tokens() > config.vocab_size {
            let (tokens, logits) = (tokenizer.num_tokens(), config.vocab_size);
            return Err(Error::Model(format!("the tokenizer has {tokens} tokens, the model's vocabulary {logits}")));
        }
        let template = match &options.chat_template {
            Some(path) => Some(ChatTemplate::load_file(path, folder, &tokenizer)?),
            None => ChatTemplate::load(folder, &tokenizer)?,
        };
        let images = config.vision.as_ref().map(|vision| ImageProcessor::load(folder, vision, options.pixel_limits, options.resample));
        let budget_units = (options.decode_memory / BUDGET_UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Ok(Processor {
            tokenizer: Arc::new(tokenizer),
            template: template.map(Arc::new),
            images: images.transpose()?.map(Arc::new),
            vision: config.vision.clone(),
            vocab_size: config.vocab_size,
            media: Arc::new(MediaLoader::new(&options.media)?),
            image_limits: options.image_limits,
            max_images: options.max_images,
            local_in_flight: Arc::new(Semaphore::new(IMAGES_IN_FLIGHT)),
            remote_in_flight: Arc::new(Semaphore::new(IMAGES_IN_FLIGHT)),
            at_work: Arc::new(Semaphore::new((rayon::current_num_threads() / THREADS_AN_IMAGE).max(2))),
            budget: Arc::new(Semaphore::new(budget_units)),
            budget_units,
        })
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Turns a request into the model's input. Errors name fields of the request: `messages[1].content[0].image_url`, `images[2]`,
    /// `prompt`, `prompt_token_ids[5]`.
    pub async fn prepare(&self, request: PromptRequest) -> Result<PreparedPrompt> {
        let PromptRequest { source, images, tools, template_kwargs, add_generation_prompt } = request;
        let given = images.into_iter().enumerate().map(|(i, source)| (format!("images[{i}]"), source)).collect();
        let (draft, sources) = match source {
            PromptSource::Messages { messages, assistant_prefill } => {
                self.draft_messages(messages, assistant_prefill, given, tools, template_kwargs, add_generation_prompt).await?
            }
            PromptSource::Text(text) => {
                let tokenizer = self.tokenizer.clone();
                (on_pool(move || Draft::text(text, &tokenizer)).await, given)
            }
            PromptSource::TokenIds(ids) => (self.draft_ids(ids)?, given),
        };
        if draft.ids.is_empty() {
            return Err(Error::invalid(draft.param, "the prompt is empty"));
        }
        if sources.len() > self.max_images {
            return Err(Error::invalid("images", format!("{} images; the limit is {} a prompt", sources.len(), self.max_images)));
        }
        let media = self.load_images(sources).await?;
        let (vision, tokenizer) = (self.vision.clone(), self.tokenizer.clone());
        on_pool(move || draft.finish(media, vision.as_ref(), &tokenizer)).await
    }

    async fn draft_messages(
        &self,
        messages: Vec<Value>,
        assistant_prefill: Option<String>,
        given: Vec<(String, String)>,
        tools: Option<Value>,
        kwargs: Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<(Draft, Vec<(String, String)>)> {
        let Some(template) = self.template.clone() else {
            return Err(Error::invalid("messages", "this model has no chat template: send a prompt"));
        };
        if assistant_prefill.is_some() && !add_generation_prompt {
            return Err(Error::invalid("assistant_prefill", "a prefill continues the generation prompt, which is switched off"));
        }
        let (tokenizer, keep_parts) = (self.tokenizer.clone(), self.vision.is_some());
        on_pool(move || {
            let conversation = Conversation::parse(messages, &template, keep_parts)?;
            let sources = place_images(conversation.images, given)?;
            let input = RenderInput {
                messages: &conversation.messages,
                tools: tools.as_ref(),
                kwargs: &kwargs,
                add_generation_prompt,
                assistant_prefill: assistant_prefill.as_deref(),
            };
            let rendered = template.render(&input, &tokenizer)?;
            let ids = rendered.encode(&tokenizer);
            Ok((Draft { ids, text: Some(rendered.text), param: "messages" }, sources))
        })
        .await
    }

    fn draft_ids(&self, ids: Vec<u32>) -> Result<Draft> {
        if let Some(i) = ids.iter().position(|id| *id as usize >= self.vocab_size) {
            let message = format!("{} is not below the vocabulary size {}", ids[i], self.vocab_size);
            return Err(Error::invalid(format!("prompt_token_ids[{i}]"), message));
        }
        Ok(Draft { ids, text: None, param: "prompt_token_ids" })
    }

    /// Fetches and processes images at the same time; of several failures the first image's is told.
    async fn load_images(&self, sources: Vec<(String, String)>) -> Result<Vec<Arc<MediaInput>>> {
        let Some((first, _)) = sources.first() else { return Ok(Vec::new()) };
        let Some(processor) = &self.images else {
            return Err(Error::invalid(first.as_str(), "this model takes no images"));
        };
        let loads = sources.into_iter().map(|(param, source)| async move {
            let media = self.load_image(source, processor.clone()).await;
            media.map(Arc::new).map_err(|e| e.within(&param))
        });
        futures::future::join_all(loads).await.into_iter().collect()
    }

    async fn load_image(&self, source: String, processor: Arc<ImageProcessor>) -> Result<MediaInput> {
        let _in_flight = acquire(if media::is_remote(&source) { &self.remote_in_flight } else { &self.local_in_flight }, 1).await;
        let (limits, file) = (self.image_limits, Arc::new(self.media.load(source).await?));
        let header = {
            let file = file.clone();
            on_pool(move || shielded(|| decode::read_header(&file, limits))).await?
        };
        let bytes = header.decoded_bytes + processor.resize_bytes(header.height, header.width)?;
        let units = bytes.div_ceil(BUDGET_UNIT).min(self.budget_units);
        let permits = (acquire(&self.budget, units as u32).await, acquire(&self.at_work, 1).await);
        on_pool(move || {
            // The permits go with the work: a caller that leaves does not free memory that is still in use.
            let _permits = permits;
            shielded(|| processor.process(&decode::decode(&file, limits)?))
        })
        .await
    }
}

/// A prompt before its images are known.
struct Draft {
    ids: Vec<u32>,
    /// `None` for ids, which are decoded at the end.
    text: Option<String>,
    param: &'static str,
}

impl Draft {
    fn text(text: String, tokenizer: &Tokenizer) -> Self {
        Draft { ids: tokenizer.encode(&text), text: Some(text), param: "prompt" }
    }

    fn finish(self, media: Vec<Arc<MediaInput>>, vision: Option<&VisionConfig>, tokenizer: &Tokenizer) -> Result<PreparedPrompt> {
        let unit = vision.map_or(1, VisionConfig::merge_unit);
        let images: Vec<MediaInfo> = media.iter().map(|media| MediaInfo::new(media, unit)).collect();
        let num_tokens: Vec<usize> = images.iter().map(|image| image.num_tokens).collect();
        let expanded = expand::expand(&self.ids, &num_tokens, vision, self.param, self.text.is_none())?;
        let collapsed = expand::collapse(&self.ids, vision);
        // A prompt may come with its placeholders expanded; its text is told with one each.
        let as_written = self.text.filter(|_| collapsed.len() == self.ids.len());
        let text = as_written.unwrap_or_else(|| tokenizer.decode(&collapsed, false));
        let (positions, rope_delta) = match vision.filter(|_| !media.is_empty()) {
            Some(vision) => {
                let grids: Vec<mrope::MediaGrid> = media.iter().map(|media| mrope::MediaGrid::from(media.as_ref())).collect();
                mrope::positions(&expanded.token_ids, &grids, vision)
            }
            None => (mrope::text_positions(expanded.token_ids.len()), 0),
        };
        let input = PromptInput { token_ids: expanded.token_ids, positions, rope_delta, media, media_starts: expanded.starts };
        Ok(PreparedPrompt { input, text, images })
    }
}

impl MediaInfo {
    /// `merge_unit` is how many patches make one token.
    pub fn new(media: &MediaInput, merge_unit: usize) -> Self {
        let sha256 = media.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        MediaInfo { sha256, grid_thw: media.grid_thw, num_tokens: media.num_tokens(merge_unit) }
    }
}

/// Gives the bare image parts of messages the images that stand beside them, and refuses what does not fit.
fn place_images(parts: Vec<ImageReference>, given: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    let bare = parts.iter().filter(|part| part.source.is_none()).count();
    if bare != given.len() {
        let message = format!("{} images for {bare} image parts without a source of their own", given.len());
        return Err(Error::invalid("images", message));
    }
    let mut given = given.into_iter();
    Ok(parts.into_iter().filter_map(|part| part.source.map(|source| (part.path, source)).or_else(|| given.next())).collect())
}

/// The semaphores of a processor are never closed.
async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> Option<OwnedSemaphorePermit> {
    semaphore.clone().acquire_many_owned(permits).await.ok()
}

/// Runs work on the rayon pool; a panic there comes out here, where the caller's task ends by it and the pool lives on.
async fn on_pool<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = oneshot::channel();
    rayon::spawn(move || _ = sender.send(catch_unwind(AssertUnwindSafe(work))));
    match receiver.await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => panic!("the rayon pool dropped a task"),
    }
}

/// Image decoders meet hostile bytes: should one panic, the image is at fault.
fn shielded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::invalid("", "the image is damaged or truncated")))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
