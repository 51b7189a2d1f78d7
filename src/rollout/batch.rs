//! Groups as one safetensors file that a learner loads as it is, under TRL's names: a row a sample, in the order of the groups.
//!
//! Ids and masks are i64, the rest f32. Prompts are padded on the left, completions on the right: ids with the tokenizer's pad token,
//! numbers with 0, `policy_versions` with −1.

use std::collections::HashMap;

use bytemuck::NoUninit;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::delivery::{LeaseReply, rewards_of};
use super::figures::Tally;
use super::generator::Generator;
use super::group::Attempt;
use super::reply::{GroupReply, RolloutReply, SampleReply, ScoredGroup};
use crate::error::{Error, Result};
use crate::model::input::{MediaInput, MediaKind};

/// The media type of these files.
pub const MEDIA_TYPE: &str = "application/vnd.safetensors";

/// What padding and token types depend on.
#[derive(Clone, Debug)]
pub struct Layout {
    pub pad_token_id: u32,
    pub image_token_id: Option<u32>,
    pub video_token_id: Option<u32>,
    /// Repeat the pixels of a group for each of its samples, as TRL does.
    pub expand_images: bool,
}

struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// One sample with what its group says about it.
struct Row<'a> {
    group: &'a ScoredGroup,
    index: usize,
    sample: &'a SampleReply,
}

impl Layout {
    pub fn new(generator: &Generator, expand_images: bool) -> Layout {
        let tokenizer = generator.processor().tokenizer();
        let [image_token_id, video_token_id] = [0, 1].map(|i| generator.media_token_ids().get(i).copied());
        let pad_token_id = tokenizer.pad_token_id().or(tokenizer.eos_token_ids().first().copied()).unwrap_or(0);
        Layout { pad_token_id, image_token_id, video_token_id, expand_images }
    }

    /// A lease's groups, with what the ack needs in the metadata.
    pub fn lease(&self, lease: &LeaseReply) -> Result<Vec<u8>> {
        let groups: Vec<&ScoredGroup> = lease.groups.iter().collect();
        let metadata = json!({
            "lease_id": lease.lease_id, "fence": lease.fence, "expires_at": lease.expires_at, "queue": lease.queue,
            "policy_version": lease.policy_version,
            "deliveries": groups.iter().map(|group| group.delivery).collect::<Vec<_>>(),
        });
        let mut tally = Tally::default();
        for (position, group) in groups.iter().enumerate() {
            tally.add_attempts(position, &mut vec![attempt(group)]);
        }
        let mut metrics = tally.figures(&reward_names(&groups).into_iter().map(Into::into).collect::<Vec<_>>());
        // Of what was dropped on the way a lease knows nothing.
        metrics.0.retain(|(name, _)| !["num_groups_dropped", "num_groups_bad", "num_refills"].contains(&&**name));
        self.encode(&groups, metadata, json!(metrics))
    }

    /// A reply's groups; those that could not be generated are in the metadata.
    pub fn rollout(&self, reply: &RolloutReply) -> Result<Vec<u8>> {
        let (mut groups, mut bad) = (Vec::new(), Vec::new());
        for group in &reply.groups {
            match group {
                GroupReply::Scored(group) => groups.push(&**group),
                GroupReply::Bad(group) => bad.push(group),
            }
        }
        let metadata = json!({
            "rollout_id": reply.rollout_id, "seed": reply.seed, "model": reply.model, "policy_version": reply.policy_version,
            "bad_groups": bad,
        });
        self.encode(&groups, metadata, json!(reply.metrics))
    }

