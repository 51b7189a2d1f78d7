//! Group-normalised advantages. Pure arithmetic in f64.
//!
//! Naive one-pass variances give a group of equal rewards such as 0.1 a tiny standard deviation, which a small `eps` then
//! amplifies. Here means and variances take two passes, and equal rewards have a standard deviation of exactly 0.

use super::recipe::{Aggregate, Baseline, Nulls, Recipe, Scale, Singleton};

/// TRL's own test of "no spread" (`torch.isclose(std, 0)`).
const ZERO_STD: f64 = 1e-8;

/// What the rewards said about one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleRewards {
    /// One entry a reward; `None` is no verdict, which is not 0.
    pub values: Vec<Option<f64>>,
    /// The sample failed or was aborted: it stays out of everything and has advantage 0.
    pub excluded: bool,
}

impl SampleRewards {
    /// The weighted sum of the verdicts there are; `None` when there is none.
    pub fn total(&self, weights: &[f64]) -> Option<f64> {
        if self.excluded { None } else { weighted_sum(&self.values, weights) }
    }
}

/// What a group's rewards come to.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupAdvantages {
    /// Of the weighted sums; `None` when no sample has one.
    pub mean: Option<f64>,
    /// With the recipe's `ddof`; `None` when there are too few samples for it.
    pub std: Option<f64>,
    /// No two samples differ in their reward, so there is nothing to learn from the group. True also when none has a reward.
    pub zero_std: bool,
    /// One a sample.
    pub advantages: Vec<f64>,
}

/// The advantages of groups that belong together: scales over the batch reckon over all of them.
pub fn advantages(recipe: &Recipe, weights: &[f64], groups: &[Vec<SampleRewards>]) -> Vec<GroupAdvantages> {
    let totals: Vec<Vec<Option<f64>>> = groups.iter().map(|samples| column(recipe, samples, |s| s.total(weights))).collect();
    let normalised = match recipe.aggregate {
        Aggregate::SumThenNormalize => {
            let batch_std = std_dev(&present(totals.iter().flatten()), recipe.ddof);
            totals.iter().map(|rewards| normalise(recipe, rewards, batch_std)).collect()
        }
        Aggregate::NormalizeThenSum => normalise_then_sum(recipe, weights, groups),
    };
    totals
        .iter()
        .zip(normalised)
        .map(|(rewards, advantages)| {
            let present = present(rewards);
            GroupAdvantages {
                mean: mean(&present),
                std: std_dev(&present, recipe.ddof),
                zero_std: std_dev(&present, 0).is_none_or(|std| std <= ZERO_STD),
                advantages: advantages.into_iter().map(Option::unwrap_or_default).collect(),
            }
        })
        .collect()
}

/// GDPO: each reward is normalised in its group, and the weighted sums over everything.
fn normalise_then_sum(recipe: &Recipe, weights: &[f64], groups: &[Vec<SampleRewards>]) -> Vec<Vec<Option<f64>>> {
    let sums: Vec<Vec<Option<f64>>> = groups
        .iter()
        .map(|samples| {
            let parts: Vec<Vec<Option<f64>>> = (0..weights.len())
                .map(|k| {
                    let rewards = column(recipe, samples, |s| if s.excluded { None } else { s.values[k] });
                    normalise(recipe, &rewards, None)
                })
                .collect();
            (0..samples.len()).map(|i| weighted_sum(parts.iter().map(|part| &part[i]), weights)).collect()
        })
        .collect();
    let all = present(sums.iter().flatten());
    let (Some(mean), Some(std)) = (mean(&all), std_dev(&all, recipe.ddof)) else {
        return sums.iter().map(|group| vec![None; group.len()]).collect();
    };
    let each = |sum: &Option<f64>| sum.map(|sum| divide(sum - mean, std + recipe.eps));
    sums.iter().map(|group| group.iter().map(each).collect()).collect()
}

