//! Advantages against published formulas and against numbers computed by PyTorch.

use grouper::rollout::advantage::{GroupAdvantages, SampleRewards, advantages};
use grouper::rollout::recipe::{PRESETS, Recipe};
use proptest::prelude::*;
use serde_json::{Value, json};

const X: Option<f64> = None;

fn samples(rewards: &[Option<f64>]) -> Vec<SampleRewards> {
    rewards.iter().map(|reward| SampleRewards { values: vec![*reward], excluded: false }).collect()
}

fn of_group(recipe: &Recipe, rewards: &[Option<f64>]) -> GroupAdvantages {
    advantages(recipe, &[1.0], &[samples(rewards)]).remove(0)
}

fn close(left: &[f64], right: &[f64], tolerance: f64) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(a, b)| (a - b).abs() <= tolerance * (1.0 + b.abs()))
}

fn check(recipe: Value, rewards: &[Option<f64>], expected: &[f64]) {
    let found = of_group(&Recipe::from_json(&recipe).unwrap(), rewards).advantages;
    assert!(close(&found, expected, 1e-6), "{recipe} of {rewards:?}: {found:?}, expected {expected:?}");
}

/// Check values worked out on the formulas with Python's `statistics`.
#[test]
fn presets_have_their_published_values() {
    let rewards = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0];
    let group: Vec<_> = rewards.iter().copied().map(Some).collect();
    for (preset, of_one, of_zero) in [
        ("trl-0.22.1", 0.625, -0.375),
        ("dr_grpo", 0.625, -0.375),
        ("prime-rl", 0.625, -0.375),
        ("trl", 1.207381, -0.724429),
        ("trl-0.22.2", 1.207381, -0.724429),
        ("trl-0.22.1-batch", 1.207381, -0.724429),
        ("trl-0.22.1-none", 1.207381, -0.724429),
        ("trl-batch", 1.207381, -0.724429),
        ("trl-async", 1.290994, -0.774597),
        ("verl", 1.207612, -0.724567),
        ("slime", 1.207612, -0.724567),
        ("openrlhf", 1.207615, -0.724569),
        ("rloo", 0.714286, -0.428571),
        ("verl-rloo", 0.714286, -0.428571),
        ("prime-rl-max_rl", 1.666667, -1.0),
        // The others of a 1 have two ones of seven: std 0.487950; those of a 0 three of seven: 0.534522.
        ("nemo-rl", 0.714286 / 0.487951, -0.428571 / 0.534523),
        ("pipeline-rl", 0.714286 / 0.517649, -0.428571 / 0.517649),
    ] {
        let expected = rewards.map(|reward| if reward == 1.0 { of_one } else { of_zero });
        check(json!(preset), &group, &expected);
    }
    let found = of_group(&Recipe::default(), &group);
    assert_eq!(found.mean, Some(0.375));
    assert!((found.std.unwrap() - 0.517549).abs() < 1e-6);
    assert!(!found.zero_std);
}

#[test]
fn groups_too_small_for_their_formula() {
    for preset in ["trl", "trl-0.22.1", "gdpo", "rloo", "dr_grpo", "openrlhf", "prime-rl", "nemo-rl", "slime", "pipeline-rl", "trl-async"] {
        check(json!(preset), &[Some(0.7)], &[0.0]);
    }
    check(json!("verl"), &[Some(0.7)], &[0.7 / 1.000001]);
    check(json!("nemo-rl"), &[Some(1.0), Some(0.0)], &[1.0, -1.0]);
    check(json!({"baseline": "none", "scale": "none"}), &[Some(0.7)], &[0.7]);
    assert_eq!(of_group(&Recipe::default(), &[Some(0.7)]).std, None);
}

#[test]
fn no_verdict_is_not_zero() {
    check(json!("trl"), &[Some(1.0), X, Some(0.0), X], &[0.707007, 0.0, -0.707007, 0.0]);
    check(json!("rloo"), &[Some(1.0), X, Some(0.0), X], &[1.0, 0.0, -1.0, 0.0]);
    check(json!("trl"), &[X, X], &[0.0, 0.0]);
    check(json!("trl"), &[Some(1.0), X], &[0.0, 0.0]);
    // The versions that sum nulls as 0 still do.
    check(json!("trl-0.22.2"), &[Some(1.0), X, Some(0.0), X], &[1.4997, -0.4999, -0.4999, -0.4999]);
    check(json!("trl-0.22.1"), &[Some(1.0), X, Some(0.0), X], &[0.75, -0.25, -0.25, -0.25]);
    let nothing = of_group(&Recipe::default(), &[X, X]);
    assert_eq!((nothing.mean, nothing.std, nothing.zero_std), (None, None, true));
}

#[test]
fn failed_samples_stay_out_of_every_recipe() {
    for recipe in PRESETS {
        let mut group = samples(&[Some(1.0), Some(5.0), Some(0.0), Some(2.0)]);
        let alone = vec![group[0].clone(), group[2].clone(), group[3].clone()];
        group[1].excluded = true;
        let with = advantages(recipe, &[1.0], &[group]).remove(0).advantages;
        let without = advantages(recipe, &[1.0], &[alone]).remove(0).advantages;
        assert_eq!(with, [without[0], 0.0, without[1], without[2]], "{recipe:?}");
    }
}

