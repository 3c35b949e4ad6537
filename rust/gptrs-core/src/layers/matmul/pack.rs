//! Parts of matrices on their way into panels: what a tile reads side by side lies side by side.

#![allow(clippy::needless_range_loop, reason = "loops over registers, which iterators hide")]

use std::ops::Range;

use crate::native::lanes::{LANES, Simd, Work};
use crate::native::math::filled;

/// Rows of the left matrix, or columns of the right one.
#[derive(Clone, Copy)]
pub struct Lines<'a> {
    pub numbers: &'a [f32],
    /// From a line to the next.
    pub line: usize,
    /// From a line's number to the next.
    pub step: usize,
}

/// At most `P` lines become a panel: their first numbers, their second numbers, ...
pub struct Pack<'a, const P: usize> {
    pub lines: Lines<'a>,
    /// Which lines.
    pub chosen: Range<usize>,
    /// Which of their numbers.
    pub span: Range<usize>,
    /// What no line fills becomes zero.
    pub panel: &'a mut [f32],
}

impl<const P: usize> Work for Pack<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.lines.line == 1 { self.gather() } else { self.turn(simd) }
    }
}

impl<const P: usize> Pack<'_, P> {
    /// Numbers of neighbouring lines are neighbours.
    #[inline(always)]
    fn gather(self) {
        let Self { lines, chosen, span, panel } = self;
        for (k, to) in span.zip(panel.as_chunks_mut::<P>().0) {
            let from = &lines.numbers[k * lines.step + chosen.start..][..chosen.len()];
            *to = filled(from, 0.0);
        }
    }

    /// Numbers of one line are neighbours.
    #[inline(always)]
    fn turn<S: Simd>(self, simd: S) {
        let Self { lines, chosen, span, panel } = self;
        for first in (0..P).step_by(LANES) {
            let (width, count) = (LANES.min(P - first), chosen.len().saturating_sub(first));
            for k in (0..span.len()).step_by(LANES) {
                let depth = LANES.min(span.len() - k);
                let mut square = [simd.splat_words(0); LANES];
                for l in 0..width.min(count) {
                    let from = (chosen.start + first + l) * lines.line + span.start + k;
                    let from: [f32; LANES] = filled(&lines.numbers[from..][..depth], 0.0);
                    square[l] = simd.load_words(bytemuck::cast_ref(&from));
                }
                let square = simd.transpose(square);
                for l in 0..depth {
                    let to = &mut panel[(k + l) * P + first..];
                    if let Some(to) = to.first_chunk_mut::<LANES>() {
                        // What reaches beyond this panel's lines is overwritten by what follows.
                        simd.store_words(square[l], bytemuck::cast_mut(to));
                    } else {
                        let mut words = [0; LANES];
                        simd.store_words(square[l], &mut words);
                        to[..width].copy_from_slice(bytemuck::cast_slice(&words[..width]));
                    }
                }
            }
        }
    }
}
