//! One step as the host describes it: rows to compute, where their keys go, what they attend to and which tokens to draw.

use std::sync::Arc;

use super::handle::GroupId;
use super::request::PolicyVersion;
use crate::backends::{NO_TOKEN, SampleRow, Span};
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