#[test]
fn equal_rewards_have_no_spread_at_all() {
    for value in [0.1, 1.0 / 3.0, 1e-9, 0.0, -7.3] {
        for recipe in PRESETS.iter().filter(|recipe| recipe.preset != Some("verl")) {
            let found = of_group(recipe, &[Some(value); 7]);
            assert_eq!(found.advantages, [0.0; 7], "{recipe:?}");
            assert_eq!((found.mean, found.std, found.zero_std), (Some(value), Some(0.0), true));
        }
    }
    check(json!({"eps": 0.0}), &[Some(0.1), Some(0.1)], &[0.0, 0.0]);
}

#[test]
fn gdpo_normalises_each_reward_and_then_their_sum() {
    let both = |a: f64, b: f64| SampleRewards { values: vec![Some(a), Some(b)], excluded: false };
    let recipe = Recipe::preset("gdpo").unwrap();
    let groups = [vec![both(1.0, 0.0), both(0.0, 10.0)], vec![both(1.0, 20.0), both(0.0, 0.0)]];
    let found: Vec<f64> = advantages(recipe, &[1.0, 0.5], &groups).into_iter().flat_map(|group| group.advantages).collect();
    // By hand: components ±0.707007 and ∓0.707057 weighted 0.5, their sums scaled by their own standard deviation.
    let (first, second) = (0.5 / (0.5f64.sqrt() + 1e-4), 0.5 * 5.0 / (50f64.sqrt() + 1e-4));
    let third = 0.5 * 10.0 / (200f64.sqrt() + 1e-4);
    let sums = [first - second, second - first, first + third, -first - third];
    let std = (sums.iter().map(|s| s * s).sum::<f64>() / 3.0).sqrt();
    assert!(close(&found, &sums.map(|s| s / (std + 1e-4)), 1e-9), "{found:?}");
}

#[test]
fn batch_scale_reckons_over_all_groups() {
    let recipe = Recipe::from_json(&json!({"scale": "batch"})).unwrap();
    let groups = [samples(&[Some(0.0), Some(1.0)]), samples(&[Some(3.0), Some(3.0), X])];
    let found: Vec<f64> = advantages(&recipe, &[1.0], &groups).into_iter().flat_map(|group| group.advantages).collect();
    let std = (((1.75f64).powi(2) + (0.75f64).powi(2) + 2.0 * (1.25f64).powi(2)) / 3.0).sqrt() + 1e-4;
    assert!(close(&found, &[-0.5 / std, 0.5 / std, 0.0, 0.0, 0.0], 1e-12), "{found:?}");
}

/// Numbers of PyTorch in f32, null rewards summed as 0.
#[test]
fn advantages_equal_those_of_pytorch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/hf/advantages.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let numbers = |value: &Value| -> Vec<f64> { value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    for case in golden["cases"].as_array().unwrap() {
        let weights = numbers(&case["weights"]);
        let rows: Vec<SampleRewards> = (case["rewards_per_func"].as_array().unwrap().iter())
            .map(|row| SampleRewards { values: row.as_array().unwrap().iter().map(Value::as_f64).collect(), excluded: false })
            .collect();
        let groups: Vec<_> = rows.chunks(case["num_generations"].as_u64().unwrap() as usize).map(<[_]>::to_vec).collect();
        for (scale, expected) in [("group", "scale_group"), ("batch", "scale_batch"), ("none", "scale_none")] {
            let recipe = Recipe::from_json(&json!({"preset": "trl-0.22.2", "scale": scale})).unwrap();
            let found = advantages(&recipe, &weights, &groups);
            let all: Vec<f64> = found.iter().flat_map(|group| group.advantages.iter().copied()).collect();
            assert!(close(&all, &numbers(&case[expected]), 2e-5), "{} {scale}: {all:?}", case["id"]);
            for (group, i) in found.iter().zip((0..).step_by(groups[0].len())) {
                assert!((group.mean.unwrap() - case["group_mean"][i].as_f64().unwrap()).abs() < 2e-6);
                assert!((group.std.unwrap() - case["group_std"][i].as_f64().unwrap()).abs() < 2e-6);
            }
        }
    }
}

fn rewards() -> impl Strategy<Value = Vec<Option<f64>>> {
    let reward = prop_oneof![3 => (-4.0..4.0f64).prop_map(Some), 3 => (0..3i32).prop_map(|x| Some(f64::from(x))), 1 => Just(None)];
    prop::collection::vec(reward, 1..20)
}

proptest! {
    #[test]
    fn advantages_of_a_group_sum_to_nothing(rewards in rewards(), preset in 0..PRESETS.len()) {
        let recipe = &PRESETS[preset];
        // Leave-one-out scales differ within a group; verl's singleton and GDPO's second step are about other sums.
        prop_assume!(recipe.preset != Some("nemo-rl") && (recipe.preset != Some("verl") || rewards.len() > 1));
        let found = of_group(recipe, &rewards).advantages;
        let size: f64 = found.iter().map(|a| a.abs()).sum();
        prop_assert!(found.iter().sum::<f64>().abs() <= 1e-9 * (1.0 + size), "{recipe:?}: {found:?}");
        prop_assert!(found.iter().all(|a| a.is_finite()));
    }

    #[test]
    fn order_within_a_group_does_not_matter(rewards in rewards(), preset in 0..PRESETS.len(), turn in 0..20usize) {
        let recipe = &PRESETS[preset];
        let mut turned = rewards.clone();
        let turn = turn % rewards.len();
        turned.rotate_left(turn);
        let mut expected = of_group(recipe, &rewards).advantages;
        expected.rotate_left(turn);
        let found = of_group(recipe, &turned).advantages;
        prop_assert!(close(&found, &expected, 1e-9), "{recipe:?}: {found:?} {expected:?}");
    }
}
