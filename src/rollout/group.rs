//! One group from its prompt to its scored samples: generated, scored while siblings decode, drawn again where that is asked for.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use metrics::counter;
use rewards::{Sample, Verdict};
use tokio::time::{Instant, sleep_until};

use super::advantage::{GroupAdvantages, SampleRewards, advantages};
use super::generator::{Generation, Generator, rng_key};
use super::logps;
use super::plan::{GroupFacts, GroupPlan, Sampling, Settings};
use super::reply::{BadGroup, GroupError, GroupReply, ScoredGroup, Status};
use super::request::Policy;
use super::rewarder::ScorePool;
use super::sample::{ScoredSample, count_non_finite, nothing};
use super::stop::final_text;
use crate::engine::request::{FinishReason, SampleEvent, SampleOutput};
use crate::engine::scoring::Scorer;
use crate::error::{Error, Result};
use crate::judges::Context;
use crate::processor::{PreparedPrompt, PromptSource};

/// Code of the error of a group whose deadline passed before it began.
pub const DEADLINE_EXCEEDED: &str = "deadline_exceeded";

/// What the groups of one running request share.
pub(super) struct Run {
    pub generator: Arc<Generator>,
    pub pool: Arc<ScorePool>,
    pub settings: Settings,
    pub seed: u64,
    pub rollout_id: String,
    pub deadline: Option<Instant>,
}

/// How a group ended, and what every attempt at it says to the metrics.
pub(super) struct Finished {
    pub position: usize,
    pub outcome: Outcome,
    pub attempts: Vec<Attempt>,
}

pub(super) enum Outcome {
    Kept(Box<Group>),
    /// With the rule that dropped it.
    Dropped(&'static str),
    Bad {
        id: String,
        error: Error,
    },
}

/// A group that was generated and scored. Its advantages may still depend on other groups.
pub(super) struct Group {
    pub id: String,
    position: usize,
    attempt: u32,
    sampling: Sampling,
    prompt: Arc<PreparedPrompt>,
    facts: GroupFacts,
    /// For judges; `None` when no reward asks any.
    context: Option<Arc<Context>>,
    samples: Vec<ScoredSample>,
}

/// The figures of one attempt at a group.
pub(super) struct Attempt {
    pub prompt_len: usize,
    pub lengths: Vec<usize>,
    pub statuses: Vec<Status>,
    pub rewards: Vec<SampleRewards>,
    pub mean: Option<f64>,
    pub std: Option<f64>,
    pub zero_std: bool,
}

impl Run {
    /// Generates and scores one group. Dropping the future cancels it.
    pub async fn group(self: Arc<Self>, position: usize, plan: GroupPlan) -> Finished {
        let id = plan.id.clone();
        let mut attempts = Vec::new();
        let outcome = match self.attempts(position, plan, &mut attempts).await {
            Ok(Ok(group)) => Outcome::Kept(Box::new(group)),
            Ok(Err(rule)) => Outcome::Dropped(rule),
            Err(error) => Outcome::Bad { id, error: within_group(error, position) },
        };
        let label = match &outcome {
            Outcome::Kept(_) => "kept",
            Outcome::Dropped(_) => "dropped",
            Outcome::Bad { .. } => "bad",
        };
        counter!("grouper_groups_total", "outcome" => label).increment(1);
        Finished { position, outcome, attempts }
    }

    async fn attempts(
        &self,
        position: usize,
        plan: GroupPlan,
        attempts: &mut Vec<Attempt>,
    ) -> Result<std::result::Result<Group, &'static str>> {
        let GroupPlan { id, prompt, facts } = plan;
        let messages = match &prompt.source {
            PromptSource::Messages { messages, .. } if self.settings.rewarder.asks_judges() => Some(messages.clone()),
            _ => None,
        };
        let prompt = Arc::new(self.before_deadline(self.generator.prepare(prompt)).await??);
        let context = self.settings.rewarder.asks_judges().then(|| {
            Arc::new(Context {
                prompt: Some(prompt.text.clone()),
                messages,
                has_media: !prompt.images.is_empty(),
                solution: facts.solution.clone(),
                fields: facts.fields.clone(),
            })
        });
        let prompt_len = prompt.input.token_ids.len();
        let sampling = self.settings.sampling.for_prompt(prompt_len, self.generator.engine().info().max_model_len);
        let mut attempt = 0;
        loop {
            let (id, facts, sampling, prompt, context) = (id.clone(), facts.clone(), sampling.clone(), prompt.clone(), context.clone());
            let mut group = Group { id, position, attempt, sampling, prompt, facts, context, samples: Vec::new() };
            group.samples = self.samples(&group).await?;
            let figures = group.figures(&self.settings);
            let (policy, rule) = match &figures {
                figures if !figures.statuses.iter().all(|status| status.is_whole()) && self.settings.failed != Policy::Keep => {
                    (self.settings.failed, "failed")
                }
                figures if figures.zero_std => (self.settings.zero_std, "zero_std"),
                _ => (Policy::Keep, ""),
            };
            attempts.push(figures);
            match policy {
                Policy::Keep => return Ok(Ok(group)),
                Policy::Refill if attempt < self.settings.max_refills && !self.is_late() => {
                    counter!("grouper_refills_total").increment(1);
                }
                Policy::Refill | Policy::Drop => return Ok(Err(rule)),
            }
            attempt += 1;
        }
    }

