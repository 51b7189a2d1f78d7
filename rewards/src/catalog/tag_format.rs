//! Blocks in tags, in order.

use crate::{ArgError, ArgSpec, Args, Reward, RewardSpec, Sample, Verdict};

pub(super) const SPEC: RewardSpec = RewardSpec {
    name: "tag_format",
    about: "1 when the completion is blocks in tags, in order. \"open_r1\" equals open-r1's format_reward; \"strict\" asks for exactly one block of each tag and nothing else.",
    args: &[
        ArgSpec { name: "tags", kind: "list of string", default: "[\"think\", \"answer\"]", about: "The tags' names." },
        ArgSpec { name: "mode", kind: "one of open_r1|strict", default: "\"open_r1\"", about: "How strictly." },
    ],
    build: |args: &Args| -> Result<Box<dyn Reward>, ArgError> {
        let tags = args.strings("tags");
        if tags.is_empty() || tags.iter().any(String::is_empty) {
            return Err(args.error("tags", "needs at least one tag, and none that is empty"));
        }
        Ok(Box::new(TagFormat { tags, strict: args.string("mode") == "strict" }))
    },
};

struct TagFormat {
    tags: Vec<String>,
    strict: bool,
}

/// open-r1's `^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$` with DOTALL and MULTILINE: the position after the last joint,
/// from where only the last closing tag is still wanted. Taking each joint as early as it occurs leaves the most for the rest.
pub(super) fn last_block<'t>(text: &'t str, tags: &[String]) -> Option<&'t str> {
    let mut rest = text.strip_prefix(&format!("<{}>\n", tags.first()?))?;
    for pair in tags.windows(2) {
        let joint = format!("\n</{}>\n<{}>\n", pair[0], pair[1]);
        rest = &rest[rest.find(&joint)? + joint.len()..];
    }
    Some(rest)
}

/// The ends of a line after each closing tag in `rest`: where open-r1's `\n</answer>$` matches.
pub(super) fn closings<'t>(rest: &'t str, tag: &str) -> impl Iterator<Item = usize> + 't {
    let close = format!("\n</{tag}>");
    let len = close.len();
    let positions: Vec<usize> = rest.match_indices(&close).map(|(at, _)| at).collect();
    positions.into_iter().filter(move |at| rest[at + len..].is_empty() || rest[at + len..].starts_with('\n'))
}

impl TagFormat {
    fn strictly(&self, text: &str) -> bool {
        let mut rest = text.trim();
        for tag in &self.tags {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            if text.matches(&open).count() != 1 || text.matches(&close).count() != 1 {
                return false;
            }
            let Some(inside) = rest.trim_start().strip_prefix(&open) else { return false };
            let Some(end) = inside.find(&close) else { return false };
            rest = &inside[end + close.len()..];
        }
        rest.trim().is_empty()
    }
}

impl Reward for TagFormat {
    fn score(&self, sample: &Sample<'_>) -> Verdict {
        if self.strict {
            return Verdict::matched(self.strictly(sample.completion));
        }
        let last = self.tags.last().map_or("", String::as_str);
        let matched = last_block(sample.completion, &self.tags).is_some_and(|rest| closings(rest, last).next().is_some());
        Verdict::matched(matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_wants_each_block_once() {
        let format = TagFormat { tags: vec!["think".to_owned(), "answer".to_owned()], strict: true };
        assert!(format.strictly("<think>a</think> <answer>b</answer>\n"));
        assert!(!format.strictly("<think>a</think><answer>b</answer> more"));
        assert!(!format.strictly("<think>a</think><think>a</think><answer>b</answer>"));
    }
}
