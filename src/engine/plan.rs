//! One step as the host describes it: rows to compute, where their keys go, what they attend to and which tokens to draw.

use std::sync::Arc;

use super::handle::GroupId;
use super::request::PolicyVersion;
use super::scoring::Scorer;
use crate::backends::{NO_COUNTS, NO_SLOT, NO_TOKEN, SampleRow, Span};
use crate::model::input::MediaInput;

/// A sample of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleId {
    pub group: GroupId,
    pub index: usize,
}

#[derive(Default)]
pub struct StepPlan {
    /// Images and videos to encode first, with the feature row of each of their tokens.
    pub encode: Vec<(Arc<MediaInput>, Vec<u32>)>,
    /// Slots to prepare before the step: a sequence starts or resumes there.
    pub resets: Vec<SlotReset>,

    pub token_ids: Vec<u32>,
    /// Slot whose last token feeds the row, `NO_TOKEN` where `token_ids` holds it.
    pub token_slots: Vec<u32>,
    pub positions: Vec<[i32; 3]>,
    pub slot_mapping: Vec<u32>,
    /// (feature row, step row)
    pub features: Vec<[u32; 2]>,

    pub spans: Vec<Span>,
    pub tables: Vec<u32>,

    pub logits_index: Vec<u32>,
    pub draws: Vec<SampleRow>,
    pub banned: Vec<u32>,
    pub bias_ids: Vec<u32>,
    pub bias_values: Vec<f32>,

    /// Who draws, in the order of `draws`.
    pub drawn_by: Vec<SampleId>,
    /// Groups whose prompt blocks and samples whose own blocks the step names: they are not freed before it completes.
    pub groups: Vec<GroupId>,
    pub samples: Vec<SampleId>,
    pub version: PolicyVersion,
    /// The step scores given tokens with these weights, for nobody in `drawn_by`.
    pub scorer: Option<Scorer>,
}

pub struct SlotReset {
    pub slot: u32,
    pub counts_row: Option<u32>,
    pub prompt: Vec<u32>,
    pub completion: Vec<u32>,
}

impl StepPlan {
    pub fn num_rows(&self) -> usize {
        self.token_ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.token_ids.is_empty()
    }

    /// Whether every row is drawn from, and by itself: then the step is the same for every plan with as many rows.
    pub fn is_decode(&self) -> bool {
        let rows = self.num_rows();
        self.scorer.is_none()
            && self.features.is_empty()
            && self.draws.len() == rows
            && self.logits_index.len() == rows
            && self.logits_index.iter().enumerate().all(|(i, row)| i == *row as usize)
    }

    /// As [`crate::backends::SampleInputs::plain`] says.
    pub fn draws_plainly(&self) -> bool {
        self.draws.iter().enumerate().all(|(i, draw)| draw.logits_row as usize == i && draw.is_plain())
    }

    /// Fills a decode step up with rows that leave nothing behind but `spare_slot`'s token.
    pub fn pad(&mut self, rows: usize, spare_slot: u32) {
        for row in self.num_rows() as u32..rows as u32 {
            self.push_known(0, [0; 3], NO_SLOT);
            self.logits_index.push(row);
            self.draws.push(SampleRow {
                logits_row: row,
                slot: spare_slot,
                top_p: 1.0,
                repetition_penalty: 1.0,
                counts_row: NO_COUNTS,
                forced: NO_TOKEN,
                ..Default::default()
            });
        }
    }

    pub fn push_known(&mut self, token: u32, position: [i32; 3], kv_slot: u32) {
        self.push(token, NO_TOKEN, position, kv_slot);
    }

    /// A row whose token the device drew and the host may not have seen yet.
    pub fn push_from_slot(&mut self, slot: u32, position: [i32; 3], kv_slot: u32) {
        self.push(0, slot, position, kv_slot);
    }

    fn push(&mut self, token: u32, slot: u32, position: [i32; 3], kv_slot: u32) {
        self.token_ids.push(token);
        self.token_slots.push(slot);
        self.positions.push(position);
        self.slot_mapping.push(kv_slot);
    }

    /// Appends a block table and returns its offset.
    pub fn push_table(&mut self, blocks: &[u32]) -> u32 {
        let offset = self.tables.len() as u32;
        self.tables.extend_from_slice(blocks);
        offset
    }

    /// Asks for the logits of a row and returns their index.
    pub fn push_logits(&mut self, row: usize) -> u32 {
        self.logits_index.push(row as u32);
        self.logits_index.len() as u32 - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padded_decode_step_is_one_still() {
        let mut plan = StepPlan::default();
        plan.push_from_slot(3, [7; 3], 64);
        plan.push_from_slot(1, [9; 3], 96);
        plan.draws = vec![SampleRow { slot: 3, ..Default::default() }, SampleRow { slot: 1, logits_row: 1, ..Default::default() }];
        assert!(!plan.is_decode());
        plan.push_logits(0);
        plan.push_logits(1);
        assert!(plan.is_decode());
        plan.pad(4, 8);
        assert!(plan.is_decode());
        assert_eq!((plan.num_rows(), plan.logits_index.as_slice()), (4, [0, 1, 2, 3].as_slice()));
        assert_eq!(plan.slot_mapping[2..], [NO_SLOT; 2]);
        assert!(plan.draws[2..].iter().all(|draw| draw.slot == 8 && draw.temperature == 0.0));
        plan.features.push([0, 0]);
        assert!(!plan.is_decode());
    }
}
