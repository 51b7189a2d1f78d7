//! What to compute next: continuous batching with chunked prefill, admission by forecast, preemption by recompute.
//!
//! Plain synchronous state, called by the engine loop. Groups are served in order of arrival: every running sample decodes in every
//! step, what is left of the token budget prefills prompts and resumes preempted samples. Under pressure the newest holder of blocks
//! gives way; the oldest sample never does, so something always finishes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::blocks::{BlockId, BlockPool, prefix_keys};
use super::forecast::LengthForecast;
use super::handle::{Audit, EngineStats, GroupId};
use super::plan::{SampleId, StepPlan};
use super::request::PolicyVersion;
use super::sequence::{Group, Phase};
use super::step_builder::StepBuilder;
use super::vision_cache::VisionCache;
use crate::backends::BLOCK_SIZE;
use crate::model::input::PromptInput;

#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Samples that run at once; each has a slot.
    pub max_num_seqs: usize,
    /// Rows of one step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    pub num_blocks: usize,
    /// Samples with presence or frequency penalties that run at once.
    pub counts_rows: usize,
    pub prefix_caching: bool,
    /// Rows of media features kept on the device.
    pub vision_rows: usize,
    pub merge_unit: usize,
}

pub struct Scheduler {
    pub(super) config: SchedulerConfig,
    pub(super) pool: BlockPool,
    pub(super) vision: VisionCache,
    pub(super) groups: BTreeMap<GroupId, Group>,
    pub(super) free_slots: Vec<u32>,
    pub(super) free_counts: Vec<u32>,
    pub(super) lengths: LengthForecast,
    pub(super) version: PolicyVersion,
    /// No further group starts: those that have are to end first.
    pub(super) closed: bool,
    pub(super) stats: Arc<EngineStats>,
}

