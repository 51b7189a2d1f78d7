//! Expressions in an arena: nodes refer to earlier nodes by index, so nothing is boxed and dropping is flat.

use super::rational::Rational;

pub(crate) type Id = u32;
pub(crate) type Sym = u32;

/// A run of ids in [`Arena::lists`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    start: u32,
    len: u32,
}

impl Ids {
    pub fn len(self) -> usize {
        self.len as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Const {
    Pi,
    E,
    I,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Func {
    Abs,
    Floor,
    Ceil,
    Sign,
    Conj,
    Re,
    Im,
    Exp,
    Ln,
    Log10,
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Arcsinh,
    Arccosh,
    Arctanh,
}

/// Functions of any number of arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ManyFunc {
    Gcd,
    Lcm,
    Max,
    Min,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Approx,
    In,
    /// Any other relation, such as ⊂ or ∥; compared by name only.
    Other,
}

impl RelOp {
    /// The same relation read from right to left.
    pub fn flipped(self) -> Self {
        match self {
            RelOp::Lt => RelOp::Gt,
            RelOp::Le => RelOp::Ge,
            RelOp::Gt => RelOp::Lt,
            RelOp::Ge => RelOp::Le,
            other => other,
        }
    }

    pub fn is_order(self) -> bool {
        matches!(self, RelOp::Lt | RelOp::Le | RelOp::Gt | RelOp::Ge)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetOp {
    Union,
    Intersection,
    Difference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamedSet {
    Empty,
    Naturals,
    Integers,
    Rationals,
    Reals,
    Complexes,
}

/// The sign that opens or closes a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bracket {
    Round,
    Square,
    /// `]a` or `b[`: an open end in the French notation.
    Reversed,
    Curly,
    Angle,
}

/// How the items of a list without brackets are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joint {
    Comma,
    And,
    Or,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Sum,
    Product,
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Num(Rational),
    /// Digits with a base: `101_2`; the text is the digits without leading zeros.
    Based(Sym, u32),
    Sym(Sym),
    Const(Const),
    Infinity,
    Add(Ids),
    Mul(Ids),
    Neg(Id),
    Div(Id, Id),
    Pow(Id, Id),
    /// Index and radicand.
    Root(Id, Id),
    Factorial(Id),
    /// `a ± b`; the flag is set for ∓.
    PlusMinus(Id, Id, bool),
    Fn(Func, Id),
    /// Base and argument.
    Log(Id, Id),
    Binomial(Id, Id),
    Mod(Id, Id),
    Many(ManyFunc, Ids),
    /// An unknown function and its arguments.
    Apply(Sym, Ids),
    Percent(Id),
    Degree(Id),
    /// A finite or infinite sum or product: variable, from, to, body.
    Over(Over, Sym, [Id; 3]),
    /// A definite integral: variable, from, to, body.
    Integral(Sym, [Id; 3]),
    /// A limit: variable, target, body, and the side (−1, 0, 1).
    Limit(Sym, [Id; 2], i8),
    Derivative(Sym, Id),
    Group(Bracket, Bracket, Ids),
    List(Joint, Ids),
    Dots,
    /// Rows, columns, items.
    Matrix(u32, u32, Ids),
    /// `items[0] ops[0] items[1] …`; the operators are in [`Arena::ops`] from the given start.
    Chain(Ids, u32),
    /// a ≡ b (mod m)
    Congruence([Id; 3]),
    SetOp(SetOp, Id, Id),
    Named(NamedSet),
    /// `{element : condition}`
    Builder(Id, Id),
    /// a : b : …
    Ratio(Ids),
    /// Words; the symbol table holds them.
    Text(Sym),
}

/// Nodes and what they refer to.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    nodes: Vec<Node>,
    depths: Vec<u16>,
    lists: Vec<Id>,
    pub ops: Vec<RelOp>,
    names: Vec<String>,
}

/// Beyond these an answer is compared as text only.
pub(crate) const MAX_NODES: usize = 16_384;
pub(crate) const MAX_DEPTH: u16 = 600;

impl Arena {
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.depths.clear();
        self.lists.clear();
        self.ops.clear();
        self.names.clear();
    }

    /// Adds a node; `None` when the arena is full or the node would be nested too deep.
    pub fn push(&mut self, node: Node) -> Option<Id> {
        let depth = 1 + self.children_depth(&node);
        if self.nodes.len() >= MAX_NODES || depth > MAX_DEPTH {
            return None;
        }
        self.nodes.push(node);
        self.depths.push(depth);
        Some(self.nodes.len() as Id - 1)
    }

    fn children_depth(&self, node: &Node) -> u16 {
        let mut depth = 0;
        self.for_each_child(node, |id| depth = depth.max(self.depths[id as usize]));
        depth
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub fn ids(&mut self, items: &[Id]) -> Ids {
        let start = self.lists.len() as u32;
        self.lists.extend_from_slice(items);
        Ids { start, len: items.len() as u32 }
    }

    pub fn list(&self, ids: Ids) -> &[Id] {
        &self.lists[ids.start as usize..][..ids.len()]
    }

    /// The operators of a chain of `items` many items.
    pub fn chain_ops(&self, start: u32, items: Ids) -> &[RelOp] {
        &self.ops[start as usize..][..items.len() - 1]
    }

    /// The number of a name; equal names have equal numbers.
    pub fn sym(&mut self, name: &str) -> Sym {
        if let Some(at) = self.names.iter().position(|known| known == name) {
            return at as Sym;
        }
        self.names.push(name.to_owned());
        self.names.len() as Sym - 1
    }

    pub fn name(&self, sym: Sym) -> &str {
        &self.names[sym as usize]
    }

    pub fn num_syms(&self) -> usize {
        self.names.len()
    }

    pub fn for_each_child(&self, node: &Node, mut f: impl FnMut(Id)) {
        match node {
            Node::Num(_)
            | Node::Based(..)
            | Node::Sym(_)
            | Node::Const(_)
            | Node::Infinity
            | Node::Dots
            | Node::Named(_)
            | Node::Text(_) => {}
            Node::Neg(a) | Node::Factorial(a) | Node::Fn(_, a) | Node::Percent(a) | Node::Degree(a) | Node::Derivative(_, a) => f(*a),
            Node::Div(a, b)
            | Node::Pow(a, b)
            | Node::Root(a, b)
            | Node::PlusMinus(a, b, _)
            | Node::Log(a, b)
            | Node::Binomial(a, b)
            | Node::Mod(a, b)
            | Node::SetOp(_, a, b)
            | Node::Builder(a, b) => {
                f(*a);
                f(*b);
            }
            Node::Limit(_, ids, _) => ids.iter().for_each(|id| f(*id)),
            Node::Over(_, _, ids) | Node::Integral(_, ids) | Node::Congruence(ids) => ids.iter().for_each(|id| f(*id)),
            Node::Add(ids)
            | Node::Mul(ids)
            | Node::Many(_, ids)
            | Node::Apply(_, ids)
            | Node::Group(_, _, ids)
            | Node::List(_, ids)
            | Node::Matrix(_, _, ids)
            | Node::Chain(ids, _)
            | Node::Ratio(ids) => self.list(*ids).iter().for_each(|id| f(*id)),
        }
    }

    /// Whether the node or anything below it satisfies the test.
    pub fn any(&self, id: Id, test: &impl Fn(&Node) -> bool) -> bool {
        let node = self.node(id);
        if test(node) {
            return true;
        }
        let mut found = false;
        self.for_each_child(node, |child| found = found || self.any(child, test));
        found
    }

    /// Makes every such constant below `id` the variable.
    pub fn replace_constant(&mut self, id: Id, constant: Const, variable: Sym) {
        if matches!(self.node(id), Node::Const(c) if *c == constant) {
            self.nodes[id as usize] = Node::Sym(variable);
            return;
        }
        let mut children = Vec::new();
        self.for_each_child(self.node(id), |child| children.push(child));
        for child in children {
            self.replace_constant(child, constant, variable);
        }
    }
}
