//! Log-probabilities of given tokens, under the policy or the reference weights.
//!
//! A sequence is computed by itself between two steps of the others, in as few passes as its rows and logits need, with the same
//! segments and kernels as a sample: the policy's log-probabilities are those of the draw, bit for bit.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Engine;
use super::blocks::BlockId;
use super::plan::StepPlan;
use super::request::PolicyVersion;
use super::scheduler::Scheduler;
use super::step_builder::kv_slot;
use crate::backends::{BLOCK_SIZE, Backend, NO_COUNTS, SampleRow, Span};
use crate::error::{Error, Result};
use crate::model::input::{MediaInput, PromptInput};

/// Whose log-probabilities are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scorer {
    #[default]
    Policy,
    Reference,
}

/// The caller has checked the ids.
#[derive(Clone)]
pub struct ScoreRequest {
    pub prompt: Arc<PromptInput>,
    pub completion: Arc<[u32]>,
    /// 0 scores at temperature 1, as greedy samples are.
    pub temperature: f32,
    pub scorer: Scorer,
}

/// Arrays of the completion's length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    pub logps: Vec<f32>,
    pub entropy: Vec<f32>,
    /// Of the policy, at the time.
    pub version: PolicyVersion,
}

pub(super) struct ScoreJob {
    pub request: ScoreRequest,
    pub reply: oneshot::Sender<Result<Scores>>,
}

/// What a sequence holds while it is computed.
struct Room {
    prompt_blocks: Vec<BlockId>,
    own_blocks: Vec<BlockId>,
    media: Vec<Arc<MediaInput>>,
    /// Those of `media` that have to be computed.
    encode: Vec<Arc<MediaInput>>,
}

impl<B: Backend> Engine<B> {
    /// Scores one sequence, if one waits and there is room for it.
    pub(super) fn score_next(&mut self) {
        let Some(job) = self.scoring.pop_front().filter(|job| !job.reply.is_closed()) else { return };
        if job.request.scorer == Scorer::Reference && !self.runner.has_reference() {
            return drop(job.reply.send(Err(no_reference())));
        }
        while !self.in_flight.is_empty() {
            self.finish_oldest();
        }
        match self.scheduler.make_room(&job.request) {
            None => self.scoring.push_front(job),
            Some(mut room) => {
                let scores = self.score(&job.request, &room);
                self.scheduler.leave(&mut room);
                // Who asked may have gone.
                let _ = job.reply.send(scores);
            }
        }
    }

    fn score(&mut self, request: &ScoreRequest, room: &Room) -> Result<Scores> {
        let (prompt, completion) = (&request.prompt, &request.completion);
        let prompt_len = prompt.token_ids.len();
        // The last token's keys are nobody's need.
        let total = prompt_len + completion.len() - 1;
        let mut scores = Scores { version: self.scheduler.version, ..Scores::default() };
        let mut at = 0;
        while at < total {
            let mut plan = StepPlan { version: self.scheduler.version, scorer: Some(request.scorer), ..StepPlan::default() };
            if at == 0 {
                let rows = |medium: &Arc<MediaInput>| self.scheduler.vision.rows(medium).to_vec();
                plan.encode = room.encode.iter().map(|medium| (medium.clone(), rows(medium))).collect();
            }
            let tables = [plan.push_table(&room.prompt_blocks), plan.push_table(&room.own_blocks)];
            let max_rows = self.scheduler.config.max_num_batched_tokens;
            // Rows from the prompt's last on have logits, of which a step holds a number.
            let end = total.min(at + max_rows).min(at.max(prompt_len - 1) + self.runner.max_draws());
            push_prompt(&mut plan, prompt, at..end.min(prompt_len), room, tables[0], &self.scheduler);
            push_completion(&mut plan, request, at.max(prompt_len)..end, room, tables);
            push_draws(&mut plan, request, at..end, self.runner.spare_slot());
            let step = self.runner.submit(Box::new(plan));
            let (_, drawn) = self.runner.wait(step);
            if drawn.iter().any(|drawn| drawn.corrupt != 0) {
                return Err(Error::NotReady("the model gave logits that are not finite".into()));
            }
            scores.logps.extend(drawn.iter().map(|drawn| drawn.logp));
            scores.entropy.extend(drawn.iter().map(|drawn| drawn.entropy));
            at = end;
        }
        Ok(scores)
    }
}

pub(super) fn no_reference() -> Error {
    Error::invalid_code("weights", "no_reference", "this server keeps no reference weights (start it with --reference)")
}

