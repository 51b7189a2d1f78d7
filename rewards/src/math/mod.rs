//! Reading and comparing mathematical answers.

mod answer;
mod ast;
mod budget;
pub(crate) mod compare;
mod complex;
mod countdown;
mod dd;
mod decode;
mod eval;
pub(crate) mod extract;
pub(crate) mod judge;
mod lex;
mod parse;
mod rational;
pub(crate) mod text;
pub(crate) mod trl;
mod units;
mod words;
mod wrappers;

pub(crate) use countdown::arithmetic;

/// The words of an answer, without the LaTeX, Markdown and dollars around them.
pub(crate) fn answer_words(answer: &str) -> String {
    text::plain(wrappers::unwrap(&decode::decode(answer)).0)
}
