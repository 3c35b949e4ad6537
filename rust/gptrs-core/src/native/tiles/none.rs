//! No tiles on this processor.

use super::super::int8::MatMulI8;
use super::{MatMulBf16, Product};

/// Nothing is one.
#[derive(Debug, Clone, Copy)]
pub enum Tiles {}

/// Nothing is one.
#[derive(Debug)]
pub enum ReadyTiles {}

impl Tiles {
    pub fn find() -> Option<Self> {
        None
    }

    pub fn make_ready(self) -> ReadyTiles {
        match self {}
    }
}

impl ReadyTiles {
    pub fn pack(&self, _: &[f32], _: usize, _: &mut [u32]) {
        match *self {}
    }

    pub fn multiply_bf16(&self, _: MatMulBf16<'_>) {
        match *self {}
    }

    pub fn multiply_i8(&self, _: MatMulI8<'_>) {
        match *self {}
    }

    pub fn multiply(&self, _: Product<'_>) {
        match *self {}
    }
}
