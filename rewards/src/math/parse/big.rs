//! Sums and products over a range, integrals, limits, derivatives and matrices.

use super::Parser;
use crate::math::ast::{Id, Joint, Node, Over, RelOp, Sym};
use crate::math::lex::Kind;
use crate::math::words::Word;

impl<'t, 'a> Parser<'t, 'a> {
    pub(super) fn big(&mut self, word: Word) -> Option<Id> {
        match word {
            Word::Sum => self.nested(|p| p.over(Over::Sum)),
            Word::Prod => self.nested(|p| p.over(Over::Product)),
            Word::Int => self.nested(Self::integral),
            Word::Lim => self.nested(Self::limit),
            _ => None,
        }
    }

    /// The bound variable at the cursor.
    fn variable(&mut self) -> Option<Sym> {
        let sym = match self.peek()? {
            Kind::Letter(letter) => self.arena.sym(letter.encode_utf8(&mut [0; 4])),
            Kind::Word(Word::Symbol(name)) => self.arena.sym(name),
            _ => return None,
        };
        self.at += 1;
        Some(sym)
    }

    fn over(&mut self, over: Over) -> Option<Id> {
        if !(self.eat('_') && self.eat('{')) {
            return None;
        }
        let variable = self.variable()?;
        self.eat_word(Word::Rel(RelOp::Eq)).then_some(())?;
        let from = self.sum()?;
        if !(self.eat('}') && self.eat('^')) {
            return None;
        }
        let to = if self.is_sign('{') { self.primary()? } else { self.argument()? };
        let body = self.term()?;
        // `\sum i`: the letter is the variable, not the imaginary unit.
        let body = self.unbind_constant(variable, body)?;
        self.push(Node::Over(over, variable, [from, to, body]))
    }

    /// In the body of a sum over `i` every `i` is the variable.
    fn unbind_constant(&mut self, variable: Sym, body: Id) -> Option<Id> {
        use crate::math::ast::Const;
        let constant = match self.arena.name(variable) {
            "i" => Const::I,
            "e" => Const::E,
            _ => return Some(body),
        };
        self.arena.replace_constant(body, constant, variable);
        Some(body)
    }

    fn integral(&mut self) -> Option<Id> {
        let mut bounds = [None, None];
        loop {
            let at = usize::from(self.is_sign('^'));
            if !(self.eat('_') || self.eat('^')) || bounds[at].is_some() {
                break;
            }
            let negative = self.eat('-');
            let mut bound = if self.is_sign('{') { self.primary()? } else { self.argument()? };
            if negative {
                bound = self.push(Node::Neg(bound))?;
            }
            bounds[at] = Some(bound);
        }
        self.integrals += 1;
        let body = self.sum();
        self.integrals -= 1;
        let body = body?;
        let variable = self.differential(self.at)?;
        let width = if matches!(self.peek(), Some(Kind::Run(_))) { 1 } else { 2 };
        self.at += width;
        let variable = self.arena.sym(&variable);
        self.push(Node::Integral(variable, [bounds[0]?, bounds[1]?, body]))
    }

    /// The variable of `dx` at the given token.
    pub(super) fn differential(&self, at: usize) -> Option<String> {
        match (&self.tokens.get(at)?.kind, self.tokens.get(at + 1).map(|t| &t.kind)) {
            (Kind::Run(run), _) if run.len() == 2 && run.starts_with('d') && self.skip == 0 => Some(run[1..].to_owned()),
            (Kind::Letter('d'), Some(Kind::Letter(letter))) => Some(letter.to_string()),
            (Kind::Letter('d'), Some(Kind::Word(Word::Symbol(name)))) => Some((*name).to_owned()),
            _ => None,
        }
    }

    /// After \frac: `{d}{dx} body` is a derivative, `{dy}{dx}` a name.
    pub(super) fn derivative(&mut self) -> Option<Id> {
        let (start, mark) = (self.at, self.stack.len());
        let result = self.derivative_parts();
        if result.is_none() {
            // It was an ordinary fraction.
            self.at = start;
            self.skip = 0;
            self.stack.truncate(mark);
        }
        result
    }