pub enum Plan {
    Step(Box<StepPlan>),
    /// Somebody has to give way: wait for the steps in flight, then plan again.
    Drain,
    Idle,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig, stats: Arc<EngineStats>) -> Self {
        assert!(
            config.max_num_batched_tokens >= config.max_num_seqs,
            "a step of {} rows for {} samples",
            config.max_num_batched_tokens,
            config.max_num_seqs
        );
        Scheduler {
            pool: BlockPool::new(config.num_blocks),
            vision: VisionCache::new(config.vision_rows),
            groups: BTreeMap::new(),
            free_slots: (0..config.max_num_seqs as u32).rev().collect(),
            free_counts: (0..config.counts_rows as u32).rev().collect(),
            lengths: LengthForecast::default(),
            version: PolicyVersion::default(),
            closed: false,
            config,
            stats,
        }
    }

    /// The content keys of a prompt's full blocks under the present weights.
    pub fn prefix_keys(&self, prompt: &PromptInput) -> Vec<super::blocks::PrefixKey> {
        match self.config.prefix_caching {
            true => prefix_keys(prompt, self.config.merge_unit, self.version),
            false => Vec::new(),
        }
    }

    pub fn plan(&mut self, steps_in_flight: usize) -> Plan {
        self.renew_prompts();
        if !self.secure_blocks(steps_in_flight == 0) {
            return Plan::Drain;
        }
        let mut step = StepBuilder::new(self.version);
        self.decode(&mut step);
        self.prefill(&mut step);
        if step.plan.is_empty() {
            return Plan::Idle;
        }
        for id in &step.plan.groups {
            self.group(*id).in_flight += 1;
        }
        for id in &step.plan.samples {
            self.group(id.group).samples[id.index].in_flight += 1;
        }
        Plan::Step(Box::new(step.plan))
    }

    pub(super) fn group(&mut self, id: GroupId) -> &mut Group {
        self.groups.get_mut(&id).unwrap_or_else(|| panic!("group {id:?} is planned but gone"))
    }

    /// Blocks for every row that running samples compute next, and for whatever the oldest sample needs to go on. False when
    /// someone must give way but steps in flight still name its blocks.
    fn secure_blocks(&mut self, drained: bool) -> bool {
        let Some(head) = self.head() else { return true };
        let needs = self.head_needs(head);
        while self.pool.available() < needs {
            if !drained {
                return false;
            }
            let room = self.preempt_newer_than(head);
            assert!(
                room,
                "{needs} blocks for the oldest sample, {} available of {}, nobody newer",
                self.pool.available(),
                self.pool.total()
            );
        }
        let running: Vec<SampleId> = self
            .running()
            .filter(|(group, s)| group.samples[*s].drawn < group.sampling.max_tokens)
            .map(|(g, s)| SampleId { group: g.id, index: s })
            .collect();
        for id in running {
            loop {
                let sample = &mut self.groups.get_mut(&id.group).unwrap_or_else(|| panic!("{id:?} is gone")).samples[id.index];
                if !matches!(sample.phase, Phase::Running { .. }) {
                    break; // It gave way to an older one.
                }
                let missing = sample.drawn.div_ceil(BLOCK_SIZE).saturating_sub(sample.blocks.len());
                if let Some(blocks) = self.pool.allocate(missing) {
                    sample.blocks.extend(blocks);
                    break;
                }
                if !drained {
                    return false;
                }
                if !self.preempt_newer_than(id) {
                    self.preempt(id);
                }
            }
        }
        true
    }

    /// The oldest sample that is not done.
    fn head(&self) -> Option<SampleId> {
        self.startable().find_map(|group| group.samples.iter().find(|s| !s.is_done()).map(|s| SampleId { group: group.id, index: s.index }))
    }

    /// Groups that may be computed now, oldest first.
    fn startable(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().filter(|group| !self.closed || group.has_started())
    }

    fn head_needs(&self, head: SampleId) -> usize {
        let group = &self.groups[&head.group];
        let sample = &group.samples[head.index];
        let prompt = if group.is_resident() { 0 } else { group.prompt_len().div_ceil(BLOCK_SIZE) };
        let own = if sample.phase == Phase::Waiting { sample.drawn.div_ceil(BLOCK_SIZE) } else { 0 };
        prompt + own
    }

    /// Running samples, oldest first.
    fn running(&self) -> impl Iterator<Item = (&Group, usize)> {
        self.groups.values().flat_map(|g| g.samples.iter().filter(|s| matches!(s.phase, Phase::Running { .. })).map(move |s| (g, s.index)))
    }

    /// Takes blocks from the newest holder that is newer than `id`; nothing may be in flight.
    fn preempt_newer_than(&mut self, id: SampleId) -> bool {
        for (group_id, group) in self.groups.range(id.group..).rev() {
            let newest = group.samples.iter().rev().find(|s| matches!(s.phase, Phase::Running { .. }));
            match newest {
                Some(sample) if *group_id > id.group || sample.index > id.index => {
                    let victim = SampleId { group: *group_id, index: sample.index };
                    self.preempt(victim);
                    return true;
                }
                None if *group_id > id.group && group.is_resident() => {
                    let group_id = *group_id;
                    self.evict_prompt(group_id);
                    return true;
                }
                _ => {}
            }
        }
        false
    }

    /// The sample keeps its tokens and gives back everything else; it will be computed again, to the same bits.
    fn preempt(&mut self, id: SampleId) {
        let sample = &mut self.groups.get_mut(&id.group).unwrap_or_else(|| panic!("{id:?} is gone")).samples[id.index];
        let Phase::Running { slot, counts_row } = sample.phase else { panic!("preempted {id:?}, which does not run") };
        assert_eq!(sample.in_flight, 0, "preempted {id:?} with steps in flight");
        sample.phase = Phase::Waiting;
        sample.computed = 0;
        self.pool.release(&mut sample.blocks);
        self.free_slots.push(slot);
        self.free_counts.extend(counts_row);
        self.stats.preemptions.fetch_add(1, Relaxed);
    }

    pub(super) fn evict_prompt(&mut self, id: GroupId) {
        let group = self.groups.get_mut(&id).unwrap_or_else(|| panic!("{id:?} is gone"));
        self.pool.release(&mut group.prompt_blocks);
        group.prompt_computed = 0;
        for medium in group.pinned.drain(..) {
            self.vision.unpin(&group.prompt.media[medium]);
        }
    }

    /// One row and one draw for each running sample whose keys are complete up to its last token.
    fn decode(&mut self, step: &mut StepBuilder) {
        for group in self.groups.values_mut() {
            for s in 0..group.samples.len() {
                let sample = &group.samples[s];
                if matches!(sample.phase, Phase::Running { .. }) && sample.pending() == 1 && sample.drawn < group.sampling.max_tokens {
                    step.push_completion(group, s, 1);
                }
            }
        }
    }

    /// Prompts, first tokens and resumed samples, in order of arrival, with what is left of the token budget. Nobody overtakes a
    /// group that has to wait.
    fn prefill(&mut self, step: &mut StepBuilder) {
        let head = self.head();
        let mut committed = self.committed_blocks();
        let ids: Vec<GroupId> = self.startable().filter(|g| g.samples.iter().any(|s| !s.is_done())).map(|g| g.id).collect();
        for id in ids {
            let is_head = head.is_some_and(|h| h.group == id);
            if !self.groups[&id].is_resident() && !self.admit(id, is_head, &mut committed, step) {
                return;
            }
            let budget = self.config.max_num_batched_tokens;
            let group = self.groups.get_mut(&id).unwrap_or_else(|| panic!("{id:?} is gone"));
            let mut last_row = None;
            if !group.prompt_is_computed() {
                let n = (group.prompt_len() - group.prompt_computed).min(budget - step.plan.num_rows());
                if n == 0 {
                    return;
                }
                let from = group.prompt_computed;
                last_row = Some(step.push_prompt(group, from, n, &self.vision));
                group.prompt_computed += n;
                self.stats.prompt_tokens.fetch_add(n as u64, Relaxed);
                publish(&mut self.pool, group, from);
                if !group.prompt_is_computed() {
                    return;
                }
                for medium in group.pinned.drain(..) {
                    self.vision.unpin(&group.prompt.media[medium]);
                }
            }
            for s in 0..group.samples.len() {
                let room = budget - step.plan.num_rows();
                match group.samples[s].phase {
                    Phase::Done { .. } => {}
                    Phase::Running { .. } if group.samples[s].pending() > 1 && room > 0 => {
                        let n = group.samples[s].pending().min(room);
                        step.push_completion(group, s, n);
                    }
                    Phase::Running { .. } => {}
                    // It starts on a prompt of the present weights, once those that read the old one have ended.
                    Phase::Waiting if group.stale_prompt && group.samples[s].drawn == 0 => {}
                    Phase::Waiting => {
                        let is_head = head.is_some_and(|h| h == SampleId { group: id, index: s });
                        let forecast = self.lengths.blocks(group, s);
                        let fits = is_head || committed + forecast <= self.pool.total();
                        // A first token needs no row beside the prompt's last, which is computed once more when it was not just now.
                        let needs_row = group.samples[s].drawn > 0 || last_row.is_none();
                        if !fits
                            || (needs_row && room == 0)
                            || self.free_slots.is_empty()
                            || (group.needs_counts() && self.free_counts.is_empty())
                        {
                            return;
                        }
                        let Some(blocks) = self.pool.allocate(group.samples[s].drawn.div_ceil(BLOCK_SIZE)) else { return };
                        committed += forecast;
                        group.samples[s].blocks = blocks;
                        let counts_row = if group.needs_counts() { self.free_counts.pop() } else { None };
                        let slot = self.free_slots.pop().unwrap_or_else(|| panic!("a slot was there"));
                        group.samples[s].phase = Phase::Running { slot, counts_row };
                        step.start(group, s, slot, counts_row);
                        if group.samples[s].drawn == 0 {
                            let row = *last_row.get_or_insert_with(|| step.push_prompt(group, group.prompt_len() - 1, 1, &self.vision));
                            step.push_first_draw(group, s, row);
                        } else {
                            let n = group.samples[s].pending().min(room);
                            step.push_completion(group, s, n);
                        }
                    }
                }
            }
        }
    }

    /// Blocks that resident prompts hold and running samples are expected to hold at their end.
    fn committed_blocks(&self) -> usize {
        let prompts: usize = self.groups.values().map(|g| g.prompt_blocks.len()).sum();
        prompts + self.running().map(|(g, s)| self.lengths.blocks(g, s)).sum::<usize>()
    }

    /// Gives a waiting group its prompt blocks, cached ones first, and room for its media's features.
    fn admit(&mut self, id: GroupId, is_head: bool, committed: &mut usize, step: &mut StepBuilder) -> bool {
        if self.free_slots.is_empty() {
            return false;
        }
        let group = self.groups.get_mut(&id).unwrap_or_else(|| panic!("{id:?} is gone"));
        let total = group.prompt_len().div_ceil(BLOCK_SIZE);
        let first = group.samples.iter().find(|s| !s.is_done()).map_or(0, |s| s.index);
        if !is_head && *committed + total + self.lengths.blocks(group, first) > self.pool.total() {
            return false;
        }
        // At least the last token is computed: its logits are wanted.
        let reusable = (group.prompt_len() - 1) / BLOCK_SIZE;
        let mut blocks: Vec<BlockId> = group.prefix_keys.iter().take(reusable).map_while(|key| self.pool.lookup(key)).collect();
        let hits = blocks.len();
        let Some(fresh) = self.pool.allocate(total - hits) else {
            self.pool.release(&mut blocks);
            return false;
        };
        blocks.extend(fresh);
        group.prompt_computed = hits * BLOCK_SIZE;
        let Some(encode) = pin_media(&mut self.vision, group, self.config.merge_unit) else {
            self.pool.release(&mut blocks);
            group.prompt_computed = 0;
            return false;
        };
        for medium in &group.pinned {
            let medium = &group.prompt.media[*medium];
            let counter = if encode.contains(&medium.sha256) { &self.stats.vision_encoded } else { &self.stats.vision_hits };
            counter.fetch_add(1, Relaxed);
            if encode.contains(&medium.sha256) && !step.plan.encode.iter().any(|(m, _)| m.sha256 == medium.sha256) {
                step.plan.encode.push((medium.clone(), self.vision.rows(medium).to_vec()));
            }
        }
        if self.config.prefix_caching {
            self.stats.prefix_queries.fetch_add(reusable as u64, Relaxed);
            self.stats.prefix_hits.fetch_add(hits as u64, Relaxed);
        }
        *committed += total;
        group.prompt_blocks = blocks;
        group.admitted.get_or_insert_with(Instant::now);
        true
    }

    /// Panics when blocks or slots do not add up; reports what is in use.
    pub fn audit(&self) -> Audit {
        let held = self.groups.values().flat_map(|g| g.prompt_blocks.iter().chain(g.samples.iter().flat_map(|s| &s.blocks))).copied();
        self.pool.check(held);
        let holds_slot = |phase: &Phase| matches!(phase, Phase::Running { .. } | Phase::Done { held: Some(_) });
        let slots_used = self.groups.values().flat_map(|g| &g.samples).filter(|s| holds_slot(&s.phase)).count();
        assert_eq!(slots_used + self.free_slots.len(), self.config.max_num_seqs, "slots in use and free do not add up");
        Audit {
            blocks_total: self.pool.total(),
            blocks_free: self.pool.free(),
            blocks_cached: self.pool.idle(),
            blocks_used: self.pool.used(),
            slots_used,
            groups: self.groups.len(),
        }
    }
}

