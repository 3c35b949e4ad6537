//! What the loss needs between its products. By columns of the vocabulary: exponentials and their sums, and
//! a matrix turned on its way to where it is kept. By rows: probabilities and losses.

use super::for_each;
use super::numbers::Number;
use crate::native::Kernels;
use crate::native::lanes::{LANES, Simd, Work, dispatch};
use crate::native::math::{exp, filled};

/// Rows that a thread takes at a time.
const ROWS: usize = 16;

/// Rows of `columns` numbers become their exponentials; the sum of each, as they were rounded, is added to
/// `sums`.
///
/// # Panics
/// There are not as many rows as sums.
pub fn exp_and_sum<N: Number>(
    kernels: Kernels,
    threads: usize,
    columns: usize,
    rows: &mut [N],
    sums: &mut [f32],
) {
    assert_eq!(rows.len(), columns * sums.len());
    if columns == 0 {
        return;
    }
    let found = kernels.found();
    let parts = rows.chunks_mut(ROWS * columns).zip(sums.chunks_mut(ROWS));
    for_each(
        threads,
        parts,
        || (),
        |(), (rows, sums)| dispatch(found, Exp { columns, rows, sums }),
    );
}

struct Exp<'a, N> {
    columns: usize,
    rows: &'a mut [N],
    sums: &'a mut [f32],
}

impl<N: Number> Work for Exp<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, total) in self.rows.chunks_exact_mut(self.columns).zip(self.sums) {
            let (chunks, tail) = row.as_chunks_mut::<LANES>();
            let mut sum = simd.splat(0.0);
            for chunk in chunks {
                let y = exp(simd, N::load(simd, chunk));
                N::store(simd, y, chunk);
                sum = simd.add(sum, N::load(simd, chunk));
            }
            let mut all = simd.sum(sum);
            if !tail.is_empty() {
                let mut lanes = filled(tail, N::zeroed());
                let y = exp(simd, N::load(simd, &lanes));
                N::store(simd, y, &mut lanes);
                let mut floats = [0.0; LANES];
                simd.store(N::load(simd, &lanes), &mut floats);
                tail.copy_from_slice(&lanes[..tail.len()]);
                for float in &floats[..tail.len()] {
                    all += float;
                }
            }
            *total += all;
        }
    }
}

/// Rows of `columns` logits become probabilities; a row's loss is minus the logarithm of its target's.
///
/// # Panics
/// There are not as many rows as targets and losses; or a target is none of the columns.
pub fn softmax_and_losses(
    kernels: Kernels,
    threads: usize,
    columns: usize,
    rows: &mut [f32],
    targets: &[i64],
    losses: &mut [f32],
) {
    assert!(rows.len() == columns * targets.len() && targets.len() == losses.len());
    if columns == 0 {
        return;
    }
    let found = kernels.found();
    let parts = rows.chunks_mut(columns).zip(targets).zip(losses);
    for_each(
        threads,
        parts,
        || (),
        |(), ((row, target), loss)| {
            // Below zero it is far too large.
            let at_target = row[*target as usize];
            let [largest, sum] = dispatch(found, Softmax { row });
            *loss = sum.ln() - (at_target - largest);
        },
    );
}

struct Softmax<'a> {
    row: &'a mut [f32],
}

impl Work for Softmax<'_> {
    /// The largest logit, and the sum of all exponentials beside it.
    type Output = [f32; 2];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; 2] {
        let (chunks, tail) = self.row.as_chunks_mut::<LANES>();
        let mut last = filled(tail, f32::NEG_INFINITY);
        let mut largest = simd.load(&last);
        for chunk in &*chunks {
            largest = simd.max(largest, simd.load(chunk));
        }
        let largest = simd.largest(largest);
        let minus_largest = simd.splat(-largest);
        let mut sum = simd.splat(0.0);
        for chunk in &mut *chunks {
            let y = exp(simd, simd.add(simd.load(chunk), minus_largest));
            simd.store(y, chunk);
            sum = simd.add(sum, y);
        }
        let y = exp(simd, simd.add(simd.load(&last), minus_largest));
        simd.store(y, &mut last);
        let sum = last[..tail.len()].iter().fold(simd.sum(sum), |sum, y| sum + y);
        let factor = 1.0 / sum;
        for chunk in chunks {
            simd.store(simd.mul(simd.load(chunk), simd.splat(factor)), chunk);
        }
        for (out, y) in tail.iter_mut().zip(last) {
            *out = y * factor;
        }
        [largest, sum]
    }
}

/// `to`, `[columns][rows]`, becomes `from`, `[rows][columns]`, turned.
///
/// # Panics
/// They are not of such sizes.
pub fn turn<A: Number, B: Number>(
    kernels: Kernels,
    threads: usize,
    columns: usize,
    from: &[A],
    to: &mut [B],
) {
    assert_eq!(from.len(), to.len());
    if from.is_empty() {
        return;
    }
    let (found, rows) = (kernels.found(), from.len() / columns);
    assert_eq!(rows * columns, from.len());
    let parts = to.chunks_mut(LANES * rows).enumerate();
    for_each(
        threads,
        parts,
        || (),
        |(), (part, to)| {
            dispatch(found, Turn { columns, rows, first: part * LANES, from, to });
        },
    );
}

/// At most sixteen columns become rows.
struct Turn<'a, A, B> {
    columns: usize,
    rows: usize,
    first: usize,
    from: &'a [A],
    to: &'a mut [B],
}

impl<A: Number, B: Number> Work for Turn<'_, A, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, rows, first, from, to } = self;
        let count = LANES.min(columns - first);
        for row in (0..rows).step_by(LANES) {
            let height = LANES.min(rows - row);
            let mut square = [simd.splat_words(0); LANES];
            for r in 0..height {
                let numbers = &from[(row + r) * columns + first..][..count];
                square[r] = simd.to_words(A::load(simd, &filled(numbers, A::zeroed())));
            }
            let square = simd.transpose(square);
            for c in 0..count {
                let numbers = &mut to[c * rows + row..][..height];
                let turned = simd.to_floats(square[c]);
                if let Some(whole) = numbers.first_chunk_mut() {
                    B::store(simd, turned, whole);
                } else {
                    let mut all = [B::zeroed(); LANES];
                    B::store(simd, turned, &mut all);
                    numbers.copy_from_slice(&all[..height]);
                }
            }
        }
    }
}
