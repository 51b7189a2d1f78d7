//! What happens when a step is done: tokens go to their samples, finished ones report, and what no step names any more is freed.

use std::sync::atomic::Ordering::Relaxed;

use super::handle::GroupId;
use super::plan::StepPlan;
use super::request::FinishReason;
use super::scheduler::Scheduler;
use super::sequence::{Group, Phase};
use crate::backends::Sampled;

impl Scheduler {
    pub fn add(&mut self, group: Group) {
        self.groups.insert(group.id, group);
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes the draws of a finished step, in the order of its plan.
    pub fn complete(&mut self, step: &StepPlan, drawn: &[Sampled]) {
        assert_eq!(drawn.len(), step.drawn_by.len(), "{} draws came back for {} planned", drawn.len(), step.drawn_by.len());
        for (id, sampled) in step.drawn_by.iter().zip(drawn) {
            let group = self.group(id.group);
            if group.samples[id.index].is_done() {
                // The sample ended while this step was on its way.
                self.stats.discarded_tokens.fetch_add(1, Relaxed);
                continue;
            }
            let finished = group.accept(id.index, sampled, step.version);
            let len = group.samples[id.index].output.token_ids.len();
            self.stats.generated_tokens.fetch_add(1, Relaxed);
            if let Some(reason) = finished {
                self.group(id.group).finish(id.index, reason);
                if reason == FinishReason::Corrupt {
                    self.stats.corrupt_samples.fetch_add(1, Relaxed);
                } else {
                    self.lengths.observe(len);
                }
            }
        }
        for id in &step.groups {
            self.group(*id).in_flight -= 1;
        }
        for id in &step.samples {
            self.group(id.group).samples[id.index].in_flight -= 1;
        }
        for id in &step.groups {
            self.sweep(*id);
        }
    }

    /// Ends what is unfinished in a group; its samples report what they have.
    pub fn abort(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        for s in 0..group.samples.len() {
            if !group.samples[s].is_done() {
                group.finish(s, FinishReason::Abort);
            }
        }
        self.sweep(id);
    }

    /// Frees what finished samples hold and no step in flight names; forgets a group that is over.
    fn sweep(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        for sample in &mut group.samples {
            if sample.in_flight > 0 {
                continue;
            }
            if let Phase::Done { held: Some((slot, counts_row)) } = sample.phase {
                self.pool.release(&mut sample.blocks);
                self.free_slots.push(slot);
                self.free_counts.extend(counts_row);
                sample.phase = Phase::Done { held: None };
            }
        }
        if group.is_over() {
            self.pool.release(&mut group.prompt_blocks);
            for medium in group.pinned.drain(..) {
                self.vision.unpin(&group.prompt.media[medium]);
            }
            self.groups.remove(&id);
        }
    }

    /// Forgets cached prefixes and features that nobody uses.
    pub fn reset_caches(&mut self) {
        self.pool.clear_cache();
        self.vision.clear();
    }

    pub fn publish_stats(&self) {
        let samples = || self.groups.values().flat_map(|g| &g.samples);
        let running = samples().filter(|s| matches!(s.phase, Phase::Running { .. })).count();
        let waiting = samples().filter(|s| s.phase == Phase::Waiting).count();
        for (gauge, value) in [
            (&self.stats.running, running),
            (&self.stats.waiting, waiting),
            (&self.stats.blocks_used, self.pool.used()),
            (&self.stats.blocks_cached, self.pool.idle()),
        ] {
            gauge.store(value as u64, Relaxed);
        }
    }
}
