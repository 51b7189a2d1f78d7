//! From tokens to one expression: lists of relations of sets of sums, by recursive descent of bounded depth.

mod atom;
mod big;
mod group;
mod sum;

use super::ast::{Arena, Id, Joint, Node, RelOp, Sym};
use super::budget::Budget;
use super::lex::{Kind, Token};
use super::rational::Rational;
use super::words::Word;

/// How deep brackets, fractions and exponents may be nested. The frames of one level take a few kilobytes.
const MAX_DEPTH: u32 = 520;

/// Parses the tokens as an answer; returns it and how many tokens it took.
pub(crate) fn parse(tokens: &[Token<'_>], arena: &mut Arena, budget: &mut Budget) -> Option<(Id, usize)> {
    let mut parser = Parser { tokens, at: 0, skip: 0, arena, budget, stack: Vec::new(), depth: 0, bars: 0, curly: 0, integrals: 0 };
    let id = parser.answer()?;
    Some((id, parser.at))
}

struct Parser<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
    /// How many letters of the run, or digits of the number, at `at` are taken already.
    skip: usize,
    arena: &'t mut Arena,
    budget: &'t mut Budget,
    /// The items of the lists being read, innermost last.
    stack: Vec<Id>,
    depth: u32,
    /// Absolute-value bars that are open.
    bars: u32,
    /// Curly brackets that are open: a bar or colon there is "such that".
    curly: u32,
    /// Integrals that wait for their differential.
    integrals: u32,
}

impl<'t, 'a> Parser<'t, 'a> {
    fn peek(&self) -> Option<&'t Kind<'a>> {
        self.tokens.get(self.at).map(|t| &t.kind)
    }

    fn peek_at(&self, ahead: usize) -> Option<&'t Kind<'a>> {
        self.tokens.get(self.at + ahead).map(|t| &t.kind)
    }

    fn is_sign(&self, sign: char) -> bool {
        self.peek() == Some(&Kind::Sign(sign))
    }

    fn is_word(&self, word: Word) -> bool {
        self.peek() == Some(&Kind::Word(word))
    }

    fn eat(&mut self, sign: char) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    fn eat_word(&mut self, word: Word) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn push(&mut self, node: Node) -> Option<Id> {
        self.budget.spend(1).ok()?;
        self.arena.push(node)
    }

    fn int(&mut self, n: i64) -> Option<Id> {
        self.push(Node::Num(Rational::int(n)))
    }

    fn symbol(&mut self, name: &str) -> Option<Id> {
        let sym = self.arena.sym(name);
        self.push(Node::Sym(sym))
    }

    /// Takes the items above `mark` off the stack, as an arena list.
    fn take(&mut self, mark: usize) -> super::ast::Ids {
        let ids = self.arena.ids(&self.stack[mark..]);
        self.stack.truncate(mark);
        ids
    }

