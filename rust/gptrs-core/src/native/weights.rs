//! What a model consists of, as the engine reads it.

use super::numbers::{Floats, Numbers};
use crate::{Error, Result};

/// A matrix, row behind row: `[out, in]`, as PyTorch's `nn.Linear` has it.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// How many rows.
    pub rows: usize,
    /// How long each is.
    pub columns: usize,
    /// rows * columns of them.
    pub numbers: Numbers,
}

impl Matrix {
    /// One row.
    pub(super) fn row(&self, row: usize) -> Floats<'_> {
        self.numbers.floats().part(row * self.columns, self.columns)
    }
}

/// `weight x + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Numbers>,
}

/// A layer norm's parameters.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[emb_dim]`.
    pub scale: Numbers,
    /// `[emb_dim]`.
    pub shift: Numbers,
    /// Added to the variance.
    pub eps: f32,
}

/// One transformer block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Before attention.
    pub norm1: Norm,
    /// To queries.
    pub query: Linear,
    /// To keys.
    pub key: Linear,
    /// To values.
    pub value: Linear,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Behind the heads.
    pub out: Linear,
    /// Before the feed-forward part.
    pub norm2: Norm,
    /// Its first layer.
    pub up: Linear,
    /// Its second.
    pub down: Linear,
}

/// How tokens know their places.
#[derive(Debug, Clone)]
pub enum Positions {
    /// By nothing.
    None,
    /// A row of a table is added.
    Learned(Matrix),
    /// Sines and cosines are added.
    Sinusoidal,
    /// Queries and keys are turned.
    Rope,
    /// A head's slope times the distance is taken off its scores.
    Alibi(Vec<f32>),
}

/// All of a model.
#[derive(Debug, Clone)]
pub struct Weights {
    /// The embedding table, `[vocab_size, emb_dim]`.
    pub tokens: Matrix,
    /// How tokens know their places.
    pub positions: Positions,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Heads of every block.
    pub num_heads: usize,
    /// The last layer norm.
    pub norm: Norm,
    /// The output layer, `[vocab_size, emb_dim]`.
    pub head: Linear,
}

impl Weights {
    /// The width of the stream.
    pub fn emb_dim(&self) -> usize {
        self.tokens.columns
    }

    /// Rows of the output layer.
    pub fn vocab_size(&self) -> usize {
        self.head.weight.rows
    }

    /// The width of a head.
    pub fn head_dim(&self) -> usize {
        self.emb_dim() / self.num_heads.max(1)
    }

    /// The widest layer in the feed-forward parts.
    pub(super) fn hidden_dim(&self) -> usize {
        self.blocks.iter().map(|block| block.up.weight.rows).max().unwrap_or(0)
    }

    /// Whether everything fits together.
    ///
    /// # Errors
    /// What does not, with the shape that was found and the one that fits.
    pub fn check(&self, context_length: usize) -> Result<()> {
        let width = self.emb_dim();
        if width == 0 || self.num_heads == 0 || !width.is_multiple_of(self.num_heads) {
            let message = format!("emb_dim {width} is not a multiple of {} heads", self.num_heads);
            return Err(Error::Setting(message));
        }
        if !self.head_dim().is_multiple_of(2) && matches!(self.positions, Positions::Rope) {
            let message = format!("rope turns pairs; a head is {} wide", self.head_dim());
            return Err(Error::Setting(message));
        }
        check_matrix("tok_emb", &self.tokens, self.tokens.rows, width)?;
        match &self.positions {
            Positions::Learned(table) => {
                check_matrix("pos_emb", table, table.rows.max(context_length), width)?;
            }
            Positions::Alibi(slopes) if slopes.len() != self.num_heads => {
                let message = format!("{} slopes for {} heads", slopes.len(), self.num_heads);
                return Err(Error::Setting(message));
            }
            _ => {}
        }
        for block in &self.blocks {
            block.check(width)?;
        }
        self.norm.check("final_norm", width)?;
        self.head.check("out_head", self.head.weight.rows, width)
    }
}

impl Block {
    fn check(&self, width: usize) -> Result<()> {
        let hidden = self.up.weight.rows;
        self.norm1.check("norm1", width)?;
        self.norm2.check("norm2", width)?;
        self.query.check("att.W_query", width, width)?;
        self.key.check("att.W_key", width, width)?;
        self.value.check("att.W_value", width, width)?;
        self.out.check("att.out_proj", width, width)?;
        self.up.check("ff.layers.0", hidden, width)?;
        self.down.check("ff.layers.2", width, hidden)
    }
}

impl Linear {
    fn check(&self, name: &str, rows: usize, columns: usize) -> Result<()> {
        check_matrix(name, &self.weight, rows, columns)?;
        self.bias.as_ref().map_or(Ok(()), |bias| check_vector(name, "bias", bias, rows))
    }
}

impl Norm {
    fn check(&self, name: &str, width: usize) -> Result<()> {
        check_vector(name, "scale", &self.scale, width)?;
        check_vector(name, "shift", &self.shift, width)
    }
}

fn check_matrix(name: &str, matrix: &Matrix, rows: usize, columns: usize) -> Result<()> {
    let found = [matrix.rows, matrix.columns];
    if found != [rows, columns] || matrix.numbers.len() != rows * columns {
        let message = format!(
            "{name} is {found:?} with {} numbers, expected [{rows}, {columns}]",
            matrix.numbers.len()
        );
        return Err(Error::Setting(message));
    }
    Ok(())
}

fn check_vector(name: &str, part: &str, vector: &Numbers, len: usize) -> Result<()> {
    if vector.len() != len {
        let message = format!("{name}.{part} has {} numbers, expected {len}", vector.len());
        return Err(Error::Setting(message));
    }
    Ok(())
}
