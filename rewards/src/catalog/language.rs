//! The script that a completion is written in.

use crate::{ArgError, ArgSpec, Args, Reason, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "language",
    about: "The share of the completion's letters that are in the wanted scripts; with a threshold 1 or 0. No verdict without letters.",
    args: &[
        ArgSpec {
            name: "scripts",
            kind: "list of one of latin|greek|cyrillic|armenian|hebrew|arabic|devanagari|bengali|tamil|thai|georgian|hangul|kana|han",
            default: "[\"latin\"]",
            about: "The scripts; Japanese is kana and han.",
        },
        ArgSpec { name: "threshold", kind: "number?", default: "null", about: "The share from which on the value is 1, else 0." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let scripts = args.strings("scripts");
        if scripts.is_empty() {
            return Err(args.error("scripts", "needs at least one script"));
        }
        if args.optional_number("threshold").is_some() {
            args.number_in("threshold", 0.0..=1.0)?;
        }
        let ranges = scripts.iter().flat_map(|name| SCRIPTS.iter().filter(move |(script, ..)| script == name)).map(|(_, a, b)| (*a, *b));
        Ok(Box::new(Language { ranges: ranges.collect(), threshold: args.optional_number("threshold") }))
    },
};

/// The letters of each script, by blocks.
const SCRIPTS: &[(&str, u32, u32)] = &[
    ("latin", 0x41, 0x5a),
    ("latin", 0x61, 0x7a),
    ("latin", 0xaa, 0x24f),
    ("latin", 0x1e00, 0x1eff),
    ("latin", 0xff21, 0xff5a),
    ("greek", 0x370, 0x3ff),
    ("greek", 0x1f00, 0x1fff),
    ("cyrillic", 0x400, 0x52f),
    ("armenian", 0x530, 0x58f),
    ("hebrew", 0x590, 0x5ff),
    ("arabic", 0x600, 0x6ff),
    ("arabic", 0x750, 0x77f),
    ("arabic", 0xfb50, 0xfdff),
    ("arabic", 0xfe70, 0xfeff),
    ("devanagari", 0x900, 0x97f),
    ("bengali", 0x980, 0x9ff),
    ("tamil", 0xb80, 0xbff),
    ("thai", 0xe00, 0xe7f),
    ("georgian", 0x10a0, 0x10ff),
    ("hangul", 0x1100, 0x11ff),
    ("hangul", 0xac00, 0xd7af),
    ("kana", 0x3040, 0x30ff),
    ("han", 0x3400, 0x4dbf),
    ("han", 0x4e00, 0x9fff),
    ("han", 0xf900, 0xfaff),
    ("han", 0x20000, 0x323af),
];

struct Language {
    ranges: Vec<(u32, u32)>,
    threshold: Option<f64>,
}

impl Reward for Language {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        let (mut letters, mut wanted) = (0u64, 0u64);
        for c in sample.completion.chars().filter(|c| c.is_alphabetic()) {
            letters += 1;
            let code = c as u32;
            wanted += u64::from(self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&code)));
        }
        if letters == 0 {
            return Verdict::none(Reason::NotApplicable);
        }
        let share = wanted as f64 / letters as f64;
        Verdict::new(self.threshold.map_or(share, |threshold| f64::from(u8::from(share >= threshold))), Reason::Computed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shares_of_letters() {
        let value = |args: serde_json::Value, completion: &str| {
            crate::build("language", args.as_object().unwrap()).unwrap().score(&Sample { completion, ..Sample::default() }).value
        };
        assert_eq!(value(json!({}), "abc 123 答案"), Some(0.6));
        assert_eq!(value(json!({"scripts": ["han"], "threshold": 0.5}), "答案是 x"), Some(1.0));
        assert_eq!(value(json!({}), "123"), None);
    }
}
