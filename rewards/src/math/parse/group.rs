//! Brackets: tuples, intervals, sets, set builders, absolute values, floors and ceilings.

use super::Parser;
use crate::math::ast::{Bracket, Func, Id, NamedSet, Node, RelOp};
use crate::math::lex::Kind;
use crate::math::rational::Rational;
use crate::math::words::Word;

impl<'t, 'a> Parser<'t, 'a> {
    /// A primary that begins with a sign.
    pub(super) fn opening(&mut self, sign: char) -> Option<Id> {
        match sign {
            '(' => self.bracketed(Bracket::Round),
            '[' => self.bracketed(Bracket::Square),
            ']' => self.bracketed(Bracket::Reversed),
            '{' => self.nested(Self::tex_group),
            '|' => {
                self.at += 1;
                self.nested(|p| {
                    p.bars += 1;
                    let curly = std::mem::take(&mut p.curly);
                    let inside = p.sum();
                    p.curly = curly;
                    p.bars -= 1;
                    let inside = inside?;
                    p.eat('|').then_some(())?;
                    p.absolute(inside)
                })
            }
            // An empty group before a subscript: ₅C₂.
            '_' => self.nested(Self::left_script),
            _ => None,
        }
    }

    fn absolute(&mut self, inside: Id) -> Option<Id> {
        if let Node::Matrix(rows, columns, items) = *self.arena.node(inside) {
            let items = self.arena.list(items).to_vec();
            return if rows == columns { self.determinant(&items, rows as usize) } else { None };
        }
        self.push(Node::Fn(Func::Abs, inside))
    }

    /// `{…}`, which groups and means nothing; `{a \over b}` and `{n \choose k}` divide it.
    fn tex_group(&mut self) -> Option<Id> {
        // Groups around groups are walked here, so that a thousand of them take no stack.
        let mut open = 0;
        while self.is_sign('{') {
            self.at += 1;
            open += 1;
        }
        if self.is_sign('}') && open == 1 && self.peek_at(1) == Some(&Kind::Sign('_')) {
            self.at += 1;
            return self.left_script();
        }
        let (bars, curly) = (std::mem::take(&mut self.bars), std::mem::take(&mut self.curly));
        let inside = self.group_content(open);
        self.bars = bars;
        self.curly = curly;
        inside
    }

    fn group_content(&mut self, mut open: u32) -> Option<Id> {
        let mut value = self.answer()?;
        loop {
            if self.is_word(Word::Over) || self.is_word(Word::Choose) {
                let choose = self.is_word(Word::Choose);
                self.at += 1;
                let below = self.answer()?;
                value = self.push(if choose { Node::Binomial(value, below) } else { Node::Div(value, below) })?;
            }
            // A last brace may be missing at the end of the answer.
            if !self.eat('}') {
                return (self.at == self.tokens.len() && open == 1).then_some(value);
            }
            open -= 1;
            if open == 0 {
                return Some(value);
            }
            // `{{a} + b}`: the inner group was the first term of more.
            if !matches!(self.peek(), Some(Kind::Sign('}'))) && !self.is_word(Word::Over) && !self.is_word(Word::Choose) {
                value = self.continue_from(value)?;
            }
        }
    }

    /// Goes on with an expression whose first factor is already read.
    fn continue_from(&mut self, first: Id) -> Option<Id> {
        let mark = self.stack.len();
        let mut factor = first;
        if self.eat('^') {
            let exponent = self.nested(Self::argument)?;
            factor = self.push(Node::Pow(factor, exponent))?;
        }
        self.stack.push(factor);
        loop {
            if self.eat_word(Word::Times) {
            } else if self.eat('/') {
                let divisor = self.factor()?;
                let dividend = self.take(mark);
                let dividend = self.push(Node::Mul(dividend))?;
                let quotient = self.push(Node::Div(dividend, divisor))?;
                self.stack.push(quotient);
                continue;
            } else if !self.starts_factor(self.at) {
                break;
            }
            let next = self.factor()?;
            self.stack.push(next);
        }
        let ids = self.take(mark);
        let product = self.push(Node::Mul(ids))?;
        if self.is_sign('+') || self.is_sign('-') {
            let rest = self.sum()?;
            let ids = self.arena.ids(&[product, rest]);
            return self.push(Node::Add(ids));
        }
        Some(product)
    }

    /// `_5C_2` and `{}_{5}C_{2}`: five choose two; with P the permutations.
    fn left_script(&mut self) -> Option<Id> {
        if !self.eat('_') {
            return None;
        }
        let n = self.argument()?;
        let count = match self.peek() {
            Some(Kind::Letter('C')) => true,
            Some(Kind::Letter('P')) => false,
            _ => return None,
        };
        self.at += 1;
        if !self.eat('_') {
            return None;
        }
        let k = self.argument()?;
        let binomial = self.push(Node::Binomial(n, k))?;
        if count {
            return Some(binomial);
        }
        let factorial = self.push(Node::Factorial(k))?;
        let ids = self.arena.ids(&[binomial, factorial]);
        self.push(Node::Mul(ids))
    }

    /// A list in brackets; one expression in round brackets is itself.
    fn bracketed(&mut self, open: Bracket) -> Option<Id> {
        self.at += 1;
        self.nested(|p| {
            let (bars, curly) = (std::mem::take(&mut p.bars), std::mem::take(&mut p.curly));
            let group = p.bracket_content(open);
            p.bars = bars;
            p.curly = curly;
            group
        })
    }