    /// All samples of one attempt, each scored as it ends, in order.
    async fn samples(&self, group: &Group) -> Result<Vec<ScoredSample>> {
        let num_samples = self.settings.num_generations;
        let mut samples: Vec<Option<ScoredSample>> = (0..num_samples).map(|_| None).collect();
        let mut scoring = FuturesUnordered::new();
        let mut ended = vec![false; num_samples];
        let missing = if self.is_late() {
            FinishReason::Abort
        } else {
            let mut stream = self.generator.start(&group.prompt, self.generation(group))?;
            let mut aborted = false;
            loop {
                tokio::select! {
                    event = stream.next() => match event {
                        Some(SampleEvent::Finished { sample, output }) => {
                            ended[sample] = true;
                            scoring.push(self.score(group, sample, *output));
                        }
                        Some(SampleEvent::Token { .. }) => {}
                        None => break,
                    },
                    Some((index, sample)) = scoring.next() => samples[index] = Some(sample),
                    () = at(self.deadline), if !aborted => {
                        aborted = true;
                        stream.abort();
                    }
                }
            }
            // An engine that stopped owes the rest of the group.
            FinishReason::Corrupt
        };
        let not_ended = ended.iter().enumerate().filter(|(_, ended)| !**ended);
        scoring.extend(not_ended.map(|(index, _)| self.score(group, index, nothing(missing))));
        while let Some((index, sample)) = scoring.next().await {
            samples[index] = Some(sample);
        }
        drop(scoring);
        let mut samples: Vec<ScoredSample> = samples.into_iter().flatten().collect();
        if self.settings.rewarder.needs_group() {
            samples = self.score_group(group, samples).await;
        }
        if self.settings.returns.ref_logps {
            self.score_by_reference(group, &mut samples).await?;
        }
        for sample in &samples {
            sample.count();
        }
        Ok(samples)
    }

    fn generation(&self, group: &Group) -> Generation {
        Generation {
            num_samples: self.settings.num_generations,
            sampling: group.sampling.params(),
            stop: group.sampling.stop.clone(),
            rng_key: rng_key(self.seed, &group.id, group.attempt),
            stream: false,
            ban_media: true,
        }
    }

    /// Decodes and scores a sample on a thread of its own while its siblings go on. Judges are asked in between, on no thread.
    async fn score(&self, group: &Group, index: usize, output: SampleOutput) -> (usize, ScoredSample) {
        let read = {
            let (tokenizer, facts, sampling) =
                (self.generator.processor().tokenizer().clone(), group.facts.clone(), group.sampling.clone());
            move || {
                let start = std::time::Instant::now();
                let text = final_text(&tokenizer, &output.token_ids, &sampling.stop.into(), sampling.min_tokens);
                let mut sample = ScoredSample::new(output, text, &facts);
                sample.score_time = start.elapsed();
                sample
            }
        };
        let score = {
            let (prompt, facts, rewarder) = (group.prompt.clone(), group.facts.clone(), self.settings.rewarder.clone());
            move |mut sample: ScoredSample| {
                let start = std::time::Instant::now();
                if sample.status.is_whole() {
                    sample.verdicts = rewarder.score(&sample.seen(&prompt, &facts));
                }
                sample.score_time += start.elapsed();
                sample
            }
        };
        let Some(context) = &group.context else { return (index, self.pool.run(move || score(read())).await) };
        let mut sample = self.pool.run(read).await;
        if sample.status.is_whole() {
            let start = Instant::now();
            sample.answers = self.settings.rewarder.answers(&sample.question(context), self.deadline).await;
            sample.score_time += start.elapsed();
        }
        (index, self.pool.run(move || score(sample)).await)
    }

