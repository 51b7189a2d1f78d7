//! Sums, products and powers.

use super::Parser;
use crate::math::ast::{Func, Id, Node};
use crate::math::lex::Kind;
use crate::math::units;
use crate::math::words::Word;

impl<'t, 'a> Parser<'t, 'a> {
    /// Terms joined by plus, minus and ±.
    pub(super) fn sum(&mut self) -> Option<Id> {
        let mark = self.stack.len();
        loop {
            let mut negative = false;
            let mut plus_minus = None;
            let mut signs = 0;
            loop {
                match self.peek() {
                    Some(Kind::Sign('+')) => {}
                    Some(Kind::Sign('-')) => negative = !negative,
                    Some(Kind::Word(Word::PlusMinus)) if plus_minus.is_none() => plus_minus = Some(false),
                    Some(Kind::Word(Word::MinusPlus)) if plus_minus.is_none() => plus_minus = Some(true),
                    _ => break,
                }
                signs += 1;
                self.at += 1;
            }
            if self.stack.len() > mark && signs == 0 {
                break;
            }
            let mut term = self.term()?;
            if negative {
                term = self.push(Node::Neg(term))?;
            }
            if let Some(minus_first) = plus_minus {
                let left = match self.stack.len() - mark {
                    0 => self.int(0)?,
                    _ => self.close_sum(mark)?,
                };
                term = self.push(Node::PlusMinus(left, term, minus_first))?;
            }
            self.stack.push(term);
        }
        let sum = self.close_sum(mark)?;
        if self.is_word(Word::Mod) {
            self.at += 1;
            let modulus = self.term()?;
            return self.push(Node::Mod(sum, modulus));
        }
        Some(sum)
    }

    fn close_sum(&mut self, mark: usize) -> Option<Id> {
        if self.stack.len() - mark == 1 {
            return self.stack.pop();
        }
        let ids = self.take(mark);
        self.push(Node::Add(ids))
    }

    fn close_product(&mut self, mark: usize) -> Option<Id> {
        if self.stack.len() - mark == 1 {
            return self.stack.pop();
        }
        let ids = self.take(mark);
        self.push(Node::Mul(ids))
    }

    /// Whether the token here is a number as written.
    fn is_number(&self, at: usize) -> bool {
        matches!(self.tokens.get(at).map(|t| &t.kind), Some(Kind::Number(_)))
    }

    fn is_whole_number(&self, at: usize) -> bool {
        matches!(self.tokens.get(at).map(|t| &t.kind), Some(Kind::Number(n)) if n.is_whole())
    }

    /// Factors joined by multiplication and division signs or by nothing.
    pub(super) fn term(&mut self) -> Option<Id> {
        let mark = self.stack.len();
        let start = self.at;
        let first = self.factor()?;
        // A whole number right before a fraction of whole numbers is a mixed number.
        if self.at == start + 1
            && self.skip == 0
            && self.is_whole_number(start)
            && let Some(fraction) = self.fraction_of_mixed_number()
        {
            let ids = self.arena.ids(&[first, fraction]);
            let mixed = self.push(Node::Add(ids))?;
            let mixed = self.postfix(mixed)?;
            self.stack.push(mixed);
        } else {
            self.stack.push(first);
        }
        loop {
            let before = self.at;
            match self.peek() {
                Some(Kind::Word(Word::Times)) => {
                    self.at += 1;
                    let factor = self.signed_factor()?;
                    self.stack.push(factor);
                }
                Some(Kind::Sign('/') | Kind::Word(Word::Divide)) => {
                    self.at += 1;
                    let divisor = self.signed_factor()?;
                    let dividend = self.close_product(mark)?;
                    let quotient = self.push(Node::Div(dividend, divisor))?;
                    self.stack.push(quotient);
                }
                _ if self.starts_factor(before) => {
                    // Two numbers side by side are neither a product nor a sum.
                    if self.is_number(before) && self.skip == 0 && before > 0 && self.is_number(before - 1) {
                        return None;
                    }
                    let factor = self.factor()?;
                    self.stack.push(factor);
                }
                _ => break,
            }
        }
        self.close_product(mark)
    }

    /// The factors that a function without brackets takes as its argument: `\sin 2x`, up to the next function.
    pub(super) fn bare_argument(&mut self) -> Option<Id> {
        let mark = self.stack.len();
        let negative = self.is_sign('-');
        self.at += usize::from(negative);
        let first = self.factor()?;
        self.stack.push(first);
        while self.starts_factor(self.at)
            && !matches!(self.peek(), Some(Kind::Word(Word::Func(_) | Word::Log)))
            && !self.is_number(self.at)
            && !self.is_sign('(')
        {
            let factor = self.factor()?;
            self.stack.push(factor);
        }
        let product = self.close_product(mark)?;
        if negative { self.push(Node::Neg(product)) } else { Some(product) }
    }

    fn signed_factor(&mut self) -> Option<Id> {
        let mut negative = false;
        while self.is_sign('-') || self.is_sign('+') {
            negative ^= self.is_sign('-');
            self.at += 1;
        }
        let factor = self.factor()?;
        if negative { self.push(Node::Neg(factor)) } else { Some(factor) }
    }