    fn derivative_parts(&mut self) -> Option<Id> {
        if !self.eat('{') {
            return None;
        }
        let above = match self.peek()? {
            Kind::Letter('d') if self.peek_at(1) == Some(&Kind::Sign('}')) => {
                self.at += 1;
                None
            }
            _ => {
                let name = self.differential(self.at)?;
                self.at += if matches!(self.peek(), Some(Kind::Run(_))) { 1 } else { 2 };
                Some(name)
            }
        };
        if !(self.eat('}') && self.eat('{')) {
            return None;
        }
        let below = self.differential(self.at)?;
        self.at += if matches!(self.peek(), Some(Kind::Run(_))) { 1 } else { 2 };
        if !self.eat('}') {
            return None;
        }
        match above {
            Some(above) => self.symbol(&format!("d{above}/d{below}")),
            None => {
                let variable = self.arena.sym(&below);
                let body = self.term()?;
                self.push(Node::Derivative(variable, body))
            }
        }
    }

    fn limit(&mut self) -> Option<Id> {
        if !(self.eat('_') && self.eat('{')) {
            return None;
        }
        let variable = self.variable()?;
        self.eat_word(Word::To).then_some(())?;
        let target = self.sum_without_side()?;
        let side = if self.eat('^') {
            let braced = self.eat('{');
            let side = if self.eat('+') {
                1
            } else {
                self.eat('-').then_some(())?;
                -1
            };
            if braced && !self.eat('}') {
                return None;
            }
            side
        } else {
            0
        };
        self.eat('}').then_some(())?;
        let body = self.term()?;
        self.push(Node::Limit(variable, [target, body], side))
    }

    /// A limit's target: its `^+` is no exponent.
    fn sum_without_side(&mut self) -> Option<Id> {
        let negative = self.eat('-');
        self.eat('+');
        let target = self.primary()?;
        if negative { self.push(Node::Neg(target)) } else { Some(target) }
    }

    pub(super) fn environment(&mut self, env: &str) -> Option<Id> {
        let bars = match env {
            "vmatrix" => true,
            "pmatrix" | "bmatrix" | "matrix" | "smallmatrix" | "array" | "Bmatrix" | "psmallmatrix" | "bsmallmatrix" => false,
            "cases" | "aligned" | "align" | "gathered" | "split" | "equation" | "gather" | "alignedat" | "dcases" => return self.system(),
            _ => return None,
        };
        let mark = self.stack.len();
        let mut columns = 0u32;
        let mut rows = 0u32;
        let mut row_start = mark;
        loop {
            if self.peek() == Some(&Kind::End) && self.stack.len() == row_start {
                break;
            }
            let cell = self.sum()?;
            self.stack.push(cell);
            if self.eat('&') {
                continue;
            }
            let width = (self.stack.len() - row_start) as u32;
            if rows > 0 && width != columns {
                return None;
            }
            columns = width;
            rows += 1;
            row_start = self.stack.len();
            if !self.eat_word(Word::NewRow) {
                break;
            }
        }
        if self.peek() != Some(&Kind::End) || rows == 0 {
            return None;
        }
        self.at += 1;
        let items = self.take(mark);
        if env == "array" && rows == 1 && columns == 1 {
            return Some(self.arena.list(items)[0]);
        }
        if bars {
            let items = self.arena.list(items).to_vec();
            return if rows == columns { self.determinant(&items, rows as usize) } else { None };
        }
        self.push(Node::Matrix(rows, columns, items))
    }

    /// A determinant, written out along its first row.
    pub(super) fn determinant(&mut self, items: &[Id], n: usize) -> Option<Id> {
        if n == 1 {
            return items.first().copied();
        }
        if n > 5 {
            return None;
        }
        let mut terms = Vec::with_capacity(n);
        for column in 0..n {
            let minor: Vec<Id> = (n..n * n).filter(|at| at % n != column).map(|at| items[at]).collect();
            let minor = self.determinant(&minor, n - 1)?;
            let ids = self.arena.ids(&[items[column], minor]);
            let term = self.push(Node::Mul(ids))?;
            terms.push(if column % 2 == 1 { self.push(Node::Neg(term))? } else { term });
        }
        let ids = self.arena.ids(&terms);
        self.push(Node::Add(ids))
    }

    /// Equations one below the other.
    fn system(&mut self) -> Option<Id> {
        let mark = self.stack.len();
        loop {
            while self.eat_word(Word::NewRow) || self.eat(',') || self.eat('&') {}
            if self.peek() == Some(&Kind::End) {
                break;
            }
            let row = self.relation()?;
            self.stack.push(row);
            if !matches!(self.peek(), Some(Kind::End | Kind::Word(Word::NewRow) | Kind::Sign(',' | ';'))) {
                return None;
            }
            self.eat(';');
        }
        self.at += 1;
        match self.stack.len() - mark {
            0 => None,
            1 => self.stack.pop(),
            _ => {
                let items = self.take(mark);
                self.push(Node::List(Joint::And, items))
            }
        }
    }
}
