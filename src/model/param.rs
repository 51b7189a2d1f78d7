//! The parameters of a model: which tensors of a checkpoint each is made of, how it is loaded and how it is written anew.
//!
//! One description serves both. A load makes the parameter from its tensors; an update writes those that it brings into the same
//! buffers, so that whatever names the buffers stays valid.

use super::shared::SharedUpdate;
use super::update::Update;
use super::weights::Checkpoint;
use crate::backends::{Backend, Element, Matrix};
use crate::error::Result;

/// A tensor that the model asks of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The hub's spelling.
    pub name: String,
    /// Another tensor that may stand in its place, or beside it with the same values: a tied head.
    pub alias: Option<String>,
    pub shape: Vec<usize>,
    /// Enters GEMMs in the serving type; the others are kept as f32.
    pub matrix: bool,
}

impl TensorSpec {
    fn rows(&self) -> usize {
        self.shape[0]
    }

    /// A convolution is a matrix over the flattened patch.
    fn cols(&self) -> usize {
        self.shape[1..].iter().product()
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A GEMM operand: its tensors stacked along their rows.
pub struct Weight<B: Backend> {
    pub operand: B::Weight,
    parts: Vec<TensorSpec>,
}

/// f32 values: its tensors one after the other.
pub struct Vector<B: Backend> {
    pub values: B::Buf<f32>,
    /// The same on the host, so that a part can change.
    host: Vec<f32>,
    parts: Vec<TensorSpec>,
}

pub enum Param<'a, B: Backend> {
    Weight(&'a mut Weight<B>),
    Vector(&'a mut Vector<B>),
}

impl<B: Backend> Param<'_, B> {
    pub fn parts(&self) -> &[TensorSpec] {
        match self {
            Param::Weight(weight) => &weight.parts,
            Param::Vector(vector) => &vector.parts,
        }
    }

    /// Takes over the values of the same parameter of another instance.
    pub fn copy(&mut self, b: &B, from: &Self) {
        match (self, from) {
            (Param::Weight(to), Param::Weight(from)) => b.copy_weight(&from.operand, &mut to.operand),
            (Param::Vector(to), Param::Vector(from)) => {
                to.host.copy_from_slice(&from.host);
                b.upload(&to.host, &mut to.values);
            }
            _ => panic!("two instances of one model differ in their parameters"),
        }
    }

    /// Writes the tensors that the update brings.
    pub fn rewrite(&mut self, b: &B, update: &Update) {
        let write = |operand: &mut B::Weight, first_row, part: &TensorSpec| {
            if let Some(tensor) = update.tensor(part) {
                b.rewrite_weight(operand, first_row, Matrix { rows: part.rows(), cols: part.cols(), data: tensor.data() });
            }
        };
        self.rewrite_with(b, write, |part| Some(update.tensor(part)?.to_f32()));
    }

    /// As [`Param::rewrite`], from another process's memory.
    pub fn rewrite_shared(&mut self, b: &B, update: &SharedUpdate) {
        let write = |operand: &mut B::Weight, first_row, part: &TensorSpec| {
            if let Some(values) = update.matrix(part) {
                b.rewrite_shared(operand, first_row, part.rows(), values);
            }
        };
        self.rewrite_with(b, write, |part| update.vector(part));
    }

    fn rewrite_with<V: AsRef<[f32]>>(
        &mut self,
        b: &B,
        write: impl Fn(&mut B::Weight, usize, &TensorSpec),
        values: impl Fn(&TensorSpec) -> Option<V>,
    ) {
        match self {
            Param::Weight(weight) => {
                let mut first_row = 0;
                for part in &weight.parts {
                    write(&mut weight.operand, first_row, part);
                    first_row += part.rows();
                }
            }
            Param::Vector(vector) => {
                let (mut start, mut changed) = (0, false);
                for part in &vector.parts {
                    if let Some(values) = values(part) {
                        vector.host[start..start + part.len()].copy_from_slice(values.as_ref());
                        changed = true;
                    }
                    start += part.len();
                }
                if changed {
                    b.upload(&vector.host, &mut vector.values);
                }
            }
        }
    }
}

/// Makes parameters from a checkpoint; errors name the tensor.
pub struct Loader<'a, B: Backend> {
    pub b: &'a B,
    pub checkpoint: &'a Checkpoint,
}

impl<B: Backend> Loader<'_, B> {
    /// Tensors `[rows, cols]` by name and rows.
    pub fn weight(&self, names: &[(String, usize)], cols: usize) -> Result<Weight<B>> {
        self.weight_of(names.iter().map(|(name, rows)| spec(name, &[*rows, cols], true)).collect())
    }

    /// One tensor whose first dimension is its rows, and what may stand in its place.
    pub fn weight_as(&self, name: &str, shape: &[usize], alias: Option<&str>) -> Result<Weight<B>> {
        self.weight_of(vec![TensorSpec { alias: alias.map(str::to_owned), ..spec(name, shape, true) }])
    }

    fn weight_of(&self, parts: Vec<TensorSpec>) -> Result<Weight<B>> {
        let tensors = parts.iter().map(|part| self.checkpoint.tensor(part)).collect::<Result<Vec<_>>>()?;
        let stacked: Vec<Matrix<'_>> =
            parts.iter().zip(&tensors).map(|(part, t)| Matrix { rows: part.rows(), cols: part.cols(), data: t.data() }).collect();
        Ok(Weight { operand: self.b.weight(&stacked)?, parts })
    }

    /// Tensors by name and length.
    pub fn vector(&self, names: &[(String, usize)]) -> Result<Vector<B>> {
        let parts: Vec<TensorSpec> = names.iter().map(|(name, len)| spec(name, &[*len], false)).collect();
        let mut host = Vec::with_capacity(parts.iter().map(TensorSpec::len).sum());
        for part in &parts {
            host.extend(self.checkpoint.tensor(part)?.to_f32());
        }
        Ok(Vector { values: self.constant(&host)?, host, parts })
    }

    /// Values that no checkpoint has.
    pub fn constant<T: Element>(&self, values: &[T]) -> Result<B::Buf<T>> {
        let mut buffer = self.b.alloc(values.len())?;
        self.b.upload(values, &mut buffer);
        Ok(buffer)
    }
}

fn spec(name: &str, shape: &[usize], matrix: bool) -> TensorSpec {
    TensorSpec { name: name.to_owned(), alias: None, shape: shape.to_vec(), matrix }
}