    /// `\frac{1}{2}` or `1/2` of whole numbers, after a whole number.
    fn fraction_of_mixed_number(&mut self) -> Option<Id> {
        let number = |ahead: usize| self.is_whole_number(self.at + ahead);
        if self.is_word(Word::Frac) {
            let braced = |ahead: usize| {
                (self.peek_at(ahead) == Some(&Kind::Sign('{')) && number(ahead + 1) && self.peek_at(ahead + 2) == Some(&Kind::Sign('}')))
                    .then_some(3)
                    .or_else(|| number(ahead).then_some(1))
            };
            let first = braced(1)?;
            // `\frac12` is one number token of two digits.
            if first == 3 || self.peek_at(2).is_some() {
                let two_digits = matches!(self.peek_at(1), Some(Kind::Number(n)) if n.digits.len() == 2);
                if !two_digits {
                    braced(1 + first)?;
                }
            }
            return self.primary();
        }
        let spaced = self.tokens.get(self.at).is_some_and(|t| t.spaced);
        if spaced && number(0) && self.peek_at(1) == Some(&Kind::Sign('/')) && number(2) {
            let numerator = self.primary()?;
            self.at += 1;
            let denominator = self.primary()?;
            return self.push(Node::Div(numerator, denominator));
        }
        None
    }

    /// Whether the token at `at` can begin a factor that is multiplied without a sign.
    pub(super) fn starts_factor(&self, at: usize) -> bool {
        let Some(token) = self.tokens.get(at) else { return false };
        if self.integrals > 0 && self.differential(at).is_some() {
            return false;
        }
        match &token.kind {
            Kind::Number(_) | Kind::Letter(_) | Kind::Begin(_) => true,
            Kind::Run(run) => {
                let after_number = at > 0 && matches!(self.tokens[at - 1].kind, Kind::Number(_) | Kind::Sign('}' | ')'));
                // "10 red balls": words that count things.
                let counted = after_number && token.spaced && run.len() == 3;
                run.len() <= 3 && !(self.skip == 0 && after_number && (counted || units::is_unit(run)))
            }
            Kind::Sign('(' | '{') => !self.is_empty_group(at),
            Kind::Sign('|') => self.bars == 0 && self.curly == 0,
            Kind::Word(Word::Frac) => !self.is_unit_fraction(at),
            Kind::Word(
                Word::Func(_)
                | Word::Log
                | Word::Many(_)
                | Word::Const(_)
                | Word::Symbol(_)
                | Word::Infinity
                | Word::Binom
                | Word::Sqrt
                | Word::Sum
                | Word::Prod
                | Word::Int
                | Word::Lim
                | Word::OpenFloor
                | Word::OpenCeil
                | Word::Overline
                | Word::Accent(_)
                | Word::Dots,
            ) => true,
            _ => false,
        }
    }

    fn is_empty_group(&self, at: usize) -> bool {
        matches!((&self.tokens[at].kind, self.tokens.get(at + 1).map(|t| &t.kind)), (Kind::Sign('{'), Some(Kind::Sign('}'))))
    }

    /// `\frac{\text{m}}{\text{s}}` is a unit and no factor.
    fn is_unit_fraction(&self, at: usize) -> bool {
        matches!(
            (self.tokens.get(at + 1).map(|t| &t.kind), self.tokens.get(at + 2).map(|t| &t.kind)),
            (Some(Kind::Sign('{')), Some(Kind::Text(_)))
        )
    }

    /// A primary with its exponents, factorials, percent and degree signs.
    pub(super) fn factor(&mut self) -> Option<Id> {
        let base = self.primary()?;
        self.postfix(base)
    }

    fn postfix(&mut self, mut base: Id) -> Option<Id> {
        let mut postfixes = 0;
        loop {
            match self.peek() {
                _ if self.skip > 0 => return Some(base),
                Some(Kind::Sign('^')) => {
                    self.at += 1;
                    if self.is_word(Word::Circ) || (self.is_sign('{') && self.peek_at(1) == Some(&Kind::Word(Word::Circ))) {
                        let braced = self.eat('{');
                        self.at += 1;
                        if braced && !self.eat('}') {
                            return None;
                        }
                        base = self.push(Node::Degree(base))?;
                    } else if self.eat('*') {
                        base = self.push(Node::Fn(Func::Conj, base))?;
                    } else {
                        let exponent = self.nested(Self::exponent)?;
                        base = self.push(Node::Pow(base, exponent))?;
                    }
                }
                Some(Kind::Sign('!')) => {
                    self.at += 1;
                    base = self.push(Node::Factorial(base))?;
                }
                Some(Kind::Word(Word::Percent)) => {
                    self.at += 1;
                    base = self.push(Node::Percent(base))?;
                }
                Some(Kind::Word(Word::Circ)) => {
                    self.at += 1;
                    base = self.push(Node::Degree(base))?;
                }
                _ => return Some(base),
            }
            postfixes += 1;
            if postfixes > 64 {
                return None;
            }
        }
    }

    /// What follows `^`: a group, or one signed factor whose own exponent binds tighter.
    fn exponent(&mut self) -> Option<Id> {
        if self.is_sign('{') {
            return self.primary();
        }
        let negative = self.eat('-');
        if !negative {
            self.eat('+');
        }
        let mut power = self.primary()?;
        if self.is_sign('^') && self.skip == 0 {
            self.at += 1;
            let exponent = self.nested(Self::exponent)?;
            power = self.push(Node::Pow(power, exponent))?;
        }
        if negative { self.push(Node::Neg(power)) } else { Some(power) }
    }
}
