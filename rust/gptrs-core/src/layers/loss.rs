//! What the loss by columns of the vocabulary needs between its products: exponentials and their sums, and
//! a matrix turned on its way to where it is kept.

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
