//! The rewards, one a file, and the table of them.

mod accuracy;
mod choice;
mod clip;
mod code_format;
mod constant;
mod contains;
mod cosine;
mod countdown;
mod exact_match;
mod f1;
mod field;
mod first_non_none;
mod formula;
mod gate;
mod http;
mod json_match;
mod json_schema;
mod json_valid;
mod language;
mod length_group;
mod loop_detector;
mod model;
mod numeric;
mod parts;
mod product;
mod reasoning_accuracy;
mod reasoning_steps;
mod regex_match;
mod repetition;
mod soft_overlong;
mod tag_count;
mod tag_format;
mod target_length;
mod think_format;
mod truncated;
mod weighted_sum;
mod words;

use crate::RewardSpec;

/// Every reward, in the order in which a catalogue should show them.
pub const REWARDS: &[RewardSpec] = &[
    accuracy::SPEC,
    reasoning_accuracy::SPEC,
    numeric::SPEC,
    choice::SPEC,
    countdown::SPEC,
    exact_match::SPEC,
    contains::SPEC,
    f1::SPEC,
    regex_match::SPEC,
    json_valid::SPEC,
    json_match::SPEC,
    json_schema::SPEC,
    think_format::SPEC,
    tag_format::SPEC,
    tag_count::SPEC,
    code_format::SPEC,
    reasoning_steps::SPEC,
    language::SPEC,
    soft_overlong::SPEC,
    cosine::SPEC,
    length_group::SPEC,
    target_length::SPEC,
    repetition::SPEC,
    loop_detector::SPEC,
    truncated::SPEC,
    constant::SPEC,
    field::SPEC,
    formula::SPEC,
    http::SPEC,
    model::SPEC,
    weighted_sum::SPEC,
    gate::SPEC,
    product::PRODUCT,
    product::MIN,
    product::MAX,
    clip::SPEC,
    first_non_none::SPEC,
];
