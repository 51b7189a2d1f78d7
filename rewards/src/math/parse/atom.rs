//! Numbers, symbols, fractions, roots and functions.

use super::Parser;
use crate::math::ast::{Const, Func, Id, Node};
use crate::math::lex::{Kind, Number};
use crate::math::rational::Rational;
use crate::math::words::Word;

/// Letters that are usually variables when they stand alone in the brackets of a function.
const VARIABLES: &str = "xyztnkmuθ";
/// Letters that are usually functions when a lone variable follows in brackets.
const FUNCTIONS: &str = "hFGHPQpqsvTVABCLφψyuRSW";

impl<'t, 'a> Parser<'t, 'a> {
    pub(super) fn primary(&mut self) -> Option<Id> {
        let kind = self.peek()?;
        match kind {
            Kind::Number(number) => self.number(number),
            Kind::Letter(letter) => {
                self.at += 1;
                self.letter(*letter)
            }
            Kind::Run(run) => {
                if run.len() > 3 {
                    return self.words();
                }
                let letter = *run.as_bytes().get(self.skip)? as char;
                self.skip += 1;
                if self.skip == run.len() {
                    self.skip = 0;
                    self.at += 1;
                    return self.letter(letter);
                }
                self.constant_or_symbol(letter)
            }
            Kind::Text(_) => self.words(),
            Kind::Begin(env) => {
                self.at += 1;
                self.nested(|p| p.environment(env))
            }
            Kind::End => None,
            Kind::Sign(sign) => self.opening(*sign),
            Kind::Word(word) => self.word(*word),
        }
    }

    /// One word, as an element of a set of words.
    fn words(&mut self) -> Option<Id> {
        let start = self.at;
        while matches!(self.peek(), Some(Kind::Text(_) | Kind::Run(_))) {
            self.at += 1;
        }
        let mut text = String::new();
        for token in &self.tokens[start..self.at] {
            if let Kind::Text(s) | Kind::Run(s) = token.kind {
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(s);
            }
        }
        let sym = self.name_sym(&text);
        self.push(Node::Text(sym))
    }

    fn number(&mut self, number: &Number) -> Option<Id> {
        // What \frac and \sqrt have taken off the front of the number.
        let digits = &number.digits[self.skip..];
        self.at += 1;
        self.skip = 0;
        if self.is_sign('_') && number.is_whole() {
            return self.based(digits);
        }
        let value = Self::value(number, digits, self.budget)?;
        self.push(Node::Num(value))
    }

    fn value(number: &Number, digits: &[u8], budget: &mut crate::math::budget::Budget) -> Option<Rational> {
        let mut value = Rational::from_digits(digits, number.places, budget).ok()?;
        if number.repeating > 0 {
            // 0.1666… = (16 − 1)/90: the digits with one period less the digits without, over 9…90…0.
            let fixed = Rational::from_digits(&digits[..digits.len() - number.repeating], 0, budget).ok()?;
            let all = Rational::from_digits(digits, 0, budget).ok()?;
            let nines = Rational::int(10).pow(number.repeating as i64, budget).ok()?.sub(&Rational::ONE, budget).ok()?;
            let shift = Rational::int(10).pow((number.places - number.repeating) as i64, budget).ok()?;
            value = all.sub(&fixed, budget).ok()?.div(&nines.mul(&shift, budget).ok()?, budget).ok()?;
        }
        match number.exponent {
            0 => Some(value),
            exponent => value.scale10(exponent.into(), budget).ok(),
        }
    }

    /// `101_2`: digits in a base.
    fn based(&mut self, digits: &[u8]) -> Option<Id> {
        self.at += 1;
        let (from, to) = self.script_range()?;
        let text = self.text_of(from, to).to_lowercase();
        const NAMES: [&str; 17] = [
            "", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
            "fifteen", "sixteen",
        ];
        let base = text.parse().ok().or_else(|| NAMES.iter().position(|n| *n == text && !text.is_empty()).map(|at| at as u32))?;
        let digits = String::from_utf8_lossy(digits);
        let sym = self.name_sym(match digits.trim_start_matches('0') {
            "" => "0",
            digits => digits,
        });
        self.push(Node::Based(sym, base))
    }

    /// The tokens of a subscript, which are consumed.
    fn script_range(&mut self) -> Option<(usize, usize)> {
        if !self.is_sign('{') {
            let from = self.at;
            self.peek()?;
            self.at += 1;
            return Some((from, self.at));
        }
        let from = self.at + 1;
        let mut depth = 0u32;
        while let Some(kind) = self.peek() {
            match kind {
                Kind::Sign('{') => depth += 1,
                Kind::Sign('}') => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some((from, self.at - 1));
            }
        }
        None
    }

