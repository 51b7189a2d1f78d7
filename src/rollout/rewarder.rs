//! The rewards of one request: built once, then asked about each sample as it ends.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use metrics::counter;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rewards::{Answer, Ask, REWARDS, Reason, Reward, Sample, Verdict};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::limits::Limits;
use super::plan::{at_most, check_label};
use super::request::RewardBody;
use super::sample::count_non_finite;
use crate::error::{Error, Result};
use crate::judges::{Judges, Line, Question};

/// Rewards with their weights and the keys that replies call them by; cloning it is cheap.
#[derive(Clone)]
pub struct Rewarder {
    entries: Arc<[Entry]>,
    keys: Arc<[Arc<str>]>,
    weights: Arc<[f64]>,
    /// One to each judge that the rewards ask.
    lines: Arc<[(Arc<Ask>, Line)]>,
}

struct Entry {
    /// In the catalogue.
    name: &'static str,
    reward: Box<dyn Reward>,
}

impl Rewarder {
    /// Builds the rewards of a request, `think_format` and `accuracy` when it names none. Call it within a tokio runtime if they ask
    /// judges.
    ///
    /// # Errors
    ///
    /// An unknown reward, argument or judge, two rewards with one key, a weight that is not finite; the path begins with `rewards`.
    pub fn new(bodies: Option<Vec<RewardBody>>, limits: &Limits, judges: &Judges) -> Result<Rewarder> {
        let bodies = bodies.unwrap_or_else(|| {
            ["think_format", "accuracy"].map(|name| RewardBody { name: name.to_owned(), ..RewardBody::default() }).into()
        });
        at_most("rewards", bodies.len(), limits.max_rewards)?;
        let (mut entries, mut keys, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        let mut lines: Vec<(Arc<Ask>, Line)> = Vec::new();
        let mut seen = HashSet::new();
        for (i, body) in bodies.into_iter().enumerate() {
            let path = format!("rewards[{i}]");
            let entry = Entry::new(&body).map_err(|e| e.within(&path))?;
            for ask in entry.reward.asks() {
                // Rewards with the same question share its answer.
                if !lines.iter().any(|(known, _)| *known == ask) {
                    let line = judges.open(&ask).map_err(|e| e.within(&path))?;
                    lines.push((ask, line));
                }
            }
            entries.push(entry);
            let weight = body.weight.unwrap_or(1.0);
            if !weight.is_finite() {
                return Err(Error::invalid("weight", format!("{weight} is not finite")).within(&path));
            }
            let key = body.alias.unwrap_or(body.name);
            check_label("as", &key, limits.max_id_bytes).map_err(|e| e.within(&path))?;
            if !seen.insert(key.clone()) {
                let message = format!("{key:?} is the key of an earlier reward; tell them apart with \"as\"");
                return Err(Error::invalid("as", message).within(&path));
            }
            keys.push(Arc::from(key));
            weights.push(weight);
        }
        Ok(Rewarder { entries: entries.into(), keys: keys.into(), weights: weights.into(), lines: lines.into() })
    }

    pub fn keys(&self) -> &[Arc<str>] {
        &self.keys
    }

    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Whether [`Rewarder::answers`] has anybody to ask.
    pub fn asks_judges(&self) -> bool {
        !self.lines.is_empty()
    }

    /// What the judges say about a sample, for [`Sample::answers`]; those who say nothing before the deadline timed out.
    pub async fn answers(&self, question: &Question, deadline: Option<Instant>) -> Vec<Answer> {
        let each = self.lines.iter().map(|(ask, line)| async move {
            let verdict = line.ask(question.clone());
            let verdict = match deadline {
                Some(deadline) => timeout_at(deadline, verdict).await.unwrap_or_else(|_| Verdict::none(Reason::TimedOut)),
                None => verdict.await,
            };
            (ask.clone(), verdict)
        });
        futures::future::join_all(each).await
    }

    /// One verdict a reward. Those that need the whole group have none yet.
    pub fn score(&self, sample: &Sample<'_>) -> Vec<Verdict> {
        let each = |entry: &Entry| match entry.reward.needs_group() {
            true => Verdict::none(Reason::NoGroup),
            false => entry.checked(entry.reward.score(sample)),
        };
        self.entries.iter().map(each).collect()
    }

    /// Completes the verdicts with those of rewards that need the whole group.
    pub fn score_group(&self, samples: &[Sample<'_>], verdicts: &mut [&mut Vec<Verdict>]) {
        for (k, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.reward.needs_group()) {
            for (of_sample, verdict) in verdicts.iter_mut().zip(entry.reward.score_group(samples)) {
                of_sample[k] = entry.checked(verdict);
            }
        }
    }

    pub fn needs_group(&self) -> bool {
        self.entries.iter().any(|entry| entry.reward.needs_group())
    }
}

impl Entry {
    fn new(body: &RewardBody) -> Result<Entry> {
        let reward = rewards::build(&body.name, &body.args).map_err(|error| {
            let path = if error.path.is_empty() { "name".to_owned() } else { error.path };
            Error::invalid(path, error.message)
        })?;
        let name = REWARDS.iter().map(|spec| spec.name).find(|name| *name == body.name).unwrap_or("");
        Ok(Entry { name, reward })
    }

    /// A value that is not finite would spoil its whole group: it counts as no verdict.
    fn checked(&self, mut verdict: Verdict) -> Verdict {
        if verdict.value.is_some_and(|value| !value.is_finite()) {
            count_non_finite("reward", 1);
            verdict = Verdict { value: None, ..verdict };
        }
        let said = if verdict.value.is_some() { "verdict" } else { "none" };
        counter!("grouper_rewards_total", "reward" => self.name, "outcome" => said).increment(1);
        verdict
    }
}

/// Threads that rewards run on. They are not those of the global pool: an engine on the CPU joins its work there at every step,
/// and a slow verdict would hold it up.
pub struct ScorePool(ThreadPool);

impl ScorePool {
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("score-{i}")).build();
        ScorePool(pool.unwrap_or_else(|error| panic!("{threads} threads for rewards: {error}")))
    }

    /// Starts work whose result the receiver gets. Nothing is done when nobody waits for it any more.
    pub fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        self.0.spawn(move || {
            if sender.is_closed() {
                return;
            }
            // A panic out of a pool's thread would end the server; the waiting side sees the sender go instead.
            if let Ok(result) = catch_unwind(AssertUnwindSafe(work)) {
                let _ = sender.send(result);
            }
        });
        receiver
    }

    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).await.unwrap_or_else(|_| panic!("scoring failed: its own message stands above"))
    }
}

impl Default for ScorePool {
    fn default() -> Self {
        ScorePool::new()
    }
}
