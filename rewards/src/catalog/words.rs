//! Normal forms of texts, as question answering compares them.

use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use crate::{ArgError, ArgSpec, Args, Reason};

pub(super) const NORMALIZE: ArgSpec = ArgSpec {
    name: "normalize",
    kind: "list of one of nfkc|casefold|articles|punctuation|whitespace",
    default: "[\"nfkc\", \"casefold\", \"articles\", \"punctuation\", \"whitespace\"]",
    about: "What does not count: compatibility forms, case, the articles a, an and the, ASCII punctuation, white space.",
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Normal {
    nfkc: bool,
    casefold: bool,
    articles: bool,
    punctuation: bool,
    whitespace: bool,
}

impl Normal {
    pub fn of(args: &Args) -> Result<Self, ArgError> {
        let steps = args.strings("normalize");
        let has = |step: &str| steps.iter().any(|s| s == step);
        Ok(Normal {
            nfkc: has("nfkc"),
            casefold: has("casefold"),
            articles: has("articles"),
            punctuation: has("punctuation"),
            whitespace: has("whitespace"),
        })
    }

    pub fn apply(self, text: &str) -> String {
        let mut text = if self.nfkc { text.nfkc().collect() } else { text.to_owned() };
        if self.casefold {
            text = text.to_lowercase();
        }
        if self.punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        if self.articles {
            text = text.split(' ').filter(|w| !matches!(*w, "a" | "an" | "the")).collect::<Vec<_>>().join(" ");
        }
        if self.whitespace {
            text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        text
    }
}

/// The gold texts of a solution.
pub(super) fn gold_texts(solution: Option<&Value>) -> Result<Vec<String>, Reason> {
    super::accuracy::golds(solution).map(|golds| golds.into_iter().map(|g| g.into_owned()).collect())
}