    fn constant_or_symbol(&mut self, letter: char) -> Option<Id> {
        match letter {
            'e' => self.push(Node::Const(Const::E)),
            'i' => self.push(Node::Const(Const::I)),
            _ => self.symbol(letter.encode_utf8(&mut [0; 4])),
        }
    }

    fn letter(&mut self, letter: char) -> Option<Id> {
        match self.peek() {
            Some(Kind::Sign('_') | Kind::Word(Word::Prime)) => {}
            Some(Kind::Sign('(')) => {}
            Some(Kind::Sign('^')) if matches!(letter, 'f' | 'g' | 'h' | 'y' | 'x') => {}
            _ => return self.constant_or_symbol(letter),
        }
        self.named(letter.encode_utf8(&mut [0; 4]))
    }

    /// A symbol with its subscript, primes and arguments.
    fn named(&mut self, letter: &str) -> Option<Id> {
        let mut name = letter.to_owned();
        if self.is_sign('_') {
            // ₅C₂ and C_5^2 style counts are left to the caller; here a subscript names.
            self.at += 1;
            let (from, to) = self.script_range()?;
            let subscript = self.text_of(from, to);
            name.push('_');
            name.push_str(&subscript);
        }
        loop {
            let start = self.at;
            if self.eat_word(Word::Prime) {
                name.push('\'');
                continue;
            }
            let prime = self.eat('^') && {
                let braced = self.eat('{');
                let mut primes = 0;
                while self.eat_word(Word::Prime) {
                    primes += 1;
                }
                let inverse = primes == 0 && matches!(letter, "f" | "g" | "h") && braced && self.eat('-') && self.is_one();
                if inverse {
                    self.at += 1;
                    name.push_str("^-1");
                }
                name.extend(std::iter::repeat_n('\'', primes));
                (primes > 0 || inverse) && (!braced || self.eat('}'))
            };
            if !prime {
                self.at = start;
                break;
            }
        }
        if self.is_sign('(') && self.is_application(letter) {
            let mark = self.stack.len();
            let arguments = self.nested(|p| {
                p.at += 1;
                loop {
                    let item = p.relation()?;
                    p.stack.push(item);
                    if !p.eat(',') {
                        break;
                    }
                }
                p.eat(')').then_some(())
            });
            arguments?;
            let ids = self.take(mark);
            let sym = self.name_sym(&name);
            return self.push(Node::Apply(sym, ids));
        }
        if name.len() == letter.len() {
            return match letter {
                "e" => self.push(Node::Const(Const::E)),
                "i" => self.push(Node::Const(Const::I)),
                _ => self.symbol(letter),
            };
        }
        self.symbol(&name)
    }

    fn is_one(&self) -> bool {
        matches!(self.peek(), Some(Kind::Number(n)) if n.digits == b"1" && n.is_whole())
    }

    /// Whether the bracket after a letter holds arguments and not a factor.
    fn is_application(&self, letter: &str) -> bool {
        if matches!(letter, "f" | "g") {
            return true;
        }
        let variable = match self.peek_at(1) {
            Some(Kind::Letter(c)) => VARIABLES.contains(*c),
            Some(Kind::Word(Word::Symbol(s))) => VARIABLES.contains(s),
            _ => false,
        };
        variable && self.peek_at(2) == Some(&Kind::Sign(')')) && FUNCTIONS.contains(letter)
    }

    /// The argument of \frac, \sqrt and their like: a group, or one digit or sign as in TeX.
    pub(super) fn argument(&mut self) -> Option<Id> {
        match self.peek()? {
            Kind::Number(number) if number.places == 0 && number.exponent == 0 && number.digits.len() - self.skip > 1 => {
                let digit = number.digits[self.skip];
                self.skip += 1;
                self.int(i64::from(digit - b'0'))
            }
            Kind::Sign('{' | '(' | '|') | Kind::Number(_) | Kind::Letter(_) | Kind::Run(_) | Kind::Word(_) | Kind::Begin(_) => {
                self.primary()
            }
            _ => None,
        }
    }

