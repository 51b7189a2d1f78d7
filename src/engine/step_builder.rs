//! Writes rows, spans and draws of groups and samples into a step's plan, and moves their counters on.

use std::collections::HashMap;

use super::blocks::BlockId;
use super::handle::GroupId;
use super::plan::{SampleId, SlotReset, StepPlan};
use super::request::PolicyVersion;
use super::sequence::{Group, Phase};
use super::vision_cache::VisionCache;
use crate::backends::{BLOCK_SIZE, NO_COUNTS, NO_TOKEN, SampleRow, Span};
use crate::rng::draw_words;

pub struct StepBuilder {
    pub plan: StepPlan,
    /// Offset of each group's prompt table in this step.
    tables: HashMap<GroupId, u32>,
}

impl StepBuilder {
    pub fn new(version: PolicyVersion) -> Self {
        StepBuilder { plan: StepPlan { version, ..Default::default() }, tables: HashMap::new() }
    }

    fn prompt_table(&mut self, group: &Group) -> u32 {
        *self.tables.entry(group.id).or_insert_with(|| {
            self.plan.groups.push(group.id);
            self.plan.push_table(&group.prompt_blocks)
        })
    }

    /// Rows for prompt tokens `from..from + n`; returns the last row.
    pub fn push_prompt(&mut self, group: &Group, from: usize, n: usize, vision: &VisionCache) -> usize {
        let first_row = self.plan.num_rows();
        let prompt_table = self.prompt_table(group);
        self.plan.spans.push(Span {
            first_row: first_row as u32,
            num_rows: n as u32,
            prompt_table,
            prompt_keys: from as u32 + 1,
            own_table: 0,
            own_keys: 0,
        });
        for t in from..from + n {
            self.plan.push_known(group.prompt.token_ids[t], group.prompt.positions[t], kv_slot(&group.prompt_blocks, t));
        }
        for &i in &group.pinned {
            let (medium, start) = (&group.prompt.media[i], group.prompt.media_starts[i]);
            for (offset, feature) in vision.rows(medium).iter().enumerate() {
                let t = start + offset;
                if (from..from + n).contains(&t) {
                    self.plan.features.push([*feature, (first_row + t - from) as u32]);
                }
            }
        }
        self.plan.num_rows() - 1
    }

    /// Rows for the next `n` completion tokens of a running sample; a draw when they are its last.
    pub fn push_completion(&mut self, group: &mut Group, s: usize, n: usize) {
        let Phase::Running { slot, .. } = group.samples[s].phase else { panic!("sample {s} of {:?} has no slot", group.id) };
        let prompt_table = self.prompt_table(group);
        let sample = &mut group.samples[s];
        let own_table = self.plan.push_table(&sample.blocks);
        let from = sample.computed;
        let (prompt_len, delta) = (group.prompt.token_ids.len(), group.prompt.rope_delta);
        self.plan.spans.push(Span {
            first_row: self.plan.num_rows() as u32,
            num_rows: n as u32,
            prompt_table,
            prompt_keys: prompt_len as u32,
            own_table,
            own_keys: from as u32 + 1,
        });
        for t in from..from + n {
            let position = [(prompt_len + t) as i32 + delta; 3];
            let place = kv_slot(&sample.blocks, t);
            match sample.output.token_ids.get(t) {
                Some(token) => self.plan.push_known(*token, position, place),
                None => self.plan.push_from_slot(slot, position, place),
            }
        }
        sample.computed += n;
        self.plan.samples.push(SampleId { group: group.id, index: s });
        if sample.pending() == 0 {
            let row = self.plan.push_logits(self.plan.num_rows() - 1);
            self.push_draw(group, s, row);
        }
    }

    /// The first draw of a sample, from the prompt's last row.
    pub fn push_first_draw(&mut self, group: &mut Group, s: usize, row: usize) {
        let logits_row = match self.plan.logits_index.last() {
            Some(last) if *last as usize == row => self.plan.logits_index.len() as u32 - 1,
            _ => self.plan.push_logits(row),
        };
        self.plan.samples.push(SampleId { group: group.id, index: s });
        self.push_draw(group, s, logits_row);
    }

    fn push_draw(&mut self, group: &mut Group, s: usize, logits_row: u32) {
        let sampling = &group.sampling;
        let sample = &mut group.samples[s];
        let Phase::Running { slot, counts_row } = sample.phase else { panic!("sample {s} of {:?} has no slot", group.id) };
        let banned_start = self.plan.banned.len() as u32;
        self.plan.banned.extend_from_slice(&sampling.banned_token_ids);
        if sample.drawn < sampling.min_tokens {
            self.plan.banned.extend_from_slice(&sampling.stop_token_ids);
        }
        let bias_start = self.plan.bias_ids.len() as u32;
        self.plan.bias_ids.extend(sampling.logit_bias.iter().map(|(id, _)| *id));
        self.plan.bias_values.extend(sampling.logit_bias.iter().map(|(_, value)| *value));
        self.plan.draws.push(SampleRow {
            logits_row,
            slot,
            random: draw_words(group.rng_key.0, s as u32, sample.drawn as u32),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            counts_row: counts_row.unwrap_or(NO_COUNTS),
            banned_start,
            banned_len: self.plan.banned.len() as u32 - banned_start,
            bias_start,
            bias_len: sampling.logit_bias.len() as u32,
            top_logprobs: sampling.top_logprobs as u32,
            forced: NO_TOKEN,
        });
        self.plan.drawn_by.push(SampleId { group: group.id, index: s });
        sample.drawn += 1;
    }

    /// Prepares the slot of a sequence that starts or resumes, where its sampling reads the past.
    pub fn start(&mut self, group: &Group, s: usize, slot: u32, counts_row: Option<u32>) {
        if group.sampling.repetition_penalty != 1.0 || counts_row.is_some() {
            let completion = group.samples[s].output.token_ids.clone();
            self.plan.resets.push(SlotReset { slot, counts_row, prompt: group.prompt.token_ids.clone(), completion });
        }
    }
}

/// Place of a segment's token `t` in the cache.
pub fn kv_slot(blocks: &[BlockId], t: usize) -> u32 {
    blocks[t / BLOCK_SIZE] * BLOCK_SIZE as u32 + (t % BLOCK_SIZE) as u32
}
