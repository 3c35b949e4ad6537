//! The length of gradients.

use super::numbers::Number;
use super::{CHUNK, for_each};
use crate::native::Kernels;
use crate::native::lanes::{LANES, Simd, Work, dispatch};
use crate::native::math::filled;

/// The sum of the squares of all numbers, whatever the number of threads the same to the bit.
pub fn sum_of_squares<N: Number>(kernels: Kernels, threads: usize, x: &[N]) -> f64 {
    let found = kernels.found();
    let mut sums = vec![0.0; x.len().div_ceil(CHUNK)];
    let parts = x.chunks(CHUNK).zip(sums.iter_mut());
    for_each(threads, parts, || (), |(), (x, sum)| *sum = f64::from(dispatch(found, Squares(x))));
    sums.iter().sum()
}

struct Squares<'a, N>(&'a [N]);

impl<N: Number> Work for Squares<'_, N> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (chunks, tail) = self.0.as_chunks::<LANES>();
        // Several sums, so that one need not wait for the other.
        let mut sums = [simd.splat(0.0); 4];
        for four in chunks.chunks(4) {
            for (sum, chunk) in sums.iter_mut().zip(four) {
                let x = N::load(simd, chunk);
                *sum = simd.mul_add(x, x, *sum);
            }
        }
        let last = N::load(simd, &filled(tail, N::zeroed()));
        sums[0] = simd.mul_add(last, last, sums[0]);
        simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
    }
}