    /// Runs one level of nesting; `None` when it is one too many.
    fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = f(self);
        self.depth -= 1;
        result
    }

    /// A list of relations, joined by commas, "and" and "or".
    fn answer(&mut self) -> Option<Id> {
        let mark = self.stack.len();
        let mut joint = None;
        loop {
            let item = self.relation()?;
            self.stack.push(item);
            let next = match self.separator() {
                Some(next) => next,
                None => break,
            };
            // "1, 2 and 3": the word wins over the commas.
            joint = Some(match (joint, next) {
                (Some(Joint::And | Joint::Or), Joint::Comma) => joint.unwrap_or(next),
                _ => next,
            });
            if self.ends_list() {
                break;
            }
        }
        match joint {
            Some(joint) if self.stack.len() - mark > 1 => {
                let items = self.take(mark);
                self.push(Node::List(joint, items))
            }
            _ => self.stack.pop(),
        }
    }

    fn separator(&mut self) -> Option<Joint> {
        let mut joint = None;
        loop {
            joint = Some(match self.peek() {
                Some(Kind::Sign(',' | ';')) => joint.unwrap_or(Joint::Comma),
                Some(Kind::Word(Word::And)) => Joint::And,
                Some(Kind::Word(Word::Or)) => Joint::Or,
                Some(Kind::Word(Word::NewRow)) if self.depth > 0 => joint.unwrap_or(Joint::Comma),
                Some(Kind::Sign('&')) if joint.is_some() => joint.unwrap_or(Joint::Comma),
                _ => return joint,
            });
            self.at += 1;
        }
    }

    fn ends_list(&self) -> bool {
        matches!(self.peek(), None | Some(Kind::Sign(')' | ']' | '}') | Kind::Word(Word::CloseCurly | Word::CloseAngle) | Kind::End))
    }

    /// A chain of relations, such as `-2 < x \le 3`; a lone expression is itself.
    fn relation(&mut self) -> Option<Id> {
        while self.eat_word(Word::Rel(RelOp::Eq)) || self.eat_word(Word::Rel(RelOp::Approx)) || self.eat('&') {}
        let first = self.set()?;
        if !matches!(self.peek(), Some(Kind::Word(Word::Rel(_) | Word::Congruent | Word::To) | Kind::Sign('&'))) {
            return Some(first);
        }
        let mark = self.stack.len();
        self.stack.push(first);
        // The operators of a chain must stand together, and an item may hold a chain of its own.
        let mut ops: Vec<RelOp> = Vec::new();
        let mut congruent = false;
        loop {
            while self.eat('&') {}
            let op = match self.peek() {
                Some(Kind::Word(Word::Rel(op))) => *op,
                Some(Kind::Word(Word::Congruent)) => {
                    congruent = true;
                    RelOp::Other
                }
                Some(Kind::Word(Word::To)) => RelOp::Other,
                _ => break,
            };
            self.at += 1;
            while self.eat('&') {}
            let item = self.set()?;
            self.stack.push(item);
            ops.push(op);
            if ops.len() > 1024 {
                return None;
            }
        }
        if ops.is_empty() {
            return self.stack.pop();
        }
        if congruent && matches!(self.peek(), Some(Kind::Word(Word::PMod | Word::Mod) | Kind::Sign('('))) {
            let modulus = self.modulus()?;
            let (a, b) = (self.stack[mark], *self.stack.last()?);
            self.stack.truncate(mark);
            return self.push(Node::Congruence([a, b, modulus]));
        }
        let items = self.take(mark);
        let start = self.arena.ops.len() as u32;
        self.arena.ops.extend_from_slice(&ops);
        self.push(Node::Chain(items, start))
    }

    /// `\pmod{7}`, `(mod 7)` or `mod 7`.
    fn modulus(&mut self) -> Option<Id> {
        let start = self.at;
        let round = self.eat('(');
        if !(self.eat_word(Word::PMod) || self.eat_word(Word::Mod)) {
            self.at = start;
            return None;
        }
        let modulus = self.nested(Self::argument)?;
        if round {
            self.eat(')');
        }
        Some(modulus)
    }

    /// Unions, intersections and differences of sets; a lone expression is itself.
    fn set(&mut self) -> Option<Id> {
        let mut left = self.ratio()?;
        while let Some(Kind::Word(Word::SetOp(op))) = self.peek() {
            self.at += 1;
            let right = self.ratio()?;
            left = self.push(Node::SetOp(*op, left, right))?;
        }
        Some(left)
    }

    /// `3 : 4 : 5`; a lone expression is itself.
    fn ratio(&mut self) -> Option<Id> {
        let first = self.sum()?;
        if !self.is_sign(':') || self.curly > 0 {
            return Some(first);
        }
        let mark = self.stack.len();
        self.stack.push(first);
        while self.eat(':') {
            let item = self.sum()?;
            self.stack.push(item);
        }
        let items = self.take(mark);
        self.push(Node::Ratio(items))
    }

    /// A name for what is between here and `end`, without spaces.
    fn text_of(&self, from: usize, to: usize) -> String {
        let mut out = String::new();
        for token in &self.tokens[from..to] {
            match &token.kind {
                Kind::Number(n) => out.push_str(&String::from_utf8_lossy(&n.digits)),
                Kind::Letter(c) | Kind::Sign(c) => out.push(*c),
                Kind::Run(s) | Kind::Text(s) | Kind::Begin(s) => out.push_str(s),
                Kind::Word(Word::Symbol(s)) => out.push_str(s),
                Kind::Word(word) => out.push_str(&format!("{word:?}")),
                Kind::End => {}
            }
        }
        out
    }

    fn name_sym(&mut self, name: &str) -> Sym {
        self.arena.sym(name)
    }
}
