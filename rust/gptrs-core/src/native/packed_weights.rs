//! A model's matrices in eight bits.

#![allow(
    unsafe_code,
    reason = "each thread writes matrices of its own, and nobody does afterwards"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::int8::Packed;
use super::lanes::Found;
use super::numbers::Bytes;
use super::pool::Pool;
use super::shared::Shared;
use super::weights::{Matrix, Weights};
use crate::{Error, Result};

/// The copies in eight bits that one model has made, for others of the same weights.
#[derive(Debug, Clone)]
pub struct PackedWeights(Arc<Vec<Packed>>);

impl PackedWeights {
    /// Every matrix in eight bits, on all threads.
    pub(super) fn pack(weights: &Weights, pool: &mut Pool, found: Found) -> Result<Self> {
        let all = matrices(weights);
        let mut end = 0;
        let places: Vec<_> = all
            .iter()
            .map(|matrix| {
                let start = end;
                end += Packed::num_bytes(matrix);
                start..end
            })
            .collect();
        let bytes = Arc::new(Shared::in_large_pages(end, "weights in eight bits")?);
        let scales: Vec<_> = all.iter().map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        pool.run(&|_| {
            // The largest, which is the last, goes first.
            while let Some(left) = all.len().checked_sub(1 + next.fetch_add(1, Ordering::Relaxed)) {
                // SAFETY: places do not overlap, and each number comes once.
                let place = unsafe { bytes.write(places[left].clone()) };
                scales[left].get_or_init(|| Packed::pack(all[left], place, found));
            }
        });
        let scales = scales.into_iter().filter_map(OnceLock::into_inner);
        let parts = places.into_iter().zip(scales).map(|(place, scales)| {
            // SAFETY: all are written.
            (unsafe { Bytes::part(&bytes, place) }, scales)
        });
        Self::of_parts(weights, parts.collect())
    }

    /// What `parts` gave, of a model of these shapes.
    ///
    /// # Errors
    /// `Setting`: they are of another number, or of another size.
    pub fn of_parts(weights: &Weights, parts: Vec<(Bytes, Vec<f32>)>) -> Result<Self> {
        let all = matrices(weights);
        if all.len() != parts.len() {
            let message = format!("the model has {} matrices, found {}", all.len(), parts.len());
            return Err(Error::Setting(message));
        }
        let packed = all.into_iter().zip(parts);
        let packed =
            packed.map(|(matrix, (bytes, scales))| Packed::of_parts(matrix, bytes, scales));
        Ok(Self(Arc::new(packed.collect::<Result<_>>()?)))
    }

    /// Of each matrix its bytes and its scales: of each block Q, K, V, out_proj, ff.0, ff.2; at the end
    /// the output layer.
    pub fn parts(&self) -> impl Iterator<Item = (&Bytes, &[f32])> {
        self.0.iter().map(Packed::parts)
    }

    /// As the passes take them.
    pub(super) fn matrices(&self) -> &[Packed] {
        &self.0
    }

    /// Whether they may be copies of these weights.
    pub(super) fn fit(&self, weights: &Weights) -> bool {
        let all = matrices(weights);
        self.0.len() == all.len()
            && self.0.iter().zip(all).all(|(packed, matrix)| packed.fits(matrix))
    }
}

/// Of each block Q, K, V, out_proj, ff.0, ff.2; at the end the output layer.
fn matrices(weights: &Weights) -> Vec<&Matrix> {
    let blocks = weights.blocks.iter().flat_map(|block| {
        [&block.query, &block.key, &block.value, &block.out, &block.up, &block.down]
    });
    blocks.chain([&weights.head]).map(|linear| &linear.weight).collect()
}
