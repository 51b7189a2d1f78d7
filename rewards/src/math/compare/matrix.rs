//! Matrices, vectors, determinants.

use super::{Comparison, Outcome};
use crate::math::ast::{Bracket, Id, Node};

/// A matrix of expressions.
struct Matrix {
    rows: usize,
    columns: usize,
    items: Vec<Id>,
}

const MAX_ITEMS: usize = 4096;

impl Comparison<'_> {
    pub(super) fn matrices(&mut self, g: Id, p: Id) -> Outcome {
        let unwrapped = [g, p].map(|id| self.assigned_matrix(id));
        let (Some(a), Some(b)) = (self.matrix(unwrapped[0]), self.matrix(unwrapped[1])) else {
            return self.vector_and_tuple(unwrapped[0], unwrapped[1]);
        };
        if (a.rows, a.columns) != (b.rows, b.columns) {
            return Outcome::Different;
        }
        self.in_order(&a.items, &b.items)
    }

    /// `A = (…)` is its right side.
    fn assigned_matrix(&mut self, id: Id) -> Id {
        self.value_of_equation(id).unwrap_or(id)
    }

    /// A column or a row and a tuple of the same entries.
    fn vector_and_tuple(&mut self, g: Id, p: Id) -> Outcome {
        let entries = |this: &mut Self, id: Id| -> Option<Vec<Id>> {
            if let Node::Group(Bracket::Round | Bracket::Angle, _, ids) = this.arena.node(id) {
                return Some(this.arena.list(*ids).to_vec());
            }
            let matrix = this.matrix(id)?;
            (matrix.rows == 1 || matrix.columns == 1).then_some(matrix.items)
        };
        match (entries(self, g), entries(self, p)) {
            (Some(a), Some(b)) => self.in_order(&a, &b),
            _ => Outcome::Different,
        }
    }

    fn matrix(&mut self, id: Id) -> Option<Matrix> {
        self.budget.spend(4).ok()?;
        match *self.arena.node(id) {
            Node::Matrix(rows, columns, ids) => {
                let items = self.arena.list(ids).to_vec();
                (items.len() <= MAX_ITEMS).then_some(Matrix { rows: rows as usize, columns: columns as usize, items })
            }
            Node::Group(Bracket::Square, Bracket::Square, ids) => self.rows(ids),
            Node::Neg(inner) => {
                let inner = self.matrix(inner)?;
                self.each(inner, |arena, item| arena.push(Node::Neg(item)))
            }
            Node::Div(inner, by) => {
                let inner = self.matrix(inner)?;
                self.each(inner, |arena, item| arena.push(Node::Div(item, by)))
            }
            Node::Mul(ids) => {
                let factors = self.arena.list(ids).to_vec();
                let mut product: Option<Matrix> = None;
                let mut scalars = Vec::new();
                for factor in factors {
                    match self.matrix(factor) {
                        Some(matrix) => {
                            product = Some(match product {
                                Some(left) => self.product(&left, &matrix)?,
                                None => matrix,
                            });
                        }
                        None => scalars.push(factor),
                    }
                }
                self.each(product?, |arena, item| {
                    let mut all = scalars.clone();
                    all.push(item);
                    let ids = arena.ids(&all);
                    arena.push(Node::Mul(ids))
                })
            }
            Node::Add(ids) => {
                let mut terms = self.arena.list(ids).to_vec().into_iter();
                let mut sum = self.matrix(terms.next()?)?;
                for term in terms {
                    let term = self.matrix(term)?;
                    if (term.rows, term.columns) != (sum.rows, sum.columns) {
                        return None;
                    }
                    for (a, b) in sum.items.iter_mut().zip(term.items) {
                        let ids = self.arena.ids(&[*a, b]);
                        *a = self.arena.push(Node::Add(ids))?;
                    }
                }
                Some(sum)
            }
            _ => None,
        }
    }

    /// `[[1, 2], [3, 4]]`
    fn rows(&mut self, ids: crate::math::ast::Ids) -> Option<Matrix> {
        let rows = self.arena.list(ids);
        let mut items = Vec::new();
        for row in rows {
            match self.arena.node(*row) {
                Node::Group(Bracket::Square, Bracket::Square, cells) => items.extend_from_slice(self.arena.list(*cells)),
                _ => return None,
            }
        }
        let columns = items.len() / rows.len().max(1);
        (columns * rows.len() == items.len() && items.len() <= MAX_ITEMS && columns > 0).then_some(Matrix {
            rows: rows.len(),
            columns,
            items,
        })
    }

    fn each(&mut self, mut matrix: Matrix, f: impl Fn(&mut crate::math::ast::Arena, Id) -> Option<Id>) -> Option<Matrix> {
        for item in &mut matrix.items {
            *item = f(self.arena, *item)?;
        }
        Some(matrix)
    }

    fn product(&mut self, a: &Matrix, b: &Matrix) -> Option<Matrix> {
        if a.columns != b.rows || a.rows * a.columns * b.columns > MAX_ITEMS {
            return None;
        }
        let mut items = Vec::new();
        for row in 0..a.rows {
            for column in 0..b.columns {
                let mut terms = Vec::new();
                for k in 0..a.columns {
                    let ids = self.arena.ids(&[a.items[row * a.columns + k], b.items[k * b.columns + column]]);
                    terms.push(self.arena.push(Node::Mul(ids))?);
                }
                let ids = self.arena.ids(&terms);
                items.push(self.arena.push(Node::Add(ids))?);
            }
        }
        Some(Matrix { rows: a.rows, columns: b.columns, items })
    }
}
