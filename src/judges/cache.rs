//! Answers that were given before: the same sample, put to the same scorer, is not asked about twice.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rewards::Verdict;

/// Answers that are kept; the oldest makes room.
const MAX_ANSWERS: usize = 65_536;

/// A hash of everything that an answer depends on.
pub type Key = [u8; 32];

#[derive(Default)]
pub struct Cache(Mutex<Answers>);

#[derive(Default)]
struct Answers {
    by_key: HashMap<Key, Verdict>,
    by_age: VecDeque<Key>,
}

impl Cache {
    pub fn get(&self, key: &Key) -> Option<Verdict> {
        self.lock().by_key.get(key).cloned()
    }

    pub fn put(&self, key: Key, verdict: Verdict) {
        let mut answers = self.lock();
        if answers.by_key.insert(key, verdict).is_none() {
            answers.by_age.push_back(key);
        }
        while answers.by_age.len() > MAX_ANSWERS {
            let oldest = answers.by_age.pop_front();
            oldest.iter().for_each(|key| _ = answers.by_key.remove(key));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        // Nothing is left half-done under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rewards::Reason;

    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let cache = Cache::default();
        let key = |i: usize| std::array::from_fn(|at| (i >> (8 * (at % 8))) as u8);
        for i in 0..MAX_ANSWERS + 3 {
            cache.put(key(i), Verdict::new(i as f64, Reason::Judged));
        }
        assert!((0..3).all(|i| cache.get(&key(i)).is_none()));
        assert!([3, MAX_ANSWERS + 2].iter().all(|i| cache.get(&key(*i)).and_then(|verdict| verdict.value) == Some(*i as f64)));
    }
}