    fn encode(&self, groups: &[&ScoredGroup], metadata: Value, metrics: Value) -> Result<Vec<u8>> {
        let rows: Vec<Row<'_>> = (groups.iter().enumerate())
            .flat_map(|(index, group)| group.samples.iter().map(move |sample| Row { group, index, sample }))
            .collect();
        let names = reward_names(groups);
        let mut tensors = self.tokens(&rows);
        let num_items: usize = rows.iter().map(|row| usize::from(row.sample.completion_mask) * row.sample.token_ids.len()).sum();
        tensors.extend(judgements(&rows, &names));
        tensors.extend(per_token(&rows));
        if groups.iter().any(|group| !group.images.is_empty()) {
            tensors.push(self.token_types(&rows));
            tensors.extend(self.media(groups));
        }
        let mut strings: HashMap<String, String> = HashMap::new();
        let lists = json!({
            "uids": groups.iter().map(|group| &group.uid).collect::<Vec<_>>(),
            "ids": groups.iter().map(|group| &group.id).collect::<Vec<_>>(),
            "num_items_in_batch": num_items, "reward_names": names, "metrics": metrics,
        });
        for (key, value) in [metadata, lists].iter().filter_map(Value::as_object).flatten() {
            strings.insert(key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        let wrong = |e: safetensors::SafeTensorError| Error::Setup(format!("a batch is not safetensors: {e}"));
        let views = tensors.iter().map(|tensor| Ok((tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?)));
        let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(wrong)?;
        safetensors::serialize(views, Some(strings)).map_err(wrong)
    }

    fn tokens(&self, rows: &[Row<'_>]) -> Vec<Tensor> {
        let (prompt, completion) = (prompt_width(rows), completion_width(rows));
        let pad = i64::from(self.pad_token_id);
        let prompts = |value: fn(u32) -> i64, padding| left(rows, prompt, value, padding);
        let masked = |row: &Row<'_>| vec![i64::from(row.sample.completion_mask); row.sample.token_ids.len()];
        let ids = |row: &Row<'_>| row.sample.token_ids.iter().map(|id| i64::from(*id)).collect();
        vec![
            matrix("prompt_ids", rows.len(), prompt, prompts(i64::from, pad)),
            matrix("prompt_mask", rows.len(), prompt, prompts(|_| 1, 0)),
            matrix("completion_ids", rows.len(), completion, right(rows, completion, ids, pad)),
            matrix("completion_mask", rows.len(), completion, right(rows, completion, masked, 0)),
        ]
    }

    /// 1 for the tokens of images, 2 for those of videos.
    fn token_types(&self, rows: &[Row<'_>]) -> Tensor {
        let (prompt, completion) = (prompt_width(rows), completion_width(rows));
        let mut types = vec![0_i64; rows.len() * (prompt + completion)];
        for (row, types) in rows.iter().zip(types.chunks_exact_mut((prompt + completion).max(1))) {
            let ids = &row.group.prompt_token_ids;
            for (id, kind) in ids.iter().zip(&mut types[prompt - ids.len()..prompt]) {
                *kind = if Some(*id) == self.image_token_id { 1 } else { 2 * i64::from(Some(*id) == self.video_token_id) };
            }
        }
        matrix("mm_token_type_ids", rows.len(), prompt + completion, types)
    }

    /// Grids, and the pixels of groups that have them.
    fn media(&self, groups: &[&ScoredGroup]) -> Vec<Tensor> {
        let times = |group: &ScoredGroup| if self.expand_images { group.samples.len() } else { 1 };
        let repeated = || groups.iter().flat_map(|group| std::iter::repeat_n(*group, times(group)));
        let counts: Vec<i64> = repeated().map(|group| group.images.len() as i64).collect();
        let grids: Vec<i64> = repeated().flat_map(|group| group.images.iter().flat_map(|image| image.grid_thw)).map(|n| n as i64).collect();
        let mut tensors = vec![matrix("image_grid_thw", grids.len() / 3, 3, grids), vector("num_images", counts)];
        if groups.iter().all(|group| group.media.len() == group.images.len()) {
            let images = || repeated().flat_map(|group| &group.media).filter(|media| media.kind == MediaKind::Image);
            let patches: usize = images().map(|media| media.num_patches()).sum();
            let pixels: Vec<f32> = images().flat_map(|media| media.pixel_values()).collect();
            tensors.push(matrix("pixel_values", patches, pixels.len() / patches.max(1), pixels));
        }
        tensors
    }
}

fn judgements(rows: &[Row<'_>], names: &[String]) -> Vec<Tensor> {
    let reward = |row: &Row<'_>, name: &String| row.sample.rewards.get(name).copied().flatten().map_or(f32::NAN, |value| value as f32);
    let rewards: Vec<f32> = rows.iter().flat_map(|row| names.iter().map(move |name| reward(row, name))).collect();
    let temperature = |row: &Row<'_>| if row.group.sampling.temperature == 0.0 { 1.0 } else { row.group.sampling.temperature as f32 };
    let oldest = |row: &Row<'_>| row.sample.policy_versions.iter().map(|span| span.version.0).min();
    let of_group = |row: &Row<'_>| row.group.samples.iter().flat_map(|sample| &sample.policy_versions).map(|span| span.version.0).min();
    vec![
        vector("advantages", rows.iter().map(|row| row.sample.advantage as f32).collect::<Vec<_>>()),
        matrix("rewards", rows.len(), names.len(), rewards),
        vector("temperature", rows.iter().map(temperature).collect::<Vec<_>>()),
        vector("group_index", rows.iter().map(|row| row.index as i64).collect::<Vec<_>>()),
        // A sample without a token has the version of its siblings.
        vector("policy_version", rows.iter().map(|row| oldest(row).or(of_group(row)).unwrap_or(0) as i64).collect::<Vec<_>>()),
    ]
}

/// Numbers beside the tokens, those that every sample has.
fn per_token(rows: &[Row<'_>]) -> Vec<Tensor> {
    type Array = for<'a> fn(&'a SampleReply) -> Option<&'a Vec<f32>>;
    let arrays: [(&'static str, Array); 5] = [
        ("old_per_token_logps", |sample| sample.logps.as_ref()),
        ("logps_raw", |sample| sample.logps_raw.as_ref()),
        ("logps_sampled", |sample| sample.logps_sampled.as_ref()),
        ("ref_per_token_logps", |sample| sample.ref_logps.as_ref()),
        ("entropies", |sample| sample.entropy.as_ref()),
    ];
    let width = completion_width(rows);
    let asked = arrays.into_iter().filter(|(_, array)| rows.iter().all(|row| array(row.sample).is_some()));
    let mut tensors: Vec<Tensor> = asked
        .map(|(name, array)| {
            let numbers = right(rows, width, |row| array(row.sample).cloned().unwrap_or_default(), 0.0);
            matrix(name, rows.len(), width, numbers)
        })
        .collect();
    if rows.iter().any(|row| row.sample.policy_versions.len() > 1) {
        let versions = |row: &Row<'_>| {
            let spans = row.sample.policy_versions.iter();
            spans.flat_map(|span| std::iter::repeat_n(span.version.0 as i32, span.end - span.start)).collect()
        };
        tensors.push(matrix("policy_versions", rows.len(), width, right(rows, width, versions, -1)));
    }
    tensors
}

/// The names of all rewards, in order of appearance.
fn reward_names(groups: &[&ScoredGroup]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in groups.iter().flat_map(|group| group.samples.first()).flat_map(|sample| &sample.rewards.0) {
        if !names.iter().any(|known| **known == **name) {
            names.push(name.to_string());
        }
    }
    names
}

/// A stored group as the metrics see it.
fn attempt(group: &ScoredGroup) -> Attempt {
    Attempt {
        prompt_len: group.prompt_token_ids.len(),
        lengths: group.samples.iter().map(|sample| sample.token_ids.len()).collect(),
        statuses: group.samples.iter().map(|sample| sample.status).collect(),
        rewards: rewards_of(group),
        mean: group.reward_mean,
        std: group.reward_std,
        zero_std: group.zero_std,
    }
}

/// # Errors
///
/// An image that is not the one that the completions were drawn for.
pub(super) fn check_media(group: &ScoredGroup, media: &[std::sync::Arc<MediaInput>]) -> Result<()> {
    let digest = |media: &MediaInput| media.sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match media.len() == group.images.len() && media.iter().zip(&group.images).all(|(media, image)| digest(media) == image.sha256) {
        true => Ok(()),
        false => Err(Error::Conflict(format!("an image of group {:?} is no longer the one that it was generated for", group.id))),
    }
}

fn prompt_width(rows: &[Row<'_>]) -> usize {
    rows.iter().map(|row| row.group.prompt_token_ids.len()).max().unwrap_or(0)
}

fn completion_width(rows: &[Row<'_>]) -> usize {
    rows.iter().map(|row| row.sample.token_ids.len()).max().unwrap_or(0)
}

fn left(rows: &[Row<'_>], width: usize, value: fn(u32) -> i64, padding: i64) -> Vec<i64> {
    let mut all = Vec::with_capacity(rows.len() * width);
    for row in rows {
        let ids = &row.group.prompt_token_ids;
        all.extend(std::iter::repeat_n(padding, width - ids.len()));
        all.extend(ids.iter().map(|id| value(*id)));
    }
    all
}

fn right<T: Clone>(rows: &[Row<'_>], width: usize, values: impl Fn(&Row<'_>) -> Vec<T>, padding: T) -> Vec<T> {
    let mut all = Vec::with_capacity(rows.len() * width);
    for (i, row) in rows.iter().enumerate() {
        all.extend(values(row));
        all.resize((i + 1) * width, padding.clone());
    }
    all
}

trait Element: NoUninit {
    const DTYPE: Dtype;
}

impl Element for i64 {
    const DTYPE: Dtype = Dtype::I64;
}

impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

fn matrix<T: Element>(name: &'static str, rows: usize, columns: usize, values: Vec<T>) -> Tensor {
    assert_eq!(values.len(), rows * columns, "{name}");
    Tensor { name, dtype: T::DTYPE, shape: vec![rows, columns], bytes: bytemuck::cast_slice(&values).to_vec() }
}

fn vector<T: Element>(name: &'static str, values: Vec<T>) -> Tensor {
    Tensor { name, dtype: T::DTYPE, shape: vec![values.len()], bytes: bytemuck::cast_slice(&values).to_vec() }
}