    fn bracket_content(&mut self, open: Bracket) -> Option<Id> {
        let mark = self.stack.len();
        let mut separators = 0;
        if !self.ends_list() {
            loop {
                let item = self.relation()?;
                self.stack.push(item);
                if self.separator().is_none() {
                    break;
                }
                separators += 1;
                if self.ends_list() {
                    break;
                }
            }
        }
        let close = match self.peek() {
            Some(Kind::Sign(')')) => Bracket::Round,
            Some(Kind::Sign(']')) => Bracket::Square,
            Some(Kind::Sign('[')) => Bracket::Reversed,
            Some(Kind::Word(Word::Choose)) if separators == 0 => {
                self.at += 1;
                let k = self.sum()?;
                let n = self.stack.pop()?;
                return if self.eat(')') { self.push(Node::Binomial(n, k)) } else { None };
            }
            _ => return None,
        };
        self.at += 1;
        if separators == 0 && self.stack.len() == mark + 1 && open == Bracket::Round && close == Bracket::Round {
            let inside = self.stack.pop()?;
            if self.is_sign('_')
                && let Node::Num(value) = self.arena.node(inside)
                && value.is_integer()
                && let Some(n) = value.as_i64()
            {
                return self.based_value(n);
            }
            return Some(inside);
        }
        // Brackets around a matrix are its own brackets.
        if self.stack.len() == mark + 1 && separators == 0 && matches!(self.arena.node(self.stack[mark]), Node::Matrix(..)) {
            return self.stack.pop();
        }
        // Square brackets around one expression group it like round ones.
        let items = self.take(mark);
        self.push(Node::Group(open, close, items))
    }

    /// `(101)_2`
    fn based_value(&mut self, digits: i64) -> Option<Id> {
        self.at += 1;
        let Node::Num(base) = ({
            let base = self.argument()?;
            self.arena.node(base).clone()
        }) else {
            return None;
        };
        let base = u32::try_from(base.as_i64()?).ok()?;
        let sym = self.name_sym(&digits.to_string());
        self.push(Node::Based(sym, base))
    }

    /// Brackets that are commands.
    pub(super) fn big_or_bracket(&mut self, word: Word) -> Option<Id> {
        match word {
            Word::OpenCurly => self.nested(|p| {
                p.curly += 1;
                let bars = std::mem::take(&mut p.bars);
                let set = p.set_content();
                p.bars = bars;
                p.curly -= 1;
                set
            }),
            Word::OpenAngle => self.nested(|p| {
                let mark = p.stack.len();
                loop {
                    let item = p.relation()?;
                    p.stack.push(item);
                    if p.separator().is_none() {
                        break;
                    }
                }
                if !p.eat_word(Word::CloseAngle) {
                    return None;
                }
                let items = p.take(mark);
                p.push(Node::Group(Bracket::Angle, Bracket::Angle, items))
            }),
            Word::OpenFloor | Word::OpenCeil => self.nested(|p| {
                let inside = p.sum()?;
                let (close, func) = if word == Word::OpenFloor { (Word::CloseFloor, Func::Floor) } else { (Word::CloseCeil, Func::Ceil) };
                if !p.eat_word(close) {
                    return None;
                }
                p.push(Node::Fn(func, inside))
            }),
            Word::Mid => {
                self.at -= 1;
                self.nested(|p| {
                    p.at += 1;
                    p.bars += 1;
                    let inside = p.sum();
                    p.bars -= 1;
                    let inside = inside?;
                    p.eat_word(Word::Mid).then_some(())?;
                    p.absolute(inside)
                })
            }
            _ => self.big(word),
        }
    }

    fn set_content(&mut self) -> Option<Id> {
        let mark = self.stack.len();
        if !self.is_word(Word::CloseCurly) {
            loop {
                let item = self.relation()?;
                self.stack.push(item);
                if self.is_sign('|') || self.is_word(Word::Mid) || self.is_sign(':') {
                    self.at += 1;
                    let element = self.stack.pop()?;
                    let condition = self.answer()?;
                    if !self.eat_word(Word::CloseCurly) || self.stack.len() != mark {
                        return None;
                    }
                    return self.push(Node::Builder(element, condition));
                }
                if self.separator().is_none() || self.ends_list() {
                    break;
                }
            }
        }
        if !self.eat_word(Word::CloseCurly) {
            return None;
        }
        let items = self.take(mark);
        self.push(Node::Group(Bracket::Curly, Bracket::Curly, items))
    }

    /// A named set, with the positive or negative part of it: `\mathbb{R}^+`, `\mathbb{Z}_{\ge 0}`.
    pub(super) fn named_set(&mut self, set: NamedSet) -> Option<Id> {
        let named = self.push(Node::Named(set))?;
        let start = self.at;
        if !self.eat('^') && !self.eat('_') {
            return Some(named);
        }
        let braced = self.eat('{');
        let op = match self.peek() {
            Some(Kind::Sign('+')) => RelOp::Gt,
            Some(Kind::Sign('-')) => RelOp::Lt,
            Some(Kind::Word(Word::Rel(op))) => *op,
            _ => {
                self.at = start;
                return Some(named);
            }
        };
        self.at += 1;
        let bound = if braced && !self.is_sign('}') { self.sum()? } else { self.push(Node::Num(Rational::ZERO))? };
        if braced && !self.eat('}') {
            return None;
        }
        // {t ∈ S : t op bound}, with a name that no answer can contain.
        let variable = self.symbol("·")?;
        let (inside, condition) = (self.arena.ids(&[variable, named]), self.arena.ids(&[variable, bound]));
        let first = self.arena.ops.len() as u32;
        self.arena.ops.extend([RelOp::In, op]);
        let inside = self.push(Node::Chain(inside, first))?;
        let condition = self.push(Node::Chain(condition, first + 1))?;
        self.push(Node::Builder(inside, condition))
    }
}