/// Pins the media that the uncomputed part of the prompt shows; returns the contents to encode, or `None` when there is no room.
fn pin_media(vision: &mut VisionCache, group: &mut Group, merge_unit: usize) -> Option<Vec<[u8; 32]>> {
    let mut encode = Vec::new();
    for (i, (medium, start)) in group.prompt.media.iter().zip(&group.prompt.media_starts).enumerate() {
        let num_tokens = medium.num_tokens(merge_unit);
        if start + num_tokens <= group.prompt_computed {
            continue;
        }
        match vision.pin(medium, num_tokens) {
            Some(true) => encode.push(medium.sha256),
            Some(false) => {}
            None => {
                for pinned in group.pinned.drain(..) {
                    vision.unpin(&group.prompt.media[pinned]);
                }
                encode.iter().for_each(|key| vision.discard(key));
                return None;
            }
        }
        group.pinned.push(i);
    }
    Some(encode)
}

/// Makes the prompt's newly computed full blocks findable. Later steps run after this one, so they read finished keys.
fn publish(pool: &mut BlockPool, group: &Group, from: usize) {
    for i in from / BLOCK_SIZE..group.prompt_computed / BLOCK_SIZE {
        if let Some(key) = group.prefix_keys.get(i) {
            pool.publish(*key, group.prompt_blocks[i]);
        }
    }
}