/// One number a sample, with the recipe's meaning of "no verdict".
fn column(recipe: &Recipe, samples: &[SampleRewards], value: impl Fn(&SampleRewards) -> Option<f64>) -> Vec<Option<f64>> {
    let each = |sample: &SampleRewards| match recipe.nulls {
        Nulls::Zero if !sample.excluded => Some(value(sample).unwrap_or(0.0)),
        _ => value(sample),
    };
    samples.iter().map(each).collect()
}

/// `(reward − baseline) / (scale + eps)` within one group. `None` stays out and stays `None`.
fn normalise(recipe: &Recipe, rewards: &[Option<f64>], batch_std: Option<f64>) -> Vec<Option<f64>> {
    let present = present(rewards);
    let Some(mean) = mean(&present) else { return vec![None; rewards.len()] };
    if present.len() == 1 && recipe.baseline != Baseline::None {
        let advantage = match recipe.singleton {
            Singleton::Raw if rewards.len() == 1 => mean / if recipe.scale == Scale::None { 1.0 } else { 1.0 + recipe.eps },
            _ => 0.0,
        };
        return rewards.iter().map(|reward| reward.map(|_| advantage)).collect();
    }
    let n = present.len() as f64;
    let baseline = |reward: f64| match recipe.baseline {
        Baseline::Mean => reward - mean,
        // Equal to r − (Σ − r)/(n − 1), and exactly 0 when all rewards are equal.
        Baseline::LeaveOneOut => (reward - mean) * n / (n - 1.0),
        Baseline::None => reward,
    };
    let group_std = std_dev(&present, recipe.ddof);
    let scaled = |i: usize, difference: f64| match recipe.scale {
        Scale::None => difference,
        Scale::Group => group_std.map_or(0.0, |std| divide(difference, std + recipe.eps)),
        // Components of GDPO have no batch of their own: they are scaled by their group.
        Scale::Batch => batch_std.or(group_std).map_or(0.0, |std| divide(difference, std + recipe.eps)),
        Scale::LeaveOneOut => match std_dev(&others(&present, i), recipe.ddof) {
            Some(std) if std > 0.0 => difference / (std + recipe.eps),
            _ => difference,
        },
        Scale::Mean => {
            if mean > 0.0 {
                difference / mean
            } else {
                0.0
            }
        }
    };
    let mut position = 0..;
    let mut each = |reward: f64| scaled(position.next().unwrap_or(0), baseline(reward));
    rewards.iter().map(|reward| reward.map(&mut each)).collect()
}

/// 0 when there is nothing to divide by.
fn divide(difference: f64, divisor: f64) -> f64 {
    if divisor == 0.0 { 0.0 } else { difference / divisor }
}

fn weighted_sum<'a>(values: impl IntoIterator<Item = &'a Option<f64>>, weights: &[f64]) -> Option<f64> {
    let terms = values.into_iter().zip(weights).filter_map(|(value, weight)| Some((*value)? * weight));
    terms.fold(None, |sum, term| Some(sum.unwrap_or(0.0) + term))
}

fn present<'a>(values: impl IntoIterator<Item = &'a Option<f64>>) -> Vec<f64> {
    values.into_iter().flatten().copied().collect()
}

fn others(values: &[f64], i: usize) -> Vec<f64> {
    [&values[..i], &values[i + 1..]].concat()
}

/// The mean; that of equal values is exactly their value.
pub fn mean(values: &[f64]) -> Option<f64> {
    let first = *values.first()?;
    // Summing differences keeps equal values exact and loses nothing otherwise.
    Some(first + values.iter().map(|value| value - first).sum::<f64>() / values.len() as f64)
}

/// The standard deviation in two passes; `None` for `ddof` values or fewer.
pub fn std_dev(values: &[f64], ddof: u8) -> Option<f64> {
    let degrees = values.len().checked_sub(usize::from(ddof)).filter(|degrees| *degrees > 0)?;
    if values.iter().all(|value| *value == values[0]) {
        return Some(0.0);
    }
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    Some((squares / degrees as f64).sqrt())
}