    /// The verdicts of rewards that compare the samples of a group. Samples that are not whole take no part.
    async fn score_group(&self, group: &Group, mut samples: Vec<ScoredSample>) -> Vec<ScoredSample> {
        let (prompt, facts, rewarder) = (group.prompt.clone(), group.facts.clone(), self.settings.rewarder.clone());
        let work = move || {
            let start = std::time::Instant::now();
            let mut verdicts: Vec<Vec<Verdict>> = samples.iter_mut().map(|s| std::mem::take(&mut s.verdicts)).collect();
            let whole: Vec<bool> = samples.iter().map(|sample| sample.status.is_whole()).collect();
            let seen: Vec<Sample<'_>> = samples.iter().filter(|s| s.status.is_whole()).map(|s| s.seen(&prompt, &facts)).collect();
            let mut of_whole: Vec<&mut Vec<Verdict>> =
                verdicts.iter_mut().zip(&whole).filter(|(_, whole)| **whole).map(|(verdicts, _)| verdicts).collect();
            rewarder.score_group(&seen, &mut of_whole);
            let share = start.elapsed() / seen.len().max(1) as u32;
            drop(seen);
            for (sample, verdicts) in samples.iter_mut().zip(verdicts) {
                sample.verdicts = verdicts;
                sample.score_time += share;
            }
            samples
        };
        self.pool.run(work).await
    }

    async fn score_by_reference(&self, group: &Group, samples: &mut [ScoredSample]) -> Result<()> {
        let temperature = group.sampling.params().temperature;
        let scores = samples
            .iter()
            .map(|sample| logps::score(&self.generator, &group.prompt, &sample.output.token_ids, temperature, Scorer::Reference));
        let scores = futures::future::try_join_all(scores).await?;
        for (sample, scores) in samples.iter_mut().zip(scores) {
            sample.ref_logps = Some(scores.logps);
        }
        Ok(())
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    async fn before_deadline<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            biased;
            result = work => Ok(result),
            () = at(self.deadline) => {
                Err(Error::invalid_code("", DEADLINE_EXCEEDED, "the deadline passed before the prompt was ready"))
            }
        }
    }

    /// The reply of a group once its advantages are known.
    pub fn scored(&self, group: Group, advantages: GroupAdvantages) -> GroupReply {
        let Group { id, position, attempt, sampling, prompt, facts, samples, .. } = group;
        let PreparedPrompt { input, text, images } = Arc::unwrap_or_clone(prompt);
        let numbers = [advantages.mean, advantages.std].into_iter().flatten().chain(advantages.advantages.iter().copied());
        count_non_finite("advantage", numbers.filter(|number| !number.is_finite()).count());
        let samples = samples.into_iter().zip(&advantages.advantages).enumerate();
        GroupReply::Scored(Box::new(ScoredGroup {
            id,
            uid: self.uid(position),
            rollout_id: self.rollout_id.clone(),
            seed: self.seed,
            attempt,
            delivery: None,
            sampling,
            advantage: self.settings.recipe.clone(),
            prompt_token_ids: input.token_ids,
            prompt_text: text,
            images,
            reward_mean: advantages.mean,
            reward_std: advantages.std,
            zero_std: advantages.zero_std,
            solution: facts.solution,
            fields: facts.fields,
            samples: samples.map(|(index, (sample, advantage))| sample.reply(index, *advantage, &self.settings)).collect(),
            media: if self.settings.returns.pixel_values { input.media } else { Vec::new() },
        }))
    }

    pub fn bad(&self, position: usize, id: String, error: &Error) -> GroupReply {
        GroupReply::Bad(BadGroup { id, uid: self.uid(position), rollout_id: self.rollout_id.clone(), error: GroupError::from(error) })
    }

    fn uid(&self, position: usize) -> String {
        format!("{}-{position}", self.rollout_id)
    }
}

impl Group {
    pub fn rewards(&self) -> Vec<SampleRewards> {
        self.samples.iter().map(ScoredSample::rewards).collect()
    }

    fn figures(&self, settings: &Settings) -> Attempt {
        let groups = [self.rewards()];
        let GroupAdvantages { mean, std, zero_std, .. } = advantages(&settings.recipe, settings.rewarder.weights(), &groups).remove(0);
        let [rewards] = groups;
        Attempt {
            prompt_len: self.prompt.input.token_ids.len(),
            lengths: self.samples.iter().map(|sample| sample.output.token_ids.len()).collect(),
            statuses: self.samples.iter().map(|sample| sample.status).collect(),
            rewards,
            mean,
            std,
            zero_std,
        }
    }
}

/// Until the deadline, or for ever.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The engine and the processor name fields of their own requests; here is where those came from.
fn within_group(error: Error, position: usize) -> Error {
    match error {
        Error::Invalid { param, code, message } if param == "max_tokens" => {
            Error::Invalid { param: "sampling.max_tokens".into(), code, message: format!("groups[{position}]: {message}") }
        }
        other => other.within(&format!("groups[{position}]")),
    }
}