    fn word(&mut self, word: Word) -> Option<Id> {
        self.at += 1;
        match word {
            Word::Const(constant) => self.push(Node::Const(constant)),
            Word::Symbol(name) => match self.peek() {
                Some(Kind::Sign('_' | '(') | Kind::Word(Word::Prime)) => self.named(name),
                _ => self.symbol(name),
            },
            Word::Infinity => self.push(Node::Infinity),
            Word::Dots => self.push(Node::Dots),
            Word::Frac => self.nested(Self::fraction),
            Word::Binom => self.nested(|p| {
                let comma = p.is_sign('(');
                p.at += usize::from(comma);
                let n = if comma { p.sum()? } else { p.argument()? };
                if comma && !p.eat(',') {
                    return None;
                }
                let k = if comma { p.sum()? } else { p.argument()? };
                if comma && !p.eat(')') {
                    return None;
                }
                p.push(Node::Binomial(n, k))
            }),
            Word::Sqrt => self.nested(Self::root),
            Word::Func(func) => self.nested(|p| p.function(func)),
            Word::Log => self.nested(Self::logarithm),
            Word::Many(many) => self.nested(|p| {
                let curly = p.is_word(Word::OpenCurly);
                if !curly && !p.is_sign('(') {
                    return None;
                }
                p.at += 1;
                let mark = p.stack.len();
                loop {
                    let item = p.sum()?;
                    p.stack.push(item);
                    if !p.eat(',') {
                        break;
                    }
                }
                let closed = if curly { p.eat_word(Word::CloseCurly) } else { p.eat(')') };
                let ids = p.take(mark);
                if closed { p.push(Node::Many(many, ids)) } else { None }
            }),
            Word::Overline => {
                let inside = self.nested(Self::argument)?;
                self.push(Node::Fn(Func::Conj, inside))
            }
            Word::Accent(accent) => {
                let braced = self.eat('{');
                let Some(Kind::Letter(letter)) = self.peek() else { return None };
                self.at += 1;
                if braced && !self.eat('}') {
                    return None;
                }
                self.symbol(&format!("{accent} {letter}"))
            }
            Word::Named(set) => self.named_set(set),
            _ => self.big_or_bracket(word),
        }
    }

    fn fraction(&mut self) -> Option<Id> {
        if let Some(derivative) = self.derivative() {
            return Some(derivative);
        }
        let numerator = self.argument()?;
        let denominator = self.argument()?;
        self.push(Node::Div(numerator, denominator))
    }

    fn root(&mut self) -> Option<Id> {
        let index = if self.is_sign('[') {
            self.at += 1;
            let index = self.sum()?;
            if !self.eat(']') {
                return None;
            }
            index
        } else {
            self.int(2)?
        };
        let radicand = self.argument()?;
        self.push(Node::Root(index, radicand))
    }

    fn function(&mut self, func: Func) -> Option<Id> {
        let mut func = func;
        let mut power = None;
        if self.eat('^') {
            // sin^{-1} is the inverse, sin^2 the square.
            let start = self.at;
            let braced = self.eat('{');
            if self.eat('-') && self.is_one() && inverse(func).is_some() {
                self.at += 1;
                if braced && !self.eat('}') {
                    return None;
                }
                func = inverse(func)?;
            } else {
                self.at = start;
                power = Some(self.argument_of_power()?);
            }
        }
        let argument = self.function_argument()?;
        let value = self.push(Node::Fn(func, argument))?;
        match power {
            Some(power) => self.push(Node::Pow(value, power)),
            None => Some(value),
        }
    }

    fn argument_of_power(&mut self) -> Option<Id> {
        if self.is_sign('{') { self.primary() } else { self.argument() }
    }

    /// What a function is applied to: a bracket, or the factors up to the next function.
    fn function_argument(&mut self) -> Option<Id> {
        match self.peek()? {
            Kind::Sign('(') => self.primary(),
            Kind::Sign('{') => {
                let argument = self.primary()?;
                Some(argument)
            }
            _ => self.bare_argument(),
        }
    }

    fn logarithm(&mut self) -> Option<Id> {
        let mut base = None;
        let mut power = None;
        loop {
            if base.is_none() && self.eat('_') {
                base = Some(self.argument()?);
            } else if power.is_none() && self.eat('^') {
                power = Some(self.argument_of_power()?);
            } else {
                break;
            }
        }
        let argument = self.function_argument()?;
        let value = match base {
            Some(base) => self.push(Node::Log(base, argument))?,
            None => self.push(Node::Fn(Func::Log10, argument))?,
        };
        match power {
            Some(power) => self.push(Node::Pow(value, power)),
            None => Some(value),
        }
    }
}

fn inverse(func: Func) -> Option<Func> {
    Some(match func {
        Func::Sin => Func::Arcsin,
        Func::Cos => Func::Arccos,
        Func::Tan => Func::Arctan,
        Func::Sinh => Func::Arcsinh,
        Func::Cosh => Func::Arccosh,
        Func::Tanh => Func::Arctanh,
        _ => return None,
    })
}