fn push_prompt(
    plan: &mut StepPlan,
    prompt: &PromptInput,
    tokens: std::ops::Range<usize>,
    room: &Room,
    prompt_table: u32,
    scheduler: &Scheduler,
) {
    if tokens.is_empty() {
        return;
    }
    plan.spans.push(Span {
        first_row: 0,
        num_rows: tokens.len() as u32,
        prompt_table,
        prompt_keys: tokens.start as u32 + 1,
        own_table: 0,
        own_keys: 0,
    });
    for t in tokens.clone() {
        plan.push_known(prompt.token_ids[t], prompt.positions[t], kv_slot(&room.prompt_blocks, t));
    }
    for (medium, start) in room.media.iter().zip(&prompt.media_starts) {
        for (offset, feature) in scheduler.vision.rows(medium).iter().enumerate() {
            if tokens.contains(&(start + offset)) {
                plan.features.push([*feature, (start + offset - tokens.start) as u32]);
            }
        }
    }
}

/// `tokens` count from the prompt's first.
fn push_completion(plan: &mut StepPlan, request: &ScoreRequest, tokens: std::ops::Range<usize>, room: &Room, tables: [u32; 2]) {
    if tokens.is_empty() {
        return;
    }
    let prompt_len = request.prompt.token_ids.len();
    plan.spans.push(Span {
        first_row: plan.num_rows() as u32,
        num_rows: tokens.len() as u32,
        prompt_table: tables[0],
        prompt_keys: prompt_len as u32,
        own_table: tables[1],
        own_keys: (tokens.start - prompt_len) as u32 + 1,
    });
    for t in tokens {
        let position = [t as i32 + request.prompt.rope_delta; 3];
        plan.push_known(request.completion[t - prompt_len], position, kv_slot(&room.own_blocks, t - prompt_len));
    }
}

/// The row of each token from the prompt's last on scores the token after it.
fn push_draws(plan: &mut StepPlan, request: &ScoreRequest, tokens: std::ops::Range<usize>, slot: u32) {
    let prompt_len = request.prompt.token_ids.len();
    for t in tokens.start.max(prompt_len - 1)..tokens.end {
        let position = t + 1 - prompt_len;
        let logits_row = plan.push_logits(t - tokens.start);
        plan.draws.push(SampleRow {
            logits_row,
            slot,
            temperature: request.temperature,
            top_p: 1.0,
            repetition_penalty: 1.0,
            counts_row: NO_COUNTS,
            forced: request.completion[position],
            ..SampleRow::default()
        });
    }
}

impl Scheduler {
    /// Blocks and feature rows for a sequence; nothing is in flight. Newer samples give way for it; `None` when only the oldest
    /// holds what it needs, or prompts being computed hold the feature rows.
    fn make_room(&mut self, request: &ScoreRequest) -> Option<Room> {
        let prompt_blocks = request.prompt.token_ids.len().div_ceil(BLOCK_SIZE);
        let blocks = prompt_blocks + (request.completion.len() - 1).div_ceil(BLOCK_SIZE);
        while self.pool.available() < blocks {
            let head = self.head()?;
            if !self.preempt_newer_than(head) {
                return None;
            }
        }
        let media = request.prompt.media.iter().map(|medium| as_seen_by(medium, request.scorer)).collect();
        let mut room = Room { prompt_blocks: Vec::new(), own_blocks: Vec::new(), media, encode: Vec::new() };
        for i in 0..room.media.len() {
            let medium = room.media[i].clone();
            match self.vision.pin(&medium, medium.num_tokens(self.config.merge_unit)) {
                Some(true) => room.encode.push(medium),
                Some(false) => {}
                None => {
                    room.media.truncate(i);
                    room.media.iter().for_each(|medium| self.vision.unpin(medium));
                    room.encode.iter().for_each(|medium| self.vision.discard(&medium.sha256));
                    return None;
                }
            }
        }
        room.prompt_blocks = self.pool.allocate(blocks)?;
        room.own_blocks = room.prompt_blocks.split_off(prompt_blocks);
        Some(room)
    }

    fn leave(&mut self, room: &mut Room) {
        self.pool.release(&mut room.prompt_blocks);
        self.pool.release(&mut room.own_blocks);
        room.media.iter().for_each(|medium| self.vision.unpin(medium));
    }
}

/// The reference's features of a medium are another content than the policy's.
fn as_seen_by(medium: &Arc<MediaInput>, scorer: Scorer) -> Arc<MediaInput> {
    match scorer {
        Scorer::Policy => medium.clone(),
        Scorer::Reference => Arc::new(MediaInput { sha256: medium.sha256.map(|byte| !byte), ..MediaInput::clone(medium) }),
    }
}
